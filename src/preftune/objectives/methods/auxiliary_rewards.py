"""Methods that learn from auxiliary rewards themselves.

Three have no pairs, and the margin of modpo has R beside the rejected score: no paper says whether a prior
would weigh that too.
"""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization, ValueRegression
from preftune.objectives.methods.method import BETA, VALUE_WEIGHT, Method, published, unread
from preftune.objectives.offline_rl import (
    ClippedSurrogate,
    LeftoverLikelihood,
    RewardMargin,
    RewardRegression,
    SoftValueRegression,
)
from preftune.objectives.options import BELOW_ONE, POSITIVE, SHARE, SWITCH, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import Prior

MEAN = 0.5
"""The expectile that is the mean."""

_CLIP = "how far a whole response's ratio may leave 1"


@published
@dataclass(frozen=True)
class OfflinePPO(Method):
    """-min(q A, clip(q, 1 - eps, 1 + eps) A), and V the mean of R: PPO Eq. 7, offline as in KTO's paper."""

    name = "offline_ppo"
    summary = "policy gradient with the clipped ratio to the reference, on the advantage of auxiliary rewards"
    source = "offline PPO of KTO, arXiv 2402.01306, Section 3.3; PPO, arXiv 1707.06347, Eq. 7"
    priors = ("none",)
    learns_auxiliary = True

    clip: float = option(0.5, BELOW_ONE, _CLIP)
    value_weight: float = option(1.0, POSITIVE, VALUE_WEIGHT)

    def parts(self, _: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """The policy's part and the value's."""
        return (
            ClippedSurrogate(self.clip, standardization),
            ValueRegression(self.value_weight, MEAN, standardization),
        )


@published
@dataclass(frozen=True)
class ALoL(Method):
    """-sg(clip(q, 1 - eps, 1 + eps) max(A, 0)) l, and V the mean of R: A-LoL, q = 1 if `reference_free`."""

    name = "alol"
    summary = (
        "likelihood of responses with a positive advantage, weighted by it and the ratio to the reference"
    )
    source = "A-LoL, arXiv 2305.14718, Section 2; the clipping of PPO, arXiv 1707.06347, Eq. 7"
    priors = ("none",)
    learns_auxiliary = True

    clip: float = option(0.9, BELOW_ONE, _CLIP)
    reference_free: bool = option(False, SWITCH, "leave the ratio, and the reference, out")
    value_weight: float = option(1.0, POSITIVE, VALUE_WEIGHT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference_free:
            unread(self, "clip", "reference_free = True")

    def parts(self, _: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """The policy's part and the value's."""
        return (
            LeftoverLikelihood(self.clip, self.reference_free, standardization),
            ValueRegression(self.value_weight, MEAN, standardization),
        )


@published
@dataclass(frozen=True)
class DROV(Method):
    """(A - tau h)^2 / 2, for the policy over tau and for V: DRO-V Eq. 7 and 8."""

    name = "dro_v"
    summary = "squared distance of the log-ratio to the reference from the advantage of auxiliary rewards"
    source = "DRO-V, arXiv 2405.19107, Eq. 7 and 8"
    priors = ("none",)
    learns_auxiliary = True

    tau: float = option(1.0, POSITIVE, "weight of the log-ratio; a larger one keeps the policy closer")
    value_weight: float = option(1.0, POSITIVE, VALUE_WEIGHT)

    def parts(self, _: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """The policy's part and the value's."""
        return (
            RewardRegression(self.tau, standardization),
            SoftValueRegression(self.value_weight, self.tau, standardization),
        )


@published
@dataclass(frozen=True)
class MODPO(Method):
    """-log sigma(beta / w (h_w - h_l) - (1 - w) / w (R_w - R_l)): MODPO Eq. 11."""

    name = "modpo"
    summary = "dpo with a margin from the pair's auxiliary rewards"
    source = "MODPO, arXiv 2310.03708, Eq. 11"
    priors = ("none",)
    learns_auxiliary = True

    beta: float = option(0.1, POSITIVE, BETA)
    preference_weight: float = option(0.5, SHARE, "w, of the preference; 1 - w is the auxiliary rewards'")

    def parts(self, _: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (RewardMargin(self.beta, self.preference_weight, standardization),)
