"""Score responses and turn raw scores into the numbers that an objective uses.

Here live measures, reward models, judges, users' own functions, and the calibration of scores. May import
objectives, data, serving, storage and models. Calibration imports no torch.
"""

from preftune.rewards.auxiliary import AuxiliaryReward, auxiliary_rewards, combine
from preftune.rewards.calibration import (
    CALIBRATIONS,
    Calibration,
    NegativeGap,
    PriorReport,
    apply_prior,
    fit_calibration,
    with_margins,
    with_prior_rewards,
)
from preftune.rewards.measures import MEASURES, Measure
from preftune.rewards.measuring import MeasuredGroups, RewardReport, Spread, measure_groups

__all__ = [
    "CALIBRATIONS",
    "MEASURES",
    "AuxiliaryReward",
    "Calibration",
    "Measure",
    "MeasuredGroups",
    "NegativeGap",
    "PriorReport",
    "RewardReport",
    "Spread",
    "apply_prior",
    "auxiliary_rewards",
    "combine",
    "fit_calibration",
    "measure_groups",
    "with_margins",
    "with_prior_rewards",
]
