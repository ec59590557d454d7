"""Win rates at equal style, on verdicts made by the model that is fitted."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from preftune.errors import InputError
from preftune.evaluation.arena_hard.style_control import (
    Style,
    Styles,
    control_style,
    count_style,
    read_styles,
)
from preftune.evaluation.verdicts import Comparison, Recording

PROMPTS = 200
STRENGTHS = {"plain": 0.4, "showy": -0.3}
EFFECT = {"length": 1.1, "bold": 0.5}


def styles(seed: int, longer: float) -> dict[str, Style]:
    """Answers of random lengths and amounts of bold text."""
    random = np.random.default_rng(seed)
    return {
        str(prompt): Style(
            int(longer * random.integers(200, 2000)),
            None,
            {"headers": 0, "lists": 0, "bold": int(longer * random.integers(0, 40))},
        )
        for prompt in range(PROMPTS)
    }


ANSWERS: Styles = {"base": styles(0, 1), "plain": styles(1, 1), "showy": styles(2, 2)}
"""The showy one writes twice as much as the others."""


def feature(name: str, ours: Style, theirs: Style) -> float:
    """The difference of a feature, as it is defined."""
    if name == "length":
        return (ours.characters - theirs.characters) / (ours.characters + theirs.characters)
    densities = [style.counts["bold"] / (style.characters + 1) for style in (ours, theirs)]
    return (densities[0] - densities[1]) / (densities[0] + densities[1] + 1)


def recordings() -> list[Recording]:
    """Both orders of every prompt, with the probabilities that strengths and effects give."""
    raw = {
        name: np.array(
            [
                feature(name, ANSWERS[model][str(prompt)], ANSWERS["base"][str(prompt)])
                for model in STRENGTHS
                for prompt in range(PROMPTS)
            ]
        )
        for name in EFFECT
    }
    logit = sum(EFFECT[name] * values / values.std() for name, values in raw.items())
    strength = np.repeat(list(STRENGTHS.values()), PROMPTS)
    probability = 1 / (1 + np.exp(-(strength + logit))).reshape(2, PROMPTS)
    return [
        Recording(
            model,
            "base",
            [
                Comparison(str(prompt), float(of_model[prompt]), first)
                for prompt in range(PROMPTS)
                for first in (True, False)
            ],
        )
        for model, of_model in zip(STRENGTHS, probability, strict=True)
    ]


def test_strengths_and_effects_are_found_together() -> None:
    """Both models' sigmoid(strength), and the shared effect of one standard deviation of each feature."""
    plain, showy = control_style(recordings(), ANSWERS, ("length", "bold"))
    assert plain.win_rate == pytest.approx(100 / (1 + math.exp(-0.4)), abs=1e-3)
    assert showy.win_rate == pytest.approx(100 / (1 + math.exp(0.3)), abs=1e-3)
    assert plain.coefficients == pytest.approx(EFFECT, abs=1e-4)


def test_the_win_rate_is_that_at_no_difference() -> None:
    """The showy model wins more than half by its length, and not otherwise: features are not centred."""
    verdicts = recordings()
    preferences = [game.preference for game in verdicts[1].comparisons if game.preference is not None]
    assert np.mean(preferences) > 0.55
    [alone] = control_style(verdicts[1:], ANSWERS, ("length", "bold"))
    assert alone.win_rate == pytest.approx(100 / (1 + math.exp(0.3)), abs=1e-3)


def test_a_feature_that_never_differs_does_no_harm() -> None:
    """There are no headers and lists, so their effects are 0 and the others stay."""
    plain, _ = control_style(recordings(), ANSWERS)
    assert plain.coefficients == pytest.approx({**EFFECT, "headers": 0, "lists": 0}, abs=1e-4)


def test_the_interval_is_over_prompts() -> None:
    """Each verdict three times, as upstream writes strong ones, makes it no narrower."""
    once = control_style(recordings(), ANSWERS)[0].interval
    thrice = [
        Recording(one.model, one.baseline, [game for game in one.comparisons for _ in range(3)])
        for one in recordings()
    ]
    assert control_style(thrice, ANSWERS)[0].interval == pytest.approx(once, abs=1e-3)


def test_markup_is_counted_outside_of_code() -> None:
    """One header, three list items and two bold texts; those in the code block are code."""
    text = "# Head\n- one\n  * two\n3. three\n**bold** and __bold__\n```\n# comment\n- no\n```\n#no header"
    style = count_style(text)
    assert style.counts == {"headers": 1, "lists": 3, "bold": 2}
    assert (style.characters, style.tokens) == (len(text), None)


def test_answer_files_of_both_versions(tmp_path: Path) -> None:
    """v2 has messages and v0.1 choices; counts that a file holds are taken, by kind or summed."""
    counts = {"token_len": 7, "header_count": {"h1": 1, "h2": 2}, "list_count": 4, "bold_count": {"**": 5}}
    new = {"uid": "a", "model": "new", "messages": [{"content": {"answer": "**b**"}}]}
    old = {"question_id": 1, "model_id": "old", "choices": [{"turns": [{"content": "text"}]}]}
    for name, row in {"new": new, "old": {**old, "conv_metadata": counts}}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = read_styles([tmp_path / "new.jsonl", tmp_path / "old.jsonl"])
    assert found["new"]["a"] == Style(5, None, {"headers": 0, "lists": 0, "bold": 1})
    assert found["old"]["1"] == Style(4, 7, {"headers": 3, "lists": 4, "bold": 5})


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """An answer, a feature, a file of something else."""
    with pytest.raises(InputError, match="no answer of base to 0"):
        control_style(recordings(), {"plain": ANSWERS["plain"], "showy": ANSWERS["showy"]})
    with pytest.raises(InputError, match="style = size: must be of length, headers, lists, bold"):
        control_style(recordings(), ANSWERS, ["length", "size"])
    (tmp_path / "other.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    with pytest.raises(InputError, match="a row without an answer"):
        read_styles([tmp_path / "other.jsonl"])
