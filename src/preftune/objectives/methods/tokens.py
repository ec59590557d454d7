"""Methods of log-probabilities token by token."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.links import Logistic
from preftune.objectives.methods.method import BETA, Method, published
from preftune.objectives.options import POSITIVE, UNIT_INTERVAL, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import TOKEN_REWARD_GAP, Prior
from preftune.objectives.scores import log_ratio
from preftune.objectives.tokens import LengthDiscountedMargin, LikelihoodWeightedMargin


@published
@dataclass(frozen=True)
class LDDPO(Method):
    """-log sigma(beta (h_w - delta h_l)), tokens behind the shorter length times alpha: LD-DPO."""

    name = "ld_dpo"
    summary = "dpo in which what the longer response has more counts less"
    source = "LD-DPO, arXiv 2409.06411; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, BETA)
    alpha: float = option(
        0.5, UNIT_INTERVAL, "how much tokens behind the shorter response's length count; 1 is dpo"
    )

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of discounted log-ratios."""
        return (LengthDiscountedMargin(log_ratio, Logistic(self.beta), prior, alpha=self.alpha),)


@published
@dataclass(frozen=True)
class WPO(Method):
    """-w(y_w) w(y_l) log sigma(beta (h_w - delta h_l)): WPO Eq. 2, with the sampled alignment."""

    name = "wpo"
    summary = "dpo in which pairs that the policy might have sampled itself count more"
    source = "WPO, arXiv 2406.11827, Eq. 2; the prior enters as in MaPPO Eq. 8"
    priors = (*Method.priors, TOKEN_REWARD_GAP)

    beta: float = option(0.1, POSITIVE, BETA)
    cap: float | None = option(None, POSITIVE, "largest weight of a pair")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios, weighted."""
        return (LikelihoodWeightedMargin(log_ratio, Logistic(self.beta), prior, cap=self.cap),)
