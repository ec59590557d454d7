"""How much the rejected score counts in the margin: fully, or by the reward gap (MaPPO, arXiv 2507.21183)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.responses import Need, ScoredResponses


@dataclass(frozen=True)
class Prior:
    """A factor delta on the rejected score of every pair.

    Attributes:
        delta: the factor of every pair.
        needs: what the responses must carry for it.
        summary: one line for people.
    """

    delta: Callable[[ScoredResponses], Float[Tensor, "pairs"]]
    needs: frozenset[Need]
    summary: str


def one(responses: ScoredResponses) -> Float[Tensor, "pairs"]:
    """The factor 1: the maximum-likelihood form, which is the plain method."""
    return torch.ones(len(responses.rejected), device=responses.rejected.device)


def reward_gap(responses: ScoredResponses) -> Float[Tensor, "pairs"]:
    """The gap delta = r_chosen - r_rejected, as the data gives it (MaPPO Eq. 5-8).

    Raises:
        ValueError: the responses carry no gaps.
    """
    if responses.prior_gap is None:
        raise ValueError("prior_gap is None, but the reward_gap prior needs it: calibrate the data's scores")
    return responses.prior_gap


PRIORS: Mapping[str, Prior] = {
    "none": Prior(one, frozenset(), "delta = 1: the plain method"),
    "reward_gap": Prior(reward_gap, frozenset({"prior_gap"}), "delta = r_chosen - r_rejected (MaPPO)"),
}
