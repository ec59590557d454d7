"""Methods that learn from all responses of a prompt, by their prior rewards."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.groups import (
    ContrastAmongResponses,
    ContrastWithReference,
    DecisionDistillation,
    QuantileRegression,
    RankLikelihood,
)
from preftune.objectives.methods.method import BETA, Method, published
from preftune.objectives.methods.reward_gaps import REWARD_SCALE
from preftune.objectives.options import POSITIVE, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import Prior


@published
@dataclass(frozen=True)
class InfoNCA(Method):
    """-softmax(s r) log softmax(beta h) over a prompt's responses."""

    name = "infonca"
    summary = "cross-entropy between rewards and implicit rewards over all responses of a prompt"
    source = "InfoNCA, arXiv 2402.05369, and its code"
    # The rewards of all responses stand in these losses already.
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (ContrastAmongResponses(self.beta, self.reward_scale),)


@published
@dataclass(frozen=True)
class RewardNCA(Method):
    """-softmax(s r) log sigma(beta h) - 1/n log sigma(-beta h)."""

    name = "reward_nca"
    summary = "each response told from the reference's by its share of the rewards; keeps good ones likely"
    source = "NCA with rewards, arXiv 2402.05369, and its code"
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (ContrastWithReference(self.beta, self.reward_scale),)


@published
@dataclass(frozen=True)
class PlackettLuce(Method):
    """-sum of log softmax(beta h) of each response among itself and those that rank below it."""

    name = "plackett_luce"
    summary = "dpo on a ranking of all responses of a prompt"
    source = "DPO, arXiv 2305.18290, Appendix A.3; for two responses its Eq. 7"
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (RankLikelihood(self.beta),)


@published
@dataclass(frozen=True)
class QRPO(Method):
    """(q - beta log Z - beta h)^2, q the quantile of a response's reward among its prompt's."""

    name = "qrpo"
    summary = "regression of each log-ratio on the quantile of the response's reward among its prompt's"
    source = "QRPO, arXiv 2507.08068, Eq. 11 (Z), and its code"
    priors = ("none",)

    beta: float = option(0.003, POSITIVE, "scale of the log-ratio; the authors train with small ones")

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (QuantileRegression(self.beta),)


@published
@dataclass(frozen=True)
class DDORM(Method):
    """-sg(q) log p, p = softmax(lbar / T) and q proportional to p exp(eta r / T)."""

    name = "ddo_rm"
    summary = (
        "distillation of the policy's choice among a prompt's responses, moved towards rewards; no reference"
    )
    source = "DDO-RM, arXiv 2604.11119, and its code"
    priors = ("none",)

    eta: float = option(1.0, POSITIVE, "step towards the rewards")
    temperature: float = option(1.0, POSITIVE, "of the choice among responses")

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (DecisionDistillation(self.eta, self.temperature),)
