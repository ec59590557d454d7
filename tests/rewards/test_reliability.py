"""What a prior is worth: agreement, calibration error and fitted temperature, on paper and in the limit."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.groups import Group, Pair, Response
from preftune.errors import InputError
from preftune.rewards import Calibration, apply_prior, fit_calibration
from preftune.rewards.reliability import Share, fit_temperature, reliability, share_interval

Gaps = np.ndarray
"""Reward gaps of pairs, delta in [-1, 1]."""


def gaps(*values: float) -> Gaps:
    """Gaps as float64."""
    return np.array(values, dtype=np.float64)


def duel(chosen: float | None, rejected: float | None, row: int = 0, margin: float | None = None) -> Group:
    """A prompt with two scored responses and one pair."""
    responses = (Response("better", chosen), Response("worse", rejected))
    return Group("prompt", responses, (Pair(0, 1, margin=margin),), row)


def test_reliability_by_hand() -> None:
    """Bins, agreement and calibration error of five pairs, derived on paper.

    Gaps 0.82, 0.88 and -0.84 state 0.91, 0.94 and 0.92 for the favoured response: one bin, mean 0.9233,
    agreeing in 2 of 3. The gap -0.4 states 0.7 and is wrong. The tie states 0.5 and agrees by half.
    ECE = (3 * |0.9233 - 0.6667| + 1 * |0.7 - 0| + 1 * |0.5 - 0.5|) / 5 = (0.77 + 0.7) / 5 = 0.294.
    """
    found = reliability(gaps(0.82, -0.84, 0.0, -0.4, 0.88))
    assert (found.pairs, found.ties) == (5, 1)
    assert found.agreement.share == pytest.approx(2.5 / 5)
    assert [place.pairs for place in found.bins] == [1, 1, 3]
    assert [place.probability for place in found.bins] == pytest.approx([0.5, 0.7, 2.77 / 3])
    assert [place.agreement.share for place in found.bins] == pytest.approx([0.5, 0.0, 2 / 3])
    assert found.expected_calibration_error == pytest.approx(0.294)


def test_gaps_of_one_belong_to_the_last_bin() -> None:
    """Certain pairs, right and wrong: the ends of the scale share the bin from 0.95 to 1."""
    found = reliability(gaps(1.0, -1.0, 0.95))
    assert [(place.pairs, place.agreement.share) for place in found.bins] == [(3, pytest.approx(2 / 3))]


def test_report_measures_before_negative_gaps_are_dealt_with() -> None:
    """Whatever becomes of contradicted pairs, the report counts them against the prior, and survives JSON."""
    groups = [duel(0.9, 0.1), duel(0.2, 0.6, row=1), duel(0.5, 0.5, row=2)]
    reports = [apply_prior(groups, Calibration("identity"), policy)[1] for policy in ("drop", "swap", "clip")]
    assert [report.pairs for report in reports] == [2, 3, 3]
    assert len({report.reliability for report in reports}) == 1
    saved = json.loads(json.dumps(asdict(reports[0])))["reliability"]
    assert (saved["pairs"], saved["ties"], saved["agreement"]["share"]) == (3, 1, 0.5)
    # |0.9 - 1| + |0.7 - 0| + |0.5 - 0.5|, over three bins of one pair.
    assert saved["expected_calibration_error"] == pytest.approx(0.8 / 3)
    assert [place["pairs"] for place in saved["bins"]] == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pairs=st.sampled_from([50, 500, 5_000, 50_000]),
    shape=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
)
def test_error_of_a_calibrated_prior_tends_to_zero(seed: int, pairs: int, shape: tuple[float, float]) -> None:
    """Where labels follow the stated probabilities, the calibration error is noise of size 1 / sqrt(pairs).

    A bin of n pairs errs by at most 1 / (2 sqrt(n)) in the mean, so ten bins of N pairs by sqrt(10 / N) / 2
    together. One label changes the error by at most 1 / N, so that (McDiarmid) it exceeds its mean by
    4 / sqrt(N) with probability exp(-32).
    """
    generator = np.random.default_rng(seed)
    strength = generator.beta(*shape, size=pairs)
    right = generator.random(pairs) < (1 + strength) / 2
    found = reliability(np.where(right, strength, -strength))
    assert found.expected_calibration_error <= (math.sqrt(10) / 2 + 4) / math.sqrt(pairs)


SOME_GAPS = st.lists(st.floats(-1, 1), min_size=1, max_size=40).map(lambda values: gaps(*values))


@given(SOME_GAPS)
def test_turning_every_label_around_mirrors_agreement(values: Gaps) -> None:
    """With all labels exchanged, agreement becomes one minus itself, in every bin of the same pairs."""
    given_labels, exchanged = reliability(values), reliability(-values)
    assert exchanged.agreement.share == pytest.approx(1 - given_labels.agreement.share)
    for one, other in zip(given_labels.bins, exchanged.bins, strict=True):
        assert (one.pairs, one.probability) == (other.pairs, other.probability)
        assert one.agreement.share == pytest.approx(1 - other.agreement.share)


@given(SOME_GAPS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(values: Gaps, shuffler: object) -> None:
    """A data set in another order, or twice over, has the same agreement and calibration error."""
    order = list(values)
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    found, again = reliability(values), reliability(gaps(*order, *order))
    assert again.agreement.share == pytest.approx(found.agreement.share)
    assert again.expected_calibration_error == pytest.approx(found.expected_calibration_error)


@given(SOME_GAPS, st.floats(0.2, 5))
def test_agreement_depends_on_order_alone(values: Gaps, power: float) -> None:
    """A strictly increasing change of the gap's strength leaves agreement and ties as they are."""
    # Powers of numbers below 1e-60 would no longer differ from 0.
    kept = np.where(np.abs(values) < 1e-60, 0.0, values)
    found, bent = reliability(kept), reliability(np.sign(kept) * np.abs(kept) ** power)
    assert (bent.agreement, bent.ties) == (found.agreement, found.ties)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [
        # p = 0.5, n = 4: centre 0.5, half width sqrt(z^2 / 16 + z^4 / 64) / (1 + z^2 / 4), z^2 = 3.8415.
        (0.5, 4, 0.1500, 0.8500),
        # p = 1: from n / (n + z^2) to 1; p = 0: from 0 to z^2 / (n + z^2).
        (1.0, 10, 10 / 13.8415, 1.0),
        (0.0, 10, 0.0, 3.8415 / 13.8415),
    ],
)
def test_wilson_interval_by_hand(share: float, count: int, low: float, high: float) -> None:
    """The interval of a share, at its ends too, where the usual one has no width."""
    found = share_interval(share, count)
    assert found.share == share
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_wilson_interval_holds_its_share(count: int, share: float) -> None:
    """Whatever the count, 0 <= low <= share <= high <= 1, and more cases never widen it."""
    found, more = share_interval(share, count), share_interval(share, 4 * count)
    assert 0 <= found.low <= share <= found.high <= 1
    assert more.high - more.low <= found.high - found.low + 1e-15


