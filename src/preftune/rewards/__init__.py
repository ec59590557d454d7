"""From text and raw scores to the numbers an objective uses."""

from preftune.rewards.calibration import (
    CALIBRATIONS,
    Calibration,
    NegativeGap,
    PriorReport,
    apply_prior,
    fit_calibration,
)

__all__ = [
    "CALIBRATIONS",
    "Calibration",
    "NegativeGap",
    "PriorReport",
    "apply_prior",
    "fit_calibration",
]
