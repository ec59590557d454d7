"""Every method's values, gradients and metrics, from inputs small enough to work out by hand."""

import doctest
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

import preftune.objectives
from preftune.objectives import (
    METHODS,
    PRIORS,
    ChosenLikelihood,
    Logistic,
    Losses,
    Margin,
    Objective,
    ScoredResponses,
    build,
    count_units,
    log_ratio,
    mean_log_ratio,
)

from .spread_tokens import with_tokens

VARIANTS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo", "beta": 0.5},
    "ipo": {"method": "ipo", "beta": 0.25},
    "ipo_sums": {"method": "ipo", "beta": 0.25, "length_normalized": False},
    "simpo": {"method": "simpo", "beta": 2.0, "gamma": 1.0},
    "cpo": {"method": "cpo", "beta": 0.5, "likelihood_weight": 0.2},
    "cpo_sums": {"method": "cpo", "beta": 0.5, "likelihood_weight": 0.2, "likelihood_reduction": "sum"},
    "hinge": {"method": "hinge", "beta": 0.1},
    "orpo": {"method": "orpo", "beta": 0.5},
    "r_dpo": {"method": "r_dpo", "beta": 0.5, "alpha": 0.25},
    "exo": {"method": "exo", "beta": 0.5, "label_smoothing": 0.1},
    "discopop": {"method": "discopop", "beta": 0.5, "tau": 0.5},
    "dpop": {"method": "dpop", "beta": 0.5, "penalty": 2.0},
    "f_dpo": {"method": "f_dpo", "beta": 0.5},
    "f_dpo_forward": {"method": "f_dpo", "beta": 0.5, "f_divergence_type": "forward_kl"},
    "f_dpo_alpha": {"method": "f_dpo", "beta": 0.5, "f_divergence_type": "alpha_divergence", "alpha": 0.5},
    "apo_zero": {"method": "apo_zero", "beta": 0.5},
    "apo_down": {"method": "apo_down", "beta": 0.5},
    "nca": {"method": "nca", "beta": 0.5},
    "sppo": {"method": "sppo", "beta": 0.25},
    "bco": {"method": "bco", "beta": 0.5},
    "ld_dpo": {"method": "ld_dpo", "beta": 0.5, "alpha": 0.5},
    "wpo": {"method": "wpo", "beta": 0.5},
    "kto": {"method": "kto", "beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.75},
    "csft": {"method": "csft"},
    "offline_ppo": {"method": "offline_ppo", "clip": 0.5, "value_weight": 2.0},
    "alol": {"method": "alol", "clip": 0.9, "value_weight": 2.0},
    "alol_free": {"method": "alol", "reference_free": True, "value_weight": 2.0},
    "dro_v": {"method": "dro_v", "tau": 2.0, "value_weight": 2.0},
    "modpo": {"method": "modpo", "beta": 0.5, "preference_weight": 0.5},
    "bradley_terry": {"method": "bradley_terry"},
    "bradley_terry_margin": {"method": "bradley_terry", "margin": True, "center_weight": 0.01},
    "dpo_smoothed": {"method": "dpo", "beta": 0.5, "label_smoothing": 0.2},
    "dpo_means": {"method": "dpo", "beta": 0.5, "length_normalized": True},
    "dpo_likelihood": {"method": "dpo", "beta": 0.5, "likelihood_weight": 0.5},
    "simpo_smoothed": {"method": "simpo", "beta": 2.0, "gamma": 1.0, "label_smoothing": 0.2},
    "cpo_smoothed": {"method": "cpo", "beta": 0.5, "likelihood_weight": 0.0, "label_smoothing": 0.2},
    "hinge_means": {"method": "hinge", "beta": 0.1, "length_normalized": True},
    "robust": {"method": "robust", "beta": 0.5, "label_smoothing": 0.16},
    "robust_means": {"method": "robust", "beta": 0.5, "label_smoothing": 0.16, "length_normalized": True},
    "bradley_terry_smoothed": {"method": "bradley_terry", "label_smoothing": 0.2},
    "odpo": {"method": "odpo", "beta": 0.5, "scaling": "linear", "reward_scale": 2.0},
    "odpo_log": {"method": "odpo", "beta": 0.5, "reward_scale": 4.0},
    "rpo": {"method": "rpo", "beta": 0.5, "reward_scale": 2.0},
    "rpo_forward": {"method": "rpo", "beta": 0.5, "reward_scale": 2.0, "distance": "forward_kl"},
    "rpo_squared": {"method": "rpo", "beta": 0.5, "reward_scale": 2.0, "distance": "squared"},
    "distilled_dpo": {"method": "distilled_dpo", "beta": 0.5, "reward_scale": 2.0},
    "mmpo": {"method": "mmpo", "beta": 0.5, "reward_scale": 2.0},
    "mmpo_linear": {"method": "mmpo", "beta": 0.5, "label": "linear"},
    "scaled_dpo": {"method": "scaled_dpo", "beta": 0.5, "reward_scale": 3.0},
    "madpo": {"method": "madpo", "beta": 0.5, "reward_scale": 2.0},
    "hypo": {"method": "hypo", "beta": 0.5},
    "infonca": {"method": "infonca", "beta": 0.5, "reward_scale": 2 * math.log(3)},
    "reward_nca": {"method": "reward_nca", "beta": 0.5, "reward_scale": 2 * math.log(3)},
    "plackett_luce": {"method": "plackett_luce", "beta": 0.5},
    "qrpo": {"method": "qrpo", "beta": 1.0},
    "ddo_rm": {"method": "ddo_rm", "eta": 0.5, "temperature": 0.5},
    "rloo": {"method": "rloo", "beta": 0.5},
    "grpo": {"method": "grpo"},
    "grpo_unscaled": {"method": "grpo", "scale_rewards": False},
}

TAKE_THE_PRIOR = [
    name
    for name, settings in VARIANTS.items()
    if (method := METHODS[settings["method"]]).learns_from("pairs") and "reward_gap" in method.priors
]
"""Those with a gap of a pair in the data."""


def with_prior(name: str) -> dict[str, Any]:
    """A variant with the reward-gap prior, where its method is defined with it."""
    return {**VARIANTS[name], **({"prior": "reward_gap"} if name in TAKE_THE_PRIOR else {})}


