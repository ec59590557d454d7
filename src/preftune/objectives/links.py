"""How a margin becomes a loss: one function per pair, with the implicit reward's scale `beta`."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@runtime_checkable
class Link(Protocol):
    """A margin to a loss, pair by pair.

    It sees the margin alone, so that there is nothing it could need of the responses.
    """

    @property
    def beta(self) -> float:
        """Scale of the implicit reward beta * score."""

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""


@dataclass(frozen=True)
class Logistic:
    """-log sigma(u) with u = beta * m - offset: Bradley-Terry with a target margin (MaPPO Eq. 8, 12, 16).

    Where labels are wrong with probability e, `tilt * u` is added. Since log sigma(-u) = log sigma(u) - u,

    - -(1 - e) log sigma(u) - e log sigma(-u), smoothed labels (cDPO), is the tilt e, and
    - (-(1 - e) log sigma(u) + e log sigma(-u)) / (1 - 2e), the unbiased loss (rDPO, arXiv 2403.00409), is the
      tilt -e / (1 - 2e).

    With u = 0 and any tilt it is log 2. The slope in u is -sigma(-u) + tilt: smoothed labels have their
    minimum at u = log((1 - e) / e), the unbiased loss has none.

    Attributes:
        beta: scale of the implicit reward beta * score.
        offset: target margin, in units of beta * m.
        tilt: what is added per unit of u; 0 is the plain loss, bit for bit.
    """

    beta: float
    offset: float = 0.0
    tilt: float = 0.0

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair; log sigma in one operation, so that it stays finite at any margin."""
        u = self.beta * margin - self.offset
        plain = -functional.logsigmoid(u)
        return plain + self.tilt * u if self.tilt else plain


@dataclass(frozen=True)
class Square:
    """(m - 1 / (2 beta))^2: regression of the margin on a fixed target (MaPPO Eq. 14; IPO Eq. 17)."""

    beta: float

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        return (margin - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - beta * m): no gradient once the implicit rewards are 1 apart (SLiC-HF, arXiv 2305.10425)."""

    beta: float

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        return torch.relu(1 - self.beta * margin)
