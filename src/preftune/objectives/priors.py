"""How much the rejected score counts in the margin: fully, or by the reward gap (MaPPO, arXiv 2507.21183).

A new prior is one function under `@prior` and `@needing`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.needs import needing, needs_of
from preftune.objectives.responses import Need, ScoredResponses

Delta = Callable[[ScoredResponses], Float[Tensor, "pairs"]]


@dataclass(frozen=True)
class Prior:
    """A factor delta on the rejected score of every pair.

    Attributes:
        delta: the factor of every pair; it says what it needs (`needs_of`).
        summary: one line for people.

    Raises:
        ValueError: `delta` does not say what it needs.
    """

    delta: Delta
    summary: str = ""

    def __post_init__(self) -> None:
        needs_of(self.delta)

    @property
    def needs(self) -> frozenset[Need]:
        """What the responses must carry for it."""
        return needs_of(self.delta)


PRIORS: dict[str, Prior] = {}
"""Every prior by its name in a configuration."""


def prior(name: str, summary: str) -> Callable[[Delta], Delta]:
    """Let a configuration name a factor."""

    def register(delta: Delta) -> Delta:
        PRIORS[name] = Prior(delta, summary)
        return delta

    return register


@prior("none", "delta = 1: the plain method")
@needing()
def one(responses: ScoredResponses) -> Float[Tensor, "pairs"]:
    """The factor 1: the maximum-likelihood form, which is the plain method."""
    return torch.ones(len(responses.rejected), device=responses.rejected.device)


@prior("reward_gap", "delta = r_chosen - r_rejected (MaPPO)")
@needing("prior_gap")
def reward_gap(responses: ScoredResponses) -> Float[Tensor, "pairs"]:
    """The gap delta = r_chosen - r_rejected, as the data gives it (MaPPO Eq. 5-8).

    Raises:
        ValueError: the responses carry no gaps.
    """
    if responses.prior_gap is None:
        raise ValueError("prior_gap is None, but the reward_gap prior needs it: calibrate the data's scores")
    return responses.prior_gap
