"""A look at a run: rows, cuts, gaps and held-out prompts, derived by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

import preftune
from preftune import InputError
from preftune.data import Group, Pair, Response
from preftune.training.inspection import Inspection, SourceRows, mean_gaps

from ..conftest import write_rows


def pair(prompt: str, chosen: str, rejected: str, *scores: float) -> dict[str, Any]:
    """A row of a scored pair."""
    names = ("score_chosen", "score_rejected")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **dict(zip(names, scores, strict=True))}


def scored(chosen: float, rejected: float) -> Group:
    """A group of one pair."""
    return Group("p", (Response("a", chosen), Response("b", rejected)), (Pair(0, 1),))


def test_mean_gaps_of_every_calibration() -> None:
    """Pairs of scores 1 over 0 and 1/2 over 1/2; the second has no gap on any scale."""
    groups = [scored(1.0, 0.0), scored(0.5, 0.5)]
    sigma = 1 / (1 + math.exp(-1))
    assert mean_gaps(groups, groups) == pytest.approx(
        {
            "sigmoid": (sigma - 0.5) / 2,
            "identity": 0.5,
            "minmax": 0.5,
            "quantile": (1 - 0.25) / 2,
            "bradley_terry": (2 * sigma - 1) / 2,
        }
    )


def test_mean_gaps_say_why_a_calibration_gives_none() -> None:
    """Grades are outside [0, 1], and the message says so in place of a number."""
    found = mean_gaps([scored(8.0, 2.0)], [scored(8.0, 2.0)])
    assert "must be in [0, 1]" in str(found["identity"])
    assert found["minmax"] == 1.0


@pytest.fixture
def looked(config: dict[str, Any], tmp_path: Path) -> Inspection:
    """A look at five rows of text, of which one is dropped, and at two that are held out."""
    first = pair("one two", "red green blue", "red", 0.9, 0.1)
    config["data"] = {
        "train": str(
            write_rows(
                tmp_path / "a.jsonl",
                [
                    first,
                    pair("three", "same", "same", 0.5, 0.4),
                    first,
                    pair("four", "a b c d e f g h", "a", 0.7, 0.7),
                    pair("three", "no", "yes and more", 0.6, 0.2),
                ],
            )
        ),
        "evaluation": str(
            write_rows(
                tmp_path / "b.jsonl", [pair("four", "x", "y", 0.5, 0.1), pair("five", "x", "y", 0.5, 0.1)]
            )
        ),
        "max_length": 6,
    }
    return preftune.inspect(config, rows=2)


def test_figures_of_a_split(looked: Inspection, tmp_path: Path) -> None:
    """One duplicate that is kept, equal responses that are dropped, one tie, three of four chosen longer."""
    train = looked.splits["train"]
    assert train.sources == (SourceRows(str(tmp_path / "a.jsonl"), 5, 4),)
    assert train.duplicates == train.repeated_prompts == train.tied_pairs == 1
    assert train.equal_pairs == 0
    assert train.length_bias.pairs == 4
    assert train.length_bias.longer == 0.75
    assert train.data.rows.counts["equal_responses", "drop"] == 1
    # Of 9 tokens, the last being EOS, 5 have room behind a prompt of 1; twice 6 is enough for all.
    assert [(cut.max_length, cut.responses, cut.tokens) for cut in train.truncations] == [
        (6, 1, 4),
        (12, 0, 0),
    ]
    assert train.cut_rows == (3,)
    assert train.mean_gaps["identity"] == pytest.approx((0.8 + 0.8 + 0.0 + 0.4) / 4)


def test_held_out_prompts_that_are_trained_on_are_named(looked: Inspection) -> None:
    """Row 0 asks what row 3 of the training data asks."""
    assert looked.splits["evaluation"].in_training == (0,)
    assert looked.splits["train"].in_training == ()


def test_examples_are_the_first_rows_that_are_trained_on(looked: Inspection, tmp_path: Path) -> None:
    """Row 1 was dropped, so the first two are 0 and 2."""
    places = [example.place for example in looked.examples]
    assert places == [f"{tmp_path / 'a.jsonl'} row 0", f"{tmp_path / 'a.jsonl'} row 2"]


def test_a_dropped_row_cannot_be_shown(config: dict[str, Any], tmp_path: Path) -> None:
    """The message says what rows may be gone for, and the rule that was applied."""
    rows = [pair("one", "same", "same", 0.5, 0.4), pair("two", "a", "b", 0.5, 0.4)]
    config["data"] = {"train": str(write_rows(tmp_path / "c.jsonl", rows))}
    with pytest.raises(InputError, match=r"row 0 of data\.train is not trained on.*(?s:.)*equal_responses"):
        preftune.inspect(config, only=[0])
    (example,) = preftune.inspect(config, only=[1]).examples
    assert example.place.endswith("row 1")


def test_a_row_that_a_mixture_uses_twice_is_one_example(config: dict[str, Any], tmp_path: Path) -> None:
    """Weight 2 makes two groups of each row; the row is shown once, and its cut is named once."""
    rows = [pair("one", "a b c d e f", "c", 0.5, 0.4), pair("two", "a", "b", 0.5, 0.4)]
    source = {"source": str(write_rows(tmp_path / "d.jsonl", rows)), "weight": 2}
    found = preftune.inspect(config | {"data": {"train": [source], "max_length": 4}})
    assert len(found.prepared.train.groups) == 4
    assert [example.place.rpartition("/")[2] for example in found.examples] == [
        "d.jsonl row 0",
        "d.jsonl row 1",
    ]
    assert found.splits["train"].cut_rows == (0,)


def test_a_look_reads_the_data_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A split is loaded and rendered when the run is prepared, and its figures are of that."""
    from preftune.training import splits

    loaded, rendered = [], []
    load, render = splits.load_groups, splits.whole_groups
    monkeypatch.setattr(splits, "load_groups", lambda *a, **k: (loaded.append(a), load(*a, **k))[1])
    monkeypatch.setattr(splits, "whole_groups", lambda *a, **k: (rendered.append(a), render(*a, **k))[1])
    found = preftune.inspect(config, rows=1)
    assert found.splits.keys() == {"train", "evaluation"}
    assert len(loaded) == len(rendered) == 2


@pytest.mark.parametrize(
    "objective", [{"method": "kto"}, {"method": "csft"}, {"method": "bradley_terry"}, {"method": "simpo"}]
)
def test_every_way_of_learning_can_be_looked_at(config: dict[str, Any], objective: dict[str, Any]) -> None:
    """Pairs, labels, control texts and scores have examples with trained tokens."""
    found = preftune.inspect(config | {"objective": objective, "prior": {}}, rows=1)
    trained = [response.count("trained") for example in found.examples for response in example.responses]
    assert len(trained) == 2
    assert min(trained) > 1
    assert found.splits["train"].mean_gaps == {}
