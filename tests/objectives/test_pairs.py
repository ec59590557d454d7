"""What goes with any method of pairs: weights, likelihood of the chosen response, several losses mixed."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from preftune.objectives import (
    METHODS,
    Losses,
    ScoredResponses,
    build,
    count_units,
    methods_of,
    resolve,
)

from .spread_tokens import with_tokens
from .test_methods import TAKE_THE_PRIOR, VARIANTS, one_pair, random_pairs, run, sigma, take_pairs, with_prior

OF_PAIRS = sorted(name for name, method in METHODS.items() if method.learns_from("pairs"))

# --- weights ---


def two_pairs(weights: list[float] | None) -> ScoredResponses:
    """h_w - h_l is 3 in the first pair and -1 in the second; the chosen have 4 nats on 2 tokens, 6 on 3."""
    return ScoredResponses(
        logps=torch.tensor([-4.0, -6.0, -6.0, -5.0], dtype=torch.float64, requires_grad=True),
        lengths=torch.tensor([2, 4, 3, 5]),
        chosen=torch.tensor([0, 2]),
        rejected=torch.tensor([1, 3]),
        reference_logps=torch.tensor([-5.0, -4.0, -6.0, -6.0], dtype=torch.float64),
        weights=None if weights is None else torch.tensor(weights),
    )


def test_a_pairs_weight_multiplies_all_of_its_losses() -> None:
    """Weights 3 and 0.5 multiply the pair's preference loss and likelihood; both means stay over all pairs.

    dpo, beta 1: u = 3 and -1, so (3 log(1 + e^-3) + 0.5 log(1 + e)) / 2. Likelihood of weight 0.5 per token:
    0.5 * (3 * 4 + 0.5 * 6) / 5 tokens = 1.5. Gradient of l_w: 3 * (-sigma(-3) / 2 - 0.5 / 5), and so on.
    """
    settings = {"method": "dpo", "beta": 1.0, "likelihood_weight": 0.5}
    losses, total, gradient = run(settings, two_pairs([3.0, 0.5]))
    first, second = math.log1p(math.exp(-3)), math.log1p(math.exp(1))
    assert total.item() == pytest.approx((3 * first + 0.5 * second) / 2 + 1.5, abs=1e-12)
    slopes = [3 * sigma(-3) / 2, 0.5 * sigma(1) / 2]
    expected = [-slopes[0] - 0.3, slopes[0], -slopes[1] - 0.05, slopes[1]]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-12)
    assert losses.metrics["loss/preference"].tolist() == pytest.approx([3 * first, 0.5 * second])
    assert losses.metrics["loss/chosen_likelihood"].tolist() == pytest.approx([3 * 2, 0.5 * 2])
    assert losses.metrics["rewards/margins"].tolist() == [3.0, -1.0]


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_of_one_change_nothing(name: str) -> None:
    """With all weights 1, loss, gradient and metrics are those without weights, bit for bit."""
    responses = random_pairs(16)
    plain, loss, gradient = run(with_prior(name), responses)
    weighted, weighted_loss, weighted_gradient = run(
        with_prior(name), replace(responses, weights=torch.ones(16))
    )
    assert torch.equal(loss, weighted_loss)
    assert torch.equal(gradient, weighted_gradient)
    assert plain.metrics.keys() == weighted.metrics.keys()
    for metric, values in plain.metrics.items():
        assert torch.equal(values, weighted.metrics[metric]), metric


@given(
    weights=st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3),
    seed=st.integers(0, 100),
    method=st.sampled_from(OF_PAIRS),
)
def test_a_weight_is_a_factor_of_the_pairs_gradient(weights: list[float], seed: int, method: str) -> None:
    """For any method of pairs, each pair's loss and gradient are its weight times the plain ones."""
    responses = random_pairs(3, seed, torch.float64)
    factors = torch.tensor(weights)
    objective = build({"method": method})
    (plain, *_), (weighted, *_) = (
        [term.values for term in objective(each).terms.values()]
        for each in map(with_tokens, (responses, replace(responses, weights=factors)))
    )
    torch.testing.assert_close(weighted, factors.double() * plain, rtol=1e-12, atol=1e-15)
    (slope,) = torch.autograd.grad(plain.sum(), responses.logps, retain_graph=True)
    (found,) = torch.autograd.grad(weighted.sum(), responses.logps)
    torch.testing.assert_close(found, factors.double().repeat(2) * slope, rtol=1e-12, atol=1e-15)


