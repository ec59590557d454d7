"""How sure a difference is, how wide a range of learning rates does well, and what is left at the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float64

DRAWS = 10_000
LEVEL = 0.95
SIGNIFICANT = 0.05
KEPT_SHARE = 0.9
"""Of the best gain, that a learning rate has to keep."""

Table = Float64[np.ndarray, "seeds prompts"]
Verdict = Literal["helps", "hurts", "no difference shown"]


@dataclass(frozen=True)
class Effect:
    """A mean over seeds and prompts, or a difference of two.

    Attributes:
        mean: of all.
        low, high: ends of the 95% percentile interval over prompts and seeds.
        p: of zero, uncorrected.
        by_seed: the mean of each seed.
    """

    mean: float
    low: float
    high: float
    p: float
    by_seed: tuple[float, ...]

    @property
    def same_sign(self) -> bool:
        """Whether every seed's mean lies on the same side of zero."""
        return all(value > 0 for value in self.by_seed) or all(value < 0 for value in self.by_seed)


def effect(values: Table, seed: int = 0, draws: int = DRAWS) -> Effect:
    """Draw seeds and prompts again, each for themselves.

    Args:
        values: a number for each seed and prompt; differences where two arms are compared.
        seed: of the draws.
        draws: their number.
    """
    random = np.random.default_rng(seed)
    seeds, prompts = values.shape
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    of_prompts = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws) / prompts
    means = ((of_seeds @ values) * of_prompts).sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (draws + 1))
    return Effect(float(values.mean()), float(low), float(high), p, tuple(values.mean(axis=1).tolist()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def verdict(difference: Effect, adjusted: float, smallest: float) -> Verdict:
    """What the protocol says of a difference.

    Args:
        difference: of an arm to the one it is compared with.
        adjusted: its p-value after Holm's correction.
        smallest: the mean that counts.
    """
    if adjusted >= SIGNIFICANT or not difference.same_sign or abs(difference.mean) < smallest:
        return "no difference shown"
    return "helps" if difference.mean > 0 else "hurts"


@dataclass(frozen=True)
class Width:
    """The range of learning rates that keeps 90% of the best gain.

    Attributes:
        low, high: its ends.
        is_open: whether it reaches an end of the grid, so that it may be wider.
    """

    low: float
    high: float
    is_open: bool

    @property
    def factor(self) -> float:
        """High over low."""
        return self.high / self.low


def width(gains: Mapping[float, float]) -> Width | None:
    """The range around the best learning rate, linear in its logarithm between grid points.

    Args:
        gains: the best gain over the start at each learning rate.

    Returns:
        None where nothing is gained.
    """
    rates = sorted(gains)
    best = max(rates, key=lambda rate: gains[rate])
    level = KEPT_SHARE * gains[best]
    if level <= 0:
        return None
    place = rates.index(best)
    low, low_open = _end(rates[place::-1], gains, level)
    high, high_open = _end(rates[place:], gains, level)
    return Width(low, high, low_open or high_open)


def _end(rates: Sequence[float], gains: Mapping[float, float], level: float) -> tuple[float, bool]:
    """Where the gain crosses the level on the way from the best rate outwards; else the last rate."""
    for inner, outer in pairwise(rates):
        if gains[outer] < level:
            share = (gains[inner] - level) / (gains[inner] - gains[outer])
            crossing = math.log(inner) + share * (math.log(outer) - math.log(inner))
            return math.exp(crossing), False
    return rates[-1], True


def share_left(kept: float, long: float) -> float | None:
    """The gain that is left after training for too long; None where nothing had been gained."""
    return long / kept if kept > 0 else None
