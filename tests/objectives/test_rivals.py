"""Score-aware rivals of the prior: their papers' formulas, and the methods that they become."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives import Losses, ScoredResponses, build, count_units

SIZES = (1, 2, 3, 5)
"""Responses of the prompts of a batch."""


def batch(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> ScoredResponses:
    """Prompts with some responses each; rewards in quarters, so that some are equal; pairs of neighbours."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen = [place for place in range(count - 1) if groups[place] == groups[place + 1]]

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    return ScoredResponses(
        logps=(3 * normal() - 10).requires_grad_(),
        lengths=torch.randint(1, 9, (count,), generator=generator),
        chosen=torch.tensor(chosen, dtype=torch.int64),
        rejected=torch.tensor(chosen, dtype=torch.int64) + 1,
        reference_logps=3 * normal() - 10,
        prior_gap=torch.rand(len(chosen), generator=generator, dtype=torch.float64),
        prior_reward=torch.randint(5, (count,), generator=generator) / 4,
        groups=groups,
    )


def run(settings: dict[str, Any], responses: ScoredResponses) -> tuple[Losses, Tensor, Tensor]:
    """Losses, their total, and its gradient with respect to the log-probabilities."""
    losses = build(settings)(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen, responses.groups))
    (gradient,) = torch.autograd.grad(total, responses.logps)
    return losses, total.detach(), gradient


def implicit(responses: ScoredResponses, beta: float) -> Tensor:
    """Reward beta h of every response."""
    assert responses.logps is not None
    return beta * (responses.logps.detach() - responses.reference_logps)


def madpo_weight(gap: Tensor) -> Tensor:
    """Of r = 4 delta, c between 0.25 and 3, steepness 2 and tau 1."""
    factor = 0.25 + 2.75 / (1 + 2 / 0.75 * torch.exp(2 * (4 * gap - 1)))
    return torch.sigmoid(factor * 4 * gap) / torch.sigmoid(4 * gap)


# The slope of a pair's loss in u = beta (h_w - h_l), from the papers' losses.
SLOPES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "odpo": (
        {"method": "odpo", "alpha": 0.5, "reward_scale": 3.0},
        lambda u, gap: torch.sigmoid(u - 0.5 * torch.log(3 * gap)) - 1,
    ),
    "odpo_linear": (
        {"method": "odpo", "alpha": 0.5, "scaling": "linear", "reward_scale": 3.0},
        lambda u, gap: torch.sigmoid(u - 1.5 * gap) - 1,
    ),
    "rpo": (
        {"method": "rpo", "reward_scale": 3.0},
        lambda u, gap: torch.sigmoid(u) - torch.sigmoid(3 * gap),
    ),
    "rpo_forward": (
        {"method": "rpo", "reward_scale": 3.0, "distance": "forward_kl"},
        lambda u, gap: torch.sigmoid(u) * torch.sigmoid(-u) * (u - 3 * gap),
    ),
    "rpo_squared": (
        {"method": "rpo", "reward_scale": 3.0, "distance": "squared"},
        lambda u, gap: 2 * (u - 3 * gap),
    ),
    "distilled_dpo": (
        {"method": "distilled_dpo", "reward_scale": 3.0},
        lambda u, gap: 2 * (u - 3 * gap),
    ),
    "mmpo": (
        {"method": "mmpo", "reward_scale": 3.0},
        lambda u, gap: torch.sigmoid(u) - torch.sigmoid(3 * gap),
    ),
    "mmpo_linear": (
        {"method": "mmpo", "label": "linear"},
        lambda u, gap: torch.sigmoid(u) - (1 + gap) / 2,
    ),
    "scaled_dpo": (
        {"method": "scaled_dpo", "reward_scale": 3.0},
        lambda u, gap: 3 * gap * (torch.sigmoid(u) - 1),
    ),
    "madpo": (
        {"method": "madpo", "reward_scale": 4.0, "c_max": 3.0, "c_min": 0.25, "steepness": 2.0, "tau": 1.0},
        lambda u, gap: madpo_weight(gap) * (torch.sigmoid(u) - 1),
    ),
}


