"""Means with the uncertainty that belongs to them."""

import math
from collections.abc import Sequence
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
