"""More methods of one margin between chosen and rejected response, with the prior on the rejected score."""

from dataclasses import dataclass
from typing import cast

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.divergences import DIVERGENCES, DivergenceName, DivergenceScore
from preftune.objectives.links import Logistic
from preftune.objectives.methods.method import BETA, Method, published
from preftune.objectives.odds import OddsRatio, log_odds
from preftune.objectives.options import (
    NOT_NEGATIVE,
    POSITIVE,
    REDUCTION,
    SHARE,
    Constraint,
    is_finite_number,
    one_of,
    option,
)
from preftune.objectives.parts import ChosenLikelihood, Margin, Part, Reduction
from preftune.objectives.priors import Prior
from preftune.objectives.scores import log_ratio, mean_log_likelihood
from preftune.objectives.shaped_links import LogRatioModulated, ReverseKL
from preftune.objectives.shifts import ChosenLoss, LengthDifference

_BELOW_HALF = Constraint(
    "a number > 0 and < 0.5", lambda value: is_finite_number(value) and 0 < cast(float, value) < 0.5
)


@published
@dataclass(frozen=True)
class ORPO(Method):
    """NLL_w - beta log sigma(o_w - delta o_l), o the log-odds of the mean likelihood: ORPO Eq. 6 and 7."""

    name = "orpo"
    summary = "likelihood of the chosen response plus the odds ratio of mean likelihoods; no reference"
    source = "ORPO, arXiv 2403.07691, Eq. 6 and 7; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, "lambda, the weight of the odds ratio beside the likelihood")
    likelihood_reduction: Reduction = option(
        "token_mean", REDUCTION, "mean over all chosen tokens, or sums per pair"
    )

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-odds, and likelihood of the chosen response."""
        return (
            Margin(log_odds, OddsRatio(self.beta), prior, reward=mean_log_likelihood),
            ChosenLikelihood(1.0, self.likelihood_reduction),
        )


@published
@dataclass(frozen=True)
class RDPO(Method):
    """-log sigma(beta (h_w - delta h_l) + alpha (n_w - n_l)): R-DPO Eq. 9."""

    name = "r_dpo"
    summary = "dpo with a penalty on length, so that a longer response has to be better by more"
    source = "R-DPO, arXiv 2403.19159, Eq. 9; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, BETA)
    alpha: float = option(0.05, NOT_NEGATIVE, "penalty of a token, in units of the implicit reward")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios, shifted by the difference of lengths."""
        shift = LengthDifference(self.alpha / self.beta)
        return (Margin(log_ratio, Logistic(self.beta), prior, shift=shift),)


@published
@dataclass(frozen=True)
class EXO(Method):
    """KL(q || p) with q = sigma(+-beta (h_w - delta h_l)) and p = (1 - e, e): EXO Eq. 16."""

    name = "exo"
    summary = "reverse KL from the policy's choice within a pair to the smoothed label"
    source = "EXO, arXiv 2402.00856, Eq. 16; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, BETA)
    label_smoothing: float = option(0.001, _BELOW_HALF, "e, the share of labels taken for wrong")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        return (Margin(log_ratio, ReverseKL(self.beta, self.label_smoothing), prior),)


@published
@dataclass(frozen=True)
class DiscoPOP(Method):
    """-log sigma(u) (1 - w) + exp(-u) w, u = beta (h_w - delta h_l), w = sigma(u / tau): DiscoPOP Eq. 5."""

    name = "discopop"
    summary = "logistic loss where the margin is wrong, exponential where it is right"
    source = "DiscoPOP, arXiv 2406.08414, Eq. 5; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.05, POSITIVE, BETA)
    tau: float = option(0.05, SHARE, "width of the transition between the two losses")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios."""
        return (Margin(log_ratio, LogRatioModulated(self.beta, self.tau), prior),)


@published
@dataclass(frozen=True)
class DPOPositive(Method):
    """-log sigma(beta (h_w - delta h_l - lambda max(0, -h_w))): DPO-Positive, Eq. 3."""

    name = "dpop"
    summary = "dpo with a penalty where the chosen response is less likely than under the reference"
    source = "DPO-Positive (Smaug), arXiv 2402.13228, Eq. 3; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.3, POSITIVE, BETA)
    penalty: float = option(50.0, NOT_NEGATIVE, "lambda, of a nat that the chosen response has lost")

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of log-ratios, shifted by what the chosen response has lost."""
        return (Margin(log_ratio, Logistic(self.beta), prior, shift=ChosenLoss(self.penalty)),)


@published
@dataclass(frozen=True)
class FDPO(Method):
    """-log sigma(beta (f'(q_w) - delta f'(q_l))), q the ratio to the reference: f-DPO."""

    name = "f_dpo"
    summary = "dpo with another divergence from the reference than the reverse KL"
    source = "f-DPO, arXiv 2309.16240; the prior enters as in MaPPO Eq. 8"

    beta: float = option(0.1, POSITIVE, BETA)
    f_divergence_type: DivergenceName = option("js_divergence", one_of(*DIVERGENCES), "which divergence")
    alpha: float | None = option(
        None, SHARE, "of alpha_divergence, 0.5 if unset: near 0 it is reverse_kl, with 1 forward_kl"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.f_divergence_type != "alpha_divergence":
            raise ValueError(
                f"alpha = {self.alpha!r} must go with f_divergence_type = 'alpha_divergence', which is "
                f"{self.f_divergence_type!r}: set it, or remove alpha"
            )

    def parts(self, prior: Prior, _: Standardization) -> tuple[Part, ...]:
        """A margin of f', with log-ratios in what is reported."""
        score = DivergenceScore(self.f_divergence_type, 0.5 if self.alpha is None else self.alpha)
        return (Margin(score, Logistic(self.beta), prior, reward=log_ratio),)