@pytest.mark.parametrize("name", SLOPES)
def test_gradient_formula_of_pairs(name: str) -> None:
    """Over random pairs the gradient is beta slope(u, delta) (grad l_w - grad l_l), to 1e-10."""
    settings, slope_of = SLOPES[name]
    responses = batch()
    assert responses.prior_gap is not None
    _, _, gradient = run({**settings, "beta": 0.3}, responses)
    reward = implicit(responses, 0.3)
    slopes = slope_of(reward[responses.chosen] - reward[responses.rejected], responses.prior_gap)
    expected = torch.zeros_like(reward).index_add(0, responses.chosen, 0.3 * slopes / len(slopes))
    expected = expected.index_add(0, responses.rejected, -0.3 * slopes / len(slopes))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


def infonca(score: Tensor, reward: Tensor, _: Tensor) -> Tensor:
    """Of one prompt: cross-entropy of softmax(2 r) and softmax(beta h)."""
    return -(torch.softmax(2 * reward, 0) * torch.log_softmax(score, 0)).sum()


def reward_nca(score: Tensor, reward: Tensor, _: Tensor) -> Tensor:
    """Of one prompt."""
    return -(torch.softmax(2 * reward, 0) * logsigmoid(score)).sum() - logsigmoid(-score).mean()


def plackett_luce(score: Tensor, reward: Tensor, _: Tensor) -> Tensor:
    """Of one prompt: each response against itself and all that are no better."""
    places = range(len(score))
    return torch.stack(
        [torch.logsumexp(score[reward <= reward[place]], 0) - score[place] for place in places]
    ).sum()


def ddo_rm(_: Tensor, reward: Tensor, mean_logps: Tensor) -> Tensor:
    """Of one prompt, for eta 1.5 and temperature 0.7, with the mean reward under p taken off."""
    p = torch.softmax(mean_logps.detach() / 0.7, 0)
    centred = reward - (p * reward).sum()
    q = torch.softmax((mean_logps.detach() + 1.5 * centred) / 0.7, 0)
    return -(q * torch.log_softmax(mean_logps / 0.7, 0)).sum()


def qrpo(score: Tensor, reward: Tensor, _: Tensor) -> Tensor:
    """Of one prompt, summed over its responses, for beta 0.3."""
    quantile = (reward[None] <= reward[:, None]).double().mean(dim=1)
    log_z = math.log(0.3 * (math.exp(1 / 0.3) - 1))
    return ((quantile - 0.3 * log_z - score) ** 2).sum()


OF_A_PROMPT: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor, Tensor], Tensor], int]] = {
    "infonca": ({"beta": 0.3, "reward_scale": 2.0}, infonca, len(SIZES)),
    "reward_nca": ({"beta": 0.3, "reward_scale": 2.0}, reward_nca, len(SIZES)),
    "plackett_luce": ({"beta": 0.3}, plackett_luce, len(SIZES)),
    "ddo_rm": ({"eta": 1.5, "temperature": 0.7}, ddo_rm, len(SIZES)),
    "qrpo": ({"beta": 0.3}, qrpo, sum(SIZES)),
}


@pytest.mark.parametrize("method", OF_A_PROMPT)
def test_loss_and_gradient_of_groups(method: str) -> None:
    """Loss and gradient are the papers', prompt by prompt, to 1e-10: the mean over prompts, or responses."""
    options, of_prompt, items = OF_A_PROMPT[method]
    responses = batch()
    assert responses.prior_reward is not None
    assert responses.logps is not None
    _, loss, gradient = run({"method": method, **options}, responses)
    score = 0.3 * (responses.logps - responses.reference_logps)
    ends = torch.tensor((0, *SIZES)).cumsum(0).tolist()
    expected = (
        torch.stack(
            [
                of_prompt(score[start:stop], responses.prior_reward[start:stop].double(), mean[start:stop])
                for mean in [responses.logps / responses.lengths]
                for start, stop in pairwise(ends)
            ]
        ).sum()
        / items
    )
    (slope,) = torch.autograd.grad(expected, responses.logps)
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", OF_A_PROMPT)
def test_where_a_response_stands_does_not_matter(method: str) -> None:
    """Responses of different prompts may be mixed: `groups` says whose they are."""
    options, *_ = OF_A_PROMPT[method]
    ordered = batch()
    assert ordered.logps is not None
    assert ordered.reference_logps is not None
    assert ordered.prior_reward is not None
    assert ordered.groups is not None
    mixed = torch.randperm(len(ordered.lengths), generator=torch.Generator().manual_seed(1))
    nothing = torch.tensor([], dtype=torch.int64)
    shuffled = ScoredResponses(
        logps=ordered.logps.detach()[mixed].requires_grad_(),
        lengths=ordered.lengths[mixed],
        chosen=nothing,
        rejected=nothing,
        reference_logps=ordered.reference_logps[mixed],
        prior_reward=ordered.prior_reward[mixed],
        groups=ordered.groups[mixed],
    )
    _, before, slope = run({"method": method, **options}, ordered)
    _, after, moved = run({"method": method, **options}, shuffled)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved, slope[mixed], rtol=1e-12, atol=1e-15)


REDUCTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], float | None]] = {
    "no offset": ({"method": "odpo", "alpha": 0.0}, {"method": "dpo"}, None),
    "offset of a gap of 1": ({"method": "odpo"}, {"method": "dpo"}, 1.0),
    "weight of a gap of 1": ({"method": "scaled_dpo"}, {"method": "dpo"}, 1.0),
    "factor of 1": ({"method": "madpo", "c_max": 1.0}, {"method": "dpo"}, None),
    "margin of 0": ({"method": "madpo"}, {"method": "dpo"}, 0.0),
    "margin of tau": ({"method": "madpo", "reward_scale": 2.0}, {"method": "dpo"}, 1.0),
    "label of a gap of 1": ({"method": "mmpo", "label": "linear"}, {"method": "dpo"}, 1.0),
    "squared distance": ({"method": "rpo", "distance": "squared"}, {"method": "distilled_dpo"}, None),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_a_method_becomes(name: str) -> None:
    """At such an option or gap, loss, gradient and metrics are the other method's, bit for bit."""
    settings, other, gap = REDUCTIONS[name]
    responses = batch()
    assert responses.prior_gap is not None
    if gap is not None:
        responses = replace(responses, prior_gap=torch.full_like(responses.prior_gap, gap))
    first, loss, gradient = run({**settings, "beta": 0.3}, responses)
    second, other_loss, other_gradient = run({**other, "beta": 0.3}, responses)
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    for metric, values in second.metrics.items():
        assert torch.equal(values, first.metrics[metric]), metric


@pytest.mark.parametrize("method", ["plackett_luce", "infonca"])
def test_two_ranked_responses_are_dpo(method: str) -> None:
    """On pairs whose better response takes the whole target, both losses over groups are DPO's, to 1e-12."""
    pairs = batch(sizes=(2, 2, 2))
    pairs = replace(
        pairs, chosen=torch.tensor([0, 2, 4]), rejected=torch.tensor([1, 3, 5]), prior_gap=torch.ones(3)
    )
    pairs = replace(pairs, prior_reward=torch.tensor([1.0, 0.0]).repeat(3))
    scale = {"reward_scale": 1e3} if method == "infonca" else {}
    _, loss, gradient = run({"method": method, "beta": 0.3, **scale}, pairs)
    _, expected, slope = run({"method": "dpo", "beta": 0.3}, pairs)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-12)


def test_soft_labels_have_the_gradient_of_the_backward_divergence() -> None:
    """Losses of mmpo and rpo's backward KL differ by the entropy of the label, which has no gradient."""
    responses = batch()
    _, soft, slope = run({"method": "mmpo", "reward_scale": 3.0}, responses)
    _, divergence, other = run({"method": "rpo", "reward_scale": 3.0}, responses)
    torch.testing.assert_close(slope, other, rtol=0, atol=1e-12)
    label = torch.sigmoid(3 * responses.prior_gap)
    entropy = -(label * label.log() + (1 - label) * (1 - label).log()).mean()
    torch.testing.assert_close(soft - divergence, entropy, rtol=1e-12, atol=0)


