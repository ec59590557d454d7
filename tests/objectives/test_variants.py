"""Each paper's gradient, written out by hand, against what autograd makes of the method."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.objectives import ScoredResponses, build, log_odds

PAIRS = 12


def random_pairs() -> ScoredResponses:
    """Pairs of different lengths in float64; pair i has the responses i and i + PAIRS."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (2 * PAIRS,), generator=generator)
    logps = -lengths * (0.05 + 2 * torch.rand(2 * PAIRS, generator=generator, dtype=torch.float64))
    return ScoredResponses(
        logps=logps.requires_grad_(),
        lengths=lengths,
        chosen=torch.arange(PAIRS),
        rejected=torch.arange(PAIRS) + PAIRS,
        reference_logps=logps.detach() + torch.randn(2 * PAIRS, generator=generator, dtype=torch.float64),
        prior_gap=torch.rand(PAIRS, generator=generator, dtype=torch.float64),
    )


class Given:
    """What the papers' formulas are made of: log-likelihoods l, log-ratios h, lengths n and delta."""

    def __init__(self, responses: ScoredResponses, delta: Tensor) -> None:
        assert responses.logps is not None
        assert responses.reference_logps is not None
        logps = responses.logps.detach()
        self.l_w, self.l_l = logps[:PAIRS], logps[PAIRS:]
        self.h_w, self.h_l = (logps - responses.reference_logps).split(PAIRS)
        self.n_w, self.n_l = responses.lengths.double().split(PAIRS)
        self.delta = delta


Slopes = Callable[[Given], tuple[Tensor, Tensor]]


def orpo(x: Given) -> tuple[Tensor, Tensor]:
    """Eq. 8 to 10: the odds ratio's share of the wrong order times 1 / (1 - p), per token."""
    p_w, p_l = torch.exp(x.l_w / x.n_w), torch.exp(x.l_l / x.n_l)
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    wrong = 1 / (1 + odds_w / odds_l**x.delta)
    return -0.5 * wrong / (1 - p_w) / x.n_w, x.delta * 0.5 * wrong / (1 - p_l) / x.n_l


def r_dpo(x: Given) -> tuple[Tensor, Tensor]:
    """Eq. 9 derived: dpo's gradient at a margin that counts the chosen response's extra tokens."""
    wrong = 1 / (1 + torch.exp(0.5 * (x.h_w - x.delta * x.h_l) + 0.1 * x.n_w - 0.1 * x.n_l))
    return -0.5 * wrong, x.delta * 0.5 * wrong


def exo(x: Given) -> tuple[Tensor, Tensor]:
    """Of Eq. 16: sigma(u) sigma(-u) (u - log((1 - e) / e)), the slope of the KL from q to the label."""
    u = 0.5 * (x.h_w - x.delta * x.h_l)
    slope = 0.5 * (u - math.log(0.9 / 0.1)) / (2 + torch.exp(u) + torch.exp(-u))
    return slope, -x.delta * slope


def discopop(x: Given) -> tuple[Tensor, Tensor]:
    """Of Eq. 5 by the product rule."""
    u = 0.5 * (x.h_w - x.delta * x.h_l)
    w = 1 / (1 + torch.exp(-u / 0.5))
    logistic, exponential = torch.log(1 + torch.exp(-u)), torch.exp(-u)
    slope = 0.5 * (
        -(1 - w) * exponential / (1 + exponential)
        - w * exponential
        + w * (1 - w) / 0.5 * (exponential - logistic)
    )
    return slope, -x.delta * slope


def dpop(x: Given) -> tuple[Tensor, Tensor]:
    """Of Eq. 3: a chosen response that has lost is pulled back 1 + lambda times as much."""
    lost = torch.where(x.h_w < 0, -x.h_w, 0)
    wrong = 1 / (1 + torch.exp(0.5 * (x.h_w - x.delta * x.h_l - 2.0 * lost)))
    return -0.5 * wrong * torch.where(x.h_w < 0, 3.0, 1.0), x.delta * 0.5 * wrong


def js(x: Given) -> tuple[Tensor, Tensor]:
    """f'(q) = log(2 q / (1 + q)), whose slope in h is 1 / (1 + q)."""
    q_w, q_l = torch.exp(x.h_w), torch.exp(x.h_l)
    m = torch.log(2 * q_w / (1 + q_w)) - x.delta * torch.log(2 * q_l / (1 + q_l))
    wrong = 1 / (1 + torch.exp(0.5 * m))
    return -0.5 * wrong / (1 + q_w), x.delta * 0.5 * wrong / (1 + q_l)


def forward_kl(x: Given) -> tuple[Tensor, Tensor]:
    """f'(q) = 1 - 1 / q, whose slope in h is 1 / q."""
    q_w, q_l = torch.exp(x.h_w), torch.exp(x.h_l)
    wrong = 1 / (1 + torch.exp(0.5 * ((1 - 1 / q_w) - x.delta * (1 - 1 / q_l))))
    return -0.5 * wrong / q_w, x.delta * 0.5 * wrong / q_l


