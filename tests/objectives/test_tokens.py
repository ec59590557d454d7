"""Losses that look at tokens: the length discount, pairs weighted by likelihood, and the prior by tokens."""

import itertools
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
    PRIORS,
    LengthDiscountedMargin,
    Logistic,
    Losses,
    ScoredResponses,
    TokenCredit,
    build,
    count_units,
    log_ratio,
    reweighted,
    token_rows,
)

BY_TOKENS = [name for name, method in METHODS.items() if "token_reward_gap" in method.priors]


def responses_of(
    ratios: list[list[float]], gaps: list[float], dtype: torch.dtype = torch.float64
) -> ScoredResponses:
    """Responses with these log-ratios of tokens; the even ones are chosen, each over the one behind it.

    Their own log-probabilities are the leaf `token_logps`, -1 plus the ratio; the reference's are -1.
    """
    lengths = torch.tensor([len(each) for each in ratios])
    own = torch.tensor(list(itertools.chain(*ratios)), dtype=dtype) - 1
    token_logps = own.requires_grad_()
    reference = torch.full_like(own, -1).detach()
    pairs = torch.arange(len(ratios) // 2)
    return ScoredResponses(
        logps=torch.segment_reduce(token_logps, "sum", lengths=lengths),
        lengths=lengths,
        chosen=2 * pairs,
        rejected=2 * pairs + 1,
        reference_logps=torch.segment_reduce(reference, "sum", lengths=lengths),
        prior_gap=torch.tensor(gaps, dtype=dtype),
        token_logps=token_logps,
        reference_token_logps=reference,
        collision_logps=torch.segment_reduce(0.5 * reference, "sum", lengths=lengths),
    )


def random_responses(pairs: int, seed: int, dtype: torch.dtype = torch.float32) -> ScoredResponses:
    """Pairs of responses of different lengths, with log-ratios of tokens around 0."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (2 * pairs,), generator=generator).tolist()
    ratios = [torch.randn(length, generator=generator).tolist() for length in lengths]
    return responses_of(ratios, torch.rand(pairs, generator=generator).tolist(), dtype)


def run(settings: dict[str, Any], responses: ScoredResponses) -> tuple[Losses, Tensor, Tensor]:
    """Losses, their total, and its gradient with respect to the log-probabilities of tokens."""
    losses = build(settings)(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen))
    (gradient,) = torch.autograd.grad(total, responses.token_logps, retain_graph=True)
    return losses, total.detach(), gradient


def sigma(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


# --- LD-DPO ---


@pytest.mark.parametrize("gap", [None, 0.5])
def test_the_length_discount_by_hand(gap: float | None) -> None:
    """Tokens behind the shorter response's length count alpha, in the longer response alone.

    The chosen response has h = (1, 2, 3, 4), the rejected one (-1, 1.5), and alpha is 0.25: s_w is
    1 + 2 + 0.25 * 7 = 4.75 and s_l = 0.5. With beta = 0.1, u = 0.425, and 0.45 with a gap of 0.5. The slope
    is -0.1 sigma(-u), times (1, 1, 0.25, 0.25) and times -delta (1, 1).
    """
    responses = responses_of([[1, 2, 3, 4], [-1, 1.5]], [gap or 1.0])
    prior = {} if gap is None else {"prior": "reward_gap"}
    losses, total, gradient = run({"method": "ld_dpo", "alpha": 0.25, **prior}, responses)
    u = 0.425 if gap is None else 0.45
    assert total.item() == pytest.approx(math.log1p(math.exp(-u)), abs=1e-12)
    slope = -0.1 * sigma(-u)
    delta = gap or 1.0
    expected = [slope, slope, 0.25 * slope, 0.25 * slope, -delta * slope, -delta * slope]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-12)
    # What is reported is not discounted: 0.1 * 10 and 0.1 * 0.5.
    assert losses.metrics["rewards/chosen"].tolist() == pytest.approx([1.0])
    assert losses.metrics["rewards/rejected"].tolist() == pytest.approx([0.05])


def test_a_response_is_cut_at_each_pairs_own_length() -> None:
    """One response with h = (1, 1, 1) in two pairs counts 1 of its tokens in one and 2 in the other."""
    responses = responses_of([[1, 1, 1], [0]], [1.0])
    lengths = torch.tensor([3, 1, 2])
    tokens = torch.tensor([0.0, 0, 0, -1, -1, -1], dtype=torch.float64)
    responses = replace(
        responses,
        lengths=lengths,
        token_logps=tokens,
        reference_token_logps=torch.full_like(tokens, -1),
        logps=torch.segment_reduce(tokens, "sum", lengths=lengths),
        reference_logps=torch.tensor([-3.0, -1, -2], dtype=torch.float64),
        chosen=torch.tensor([0, 0]),
        rejected=torch.tensor([1, 2]),
        prior_gap=None,
        collision_logps=None,
    )
    margin = LengthDiscountedMargin(log_ratio, Logistic(1.0), alpha=0.0)
    chosen, rejected, _ = margin.sides(log_ratio(responses), responses)
    assert chosen.tolist() == [1.0, 2.0]
    assert rejected.tolist() == [0.0, 0.0]


def test_no_discount_is_dpo() -> None:
    """With alpha = 1 loss, gradient and metrics are dpo's, bit for bit, with the prior and without."""
    responses = random_responses(16, seed=0)
    for prior in ("none", "reward_gap"):
        plain, plain_loss, plain_gradient = run({"method": "dpo", "prior": prior}, responses)
        losses, loss, gradient = run({"method": "ld_dpo", "alpha": 1.0, "prior": prior}, responses)
        assert torch.equal(loss, plain_loss)
        assert torch.equal(gradient, plain_gradient)
        assert losses.metrics.keys() == plain.metrics.keys()
        assert all(torch.equal(losses.metrics[name], values) for name, values in plain.metrics.items())


def test_a_discount_and_a_prior_by_tokens_exclude_each_other() -> None:
    """Composed by hand they are refused, as a configuration refuses them."""
    prior = PRIORS["token_reward_gap"]
    with pytest.raises(ValueError, match="both weigh tokens: use one of them"):
        LengthDiscountedMargin(log_ratio, Logistic(0.1), prior, alpha=0.5)
    with pytest.raises(ValueError, match="not defined for method 'ld_dpo'"):
        build({"method": "ld_dpo", "prior": "token_reward_gap"})


# --- WPO ---


@pytest.mark.parametrize(("cap", "weight"), [(None, math.exp(0.25)), (1.0, 1.0), (5.0, math.exp(0.25))])
def test_the_weight_by_hand(cap: float | None, weight: float) -> None:
    """w(y) = exp(mean log pi - mean log sum p^2), a number, and the loss is w(y_w) w(y_l) times dpo's.

    log pi is (-0.5, 0.5) and (-1.75, -1.75, -1.75), and log sum p^2 is -1 each: log w is 0 + 1 and
    -1.75 + 1, together 0.25. The authors' code has the cap 1.
    """
    responses = responses_of([[0.5, 1.5], [-0.75, -0.75, -0.75]], [1.0])
    collisions = responses.collision_logps
    assert collisions is not None
    responses = replace(responses, collision_logps=collisions - 0.5 * responses.lengths)
    losses, total, gradient = run({"method": "wpo", **({} if cap is None else {"cap": cap})}, responses)
    _, plain, plain_gradient = run({"method": "dpo"}, responses)
    assert losses.metrics["weight/likelihood"].tolist() == pytest.approx([weight])
    assert total.item() == pytest.approx(weight * plain.item(), abs=1e-12)
    torch.testing.assert_close(gradient, weight * plain_gradient, rtol=1e-12, atol=0)


# --- the prior by tokens ---


@pytest.mark.parametrize(
    ("ratios", "gap", "weights"),
    [
        ([math.log(3), 0.0], 0.5, [1.5, 0.5]),
        ([math.log(3), 0.0], 0.8, [1.25, 0.75]),
        ([0.0, math.log(4), math.log(2), math.log(2)], 0.75, [8 / 15, 4 / 3, 16 / 15, 16 / 15]),
        ([0.0, math.log(8), math.log(8), 0.0], 0.8, [0.75, 1.25, 1.25, 0.75]),
        ([50.0, 0.0, -400.0], 0.5, [2.0, 1.0, math.exp(-400)]),
        ([5.0, -3.0], 0.0, [2 * sigma(8), 2 * sigma(-8)]),
        ([5.0, -3.0, 1.0], 1.0, [1.0, 1.0, 1.0]),
        ([7.0], 0.3, [1.0]),
    ],
)
def test_credit_by_hand(ratios: list[float], gap: float, weights: list[float]) -> None:
    """w_t = min(1 / delta, lambda exp(h_t / T)) with mean 1.

    With exp(h) = (3, 1) the shares are 3/4 and 1/4 of 2. At a gap of 0.8 no weight exceeds 1.25, and the
    other token has what is left. With (1, 4, 2, 2) and at most 4/3 the second is held; 8/3 are left for
    1 + 2 + 2 = 5 parts of 8/15, and 16/15 is under 4/3. With (1, 8, 8, 1) and at most 1.25 two are held,
    and 1.5 is left for two.
    """
    responses = responses_of([[0.0], ratios], [gap])
    assert TokenCredit()(responses)[0].tolist() == pytest.approx(weights, rel=1e-12, abs=1e-200)


def test_temperature_and_rows_of_credit() -> None:
    """T divides the log-ratios, and rows behind a response's end are 0, whatever the next one has."""
    responses = responses_of([[0.0], [2 * math.log(3), 0.0], [9.0] * 4, [1.0]], [0.5, 0.5])
    weights = TokenCredit(credit_temperature=2.0)(responses)
    assert weights.tolist() == [pytest.approx([1.5, 0.5, 0, 0]), pytest.approx([1, 0, 0, 0])]
    assert not weights.requires_grad


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    ratios=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    gap=st.floats(0, 1, width=32),
    temperature=st.floats(1e-3, 1e6),
)
def test_credit_keeps_its_promises(ratios: list[float], gap: float, temperature: float) -> None:
    """delta_t = delta w_t is in [0, 1] with mean delta, and is larger where h_t is."""
    weights = TokenCredit(temperature)(responses_of([[0.0], ratios], [gap]))[0]
    delta = gap * weights
    assert (delta >= 0).all()
    assert (delta <= 1 + 1e-12).all()
    assert weights.mean().item() == pytest.approx(1, abs=1e-9)
    largest_first = torch.tensor(ratios, dtype=torch.float64).argsort(descending=True, stable=True)
    assert (weights[largest_first].diff() <= 1e-9).all()


