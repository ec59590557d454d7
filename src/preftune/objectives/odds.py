"""Odds instead of probabilities: the score and the link of ORPO (arXiv 2403.07691)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from preftune.objectives.needs import needing
from preftune.objectives.responses import ScoredResponses
from preftune.objectives.scores import mean_log_likelihood

_LARGEST = -1e-7
"""Log-probability per token from which on the odds are held: a response that is certain has infinite odds."""


@needing()
def log_odds(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """log(p / (1 - p)) with p = exp(l / n), the geometric mean of token probabilities (ORPO, Eq. 4).

    Its gradient is 1 / (1 - p) that of l / n, and 0 where p is within 1e-7 of 1.

    Raises:
        ValueError: the responses carry no log-probabilities.
    """
    logps = mean_log_likelihood(responses).clamp(max=_LARGEST)
    return logps - torch.log(-torch.expm1(logps))


@dataclass(frozen=True)
class OddsRatio:
    """-beta log sigma(m): beta weighs the loss, and does not scale the margin (ORPO, Eq. 6 and 7).

    Attributes:
        beta: the paper's lambda.
    """

    beta: float

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        return -self.beta * functional.logsigmoid(margin)
