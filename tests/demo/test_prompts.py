"""The demo's prompts."""

import json
from collections import Counter

import pytest

from preftune.demo.prompts import HELD_OUT_TOPICS, TRAIN_TOPICS, demo_prompts
from preftune.rewards.instructions import CHECKS, instruction_score


def test_there_are_200_prompts_to_train_on_and_50_held_out():
    """The splits have their promised sizes, and no prompt stands twice."""
    prompts = demo_prompts()
    assert Counter(prompt["split"] for prompt in prompts) == {"train": 200, "held_out": 50}
    assert len({prompt["prompt"][0]["content"] for prompt in prompts}) == 250


def test_held_out_topics_never_occur_in_training():
    """No held-out topic is a training topic, and no training prompt speaks of one."""
    assert not TRAIN_TOPICS.keys() & HELD_OUT_TOPICS.keys()
    for prompt in demo_prompts():
        content = prompt["prompt"][0]["content"]
        others = HELD_OUT_TOPICS if prompt["split"] == "train" else TRAIN_TOPICS
        assert not any(f" {topic}." in content for topic in others)


def test_prompts_are_deterministic():
    """The same seed gives the same prompts; another seed gives others."""
    assert demo_prompts() == demo_prompts(seed=0) != demo_prompts(seed=1)


def test_every_check_is_asked_for_with_two_or_three_to_a_prompt():
    """All of the verifier's checks occur, and every prompt has two or three different ones."""
    asked = [[name for each in prompt["instructions"] for name in each] for prompt in demo_prompts()]
    assert {name for names in asked for name in names} == set(CHECKS)
    assert all(len(names) == len(set(names)) in (2, 3) for names in asked)


def test_every_prompt_states_its_instructions():
    """The arguments that a prompt is scored by stand in its text."""
    for prompt in demo_prompts():
        content = prompt["prompt"][0]["content"]
        for instruction in prompt["instructions"]:
            (argument,) = instruction.values()
            spoken = argument if isinstance(argument, list) else [] if argument is True else [argument]
            assert all(str(word) in content for word in spoken), content


def test_instructions_do_not_contradict_each_other():
    """For every prompt there is a response that keeps all of its instructions."""
    for prompt in demo_prompts():
        asked = {name: value for each in prompt["instructions"] for name, value in each.items()}
        assert instruction_score(_perfect_response(asked), prompt["instructions"]) == pytest.approx(1.0), (
            asked
        )


def _perfect_response(asked: dict) -> str:
    """The words asked for and five more in lower case, in the form asked for."""
    words = [*asked.get("mention", []), "one", "may", "think", "so", "then"]
    if "first_word" in asked:
        words.insert(0, asked["first_word"].lower())
    if "json_keys" in asked:
        return json.dumps(dict.fromkeys(asked["json_keys"], " ".join(words)))
    if "bullets" in asked:
        return "\n".join(f"- {word}" for word in ["all"] * (asked["bullets"] - 1) + [" ".join(words)])
    return " ".join(words) + ("?" if "end_with_question" in asked else ".")