def test_credit_is_the_best_there_is() -> None:
    """No other delta_t in [0, 1] of this mean has a larger sum of delta_t h_t - T delta_t log delta_t."""
    generator = torch.Generator().manual_seed(0)
    ratios = torch.randn(6, generator=generator, dtype=torch.float64)
    best = 0.7 * TokenCredit(0.5)(responses_of([[0.0], ratios.tolist()], [0.7]))[0]
    assert (best > 1 - 1e-12).tolist() == [True, True, False, True, False, False]

    def gain(delta: Tensor) -> Tensor:
        return (delta * ratios + 0.5 * torch.special.entr(delta)).sum(-1)

    others = best + 0.05 * torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    others = others - (others - best).mean(dim=1, keepdim=True)
    allowed = others[((others >= 0) & (others <= 1)).all(dim=1)]
    assert len(allowed) > 100
    assert (gain(allowed) < gain(best)).all()


@pytest.mark.parametrize("name", BY_TOKENS)
def test_even_credit_is_the_prior_of_sums(name: str) -> None:
    """With T without bound, or equal log-ratios, all is what reward_gap gives, bit for bit."""
    random = random_responses(16, seed=1)
    even = responses_of(
        [[0.3] * (index % 7 + 1) for index in range(16)], [0.1 * i for i in range(8)], torch.float32
    )
    for responses, temperature in ((random, 1e12), (even, 1.0)):
        settings = {"method": name, "prior": "token_reward_gap", "credit_temperature": temperature}
        plain, plain_loss, plain_gradient = run({"method": name, "prior": "reward_gap"}, responses)
        losses, loss, gradient = run(settings, responses)
        assert torch.equal(loss, plain_loss)
        assert torch.equal(gradient, plain_gradient)
        assert losses.metrics.keys() - plain.metrics.keys() == {"prior/token_share"}
        assert all(torch.equal(losses.metrics[metric], values) for metric, values in plain.metrics.items())
        assert losses.metrics["prior/token_share"].eq(1).all()


