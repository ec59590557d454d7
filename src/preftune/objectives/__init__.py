"""The papers as pure functions: scored responses in, losses and metrics per pair out.

MaPPO's DPO (arXiv 2507.21183, Eq. 8) on one pair: h_w = 1, h_l = -1, delta = 0.5, so the loss is
-log sigma(0.1 * (1 + 0.5)) = log(1 + exp(-0.15)).

>>> import torch
>>> from preftune.objectives import ScoredResponses, build, count_units
>>> objective = build({"method": "dpo", "beta": 0.1, "prior": "reward_gap"})
>>> sorted(objective.needs)
['pairs', 'prior_gap', 'reference']
>>> pair = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "prior_gap": torch.tensor([0.5])}
>>> policy, reference = torch.tensor([-4.0, -6.0]), torch.tensor([-5.0, -5.0])
>>> lengths = torch.tensor([2, 3])
>>> losses = objective(ScoredResponses(policy, lengths, reference_logps=reference, **pair))
>>> print(f"{losses.total(count_units(lengths, pair['chosen'])):.4f}")
0.6210

A method is one dataclass in `methods`, made of a score, a link and a prior. A new one is one more there and,
where it needs a new idea, a function in `scores`, `links`, `priors` or `parts` that says what it needs.
"""

from preftune.objectives.anchored import (
    Anchor,
    Anchored,
    BinaryClassifier,
    BothDown,
    NoiseContrast,
    SelfPlay,
    UpAndDown,
)
from preftune.objectives.auxiliary import (
    AdvantageLikelihood,
    PredictedFactors,
    Standardization,
    ValueRegression,
)
from preftune.objectives.bounds import Bound, DualDescent
from preftune.objectives.conditional import ConditionalLikelihood
from preftune.objectives.credit import TokenCredit, reweighted, token_rows
from preftune.objectives.divergences import DIVERGENCES, DivergenceScore
from preftune.objectives.groups import (
    ContrastAmongResponses,
    ContrastWithReference,
    DecisionDistillation,
    QuantileRegression,
    RankLikelihood,
)
from preftune.objectives.kto import LabelBalance, ProspectUtility
from preftune.objectives.links import Hinge, Link, Logistic, Square
from preftune.objectives.methods import METHODS, Auxiliary, Method, OfPairs, published
from preftune.objectives.mixing import methods_of, plain_methods
from preftune.objectives.naming import method_named
from preftune.objectives.needs import needing, needs_of
from preftune.objectives.objective import (
    Objective,
    Settings,
    build,
    label_balance,
    methods_of_labels,
    metric_names,
    predicted_factors,
    resolve,
)
from preftune.objectives.odds import OddsRatio, log_odds
from preftune.objectives.offline_rl import (
    ClippedSurrogate,
    LeftoverLikelihood,
    RewardMargin,
    RewardRegression,
    SoftValueRegression,
    importance_ratio,
)
from preftune.objectives.options import Option, options_of
from preftune.objectives.overview import MethodOverview, overview, overview_of
from preftune.objectives.parts import Centring, ChosenLikelihood, Margin, MixedPart, Part
from preftune.objectives.priors import PRIORS, Prior, prior
from preftune.objectives.responses import (
    NEEDS,
    NUMBERS,
    Losses,
    Need,
    Number,
    ScoredResponses,
    Term,
    Unit,
    count_units,
)
from preftune.objectives.reward_gaps import (
    BernoulliKL,
    ClippedReference,
    GapLink,
    GapMargin,
    OffsetByGap,
    SoftLabel,
    SquaredGap,
    WeightedByGap,
    WeightedByMargin,
)
from preftune.objectives.router import RouterBalance
from preftune.objectives.scores import (
    Score,
    log_likelihood,
    log_ratio,
    mean_log_likelihood,
    mean_log_ratio,
    reward_score,
)
from preftune.objectives.shaped_links import LogRatioModulated, ReverseKL
from preftune.objectives.shifts import ChosenLoss, LengthDifference
from preftune.objectives.tokens import LengthDiscountedMargin, LikelihoodWeightedMargin

__all__ = [
    "DIVERGENCES",
    "METHODS",
    "NEEDS",
    "NUMBERS",
    "PRIORS",
    "AdvantageLikelihood",
    "Anchor",
    "Anchored",
    "Auxiliary",
    "BernoulliKL",
    "BinaryClassifier",
    "BothDown",
    "Bound",
    "Centring",
    "ChosenLikelihood",
    "ChosenLoss",
    "ClippedReference",
    "ClippedSurrogate",
    "ConditionalLikelihood",
    "ContrastAmongResponses",
    "ContrastWithReference",
    "DecisionDistillation",
    "DivergenceScore",
    "DualDescent",
    "GapLink",
    "GapMargin",
    "Hinge",
    "LabelBalance",
    "LeftoverLikelihood",
    "LengthDifference",
    "LengthDiscountedMargin",
    "LikelihoodWeightedMargin",
    "Link",
    "LogRatioModulated",
    "Logistic",
    "Losses",
    "Margin",
    "Method",
    "MethodOverview",
    "MixedPart",
    "Need",
    "NoiseContrast",
    "Number",
    "Objective",
    "OddsRatio",
    "OfPairs",
    "OffsetByGap",
    "Option",
    "Part",
    "PredictedFactors",
    "Prior",
    "ProspectUtility",
    "QuantileRegression",
    "RankLikelihood",
    "ReverseKL",
    "RewardMargin",
    "RewardRegression",
    "RouterBalance",
    "Score",
    "ScoredResponses",
    "SelfPlay",
    "Settings",
    "SoftLabel",
    "SoftValueRegression",
    "Square",
    "SquaredGap",
    "Standardization",
    "Term",
    "TokenCredit",
    "Unit",
    "UpAndDown",
    "ValueRegression",
    "WeightedByGap",
    "WeightedByMargin",
    "build",
    "count_units",
    "importance_ratio",
    "label_balance",
    "log_likelihood",
    "log_odds",
    "log_ratio",
    "mean_log_likelihood",
    "mean_log_ratio",
    "method_named",
    "methods_of",
    "methods_of_labels",
    "metric_names",
    "needing",
    "needs_of",
    "options_of",
    "overview",
    "overview_of",
    "plain_methods",
    "predicted_factors",
    "prior",
    "published",
    "resolve",
    "reward_score",
    "reweighted",
    "token_rows",
]
