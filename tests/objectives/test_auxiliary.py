"""HPO's terms: advantage-weighted likelihood on auxiliary rewards, and the value it is relative to."""

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
    AdvantageLikelihood,
    Losses,
    Objective,
    Part,
    ScoredResponses,
    Standardization,
    ValueRegression,
    build,
    count_units,
    predicted_factors,
)

from .spread_tokens import with_tokens

E = math.e
NO_PAIRS = torch.tensor([], dtype=torch.int64)

METHODS_AND_PRIORS = [
    (name, prior)
    for name, method in METHODS.items()
    if method.trains_policy and not method.learns_auxiliary
    for prior in method.priors
]


def two_responses() -> ScoredResponses:
    """Log-probability -4 on 2 tokens with R = 1.5 and V = 0.5; -9 on 3 tokens with R = 0.5 and V = 0.

    Standardised by mean 1 and scale 0.5, the advantages are 0.5 and -1.
    """
    return ScoredResponses(
        logps=torch.tensor([-4.0, -9.0], dtype=torch.float64, requires_grad=True),
        lengths=torch.tensor([2, 3]),
        chosen=NO_PAIRS,
        rejected=NO_PAIRS,
        auxiliary=torch.tensor([1.5, 0.5], dtype=torch.float64),
        values=torch.tensor([0.5, 0.0], dtype=torch.float64, requires_grad=True),
    )


STANDARDIZATION = Standardization(mean=1.0, scale=0.5)