def one_pair(gap: float | None = None, dtype: torch.dtype = torch.float64) -> ScoredResponses:
    """l_w = -4 on 2 tokens, l_l = -6 on 4 tokens; rho_w = -5, rho_l = -4: so h_w = 1, h_l = -2; z0 = 0.5.

    R is 0 and 1, and V 0.5 of both: so A = -0.5 and 0.5. The scores s are l, and the margin is 0.5. Both
    answer one prompt, and r is 0.75 and 0.25.
    """
    logps = torch.tensor([-4.0, -6.0], dtype=dtype, requires_grad=True)
    return ScoredResponses(
        logps=logps,
        lengths=torch.tensor([2, 4]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        reference_logps=torch.tensor([-5.0, -4.0], dtype=dtype),
        prior_gap=None if gap is None else torch.tensor([gap], dtype=dtype),
        labels=torch.tensor([True, False]),
        divergence=torch.tensor(0.5, dtype=dtype),
        auxiliary=torch.tensor([0.0, 1.0], dtype=torch.promote_types(dtype, torch.float32)),
        values=torch.tensor([0.5, 0.5], dtype=torch.promote_types(dtype, torch.float32)),
        scores=logps,
        margins=torch.tensor([0.5], dtype=dtype),
        prior_reward=torch.tensor([0.75, 0.25], dtype=dtype),
        groups=torch.tensor([0, 0]),
    )


def random_pairs(pairs: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> ScoredResponses:
    """Pairs of responses of different lengths; pair i has the responses i, desirable, and i + pairs, not.

    The scores are the log-probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (2 * pairs,), generator=generator)
    logps = -lengths * torch.rand(2 * pairs, generator=generator, dtype=dtype) * 3
    reference = logps + torch.randn(2 * pairs, generator=generator, dtype=dtype)
    return ScoredResponses(
        logps=logps.requires_grad_(),
        scores=logps,
        lengths=lengths,
        chosen=torch.arange(pairs),
        rejected=torch.arange(pairs) + pairs,
        reference_logps=reference,
        prior_gap=torch.rand(pairs, generator=generator, dtype=dtype),
        labels=torch.arange(2 * pairs) < pairs,
        divergence=torch.rand((), generator=generator, dtype=dtype),
        auxiliary=torch.randn(2 * pairs, generator=generator, dtype=dtype),
        values=torch.randn(2 * pairs, generator=generator, dtype=dtype).requires_grad_(),
        margins=torch.rand(pairs, generator=generator, dtype=dtype),
        prior_reward=torch.rand(2 * pairs, generator=generator, dtype=dtype),
        groups=torch.arange(pairs).repeat(2),
    )


def run(settings: dict[str, Any], responses: ScoredResponses) -> tuple[Losses, Tensor, Tensor]:
    """Losses, their total, and its gradient with respect to the log-probabilities."""
    objective = build(settings)
    by_token = objective.needs & {"token_logps", "collisions"}
    losses = objective(with_tokens(responses) if by_token else responses)
    total = losses.total(count_units(responses.lengths, responses.chosen, responses.groups))
    (gradient,) = torch.autograd.grad(total, responses.logps)
    return losses, total.detach(), gradient


def sigma(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def test_example_runs() -> None:
    """The example at the top of the package prints what it says."""
    result = doctest.testmod(preftune.objectives)
    assert result.attempted > 5
    assert result.failed == 0


ODDS_LOST = math.expm1(2) / (math.expm1(2) + math.expm1(1.5))
"""1 - sigma of the difference of log-odds of e^-2 and e^-1.5, for orpo."""

DISCOPOP_SLOPE = (
    -sigma(-1.5) * sigma(-3)
    - math.log1p(math.exp(-1.5)) * sigma(3) * sigma(-3) / 0.5
    - math.exp(-1.5) * sigma(3)
    + math.exp(-1.5) * sigma(3) * sigma(-3) / 0.5
)
"""Of discopop's loss in u, at u = 1.5 with tau 0.5."""

JS_LOST = 1 / (1 + math.sqrt(sigma(1) / sigma(-2)))
"""1 - sigma of 0.5 (log sigma(1) - log sigma(-2)), for f_dpo."""

LOG_Z = math.log(math.e - 1)
"""Of qrpo with beta 1."""

SPREAD = 0.5 / math.sqrt(2) + 1e-4
"""Of the rewards 0.75 and 0.25, as grpo divides by it."""

# With gap g: dpo has m = 1 + 2 g, ipo means have m = 0.5 + 0.5 g, and so on; each row is (settings, gap,
# loss by hand, gradient by hand for l_w and l_l).
BY_HAND = {
    "dpo": (VARIANTS["dpo"], None, math.log1p(math.exp(-1.5)), (-0.5 * sigma(-1.5), 0.5 * sigma(-1.5))),
    "dpo_half": (
        VARIANTS["dpo"],
        0.5,
        math.log1p(math.exp(-1.0)),
        (-0.5 * sigma(-1.0), 0.25 * sigma(-1.0)),
    ),
    "ipo": (VARIANTS["ipo"], None, 1.0, (-1.0, 0.5)),
    "ipo_half": (VARIANTS["ipo"], 0.5, 1.5625, (-1.25, 0.3125)),
    "ipo_sums": (VARIANTS["ipo_sums"], None, 1.0, (2.0, -2.0)),
    "ipo_sums_half": (VARIANTS["ipo_sums"], 0.5, 0.0, (0.0, 0.0)),
    "simpo": (VARIANTS["simpo"], None, math.log1p(math.exp(2.0)), (-sigma(2.0), 0.5 * sigma(2.0))),
    "simpo_half": (
        VARIANTS["simpo"],
        0.5,
        math.log1p(math.exp(3.5)),
        (-sigma(3.5), 0.25 * sigma(3.5)),
    ),
    "cpo": (
        VARIANTS["cpo"],
        None,
        math.log1p(math.exp(-1.0)) + 0.2 * 2,
        (-0.5 * sigma(-1.0) - 0.1, 0.5 * sigma(-1.0)),
    ),
    "cpo_sums_half": (
        VARIANTS["cpo_sums"],
        0.5,
        math.log1p(math.exp(0.5)) + 0.2 * 4,
        (-0.5 * sigma(0.5) - 0.2, 0.25 * sigma(0.5)),
    ),
    "hinge": (VARIANTS["hinge"], None, 0.7, (-0.1, 0.1)),
    "hinge_half": (VARIANTS["hinge"], 0.5, 0.8, (-0.1, 0.05)),
    "orpo": (
        VARIANTS["orpo"],
        None,
        0.5 * math.log1p(math.expm1(2) / math.expm1(1.5)) + 2,
        (
            -0.5 * ODDS_LOST / (1 - math.exp(-2)) / 2 - 0.5,
            0.5 * ODDS_LOST / (1 - math.exp(-1.5)) / 4,
        ),
    ),
    "r_dpo": (VARIANTS["r_dpo"], None, math.log1p(math.exp(-1)), (-0.5 * sigma(-1), 0.5 * sigma(-1))),
    "r_dpo_half": (
        VARIANTS["r_dpo"],
        0.5,
        math.log1p(math.exp(-0.5)),
        (-0.5 * sigma(-0.5), 0.25 * sigma(-0.5)),
    ),
    "exo": (
        VARIANTS["exo"],
        None,
        sigma(1.5) * (1.5 - math.log(9)) + math.log(sigma(-1.5)) - math.log(0.1),
        (
            0.5 * sigma(1.5) * sigma(-1.5) * (1.5 - math.log(9)),
            -0.5 * sigma(1.5) * sigma(-1.5) * (1.5 - math.log(9)),
        ),
    ),
    "discopop": (
        VARIANTS["discopop"],
        None,
        math.log1p(math.exp(-1.5)) * sigma(-3) + math.exp(-1.5) * sigma(3),
        (0.5 * DISCOPOP_SLOPE, -0.5 * DISCOPOP_SLOPE),
    ),
    "dpop": (VARIANTS["dpop"], None, math.log1p(math.exp(-1.5)), (-0.5 * sigma(-1.5), 0.5 * sigma(-1.5))),
    "f_dpo": (
        VARIANTS["f_dpo"],
        None,
        math.log1p(math.sqrt(sigma(-2) / sigma(1))),
        (-0.5 * JS_LOST * sigma(-1), 0.5 * JS_LOST * sigma(2)),
    ),
    "f_dpo_forward": (
        VARIANTS["f_dpo_forward"],
        None,
        math.log1p(math.exp(-0.5 * (math.e**2 - 1 / math.e))),
        (
            -0.5 * sigma(-0.5 * (math.e**2 - 1 / math.e)) / math.e,
            0.5 * sigma(-0.5 * (math.e**2 - 1 / math.e)) * math.e**2,
        ),
    ),
    "f_dpo_alpha_half": (
        VARIANTS["f_dpo_alpha"],
        0.5,
        math.log1p(math.exp(math.exp(-0.5) - 0.5 - 0.5 * math.e)),
        (
            -0.5 * sigma(math.exp(-0.5) - 0.5 - 0.5 * math.e) * math.exp(-0.5),
            0.25 * sigma(math.exp(-0.5) - 0.5 - 0.5 * math.e) * math.e,
        ),
    ),
    "apo_zero": (
        VARIANTS["apo_zero"],
        None,
        sigma(-0.5) + sigma(-1),
        (-0.5 * sigma(0.5) * sigma(-0.5), 0.5 * sigma(1) * sigma(-1)),
    ),
    "apo_down": (
        VARIANTS["apo_down"],
        None,
        sigma(0.5) + sigma(-1.5),
        (
            0.5 * sigma(0.5) * sigma(-0.5) - 0.5 * sigma(1.5) * sigma(-1.5),
            0.5 * sigma(1.5) * sigma(-1.5),
        ),
    ),
    "nca": (
        VARIANTS["nca"],
        None,
        math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5)) / 2 + math.log1p(math.exp(-1)) / 2,
        (-0.5 * sigma(-0.5) + 0.25 * sigma(0.5), 0.25 * sigma(-1)),
    ),
    "sppo": (VARIANTS["sppo"], None, 1.0, (-2.0, 0.0)),
    "bco": (
        VARIANTS["bco"],
        None,
        math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1)),
        (-0.5 * sigma(-0.5), 0.5 * sigma(-1)),
    ),
    "ld_dpo": (
        VARIANTS["ld_dpo"],
        None,
        math.log1p(math.exp(-1.25)),
        (-0.5 * sigma(-1.25), 0.375 * sigma(-1.25)),
    ),
    "ld_dpo_half": (
        VARIANTS["ld_dpo"],
        0.5,
        math.log1p(math.exp(-0.875)),
        (-0.5 * sigma(-0.875), 0.1875 * sigma(-0.875)),
    ),
    "wpo": (
        VARIANTS["wpo"],
        None,
        math.exp(-0.5) * math.log1p(math.exp(-1.5)),
        (-0.5 * math.exp(-0.5) * sigma(-1.5), 0.5 * math.exp(-0.5) * sigma(-1.5)),
    ),
    "kto": (
        VARIANTS["kto"],
        None,
        0.75 * sigma(-0.25) + 0.375 * sigma(-1.25),
        (-0.375 * sigma(0.25) * sigma(-0.25), 0.1875 * sigma(1.25) * sigma(-1.25)),
    ),
    "csft": (VARIANTS["csft"], None, 10 / 6, (-1 / 6, -1 / 6)),
    "offline_ppo": (
        VARIANTS["offline_ppo"],
        None,
        0.25 * (math.e - math.exp(-2)) + 0.25,
        (0.25 * math.e, -0.25 * math.exp(-2)),
    ),
    "alol": (VARIANTS["alol"], None, 1.5 * math.exp(-2) + 0.25, (0.0, -0.25 * math.exp(-2))),
    "alol_free": (VARIANTS["alol_free"], None, 1.5 + 0.25, (0.0, -0.25)),
    "dro_v": (VARIANTS["dro_v"], None, 26.5 / 8 + 26.5 / 2, (1.25, -2.25)),
    "modpo": (VARIANTS["modpo"], None, math.log1p(math.exp(-4.0)), (-sigma(-4.0), sigma(-4.0))),
    "bradley_terry": (
        VARIANTS["bradley_terry"],
        None,
        math.log1p(math.exp(-2.0)),
        (-sigma(-2.0), sigma(-2.0)),
    ),
    "bradley_terry_margin": (
        VARIANTS["bradley_terry_margin"],
        None,
        math.log1p(math.exp(-1.5)) + 1.0,
        (-sigma(-1.5) - 0.2, sigma(-1.5) - 0.2),
    ),
    "dpo_smoothed_half": (
        VARIANTS["dpo_smoothed"],
        0.5,
        0.8 * math.log1p(math.exp(-1.0)) + 0.2 * math.log1p(math.exp(1.0)),
        tuple(-0.5 * (0.8 * sigma(-1.0) - 0.2 * sigma(1.0)) * side for side in (1, -0.5)),
    ),
    "dpo_means_half": (
        VARIANTS["dpo_means"],
        0.5,
        math.log1p(math.exp(-0.375)),
        (-0.25 * sigma(-0.375), 0.0625 * sigma(-0.375)),
    ),
    "dpo_likelihood": (
        VARIANTS["dpo_likelihood"],
        None,
        math.log1p(math.exp(-1.5)) + 0.5 * 2,
        (-0.5 * sigma(-1.5) - 0.25, 0.5 * sigma(-1.5)),
    ),
    "simpo_smoothed": (
        VARIANTS["simpo_smoothed"],
        None,
        0.8 * math.log1p(math.exp(2.0)) + 0.2 * math.log1p(math.exp(-2.0)),
        tuple(-2 * (0.8 * sigma(2.0) - 0.2 * sigma(-2.0)) * side for side in (0.5, -0.25)),
    ),
    "hinge_means_half": (VARIANTS["hinge_means"], 0.5, 0.925, (-0.05, 0.0125)),
    "robust_half": (
        VARIANTS["robust"],
        0.5,
        (0.84 * math.log1p(math.exp(-1.0)) - 0.16 * math.log1p(math.exp(1.0))) / 0.68,
        tuple(-0.5 * (0.84 * sigma(-1.0) + 0.16 * sigma(1.0)) / 0.68 * side for side in (1, -0.5)),
    ),
    "bradley_terry_smoothed": (
        VARIANTS["bradley_terry_smoothed"],
        None,
        0.8 * math.log1p(math.exp(-2.0)) + 0.2 * math.log1p(math.exp(2.0)),
        tuple(-(0.8 * sigma(-2.0) - 0.2 * sigma(2.0)) * side for side in (1, -1)),
    ),
    "odpo": (VARIANTS["odpo"], 0.5, math.log1p(math.exp(-0.5)), (-0.5 * sigma(-0.5), 0.5 * sigma(-0.5))),
    "odpo_log": (
        VARIANTS["odpo_log"],
        0.5,
        math.log1p(2 * math.exp(-1.5)),
        (-0.5 * sigma(math.log(2) - 1.5), 0.5 * sigma(math.log(2) - 1.5)),
    ),
    "rpo": (
        VARIANTS["rpo"],
        0.5,
        sigma(1) * math.log(sigma(1) / sigma(1.5)) + sigma(-1) * math.log(sigma(-1) / sigma(-1.5)),
        (0.5 * (sigma(1.5) - sigma(1)), -0.5 * (sigma(1.5) - sigma(1))),
    ),
    "rpo_forward": (
        VARIANTS["rpo_forward"],
        0.5,
        sigma(1.5) * math.log(sigma(1.5) / sigma(1)) + sigma(-1.5) * math.log(sigma(-1.5) / sigma(-1)),
        (0.25 * sigma(1.5) * sigma(-1.5), -0.25 * sigma(1.5) * sigma(-1.5)),
    ),
    "rpo_squared": (VARIANTS["rpo_squared"], 0.5, 0.25, (0.5, -0.5)),
    "distilled_dpo": (VARIANTS["distilled_dpo"], 0.5, 0.25, (0.5, -0.5)),
    "mmpo": (
        VARIANTS["mmpo"],
        0.5,
        sigma(1) * math.log1p(math.exp(-1.5)) + sigma(-1) * math.log1p(math.exp(1.5)),
        (0.5 * (sigma(1.5) - sigma(1)), -0.5 * (sigma(1.5) - sigma(1))),
    ),
    "mmpo_linear": (
        VARIANTS["mmpo_linear"],
        0.5,
        0.75 * math.log1p(math.exp(-1.5)) + 0.25 * math.log1p(math.exp(1.5)),
        (0.5 * (sigma(1.5) - 0.75), -0.5 * (sigma(1.5) - 0.75)),
    ),
    "scaled_dpo": (
        VARIANTS["scaled_dpo"],
        0.5,
        1.5 * math.log1p(math.exp(-1.5)),
        (-0.75 * sigma(-1.5), 0.75 * sigma(-1.5)),
    ),
    "madpo": (
        VARIANTS["madpo"],
        0.5,
        sigma(0.5 + 1.5 / (1 + 2 / math.e)) / sigma(1) * math.log1p(math.exp(-1.5)),
        (
            -0.5 * sigma(0.5 + 1.5 / (1 + 2 / math.e)) / sigma(1) * sigma(-1.5),
            0.5 * sigma(0.5 + 1.5 / (1 + 2 / math.e)) / sigma(1) * sigma(-1.5),
        ),
    ),
    "hypo": (VARIANTS["hypo"], None, math.log1p(math.exp(-1)), (-0.5 * sigma(-1), 0.5 * sigma(-1))),
    "infonca": (
        VARIANTS["infonca"],
        None,
        0.75 * math.log1p(math.exp(-1.5)) + 0.25 * math.log1p(math.exp(1.5)),
        (0.5 * (sigma(1.5) - 0.75), 0.5 * (sigma(-1.5) - 0.25)),
    ),
    "reward_nca": (
        VARIANTS["reward_nca"],
        None,
        0.75 * math.log1p(math.exp(-0.5))
        + 0.5 * math.log1p(math.exp(0.5))
        + 0.25 * math.log1p(math.e)
        + 0.5 * math.log1p(1 / math.e),
        (-0.5 * (0.75 * sigma(-0.5) - 0.5 * sigma(0.5)), -0.5 * (0.25 * sigma(1) - 0.5 * sigma(-1))),
    ),
    "plackett_luce": (
        VARIANTS["plackett_luce"],
        None,
        math.log1p(math.exp(-1.5)),
        (-0.5 * sigma(-1.5), 0.5 * sigma(-1.5)),
    ),
    "qrpo": (
        VARIANTS["qrpo"],
        None,
        (LOG_Z**2 + (2.5 - LOG_Z) ** 2) / 2,
        (LOG_Z, LOG_Z - 2.5),
    ),
    "ddo_rm": (
        VARIANTS["ddo_rm"],
        None,
        sigma(-0.5) * math.log1p(math.e) + sigma(0.5) * math.log1p(1 / math.e),
        (sigma(-1) - sigma(-0.5), (sigma(1) - sigma(0.5)) / 2),
    ),
    "rloo": (VARIANTS["rloo"], None, 0.0, (0.5, -0.5)),
    "rloo_half": (VARIANTS["rloo"], 0.5, -0.125, (0.5, -0.625)),
    "grpo": (VARIANTS["grpo"], None, 0.0, (-0.0625 / SPREAD, 0.03125 / SPREAD)),
    "grpo_unscaled_half": (VARIANTS["grpo_unscaled"], 0.5, -0.0625, (-0.0625, 0.015625)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_value_and_gradient_by_hand(name: str) -> None:
    """Each method gives the loss and the gradient derived on paper, to 1e-10 in float64.

    The pair has h_w = 1, h_l = -2; l_w = -4, l_l = -6; n_w = 2, n_l = 4 (so per token hbar = 0.5 and -0.5,
    lbar = -2 and -1.5). With delta = 1, and with 0.5 in the rows named `half`:

    - dpo, beta 0.5: m = 1 + 2 = 3, u = 1.5; half: m = 2, u = 1. Loss log(1 + e^-u), gradient (Eq. 10)
      -beta (1 - sigma(u)) times (1, -delta), where 1 - sigma(u) = sigma(-u).
    - ipo, beta 0.25, target 2: m = 0.5 + 0.5 = 1, loss 1, gradient 2 (m - 2) (1/2, -delta/4) = (-1, 0.5);
      half: m = 0.75, loss 1.25^2 = 1.5625, gradient -2.5 (1/2, -1/8).
    - ipo on sums: m = 3, loss 1, gradient 2 (1, -1); half: m = 2, exactly the target, loss 0.
    - simpo, beta 2, gamma 1: m = -2 + 1.5 = -0.5, u = -2; half: m = -1.25, u = -3.5. Gradient
      -2 sigma(-u) (1/2, -delta/4).
    - cpo, beta 0.5, lambda 0.2: m = -4 + 6 = 2, u = 1, NLL per token 4/2 = 2; on sums with half:
      m = -1, u = -0.5, NLL 4. The likelihood adds -lambda/2 per token, or -lambda, to the first gradient.
    - hinge, beta 0.1: 1 - 0.3 = 0.7; half: 1 - 0.2 = 0.8. Gradient -0.1 (1, -delta).
    - orpo, beta 0.5: the odds of e^-2 are 1 / (e^2 - 1), so 1 / sigma(m) is 1 + (e^2 - 1) / (e^1.5 - 1), and
      log-odds have the slope 1 / (1 - p) in l / n. NLL per token 4/2 = 2, with -1/2.
    - r_dpo, beta 0.5, alpha 0.25: dpo's u = 1.5, less 0.25 (4 - 2); half: 1 - 0.5.
    - exo, beta 0.5, e 0.1: with a = log 9 and q = sigma(1.5), KL is q (1.5 - a) + log sigma(-1.5) - log 0.1,
      and its slope in u is q (1 - q) (1.5 - a).
    - discopop, beta 0.5, tau 0.5: u = 1.5 and w = sigma(3).
    - dpop: h_w > 0 has lost nothing, so it is dpo.
    - f_dpo, beta 0.5: log 2 + log sigma(h) are compared, with the slopes sigma(-h); of the forward KL
      1 - e^-1 and 1 - e^2, with the slopes e^-1 and e^2; with alpha 0.5 half of 2 (1 - e^-0.5) less 0.5 times
      2 (1 - e), which is 1 - e^-0.5 - 0.5 + 0.5 e, with the slopes e^-0.5 and e.
    - apo_zero, apo_down, nca and bco, beta 0.5: u_w = 0.5 and u_l = -1. The slope of sigma is
      sigma(u) sigma(-u), and of -log sigma(u) -sigma(-u).
    - sppo, beta 0.25, targets 2 and -2: (1 - 2)^2 + 0^2, with the slopes 2 (1 - 2) and 0.
    - ld_dpo, beta 0.5, alpha 0.5, the sums spread evenly over tokens: of four rejected tokens with h = -0.5
      the last two are behind the chosen response's length, so that s_l = -1 - 0.5 = -1.5, its slope in l_l is
      (2 + 1) / 4, and u = 0.5 * 2.5; half: u = 0.5 * 1.75.
    - wpo, beta 0.5, w(y) = exp(-0.25) of both responses: dpo's loss and gradient times exp(-0.5).
    - kto, beta 0.5, weights 1.5 and 0.75, z0 = 0.5: beta (h_w - z0) = 0.25 and beta (z0 - h_l) = 1.25, the
      mean of two responses. The slope of 1 - sigma(x) is -sigma(x) sigma(-x).
    - csft: 4 + 6 nats over 2 + 4 tokens, whatever the labels.
    - offline_ppo, clip 0.5: q = e and e^-2, and neither is held where A = -0.5 and 0.5: the losses are 0.5 e
      and -0.5 e^-2. The value's squares of 0.25 add 2 * 0.5 * 0.25, as they do with alol.
    - alol: the first is left out, the second is 0.5 e^-2 * 6 nats; without the reference 0.5 * 6.
    - dro_v, tau 2: the residuals A - 2 h are -2.5 and 4.5, their squares 6.25 + 20.25 = 26.5. The policy has
      26.5 / 4 / 2 and the slopes -residual / 2, the value 2 * 26.5 / 2 / 2.
    - modpo, beta 0.5, w 0.5: u = 1 * 3 - 1 * (0 - 1) = 4, and the slope is beta / w = 1.
    - bradley_terry: u = -4 + 6 = 2; with the margin 1.5, and centred by 0.01 (-4 - 6)^2 = 1, of which both
      scores have the slope 0.02 * -10.
    - smoothed labels, e 0.2: 0.8 -log sigma(u) + 0.2 -log sigma(-u), whose slope in u is
      -0.8 sigma(-u) + 0.2 sigma(u); u as above, and the prior in it.
    - means: dpo with half the gap has m = 0.5 + 0.25 = 0.75 and u = 0.375; hinge 1 - 0.075. Gradient through
      the tokens, 1/2 and -delta/4.
    - likelihood of weight 0.5: 4 nats on 2 tokens add 1, and -0.5/2 to the first gradient.
    - robust, e 0.16: (0.84 -log sigma(u) - 0.16 -log sigma(-u)) / 0.68, slope
      -(0.84 sigma(-u) + 0.16 sigma(u)) / 0.68; u = 1.
    - Rivals of the prior, beta 0.5 and delta 0.5: beta m = 1.5, and with s = 2 rewards differ by s delta = 1.
      odpo: u = 1.5 - 1, and with the logarithm of 4 * 0.5 u = 1.5 - log 2. rpo: KL between sigma(1) and
      sigma(1.5), whose slopes in the second are sigma(1.5) - sigma(1), and in the first 0.5 sigma'; squared
      0.5^2. mmpo: p is sigma(1), or linear 0.75. scaled_dpo: 3 * 0.5 times dpo. madpo: odds 2 / e, so
      c = 0.5 + 1.5 / (1 + 2 / e), and w = sigma(c) / sigma(1) times dpo. hypo: l_w - l_l = 2, and the
      reference's -1 counts as 0, so u = 1.
    - Groups: r of 0.75 and 0.25 times 2 log 3 differ by log 3, so p = 3/4 and 1/4; beta h = 0.5 and -1.
      plackett_luce is dpo. qrpo, log Z = log(e - 1): q = 1 and 0.5, residuals 1 - log Z - 1 and
      0.5 - log Z + 2. ddo_rm: lbar / T = -4 and -3 differ by -1, and with eta r / T by -0.5; the slopes
      (p - q) / T go to 2 and 4 tokens.
    - Policy gradients: rloo, beta 0.5: R = 0.75 - 0.5 and 0.25 + 1, so A = -1 and 1, over two responses;
      half: r gives 0.5 and -0.5 * 0.5, h -1.5 and 1.5. grpo: A = 0.25 and -0.25, over SPREAD, two
      responses and their tokens; half, unscaled: 0.25 and -0.125.
    """
    settings, gap, expected_loss, expected_gradient = BY_HAND[name]
    takes_prior = gap is not None and "reward_gap" in METHODS[settings["method"]].priors
    prior = {"prior": "reward_gap"} if takes_prior else {}
    _, loss, gradient = run({**settings, **prior}, one_pair(gap))
    assert loss.item() == pytest.approx(expected_loss, abs=1e-10)
    assert gradient.tolist() == pytest.approx(expected_gradient, abs=1e-10)


def smoothed_slope(u: Tensor, share: float = 0.2) -> Tensor:
    """Slope in u of -(1 - e) log sigma(u) - e log sigma(-u)."""
    return -(1 - share) * torch.sigmoid(-u) + share * torch.sigmoid(u)


def robust_slope(u: Tensor) -> Tensor:
    """Slope in u of (-(1 - e) log sigma(u) + e log sigma(-u)) / (1 - 2e), e 0.16."""
    return -(0.84 * torch.sigmoid(-u) + 0.16 * torch.sigmoid(u)) / 0.68


def dpo_slope(margin: Tensor) -> Tensor:
    """Slope of the loss in the margin, for beta 0.5: MaPPO Eq. 10, -beta (1 - sigma(u))."""
    return -0.5 * (1 - torch.sigmoid(0.5 * margin))


SLOPES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "dpo": ("log_ratio", dpo_slope),
    "ipo": ("mean_log_ratio", lambda m: 2 * (m - 2)),
    "ipo_sums": ("log_ratio", lambda m: 2 * (m - 2)),
    "simpo": ("mean_log_likelihood", lambda m: -2 * (1 - torch.sigmoid(2 * m - 1))),
    "cpo": ("log_likelihood", dpo_slope),
    "cpo_sums": ("log_likelihood", dpo_slope),
    "hinge": ("log_ratio", lambda m: -0.1 * (0.1 * m < 1).double()),
    "dpo_smoothed": ("log_ratio", lambda m: 0.5 * smoothed_slope(0.5 * m)),
    "dpo_means": ("mean_log_ratio", dpo_slope),
    "dpo_likelihood": ("log_ratio", dpo_slope),
    "simpo_smoothed": ("mean_log_likelihood", lambda m: 2 * smoothed_slope(2 * m - 1)),
    "cpo_smoothed": ("log_likelihood", lambda m: 0.5 * smoothed_slope(0.5 * m)),
    "hinge_means": ("mean_log_ratio", lambda m: -0.1 * (0.1 * m < 1).double()),
    "robust": ("log_ratio", lambda m: 0.5 * robust_slope(0.5 * m)),
    "robust_means": ("mean_log_ratio", lambda m: 0.5 * robust_slope(0.5 * m)),
}


