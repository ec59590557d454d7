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

from preftune.objectives.auxiliary import AdvantageLikelihood, Standardization, ValueRegression
from preftune.objectives.bounds import Bound, DualDescent
from preftune.objectives.conditional import ConditionalLikelihood
from preftune.objectives.kto import LabelBalance, ProspectUtility
from preftune.objectives.links import Hinge, Link, Logistic, Square
from preftune.objectives.methods import METHODS, Auxiliary, Method, published
from preftune.objectives.needs import needing, needs_of
from preftune.objectives.objective import (
    Objective,
    Settings,
    build,
    label_balance,
    methods_without_pairs,
    resolve,
)
from preftune.objectives.offline_rl import (
    ClippedSurrogate,
    LeftoverLikelihood,
    RewardMargin,
    RewardRegression,
    SoftValueRegression,
    importance_ratio,
)
from preftune.objectives.options import Option, options_of
from preftune.objectives.parts import Centring, ChosenLikelihood, Margin, Part
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
from preftune.objectives.router import RouterBalance
from preftune.objectives.scores import (
    Score,
    log_likelihood,
    log_ratio,
    mean_log_likelihood,
    mean_log_ratio,
    reward_score,
)

__all__ = [
    "METHODS",
    "NEEDS",
    "NUMBERS",
    "PRIORS",
    "AdvantageLikelihood",
    "Auxiliary",
    "Bound",
    "Centring",
    "ChosenLikelihood",
    "ClippedSurrogate",
    "ConditionalLikelihood",
    "DualDescent",
    "Hinge",
    "LabelBalance",
    "LeftoverLikelihood",
    "Link",
    "Logistic",
    "Losses",
    "Margin",
    "Method",
    "Need",
    "Number",
    "Objective",
    "Option",
    "Part",
    "Prior",
    "ProspectUtility",
    "RewardMargin",
    "RewardRegression",
    "RouterBalance",
    "Score",
    "ScoredResponses",
    "Settings",
    "SoftValueRegression",
    "Square",
    "Standardization",
    "Term",
    "Unit",
    "ValueRegression",
    "build",
    "count_units",
    "importance_ratio",
    "label_balance",
    "log_likelihood",
    "log_ratio",
    "mean_log_likelihood",
    "mean_log_ratio",
    "methods_without_pairs",
    "needing",
    "needs_of",
    "options_of",
    "prior",
    "published",
    "resolve",
    "reward_score",
]
