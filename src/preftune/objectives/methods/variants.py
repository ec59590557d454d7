"""More methods of one margin between chosen and rejected response, with the prior on the rejected score."""

from dataclasses import dataclass

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.methods.method import Method, published
from preftune.objectives.odds import OddsRatio, log_odds
from preftune.objectives.options import POSITIVE, REDUCTION, option
from preftune.objectives.parts import ChosenLikelihood, Margin, Part, Reduction
from preftune.objectives.priors import Prior
from preftune.objectives.scores import mean_log_likelihood


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