def test_weights_leave_losses_of_single_responses_alone() -> None:
    """Neither kto nor the auxiliary terms beside dpo are of pairs, so a pair's weight is not theirs."""
    responses = random_pairs(4)
    weighted = replace(responses, weights=torch.full((4,), 2.0))
    assert torch.equal(run({"method": "kto"}, responses)[1], run({"method": "kto"}, weighted)[1])
    plain, doubled = (build({"method": "dpo", "auxiliary": {}})(each).terms for each in (responses, weighted))
    assert torch.equal(plain["auxiliary"].values, doubled["auxiliary"].values)
    assert torch.equal(2 * plain["preference"].values, doubled["preference"].values)


# --- likelihood of the chosen response ---


@pytest.mark.parametrize("method", METHODS)
def test_likelihood_goes_with_every_method_of_pairs(method: str) -> None:
    """It adds weight * NLL of the chosen response; a method without pairs or a policy refuses it.

    So does orpo, whose own likelihood has the weight 1.
    """
    settings = {"method": method, "likelihood_weight": 0.5}
    if method not in OF_PAIRS or not METHODS[method].trains_policy or method == "orpo":
        with pytest.raises(ValueError, match=f"likelihood_weight = 0.5 is not an option of {method}"):
            build(settings)
        return
    responses = random_pairs(5, dtype=torch.float64)
    off, plain, _ = run({"method": method, "likelihood_weight": 0}, responses)
    assert torch.equal(plain, run({"method": method, "likelihood_weight": 0.0}, responses)[1])
    assert responses.logps is not None
    nats, tokens = -responses.logps[:5].sum(), responses.lengths[:5].sum()
    for reduction, count in {"token_mean": tokens, "sum": torch.tensor(5)}.items():
        losses, total, _ = run({**settings, "likelihood_reduction": reduction}, responses)
        torch.testing.assert_close(total, (plain + 0.5 * nats / count).detach())
        assert set(losses.metrics) == {*off.metrics, "loss/chosen_likelihood"}