@pytest.mark.parametrize("name", SLOPES)
def test_gradient_formula(name: str) -> None:
    """Over random pairs the gradient is slope(m) (grad s_w - delta grad s_l), to 1e-10 (Eq. 10)."""
    responses = random_pairs(8, dtype=torch.float64)
    losses = build({**VARIANTS[name], "prior": "reward_gap"})(responses)
    (gradient,) = torch.autograd.grad(losses.terms["preference"].values.sum(), responses.logps)

    score_name, slope_of = SLOPES[name]
    score = getattr(preftune.objectives, score_name)(responses).detach()
    per_token = 1 / responses.lengths.double() if score_name.startswith("mean") else torch.ones(16).double()
    delta = responses.prior_gap
    assert delta is not None
    slope = slope_of(score[:8] - delta * score[8:])
    expected = torch.cat([slope * per_token[:8], -delta * slope * per_token[8:]])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TAKE_THE_PRIOR)
def test_gap_of_one_is_the_plain_method(name: str) -> None:
    """With delta = 1 loss, gradient and every shared metric equal the plain method's, bit for bit."""
    responses = replace(random_pairs(16), prior_gap=torch.ones(16))
    plain, plain_loss, plain_gradient = run(VARIANTS[name], responses)
    prior, prior_loss, prior_gradient = run({**VARIANTS[name], "prior": "reward_gap"}, responses)
    assert torch.equal(plain_loss, prior_loss)
    assert torch.equal(plain_gradient, prior_gradient)
    assert set(prior.metrics) == {*plain.metrics, "prior/gap"}
    for metric, values in plain.metrics.items():
        assert torch.equal(values, prior.metrics[metric]), metric


