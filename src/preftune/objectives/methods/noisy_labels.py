"""Methods for pairs of which a known share has the wrong label."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.links import Logistic
from preftune.objectives.methods.margins import ratio_margin
from preftune.objectives.methods.method import BETA, LENGTH_NORMALIZED, Method, published
from preftune.objectives.options import BELOW_HALF, POSITIVE, SWITCH, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import Prior


@published
@dataclass(frozen=True)
class RobustDPO(Method):
    """(-(1 - e) log sigma(u) + e log sigma(-u)) / (1 - 2e), with the u of dpo: the unbiased loss of rDPO.

    Its mean over pairs whose labels are flipped with probability e is the mean of dpo over the true ones.
    """

    name = "robust"
    summary = "dpo without the bias of labels that are wrong with a known probability"
    source = "rDPO, arXiv 2403.00409; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, BETA)
    label_smoothing: float = option(0.1, BELOW_HALF, "e, the share of the labels that are wrong; 0 is dpo")
    length_normalized: bool = option(False, SWITCH, LENGTH_NORMALIZED)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        tilt = -self.label_smoothing / (1 - 2 * self.label_smoothing)
        return (ratio_margin(Logistic(self.beta, tilt=tilt), prior, self.length_normalized),)
