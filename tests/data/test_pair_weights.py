"""A weight per pair: which column it is read from, what it may be, and where it goes."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preftune.data import Asked, LoadedGroups, Pair, Pairing, RowRules, TokenizedGroup, load_groups
from preftune.data.packing import pack
from preftune.data.shapes import fingerprint_rows
from preftune.data.stored import _from_json, _to_json
from preftune.data.tokenization import fingerprint_groups
from preftune.errors import InputError
from preftune.rewards import apply_prior, fit_calibration

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
GROUP = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}


def load(*rows: dict[str, Any], rule: str = "best_worst", **asked: Any) -> LoadedGroups:
    """Load rows given in memory."""
    return load_groups(list(rows), asked=Asked(**asked), pairing=Pairing(rule))


def weights(loaded: LoadedGroups) -> list[list[float | None]]:
    """The weights of every group's pairs."""
    return [[pair.weight for pair in group.pairs] for group in loaded.groups]


def test_a_column_named_weight_is_read_and_said() -> None:
    """Of pairs and of groups with one pair; whole numbers count, and the log says what was read."""
    loaded = load({**PAIR, "weight": 2}, {**PAIR, "prompt": "q", "weight": 0.25})
    assert weights(loaded) == [[2.0], [0.25]]
    assert "weight: `weight`" in loaded.read_as
    assert "weight" not in loaded.unused_columns
    assert weights(load({**GROUP, "weight": 0})) == [[0.0]]
    assert weights(load(PAIR)) == [[None]]


def test_another_column_is_mapped() -> None:
    """`data.columns.weight` names it, and the column is no longer unused."""
    loaded = load({**PAIR, "agreement": 0.75}, mapping={"weight": "agreement"})
    assert weights(loaded) == [[0.75]]
    assert "weight: `agreement`" in loaded.read_as
    assert loaded.unused_columns == ()


@pytest.mark.parametrize("value", [None, -0.5, float("nan"), float("inf"), "1", True, [1.0]])
def test_what_is_no_weight_is_refused_or_dropped(value: Any) -> None:
    """Null, negative, NaN, infinite, text: one error for all rows with the column and the value, or none."""
    rows = [{**PAIR, "weight": 1.0}, {**PAIR, "prompt": "q", "weight": value}]
    with pytest.raises(InputError) as caught:
        load(*rows)
    assert "1 of 2 rows breaks the rule bad_pair_weight" in str(caught.value)
    assert f"column `weight`: {value!r}: it must be a finite number >= 0" in str(caught.value)
    kept = load_groups(rows, rules=RowRules({"bad_pair_weight": "drop"}))
    assert weights(kept) == [[1.0]]
    assert kept.report.counts["bad_pair_weight", "drop"] == 1


def test_a_row_with_several_pairs_is_refused() -> None:
    """One number says nothing of three pairs; the pair rule is the fix."""
    with pytest.raises(InputError, match=r"the row has 3 pairs, and a weight is of one: choose another data"):
        load({**GROUP, "weight": 1.0}, rule="all_pairs")


def test_where_nothing_is_learned_from_pairs_a_weight_has_no_place() -> None:
    """A mapped one is refused by its key; a column of that name is left unread, and named as such."""
    row = {"prompt": "p", "completion": "a", "label": True, "weight": 2.0}
    asked = {"needs_pairs": False, "needs_labels": True}
    with pytest.raises(InputError, match=r"data\.columns\.weight=score: a weight is of a row's pair"):
        load({**row, "score": 1}, mapping={"weight": "score"}, **asked)
    assert load(row, **asked).unused_columns == ("weight",)
    assert weights(load({**PAIR, "weight": 2.0}, **asked)) == [[None]]


def test_a_column_of_that_name_may_be_left_out() -> None:
    """`data.columns.weight=unused`: no pair has a weight, also where rows are joined, or of labels."""
    left_out: dict[str, Any] = {"mapping": {"weight": "unused"}}
    loaded = load({**PAIR, "weight": "heavy"}, **left_out)
    assert (weights(loaded), loaded.unused_columns) == ([[None]], ("weight",))
    single = {"prompt": "p", "completion": "a", "label": True, "weight": 2.0}
    assert load(single, needs_pairs=False, needs_labels=True, **left_out).unused_columns == ("weight",)
    ranked = [
        {"prompt": "p", "response": text, "helpfulness": score, "weight": 2.0}
        for score, text in enumerate("ab")
    ]
    with pytest.raises(InputError, match=r"Set data\.columns\.weight=unused"):
        load(*ranked)
    assert weights(load(*ranked, **left_out)) == [[None]]


def test_other_columns_that_are_read_by_name_may_be_left_out() -> None:
    """`tools` beside prompts of plain text is an error that names the way out."""
    row = {**PAIR, "tools": [{"name": "add"}]}
    with pytest.raises(InputError, match=r"leave the column out: data\.columns\.tools=unused"):
        load(row)
    assert load(row, mapping={"tools": "unused"}).unused_columns == ("tools",)


def tokenized(*pairs: Pair) -> TokenizedGroup:
    """Two responses to a prompt."""
    prompt, first, second = (np.array(ids, dtype=np.int32) for ids in ([5, 6], [7], [8, 9]))
    return TokenizedGroup(prompt, (first, second), pairs)


def test_weights_reach_the_packed_batch() -> None:
    """In the order of the pairs, as float32; without them there is no such number."""
    batch = pack([tokenized(Pair(0, 1, weight=0.5)), tokenized(Pair(1, 0, weight=3.0))])
    assert batch.numbers["weights"].tolist() == [0.5, 3.0]
    assert "weights" not in pack([tokenized(Pair(0, 1))]).numbers


def test_other_weights_are_other_data() -> None:
    """Fingerprints of rows and of tokens tell weights apart, and keep their value where there are none."""
    rows = [load({**PAIR, **extra}).groups for extra in ({}, {"weight": 1.0}, {"weight": 2.0})]
    assert len({fingerprint_rows(groups) for groups in rows}) == 3
    tokens = [[tokenized(Pair(0, 1, weight=weight))] for weight in (None, 1.0, 2.0)]
    assert len({fingerprint_groups(groups) for groups in tokens}) == 3


def test_a_stored_pair_keeps_its_weight() -> None:
    """What is written to a temporary file and read back is the same pair."""
    group = load({**PAIR, "weight": 0.25}).groups[0]
    stored = _from_json(json.dumps(_to_json(group)).encode(), group.row)
    assert stored.pairs == (Pair(0, 1, weight=0.25),)


def test_a_swapped_pair_keeps_its_weight() -> None:
    """The prior may exchange chosen and rejected; the weight is the pair's."""
    row = {**PAIR, "score_chosen": 0.25, "score_rejected": 0.75, "weight": 2.0}
    groups = load(row, needs_prior=True).groups
    calibration = fit_calibration("identity", 1.0, groups)
    swapped, _ = apply_prior(groups, calibration, "swap")
    assert swapped[0].pairs == (replace(groups[0].pairs[0], chosen=1, rejected=0, gap=0.5),)
    assert swapped[0].pairs[0].weight == 2.0