@pytest.mark.parametrize("name", TAKE_THE_PRIOR)
def test_gap_of_zero_leaves_the_rejected_response_alone(name: str) -> None:
    """With delta = 0 the rejected response has exactly no gradient."""
    responses = replace(random_pairs(16), prior_gap=torch.zeros(16))
    _, _, gradient = run({**VARIANTS[name], "prior": "reward_gap"}, responses)
    assert torch.count_nonzero(gradient[responses.rejected]) == 0
    assert torch.count_nonzero(gradient[responses.chosen]) > 0


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    logps=st.lists(st.floats(-1e4, 0, width=32), min_size=2, max_size=2),
    reference=st.lists(st.floats(-1e4, 0, width=32), min_size=2, max_size=2),
    lengths=st.lists(st.integers(1, 10_000), min_size=2, max_size=2),
    gap=st.floats(0, 1, width=32),
    labels=st.lists(st.booleans(), min_size=2, max_size=2),
    divergence=st.floats(0, 1e4, width=32),
    rewards=st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=2, max_size=2),
)
def test_finite_at_extremes(
    logps: list[float],
    reference: list[float],
    lengths: list[int],
    gap: float,
    labels: list[bool],
    divergence: float,
    rewards: list[float],
) -> None:
    """All stays finite for log-probabilities down to -1e4, any gap and labels, z0 to 1e4, rewards to 1e6."""
    for name in VARIANTS:
        own = torch.tensor(logps, requires_grad=True)
        responses = ScoredResponses(
            logps=own,
            scores=own,
            margins=torch.tensor([rewards[0]]),
            lengths=torch.tensor(lengths),
            chosen=torch.tensor([0]),
            rejected=torch.tensor([1]),
            reference_logps=torch.tensor(reference),
            prior_gap=torch.tensor([gap]),
            labels=torch.tensor(labels),
            divergence=torch.tensor(divergence),
            auxiliary=torch.tensor(rewards),
            values=torch.tensor([0.5, -0.5]),
            prior_reward=torch.tensor([gap, 0.5]),
            groups=torch.tensor([0, 0]),
        )
        losses, total, gradient = run(with_prior(name), responses)
        assert total.isfinite()
        assert gradient.isfinite().all()
        assert all(values.isfinite().all() for values in losses.metrics.values())


