"""The methods HPO is compared with: values, the papers' gradients, and what their optimum is."""

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
    ClippedSurrogate,
    LeftoverLikelihood,
    Losses,
    Objective,
    RewardMargin,
    RewardRegression,
    ScoredResponses,
    SoftValueRegression,
    Standardization,
    ValueRegression,
    build,
    count_units,
    importance_ratio,
)

NO_PAIRS = torch.tensor([], dtype=torch.int64)
STANDARDIZATION = Standardization(mean=1.0, scale=0.5)
LEARN_AUXILIARY = [name for name, method in METHODS.items() if method.learns_auxiliary]
WITH_VALUE = [name for name in LEARN_AUXILIARY if "value" in build({"method": name}).needs]


def responses_with(ratios: list[float], advantages: list[float]) -> ScoredResponses:
    """Single responses of log-probability -4 with log-ratios h; R is A + 0.25, and V 0.25."""
    logps = torch.full((len(ratios),), -4.0, dtype=torch.float64)
    return ScoredResponses(
        logps=logps.clone().requires_grad_(),
        lengths=torch.full((len(ratios),), 3),
        chosen=NO_PAIRS,
        rejected=NO_PAIRS,
        reference_logps=logps - torch.tensor(ratios, dtype=torch.float64),
        auxiliary=torch.tensor(advantages, dtype=torch.float64) + 0.25,
        values=torch.full((len(ratios),), 0.25, dtype=torch.float64, requires_grad=True),
    )


