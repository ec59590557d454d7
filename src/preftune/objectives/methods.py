"""The published methods, one frozen dataclass each: its fields are its options, `parts` is its loss.

A new method is a class here, under `@published`, and nothing else: configuration, command line, checks and
lists of methods read METHODS.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from preftune.objectives.auxiliary import AdvantageLikelihood, Standardization, ValueRegression
from preftune.objectives.conditional import ConditionalLikelihood
from preftune.objectives.kto import ProspectUtility
from preftune.objectives.links import Hinge, Logistic, Square
from preftune.objectives.offline_rl import (
    ClippedSurrogate,
    LeftoverLikelihood,
    RewardMargin,
    RewardRegression,
    SoftValueRegression,
)
from preftune.objectives.options import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    REDUCTION,
    SHARE,
    SWITCH,
    Options,
    option,
)
from preftune.objectives.parts import Centring, ChosenLikelihood, Margin, Part, Reduction
from preftune.objectives.priors import PRIORS, Prior
from preftune.objectives.router import RouterBalance
from preftune.objectives.scores import (
    log_likelihood,
    log_ratio,
    mean_log_likelihood,
    mean_log_ratio,
    reward_score,
)

MEAN = 0.5
"""The expectile that is the mean."""

_BETA = "scale of the implicit reward; a larger one keeps the policy closer to where it started"
_CLIP = "how far a whole response's ratio may leave 1"
_VALUE_WEIGHT = "weight of the value's regression"


class Method(Options, ABC):
    """A published loss; the fields of its dataclass are its options.

    Attributes:
        name: by which a configuration names it.
        summary: one line for people.
        source: the paper, and the equation with the prior.
        priors: names of the priors it is defined with.
        learns_auxiliary: it learns from auxiliary rewards itself, so that `auxiliary` cannot be added.
        trains_policy: it trains a policy, and not a reward model, whose likelihood `auxiliary` could weigh.
        reads_control: a text in front of each response says whether it is desirable.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    priors: ClassVar[tuple[str, ...]] = tuple(PRIORS)
    learns_auxiliary: ClassVar[bool] = False
    trains_policy: ClassVar[bool] = True
    reads_control: ClassVar[bool] = False

    @abstractmethod
    def parts(self, prior: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """The summands of its loss.

        Args:
            prior: one of `priors`.
            standardization: of the auxiliary reward.
        """

    @classmethod
    def takes_auxiliary(cls) -> bool:
        """Whether `auxiliary` can be added to it."""
        return cls.trains_policy and not cls.learns_auxiliary


METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""

M = TypeVar("M", bound=type[Method])


def published(method: M) -> M:
    """Let a configuration name a method."""
    METHODS[method.name] = method
    return method


@published
@dataclass(frozen=True)
class DPO(Method):
    """-log sigma(beta (h_w - delta h_l)): MaPPO Eq. 8."""

    name = "dpo"
    summary = "logistic loss on the difference of log-ratios to the reference"
    source = "DPO, arXiv 2305.18290; MaPPO, arXiv 2507.21183, Eq. 8"

    beta: float = option(0.1, POSITIVE, _BETA)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        return (Margin(log_ratio, Logistic(self.beta), prior),)


@published
@dataclass(frozen=True)
class IPO(Method):
    """(h_w - delta h_l - 1 / (2 beta))^2: MaPPO Eq. 14, with h per token if `length_normalized`."""

    name = "ipo"
    summary = "squared distance of the log-ratio difference from 1 / (2 beta)"
    source = "IPO, arXiv 2310.12036; MaPPO, arXiv 2507.21183, Eq. 14"

    beta: float = option(0.1, POSITIVE, "a larger one asks for a smaller difference")
    length_normalized: bool = option(True, SWITCH, "log-ratios per token instead of summed")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios, summed in what is reported."""
        score = mean_log_ratio if self.length_normalized else log_ratio
        return (Margin(score, Square(self.beta), prior, reward=log_ratio),)


@published
@dataclass(frozen=True)
class SimPO(Method):
    """-log sigma(beta (lbar_w - delta lbar_l) - gamma): MaPPO Eq. 12; gamma = gamma_beta_ratio * beta."""

    name = "simpo"
    summary = "logistic loss on mean log-likelihoods with a target margin; no reference"
    source = "SimPO, arXiv 2405.14734; MaPPO, arXiv 2507.21183, Eq. 12"

    beta: float = option(2.0, POSITIVE, "scale of the mean log-likelihood")
    gamma: float = option(1.0, NOT_NEGATIVE, "target margin")
    gamma_beta_ratio: float | None = option(
        None, NOT_NEGATIVE, "target margin as a multiple of beta", instead_of="gamma"
    )

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of mean log-likelihoods."""
        offset = self.gamma if self.gamma_beta_ratio is None else self.gamma_beta_ratio * self.beta
        return (Margin(mean_log_likelihood, Logistic(self.beta, offset), prior),)


@published
@dataclass(frozen=True)
class CPO(Method):
    """-log sigma(beta (l_w - delta l_l)) + lambda NLL_w: MaPPO Eq. 16."""

    name = "cpo"
    summary = "logistic loss on log-likelihoods plus likelihood of the chosen response; no reference"
    source = "CPO, arXiv 2401.08417; MaPPO, arXiv 2507.21183, Eq. 16"

    beta: float = option(0.1, POSITIVE, "scale of the log-likelihood")
    likelihood_weight: float = option(0.2, NOT_NEGATIVE, "lambda, the weight of the likelihood term")
    likelihood_reduction: Reduction = option(
        "token_mean", REDUCTION, "mean over all chosen tokens, or sums per pair"
    )

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-likelihoods, and likelihood of the chosen response."""
        return (
            Margin(log_likelihood, Logistic(self.beta), prior),
            ChosenLikelihood(self.likelihood_weight, self.likelihood_reduction),
        )


@published
@dataclass(frozen=True)
class SLiC(Method):
    """max(0, 1 - beta (h_w - delta h_l)): SLiC's calibration loss on log-ratios."""

    name = "hinge"
    summary = "hinge loss on the difference of log-ratios to the reference"
    source = "SLiC-HF, arXiv 2305.10425; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, _BETA)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        return (Margin(log_ratio, Hinge(self.beta), prior),)


@published
@dataclass(frozen=True)
class KTO(Method):
    """lambda_D (1 - sigma(beta (h - z0))), lambda_U (1 - sigma(beta (z0 - h))): KTO Eq. 7."""

    name = "kto"
    summary = "saturating gain or loss of single responses, desirable or not, against the divergence so far"
    source = "KTO, arXiv 2402.01306, Eq. 7"
    # MaPPO weighs a rejected response against its chosen one, and here is no pair.
    priors = ("none",)

    beta: float = option(0.1, POSITIVE, _BETA)
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


# Of the methods of auxiliary rewards, three have no pairs, and the margin of modpo has R beside the rejected
# score: no paper says whether a prior would weigh that too.


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
    value_weight: float = option(1.0, POSITIVE, _VALUE_WEIGHT)

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
    value_weight: float = option(1.0, POSITIVE, _VALUE_WEIGHT)

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
    value_weight: float = option(1.0, POSITIVE, _VALUE_WEIGHT)

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

    beta: float = option(0.1, POSITIVE, _BETA)
    preference_weight: float = option(0.5, SHARE, "w, of the preference; 1 - w is the auxiliary rewards'")

    def parts(self, _: Prior, standardization: Standardization) -> tuple[Part, ...]:
        """One part."""
        return (RewardMargin(self.beta, self.preference_weight, standardization),)


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

    margin: bool = option(False, SWITCH, "the chosen score must be higher by the pair's own margin")
    center_weight: float = option(0.0, NOT_NEGATIVE, "weight of the squared sum of a pair's scores")

    def parts(self, _: Prior, __: Standardization) -> tuple[Part, ...]:
        """A margin of scores, and the centring that is asked for."""
        preference = Margin(reward_score, Logistic(beta=1.0), data_margin=self.margin)
        return (preference, Centring(self.center_weight)) if self.center_weight else (preference,)


# --- what goes with methods ---


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
class Auxiliary(Options):
    """-sg(exp(A / tau)) log pi, and the expectile regression of the value in A = R - V (HPO).

    HPO's terms (arXiv 2405.17956) go with any method without its own.
    """

    weight: float = option(
        0.1, NOT_NEGATIVE, "weight of the advantage-weighted likelihood; 0 is the plain method"
    )
    temperature: float = option(1 / 3, POSITIVE, "of the advantage, in standard deviations of the reward")
    expectile: float = option(0.7, BELOW_ONE, "of the value; 0.5 is the mean")
    value_weight: float = option(1.0, POSITIVE, _VALUE_WEIGHT)
    reduction: Reduction = option(
        "token_mean", REDUCTION, "mean over all response tokens, or sums per response"
    )
    cap: float | None = option(None, POSITIVE, "largest factor exp(advantage / temperature)")

    def parts(self, standardization: Standardization) -> tuple[Part, ...]:
        """The policy's part and the value's; none where the weight is 0."""
        if not self.weight:
            return ()
        return (
            AdvantageLikelihood(self.weight, self.temperature, self.reduction, self.cap, standardization),
            ValueRegression(self.value_weight, self.expectile, standardization),
        )
