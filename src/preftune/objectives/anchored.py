"""Losses that hold each response of a pair against the reference, and not only against the other one.

The log-ratios h_w and h_l enter separately: there is no one margin in which a prior could weigh the rejected
score, so that none is defined for them.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from preftune.objectives.kto import one_minus_sigmoid
from preftune.objectives.parts import pair_rewards
from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import log_ratio


@runtime_checkable
class Anchor(Protocol):
    """Two log-ratios to a loss, pair by pair."""

    @property
    def beta(self) -> float:
        """Scale of the implicit reward beta * h."""

    def __call__(self, chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Tensor:
        """Loss of every pair, from h_w and h_l in nats."""


@dataclass(frozen=True)
class UpAndDown:
    """1 - sigma(beta h_w) + sigma(beta h_l): chosen up, rejected down (APO-zero, arXiv 2408.06266, Eq. 7)."""

    beta: float

    def __call__(self, chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Tensor:
        """Loss of every pair."""
        return one_minus_sigmoid(self.beta * chosen) + one_minus_sigmoid(-self.beta * rejected)


@dataclass(frozen=True)
class BothDown:
    """sigma(beta h_w) + 1 - sigma(beta (h_w - h_l)): both down, the rejected more (APO-down, Eq. 8)."""

    beta: float

    def __call__(self, chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Tensor:
        """Loss of every pair."""
        return one_minus_sigmoid(-self.beta * chosen) + one_minus_sigmoid(self.beta * (chosen - rejected))


@dataclass(frozen=True)
class NoiseContrast:
    """-log sigma(u_w) - (log sigma(-u_w) + log sigma(-u_l)) / 2 with u = beta h (NCA, arXiv 2402.05369).

    The response is told from noise of the reference: u_w has its optimum at log 2, not at infinity.
    """

    beta: float

    def __call__(self, chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Tensor:
        """Loss of every pair."""
        chosen, rejected = self.beta * chosen, self.beta * rejected
        noise = functional.logsigmoid(-chosen) + functional.logsigmoid(-rejected)
        return -functional.logsigmoid(chosen) - noise / 2


@dataclass(frozen=True)
class SelfPlay:
    """(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2 (SPPO, arXiv 2405.00675, Eq. 4.7).

    The probability that a response wins is 1 for the chosen one and 0 for the other.
    """

    beta: float

    def __call__(self, chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Tensor:
        """Loss of every pair."""
        target = 1 / (2 * self.beta)
        return (chosen - target) ** 2 + (rejected + target) ** 2


@dataclass(frozen=True)
class BinaryClassifier:
    """-log sigma(beta h_w) - log sigma(-beta h_l): a bound of dpo's loss (BCO, arXiv 2404.04656, Theorem 1).

    The paper shifts both rewards by their running mean, which would be a state beside the weights.
    """

    beta: float

    def __call__(self, chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Tensor:
        """Loss of every pair."""
        return -functional.logsigmoid(self.beta * chosen) - functional.logsigmoid(-self.beta * rejected)


@dataclass(frozen=True)
class Anchored:
    """The preference loss of a pair from its two log-ratios.

    Attributes:
        anchor: how they become a loss.
    """

    anchor: Anchor

    name = "preference"
    needs = frozenset[Need]({"pairs", "reference"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per pair, and the implicit rewards."""
        ratio = log_ratio(responses)
        values = self.anchor(ratio[responses.chosen], ratio[responses.rejected])
        return Term(values, unit="pairs"), pair_rewards(self.anchor.beta * ratio, responses)