def random_responses(pairs: int, seed: int = 0) -> ScoredResponses:
    """Pairs (i, i + pairs) with log-ratios, rewards and values of about 1 in size."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(2 * pairs, generator=generator, dtype=torch.float64)

    logps = -10 - normal()
    return ScoredResponses(
        logps=logps.requires_grad_(),
        lengths=torch.randint(1, 20, (2 * pairs,), generator=generator),
        chosen=torch.arange(pairs),
        rejected=torch.arange(pairs) + pairs,
        reference_logps=logps.detach() - normal(),
        auxiliary=1 + normal(),
        values=normal().requires_grad_(),
    )


def gradient_of(values: Tensor, leaf: Tensor | None) -> Tensor:
    """The gradient of a term's sum."""
    assert leaf is not None
    (found,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
    return found


def reaches(values: Tensor, leaf: Tensor | None) -> bool:
    """Whether a leaf is any part of a term's graph."""
    assert leaf is not None
    (found,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True, retain_graph=True)
    return found is not None


def advantage_and_ratio(responses: ScoredResponses) -> tuple[Tensor, Tensor]:
    """A = (R - 1) / 0.5 - V and h, without gradient."""
    assert responses.auxiliary is not None
    assert responses.values is not None
    assert responses.reference_logps is not None
    advantage = (responses.auxiliary - 1) / 0.5 - responses.values.detach()
    return advantage, responses.logps.detach() - responses.reference_logps


# Log-ratio and advantage of a response, its loss at clip 0.5, its gradient, and whether it is held.
CLIPPED_BY_HAND = {
    "better and far likelier": (math.log(2), 1.0, -1.5, 0.0, 1.0),
    "better and little likelier": (math.log(1.25), 1.0, -1.25, -1.25, 0.0),
    "better and less likely": (math.log(0.25), 2.0, -0.5, -0.5, 0.0),
    "worse and far less likely": (math.log(0.25), -1.0, 0.5, 0.0, 1.0),
    "worse and little less likely": (math.log(0.75), -1.0, 0.75, 0.75, 0.0),
    "worse and far likelier": (math.log(4), -0.5, 2.0, 2.0, 0.0),
    "as likely as at the start": (0.0, -3.0, 3.0, 3.0, 0.0),
}


@pytest.mark.parametrize("name", CLIPPED_BY_HAND)
def test_offline_ppo_by_hand(name: str) -> None:
    """-min(q A, clip(q, 0.5, 1.5) A): held where q has gone the right way too far, free everywhere else.

    q is 2, 1.25, 0.25, 0.25, 0.75, 4 and 1; where the response is free, loss and slope are -q A.
    """
    ratio, advantage, loss, gradient, held = CLIPPED_BY_HAND[name]
    responses = responses_with([ratio], [advantage])
    term, metrics = ClippedSurrogate(0.5, Standardization())(responses)
    assert term.values.tolist() == pytest.approx([loss], rel=1e-12)
    assert gradient_of(term.values, responses.logps).tolist() == pytest.approx([gradient], rel=1e-12)
    assert metrics["policy/ratio"].tolist() == pytest.approx([math.exp(ratio)], rel=1e-12)
    assert metrics["policy/clipped"].tolist() == [held]


# Log-ratio and advantage of a response of -4 nats, and its factor at clip 0.9, with and without reference.
LEFTOVER_BY_HAND = {
    "likelier": (math.log(1.5), 2.0, 3.0, 2.0),
    "far likelier": (math.log(4), 2.0, 3.8, 2.0),
    "far less likely": (math.log(0.01), 2.0, 0.2, 2.0),
    "no better": (math.log(1.5), 0.0, 0.0, 0.0),
    "worse": (math.log(1.5), -2.0, 0.0, 0.0),
}


@pytest.mark.parametrize("name", LEFTOVER_BY_HAND)
def test_alol_by_hand(name: str) -> None:
    """4 nats times clip(q, 0.1, 1.9) A, or times A without the reference; nothing where A is not positive.

    q = 1.5, 4 and 0.01 are weights of 1.5, 1.9 and 0.1, which have no gradient of their own.
    """
    ratio, advantage, factor, free_factor = LEFTOVER_BY_HAND[name]
    responses = responses_with([ratio], [advantage])
    for reference_free, expected in ((False, factor), (True, free_factor)):
        term, metrics = LeftoverLikelihood(0.9, reference_free, Standardization())(responses)
        assert term.values.tolist() == pytest.approx([4 * expected], rel=1e-12)
        gradient = gradient_of(term.values, responses.logps)
        assert gradient.tolist() == pytest.approx([-expected], rel=1e-12)
        assert metrics["policy/kept"].tolist() == [advantage > 0]


def test_alol_without_reference_is_its_mean_over_all_responses() -> None:
    """A = 2 and -1 on 4 nats each make (2 * 4 + 0) / 2 = 4: what is left out counts in the mean."""
    responses = replace(responses_with([0.0, 0.0], [2.0, -1.0]), reference_logps=None)
    losses = Objective((LeftoverLikelihood(0.9, True, Standardization()),))(responses)
    assert losses.total(count_units(responses.lengths, responses.chosen)).item() == pytest.approx(4.0)


def test_dro_v_by_hand() -> None:
    """With tau 2, A = 1 and h = -1 the residual is 3: 9/4 for the policy and 9/2 for V, slopes -3 both.

    With A = -1 and h = 0.5 it is -2: 4/4, 4/2 and slopes 2.
    """
    responses = responses_with([-1.0, 0.5], [1.0, -1.0])
    policy, _ = RewardRegression(2.0, Standardization())(responses)
    value, metrics = SoftValueRegression(0.5, 2.0, Standardization())(responses)
    assert policy.values.tolist() == pytest.approx([2.25, 1.0])
    assert value.values.tolist() == pytest.approx([4.5, 2.0])
    assert value.weight == 0.5
    for values, leaf in ((policy.values, responses.logps), (value.values, responses.values)):
        gradient = gradient_of(values, leaf)
        assert gradient.tolist() == pytest.approx([-3.0, 2.0])
    assert metrics["loss/value"].tolist() == pytest.approx([4.5, 2.0])
    assert metrics["auxiliary/advantage"].tolist() == pytest.approx([1.0, -1.0])
    assert metrics["auxiliary/squared_error"].tolist() == pytest.approx([1.0, 1.0])


def test_policy_gradients_are_the_papers() -> None:
    """Over random responses d loss / d log pi is each paper's factor of grad log pi, to 1e-12.

    PPO Eq. 7: -q A, or 0 where clipping holds; A-LoL: -clip(q) A where A > 0; DRO-V Eq. 8 over tau:
    -(A - tau h), and Eq. 7 for V: V - R + tau h, in standard units.
    """
    responses = random_responses(50)
    advantage, ratio = advantage_and_ratio(responses)
    q = ratio.exp()
    held = ((advantage > 0) & (q > 1.5)) | ((advantage < 0) & (q < 0.5))
    kept = advantage > 0
    assert 0 < held.sum() < 100
    assert 0 < kept.sum() < 100
    expected = {
        "offline_ppo": torch.where(held, 0.0, -q * advantage),
        "alol": torch.where(kept, -q.clamp(0.1, 1.9) * advantage, 0.0),
        "dro_v": -(advantage - 1.0 * ratio),
    }
    assert list(expected) == WITH_VALUE
    for method, slope in expected.items():
        losses = build({"method": method}, STANDARDIZATION)(responses)
        found = gradient_of(losses.terms["policy"].values, responses.logps)
        torch.testing.assert_close(found, slope, rtol=0, atol=1e-12, msg=method)
    losses = build({"method": "dro_v", "tau": 0.5}, STANDARDIZATION)(responses)
    found = gradient_of(losses.terms["value"].values, responses.values)
    torch.testing.assert_close(found, 0.5 * ratio - advantage, rtol=0, atol=1e-12)


def test_dro_v_has_its_optimum_where_the_paper_has_it() -> None:
    """At pi* = pi_ref exp(R / tau) / Z and V* = tau log Z no residual is left (Theorem 1): loss 0.

    The prompt has three responses, of 0.5, 0.3 and 0.2 under the reference.
    """
    tau = 0.7
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    normaliser = (reference * (rewards / tau).exp()).sum()
    responses = replace(
        responses_with([0.0] * 3, [0.0] * 3),
        logps=(reference.log() + rewards / tau - normaliser.log()).requires_grad_(),
        reference_logps=reference.log(),
        auxiliary=rewards,
        values=(tau * normaliser.log()).expand(3),
    )
    assert responses.logps.exp().sum().item() == pytest.approx(1.0)
    losses = build({"method": "dro_v", "tau": tau})(responses)
    for term in losses.terms.values():
        assert term.values.tolist() == pytest.approx([0.0] * 3, abs=1e-20)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_modpo_is_the_papers(weight: float) -> None:
    """Loss and gradient are those of Eq. 11, written out with its weights w and 1 - w, to 1e-12."""
    responses = random_responses(20)
    losses = build({"method": "modpo", "preference_weight": weight, "beta": 0.3}, STANDARDIZATION)(responses)
    _, ratio = advantage_and_ratio(responses)
    assert responses.auxiliary is not None
    reward = (responses.auxiliary - 1) / 0.5
    implicit = (0.3 * ratio - (1 - weight) * reward) / weight
    margin = implicit[:20] - implicit[20:]
    expected = torch.log1p((-margin).exp())
    torch.testing.assert_close(losses.terms["preference"].values, expected, rtol=1e-12, atol=1e-12)
    slope = -0.3 / weight * (1 - margin.sigmoid())
    gradient = gradient_of(losses.terms["preference"].values, responses.logps)
    torch.testing.assert_close(gradient, torch.cat([slope, -slope]), rtol=0, atol=1e-12)


def test_modpo_of_the_preference_alone_is_dpo() -> None:
    """With w = 1 terms, gradient and shared metrics are dpo's bit for bit; R is reported all the same."""
    responses = random_responses(20)
    modpo = build({"method": "modpo", "preference_weight": 1, "beta": 0.3}, STANDARDIZATION)(responses)
    dpo = build({"method": "dpo", "beta": 0.3})(responses)
    assert torch.equal(modpo.terms["preference"].values, dpo.terms["preference"].values)
    ours = gradient_of(modpo.terms["preference"].values, responses.logps)
    theirs = gradient_of(dpo.terms["preference"].values, responses.logps)
    assert torch.equal(ours, theirs)
    assert set(modpo.metrics) == {*dpo.metrics, "auxiliary/reward"}
    for name, values in dpo.metrics.items():
        assert torch.equal(modpo.metrics[name], values), name


def test_build_hands_on_every_option() -> None:
    """Objectives from words are the ones composed by hand, standardisation included."""
    s = STANDARDIZATION
    composed: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
        "offline_ppo": (
            {"clip": 0.1, "value_weight": 2.0},
            (ClippedSurrogate(0.1, s), ValueRegression(2.0, 0.5, s)),
        ),
        "alol": (
            {"value_weight": 2.0, "reference_free": True},
            (LeftoverLikelihood(0.9, True, s), ValueRegression(2.0, 0.5, s)),
        ),
        "dro_v": (
            {"tau": 3.0, "value_weight": 2.0},
            (RewardRegression(3.0, s), SoftValueRegression(2.0, 3.0, s)),
        ),
        "modpo": ({"beta": 0.7, "preference_weight": 0.2}, (RewardMargin(0.7, 0.2, s),)),
    }
    assert list(composed) == LEARN_AUXILIARY
    for method, (options, parts) in composed.items():
        assert build({"method": method, **options}, s) == Objective(parts)