@hypothesis_settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), row=st.integers(0, 5), name=st.sampled_from(sorted(VARIANTS)))
def test_pairs_do_not_touch_each_other(seed: int, row: int, name: str) -> None:
    """Changing one pair leaves every other pair's losses, metrics and gradients as they were, bit for bit."""
    settings = with_prior(name)
    before = random_pairs(6, seed)
    changed = before.logps.detach().clone()
    changed[[row, row + 6]] -= 3.0
    lengths = before.lengths.clone()
    lengths[[row, row + 6]] += 2
    after = replace(before, logps=changed.requires_grad_(), scores=changed, lengths=lengths)
    pairs = torch.arange(6) != row
    others = {6: pairs, 12: pairs.repeat(2)}  # by pair, or by response
    first, second = build(settings)(with_tokens(before)), build(settings)(with_tokens(after))
    for term in first.terms:
        old, new = first.terms[term].values, second.terms[term].values
        assert torch.equal(old[others[len(old)]], new[others[len(new)]]), term
        # A value's term has no gradient here, and that is 0.
        (old_gradient,) = torch.autograd.grad(old.sum(), before.logps, materialize_grads=True)
        (new_gradient,) = torch.autograd.grad(new.sum(), after.logps, materialize_grads=True)
        assert torch.equal(old_gradient[others[12]], new_gradient[others[12]]), term
    for metric, old in first.metrics.items():
        assert torch.equal(old[others[len(old)]], second.metrics[metric][others[len(old)]]), metric


