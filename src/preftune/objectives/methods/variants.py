"""More methods of one margin between chosen and rejected response, with the prior on the rejected score."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.links import Logistic
from preftune.objectives.methods.method import BETA, Method, published
from preftune.objectives.odds import OddsRatio, log_odds
from preftune.objectives.options import NOT_NEGATIVE, POSITIVE, REDUCTION, option
from preftune.objectives.parts import ChosenLikelihood, Margin, Part, Reduction
from preftune.objectives.priors import Prior
from preftune.objectives.scores import log_ratio, mean_log_likelihood
from preftune.objectives.shifts import LengthDifference


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