def test_alol_without_reference_needs_none() -> None:
    """Without the reference's log-probabilities the objective asks for rewards and value alone."""
    assert build({"method": "alol", "reference_free": True}).needs == {"auxiliary", "value"}


@pytest.mark.parametrize("method", WITH_VALUE)
def test_no_gradient_crosses_over(method: str) -> None:
    """The policy's term leaves V, and the value's the log-probabilities, out of its graph altogether."""
    responses = random_responses(4)
    losses = build({"method": method})(responses)
    assert not reaches(losses.terms["policy"].values, responses.values)
    assert not reaches(losses.terms["value"].values, responses.logps)


@pytest.mark.parametrize("method", LEARN_AUXILIARY)
def test_the_rewards_scale_changes_no_loss(method: str) -> None:
    """R in other units with its own mean and scale has the same losses; R and V are reported in them."""
    responses = random_responses(6)
    assert responses.auxiliary is not None
    first = build({"method": method}, STANDARDIZATION)(responses)
    moved = replace(responses, auxiliary=20 + 8 * responses.auxiliary)
    second = build({"method": method}, Standardization(28.0, 4.0))(moved)
    for name, term in first.terms.items():
        torch.testing.assert_close(second.terms[name].values, term.values, rtol=1e-10, atol=1e-10)
    for name in {"auxiliary/reward", "auxiliary/value"} & first.metrics.keys():
        torch.testing.assert_close(
            second.metrics[name], 20 + 8 * first.metrics[name], rtol=1e-5, atol=1e-5, msg=name
        )