def random_responses(pairs: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> ScoredResponses:
    """Pairs of responses (i and i + pairs) with everything that any method and prior needs."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(2 * pairs, generator=generator, dtype=dtype)

    lengths = torch.randint(1, 20, (2 * pairs,), generator=generator)
    logps = -lengths * (1 + normal().abs())
    responses = ScoredResponses(
        logps=logps.requires_grad_(),
        lengths=lengths,
        chosen=torch.arange(pairs),
        rejected=torch.arange(pairs) + pairs,
        reference_logps=logps.detach() + normal(),
        prior_gap=torch.rand(pairs, generator=generator, dtype=dtype),
        labels=torch.arange(2 * pairs) < pairs,
        divergence=torch.tensor(0.5, dtype=dtype),
        auxiliary=normal(),
        values=(0.5 * normal()).requires_grad_(),
        prior_reward=torch.rand(2 * pairs, generator=generator, dtype=dtype),
        groups=torch.arange(pairs).repeat(2),
    )
    return with_tokens(responses)


def total_of(part: Part, responses: ScoredResponses) -> tuple[Tensor, dict[str, Tensor]]:
    """One part's loss over its own batch, and the metrics."""
    losses = Objective((part,))(responses)
    return losses.total(count_units(responses.lengths, responses.chosen)), losses.metrics


def logp_gradient(losses: Losses, responses: ScoredResponses) -> tuple[Tensor, Tensor]:
    """The total, and its gradient with respect to the log-probabilities."""
    total = losses.total(count_units(responses.lengths, responses.chosen, responses.groups))
    (gradient,) = torch.autograd.grad(total, responses.logps, retain_graph=True)
    return total.detach(), gradient


# Options of the likelihood, its loss, its metric by response, and the factors, by hand.
LIKELIHOOD_BY_HAND: dict[str, tuple[dict[str, Any], float, list[float], list[float]]] = {
    "token_mean": ({}, (4 * E + 9 / E**2) / 5, [2 * E, 3 / E**2], [E, 1 / E**2]),
    "sum": ({"reduction": "sum"}, (4 * E + 9 / E**2) / 2, [4 * E, 9 / E**2], [E, 1 / E**2]),
    "warm": ({"temperature": 1.0}, (4 * E**0.5 + 9 / E) / 5, [2 * E**0.5, 3 / E], [E**0.5, 1 / E]),
    "capped": ({"cap": 2.0}, (8 + 9 / E**2) / 5, [4.0, 3 / E**2], [2.0, 1 / E**2]),
    "weighted": ({"weight": 0.25}, (4 * E + 9 / E**2) / 20, [2 * E, 3 / E**2], [E, 1 / E**2]),
}


@pytest.mark.parametrize("name", LIKELIHOOD_BY_HAND)
def test_likelihood_by_hand(name: str) -> None:
    """With temperature 0.5 the factors of advantages 0.5 and -1 are e and e^-2, on 4 and 9 nats.

    The mean is over 5 tokens, or over 2 responses with `sum`; the metric is each response's, per token or
    summed, before the weight. At temperature 1 the factors are e^0.5 and e^-1; a cap of 2 holds the first.
    """
    options, loss, shown, factors = LIKELIHOOD_BY_HAND[name]
    part = AdvantageLikelihood(
        **{"weight": 1.0, "temperature": 0.5, "standardization": STANDARDIZATION, **options}
    )
    total, metrics = total_of(part, two_responses())
    assert total.item() == pytest.approx(loss, rel=1e-12)
    assert metrics["loss/auxiliary"].tolist() == pytest.approx(shown, rel=1e-6)
    assert metrics["auxiliary/factor"].tolist() == pytest.approx(factors, rel=1e-6)


PREDICTED: dict[str, tuple[float | None, float, float, float]] = {
    "no cap": (None, E**2, (E**2 + 3) / 4, 0.0),
    "a cap of 2": (2.0, 2.0, 5 / 4, 1 / 4),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_predicted_factors_by_hand(name: str) -> None:
    """R = 1.5 once and the mean, 1, three times, in deviations of 0.5 at temperature 0.5: e^2 and 1."""
    cap, largest, mean, share = PREDICTED[name]
    settings = {"auxiliary": {"temperature": 0.5, "cap": cap}}
    rewards = torch.tensor([1.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    found = predicted_factors(build(settings, STANDARDIZATION), rewards)
    assert found is not None
    assert (found.largest, found.mean) == pytest.approx((largest, mean), rel=1e-12)
    assert (found.cap, found.share_at_cap, found.warning) == (cap, share, None)
    assert predicted_factors(build({}), rewards) is None


def test_a_rare_reward_without_a_cap_is_warned_of() -> None:
    """3 of 50 are polite: exp(3 * 0.94 / sqrt(0.06 * 0.94)) is 143,536; 20 needs no warning."""
    rewards = torch.tensor([1.0] * 3 + [0.0] * 47)
    standardization = Standardization(0.06, (0.06 * 0.94) ** 0.5)
    said = {
        cap: found.warning
        for cap in (None, 20)
        if (found := predicted_factors(build({"auxiliary": {"cap": cap}}, standardization), rewards))
    }
    assert "is 143,536 at the start" in str(said[None])
    assert "Set objective.auxiliary.cap=20 (the default)" in str(said[None])
    assert said[20] is None


def test_value_by_hand() -> None:
    """With expectile 0.7 the losses are 0.7 * 0.25 and 0.3 * 1, so 2 * 0.475 / 2 with weight 2.

    The slope in V is -2 * weight / 2 times 0.7 * 0.5 and 0.3 * -1: V rises where R is above it.
    """
    responses = two_responses()
    total, metrics = total_of(ValueRegression(2.0, 0.7, STANDARDIZATION), responses)
    assert total.item() == pytest.approx(0.475, rel=1e-12)
    assert metrics["loss/value"].tolist() == pytest.approx([0.175, 0.3], rel=1e-6)
    total.backward()
    assert responses.values is not None
    assert responses.values.grad is not None
    assert responses.values.grad.tolist() == pytest.approx([-0.7, 0.6], rel=1e-12)


def test_metrics_are_on_the_rewards_own_scale() -> None:
    """Advantages of 0.5 and -1 deviations of 0.5 are 0.25 and -0.5, from values of 1.25 and 1."""
    _, metrics = total_of(ValueRegression(1.0, 0.7, STANDARDIZATION), two_responses())
    expected = {
        "auxiliary/reward": [1.5, 0.5],
        "auxiliary/value": [1.25, 1.0],
        "auxiliary/advantage": [0.25, -0.5],
        "auxiliary/squared_error": [0.0625, 0.25],
    }
    for name, values in expected.items():
        assert metrics[name].dtype == torch.float32
        assert not metrics[name].requires_grad
        assert metrics[name].tolist() == pytest.approx(values, rel=1e-6), name


def test_build_hands_on_every_option() -> None:
    """An objective from words is the one composed by hand, standardisation included."""
    words = {
        "weight": 0.5,
        "temperature": 2.0,
        "expectile": 0.9,
        "value_weight": 0.25,
        "reduction": "sum",
        "cap": 3.0,
    }
    (base,) = build({"method": "dpo"}).parts
    composed = Objective(
        (
            base,
            AdvantageLikelihood(0.5, 2.0, "sum", 3.0, STANDARDIZATION),
            ValueRegression(0.25, 0.9, STANDARDIZATION),
        )
    )
    assert build({"method": "dpo", "auxiliary": words}, STANDARDIZATION) == composed


@pytest.mark.parametrize(("method", "prior"), METHODS_AND_PRIORS)
def test_weight_zero_is_the_plain_method(method: str, prior: str) -> None:
    """Loss, gradient and metrics equal those of the method alone, bit for bit, rewards or not."""
    responses = random_responses(8, dtype=torch.float32)
    settings = {"method": method, "prior": prior}
    plain = build(settings)(replace(responses, auxiliary=None, values=None))
    off = build({**settings, "auxiliary": {"weight": 0.0}})(responses)
    for ours, theirs in zip(logp_gradient(off, responses), logp_gradient(plain, responses), strict=True):
        assert torch.equal(ours, theirs)
    assert off.terms.keys() == plain.terms.keys()
    assert off.metrics.keys() == plain.metrics.keys()
    for metric, values in plain.metrics.items():
        assert torch.equal(off.metrics[metric], values), metric


@pytest.mark.parametrize(("method", "prior"), METHODS_AND_PRIORS)
def test_the_terms_are_added_to_any_method(method: str, prior: str) -> None:
    """With a weight, the method's own terms and metrics stay bit for bit; two terms join."""
    responses = random_responses(8, dtype=torch.float32)
    settings = {"method": method, "prior": prior}
    plain = build(settings)(responses)
    both = build({**settings, "auxiliary": {}})(responses)
    assert both.terms.keys() - plain.terms.keys() == {"auxiliary", "value"}
    for name, term in plain.terms.items():
        assert torch.equal(both.terms[name].values, term.values), name
    for name, values in plain.metrics.items():
        assert torch.equal(both.metrics[name], values), name
    assert both.metrics.keys() - plain.metrics.keys() == {
        "loss/auxiliary",
        "loss/value",
        "auxiliary/factor",
        "auxiliary/reward",
        "auxiliary/value",
        "auxiliary/advantage",
        "auxiliary/squared_error",
    }


def test_expectile_of_a_half_is_half_the_mean_squared_error() -> None:
    """0.5 mean((R - V)^2) in loss and gradient."""
    responses = random_responses(8)
    assert responses.auxiliary is not None
    assert responses.values is not None
    total, _ = total_of(ValueRegression(1.0, 0.5), responses)
    half_error = 0.5 * torch.nn.functional.mse_loss(responses.values, responses.auxiliary)
    (gradient,) = torch.autograd.grad(total, responses.values)
    (expected,) = torch.autograd.grad(half_error, responses.values)
    torch.testing.assert_close(total, half_error, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("expectile", [0.2, 0.5, 0.7])
def test_the_value_settles_at_the_expectile(expectile: float) -> None:
    """For rewards of 0 and 1 alike, V = expectile has no gradient: kappa (1 - V) = (1 - kappa) V."""
    value = torch.tensor(expectile, dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([0.0, 1.0], dtype=torch.float64)
    responses = replace(two_responses(), auxiliary=rewards, values=value.expand(2))
    total, _ = total_of(ValueRegression(1.0, expectile), responses)
    total.backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(0, abs=1e-15)


def test_no_gradient_crosses_over() -> None:
    """The likelihood term leaves V, and the value term the log-probabilities, out of its graph altogether."""
    responses = random_responses(4)
    losses = build({"method": "simpo", "auxiliary": {}})(responses)
    (of_value,) = torch.autograd.grad(
        losses.terms["auxiliary"].values.sum(), [responses.values], allow_unused=True, retain_graph=True
    )
    (of_policy,) = torch.autograd.grad(
        losses.terms["value"].values.sum(), [responses.logps], allow_unused=True
    )
    assert of_value is None
    assert of_policy is None


VOCABULARY = 7
PROMPTS = [[3, 1], [2], [5, 0, 4]]
TEXTS = [(0, [2, 2, 6]), (0, [1]), (1, [4, 0]), (2, [3, 5, 1, 6])]
"""Responses: the index of the prompt, and the tokens."""


@pytest.mark.parametrize(("reduction", "divisor"), [("token_mean", 10), ("sum", 4)])
@pytest.mark.parametrize("cap", [None, 1.1])
def test_policy_gradient_is_the_papers(reduction: Any, divisor: int, cap: float | None) -> None:
    """In a softmax policy each token's logits have the gradient -exp(A / tau) (onehot(y_t) - p_t), to 1e-10.

    That is -exp(A / tau) grad log pi without a term of V, though V here reads the policy's own logits. The
    policy is a bigram: row i of a table has the logits behind token i. The mean is over 10 tokens, or over 4
    responses.
    """
    torch.manual_seed(0)
    table = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, requires_grad=True)
    value_head = torch.nn.Linear(VOCABULARY, 1, dtype=torch.float64)
    rewards = torch.tensor([0.9, -0.4, 0.1, 0.6], dtype=torch.float64)
    behind = [[*PROMPTS[prompt][-1:], *tokens[:-1]] for prompt, tokens in TEXTS]
    logps = torch.stack(
        [
            table[previous].log_softmax(-1)[torch.arange(len(tokens)), tokens].sum()
            for previous, (_, tokens) in zip(behind, TEXTS, strict=True)
        ]
    )
    values = value_head(table[[previous[0] for previous in behind]])[:, 0]
    responses = ScoredResponses(
        logps,
        torch.tensor([len(tokens) for _, tokens in TEXTS]),
        NO_PAIRS,
        NO_PAIRS,
        auxiliary=rewards,
        values=values,
    )
    part = AdvantageLikelihood(weight=0.3, temperature=0.5, reduction=reduction, cap=cap)
    total, _ = total_of(part, responses)
    (gradient, *of_value) = torch.autograd.grad(total, [table, *value_head.parameters()], allow_unused=True)

    factors = torch.exp((rewards - values.detach()) / 0.5).clamp(max=cap or math.inf)
    expected = torch.zeros_like(table)
    probabilities = table.detach().softmax(-1)
    for factor, previous, (_, tokens) in zip(factors, behind, TEXTS, strict=True):
        for row, token in zip(previous, tokens, strict=True):
            one_hot = torch.nn.functional.one_hot(torch.tensor(token), VOCABULARY)
            expected[row] -= 0.3 * factor * (one_hot - probabilities[row]) / divisor
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
    assert of_value == [None, None]
    assert cap is None or factors.min() < cap == factors.max()


@pytest.mark.parametrize("advantage", [-0.75, 0.0, 2.0])
def test_equal_advantages_are_plain_likelihood(advantage: float) -> None:
    """Loss and gradient are those of the mean NLL per token, times exp(A / tau); 1 where A is 0."""
    responses = random_responses(6)
    assert responses.values is not None
    responses = replace(responses, auxiliary=responses.values.detach() + advantage)
    total, _ = total_of(AdvantageLikelihood(1.0, temperature=0.5), responses)
    likelihood = -responses.logps.sum() / responses.lengths.sum()
    (gradient,) = torch.autograd.grad(total, responses.logps)
    (plain,) = torch.autograd.grad(likelihood, responses.logps)
    constant = math.exp(advantage / 0.5)
    torch.testing.assert_close(total, constant * likelihood, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, constant * plain, rtol=1e-12, atol=0)


def test_the_cap_holds_large_factors_only() -> None:
    """Responses of a smaller factor keep loss and gradient; those above have the cap's."""
    responses = random_responses(16)
    free, capped = AdvantageLikelihood(1.0, 0.5), AdvantageLikelihood(1.0, 0.5, cap=1.5)
    factors, held = free.factor(responses), capped.factor(responses)
    above = factors > 1.5
    assert 0 < above.sum() < len(factors)
    assert torch.equal(held[~above], factors[~above])
    assert set(held[above].tolist()) == {1.5}
    (term, _), (plain, _) = capped(responses), free(responses)
    assert torch.equal(term.values[above], -1.5 * responses.logps[above])
    assert torch.equal(term.values[~above], plain.values[~above])


@pytest.mark.parametrize("reduction", ["token_mean", "sum"])
def test_micro_batches_add_up(reduction: str) -> None:
    """Over the whole batch's counts, micro-batches add up to its total; one of them has no pair."""
    pairs = {"chosen": torch.tensor([0, 1, 3]), "rejected": torch.tensor([4, 5, 7]), "prior_gap": None}
    whole = replace(random_responses(4), **pairs)
    objective = build({"method": "dpo", "auxiliary": {"reduction": reduction}})
    counts = count_units(whole.lengths, whole.chosen)
    parts = [take(whole, [0, 4], 1), take(whole, [2, 6], 0), take(whole, [1, 5, 3, 7], 2)]
    total = torch.stack([objective(part).total(counts) for part in parts]).sum()
    torch.testing.assert_close(total, objective(whole).total(counts), rtol=1e-12, atol=0)


def take(responses: ScoredResponses, rows: list[int], pairs: int) -> ScoredResponses:
    """Some responses as a batch of their own; the first 2 * pairs are pairs side by side."""
    assert responses.reference_logps is not None
    assert responses.auxiliary is not None
    assert responses.values is not None
    return ScoredResponses(
        logps=responses.logps[rows],
        lengths=responses.lengths[rows],
        chosen=2 * torch.arange(pairs),
        rejected=2 * torch.arange(pairs) + 1,
        reference_logps=responses.reference_logps[rows],
        auxiliary=responses.auxiliary[rows],
        values=responses.values[rows],
    )


def test_the_rewards_scale_changes_nothing_but_what_is_reported() -> None:
    """R in other units with its own mean and scale has the same losses; the metrics are in the new units."""
    responses = random_responses(6)
    assert responses.auxiliary is not None
    moved = replace(responses, auxiliary=20 + 8 * responses.auxiliary)
    settings = {"method": "dpo", "auxiliary": {}}
    first = build(settings, Standardization(0.25, 0.5))(responses)
    second = build(settings, Standardization(22.0, 4.0))(moved)
    for name, term in first.terms.items():
        torch.testing.assert_close(second.terms[name].values, term.values, rtol=1e-12, atol=1e-12)
    for name, scale, mean in [("reward", 8, 20), ("value", 8, 20), ("advantage", 8, 0)]:
        expected = scale * first.metrics[f"auxiliary/{name}"] + mean
        torch.testing.assert_close(second.metrics[f"auxiliary/{name}"], expected, rtol=1e-5, atol=1e-5)


REWARDS = st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=2, max_size=2)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    rewards=REWARDS,
    values=REWARDS,
    logps=st.lists(st.floats(-1e4, 0, width=32), min_size=2, max_size=2),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    cap=st.sampled_from([None, 20.0]),
)
def test_finite_at_extremes(
    rewards: list[float], values: list[float], logps: list[float], scale: float, cap: float | None
) -> None:
    """Losses, gradients and metrics stay finite for rewards and values of up to 1e15."""
    responses = ScoredResponses(
        logps=torch.tensor(logps, requires_grad=True),
        lengths=torch.tensor([2, 3]),
        chosen=NO_PAIRS,
        rejected=NO_PAIRS,
        auxiliary=torch.tensor(rewards),
        values=torch.tensor(values, requires_grad=True),
    )
    auxiliary = {} if cap is None else {"cap": cap}
    parts = build({"method": "simpo", "auxiliary": auxiliary}, Standardization(0.0, scale)).parts[1:]
    losses = Objective(parts)(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen))
    gradients = torch.autograd.grad(total, [responses.logps, responses.values])
    assert total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(metric.isfinite().all() for metric in losses.metrics.values())


def test_a_huge_advantage_stops_at_exp_30() -> None:
    """The factor is exp(30) = 1.069e13 for every advantage beyond 30 temperatures, and exact below."""
    part = AdvantageLikelihood(1.0, temperature=0.5)
    rewards = torch.tensor([1e6, 14.0], dtype=torch.float64)
    responses = replace(two_responses(), auxiliary=rewards, values=torch.zeros(2, dtype=torch.float64))
    assert part.factor(responses).tolist() == pytest.approx([math.exp(30), math.exp(28)], rel=1e-12)


@hypothesis_settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), row=st.integers(0, 7), step=st.floats(-20, 20))
def test_responses_do_not_touch_each_other(seed: int, row: int, step: float) -> None:
    """Changing one response's reward, value and log-probability leaves all others, bit for bit."""
    before = random_responses(4, seed)
    assert before.auxiliary is not None
    assert before.values is not None
    others = torch.arange(8) != row
    shift = torch.where(others, 0.0, step).double()
    after = replace(
        before,
        logps=(before.logps.detach() + shift).requires_grad_(),
        auxiliary=before.auxiliary - shift,
        values=(before.values.detach() + shift).requires_grad_(),
    )
    objective = Objective(build({"method": "simpo", "auxiliary": {}}).parts[1:])
    first, second = objective(before), objective(after)
    for name, leaf in (("auxiliary", "logps"), ("value", "values")):
        old, new = first.terms[name].values, second.terms[name].values
        assert torch.equal(old[others], new[others]), name
        (old_gradient,) = torch.autograd.grad(old.sum(), getattr(before, leaf), retain_graph=True)
        (new_gradient,) = torch.autograd.grad(new.sum(), getattr(after, leaf), retain_graph=True)
        assert torch.equal(old_gradient[others], new_gradient[others]), name
    for metric, values in first.metrics.items():
        if not metric.startswith("logps/"):  # by pair
            assert torch.equal(values[others], second.metrics[metric][others]), metric


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast(dtype: torch.dtype) -> None:
    """Half log-probabilities give what the same numbers give in float32."""
    single = random_responses(4, dtype=torch.float32)
    rounded = single.logps.detach().to(dtype)
    objective = build({"method": "simpo", "auxiliary": {}})
    half = objective(replace(single, logps=rounded))
    expected = objective(replace(single, logps=rounded.float()))
    for name, term in half.terms.items():
        assert term.values.dtype == torch.float32
        assert torch.equal(term.values, expected.terms[name].values), name