def take_pairs(responses: ScoredResponses, pairs: Tensor) -> ScoredResponses:
    """Some pairs of a batch as a batch of their own."""
    rows = torch.cat([responses.chosen[pairs], responses.rejected[pairs]])
    assert responses.reference_logps is not None
    assert responses.prior_gap is not None
    assert responses.labels is not None
    assert responses.auxiliary is not None
    assert responses.values is not None
    assert responses.logps is not None
    assert responses.margins is not None
    assert responses.prior_reward is not None
    return ScoredResponses(
        logps=responses.logps[rows],
        scores=responses.logps[rows],
        margins=responses.margins[pairs],
        lengths=responses.lengths[rows],
        chosen=torch.arange(len(pairs)),
        rejected=torch.arange(len(pairs)) + len(pairs),
        reference_logps=responses.reference_logps[rows],
        prior_gap=responses.prior_gap[pairs],
        labels=responses.labels[rows],
        divergence=responses.divergence,
        auxiliary=responses.auxiliary[rows],
        values=responses.values[rows],
        prior_reward=responses.prior_reward[rows],
        groups=torch.arange(len(pairs)).repeat(2),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_split_totals_add_up(name: str) -> None:
    """Micro-batches divided by the whole batch's counts add up to its total, tokens included."""
    objective = build(with_prior(name))
    whole = with_tokens(random_pairs(9, dtype=torch.float64))
    counts = count_units(whole.lengths, whole.chosen, whole.groups)
    parts = [take_pairs(whole, pairs) for pairs in (torch.arange(2), torch.arange(2, 8), torch.tensor([8]))]
    part_counts = [count_units(part.lengths, part.chosen, part.groups) for part in parts]
    assert {unit: sum(c[unit] for c in part_counts) for unit in counts} == counts
    split = sum(objective(with_tokens(part)).total(counts) for part in parts)
    torch.testing.assert_close(split, objective(whole).total(counts), rtol=1e-12, atol=1e-15)


def test_token_mean_is_not_a_mean_of_means() -> None:
    """The likelihood of cpo is a mean over all chosen tokens: (1 * 4 + 2 * 1) / (4 + 1) = 1.2 nats, not 1.5.

    The chosen responses have 4 tokens at 1 nat each, and 1 token at 2 nats. The metric is per pair and per
    token, so it shows 1 and 2. Summed and averaged over pairs, the term is (4 + 2) / 2 = 3.
    """
    responses = ScoredResponses(
        logps=torch.tensor([-4.0, -2.0, -1.0, -1.0]),
        lengths=torch.tensor([4, 1, 1, 1]),
        chosen=torch.tensor([0, 1]),
        rejected=torch.tensor([2, 3]),
    )
    counts = count_units(responses.lengths, responses.chosen)
    token_mean = Objective((ChosenLikelihood(1.0),))(responses)
    assert token_mean.total(counts).item() == pytest.approx(1.2)
    assert token_mean.metrics["loss/chosen_likelihood"].tolist() == [1.0, 2.0]
    sums = Objective((ChosenLikelihood(0.5, "sum"),))(responses)
    assert sums.total(counts).item() == pytest.approx(1.5)
    assert sums.metrics["loss/chosen_likelihood"].tolist() == [4.0, 2.0]


def test_one_response_may_be_in_many_pairs() -> None:
    """Pairs are indices: a response chosen twice counts, and is trained, twice."""
    responses = replace(
        one_pair(),
        chosen=torch.tensor([0, 0]),
        rejected=torch.tensor([1, 1]),
        prior_gap=torch.ones(2),
        margins=torch.full((2,), 0.5),
    )
    counts = count_units(responses.lengths, responses.chosen)
    assert {unit: count.item() for unit, count in counts.items()} == {
        "pairs": 2,
        "chosen_tokens": 4,
        "responses": 2,
        "response_tokens": 6,
    }
    for settings in VARIANTS.values():
        _, twice, _ = run(settings, responses)
        _, once, _ = run(settings, one_pair(gap=1.0))
        torch.testing.assert_close(twice, once)


def test_a_reward_model_has_no_log_probabilities() -> None:
    """Its metrics are scores alone: -4 and -6 for the pair, 2 apart, and the square of their sum, 100."""
    pair = replace(one_pair(), logps=None, reference_logps=None)
    losses = build(VARIANTS["bradley_terry_margin"])(pair)
    assert {name: values.item() for name, values in losses.metrics.items()} == {
        "rewards/chosen": -4.0,
        "rewards/rejected": -6.0,
        "rewards/margins": 2.0,
        "rewards/accuracies": 1.0,
        "loss/preference": pytest.approx(math.log1p(math.exp(-1.5))),
        "loss/centring": 100.0,
    }


def test_a_policy_needs_log_probabilities() -> None:
    """Responses with scores alone are refused by a method that trains a policy."""
    with pytest.raises(ValueError, match="logps is None"):
        build({"method": "simpo"})(replace(one_pair(), logps=None))


REWARDS_BY_HAND = {
    "dpo": (0.5, -1.0),
    "ipo": (0.25, -0.5),
    "ipo_sums": (0.25, -0.5),
    "simpo": (-4.0, -3.0),
    "cpo": (-2.0, -3.0),
    "cpo_sums": (-2.0, -3.0),
    "hinge": (0.1, -0.2),
    "orpo": (-1.0, -0.75),
    "r_dpo": (0.5, -1.0),
    "exo": (0.5, -1.0),
    "discopop": (0.5, -1.0),
    "dpop": (0.5, -1.0),
    "f_dpo": (0.5, -1.0),
    "dpo_means": (0.5, -1.0),
    "dpo_likelihood": (0.5, -1.0),
    "hinge_means": (0.1, -0.2),
    "robust": (0.5, -1.0),
}


@pytest.mark.parametrize("name", REWARDS_BY_HAND)
def test_metrics_by_hand(name: str) -> None:
    """Rewards are beta times the method's score without the gap; those of log-ratios are sums in any case.

    dpo: 0.5 * (1, -2); ipo: 0.25 * (1, -2); simpo: 2 * (-2, -1.5); cpo: 0.5 * (-4, -6); hinge: 0.1 * (1, -2);
    orpo: 0.5 * (-2, -1.5); r_dpo and its like: as dpo.
    """
    losses, _, _ = run({**VARIANTS[name], "prior": "reward_gap"}, one_pair(gap=0.25))
    chosen, rejected = REWARDS_BY_HAND[name]
    expected = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": float(chosen > rejected),
        "logps/chosen": -4.0,
        "logps/rejected": -6.0,
        "prior/gap": 0.25,
        "loss/preference": losses.terms["preference"].values.item(),
    }
    if "reference" in build(VARIANTS[name]).needs:
        expected |= {"displacement/chosen": 0.0, "displacement/both": 0.0}
    if "likelihood_weight" in VARIANTS[name] or name == "orpo":
        expected["loss/chosen_likelihood"] = 4.0 if name == "cpo_sums" else 2.0
    assert losses.metrics.keys() == expected.keys()
    for metric, values in losses.metrics.items():
        assert values.dtype == torch.float32
        assert not values.requires_grad
        assert values.tolist() == pytest.approx([expected[metric]], rel=1e-6), metric