def test_likelihood_of_weight_zero_is_the_plain_method() -> None:
    """Weight 0, null and nothing at all are the same objective, and cpo keeps its own default."""
    plain = build({"method": "dpo"})
    assert build({"method": "dpo", "likelihood_weight": 0}) == plain
    assert build({"method": "dpo", "likelihood_weight": None, "likelihood_reduction": None}) == plain
    assert resolve({"method": "cpo"})["likelihood_weight"] == 0.2
    assert resolve({"method": "cpo", "likelihood_reduction": "sum"})["likelihood_weight"] == 0.2


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"rpo_alpha": 1.0}, ["rpo_alpha = 1.0", "likelihood_weight here"]),
        ({"method": "cpo", "cpo_alpha": 1.0}, ["cpo_alpha", "likelihood_weight here"]),
        ({"loss_type": "sigmoid"}, ["loss_type", "method, or mix for several losses"]),
        ({"loss_weights": [1.0]}, ["loss_weights", "the weight of each method in mix", "dpo: 0.8"]),
        ({"method": "sft"}, ["method = 'sft'", "likelihood_weight, beside a method or a mix"]),
        ({"method": "sigmoid_norm"}, ["method dpo with length_normalized: true"]),
        ({"method": "cdpo"}, ["method dpo with label_smoothing"]),
        ({"likelihood_reduction": "sum"}, ["likelihood_reduction = 'sum'", "set that too, or remove it"]),
        ({"likelihood_weight": -1}, ["likelihood_weight = -1", ">= 0"]),
        ({"label_smoothing": 0.5}, ["label_smoothing = 0.5", ">= 0 and < 0.5", "to use 0.0"]),
        ({"method": "robust", "label_smoothing": -0.1}, ["label_smoothing = -0.1", "to use 0.1"]),
        ({"method": "hinge", "label_smoothing": 0.1}, ["label_smoothing = 0.1", "not an option of hinge"]),
        ({"method": ["dpo", "hinge"]}, ["is a list", "mix: {dpo: 0.8"]),
        ({"mix": ["dpo", "hinge"]}, ["mix = ['dpo', 'hinge']", "must be a mapping", "mix: {dpo: 0.8"]),
        ({"mix": {}}, ["mix = {}", "must be a mapping"]),
        ({"mix": {"dpo": "much"}}, ["mix.dpo = 'much'", "a weight, or a mapping of options"]),
        ({"mix": {"dpo": True}}, ["mix.dpo = True", "a weight"]),
        ({"mix": {"dpo": -1}}, ["mix.dpo.weight = -1", ">= 0"]),
        ({"mix": {"dpo": 0}}, ["no method with a weight > 0"]),
        ({"mix": {"a b": {"method": "dpo"}}}, ["mix.a b", "must be a word"]),
        ({"mix": {"sigmoid": 1}}, ["mix.sigmoid = 'sigmoid'", "did you mean 'dpo'?"]),
        ({"mix": {"dpo": 1, "sft": 1}}, ["mix.sft = 'sft'", "likelihood_weight"]),
        ({"mix": {"mine": {"method": "dpoo"}}}, ["mix.mine.method = 'dpoo'", "did you mean 'dpo'?"]),
        ({"mix": {"dpo": {"bta": 1}}}, ["mix.dpo.bta = 1", "did you mean 'beta'?"]),
        ({"mix": {"dpo": {"beta": 0}}}, ["mix.dpo.beta = 0", "> 0"]),
        ({"mix": {"dpo": {"prior": "none"}}}, ["mix.dpo.prior", "set prior beside mix"]),
        ({"mix": {"dpo": {"likelihood_weight": 1}}}, ["set likelihood_weight beside mix"]),
        ({"mix": {"dpo": {"auxiliary": {}}}}, ["set auxiliary beside mix"]),
        ({"mix": {"dpo": 1}, "method": "dpo"}, ["method = 'dpo' and mix", "remove one"]),
        ({"mix": {"dpo": 1}, "beta": 0.1}, ["beta = 0.1", "not an option of a mix"]),
        ({"mix": {"dpo": 1, "csft": 1}}, ["mix.csft", "cannot be mixed"]),
        ({"mix": {"dpo": 1, "bradley_terry": 1}}, ["mix.bradley_terry", "trains no policy"]),
        ({"mix": {"alol": 1, "dro_v": 1}}, ["alol and dro_v", "learned from once"]),
        ({"mix": {"dpo": 1, "alol": 1}, "auxiliary": {}}, ["auxiliary cannot be added to method 'alol'"]),
        ({"mix": {"kto": 1}, "prior": "reward_gap"}, ["not defined for method 'kto'", "remove prior"]),
        ({"mix": {"kto": 1}, "likelihood_weight": 1}, ["likelihood_weight = 1", "not an option of a mix"]),
    ],
)
def test_what_cannot_be_is_named_with_the_fix(settings: dict[str, Any], fragments: list[str]) -> None:
    """A name of TRL's, a value out of range or a mix that makes no sense: key, value, rule and fix."""
    with pytest.raises(ValueError, match=r".") as caught:
        resolve(settings)
    for fragment in fragments:
        assert fragment in str(caught.value)


# --- several losses ---

MIX: dict[str, Any] = {"mix": {"dpo": {"weight": 0.75, "beta": 0.5}, "hinge": {"weight": 0.5, "beta": 0.1}}}