@pytest.mark.parametrize("name", BY_TOKENS)
def test_a_gap_of_one_is_the_plain_method(name: str) -> None:
    """With delta = 1 no token can carry more than another, and all is the plain method's, bit for bit."""
    responses = replace(random_responses(16, seed=2), prior_gap=torch.ones(16))
    plain, plain_loss, plain_gradient = run({"method": name}, responses)
    losses, loss, gradient = run({"method": name, "prior": "token_reward_gap"}, responses)
    assert torch.equal(loss, plain_loss)
    assert torch.equal(gradient, plain_gradient)
    assert all(torch.equal(losses.metrics[metric], values) for metric, values in plain.metrics.items())


@pytest.mark.parametrize("name", BY_TOKENS)
def test_a_gap_of_zero_leaves_rejected_tokens_alone(name: str) -> None:
    """With delta = 0 no rejected token has any gradient."""
    responses = replace(random_responses(8, seed=3), prior_gap=torch.zeros(8))
    _, _, gradient = run({"method": name, "prior": "token_reward_gap"}, responses)
    by_response = token_rows(gradient, responses)
    assert torch.count_nonzero(by_response[responses.rejected]) == 0
    assert torch.count_nonzero(by_response[responses.chosen]) > 0


def test_gradient_of_the_prior_by_tokens() -> None:
    """-beta sigma(-u) (grad l_w - sum_t delta_t grad l_t), to 1e-10: no gradient goes through the credit."""
    responses = random_responses(8, seed=4, dtype=torch.float64)
    losses = build({"method": "dpo", "beta": 0.5, "prior": "token_reward_gap"})(responses)
    (gradient,) = torch.autograd.grad(losses.terms["preference"].values.sum(), responses.token_logps)
    delta = responses.prior_gap
    assert delta is not None
    by_token = delta[:, None] * TokenCredit()(responses)
    ratios = token_rows(responses.token_logps - responses.reference_token_logps, responses).detach()
    margin = ratios[responses.chosen].sum(1) - (by_token * ratios[responses.rejected]).sum(1)
    slope = -0.5 * torch.sigmoid(-0.5 * margin)[:, None]
    inside = token_rows(torch.ones_like(gradient), responses)
    rows = token_rows(gradient, responses)
    torch.testing.assert_close(rows[responses.chosen], slope * inside[responses.chosen], rtol=0, atol=1e-10)
    torch.testing.assert_close(rows[responses.rejected], -slope * by_token, rtol=0, atol=1e-10)
    # Each pair pushes its rejected response down as much as the prior of sums would at this slope.
    torch.testing.assert_close(
        rows[responses.rejected].sum(1),
        -slope[:, 0] * delta * responses.lengths[responses.rejected],
        rtol=1e-10,
        atol=0,
    )