def test_displacement_by_hand() -> None:
    """Of pairs with h_w and h_l of (1, -2), (-1, -2) and (-1, 1), the chosen one fell in two, both in one.

    The first margin grew by a likelier chosen response, the second by a rejected one that fell faster.
    """
    ratios = torch.tensor([1.0, -1.0, -1.0, -2.0, -2.0, 1.0])
    pairs = replace(random_pairs(3), logps=ratios - 10, reference_logps=torch.full((6,), -10.0))
    metrics = build({"method": "dpo"})(pairs).metrics
    assert metrics["displacement/chosen"].tolist() == [0.0, 1.0, 1.0]
    assert metrics["displacement/both"].tolist() == [0.0, 1.0, 0.0]
    rounded = replace(pairs, logps=torch.full((6,), -10.001))
    assert build({"method": "dpo"})(rounded).metrics["displacement/chosen"].tolist() == [0.0, 0.0, 0.0]
    assert "displacement/chosen" not in build({"method": "simpo"})(pairs).metrics


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast(name: str, dtype: torch.dtype) -> None:
    """Half inputs are computed in float32, and give what the same numbers give in float32."""
    settings = with_prior(name)
    half = one_pair(0.5, dtype)
    losses, loss, gradient = run(settings, half)
    _, single_loss, single_gradient = run(settings, one_pair(0.5, torch.float32))
    assert {term.values.dtype for term in losses.terms.values()} == {torch.float32}
    assert torch.equal(loss, single_loss)
    assert torch.equal(gradient, single_gradient.to(dtype))