IMPLICIT = {"offline_ppo": 1.0, "alol": 1.0, "dro_v": 1.0, "modpo": 0.1}
"""What h is multiplied by in the implicit rewards, at the defaults."""


@pytest.mark.parametrize("method", LEARN_AUXILIARY)
def test_pairs_are_reported_where_there_are(method: str) -> None:
    """Implicit rewards of pairs are h, times tau with dro_v and beta with modpo; none without pairs."""
    responses = random_responses(6)
    _, ratio = advantage_and_ratio(responses)
    reward = (IMPLICIT[method] * ratio).float()
    metrics = build({"method": method})(responses).metrics
    torch.testing.assert_close(metrics["rewards/chosen"], reward[:6])
    torch.testing.assert_close(metrics["rewards/rejected"], reward[6:])
    torch.testing.assert_close(metrics["rewards/margins"], reward[:6] - reward[6:])
    assert metrics["rewards/accuracies"].tolist() == (reward[:6] > reward[6:]).float().tolist()
    alone = build({"method": method})(replace(responses, chosen=NO_PAIRS, rejected=NO_PAIRS)).metrics
    assert all(len(values) == 0 for name, values in alone.items() if name.startswith("rewards/"))
    assert all(len(values) == 12 for name, values in alone.items() if name.startswith(("policy/", "aux")))


