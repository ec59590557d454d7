"""How much the rejected score counts in the margin: fully, or by the reward gap (MaPPO, arXiv 2507.21183).

A new prior is one function under `@prior` and `@needing`. One with a `credit` also says how the factor is
shared out among the rejected response's tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.credit import TokenCredit
from preftune.objectives.needs import needing, needs_of
from preftune.objectives.options import Options
from preftune.objectives.responses import Need, ScoredResponses

Delta = Callable[[ScoredResponses], Float[Tensor, "pairs"]]


@dataclass(frozen=True)
class Prior:
    """A factor delta on the rejected score of every pair.

    Attributes:
        delta: the factor of every pair; it says what it needs (`needs_of`).
        summary: one line for people.
        credit: how much of the factor each rejected token carries; None for the same on all.

    Raises:
        ValueError: `delta` does not say what it needs.
    """

    delta: Delta
    summary: str = ""
    credit: TokenCredit | None = None

    def __post_init__(self) -> None:
        needs_of(self.delta)

    @property
    def needs(self) -> frozenset[Need]:
        """What the responses must carry for it."""
        return needs_of(self.delta) | (self.credit.needs if self.credit else frozenset())

    @property
    def options(self) -> tuple[type[Options], ...]:
        """Whose fields are its options."""
        return (type(self.credit),) if self.credit else ()

    def with_options(self, options: Mapping[str, Any]) -> "Prior":
        """The same prior with these options."""
        return replace(self, credit=TokenCredit(**options)) if self.credit else self


TOKEN_REWARD_GAP = "token_reward_gap"
"""The prior that goes by tokens, which a method must name to take it."""

PRIORS: dict[str, Prior] = {}
"""Every prior by its name in a configuration."""


def prior(name: str, summary: str, credit: TokenCredit | None = None) -> Callable[[Delta], Delta]:
    """Let a configuration name a factor, shared out among tokens by `credit`."""

    def register(delta: Delta) -> Delta:
        PRIORS[name] = Prior(delta, summary, credit)
        return delta

    return register


@prior("none", "delta = 1: the plain method")
@needing()
def one(responses: ScoredResponses) -> Float[Tensor, "pairs"]:
    """The factor 1: the maximum-likelihood form, which is the plain method."""
    return torch.ones(len(responses.rejected), device=responses.rejected.device)


@prior(
    TOKEN_REWARD_GAP,
    "the same delta, more of it on rejected tokens that have become likelier (ours)",
    TokenCredit(),
)
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
