"""The scales of auxiliary rewards and of bounds, from the training split."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.objectives import Bound, Standardization
from preftune.training.splits import PreparedData

logger = logging.getLogger(__name__)

RESOLVED = 1e-5
"""Least standard deviation of a reward, relative to its mean, of which float32 keeps two digits."""
LARGEST_SHARE = 0.25
"""Of a reward's variance, in one response."""
FEWEST_RESPONSES = 50
"""From which on that is much: of 50 normal numbers the most extreme has a tenth."""


def standardize(train: PreparedData, bounds: Sequence[Bound]) -> Standardization:
    """Mean and scale of the auxiliary reward over the training split.

    Raises:
        InputError: float32 could not tell the rewards apart.
    """
    mean, scale = float(train.auxiliary.mean()), float(train.auxiliary.std())
    spread = train.rewards.combined.sd if train.rewards else scale
    if 0 < spread < RESOLVED * abs(mean):
        raise InputError(
            f"the auxiliary reward has mean {mean:.6g} and standard deviation {spread:.3g}, which float32 "
            "cannot distinguish: use a target instead of a goal, or subtract a constant from the measurement"
        )
    for name in train.rewards.scales if train.rewards else ():
        if train.rewards and train.rewards.measurements[name].sd == 0:
            logger.warning("rewards.%s is the same for all responses, and so adds nothing to their sum", name)
    if scale > 0:
        _check_tail(train.auxiliary, mean)
        return Standardization(mean, scale, tuple(bounds))
    if not bounds:
        logger.warning(
            "all %d responses have the auxiliary reward %.4g, so all advantages are equal, and what "
            "objective.auxiliary adds is plain likelihood; choose rewards that differ between responses",
            len(train.auxiliary),
            mean,
        )
    return Standardization(mean, bounds=tuple(bounds))


def fit_bounds(train: PreparedData) -> tuple[Bound, ...]:
    """The rewards' bounds, with the standard deviation of each measurement.

    Raises:
        InputError: no weighting of the training responses could meet a bound.
    """
    bounds = [reward.bound for reward in train.scaled if reward.bound]
    return tuple(_fitted(bound, values) for bound, values in zip(bounds, train.bounded.T, strict=True))


def _fitted(bound: Bound, values: Float64[np.ndarray, "responses"]) -> Bound:
    low, high = float(values.min()), float(values.max())
    if high < bound.limit if bound.is_least else low > bound.limit:
        key, end, best = ("at_least", "largest", high) if bound.is_least else ("at_most", "smallest", low)
        raise InputError(
            f"rewards.{bound.name}.{key}={bound.limit:g}, and the {end} measurement of the {len(values)} "
            f"training responses is {best:g}: no weighting of them meets the bound; set {key} within "
            f"[{low:g}, {high:g}]"
        )
    return replace(bound, scale=float(values.std()) or 1.0)


def _check_tail(rewards: Float64[np.ndarray, "responses"], mean: float) -> None:
    """Say so where one response sets the scale of all advantages."""
    if len(rewards) < FEWEST_RESPONSES:
        return
    squares = (rewards - mean) ** 2
    most = int(squares.argmax())
    share = float(squares[most] / squares.sum())
    if share > LARGEST_SHARE:
        logger.warning(
            "one response of %d has the auxiliary reward %.4g and the mean is %.4g: it makes %.0f%% of the "
            "variance, and so sets the scale of the advantages; if this measurement is too large, limit it "
            "by rewards.NAME.clip=[low, high]",
            *(len(rewards), rewards[most], mean, 100 * share),
        )
