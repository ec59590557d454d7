"""Methods of one margin between chosen and rejected response, with the prior on the rejected score."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.links import Hinge, Link, Logistic, Square
from preftune.objectives.methods.method import (
    BETA,
    LABEL_SMOOTHING,
    LENGTH_NORMALIZED,
    LIKELIHOOD_REDUCTION,
    LIKELIHOOD_WEIGHT,
    Method,
    published,
)
from preftune.objectives.options import BELOW_HALF, NOT_NEGATIVE, POSITIVE, REDUCTION, SWITCH, option
from preftune.objectives.parts import ChosenLikelihood, Margin, Part, Reduction
from preftune.objectives.priors import TOKEN_REWARD_GAP, Prior
from preftune.objectives.scores import log_likelihood, log_ratio, mean_log_likelihood, mean_log_ratio


def ratio_margin(link: Link, prior: Prior, length_normalized: bool) -> Margin:
    """A margin of log-ratios, per token if length-normalized; what is reported are sums either way."""
    if length_normalized:
        return Margin(mean_log_ratio, link, prior, reward=log_ratio)
    return Margin(log_ratio, link, prior)


@published
@dataclass(frozen=True)
class DPO(Method):
    """-log sigma(beta (h_w - delta h_l)): MaPPO Eq. 8, with h per token if `length_normalized`."""

    name = "dpo"
    summary = "logistic loss on the difference of log-ratios to the reference"
    source = "DPO, arXiv 2305.18290; MaPPO, arXiv 2507.21183, Eq. 8"
    priors = (*Method.priors, TOKEN_REWARD_GAP)

    beta: float = option(0.1, POSITIVE, BETA)
    label_smoothing: float = option(0.0, BELOW_HALF, LABEL_SMOOTHING)
    length_normalized: bool = option(False, SWITCH, LENGTH_NORMALIZED)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        link = Logistic(self.beta, tilt=self.label_smoothing)
        return (ratio_margin(link, prior, self.length_normalized),)


@published
@dataclass(frozen=True)
class IPO(Method):
    """(h_w - delta h_l - 1 / (2 beta))^2: MaPPO Eq. 14, with h per token if `length_normalized`."""

    name = "ipo"
    summary = "squared distance of the log-ratio difference from 1 / (2 beta)"
    source = "IPO, arXiv 2310.12036; MaPPO, arXiv 2507.21183, Eq. 14"
    priors = (*Method.priors, TOKEN_REWARD_GAP)

    beta: float = option(0.1, POSITIVE, "a larger one asks for a smaller difference")
    length_normalized: bool = option(True, SWITCH, LENGTH_NORMALIZED)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        return (ratio_margin(Square(self.beta), prior, self.length_normalized),)


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
    label_smoothing: float = option(0.0, BELOW_HALF, LABEL_SMOOTHING)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of mean log-likelihoods."""
        offset = self.gamma if self.gamma_beta_ratio is None else self.gamma_beta_ratio * self.beta
        return (Margin(mean_log_likelihood, Logistic(self.beta, offset, self.label_smoothing), prior),)


@published
@dataclass(frozen=True)
class CPO(Method):
    """-log sigma(beta (l_w - delta l_l)) + lambda NLL_w: MaPPO Eq. 16."""

    name = "cpo"
    summary = "logistic loss on log-likelihoods plus likelihood of the chosen response; no reference"
    source = "CPO, arXiv 2401.08417; MaPPO, arXiv 2507.21183, Eq. 16"

    beta: float = option(0.1, POSITIVE, "scale of the log-likelihood")
    likelihood_weight: float = option(0.2, NOT_NEGATIVE, LIKELIHOOD_WEIGHT)
    likelihood_reduction: Reduction = option("token_mean", REDUCTION, LIKELIHOOD_REDUCTION)
    label_smoothing: float = option(0.0, BELOW_HALF, LABEL_SMOOTHING)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-likelihoods, and likelihood of the chosen response."""
        return (
            Margin(log_likelihood, Logistic(self.beta, tilt=self.label_smoothing), prior),
            ChosenLikelihood(self.likelihood_weight, self.likelihood_reduction),
        )


@published
@dataclass(frozen=True)
class SLiC(Method):
    """max(0, 1 - beta (h_w - delta h_l)): SLiC's loss on log-ratios, per token if `length_normalized`."""

    name = "hinge"
    summary = "hinge loss on the difference of log-ratios to the reference"
    source = "SLiC-HF, arXiv 2305.10425; the prior enters as in MaPPO Eq. 8"
    priors = (*Method.priors, TOKEN_REWARD_GAP)

    beta: float = option(0.1, POSITIVE, BETA)
    length_normalized: bool = option(False, SWITCH, LENGTH_NORMALIZED)

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        return (ratio_margin(Hinge(self.beta), prior, self.length_normalized),)
