"""What the page of a sweep shows side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.report import START, SideBySide
from preftune.sweep.points import Point
from preftune.sweep.run import SAMPLES_FILE, START_FOLDER, PlannedRun, _side_by_side
from preftune.training.configuration import check_config

Prompt = str | list[dict[str, str]]


def shown(
    config: dict[str, Any], output: Path, asked: dict[str, list[Prompt]], *, rewards: bool = True
) -> list[SideBySide]:
    """What is shown where each model answered its own prompts with `NAME: PROMPT`, the start first."""
    planned = []
    for name, prompts in asked.items():
        folder = output / (START_FOLDER if name == START else name)
        folder.mkdir(parents=True)
        rows = [
            {
                "prompt": prompt,
                "responses": [f"{name}: {json.dumps(prompt)}", "another"],
                **({"rewards": [float(place), -1.0]} if rewards else {}),
            }
            for place, prompt in enumerate(prompts)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / SAMPLES_FILE).write_text(text, encoding="utf-8")
        if name != START:
            run = check_config({**config, "output": str(folder)})
            planned.append(PlannedRun(Point({"key": name}, ()), run, "finished", 1, torch.device("cpu")))
    return _side_by_side(output, planned)


@pytest.mark.parametrize("chat", [False, True])
def test_answers_stand_under_their_own_prompt(config: dict[str, Any], tmp_path: Path, chat: bool) -> None:
    """Where a method left prompts out, those that all were asked are shown, each with the answers to it."""

    def prompt(number: int) -> Prompt:
        return [{"role": "user", "content": f"p{number}"}] if chat else f"p{number}"

    asked = {
        START: [prompt(number) for number in range(6)],
        "dpo": [prompt(number) for number in (5, 4, 3, 2, 1, 0)],
        "csft": [prompt(number) for number in (1, 3, 5)],
    }
    found = shown(config, tmp_path, asked)
    assert [one.prompt for one in found] == ["p1", "p3", "p5"]
    for number, one in zip((1, 3, 5), found, strict=True):
        answers = {name: answer for name, (answer, _) in one.answers.items()}
        assert answers == {name: f"{name}: {json.dumps(prompt(number))}" for name in asked}
    assert [{name: reward for name, (_, reward) in one.answers.items()} for one in found] == [
        {START: 1.0, "dpo": 4.0, "csft": 0.0},
        {START: 3.0, "dpo": 2.0, "csft": 1.0},
        {START: 5.0, "dpo": 0.0, "csft": 2.0},
    ]


def test_prompts_are_evenly_over_all(config: dict[str, Any], tmp_path: Path) -> None:
    """Of seven that all were asked, every second one, and three at most; without rewards none is shown."""
    prompts: list[Prompt] = [f"p{number}" for number in range(7)]
    found = shown(config, tmp_path, {START: prompts, "dpo": prompts}, rewards=False)
    assert [one.prompt for one in found] == ["p0", "p2", "p4"]
    assert found[0].answers == {START: (f'{START}: "p0"', None), "dpo": ('dpo: "p0"', None)}


def test_no_prompt_in_common_shows_none(config: dict[str, Any], tmp_path: Path) -> None:
    """Answers to different prompts are never put side by side."""
    assert shown(config, tmp_path, {START: ["p0", "p1"], "dpo": ["p2", "p3"]}) == []
