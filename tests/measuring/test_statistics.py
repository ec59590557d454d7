"""Means and their intervals."""

import math

import pytest

from preftune.measuring.statistics import ends_of, mean_interval, named_interval


def test_interval_of_three_prompts() -> None:
    """Means 0, 0.5 and 1: standard error 0.5 / sqrt(3), times Student's t of 4.3027 (two degrees)."""
    mean, low, high = mean_interval([0.0, 0.5, 1.0])
    assert mean == 0.5
    assert high - mean == pytest.approx(4.302653 * 0.5 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def test_a_named_interval_has_the_ends_it_was_named_by() -> None:
    """What files hold is read as it was measured."""
    assert named_interval((2.0, 1.0, 3.5)) == {"mean": 2.0, "low": 1.0, "high": 3.5}
    assert ends_of({"high": 3.5, "mean": 2.0, "low": 1.0}) == (2.0, 1.0, 3.5)
