"""How a margin becomes a loss: one convex function per pair, with the implicit reward's scale `beta`."""

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
    """-log sigma(beta * m - offset): Bradley-Terry with a target margin (MaPPO Eq. 8, 12, 16)."""

    beta: float
    offset: float = 0.0

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair; log sigma in one operation, so that it stays finite at any margin."""
        return -functional.logsigmoid(self.beta * margin - self.offset)


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