def test_hypo_is_dpo_unless_the_reference_is_wrong() -> None:
    """Bit for bit where the reference prefers the chosen response; elsewhere u = beta (l_w - l_l).

    l is -4 and -6: with rho of -5 and -7, u is that of dpo, 0; with -7 and -5 dpo has 0.5 * 4 = 2, hypo 1.
    """
    pair = ScoredResponses(
        logps=torch.tensor([-4.0, -6.0], dtype=torch.float64, requires_grad=True),
        lengths=torch.tensor([2, 3]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        reference_logps=torch.tensor([-5.0, -7.0], dtype=torch.float64),
    )
    hypo, dpo = ({"method": method, "beta": 0.5} for method in ("hypo", "dpo"))
    found, loss, gradient = run(hypo, pair)
    _, expected, slope = run(dpo, pair)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, slope)
    assert found.metrics["reference/clipped"].tolist() == [0.0]
    wrong = replace(pair, reference_logps=torch.tensor([-7.0, -5.0], dtype=torch.float64))
    found, loss, gradient = run(hypo, wrong)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)
    assert gradient.tolist() == pytest.approx([-0.5 / (1 + math.e), 0.5 / (1 + math.e)], abs=1e-12)
    assert found.metrics["reference/clipped"].tolist() == [1.0]
    assert found.metrics["rewards/margins"].tolist() == [2.0]


def test_a_gap_of_nothing_costs_next_to_nothing() -> None:
    """The logarithm of odpo stops at a gap of 1e-6: loss and gradient are finite, and as good as 0."""
    responses = batch()
    assert responses.prior_gap is not None
    losses, loss, gradient = run({"method": "odpo"}, replace(responses, prior_gap=0 * responses.prior_gap))
    assert 0 < loss < 1e-4
    assert gradient.abs().max() < 1e-5
    assert losses.metrics["loss/preference"].isfinite().all()


def test_equal_rewards_have_no_rank() -> None:
    """Of three equal responses with h = 0 each has log 3; ranked, they have log 3, log 2 and 0."""
    three = batch(sizes=(3,))
    three = replace(three, logps=three.reference_logps, prior_reward=torch.full((3,), 0.5))
    objective = build({"method": "plackett_luce", "beta": 1.0})
    values = objective(three).terms["preference"].values
    assert values.tolist() == pytest.approx([math.log(3)] * 3, abs=1e-12)
    ranked = objective(replace(three, prior_reward=torch.tensor([0.25, 1.0, 0.5])))
    expected = [0, math.log(3), math.log(2)]
    assert ranked.terms["preference"].values.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", ["infonca", "plackett_luce", "ddo_rm"])
def test_a_response_without_rivals_teaches_nothing(method: str) -> None:
    """A prompt of one response has loss and gradient 0, not NaN."""
    _, loss, gradient = run({"method": method}, batch(sizes=(1, 1)))
    assert loss == 0
    assert gradient.tolist() == [0.0, 0.0]


def test_qrpo_is_the_authors_at_their_beta() -> None:
    """At beta 0.003 log Z is log(0.003) + 1 / 0.003, as their code has it."""
    one = replace(batch(sizes=(1,)), reference_logps=torch.tensor([-10.0], dtype=torch.float64))
    one = replace(one, logps=torch.tensor([-8.0], dtype=torch.float64, requires_grad=True))
    _, loss, _ = run({"method": "qrpo"}, one)
    residual = 1 - 0.003 * (math.log(0.003) + 1 / 0.003) - 0.003 * 2
    assert loss.item() == pytest.approx(residual**2, abs=1e-14)


def test_prompts_are_counted() -> None:
    """Four prompts, and an error that names the unit where nobody counted them."""
    responses = batch()
    counts = count_units(responses.lengths, responses.chosen, responses.groups)
    assert counts["prompts"] == 4
    losses = build({"method": "infonca"})(responses)
    with pytest.raises(ValueError, match="counts has no prompts"):
        losses.total(count_units(responses.lengths, responses.chosen))


@pytest.mark.parametrize(("method", "extra"), [("infonca", set()), ("qrpo", {"prior/quantile"})])
def test_metrics_of_groups(method: str, extra: set[str]) -> None:
    """Rewards by pair, the loss and r by response."""
    losses = build({"method": method})(batch())
    by_pair = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    by_pair |= {"logps/chosen", "logps/rejected", "displacement/chosen", "displacement/both"}
    by_response = {"loss/preference", "prior/reward"} | extra
    assert losses.metrics.keys() == by_pair | by_response
    assert {len(losses.metrics[name]) for name in by_response} == {sum(SIZES)}
    assert {len(losses.metrics[name]) for name in by_pair} == {sum(SIZES) - len(SIZES)}
