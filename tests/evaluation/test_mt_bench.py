"""MT-Bench's grades and pairs, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.evaluation.mt_bench.figures import (
    aggregate_mt_bench,
    categories,
    read_judgments,
    read_rating,
    read_winner,
)
from preftune.evaluation.verdicts import Recording


def grade(question: int, turn: int, score: float, **fields: Any) -> dict[str, Any]:
    """A row of a `_single.jsonl` file."""
    return {"question_id": question, "model": "ours", "score": score, "turn": turn, **fields}


def match(question: int, first: str, second: str, **fields: Any) -> dict[str, Any]:
    """A row of a `_pair.jsonl` file."""
    models = {"model_1": "base", "model_2": "ours"}
    return {"question_id": question, **models, "g1_winner": first, "g2_winner": second, "turn": 1, **fields}


def read(path: Path, rows: list[dict[str, Any]], baseline: str | None = None) -> list[Recording]:
    """The recordings of a file with these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_judgments(path, baseline)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[7.5]]. Well.", 7.5),
        ("As in [3], good: [[8]] and not [[9]].", 8),
        ("Rating: [6]", 6),
        ("Rating: 6", None),
        ("[[ten]]", None),
    ],
)
def test_the_first_number_in_double_brackets_or_else_in_single_ones(text: str, rating: float | None) -> None:
    """FastChat's two patterns in turn."""
    assert read_rating(text) == rating


def test_the_winner_in_a_text() -> None:
    """A is looked for before B, and B before a tie."""
    assert read_winner("[[B]]") == "B"
    assert read_winner("Not [[B]] but [[A]].") == "A"
    assert read_winner("[[C]]") == "tie"
    assert read_winner("A") is None


def test_averages_pool_both_turns_and_leave_out_what_was_not_read(tmp_path: Path) -> None:
    """8 and 6 in the first turn, 4 and -1 in the second: 7, 4, and 18 / 3."""
    rows = [grade(81, 1, 8), grade(81, 2, 4), grade(111, 1, 6), grade(111, 2, -1)]
    [recording] = read(tmp_path / "gpt-4_single.jsonl", rows)
    found = aggregate_mt_bench(recording)
    assert (found["model"], found["n"], found["invalid_rate"]) == ("ours", 3, 1 / 4)
    assert (found["turn_1"], found["turn_2"], found["average"]) == (7, 4, 6)
    assert found["categories"] == {"writing": 6, "math": 6}


def test_texts_are_read_again(tmp_path: Path) -> None:
    """One of two recorded grades is not what the judge wrote."""
    rows = [grade(81, 1, 8, judgment="[[8]]"), grade(82, 1, 8, judgment="[[3]]")]
    [recording] = read(tmp_path / "gpt-4_single.jsonl", rows)
    found = aggregate_mt_bench(recording)
    assert (found["recomputed"], found["recomputed_otherwise"], found["average"]) == (2, 1, 8)


def test_categories_go_by_tens_from_81() -> None:
    """The ends of the range, and nothing where a number is of another set."""
    expected = {"81": "writing", "90": "writing", "91": "roleplay", "160": "humanities"}
    assert categories(expected) == expected
    assert categories(["81", "161"]) == {}
    assert categories(["first"]) == {}


def test_a_pair_is_won_in_both_orders_or_drawn(tmp_path: Path) -> None:
    """A win, a loss, and three draws: a real one, one by disagreement, and a tie against a win.

    The fifth, with an error, is left out: 1 of 5 won, and (1 + 3 / 2) / 5 with draws as half.
    """
    rows = [
        match(1, "model_2", "model_2"),
        match(2, "model_1", "model_1"),
        match(3, "tie", "tie"),
        match(4, "model_1", "model_2"),
        match(5, "model_2", "tie"),
        match(6, "model_2", "error"),
    ]
    [recording] = read(tmp_path / "gpt-4_pair.jsonl", rows)
    found = aggregate_mt_bench(recording)
    assert (found["model"], found["baseline"], found["n"]) == ("ours", "base", 5)
    assert (found["wins"], found["losses"], found["ties"]) == (1, 1, 3)
    assert (found["win_rate"], found["loss_rate"], found["win_rate_adjusted"]) == (20, 20, 50)
    assert found["flipped_rate"] == 2 / 5
    assert found["invalid_rate"] == 1 / 12


def test_pairs_of_several_models_are_against_the_baseline(tmp_path: Path) -> None:
    """Base meets two models, on either side; without a baseline in every row one must be named."""
    rows = [
        match(1, "model_2", "model_2"),
        match(1, "model_1", "model_1", model_1="third", model_2="base"),
    ]
    found = {one.model: aggregate_mt_bench(one)["wins"] for one in read(tmp_path / "a_pair.jsonl", rows)}
    assert found == {"ours": 1, "third": 1}
    rows.append(match(1, "tie", "tie", model_1="third", model_2="ours"))
    with pytest.raises(InputError, match=r"must be one of base, ours, third: name it with --baseline"):
        read(tmp_path / "a_pair.jsonl", rows)
    models = [one.model for one in read(tmp_path / "a_pair.jsonl", rows, baseline="ours")]
    assert models == ["base", "third"]


def test_another_shape_is_an_error(tmp_path: Path) -> None:
    """The message says what is missing, or what is wrong."""
    with pytest.raises(InputError, match="no score in a row"):
        read(tmp_path / "a.jsonl", [{"question_id": 1, "model": "ours", "turn": 1}])
    with pytest.raises(InputError, match="winner = 'B': must be model_1, model_2, tie or error"):
        read(tmp_path / "a.jsonl", [match(1, "B", "B")])