ROUNDING = {"exo": 3e-8, "nca": 3e-8}
"""Half a step of float32 next to 0.5, for losses with an optimum at a finite margin."""


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_float32_keeps_its_digits(name: str, labels: bool) -> None:
    """Over log-ratios of -40 to 40, losses and gradients in float32 are those in float64 to 1e-6.

    Where a loss has its optimum within, both are differences of larger numbers next to it.
    """
    settings = {**VARIANTS[name], **({"beta": 1.0} if "beta" in VARIANTS[name] else {})}
    found = {}
    for dtype in (torch.float32, torch.float64):
        ratios = torch.arange(-40, 40.25, 0.25, dtype=dtype)
        count = len(ratios)
        logps = torch.cat([ratios, torch.zeros(count, dtype=dtype)]).requires_grad_()
        responses = ScoredResponses(
            logps=logps,
            scores=logps,
            lengths=torch.ones(2 * count, dtype=torch.int64),
            chosen=torch.arange(count),
            rejected=torch.arange(count) + count,
            reference_logps=torch.zeros(2 * count, dtype=dtype),
            labels=torch.full((2 * count,), labels),
            divergence=torch.zeros((), dtype=dtype),
            auxiliary=torch.tensor([0.0, 1.0], dtype=dtype).repeat(count),
            values=torch.full((2 * count,), 0.25, dtype=dtype),
            margins=torch.zeros(count, dtype=dtype),
            prior_gap=torch.full((count,), 0.5, dtype=dtype),
            prior_reward=torch.tensor([0.75, 0.25], dtype=dtype).repeat_interleave(count),
            groups=torch.arange(count).repeat(2),
        )
        losses = build(settings)(with_tokens(responses))
        values = torch.cat([term.weight * term.values for term in losses.terms.values()])
        (gradient,) = torch.autograd.grad(values.sum(), logps)
        found[dtype] = torch.cat([values.detach(), gradient])
    expected = found[torch.float64]
    torch.testing.assert_close(found[torch.float32].double(), expected, rtol=1e-6, atol=ROUNDING.get(name, 0))


def test_float64_stays_float64() -> None:
    """Double inputs are computed in double."""
    for settings in VARIANTS.values():
        losses = build(settings)(with_tokens(one_pair(gap=0.5)))
        assert {term.values.dtype for term in losses.terms.values()} == {torch.float64}


def test_empty_response_scores_zero_per_token() -> None:
    """A response truncated to no tokens has a per-token score of 0, not NaN."""
    empty = replace(one_pair(), logps=torch.zeros(2), lengths=torch.tensor([0, 0]))
    empty = replace(empty, reference_logps=torch.zeros(2))
    assert mean_log_ratio(empty).tolist() == [0.0, 0.0]


def test_a_published_loss_is_one_line() -> None:
    """An objective composed by hand is the one that `build` makes."""
    objective = Objective((Margin(log_ratio, Logistic(0.1), PRIORS["reward_gap"]),))
    assert objective == build({"method": "dpo", "prior": "reward_gap"})


def test_every_method_has_a_variant_here() -> None:
    """A method added to the table has to be added to these tests, with a value worked out by hand."""
    assert {settings["method"] for settings in VARIANTS.values()} == set(METHODS)
    assert {settings["method"] for settings, *_ in BY_HAND.values()} == set(METHODS)
