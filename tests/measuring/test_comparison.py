"""What stands side by side on a page of several models."""

import json

import pytest

from preftune.measuring.comparison import side_by_side
from preftune.measuring.samples import SideBySide
from preftune.measuring.tradeoff import START

Prompt = str | list[dict[str, str]]


def shown(asked: dict[str, list[Prompt]], *, rewards: bool = True) -> list[SideBySide]:
    """What is shown where each model answered its own prompts with `NAME: PROMPT`, the start first."""
    answers = {
        name: [
            {
                "prompt": prompt,
                "responses": [f"{name}: {json.dumps(prompt)}", "another"],
                **({"rewards": [float(place), -1.0]} if rewards else {}),
            }
            for place, prompt in enumerate(prompts)
        ]
        for name, prompts in asked.items()
    }
    return side_by_side(answers, "rewards")


@pytest.mark.parametrize("chat", [False, True])
def test_answers_stand_under_their_own_prompt(chat: bool) -> None:
    """Where a method left prompts out, those that all were asked are shown, each with the answers to it."""

    def prompt(number: int) -> Prompt:
        return [{"role": "user", "content": f"p{number}"}] if chat else f"p{number}"

    asked = {
        START: [prompt(number) for number in range(6)],
        "dpo": [prompt(number) for number in (5, 4, 3, 2, 1, 0)],
        "csft": [prompt(number) for number in (1, 3, 5)],
    }
    found = shown(asked)
    assert [one.prompt for one in found] == ["p1", "p3", "p5"]
    for number, one in zip((1, 3, 5), found, strict=True):
        answers = {name: answer for name, (answer, _) in one.answers.items()}
        assert answers == {name: f"{name}: {json.dumps(prompt(number))}" for name in asked}
    assert [{name: reward for name, (_, reward) in one.answers.items()} for one in found] == [
        {START: 1.0, "dpo": 4.0, "csft": 0.0},
        {START: 3.0, "dpo": 2.0, "csft": 1.0},
        {START: 5.0, "dpo": 0.0, "csft": 2.0},
    ]


def test_prompts_are_evenly_over_all() -> None:
    """Of seven that all were asked, every second one, and three at most; without rewards none is shown."""
    prompts: list[Prompt] = [f"p{number}" for number in range(7)]
    found = shown({START: prompts, "dpo": prompts}, rewards=False)
    assert [one.prompt for one in found] == ["p0", "p2", "p4"]
    assert found[0].answers == {START: (f'{START}: "p0"', None), "dpo": ('dpo: "p0"', None)}


def test_no_prompt_in_common_shows_none() -> None:
    """Answers to different prompts are never put side by side."""
    assert shown({START: ["p0", "p1"], "dpo": ["p2", "p3"]}) == []
