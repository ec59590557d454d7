"""From raw scores to gaps: every calibration by hand, and what happens to negative gaps."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.groups import Group, Pair, Response
from preftune.errors import InputError
from preftune.rewards import (
    CALIBRATIONS,
    Calibration,
    NegativeGap,
    apply_prior,
    fit_calibration,
)
from preftune.rewards.calibration import MAX_KNOTS


def duel(chosen: float | None, rejected: float | None, row: int = 0, margin: float | None = None) -> Group:
    """A prompt with two scored responses and one pair."""
    responses = (Response("better", chosen), Response("worse", rejected))
    return Group("prompt", responses, (Pair(0, 1, margin=margin),), row)


TRAIN = [duel(2.0, 0.0), duel(1.0, -2.0, row=1)]
"""Scores -2, 0, 1, 2."""


def gap_of(kind: str, group: Group, temperature: float = 1.0) -> float:
    """The gap of a group's first pair, fitted on TRAIN."""
    return fit_calibration(kind, temperature, TRAIN).gap(group.pairs[0], group)


BY_HAND: dict[str, tuple[str, float, Group, float]] = {
    "sigmoid": ("sigmoid", 1.0, duel(math.log(3), 0.0), 0.25),
    "sigmoid, T = 2": ("sigmoid", 2.0, duel(2 * math.log(3), -2 * math.log(3)), 0.5),
    "identity": ("identity", 1.0, duel(0.75, 0.25), 0.5),
    "identity, ends": ("identity", 1.0, duel(1.0, 0.0), 1.0),
    "minmax": ("minmax", 1.0, duel(2.0, 0.0), 0.5),
    "minmax, outside": ("minmax", 1.0, duel(50.0, -50.0), 1.0),
    "quantile": ("quantile", 1.0, duel(2.0, 0.0), 0.5),
    "quantile, between": ("quantile", 1.0, duel(1.5, -0.5), 0.5),
    "quantile, outside": ("quantile", 1.0, duel(50.0, -50.0), 1.0),
    "bradley_terry": ("bradley_terry", 1.0, duel(math.log(3), 0.0), 0.5),
    "bradley_terry, T = 2": ("bradley_terry", 2.0, duel(5 + 2 * math.log(3), 5.0), 0.5),
    "bradley_terry, margin": ("bradley_terry", 1.0, duel(None, None, margin=math.log(3)), 0.5),
    "bradley_terry, one score": ("bradley_terry", 1.0, duel(1.0, None, margin=math.log(3)), 0.5),
    "bradley_terry, both": ("bradley_terry", 1.0, duel(math.log(3), 0.0, margin=9.0), 0.5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_gap_by_hand(name: str) -> None:
    """Each calibration gives the gap derived on paper; scores beyond the training range stay in [0, 1].

    sigma(log 3) = 0.75 and sigma(0) = 0.5, so sigmoid gives 0.25 and, with T = 2, 0.75 - 0.25. On training
    scores -2, 0, 1, 2: minmax puts 2 and 0 at 1 and 0.5; their cumulative shares are 4/4 and 2/4, and 1.5
    and -0.5 have those of 1 and -2, 3/4 and 1/4. Bradley-Terry of a difference of log 3 is 2 * 0.75 - 1; it
    takes two scores before a margin.
    """
    kind, temperature, group, expected = BY_HAND[name]
    assert gap_of(kind, group, temperature) == pytest.approx(expected, abs=1e-12)


def test_bradley_terry_is_two_sigma_minus_one() -> None:
    """The formula holds over the whole range, without overflow at its ends."""
    for difference in (-1e6, -3.0, -1e-9, 0.0, 0.5, 30.0, 1e6):
        expected = 2 / (1 + math.exp(-difference)) - 1 if difference > -700 else -1.0
        assert gap_of("bradley_terry", duel(difference, 0.0)) == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_swapping_scores_negates_the_gap(kind: str) -> None:
    """Gaps are antisymmetric, so that swapping a pair gives exactly the opposite gap."""
    assert gap_of(kind, duel(0.9, 0.2)) == -gap_of(kind, duel(0.2, 0.9))
    assert gap_of(kind, duel(0.4, 0.4)) == 0


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_saved_calibration_gives_the_same_gaps(kind: str) -> None:
    """A calibration survives JSON, beside keys of the caller's own."""
    fitted = fit_calibration(kind, 1.0, TRAIN)
    saved = json.loads(json.dumps({**fitted.to_dict(), "data": "fingerprint"}))
    assert Calibration.from_dict(saved) == fitted


def test_fit_uses_every_scored_response_of_the_training_groups_only() -> None:
    """Responses in no pair count, those without a score do not; later groups are placed on that scale."""
    responses = (Response("a", 4.0), Response("b", 0.0), Response("c", None), Response("d", 8.0))
    fitted = fit_calibration("minmax", 1.0, [Group("prompt", responses, (Pair(0, 1),))])
    assert fitted.fitted == {"low": (0.0,), "high": (8.0,)}
    later = duel(6.0, 2.0)
    assert fitted.gap(later.pairs[0], later) == 0.5


def test_quantiles_of_many_scores_stay_small_and_close() -> None:
    """Beyond MAX_KNOTS distinct scores, rewards are low by at most 1 / MAX_KNOTS and end at 1."""
    scores = np.random.default_rng(0).normal(size=3 * MAX_KNOTS)
    fitted = fit_calibration("quantile", 1.0, [duel(float(a), float(b)) for a, b in scores.reshape(-1, 2)])
    assert len(fitted.fitted["knots"]) <= MAX_KNOTS
    ranks = (np.argsort(np.argsort(scores)) + 1) / len(scores)
    rewards = np.array([fitted.reward(Response("text", float(score)), 0) for score in scores])
    assert (ranks - rewards).min() >= -1e-9
    assert (ranks - rewards).max() <= 1 / MAX_KNOTS + 1e-9
    assert rewards.max() == 1.0


GROUP_OF_THREE = Group(
    "prompt",
    (Response("a", 0.9), Response("b", 0.1), Response("c", 0.5)),
    (Pair(0, 1), Pair(1, 2, margin=-0.4)),
    row=7,
)
"""One pair with gap 0.8 and one with gap -0.4, under identity."""
ALL_NEGATIVE = duel(0.2, 0.5, row=8)
IDENTITY = Calibration("identity")


def test_drop_removes_negative_pairs_and_emptied_groups() -> None:
    """`drop` keeps the other pairs of a group, and removes a group with none left."""
    groups, report = apply_prior([GROUP_OF_THREE, ALL_NEGATIVE], IDENTITY, "drop")
    assert [*groups] == [replace(GROUP_OF_THREE, pairs=(Pair(0, 1, gap=0.8),))]
    assert (report.negative, report.dropped, report.dropped_groups, report.pairs) == (2, 2, 1, 1)
    assert (report.swapped, report.clipped) == (0, 0)


def test_swap_turns_negative_pairs_around() -> None:
    """`swap` exchanges chosen and rejected, and the signs of gap and margin with them."""
    groups, report = apply_prior([GROUP_OF_THREE], IDENTITY, "swap")
    assert groups[0].pairs == (Pair(0, 1, gap=0.8), Pair(2, 1, margin=0.4, gap=0.4))
    assert (report.negative, report.swapped, report.dropped, report.pairs) == (1, 1, 0, 2)


def test_clip_keeps_the_preference_at_gap_zero() -> None:
    """`clip` believes the preference but not the scores: the gap becomes 0."""
    groups, report = apply_prior([GROUP_OF_THREE], IDENTITY, "clip")
    assert groups[0].pairs == (Pair(0, 1, gap=0.8), Pair(1, 2, margin=-0.4, gap=0.0))
    assert (report.negative, report.clipped, report.pairs) == (1, 1, 2)


def test_equal_scores_are_not_negative() -> None:
    """A gap of exactly 0 is kept under every policy."""
    for policy in get_args(NegativeGap):
        groups, report = apply_prior([duel(0.5, 0.5), duel(0.9, 0.1)], IDENTITY, policy)
        assert [group.pairs[0].gap for group in groups] == [0.0, 0.8]
        assert report.negative == 0


SCORED = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20)


@pytest.mark.parametrize("policy", ["drop", "swap", "clip"])
@given(scores=SCORED)
def test_negative_pairs_are_counted_where_they_go(policy: str, scores: list[tuple[float, float]]) -> None:
    """No pair is lost uncounted, every gap left is in [0, 1], and none is negative a second time."""
    negative = sum(chosen < rejected for chosen, rejected in scores)
    groups = [duel(*pair, row) for row, pair in enumerate([*scores, (1.0, 0.0)])]
    kept, report = apply_prior(groups, IDENTITY, policy)
    assert report.negative == negative
    counts = {"drop": report.dropped, "swap": report.swapped, "clip": report.clipped}
    assert counts == {"drop": 0, "swap": 0, "clip": 0} | {policy: negative}
    assert report.pairs == sum(report.histogram) == len(groups) - report.dropped
    assert report.dropped_groups == report.dropped
    left = [pair.gap for group in kept for pair in group.pairs]
    assert all(gap is not None and 0 <= gap <= 1 for gap in left)
    if policy != "clip":
        assert [*apply_prior(kept, IDENTITY, "error")[0]] == [*kept]


@given(scores=SCORED)
def test_quantiles_depend_on_order_alone(scores: list[tuple[float, float]]) -> None:
    """A strictly increasing change of the scale leaves every gap of `quantile` as it is."""
    # Exact for numbers this coarse, so that no two scores become one.
    coarse = [(float(round(256 * chosen)), float(round(256 * rejected))) for chosen, rejected in scores]
    groups = [duel(*pair) for pair in coarse]
    bent = [duel(chosen**3 - 7.0, rejected**3 - 7.0) for chosen, rejected in coarse]
    for one, other in zip(groups, bent, strict=True):
        gap = fit_calibration("quantile", 1.0, groups).gap(one.pairs[0], one)
        assert fit_calibration("quantile", 1.0, bent).gap(other.pairs[0], other) == gap


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_more_score_for_the_chosen_never_means_a_smaller_gap(kind: str) -> None:
    """Every calibration is monotonic: gaps rise with the chosen score and fall with the rejected one."""
    scores = [0.0, 0.1, 0.25, 0.5, 0.8, 1.0]
    for lower, higher in itertools.pairwise(scores):
        for other in scores:
            assert gap_of(kind, duel(lower, other)) <= gap_of(kind, duel(higher, other))
            assert gap_of(kind, duel(other, lower)) >= gap_of(kind, duel(other, higher))


def test_groups_without_pairs_pass_unchanged() -> None:
    """A labelled response without a pair has no gap to set, and is not lost."""
    single = Group("prompt", (Response("a"),), ())
    groups, report = apply_prior([single, duel(0.9, 0.1)], IDENTITY, "drop")
    assert groups[0] == single
    assert (report.pairs, report.dropped_groups) == (1, 0)


def test_report_by_hand() -> None:
    """Gaps 0, 0.01, 0.5, 0.97, 1: mean 0.496; bins hold 2, 1 and 2; two are under 0.05, two over 0.95."""
    gaps = [0.0, 0.01, 0.5, 0.97, 1.0]
    _, report = apply_prior([duel(gap, 0.0) for gap in gaps], IDENTITY, "error")
    assert report.mean_gap == pytest.approx(0.496)
    assert report.histogram == (2, 0, 0, 0, 0, 1, 0, 0, 0, 2)
    assert (report.share_below_05, report.share_above_95) == (0.4, 0.4)
    # Neither end by its mean, but two pairs in five hardly count their rejected response.
    assert report.warning is not None
    assert "40% of the reward gaps are below 0.05" in report.warning
    assert json.loads(json.dumps(asdict(report)))["pairs"] == 5


@pytest.mark.parametrize(
    ("gap", "fragment"), [(0.96, "equals the base method"), (0.04, "only the chosen ones"), (0.5, None)]
)
def test_warning_at_either_end(gap: float, fragment: str | None) -> None:
    """A mean gap near 1 is the plain method, near 0 chosen-only training: both are said."""
    _, report = apply_prior([duel(gap, 0.0)], IDENTITY, "error")
    if fragment is None:
        assert report.warning is None
    else:
        assert report.warning is not None
        assert fragment in report.warning


@pytest.mark.parametrize(
    ("kind", "advised"),
    [
        ("sigmoid", {"minmax", "identity", "quantile", "a lower prior.temperature"}),
        ("minmax", {"quantile"}),
        ("identity", {"quantile"}),
        ("quantile", {"data.pair_rule=best_worst"}),
    ],
)
def test_what_is_in_use_is_not_advised(kind: str, advised: set[str]) -> None:
    """Pairs that hardly differ beside one that does: the way out is another calibration, or other pairs."""
    groups = [duel(place / 1000 + 2.0, place / 1000 + 1.999) for place in range(40)] + [duel(9.0, -9.0)]
    if kind == "identity":
        groups = [duel(0.5, 0.49), duel(0.5, 0.49), duel(0.9, 0.1)]
    _, report = apply_prior(groups, fit_calibration(kind, 1.0, groups), "error")
    assert report.warning is not None
    named = {"minmax", "identity", "quantile", "a lower prior.temperature", "data.pair_rule=best_worst"}
    own = {kind} if kind == "quantile" else set()
    assert {word for word in named if word in report.warning} == advised | own


def apply(kind: str, group: Group, negative_gap: str = "error") -> object:
    """Fit on TRAIN and apply to one group."""
    return apply_prior([group], fit_calibration(kind, 1.0, TRAIN), negative_gap)


REFUSED: dict[str, tuple[Callable[[], object], list[str]]] = {
    "misspelt kind": (
        lambda: fit_calibration("sigmiod", 1.0, TRAIN),
        ["calibration = 'sigmiod'", "did you mean 'sigmoid'?"],
    ),
    "unknown kind": (lambda: fit_calibration("zscore", 1.0, TRAIN), ["'zscore'", "sigmoid, identity"]),
    "zero temperature": (lambda: fit_calibration("sigmoid", 0.0, TRAIN), ["temperature = 0.0", "> 0"]),
    "nan temperature": (lambda: fit_calibration("sigmoid", math.nan, TRAIN), ["temperature = nan"]),
    "infinite temperature": (lambda: fit_calibration("sigmoid", math.inf, TRAIN), ["temperature = inf"]),
    "useless temperature": (
        lambda: fit_calibration("minmax", 2.0, TRAIN),
        ["temperature = 2.0", "no effect", "sigmoid and bradley_terry"],
    ),
    "equal scores": (
        lambda: fit_calibration("minmax", 1.0, [duel(3.0, 3.0)]),
        ["'minmax'", "all 2 are 3.0"],
    ),
    "no scores": (lambda: fit_calibration("quantile", 1.0, [duel(None, None)]), ["no response has one"]),
    "nan in training": (
        lambda: fit_calibration("quantile", 1.0, [duel(1.0, math.nan, row=4)]),
        ["row 4", "nan", "finite"],
    ),
    "missing score": (
        lambda: apply("sigmoid", duel(1.0, None, row=5)),
        ["row 5", "no score", "bradley_terry"],
    ),
    "only a margin": (lambda: apply("minmax", duel(None, None, row=5, margin=1.0)), ["row 5", "no score"]),
    "nan score": (lambda: apply("sigmoid", duel(math.nan, 1.0, row=6)), ["row 6", "score nan"]),
    "infinite score": (lambda: apply("bradley_terry", duel(math.inf, 1.0, row=6)), ["row 6", "score inf"]),
    "nan margin": (
        lambda: apply("bradley_terry", duel(None, None, row=6, margin=math.nan)),
        ["row 6", "margin nan"],
    ),
    "neither": (lambda: apply("bradley_terry", duel(1.0, None, row=6)), ["row 6", "or a margin"]),
    "outside [0, 1]": (
        lambda: apply("identity", duel(1.5, 0.0, row=9)),
        ["row 9", "score 1.5", "[0, 1]", "scale the scores"],
    ),
    "negative gap": (
        lambda: apply("identity", duel(0.2, 0.5, row=9)),
        ["row 9", "0.2", "0.5", "-0.3", "drop, swap or clip"],
    ),
    "policy": (
        lambda: apply("identity", duel(0.5, 0.2), "keep"),
        ["negative_gap = 'keep'", "drop, swap, clip, error"],
    ),
    "nothing left": (
        lambda: apply("identity", duel(0.2, 0.5), "drop"),
        ["no pair is left", "1 had a negative gap", "chosen column is right"],
    ),
    "one response": (
        lambda: fit_calibration("bradley_terry", 1.0, TRAIN).reward(Response("a", 1.0), 0),
        ["only to pairs"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    """What cannot be calibrated is refused with the row, the value, the rule and the fix."""
    action, fragments = REFUSED[name]
    with pytest.raises(InputError) as caught:
        action()
    for fragment in fragments:
        assert fragment in str(caught.value)
