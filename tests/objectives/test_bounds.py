"""Bounds on measurements, and the multipliers that are learned for them."""

import math
from dataclasses import replace

import pytest
import torch

from preftune.objectives import (
    AdvantageLikelihood,
    Bound,
    DualDescent,
    Objective,
    ScoredResponses,
    Standardization,
    ValueRegression,
    build,
    count_units,
)
from preftune.objectives.bounds import slacks

BOUNDS = (Bound("polite", 0.5, is_least=True, scale=0.25), Bound("length", 10.0, is_least=False, scale=4.0))
NO_PAIRS = torch.tensor([], dtype=torch.int64)


def two_responses(multipliers: tuple[float, float] = (0.5, 2.0)) -> ScoredResponses:
    """R = 1 and 0; politeness 1 and 0.5, lengths 14 and 8; V = 0, on one token each."""
    return ScoredResponses(
        logps=torch.tensor([-4.0, -9.0], dtype=torch.float64, requires_grad=True),
        lengths=torch.tensor([1, 1]),
        chosen=NO_PAIRS,
        rejected=NO_PAIRS,
        auxiliary=torch.tensor([1.0, 0.0], dtype=torch.float64),
        values=torch.zeros(2, dtype=torch.float64, requires_grad=True),
        bounded=torch.tensor([[1.0, 14.0], [0.5, 8.0]], dtype=torch.float64),
        multipliers=torch.tensor(multipliers, dtype=torch.float64),
    )


def likelihood(*bounds: Bound, **options: float) -> AdvantageLikelihood:
    """The part at weight and temperature 1."""
    return AdvantageLikelihood(1.0, 1.0, standardization=Standardization(bounds=bounds), **options)


def test_slack_by_hand() -> None:
    """(1 - 0.5) / 0.25 = 2 above a least, (10 - 14) / 4 = -1 beyond a most; 0 on it, 0.5 below a most."""
    measured = two_responses().bounded
    assert measured is not None
    assert slacks(BOUNDS, measured).tolist() == [[2.0, -1.0], [0.0, 0.5]]


def test_the_advantage_has_the_slacks_by_their_multipliers() -> None:
    """A = R + 0.5 z_polite + 2 z_length - V: 1 + 1 - 2 = 0, and 0 + 0 + 1 = 1; plain where they are 0."""
    standardization = Standardization(bounds=BOUNDS)
    assert standardization.exact_advantage(two_responses()).tolist() == [0.0, 1.0]
    assert standardization.exact_advantage(two_responses((0.0, 0.0))).tolist() == [1.0, 0.0]


def test_the_likelihood_and_its_gradient_follow_the_bounds() -> None:
    """At temperature 1 the factors are 1 and e: the loss is (4 + 9 e) / 2, its slopes -1/2 and -e/2."""
    responses = two_responses()
    losses = Objective((likelihood(*BOUNDS),))(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen))
    (slope,) = torch.autograd.grad(total, responses.logps)
    assert total.item() == pytest.approx((4 + 9 * math.e) / 2, rel=1e-12)
    assert slope.tolist() == pytest.approx([-0.5, -math.e / 2], rel=1e-12)
    assert losses.metrics["bounds/length/multiplier"].tolist() == [2.0, 2.0]


def test_the_value_expects_the_slacks_too() -> None:
    """V regresses on R and the slacks: with A = (0, 1) and expectile 0.7 the losses are 0 and 0.7."""
    _, metrics = ValueRegression(1.0, 0.7, Standardization(bounds=BOUNDS))(two_responses())
    assert metrics["loss/value"].tolist() == pytest.approx([0.0, 0.7], rel=1e-12)


def test_weighted_means_by_hand() -> None:
    """Factors 1 and e weigh 1 and 0.5 to (1 + e / 2) over (1 + e), 14 and 8 to (14 + 8 e) over (1 + e).

    A cap of 1 makes both weights 1.
    """
    found = Objective((likelihood(*BOUNDS),))(two_responses()).weighted_means
    assert found["bounds/polite/mean"].tolist() == pytest.approx([1 + math.e / 2, 1 + math.e], rel=1e-12)
    assert found["bounds/length/mean"].tolist() == pytest.approx([14 + 8 * math.e, 1 + math.e], rel=1e-12)
    capped = Objective((likelihood(*BOUNDS, cap=1.0),))(two_responses()).weighted_means
    assert capped["bounds/length/mean"].tolist() == [22.0, 2.0]


def test_a_step_of_dual_descent_by_hand() -> None:
    """Means of 0.25 and 8 have slacks -1 and 0.5: 1 + 0.1 = 1.1, and 2 - 0.05 = 1.95."""
    dual = DualDescent(BOUNDS, rate=0.1, largest=10.0)
    before = torch.tensor([1.0, 2.0], dtype=torch.float64)
    after = dual.step(before, torch.tensor([0.25, 8.0], dtype=torch.float64))
    assert after.tolist() == pytest.approx([1.1, 1.95], rel=1e-12)


def test_multipliers_start_at_zero_and_stay_between_it_and_the_largest() -> None:
    """A bound that is met stays at 0, one that is missed by 100 deviations stops at the largest."""
    dual = DualDescent(BOUNDS, rate=0.1, largest=3.0)
    after = dual.step(dual.start(), torch.tensor([1.0, 410.0], dtype=torch.float64))
    assert after.tolist() == [0.0, 3.0]


def test_dual_descent_meets_a_bound_that_can_be_met() -> None:
    """Rewards 1 and 0 with measurements 0 and 1: at temperature 1 the mean is 1 / (1 + e) = 0.27 unbounded.

    With at_least 0.5 and scale 0.5 both weights must be equal: A is 1 + lambda (0 - 0.5) / 0.5 and
    lambda (1 - 0.5) / 0.5, so that 1 - lambda = lambda and the multiplier converges to 0.5.
    """
    part = likelihood(Bound("polite", 0.5, is_least=True, scale=0.5), rate=0.2)
    dual = part.dual
    assert dual is not None
    multipliers, mean = dual.start(), torch.tensor(0.0)
    measured = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    responses = replace(two_responses(), bounded=measured, multipliers=multipliers)
    for step in range(200):
        total, weight = part.weighted_means(replace(responses, multipliers=multipliers))["bounds/polite/mean"]
        mean = total / weight
        if step == 0:
            assert mean.item() == pytest.approx(1 / (1 + math.e), rel=1e-6)
        multipliers = dual.step(multipliers, mean[None])
    assert multipliers.item() == pytest.approx(0.5, abs=1e-9)
    assert mean.item() == pytest.approx(0.5, abs=1e-9)


def test_an_objective_says_that_it_has_bounds() -> None:
    """Built with bounds it needs measurements and multipliers, and takes its options."""
    settings = {"method": "dpo", "auxiliary": {"multiplier_rate": 0.5, "largest_multiplier": 2.0}}
    plain, bounded = build(settings), build(settings, Standardization(bounds=BOUNDS))
    assert bounded.needs - plain.needs == {"bounds", "multipliers"}
    assert plain.dual is None
    assert bounded.dual == DualDescent(BOUNDS, 0.5, 2.0)


def test_measurements_and_multipliers_must_fit() -> None:
    """A row for each response, and a multiplier for each bound."""
    with pytest.raises(ValueError, match=r"bounded has shape \(1, 2\).*a row for each response"):
        replace(two_responses(), bounded=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"multipliers has shape \(3,\).*one number for each bound"):
        replace(two_responses(), multipliers=torch.zeros(3))
