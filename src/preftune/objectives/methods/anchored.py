"""Methods that hold each response of a pair against the reference by itself.

A prior weighs the rejected score in a margin, and these have none. In the margin within apo_down it would do
harm: with delta = 0 its two terms would cancel, and nothing would be learned.
"""

from dataclasses import dataclass

from preftune.objectives.anchored import (
    Anchored,
    BinaryClassifier,
    BothDown,
    NoiseContrast,
    SelfPlay,
    UpAndDown,
)
from preftune.objectives.auxiliary import Standardization
from preftune.objectives.methods.method import BETA, Method, published
from preftune.objectives.options import POSITIVE, option
from preftune.objectives.parts import Part
from preftune.objectives.priors import Prior


@published
@dataclass(frozen=True)
class APOZero(Method):
    """1 - sigma(beta h_w) + sigma(beta h_l): APO-zero, Eq. 7."""

    name = "apo_zero"
    summary = "chosen up and rejected down, each saturating: for chosen responses better than the model's own"
    source = "APO, arXiv 2408.06266, Eq. 7"
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (Anchored(UpAndDown(self.beta)),)


@published
@dataclass(frozen=True)
class APODown(Method):
    """sigma(beta h_w) + 1 - sigma(beta (h_w - h_l)): APO-down, Eq. 8."""

    name = "apo_down"
    summary = "chosen down and rejected further down: for chosen responses worse than the model's own"
    source = "APO, arXiv 2408.06266, Eq. 8"
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, BETA)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (Anchored(BothDown(self.beta)),)


@published
@dataclass(frozen=True)
class NCA(Method):
    """-log sigma(u_w) - (log sigma(-u_w) + log sigma(-u_l)) / 2 with u = beta h: NCA on pairs."""

    name = "nca"
    summary = (
        "each response told from noise of the reference, so that the chosen one does not become unlikely"
    )
    source = "NCA, arXiv 2402.05369, Table 1"
    priors = ("none",)

    beta: float = option(0.01, POSITIVE, BETA)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (Anchored(NoiseContrast(self.beta)),)


@published
@dataclass(frozen=True)
class SPPO(Method):
    """(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2: SPPO Eq. 4.7 with probabilities of 1 and 0."""

    name = "sppo"
    summary = "squared distance of each log-ratio from a target of its own, up or down"
    source = "SPPO, arXiv 2405.00675, Eq. 4.7, with hard labels"
    priors = ("none",)

    beta: float = option(0.001, POSITIVE, "1 over the paper's eta: the targets are 1 / (2 beta) nats away")

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (Anchored(SelfPlay(self.beta)),)


@published
@dataclass(frozen=True)
class BCO(Method):
    """-log sigma(beta h_w) - log sigma(-beta h_l): BCO's bound on pairs, without its shift of rewards."""

    name = "bco"
    summary = "a classifier of chosen and rejected responses with the implicit reward as its logit"
    source = "BCO, arXiv 2404.04656, Theorem 1"
    priors = ("none",)

    beta: float = option(0.01, POSITIVE, BETA)

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (Anchored(BinaryClassifier(self.beta)),)
