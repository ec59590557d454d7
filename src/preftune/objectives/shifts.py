"""What a margin is shifted by, pair by pair, in units of the score: the prior leaves it alone."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from preftune.objectives.responses import Need, ScoredResponses
from preftune.objectives.scores import log_likelihood


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
