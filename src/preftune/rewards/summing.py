"""From several auxiliary rewards to one: weights, what is standardised before the sum, what is bounded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.rewards.auxiliary import AuxiliaryReward, RewardScale

Normalize = Literal["sum", "each"]
"""What is standardised over the training set: the weighted sum alone, or each reward before it is weighted.

With `sum`, a reward that spreads more counts more, and can hide another. `each` is the point of GDPO
(arXiv 2601.05242), which standardises each reward within a group of samples and the sum within a batch; here
both are over the training set.
"""


def with_sum(
    rewards: Sequence[AuxiliaryReward], normalize: Normalize, weights: Mapping[str, float]
) -> tuple[AuxiliaryReward, ...]:
    """The rewards as they are summed.

    Args:
        rewards: of a configuration.
        normalize: see `Normalize`.
        weights: by the reward's name, in place of its own weight; 0 leaves it out.

    Raises:
        InputError: a weight belongs to no reward, or to one that has a bound.
    """
    by_name = {reward.name: reward for reward in rewards}
    for name, weight in weights.items():
        if name not in by_name:
            raise InputError(
                f"reward_sum.weights.{name}={weight}: there is no such reward{suggest(name, list(by_name))}; "
                f"the section `rewards` has {', '.join(by_name) or 'none'}"
            )
        if by_name[name].bound:
            raise InputError(
                f"reward_sum.weights.{name}={weight}: this reward has a bound in place of a weight: remove "
                "one of the two"
            )
    return tuple(
        replace(
            reward,
            weight=float(weights.get(reward.name, reward.weight)),
            normalizes=normalize == "each" and reward.bound is None,
        )
        for reward in rewards
    )


def fit_scales(
    rewards: Sequence[AuxiliaryReward], measurements: Mapping[str, Float64[np.ndarray, "responses"]]
) -> tuple[AuxiliaryReward, ...]:
    """The rewards, with a scale for each that is standardised and has none yet."""
    return tuple(
        replace(reward, scale=_scale(_rewards(reward, measurements)))
        if reward.normalizes and reward.scale is None
        else reward
        for reward in rewards
    )


def _scale(rewards: Float64[np.ndarray, "responses"]) -> RewardScale:
    # A reward that is the same everywhere is 0 once its mean is gone, whatever it is divided by.
    return RewardScale(float(rewards.mean()), float(rewards.std()) or 1.0)


def combine(
    rewards: Sequence[AuxiliaryReward], measurements: Mapping[str, Float64[np.ndarray, "responses"]]
) -> Float64[np.ndarray, "responses"]:
    """R = sum_k w_k R_k of every response, from its raw measurements by reward (at least one).

    R_k is (R_k - mean) / scale where it has a scale. Where every reward has a bound, R is 0.
    """
    weighted = [
        reward.weight * _standardized(reward, _rewards(reward, measurements))
        for reward in rewards
        if reward.bound is None
    ]
    if not weighted:
        return np.zeros(len(next(iter(measurements.values()))))
    return np.asarray(np.sum(weighted, axis=0, dtype=np.float64))


def bounded(
    rewards: Sequence[AuxiliaryReward], measurements: Mapping[str, Float64[np.ndarray, "responses"]]
) -> Iterator[tuple[float, ...]]:
    """What each bound is held against, of every response: its measurements, clipped; none without bounds."""
    columns = [
        [reward.clipped(float(value)) for value in measurements[reward.name]]
        for reward in rewards
        if reward.bound
    ]
    return zip(*columns, strict=True)


def _rewards(
    reward: AuxiliaryReward, measurements: Mapping[str, Float64[np.ndarray, "responses"]]
) -> Float64[np.ndarray, "responses"]:
    return np.array([reward.reward(float(value)) for value in measurements[reward.name]])


def _standardized(
    reward: AuxiliaryReward, values: Float64[np.ndarray, "responses"]
) -> Float64[np.ndarray, "responses"]:
    return (values - reward.scale.mean) / reward.scale.scale if reward.scale else values
