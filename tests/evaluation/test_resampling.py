"""Intervals over prompts, paired differences and the sign test."""

import math

import numpy as np
import pytest

from preftune.errors import InputError
from preftune.evaluation.resampling import difference, mean, sign_test, tally
from preftune.evaluation.verdicts import Comparison, Rating, flipped_rate, invalid_rate


def test_mean_weighs_games() -> None:
    """Three games won on one prompt and one lost on another are 3 / 4."""
    counted = tally([Comparison("a", 1.0, weight=3), Comparison("b", 0.0)])
    assert mean(counted).value == 0.75


def test_standard_error_of_independent_prompts() -> None:
    """Of 400 prompts with 100 wins: sqrt(0.25 x 0.75 / 400) = 0.02165, and the interval is 1.96 of it."""
    counted = {str(index): (float(index < 100), 1.0) for index in range(400)}
    found = mean(counted)
    assert found.standard_error == pytest.approx(0.02165, rel=0.03)
    assert found.interval is not None
    assert found.interval == pytest.approx((0.25 - 1.96 * 0.02165, 0.25 + 1.96 * 0.02165), abs=0.003)


def test_saying_the_same_twice_makes_no_figure_surer() -> None:
    """Every verdict given twice, as in both orders: the interval over prompts stays as it is."""
    once = [Comparison(str(index), float(index % 3 == 0)) for index in range(60)]
    assert mean(tally(once * 2)) == mean(tally(once))


def test_difference_is_paired() -> None:
    """Where one model is better by 0.25 on each prompt, the difference is sure though each mean is not."""
    ours = {str(index): (index % 2 * 0.5 + 0.25, 1.0) for index in range(20)}
    theirs = {str(index): (index % 2 * 0.5, 1.0) for index in range(20)}
    found = difference(ours, theirs)
    assert found.estimate.interval == pytest.approx((0.25, 0.25))
    assert mean(ours).interval != mean(theirs).interval


def test_difference_counts_shared_prompts_only() -> None:
    """Of prompts a, b and c the other has b, c and d: one better, one equal, and the mean is 0.5."""
    ours = {"a": (9.0, 1.0), "b": (1.0, 1.0), "c": (0.3, 3.0)}
    theirs = {"b": (0.0, 1.0), "c": (0.1, 1.0), "d": (9.0, 1.0)}
    found = difference(ours, theirs)
    assert (found.prompts, found.better, found.worse) == (2, 1, 0)
    assert found.estimate.value == pytest.approx(1.3 / 4 - 0.1 / 2)


def test_sign_test() -> None:
    """Eight of ten: 2 (1 + 10 + 45) / 1024. Nothing but draws says nothing."""
    assert sign_test(8, 2) == pytest.approx(112 / 1024)
    assert sign_test(0, 0) == 1


def test_resamples_follow_the_seed() -> None:
    """The same seed gives the same interval, another one another."""
    counted = {str(index): (math.sin(index), 1.0) for index in range(50)}
    assert mean(counted, seed=1) == mean(counted, seed=1)
    assert mean(counted, seed=1).interval != mean(counted, seed=2).interval


def test_a_single_prompt_has_no_interval() -> None:
    """Resampling one prompt gives it back, which is no sign of certainty."""
    found = mean({"a": (1.0, 2.0)})
    assert (found.value, found.standard_error, found.interval) == (0.5, None, None)


def test_nothing_to_average_or_to_compare_is_an_error() -> None:
    """No verdict, or no prompt in common."""
    with pytest.raises(InputError, match="no verdict could be read"):
        mean(tally([Rating("a", None)]))
    with pytest.raises(InputError, match="no prompt in common"):
        difference({"a": (1.0, 1.0)}, {"b": (1.0, 1.0)})


def test_flipped_verdicts() -> None:
    """Of four prompts: one agrees, one flips, one is a draw in one order, and one cannot be read.

    That makes two of three, and one of eight verdicts invalid.
    """
    verdicts = [
        *(Comparison("agrees", 1.0, True), Comparison("agrees", 1.0, False)),
        *(Comparison("flips", 1.0, True), Comparison("flips", 0.0, False)),
        *(Comparison("draw", 0.5, True), Comparison("draw", 0.0, False)),
        *(Comparison("unread", None, True), Comparison("unread", 0.0, False)),
    ]
    assert flipped_rate(verdicts) == pytest.approx(2 / 3)
    assert invalid_rate(verdicts) == 1 / 8
    assert flipped_rate(verdicts[::2]) is None


def test_repeated_pairs_are_taken_in_their_order() -> None:
    """Two runs of a prompt, the first agreeing and the second flipping: one of two flips."""
    runs = [(1.0, 1.0), (0.0, 1.0)]
    verdicts = [
        Comparison("a", preference, first)
        for run in runs
        for preference, first in zip(run, (True, False), strict=True)
    ]
    assert flipped_rate(verdicts) == 0.5


def test_ratings_of_both_turns_stay_together() -> None:
    """A prompt graded 8 and 6, and one graded 4: the mean is 6, over two prompts."""
    counted = tally([Rating("a", 8.0, 1), Rating("a", 6.0, 2), Rating("b", 4.0, 1), Rating("b", None, 2)])
    assert counted == {"a": (14.0, 2.0), "b": (4.0, 1.0)}
    found = mean(counted)
    assert found.value == 6
    assert found.interval is not None
    assert np.isclose(found.interval, (4.0, 7.0)).all()