def test_share_keeps_the_interval_apart() -> None:
    """A share is written with its ends by name."""
    assert asdict(Share(0.5, 0.4, 0.6)) == {"share": 0.5, "low": 0.4, "high": 0.6}


def test_temperature_by_hand() -> None:
    """Differences 1, 1, 1, -1 are likeliest where sigma(1 / T) = 3/4: at T = 1 / log 3; 2, 2, 2, -2 at twice.

    The tie in the second set is likely by 1/2 under every T and changes nothing.
    """
    assert fit_temperature(gaps(1, 1, 1, -1)) == pytest.approx(1 / math.log(3), rel=1e-12)
    assert fit_temperature(gaps(2, 2, 0, 2, -2)) == pytest.approx(2 / math.log(3), rel=1e-12)


DIFFERENCES = (
    st.lists(st.floats(-10, 10).filter(lambda value: abs(value) > 1e-3), min_size=2, max_size=30)
    .map(lambda values: gaps(*values))
    .filter(lambda values: values.min() < 0 and values.sum() > 0.1)
)


def log_likelihood(differences: Gaps, temperature: float) -> float:
    """Of labels that all say `chosen`."""
    return -float(np.logaddexp(0, -differences / temperature).sum())


@given(DIFFERENCES)
def test_no_other_temperature_is_likelier(differences: Gaps) -> None:
    """The fitted temperature is the maximum: nearby and far ones are no likelier."""
    best = fit_temperature(differences)
    likelihood = log_likelihood(differences, best)
    for factor in (0.1, 0.9, 0.999, 1.001, 1.1, 10):
        assert log_likelihood(differences, best * factor) <= likelihood + 1e-9


