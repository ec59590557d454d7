"""KTO: values, gradients and metrics of single responses, desirable or not."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.objectives import (
    METHODS,
    ScoredResponses,
    build,
    count_units,
    label_balance,
    methods_of_labels,
)

NO_PAIRS = torch.tensor([], dtype=torch.int64)


def responses_with(
    ratios: list[float], labels: list[bool], divergence: float, dtype: torch.dtype = torch.float64
) -> ScoredResponses:
    """Single responses of log-ratios h; the reference gives every one a log-probability of -5."""
    return ScoredResponses(
        logps=(torch.tensor(ratios, dtype=dtype) - 5).requires_grad_(),
        lengths=torch.full((len(ratios),), 3),
        chosen=NO_PAIRS,
        rejected=NO_PAIRS,
        reference_logps=torch.full((len(ratios),), -5.0, dtype=dtype),
        labels=torch.tensor(labels),
        divergence=torch.tensor(divergence, dtype=dtype),
    )


def random_responses(count: int, seed: int = 0) -> ScoredResponses:
    """Log-ratios of a few nats, about as many desirable responses as not, z0 = 0.7."""
    generator = torch.Generator().manual_seed(seed)
    ratios = 3 * torch.randn(count, generator=generator, dtype=torch.float64)
    labels = torch.rand(count, generator=generator) < 0.5
    return responses_with(ratios.tolist(), labels.tolist(), 0.7)


def kto(responses: ScoredResponses, **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss of the batch, its gradient with respect to the log-probabilities, and the metrics."""
    losses = build({"method": "kto", **options})(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen))
    (gradient,) = torch.autograd.grad(total, responses.logps)
    return total.detach(), gradient, losses.metrics


def sigma(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def test_value_by_hand() -> None:
    """With beta = 1 and z0 = 1 the loss is the mean of 2 * 0.5, 2 * 0.2689, 3 * 0.2689 and 3 * 0.5.

    Desirable responses (weight 2) with h = 1 and h = 2 lose 1 - sigma(0) = 0.5 and 1 - sigma(1) = 0.2689,
    undesirable ones (weight 3) with h = 0 and h = 1 lose 1 - sigma(1) and 1 - sigma(0).
    """
    responses = responses_with([1.0, 2.0, 0.0, 1.0], [True, True, False, False], divergence=1.0)
    loss, _, metrics = kto(responses, beta=1.0, desirable_weight=2.0, undesirable_weight=3.0)
    each = [2 * 0.5, 2 * (1 - sigma(1)), 3 * (1 - sigma(1)), 3 * 0.5]
    assert loss.item() == pytest.approx(sum(each) / 4, abs=1e-12)
    assert metrics["loss/preference"].tolist() == pytest.approx(each)


@pytest.mark.parametrize("desirable", [True, False])
def test_a_saturated_response_still_learns_in_float32(desirable: bool) -> None:
    """With beta = 1 and z0 = 0 the gradient at |h| = 12 and 18 is sigma(-12) and sigma(-18), on both sides.

    sigma(12) sigma(-12) = 6.144137e-6 and sigma(18) sigma(-18) = 1.522998e-8; the loss is 1 less these on
    one side and these on the other.
    """
    responses = responses_with([-12.0, -18.0, 12.0, 18.0], [desirable] * 4, 0.0, torch.float32)
    _, gradient, metrics = kto(responses, beta=1.0)
    small = [6.1441746e-6, 1.5229979e-8]
    slopes = [6.1441369e-6, 1.5229979e-8]
    sign = -1 if desirable else 1
    assert (4 * sign * gradient).tolist() == pytest.approx(slopes * 2, rel=1e-6)
    saturated = metrics["loss/preference"][2:] if desirable else metrics["loss/preference"][:2]
    assert saturated.tolist() == pytest.approx(small, rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (4 / 3, 0.7)])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_gradient_is_the_papers(weights: tuple[float, float], beta: float) -> None:
    """It is lambda beta sigma(z) sigma(-z) grad log pi, down for desirable and up for the others, to 1e-12.

    z is beta (h - z0); sigma(z) sigma(-z) is even, so its sign does not matter (Eq. 9).
    """
    responses = random_responses(16)
    assert responses.labels is not None
    assert responses.reference_logps is not None
    _, gradient, _ = kto(responses, beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1])
    z = beta * (responses.logps.detach() - responses.reference_logps - 0.7)
    signed = [-weights[0] if label else weights[1] for label in responses.labels.tolist()]
    slope = beta * torch.sigmoid(z) * torch.sigmoid(-z)
    expected = torch.tensor(signed, dtype=torch.float64) * slope / 16
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_the_divergence_carries_no_gradient() -> None:
    """A z0 computed from the very log-probabilities that are trained changes no gradient."""
    constant = random_responses(8)
    assert constant.reference_logps is not None
    live = (constant.logps - constant.reference_logps).mean() + 2.0
    _, expected, _ = kto(replace(constant, divergence=live.detach()))
    losses = build({"method": "kto"})(replace(constant, divergence=live))
    total = losses.total(count_units(constant.lengths, constant.chosen))
    (gradient,) = torch.autograd.grad(total, constant.logps)
    assert live.requires_grad
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("label", [True, False])
def test_a_micro_batch_of_one_kind(label: bool) -> None:
    """Responses that are all desirable, or all not, are trained; metrics of the other kind have no items."""
    responses = responses_with([1.0, 0.0], [label, label], divergence=0.5)
    loss, gradient, metrics = kto(responses, beta=1.0)
    expected = (sigma(-0.5) + sigma(0.5)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    slope = sigma(0.5) * sigma(-0.5) / 2
    assert gradient.tolist() == pytest.approx([-slope, -slope] if label else [slope, slope], abs=1e-12)
    present, absent = ("chosen", "rejected") if label else ("rejected", "chosen")
    assert metrics[f"rewards/{present}"].tolist() == [1.0, 0.0]
    assert metrics[f"logps/{present}"].tolist() == [-4.0, -5.0]
    assert metrics[f"rewards/{absent}"].tolist() == []
    assert metrics[f"logps/{absent}"].tolist() == []


def test_micro_batches_add_up() -> None:
    """Split by label or by place, the parts over the whole batch's counts add up to its loss."""
    whole = random_responses(9)
    assert whole.labels is not None
    objective = build({"method": "kto", "desirable_weight": 1.25})
    counts = count_units(whole.lengths, whole.chosen)
    expected = objective(whole).total(counts)
    by_label = [torch.nonzero(whole.labels)[:, 0], torch.nonzero(~whole.labels)[:, 0]]
    for split in (by_label, [torch.arange(1), torch.arange(1, 9)]):
        total = sum(objective(take(whole, rows)).total(counts) for rows in split)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)