def test_the_ratio_is_held_and_its_gradient_is_not() -> None:
    """Beyond exp(30) the ratio stays there, and a bad response still has exp(30) |A| to be unlearned by."""
    responses = responses_with([29.0, 31.0, 1e4], [-2.0, -2.0, -2.0])
    assert importance_ratio(responses).tolist() == pytest.approx([math.exp(29), *[math.exp(30)] * 2])
    term, _ = ClippedSurrogate(0.5, Standardization())(responses)
    gradient = gradient_of(term.values, responses.logps)
    assert gradient.tolist() == pytest.approx([2 * math.exp(29), *[2 * math.exp(30)] * 2])


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


@pytest.mark.parametrize("method", LEARN_AUXILIARY)
def test_micro_batches_add_up(method: str) -> None:
    """Over the whole batch's counts, micro-batches add up to its total; one of them has no pair."""
    pairs = {"chosen": torch.tensor([0, 1, 3]), "rejected": torch.tensor([4, 5, 7])}
    whole = replace(random_responses(4), **pairs)
    objective = build({"method": method}, STANDARDIZATION)
    counts = count_units(whole.lengths, whole.chosen)
    parts = [take(whole, [0, 4], 1), take(whole, [2, 6], 0), take(whole, [1, 5, 3, 7], 2)]
    total = torch.stack([objective(part).total(counts) for part in parts]).sum()
    torch.testing.assert_close(total, objective(whole).total(counts), rtol=1e-12, atol=0)


NUMBERS = st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=2, max_size=2)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    logps=st.lists(st.floats(-1e4, 0, width=32), min_size=2, max_size=2),
    reference=st.lists(st.floats(-1e4, 0, width=32), min_size=2, max_size=2),
    rewards=NUMBERS,
    values=NUMBERS,
    method=st.sampled_from(LEARN_AUXILIARY),
)
def test_finite_at_extremes(
    logps: list[float], reference: list[float], rewards: list[float], values: list[float], method: str
) -> None:
    """In float32 losses, gradients and metrics stay finite for log-ratios of 1e4 and advantages of 2e6."""
    responses = ScoredResponses(
        logps=torch.tensor(logps, requires_grad=True),
        lengths=torch.tensor([2, 3]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        reference_logps=torch.tensor(reference),
        auxiliary=torch.tensor(rewards),
        values=torch.tensor(values, requires_grad=True),
    )
    losses: Losses = build({"method": method})(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen))
    assert responses.values is not None
    leaves = [responses.logps, responses.values]
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
    assert total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(metric.isfinite().all() for metric in losses.metrics.values())


@hypothesis_settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    row=st.integers(0, 7),
    step=st.floats(-20, 20),
    method=st.sampled_from(WITH_VALUE),
)
def test_responses_do_not_touch_each_other(seed: int, row: int, step: float, method: str) -> None:
    """Changing one response's reward, value and log-probability leaves all others, bit for bit."""
    before = replace(random_responses(4, seed), chosen=NO_PAIRS, rejected=NO_PAIRS)
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
    first, second = build({"method": method})(before), build({"method": method})(after)
    for name, leaf in (("policy", "logps"), ("value", "values")):
        old, new = first.terms[name].values, second.terms[name].values
        assert torch.equal(old[others], new[others]), name
        old_gradient = gradient_of(old, getattr(before, leaf))
        new_gradient = gradient_of(new, getattr(after, leaf))
        assert torch.equal(old_gradient[others], new_gradient[others]), name
    for metric, values in first.metrics.items():
        if len(values) == 8:
            assert torch.equal(values[others], second.metrics[metric][others]), metric


@pytest.mark.parametrize("method", LEARN_AUXILIARY)
@pytest.mark.parametrize("field", ["reference_logps", "auxiliary", "values"])
def test_missing_input_is_named(method: str, field: str) -> None:
    """Responses without reference, rewards or value are refused by name; modpo does without the value."""
    responses = replace(random_responses(2), **{field: None})
    if (method, field) == ("modpo", "values"):
        assert build({"method": method})(responses).terms["preference"].values.isfinite().all()
        return
    with pytest.raises(ValueError, match=f"^{field} is None"):
        build({"method": method})(responses)
