"""What a margin is shifted by, pair by pair, in units of the score: the prior leaves it alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.responses import Need, ScoredResponses
from preftune.objectives.scores import log_likelihood, log_ratio


@dataclass(frozen=True)
class LengthDifference:
    """weight * (n_w - n_l): what the chosen response owes to its length (R-DPO, arXiv 2403.19159, Eq. 9).

    With weight 0.5, a chosen response of 6 tokens and a rejected one of 4 shift the margin by 1.

    Attributes:
        weight: alpha / beta, where alpha is the penalty of a token in units of beta * score.
    """

    weight: float

    needs = frozenset[Need]({"pairs"})

    def __call__(self, responses: ScoredResponses) -> Float[Tensor, "pairs"]:
        """The shift of every pair."""
        difference = responses.lengths[responses.chosen] - responses.lengths[responses.rejected]
        return self.weight * difference.to(log_likelihood(responses).dtype)


@dataclass(frozen=True)
class ChosenLoss:
    """-weight * max(0, -h_w): what the chosen response has lost (DPO-Positive, arXiv 2402.13228, Eq. 3).

    With weight 2 and h_w = -1 it is -2, with the slope 2 in h_w; with h_w >= 0 it is 0.

    Attributes:
        weight: lambda.
    """

    weight: float

    needs = frozenset[Need]({"pairs", "reference"})

    def __call__(self, responses: ScoredResponses) -> Float[Tensor, "pairs"]:
        """The shift of every pair."""
        return -self.weight * torch.relu(-log_ratio(responses)[responses.chosen])