@pytest.mark.parametrize("field", ["auxiliary", "values"])
def test_missing_input_is_named(field: str) -> None:
    """Responses without rewards, or without their value, are refused, and the message names the field."""
    objective = build({"method": "simpo", "auxiliary": {}})
    with pytest.raises(ValueError, match=f"^{field} is None"):
        objective(replace(random_responses(2), **{field: None}))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    reward=st.floats(-40, 40, width=32),
    value=st.floats(-2, 2, width=32),
    temperature=st.sampled_from([0.1, 1 / 3, 1.0]),
)
def test_float32_keeps_the_digits_of_large_exponents(reward: float, value: float, temperature: float) -> None:
    """Factor, loss and regression of V in float32 are those of float64 to 1e-6, for rewards of -40 to 40."""
    found = []
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([value], dtype=dtype, requires_grad=True)
        responses = ScoredResponses(
            logps=torch.tensor([-4.0], dtype=dtype, requires_grad=True),
            lengths=torch.tensor([1]),
            chosen=torch.tensor([], dtype=torch.int64),
            rejected=torch.tensor([], dtype=torch.int64),
            auxiliary=torch.tensor([reward], dtype=dtype),
            values=values,
        )
        scale = Standardization(0.3, 0.7)
        likelihood, metrics = AdvantageLikelihood(0.5, temperature, standardization=scale)(responses)
        regression, _ = ValueRegression(1.0, 0.7, scale)(responses)
        (gradient,) = torch.autograd.grad(regression.values.sum(), values)
        numbers = (metrics["auxiliary/factor"], likelihood.values, regression.values, gradient)
        assert numbers[1].dtype == dtype
        found.append([float(number.detach()) for number in numbers])
    # What is below the least float32 that has all its digits counts as nothing.
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-36)