def test_a_mix_by_hand() -> None:
    """0.75 dpo + 0.5 hinge + 0.5 NLL: 0.75 log(1 + e^-1.5) + 0.5 * 0.7 + 0.5 * 4 / 2 on one pair.

    h_w = 1 and h_l = -2, so u = 1.5 and 1 - 0.3. The gradient of l_l is 0.75 * 0.5 sigma(-1.5) + 0.5 * 0.1.
    """
    losses, total, gradient = run({**MIX, "likelihood_weight": 0.5}, one_pair())
    assert total.item() == pytest.approx(0.75 * math.log1p(math.exp(-1.5)) + 0.35 + 1.0, abs=1e-12)
    slope = 0.75 * 0.5 * sigma(-1.5) + 0.05
    assert gradient.tolist() == pytest.approx([-slope - 0.25, slope], abs=1e-12)
    assert {name: values.item() for name, values in losses.metrics.items()} == pytest.approx(
        {
            "loss/preference/dpo": math.log1p(math.exp(-1.5)),
            "loss/preference/hinge": 0.7,
            "loss/chosen_likelihood": 2.0,
            "logps/chosen": -4.0,
            "logps/rejected": -6.0,
            "rewards/chosen": 0.5,
            "rewards/rejected": -1.0,
            "rewards/margins": 1.5,
            "rewards/accuracies": 1.0,
            "rewards/chosen/hinge": 0.1,
            "rewards/rejected/hinge": -0.2,
            "rewards/margins/hinge": 0.3,
            "rewards/accuracies/hinge": 1.0,
            "displacement/chosen": 0.0,
            "displacement/both": 0.0,
        }
    )


def weighted_sum(mix: dict[str, float], responses: ScoredResponses, prior: str) -> tuple[Tensor, Tensor]:
    """The loss of a mix and its gradient, from its methods one by one."""
    found = [
        (weight, *run({"method": name, "prior": prior if name in TAKE_THE_PRIOR else "none"}, responses)[1:])
        for name, weight in mix.items()
    ]
    loss = torch.stack([weight * loss for weight, loss, _ in found]).sum()
    return loss, torch.stack([weight * gradient for weight, _, gradient in found]).sum(0)


@given(
    mix=st.dictionaries(
        st.sampled_from(["dpo", "ipo", "simpo", "cpo", "hinge", "robust", "kto", "modpo"]),
        st.floats(0.01, 10),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 100),
)
def test_a_mix_is_the_weighted_sum_of_its_methods(mix: dict[str, float], seed: int) -> None:
    """Loss and gradient are the sums of those of the methods alone, the prior with each that takes it."""
    prior = "reward_gap" if set(mix) & set(TAKE_THE_PRIOR) else "none"
    responses = random_pairs(4, seed, torch.float64)
    losses, total, gradient = run({"mix": mix, "prior": prior}, responses)
    expected, slope = weighted_sum(mix, responses, prior)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-10)
    assert all(any(name.endswith(f"/{method}") for name in losses.metrics) for method in mix)


def test_a_mix_of_one_is_the_method() -> None:
    """A single method of weight 1 is that method, bit for bit; with delta = 1 so is its prior."""
    responses = replace(random_pairs(8), prior_gap=torch.ones(8))
    _, loss, gradient = run({"method": "dpo"}, responses)
    for settings in ({"mix": {"dpo": 1}}, {"mix": {"dpo": None}, "prior": "reward_gap"}):
        _, mixed, slope = run(settings, responses)
        assert torch.equal(mixed, loss)
        assert torch.equal(slope, gradient)


def test_a_mix_needs_what_its_methods_need() -> None:
    """The union of needs, the prior's among them; a method of weight 0 is left out."""
    assert build({**MIX, "prior": "reward_gap"}).needs == {"pairs", "reference", "prior_gap"}
    assert build({"mix": {"simpo": 1, "kto": 1}}).needs == {"pairs", "reference", "labels", "divergence"}
    assert build({"mix": {"simpo": 1, "kto": 0}}).needs == {"pairs"}
    assert [method.name for method in methods_of({"mix": {"simpo": 1, "kto": 0}})] == ["simpo"]


def test_a_method_may_be_in_a_mix_twice() -> None:
    """By two names: dpo at beta 0.5 and 1, of one pair with h_w - h_l = 3, and both are reported."""
    mix = {"soft": {"method": "dpo", "beta": 0.5}, "hard": {"method": "dpo", "beta": 1}}
    losses, total, _ = run({"mix": mix}, one_pair())
    assert total.item() == pytest.approx(math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-3)))
    assert losses.metrics["loss/preference/hard"].item() == pytest.approx(math.log1p(math.exp(-3)))


