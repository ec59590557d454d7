"""Methods of pairs whose loss knows the reward gap: rivals of the prior.

The gap stands in their losses already, so that none takes it as a prior too. It is calibrated as for the
prior, by the section `prior`.
"""

from abc import abstractmethod
from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.methods.method import BETA, Method, published, unread
from preftune.objectives.options import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE, one_of, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import Prior
from preftune.objectives.reward_gaps import (
    DISTANCES,
    ClippedReference,
    GapLink,
    GapMargin,
    GapScaling,
    LabelOfGap,
    OffsetByGap,
    SoftLabel,
    SquaredGap,
    WeightedByGap,
    WeightedByMargin,
)

REWARD_SCALE = "s, by which calibrated rewards are multiplied"


class GapMethod(Method):
    """A method of one margin of log-ratios and the reward gap."""

    priors = ("none",)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (GapMargin(self.link()),)

    @abstractmethod
    def link(self) -> GapLink:
        """How margin and gap become a loss."""


@published
@dataclass(frozen=True)
class ODPO(GapMethod):
    """-log sigma(beta (h_w - h_l) - alpha f(s delta))."""

    name = "odpo"
    summary = "dpo whose implicit rewards must differ by an offset that grows with the reward gap"
    source = "ODPO, arXiv 2402.10571, and its code; without an offset DPO, arXiv 2305.18290, Eq. 7"

    beta: float = option(0.1, POSITIVE, BETA)
    alpha: float = option(1.0, NOT_NEGATIVE, "weight of the offset; 0 is dpo")
    scaling: GapScaling = option("log", one_of("log", "linear"), "f, logarithm or nothing")
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def link(self) -> GapLink:
        """An offset."""
        return OffsetByGap(self.beta, self.alpha, self.scaling, self.reward_scale)


@published
@dataclass(frozen=True)
class RPO(GapMethod):
    """Distance of beta (h_w - h_l) from s delta."""

    name = "rpo"
    summary = "reward-aware: a distance between the implicit rewards' difference and the rewards' own"
    source = "RPO, arXiv 2406.11704 and 2502.00203; the code of NeMo-Aligner (rpo_bwd_kl, rpo_fwd_kl, rpo_sq)"

    beta: float = option(0.1, POSITIVE, BETA)
    distance: str = option("backward_kl", one_of(*DISTANCES), "between both, as probabilities or numbers")
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def link(self) -> GapLink:
        """The distance."""
        return DISTANCES[self.distance](self.beta, self.reward_scale)


@published
@dataclass(frozen=True)
class DistilledDPO(GapMethod):
    """(beta (h_w - h_l) - s delta)^2."""

    name = "distilled_dpo"
    summary = "regression of the implicit rewards' difference on the reward gap; REBEL's loss on fixed pairs"
    source = "reward distillation, arXiv 2405.19316; REBEL, arXiv 2404.16767, and its code"

    beta: float = option(0.1, POSITIVE, BETA)
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def link(self) -> GapLink:
        """A squared difference."""
        return SquaredGap(self.beta, self.reward_scale)


@published
@dataclass(frozen=True)
class MMPO(GapMethod):
    """-p log sigma(beta (h_w - h_l)) - (1 - p) log sigma(-beta (h_w - h_l)), p by the gap."""

    name = "mmpo"
    summary = "dpo with soft labels: the reward gap says how likely the chosen response is the better one"
    source = "MMPO, arXiv 2410.03145, and its code"

    beta: float = option(0.1, POSITIVE, BETA)
    label: LabelOfGap = option(
        "sigmoid", one_of("sigmoid", "linear"), "p: sigma(s delta), or (1 + delta) / 2"
    )
    reward_scale: float = option(1.0, POSITIVE, f"{REWARD_SCALE}, of `sigmoid`")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label == "linear":
            unread(self, "reward_scale", "label = 'linear'")

    def link(self) -> GapLink:
        """A soft label."""
        return SoftLabel(self.beta, self.label, self.reward_scale)


@published
@dataclass(frozen=True)
class ScaledDPO(GapMethod):
    """-s delta log sigma(beta (h_w - h_l))."""

    name = "scaled_dpo"
    summary = "dpo whose pairs count by their reward gap"
    source = "scaled DPO of HelpSteer2-Preference, arXiv 2410.01257; the code of NeMo-Aligner (scale)"

    beta: float = option(0.1, POSITIVE, BETA)
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def link(self) -> GapLink:
        """A weight."""
        return WeightedByGap(self.beta, self.reward_scale)


@published
@dataclass(frozen=True)
class MADPO(GapMethod):
    """-w log sigma(beta (h_w - h_l)), w above 1 at small gaps and below at large ones."""

    name = "madpo"
    summary = "dpo whose pairs count more below a reward margin and less above it"
    source = "MADPO, arXiv 2510.05342, and its code"

    beta: float = option(0.1, POSITIVE, BETA)
    c_max: float = option(2.0, AT_LEAST_ONE, "factor of the smallest margins; with 1 for both it is dpo")
    c_min: float = option(0.5, BELOW_ONE, "factor of the largest margins")
    steepness: float = option(1.0, POSITIVE, "lambda, how fast the factor falls around tau")
    tau: float = option(2.0, NOT_NEGATIVE, "margin s delta at which the factor is 1")
    reward_scale: float = option(1.0, POSITIVE, REWARD_SCALE)

    def link(self) -> GapLink:
        """A weight."""
        return WeightedByMargin(
            self.beta, self.reward_scale, self.c_max, self.c_min, self.steepness, self.tau
        )


@published
@dataclass(frozen=True)
class HyPO(Method):
    """-log sigma(beta (l_w - l_l - max(0, rho_w - rho_l)))."""

    name = "hypo"
    summary = "dpo that takes the reference for neutral where it prefers the rejected response"
    source = "HyPO (Hybrid-DPO), arXiv 2602.11902, abstract; otherwise DPO, arXiv 2305.18290, Eq. 7"
    # The reference's margin is clipped as a whole: no paper says where a gap would stand in it.
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (ClippedReference(self.beta),)