@given(DIFFERENCES, st.sampled_from([1e-12, 1e-3, 7.0, 1e12]))
def test_temperature_has_the_unit_of_the_scores(differences: Gaps, factor: float) -> None:
    """Scores times a number have that times the temperature, so that their gaps stay."""
    assert fit_temperature(factor * differences) == pytest.approx(factor * fit_temperature(differences))


@pytest.mark.parametrize("kind", ["sigmoid", "bradley_terry"])
def test_fitted_temperature_is_that_of_the_labels(kind: str) -> None:
    """Labels drawn with sigma((s_w - s_l) / 2.5) give T near 2.5, wherever the scores' zero lies.

    With 20,000 pairs the standard error of T is about 0.04.
    """
    generator = np.random.default_rng(0)
    scores = generator.normal(30, 3, size=(20_000, 2))
    first_wins = generator.random(len(scores)) < 1 / (1 + np.exp(-(scores[:, 0] - scores[:, 1]) / 2.5))
    scores[~first_wins] = scores[~first_wins, ::-1]
    fitted = fit_calibration(kind, "fit", [duel(float(won), float(lost)) for won, lost in scores])
    assert fitted.temperature == pytest.approx(2.5, abs=0.2)


def test_fitting_calibrates_bradley_terry() -> None:
    """Overconfident logits, three times too large, are off by tenths; under the fitted T they are not."""
    generator = np.random.default_rng(1)
    difference = generator.normal(0, 1.5, size=5_000)
    told = np.where(generator.random(5_000) < 1 / (1 + np.exp(-difference)), difference, -difference)
    groups = [duel(None, None, row, margin=3 * float(margin)) for row, margin in enumerate(told)]
    raw, fitted = (
        apply_prior(groups, fit_calibration("bradley_terry", temperature, groups), "drop")[1].reliability
        for temperature in (1.0, "fit")
    )
    assert raw.agreement == fitted.agreement
    assert raw.expected_calibration_error > 0.1
    assert fitted.expected_calibration_error < 0.03


def test_fit_looks_at_pairs_of_the_training_groups() -> None:
    """Scores in no pair and later groups leave the temperature alone, and it is applied to them as it is."""
    pairs = [duel(1.0, 0.0), duel(2.0, 1.0, row=1), duel(5.0, 4.0, row=2), duel(0.0, 1.0, row=3)]
    alone = Group("prompt", (Response("a", 99.0), Response("b", -99.0)), (), row=4)
    fitted = fit_calibration("bradley_terry", "fit", [*pairs, alone])
    assert fitted.temperature == pytest.approx(1 / math.log(3))
    later = duel(2.0, 0.0)
    # sigma(2 log 3) = 9 / 10, and delta = 2 * 0.9 - 1.
    assert fitted.gap(later.pairs[0], later) == pytest.approx(0.8)
    assert Calibration.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


@pytest.mark.parametrize(
    ("kind", "groups", "fragments"),
    [
        (
            "bradley_terry",
            [duel(2.0, 1.0), duel(1.0, 1.0)],
            ["'fit'", "never scores higher in 2 pairs", "built from"],
        ),
        ("sigmoid", [duel(1.0, 2.0), duel(1.0, 0.0)], ["'fit'", "in 2 pairs", "chosen column is right"]),
        ("sigmoid", [duel(1.0, 1.0)], ["in 1 pairs", "do not score higher"]),
        ("minmax", [duel(1.0, 0.0)], ["temperature = 'fit'", "no effect", "sigmoid and bradley_terry"]),
        ("zscore", [duel(1.0, 0.0)], ["'zscore'", "must be one of"]),
        ("sigmoid", [duel(None, None, 7, margin=1.0)], ["row 7", "no score", "'sigmoid'"]),
        ("bradley_terry", [duel(1.0, None, 7)], ["row 7", "or a margin"]),
        ("bradley_terry", [duel(math.nan, 0.0, 7)], ["row 7", "nan"]),
    ],
)
def test_what_cannot_be_fitted_is_refused(kind: str, groups: list[Group], fragments: list[str]) -> None:
    """Labels that fit at no finite temperature, kinds without one, and pairs without numbers."""
    with pytest.raises(InputError) as caught:
        fit_calibration(kind, "fit", groups)
    for fragment in fragments:
        assert fragment in str(caught.value)