def test_resolving_a_mix_twice_changes_nothing() -> None:
    """A number stands for a weight, every default is written down, and what is written can be read back."""
    resolved = resolve({"mix": {"hinge": 1, "cpo": {"beta": 1}}, "likelihood_weight": 1})
    assert resolved == {
        "mix": {
            "hinge": {"method": "hinge", "weight": 1.0, "beta": 0.1, "length_normalized": False},
            "cpo": {
                "method": "cpo",
                "weight": 1.0,
                "beta": 1.0,
                "likelihood_weight": 0.2,
                "likelihood_reduction": "token_mean",
                "label_smoothing": 0.0,
            },
        },
        "prior": "none",
        "likelihood_weight": 1.0,
    }
    assert resolve(resolved) == resolved
    assert build(resolved) == build({"mix": {"hinge": 1, "cpo": {"beta": 1}}, "likelihood_weight": 1})


def test_a_mix_splits_into_micro_batches() -> None:
    """Divided by the whole batch's counts, micro-batches of a mix with weights and likelihood add up."""
    objective = build({**MIX, "likelihood_weight": 0.5, "prior": "reward_gap"})
    whole = random_pairs(6, dtype=torch.float64)
    weights = torch.linspace(0, 2, 6)
    counts = count_units(whole.lengths, whole.chosen)
    parts = [
        replace(take_pairs(whole, pairs), weights=weights[pairs])
        for pairs in (torch.arange(2), torch.arange(2, 6))
    ]
    split = sum(objective(part).total(counts) for part in parts)
    losses: Losses = objective(replace(whole, weights=weights))
    torch.testing.assert_close(split, losses.total(counts), rtol=1e-12, atol=0)


# --- wrong labels ---


@pytest.mark.parametrize("method", ["dpo", "robust"])
def test_without_wrong_labels_it_is_dpo(method: str) -> None:
    """A share of 0 gives the plain loss and gradient, bit for bit."""
    responses = random_pairs(8)
    _, plain, gradient = run({"method": "dpo"}, responses)
    _, loss, slope = run({"method": method, "label_smoothing": 0}, responses)
    assert torch.equal(loss, plain)
    assert torch.equal(slope, gradient)


@given(share=st.floats(0.01, 0.45), seed=st.integers(0, 100))
def test_the_robust_loss_is_unbiased(share: float, seed: int) -> None:
    """Its mean over a label that is wrong with probability e is dpo's loss on the right label."""
    right = random_pairs(4, seed, torch.float64)
    wrong = replace(right, chosen=right.rejected, rejected=right.chosen)
    settings = {"method": "robust", "beta": 0.5, "label_smoothing": share}
    right_loss, wrong_loss = (build(settings)(each).terms["preference"].values for each in (right, wrong))
    plain = build({"method": "dpo", "beta": 0.5})(right).terms["preference"].values
    torch.testing.assert_close((1 - share) * right_loss + share * wrong_loss, plain, rtol=1e-9, atol=1e-9)


def test_smoothed_labels_stop_where_the_odds_are_met() -> None:
    """With e = 0.2 the gradient is 0 at u = log 4, and pushes the margin down beyond; robust never stops."""
    margins = torch.tensor([math.log(4), 3.0], dtype=torch.float64)
    for method, signs in {"dpo": [0, 1], "robust": [-1, -1]}.items():
        logps = torch.cat([margins, torch.zeros(2, dtype=torch.float64)]).requires_grad_()
        responses = ScoredResponses(
            logps,
            lengths=torch.ones(4, dtype=torch.int64),
            chosen=torch.arange(2),
            rejected=torch.arange(2) + 2,
            reference_logps=torch.zeros(4, dtype=torch.float64),
        )
        _, _, gradient = run({"method": method, "beta": 1.0, "label_smoothing": 0.2}, responses)
        assert [round(value, 12) and math.copysign(1, value) for value in gradient[:2].tolist()] == signs
