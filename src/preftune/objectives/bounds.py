"""A reward as a bound instead of a weight: its multiplier is learned by dual descent (after MOPO).

MOPO (arXiv 2505.10892) maximises one objective while others are bounded from below: a policy learns by
likelihood that is weighted by rho = exp((p + lambda q) / tau - 1), and a multiplier follows the slack of its
bound under those weights, lambda <- [lambda - eta (mean under rho of q - b)]_+. Here the weights are the
factors of the advantage-weighted likelihood, in whose advantage the multipliers stand beside the rewards.

Ours, where MOPO has something else: the mean of a measurement is bounded in place of a probability of being
preferred; the preference loss stands beside the weighted likelihood, not in its weights; V(x) is in the place
of the weights' normaliser, and the means are divided by the sum of the weights of the step; bounds and
reference stay where they are; and there is no robust lower bound of the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True)
class Bound:
    """The mean of a measurement is to be at least, or at most, a limit.

    Attributes:
        name: of the reward.
        limit: in the measurement's own units.
        is_least: whether the mean is to be at least the limit; else it is to be at most that.
        scale: standard deviation of the measurement over the training set, > 0.
    """

    name: str
    limit: float
    is_least: bool
    scale: float = 1.0


def slacks(
    bounds: Sequence[Bound], means: Float[Tensor, "*items bounds"]
) -> Float64[Tensor, "*items bounds"]:
    """How far measurements, or their means, are on the good side of each bound, in standard deviations.

    With at_least 2 and scale 0.5, a measurement of 3 has slack 2; with at_most 2 it has -2.
    """
    like = means.double()
    limits = like.new_tensor([bound.limit for bound in bounds])
    units = like.new_tensor([bound.scale if bound.is_least else -bound.scale for bound in bounds])
    return (like - limits) / units


@dataclass(frozen=True)
class DualDescent:
    """lambda <- clamp(lambda - rate * slack, 0, largest), once for each optimizer step.

    Attributes:
        bounds: one for each multiplier.
        rate: eta, by how much a slack of one standard deviation changes a multiplier.
        largest: where a multiplier stops, as that of a bound that cannot be met never would.
    """

    bounds: tuple[Bound, ...]
    rate: float
    largest: float

    def start(self) -> Float64[Tensor, "bounds"]:
        """Multipliers before the first step: no bound weighs anything."""
        return torch.zeros(len(self.bounds), dtype=torch.float64)

    def step(
        self, multipliers: Float64[Tensor, "bounds"], means: Float64[Tensor, "bounds"]
    ) -> Float64[Tensor, "bounds"]:
        """The multipliers after a step.

        Args:
            multipliers: before it.
            means: of each bounded measurement over all responses of the step, weighted by their factors.
        """
        return (multipliers - self.rate * slacks(self.bounds, means)).clamp(0, self.largest)
