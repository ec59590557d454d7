"""Each paper's gradient, written out by hand, against what autograd makes of the method."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.objectives import ScoredResponses, build

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


FORMULAS: dict[str, tuple[dict[str, Any], Slopes]] = {
    "orpo": ({"method": "orpo", "beta": 0.5}, orpo),
    "r_dpo": ({"method": "r_dpo", "beta": 0.5, "alpha": 0.1}, r_dpo),
}
"""Settings, and the gradient of a pair's preference loss with respect to l_w and l_l."""

WITHOUT_PRIOR: set[str] = set()

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
