"""The demo's data file, as it is shipped."""

import gzip

import pytest

from preftune.demo.data import DATA_FILE, SPLITS, best_and_worst, demo_rows
from preftune.demo.make_data import scored_row, statistics, write_rows
from preftune.demo.prompts import demo_prompts


@pytest.fixture(scope="module")
def rows():
    """The shipped rows."""
    return [row for split in SPLITS for row in demo_rows(split)]


def test_the_file_is_small():
    """The data file stays under a megabyte."""
    assert DATA_FILE.stat().st_size < 1_000_000


def test_the_prompts_are_the_generators(rows):
    """Prompts, instructions and splits are those that `demo_prompts` makes, in its order."""
    keys = ("prompt", "instructions", "split")
    assert [{key: row[key] for key in keys} for row in rows] == demo_prompts()


def test_the_scores_follow_from_the_text(rows):
    """Every prompt has eight responses, and scoring them again gives the scores in the file."""
    assert all(len(row["responses"]) == 8 for row in rows)
    assert rows == [
        scored_row(prompt, row["responses"]) for prompt, row in zip(demo_prompts(), rows, strict=True)
    ]


def test_the_responses_differ_enough_to_learn_from(rows):
    """The mean score leaves room upwards, and the best response is usually well above the worst."""
    found = statistics(rows)
    assert 0.3 < found["mean score, train"] < 0.6
    assert 0.3 < found["mean gap of best and worst"] < 0.7
    assert found["share of groups that tie"] < 0.05


def test_the_file_is_reproducible(rows, tmp_path):
    """Writing the same rows twice gives the same bytes, and reading gives the rows back."""
    first, second = tmp_path / "first.jsonl.gz", tmp_path / "second.jsonl.gz"
    write_rows(rows, first)
    write_rows([row for split in SPLITS for row in demo_rows(split, first)], second)
    assert first.read_bytes() == second.read_bytes()
    assert gzip.decompress(first.read_bytes()) == gzip.decompress(DATA_FILE.read_bytes())
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_best_and_worst_make_the_same_pair() -> None:
    """Without the other responses a row has the same pair: the first of the best and of the worst."""
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [0.5, 0.2, 0.9, 0.2]}
    assert best_and_worst(row) == {"prompt": "p", "responses": ["b", "c"], "scores": [0.2, 0.9]}