def alpha_divergence(x: Given) -> tuple[Tensor, Tensor]:
    """f'(q) = (1 - q^-alpha) / alpha, whose slope in h is q^-alpha."""
    q_w, q_l = torch.exp(x.h_w), torch.exp(x.h_l)
    m = (1 - q_w**-0.3) / 0.3 - x.delta * (1 - q_l**-0.3) / 0.3
    wrong = 1 / (1 + torch.exp(0.5 * m))
    return -0.5 * wrong * q_w**-0.3, x.delta * 0.5 * wrong * q_l**-0.3


def apo_zero(x: Given) -> tuple[Tensor, Tensor]:
    """Of Eq. 7: each response saturates by itself."""
    return -0.5 * bell(0.5 * x.h_w), 0.5 * bell(0.5 * x.h_l)


def apo_down(x: Given) -> tuple[Tensor, Tensor]:
    """Of Eq. 8: the chosen response is pushed down, less what its lead over the rejected one gives."""
    lead = 0.5 * bell(0.5 * (x.h_w - x.h_l))
    return 0.5 * bell(0.5 * x.h_w) - lead, lead


def bell(u: Tensor) -> Tensor:
    """sigma(u) sigma(-u)."""
    return 1 / (2 + torch.exp(u) + torch.exp(-u))


def nca(x: Given) -> tuple[Tensor, Tensor]:
    """A chosen response stops where sigma(-u) = sigma(u) / 2; a rejected one never does."""
    q_w, q_l = torch.exp(0.5 * x.h_w), torch.exp(0.5 * x.h_l)
    return 0.5 * (q_w / 2 - 1) / (1 + q_w), 0.25 * q_l / (1 + q_l)


def sppo(x: Given) -> tuple[Tensor, Tensor]:
    """Of Eq. 4.7: twice the distance from the target, which is 1 / (2 beta) = 1 nat away."""
    return 2 * (x.h_w - 1), 2 * (x.h_l + 1)


def bco(x: Given) -> tuple[Tensor, Tensor]:
    """Of binary cross-entropy: the probability of the wrong class."""
    return -0.5 / (1 + torch.exp(0.5 * x.h_w)), 0.5 / (1 + torch.exp(-0.5 * x.h_l))


FORMULAS: dict[str, tuple[dict[str, Any], Slopes]] = {
    "orpo": ({"method": "orpo", "beta": 0.5}, orpo),
    "r_dpo": ({"method": "r_dpo", "beta": 0.5, "alpha": 0.1}, r_dpo),
    "exo": ({"method": "exo", "beta": 0.5, "label_smoothing": 0.1}, exo),
    "discopop": ({"method": "discopop", "beta": 0.5, "tau": 0.5}, discopop),
    "dpop": ({"method": "dpop", "beta": 0.5, "penalty": 2.0}, dpop),
    "js_divergence": ({"method": "f_dpo", "beta": 0.5}, js),
    "forward_kl": ({"method": "f_dpo", "beta": 0.5, "f_divergence_type": "forward_kl"}, forward_kl),
    "alpha_divergence": (
        {"method": "f_dpo", "beta": 0.5, "f_divergence_type": "alpha_divergence", "alpha": 0.3},
        alpha_divergence,
    ),
    "apo_zero": ({"method": "apo_zero", "beta": 0.5}, apo_zero),
    "apo_down": ({"method": "apo_down", "beta": 0.5}, apo_down),
    "nca": ({"method": "nca", "beta": 0.5}, nca),
    "sppo": ({"method": "sppo", "beta": 0.5}, sppo),
    "bco": ({"method": "bco", "beta": 0.5}, bco),
}
"""Settings, and the gradient of a pair's preference loss with respect to l_w and l_l."""

WITHOUT_PRIOR = {"apo_zero", "apo_down", "nca", "sppo", "bco"}

CASES = [
    (name, prior)
    for name in FORMULAS
    for prior in (["none"] if name in WITHOUT_PRIOR else ["none", "reward_gap"])
]


@pytest.mark.parametrize(("name", "prior"), CASES)
def test_gradient_is_the_papers(name: str, prior: str) -> None:
    """Over random pairs the gradient of each method is its paper's formula, to 1e-10."""
    settings, slopes = FORMULAS[name]
    responses = random_pairs()
    losses = build({**settings, "prior": prior})(responses)
    (gradient,) = torch.autograd.grad(losses.terms["preference"].values.sum(), responses.logps)
    assert responses.prior_gap is not None
    delta = responses.prior_gap if prior == "reward_gap" else torch.ones(PAIRS, dtype=torch.float64)
    expected = torch.cat(slopes(Given(responses, delta)))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
    assert (expected.abs() > 1e-6).any()


