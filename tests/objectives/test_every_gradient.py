"""Every method of the table, with every prior it takes: its gradient is its loss's, and both stay finite."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.objectives import METHODS, PRIORS, ScoredResponses, build, count_units

from .spread_tokens import with_tokens
from .test_methods import VARIANTS, random_pairs

HOLD_SOMETHING = {"wpo", "alol", "dro_v", "ddo_rm", "rloo", "grpo"}
"""Methods with a factor or a target of the policy's own that is held fixed: no loss has their gradient."""

WITH_PRIORS = [(name, prior) for name, method in METHODS.items() for prior in method.priors]


def total(settings: dict[str, Any], responses: ScoredResponses) -> Tensor:
    """The loss of all, from whatever the method reads."""
    losses = build(settings)(with_tokens(responses))
    assert all(values.isfinite().all() for values in losses.metrics.values())
    return losses.total(count_units(responses.lengths, responses.chosen, responses.groups))


DIFFERENTIABLE = [
    pytest.param({**settings, "prior": prior}, id=f"{name}-{prior}")
    for name, settings in VARIANTS.items()
    for prior in ("none", "reward_gap")
    if settings["method"] not in HOLD_SOMETHING and prior in METHODS[settings["method"]].priors
]


@pytest.mark.parametrize("settings", DIFFERENTIABLE)
def test_gradient_is_that_of_the_loss(settings: dict[str, Any]) -> None:
    """In float64, over random pairs, it is what finite differences of the loss give."""
    responses = random_pairs(4, seed=3, dtype=torch.float64)
    own = responses.logps
    assert own is not None
    (found,) = torch.autograd.grad(total(settings, responses), own)
    step, expected = 1e-6, torch.zeros_like(found)
    for place in range(len(own)):
        sides = []
        for sign in (1, -1):
            moved = own.detach().clone()
            moved[place] += sign * step
            sides.append(total(settings, replace(responses, logps=moved, scores=moved)).detach())
        expected[place] = (sides[0] - sides[1]) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "prior"), WITH_PRIORS)
def test_huge_log_ratios_stay_finite(name: str, prior: str, dtype: torch.dtype) -> None:
    """Log-ratios of 1e4 and -1e4, in both of a pair or in one: loss, metrics and gradient are numbers."""
    assert prior in PRIORS
    extreme = torch.tensor([0.0, -1e4, 0.0, -1e4, 0.0, 0.0, -1e4, -1e4], dtype=dtype)
    own = extreme.clone().requires_grad_()
    responses = replace(
        random_pairs(4, dtype=dtype),
        logps=own,
        scores=own,
        reference_logps=-1e4 - extreme,
        prior_gap=torch.tensor([0.0, 0.5, 1.0, 1e-6], dtype=dtype),
    )
    (gradient,) = torch.autograd.grad(loss := total({"method": name, "prior": prior}, responses), own)
    assert loss.isfinite()
    assert gradient.isfinite().all()
