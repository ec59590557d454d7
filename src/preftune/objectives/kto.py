"""Desirable or not, one response at a time: Kahneman-Tversky optimization (KTO, arXiv 2402.01306)."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from preftune.objectives.parts import pair_rewards
from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import log_likelihood, log_ratio

BALANCED = (1.0, 4 / 3)
"""Between which lambda_D n_D / (lambda_U n_U) should lie (KTO, first version, Eq. 8)."""


@dataclass(frozen=True)
class LabelBalance:
    """How desirable and undesirable responses of a data set weigh against each other.

    Attributes:
        ratio: lambda_D n_D / (lambda_U n_U).
        advice: what to set where it lies outside BALANCED; None inside.
    """

    ratio: float
    advice: str | None


@dataclass(frozen=True)
class ProspectUtility:
    """lambda_D (1 - sigma(beta (h - z0))) if desirable, else lambda_U (1 - sigma(beta (z0 - h))) (Eq. 7).

    z0 >= 0 is an estimate of KL(policy || reference) that carries no gradient: gains and losses are felt
    relative to it, and both saturate.

    With beta = 1, z0 = 1 and weights 1, a desirable response with h = 1 loses 1 - sigma(0) = 0.5, an
    undesirable one with h = 0 loses 1 - sigma(1) = 0.2689.

    Attributes:
        beta: scale of the implicit reward beta * h.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
    """

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    name = "preference"
    needs = frozenset[Need]({"reference", "labels", "divergence"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response; rewards and log-probabilities by label, margins by pair where there are."""
        desirable = cast(Bool[Tensor, "responses"], responses.labels)
        divergence = cast(Float[Tensor, ""], responses.divergence).detach()
        ratio = log_ratio(responses)
        gain = torch.where(desirable, ratio - divergence, divergence - ratio)
        lost = one_minus_sigmoid(self.beta * gain)
        values = torch.where(desirable, self.desirable_weight * lost, self.undesirable_weight * lost)
        reward, logps = self.beta * ratio, log_likelihood(responses)
        metrics = {
            **pair_rewards(reward, responses),
            f"loss/{self.name}": values,
            "kl": divergence.expand(len(values)),
            "logps/chosen": logps[desirable],
            "logps/rejected": logps[~desirable],
            "rewards/chosen": reward[desirable],
            "rewards/rejected": reward[~desirable],
        }
        return Term(values, unit="responses"), metrics

    def balance(self, desirable: int, undesirable: int) -> LabelBalance:
        """Weigh a data set's labels, of which there is at least one response each.

        Raises:
            ValueError: there are responses of one kind only.
        """
        if not desirable or not undesirable:
            raise ValueError(
                f"there are {desirable} desirable and {undesirable} undesirable responses, and both kinds "
                "must be present: check the labels, or add responses of the other kind"
            )
        losses = self.undesirable_weight * undesirable
        ratio = self.desirable_weight * desirable / losses if losses else math.inf
        low, high = BALANCED
        if low <= ratio <= high:
            return LabelBalance(ratio, None)
        middle = (low + high) / 2
        if ratio < low:
            fix = f"desirable_weight={middle * self.undesirable_weight * undesirable / desirable:.3g}"
        else:
            fix = f"undesirable_weight={self.desirable_weight * desirable / undesirable / middle:.3g}"
        return LabelBalance(
            ratio,
            f"desirable responses weigh {ratio:.3g} times the undesirable ones, where {low:g} to {high:.3g} "
            f"is advised (KTO, first version, Eq. 8): set objective.{fix}",
        )


def one_minus_sigmoid(x: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """1 - sigma(x), which keeps its digits and those of its gradient on both sides.

    Autograd computes the gradient of sigma as sigma (1 - sigma), and 1 - sigma has no digits left once sigma
    is nearly 1. So sigma is taken of the negative side, where it is small: 1 - sigma(x) = sigma(-x).
    """
    return torch.where(x > 0, torch.sigmoid(-x), 1 - torch.sigmoid(x))
