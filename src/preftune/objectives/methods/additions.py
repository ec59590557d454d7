"""What goes with methods: options of every method, or of every method of pairs, and auxiliary rewards."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import DEFAULT_CAP, AdvantageLikelihood, Standardization, ValueRegression
from preftune.objectives.methods.method import LIKELIHOOD_REDUCTION, LIKELIHOOD_WEIGHT, VALUE_WEIGHT
from preftune.objectives.options import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_OR_NONE,
    REDUCTION,
    Options,
    option,
)
from preftune.objectives.parts import ChosenLikelihood, Part, Reduction
from preftune.objectives.router import RouterBalance


@dataclass(frozen=True)
class OfEveryMethod(Options):
    """Options that go with any method."""

    router_loss_weight: float | None = option(
        None, NOT_NEGATIVE, "weight of a mixture-of-experts' load-balancing loss"
    )

    def parts(self) -> tuple[Part, ...]:
        """The balance of the experts, where it has a weight."""
        return (RouterBalance(self.router_loss_weight),) if self.router_loss_weight else ()


@dataclass(frozen=True)
class OfPairs(Options):
    """Options that go with any method of pairs that has no such term itself.

    The likelihood of the chosen response beside a preference loss: RPO (arXiv 2404.19733, Eq. 1), TRL's
    `rpo_alpha` and its loss `sft`.

    Raises:
        ValueError: a reduction is given without a weight.
    """

    likelihood_weight: float | None = option(None, NOT_NEGATIVE, LIKELIHOOD_WEIGHT)
    likelihood_reduction: Reduction | None = option(None, REDUCTION, LIKELIHOOD_REDUCTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.likelihood_reduction and self.likelihood_weight is None:
            raise ValueError(
                f"likelihood_reduction = {self.likelihood_reduction!r} is read with likelihood_weight only: "
                "set that too, or remove it"
            )

    def parts(self) -> tuple[Part, ...]:
        """The likelihood of the chosen response, where it has a weight."""
        if not self.likelihood_weight:
            return ()
        return (ChosenLikelihood(self.likelihood_weight, self.likelihood_reduction or "token_mean"),)


@dataclass(frozen=True)
class Auxiliary(Options):
    """-sg(exp(A / tau)) log pi, and the expectile regression of the value in A = R - V (HPO).

    HPO's terms (arXiv 2405.17956) go with any method without its own.
    """

    weight: float = option(
        0.1, NOT_NEGATIVE, "weight of the advantage-weighted likelihood; 0 is the plain method"
    )
    temperature: float = option(1 / 3, POSITIVE, "of the advantage, in standard deviations of the reward")
    expectile: float = option(0.7, BELOW_ONE, "of the value; 0.5 is the mean")
    value_weight: float = option(1.0, POSITIVE, VALUE_WEIGHT)
    reduction: Reduction = option(
        "token_mean", REDUCTION, "mean over all response tokens, or sums per response"
    )
    cap: float | None = option(
        DEFAULT_CAP, POSITIVE_OR_NONE, "largest factor exp(advantage / temperature); null is the paper's"
    )

    def parts(self, standardization: Standardization) -> tuple[Part, ...]:
        """The policy's part and the value's; none where the weight is 0."""
        if not self.weight:
            return ()
        return (
            AdvantageLikelihood(self.weight, self.temperature, self.reduction, self.cap, standardization),
            ValueRegression(self.value_weight, self.expectile, standardization),
        )
