"""Means with the uncertainty that belongs to them."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

Interval = tuple[float, float, float]
"""Mean, low and high end of its 95% interval."""


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its 95% interval (Student's t).

    Args:
        values: two or more that are independent, such as one for each prompt.
    """
    # Loading it takes a second, and only who has sampled needs it.
    from scipy import stats

    mean = fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def named_interval(interval: Interval) -> dict[str, float]:
    """`mean`, and the ends of its 95% interval: `low` and `high`."""
    return dict(zip(("mean", "low", "high"), interval, strict=True))


def ends_of(named: Mapping[str, float]) -> Interval:
    """The interval that `named_interval` has named."""
    return named["mean"], named["low"], named["high"]
