"""AlpacaEval's verdicts and figures, by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.evaluation.alpaca_eval.figures import (
    aggregate_alpaca_eval,
    is_switched,
    preference_from_log_probs,
    read_annotations,
)
from preftune.evaluation.verdicts import Comparison, Recording

QUESTIONS = [f"What is {index} + {index}?" for index in range(4)]


def annotation(instruction: str, preference: float | None, **fields: Any) -> dict[str, Any]:
    """A row as upstream writes it."""
    return {
        "instruction": instruction,
        "output_1": "The baseline's.",
        "output_2": "Ours.",
        "generator_1": "baseline",
        "generator_2": "model",
        "preference": preference,
        **fields,
    }


def completion(first: float, second: float) -> dict[str, Any]:
    """What the judge's server sent: probabilities of m and of M."""
    top = [{"token": "m", "logprob": math.log(first)}, {"token": "M", "logprob": math.log(second)}]
    return {"logprobs": {"content": [{"token": "m", "top_logprobs": top}]}}


def read(path: Path, content: Any) -> Recording:
    """The one recording of a file with this content."""
    path.write_text(json.dumps(content), encoding="utf-8")
    [recording] = read_annotations(path)
    return recording


def test_probability_of_the_shown_output() -> None:
    """P(m) = 0.8 and P(M) = 0.1 are 8 to 1 for what is shown first."""
    top = {"m": math.log(0.8), "M": math.log(0.1), "The": math.log(0.1)}
    assert preference_from_log_probs(top) == pytest.approx(8 / 9)


def test_a_missing_token_is_impossible_and_both_missing_is_no_verdict() -> None:
    """As upstream has it, also where the one that is there is next to impossible."""
    assert preference_from_log_probs({"M": -800.0}) == 0
    assert preference_from_log_probs({"m": -800.0}) == 1
    assert preference_from_log_probs({"The": 0.0}) is None


def test_figures_by_hand(tmp_path: Path) -> None:
    """Preferences 1, 2, 1.5 and 1.25 are 0, 100, 50 and 25.

    Their mean is 43.75; deviations -43.75, 56.25, 6.25 and -18.75 have squares that sum to 5468.75, so that
    the standard error is sqrt(5468.75 / 3) / 2. One wins, one draws: discrete (1 + 0.5) / 4.
    """
    rows = [annotation(*pair) for pair in zip(QUESTIONS, (1, 2, 1.5, 1.25), strict=True)]
    found = aggregate_alpaca_eval(read(tmp_path / "annotations.json", rows))
    assert (found["model"], found["baseline"], found["n"]) == ("model", "baseline", 4)
    assert found["win_rate"] == 43.75
    assert found["standard_error"] == pytest.approx(math.sqrt(5468.75 / 3) / 2)
    assert found["discrete_win_rate"] == 37.5
    assert (found["wins"], found["losses"], found["ties"]) == (1, 2, 1)
    assert found["avg_length"] == 5


def test_no_verdict_is_left_out_and_an_old_draw_is_a_draw(tmp_path: Path) -> None:
    """Of 2, 0, null and NaN two count: a win and a draw."""
    rows = [annotation(*pair) for pair in zip(QUESTIONS, (2, 0, None, math.nan), strict=True)]
    found = aggregate_alpaca_eval(read(tmp_path / "annotations.json", rows))
    assert (found["n"], found["win_rate"], found["invalid_rate"]) == (2, 75, 0.5)


def test_slim_shape_says_the_same(tmp_path: Path) -> None:
    """Lists instead of rows: the same figures, but for the order of pairs, which they do not hold."""
    preferences = [1 + index % 7 / 6 for index in range(30)]
    rows = [
        annotation(
            f"{index}?", preference, output_1="b" * (40 + index * index % 17), output_2="m" * (30 + index)
        )
        for index, preference in enumerate(preferences)
    ]
    slim = {
        "model": "model",
        "baseline": "baseline",
        "preference": preferences,
        "len_baseline": [len(row["output_1"]) for row in rows],
        "len_model": [len(row["output_2"]) for row in rows],
    }
    assert aggregate_alpaca_eval(read(tmp_path / "slim.json", slim)) == aggregate_alpaca_eval(
        read(tmp_path / "rows.json", rows)
    )


def test_raw_completions_are_read_again(tmp_path: Path) -> None:
    """P(m) = 0.9: the model wins with 0.9 where it was shown first, and one recorded otherwise is counted."""
    rows = [
        annotation(question, 1.9 if is_switched(question) else 1.1, raw_completion=completion(0.9, 0.1))
        for question in QUESTIONS
    ]
    assert {is_switched(question) for question in QUESTIONS} == {True, False}
    notes = read(tmp_path / "right.json", rows).notes
    assert (notes["recomputed"], notes["recomputed_otherwise"]) == (4, 0)
    rows[2]["preference"] = 1.5
    notes = read(tmp_path / "wrong.json", rows).notes
    assert (notes["recomputed_otherwise"], notes["recomputed_difference"]) == (1, pytest.approx(0.4))
    rows[2]["preference"] = None
    assert read(tmp_path / "missing.json", rows).comparisons[2].preference == pytest.approx(
        0.9 if is_switched(QUESTIONS[2]) else 0.1
    )


def test_a_model_against_itself_is_even() -> None:
    """By definition, and not by a fit on draws."""
    verdicts = [Comparison(str(index), 0.5, model_length=9, baseline_length=9) for index in range(9)]
    found = aggregate_alpaca_eval(Recording("same", "same", verdicts))
    assert (found["win_rate"], found["length_controlled_win_rate"]) == (50, 50)


def test_few_prompts_are_warned_about() -> None:
    """Length control on eight prompts is given with a warning, and on four not at all."""
    verdicts = [
        Comparison(str(index), index % 2 * 0.8, model_length=10 + index % 3, baseline_length=12)
        for index in range(8)
    ]
    found = aggregate_alpaca_eval(Recording("model", "other", verdicts))
    assert found["length_controlled_win_rate"] is not None
    assert found["warnings"] == [
        "8 prompts are few for length control: use about 100 to separate the effect of length from chance"
    ]
    found = aggregate_alpaca_eval(Recording("model", "other", verdicts[:4]))
    assert found["length_controlled_win_rate"] is None
    assert "needs 5 verdicts" in found["warnings"][1]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ([annotation("a", 2.5)], r"preference = 2.5: must be 0 for a draw, or from 1 to 2"),
        ([{"instruction": "a", "output": "b"}], "no output_1, output_2, generator_1"),
        (
            {"model": "m", "baseline": "b", "preference": [1], "len_model": [], "len_baseline": [2]},
            "'len_model': 0",
        ),
        ([], "not be empty"),
    ],
)
def test_another_shape_is_an_error(tmp_path: Path, content: Any, rule: str) -> None:
    """The message says what the shape has."""
    with pytest.raises(InputError, match=rule):
        read(tmp_path / "file.json", content)