def ratios(chosen: float, rejected: float, lengths: tuple[int, int] = (2, 4)) -> ScoredResponses:
    """One pair in float64 with these log-ratios."""
    return ScoredResponses(
        logps=torch.tensor([chosen - 5, rejected - 5], dtype=torch.float64, requires_grad=True),
        lengths=torch.tensor(lengths),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        reference_logps=torch.tensor([-5.0, -5.0], dtype=torch.float64),
    )


def value_and_gradient(settings: dict[str, Any], responses: ScoredResponses) -> tuple[float, list[float]]:
    """The pair's preference loss, and its gradient with respect to l_w and l_l."""
    values = build(settings)(responses).terms["preference"].values
    (gradient,) = torch.autograd.grad(values.sum(), responses.logps)
    return values.item(), gradient.tolist()


def test_a_chosen_response_that_has_lost_is_pulled_back_harder() -> None:
    """With lambda 2 and h = -1, -2 the margin is -1 + 2 - 2 * 1 = -1, and the slope in h_w 3 times dpo's."""
    loss, gradient = value_and_gradient({"method": "dpop", "beta": 0.5, "penalty": 2.0}, ratios(-1, -2))
    wrong = 1 / (1 + math.exp(-0.5))
    assert loss == pytest.approx(math.log1p(math.exp(0.5)), abs=1e-12)
    assert gradient == pytest.approx([-1.5 * wrong, 0.5 * wrong], abs=1e-12)


EQUALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no penalty": ({"method": "dpop", "beta": 0.5, "penalty": 0}, {"method": "dpo", "beta": 0.5}),
    "no length": ({"method": "r_dpo", "beta": 0.5, "alpha": 0}, {"method": "dpo", "beta": 0.5}),
    "reverse KL": (
        {"method": "f_dpo", "beta": 0.5, "f_divergence_type": "reverse_kl"},
        {"method": "dpo", "beta": 0.5},
    ),
    "alpha of 1": (
        {"method": "f_dpo", "f_divergence_type": "alpha_divergence", "alpha": 1},
        {"method": "f_dpo", "f_divergence_type": "forward_kl"},
    ),
}


@pytest.mark.parametrize("name", EQUALS)
def test_methods_that_meet(name: str) -> None:
    """At the end of its option's range a method is another one, bit for bit, with the prior too."""
    for prior in ("none", "reward_gap"):
        found = []
        for settings in EQUALS[name]:
            responses = random_pairs()
            losses = build({**settings, "prior": prior})(responses)
            (gradient,) = torch.autograd.grad(losses.terms["preference"].values.sum(), responses.logps)
            found.append((losses.terms["preference"].values, gradient, losses.metrics))
        (values, gradient, metrics), (other_values, other_gradient, other_metrics) = found
        assert torch.equal(values, other_values)
        assert torch.equal(gradient, other_gradient)
        assert metrics.keys() == other_metrics.keys()
        assert all(torch.equal(metrics[key], other_metrics[key]) for key in metrics)


OPTIMA: dict[str, tuple[dict[str, Any], tuple[float, float], tuple[float, float]]] = {
    "exo": ({"method": "exo", "beta": 0.5, "label_smoothing": 0.1}, (2 * math.log(9), 0), (0, 0)),
    "nca": ({"method": "nca", "beta": 1.0}, (math.log(2), -100), (0, 0)),
    "sppo": ({"method": "sppo", "beta": 0.25}, (2, -2), (0, 0)),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_what_has_reached_its_target_is_left_alone(name: str) -> None:
    """EXO at u = log((1 - e) / e), NCA at u_w = log 2 and SPPO at 1 / (2 beta) have no gradient."""
    settings, (chosen, rejected), expected = OPTIMA[name]
    _, gradient = value_and_gradient(settings, ratios(chosen, rejected))
    assert gradient == pytest.approx(expected, abs=1e-12)


def test_odds_of_a_certain_response_are_held() -> None:
    """Where p is 1 the log-odds are those of 1 - 1e-7, 16.1 nats, and without a gradient."""
    responses = ratios(5, -2)
    _, gradient = value_and_gradient({"method": "orpo"}, responses)
    odds = log_odds(responses)
    assert odds[0].item() == pytest.approx(math.log(1e7), abs=1e-5)
    assert gradient[0] == 0
    assert gradient[1] > 0


def test_a_ratio_is_held_at_exp_30() -> None:
    """Under the forward KL a chosen response 40 nats below the reference scores 1 - e^30, with a gradient."""
    responses = ratios(-40, 0)
    score = build({"method": "f_dpo", "beta": 1e-13, "f_divergence_type": "forward_kl"})
    values = score(responses).terms["preference"].values
    (gradient,) = torch.autograd.grad(values.sum(), responses.logps)
    margin = 1e-13 * math.expm1(30)
    assert values.item() == pytest.approx(math.log1p(math.exp(margin)), rel=1e-9)
    assert gradient[0].item() == pytest.approx(-margin / (1 + math.exp(-margin)), rel=1e-9)