def take(responses: ScoredResponses, rows: Tensor) -> ScoredResponses:
    """Some responses as a batch of their own, with the whole's z0."""
    assert responses.reference_logps is not None
    assert responses.labels is not None
    return replace(
        responses,
        logps=responses.logps[rows],
        lengths=responses.lengths[rows],
        reference_logps=responses.reference_logps[rows],
        labels=responses.labels[rows],
    )


def test_metrics_by_hand() -> None:
    """Rewards are beta * h by label, margins by pair where there are pairs; a tie is not accurate.

    With beta 0.5: h = 1 and 3 are desirable, so rewards 0.5 and 1.5; h = -2 and 3 are not: -1 and 1.5. The
    pairs are (0, 2) with margin 1.5 and (1, 3) with margin 0.
    """
    alone = responses_with([1.0, 3.0, -2.0, 3.0], [True, True, False, False], divergence=0.25)
    pairs = {"chosen": torch.tensor([0, 1]), "rejected": torch.tensor([2, 3])}
    _, _, metrics = kto(replace(alone, **pairs), beta=0.5)
    expected = {
        "kl": [0.25] * 4,
        "logps/chosen": [-4.0, -2.0],
        "logps/rejected": [-7.0, -2.0],
        "rewards/chosen": [0.5, 1.5],
        "rewards/rejected": [-1.0, 1.5],
        "rewards/margins": [1.5, 0.0],
        "rewards/accuracies": [1.0, 0.0],
        "displacement/chosen": [0.0, 0.0],
        "displacement/both": [0.0, 0.0],
        "loss/preference": [sigma(-0.375), sigma(-1.375), sigma(-1.125), sigma(1.375)],
    }
    assert metrics.keys() == expected.keys()
    for name, values in metrics.items():
        assert values.dtype == torch.float32
        assert values.tolist() == pytest.approx(expected[name], rel=1e-6), name


def test_pairs_change_no_loss() -> None:
    """Loss and gradient are those of the single responses, with pairs among them or with none."""
    alone = random_responses(6)
    paired = replace(alone, chosen=torch.tensor([0, 1]), rejected=torch.tensor([2, 2]))
    loss, gradient, metrics = kto(alone)
    paired_loss, paired_gradient, _ = kto(paired)
    assert torch.equal(loss, paired_loss)
    assert torch.equal(gradient, paired_gradient)
    assert metrics["rewards/margins"].tolist() == metrics["rewards/accuracies"].tolist() == []


@pytest.mark.parametrize("label", [True, False])
def test_a_weight_of_zero_leaves_its_kind_alone(label: bool) -> None:
    """Responses of that kind have exactly no gradient, the others have some."""
    responses = random_responses(12)
    assert responses.labels is not None
    weight = "desirable_weight" if label else "undesirable_weight"
    _, gradient, _ = kto(responses, **{weight: 0.0})
    ignored = responses.labels == label
    assert torch.count_nonzero(gradient[ignored]) == 0
    assert torch.count_nonzero(gradient[~ignored]) == torch.count_nonzero(~ignored) > 0


