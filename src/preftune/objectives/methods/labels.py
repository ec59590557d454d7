"""Methods of single responses with a label."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.conditional import ConditionalLikelihood
from preftune.objectives.kto import ProspectUtility
from preftune.objectives.methods.method import BETA, Method, published
from preftune.objectives.options import NOT_NEGATIVE, POSITIVE, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import Prior


@published
@dataclass(frozen=True)
class KTO(Method):
    """lambda_D (1 - sigma(beta (h - z0))), lambda_U (1 - sigma(beta (z0 - h))): KTO Eq. 7."""

    name = "kto"
    summary = "saturating gain or loss of single responses, desirable or not, against the divergence so far"
    source = "KTO, arXiv 2402.01306, Eq. 7"
    # MaPPO weighs a rejected response against its chosen one, and here is no pair.
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)
    desirable_weight: float = option(1.0, NOT_NEGATIVE, "lambda_D, weight of desirable responses")
    undesirable_weight: float = option(1.0, NOT_NEGATIVE, "lambda_U, weight of undesirable responses")

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (ProspectUtility(self.beta, self.desirable_weight, self.undesirable_weight),)


@published
@dataclass(frozen=True)
class ConditionalSFT(Method):
    """-log pi(y given x, c), where c says good or bad: CSFT."""

    name = "csft"
    summary = "likelihood of single responses after a text that says whether they are desirable; no reference"
    source = "conditional training, arXiv 2302.08582; CSFT of KTO's code, arXiv 2402.01306"
    priors = ("none",)
    reads_control = True

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (ConditionalLikelihood(),)