def test_the_margin_is_never_larger_than_that_of_sums() -> None:
    """Weights grow with h, so that sum_t w_t h_t >= h_l: the loss is the larger one."""
    responses = random_responses(32, seed=5, dtype=torch.float64)
    by_token = build({"method": "dpo", "prior": "token_reward_gap"})(responses).terms["preference"].values
    by_sum = build({"method": "dpo", "prior": "reward_gap"})(responses).terms["preference"].values
    assert (by_token >= by_sum - 1e-12).all()
    assert (by_token > by_sum + 1e-6).any()


def test_tokens_share_by_hand() -> None:
    """Weights 1.5 and 0.5 are (2)^2 / (2 * 2.5) = 0.8 of the tokens."""
    responses = responses_of([[0.0], [math.log(3), 0.0]], [0.5])
    metrics = build({"method": "dpo", "prior": "token_reward_gap"})(responses).metrics
    assert metrics["prior/token_share"].tolist() == pytest.approx([0.8])
    assert metrics["prior/gap"].tolist() == [0.5]


def test_the_prior_by_tokens_goes_with_log_ratios_alone() -> None:
    """It needs the reference, and a method that takes it says so; its option is its own."""
    assert BY_TOKENS == ["dpo", "ipo", "hinge", "wpo"]
    with pytest.raises(ValueError, match=r"not defined for method 'simpo'.*dpo, ipo, hinge, wpo"):
        build({"method": "simpo", "prior": "token_reward_gap"})
    with pytest.raises(ValueError, match="credit_temperature = 2 is read with prior = 'token_reward_gap'"):
        build({"method": "dpo", "prior": "reward_gap", "credit_temperature": 2})
    with pytest.raises(ValueError, match="credit_temperature = 0 must be a finite number > 0"):
        build({"method": "dpo", "prior": "token_reward_gap", "credit_temperature": 0})
    needs = build({"method": "dpo", "prior": "token_reward_gap"}).needs
    assert needs == {"pairs", "reference", "prior_gap", "token_logps", "reference_tokens"}


# --- numbers of tokens ---


def test_tokens_are_as_many_as_lengths_say() -> None:
    """A flat tensor of another size is refused."""
    responses = responses_of([[0.0, 1.0], [2.0]], [0.5])
    with pytest.raises(
        ValueError, match=r"token_logps has shape \(2,\), and must have \(3,\).*lengths add up"
    ):
        replace(responses, token_logps=torch.zeros(2))


def test_rows_of_tokens() -> None:
    """A row for each response, zeros behind its end, and an empty response has a row of zeros."""
    responses = responses_of([[1.0, 2.0], [], [3.0], [4.0]], [0.5, 0.5])
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert token_rows(tokens, responses).tolist() == [[1, 2], [0, 0], [3, 0], [4, 0]]
    weighted = reweighted(responses, responses.rejected, torch.full((2, 2), 0.5, dtype=torch.float64))
    assert weighted.logps is not None
    assert weighted.logps.tolist() == [0.0, 1.5]