@pytest.mark.parametrize("label", [True, False])
def test_huge_log_ratios_keep_their_digits(label: bool) -> None:
    """In float32 a gain of 300 nats loses exp(-30) = 9.358e-14, not 1 - 1 = 0, and its gradient is as exact.

    With beta 0.1 and z0 = 0, 1 - sigma(30) = exp(-30) / (1 + exp(-30)). A response 10,000 nats on the wrong
    side loses 1 and one on the right side 0, both without gradient.
    """
    sign = 1.0 if label else -1.0
    good = responses_with([300.0 * sign], [label], divergence=0.0, dtype=torch.float32)
    loss, gradient, _ = kto(good)
    assert loss.item() == pytest.approx(math.exp(-30), rel=1e-5, abs=0)
    assert gradient.item() == pytest.approx(-sign * 0.1 * math.exp(-30), rel=1e-5, abs=0)
    for ratio, expected in ((1e4, 0.0), (-1e4, 1.0)):
        far = responses_with([ratio * sign], [label], divergence=0.0, dtype=torch.float32)
        loss, gradient, _ = kto(far)
        assert loss.item() == expected
        assert gradient.item() == 0.0


@hypothesis_settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), row=st.integers(0, 6), step=st.floats(-50, 50))
def test_responses_do_not_touch_each_other(seed: int, row: int, step: float) -> None:
    """At the same z0, changing one response and its label leaves all others as they were, bit for bit."""
    before = random_responses(7, seed)
    assert before.labels is not None
    logps, labels = before.logps.detach().clone(), before.labels.clone()
    logps[row] += step
    labels[row] = ~labels[row]
    after = replace(before, logps=logps.requires_grad_(), labels=labels)
    others = torch.arange(7) != row
    _, gradient, metrics = kto(before)
    _, new_gradient, new_metrics = kto(after)
    assert torch.equal(gradient[others], new_gradient[others])
    assert torch.equal(metrics["loss/preference"][others], new_metrics["loss/preference"][others])


@pytest.mark.parametrize("field", ["labels", "divergence", "reference_logps"])
def test_missing_input_is_named(field: str) -> None:
    """Responses without labels, z0 or reference are refused, and the message names the field."""
    with pytest.raises(ValueError, match=f"{field} is None"):
        build({"method": "kto"})(replace(random_responses(2), **{field: None}))


# Options, numbers of desirable and undesirable responses, their balance, and what is advised.
BALANCES: dict[str, tuple[dict[str, float], int, int, float, str | None]] = {
    "as_many": ({}, 50, 50, 1.0, None),
    "the_papers_bound": ({"desirable_weight": 4 / 3}, 50, 50, 4 / 3, None),
    "a_tenth": ({}, 10, 100, 0.1, "desirable_weight"),
    "a_tenth_weighted": ({"desirable_weight": 13.33}, 10, 100, 1.333, None),
    "twice_as_many": ({}, 100, 50, 2.0, "undesirable_weight"),
    "both_weights": ({"desirable_weight": 3.0, "undesirable_weight": 2.0}, 10, 20, 0.75, "desirable_weight"),
    "one_kind_ignored": ({"undesirable_weight": 0.0}, 50, 50, math.inf, "undesirable_weight"),
}


@pytest.mark.parametrize("name", BALANCES)
def test_balance_by_hand(name: str) -> None:
    """lambda_D n_D / (lambda_U n_U) needs no advice from 1 to 4/3; elsewhere the weight to raise is named.

    The paper's own example keeps a tenth of the desirable responses with lambda_D = 13.33.
    """
    options, desirable, undesirable, ratio, raised = BALANCES[name]
    found = label_balance(build({"method": "kto", **options}), desirable, undesirable)
    assert found is not None
    assert found.ratio == pytest.approx(ratio)
    assert (found.advice is None) == (raised is None)
    if raised:
        assert f" objective.{raised}=" in str(found.advice)


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    desirable=st.integers(1, 5000),
    undesirable=st.integers(1, 5000),
    weights=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
)
def test_following_the_advice_leaves_none(
    desirable: int, undesirable: int, weights: tuple[float, float]
) -> None:
    """With the weight that is advised, rounded as it is printed, the balance lies within its bounds."""
    settings = {"method": "kto", "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    first = label_balance(build(settings), desirable, undesirable)
    assert first is not None
    if first.advice:
        key, value = first.advice.rpartition("objective.")[2].split("=")
        second = label_balance(build({**settings, key: float(value)}), desirable, undesirable)
        assert second is not None
        assert second.advice is None


@pytest.mark.parametrize(("desirable", "undesirable"), [(0, 7), (7, 0)])
def test_labels_of_one_kind_are_refused(desirable: int, undesirable: int) -> None:
    """A data set of one kind only has nothing to weigh, and the message counts both."""
    with pytest.raises(ValueError, match=f"{desirable} desirable and {undesirable} undesirable responses"):
        label_balance(build({"method": "kto"}), desirable, undesirable)


def test_only_methods_of_labels_have_a_balance() -> None:
    """Of the methods that learn from labels kto has a balance; another has none, whatever its labels."""
    assert methods_of_labels() == ["kto", "csft"]
    for method in METHODS:
        balance = label_balance(build({"method": method}), 3, 3)
        assert (balance is not None) == (method == "kto")
    assert label_balance(build({"method": "dpo"}), 0, 3) is None
