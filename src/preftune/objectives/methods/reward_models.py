"""Methods that train a reward model."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.links import Logistic
from preftune.objectives.methods.method import LABEL_SMOOTHING, Method, published
from preftune.objectives.options import BELOW_HALF, NOT_NEGATIVE, SWITCH, option
from preftune.objectives.parts import Centring, Margin, Part
from preftune.objectives.priors import Prior
from preftune.objectives.scores import reward_score


@published
@dataclass(frozen=True)
class RewardModelling(Method):
    """-log sigma(s_w - s_l - m) + c (s_w + s_l)^2, with m = 0 unless `margin`."""

    name = "bradley_terry"
    summary = "a reward model: logistic loss on the difference of the scores it gives"
    source = (
        "InstructGPT, arXiv 2203.02155, Eq. 1; margin: Llama 2, arXiv 2307.09288, Eq. 2; centring: arXiv "
        "2312.09244, Eq. 2"
    )
    # The prior is what a reward model is trained for.
    priors = ("none",)
    trains_policy = False
    # InstructGPT's is 9e-6; with adapters it becomes the 1e-4 of TRL's RewardConfig.
    learning_rate = 1e-5

    margin: bool = option(False, SWITCH, "the chosen score must be higher by the pair's own margin")
    center_weight: float = option(0.0, NOT_NEGATIVE, "weight of the squared sum of a pair's scores")
    label_smoothing: float = option(0.0, BELOW_HALF, LABEL_SMOOTHING)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """A margin of scores, and the centring that is asked for."""
        link = Logistic(beta=1.0, tilt=self.label_smoothing)
        preference = Margin(reward_score, link, data_margin=self.margin)
        return (preference, Centring(self.center_weight)) if self.center_weight else (preference,)
