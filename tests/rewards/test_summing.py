"""How several auxiliary rewards become one, by hand."""

from typing import Any

import numpy as np
import pytest

from preftune.data import Group, Response
from preftune.errors import InputError
from preftune.rewards import auxiliary_rewards, measure_groups, with_sum
from preftune.rewards.auxiliary import RewardScale

SECTION = {"column:a": {"weight": 2}, "column:b": {"goal": "minimise"}}
"""a is (0, 2, 4), b is (10, 10, 40): R_a has mean 2, R_b has mean -20 and spreads by sqrt(200)."""


def group(**columns: list[float]) -> Group:
    """A prompt with three responses."""
    return Group("2+2?", (Response("4"), Response("5"), Response("6")), (), columns=columns)


GROUP = group(a=[0, 2, 4], b=[10, 10, 40])
SD_A, SD_B = (8 / 3) ** 0.5, 200**0.5


def totals(rewards: Any, *groups: Group) -> list[float | None]:
    """R of every response."""
    return [
        response.auxiliary for each in measure_groups(groups, rewards).groups for response in each.responses
    ]


def test_the_sum_takes_rewards_as_they_are() -> None:
    """2 a - b: -10, -6, -32, as without the section."""
    rewards = auxiliary_rewards(SECTION)
    assert totals(with_sum(rewards, "sum", {}), GROUP) == totals(rewards, GROUP) == [-10.0, -6.0, -32.0]


def test_each_is_standardised_before_it_is_weighted() -> None:
    """2 (a - 2) / sd_a - (b - 20) / sd_b; the report has mean and scale of a and of -b."""
    measured = measure_groups([GROUP], with_sum(auxiliary_rewards(SECTION), "each", {}))
    expected = [2 * (a - 2) / SD_A - (b - 20) / SD_B for a, b in ((0, 10), (2, 10), (4, 40))]
    found = [response.auxiliary for response in measured.groups[0].responses]
    assert found == pytest.approx(expected, rel=1e-12)
    scales = measured.report.to_dict()["scales"]
    assert scales["column:a"] == {"mean": 2.0, "scale": pytest.approx(SD_A)}
    assert scales["column:b"] == {"mean": -20.0, "scale": pytest.approx(SD_B)}


def test_scales_are_those_of_the_first_data() -> None:
    """Other data are placed on the scale that was fitted: a = 6 and b = 0 are 2 * 4 / sd_a + 20 / sd_b."""
    fitted = measure_groups([GROUP], with_sum(auxiliary_rewards(SECTION), "each", {})).rewards
    expected = 2 * 4 / SD_A + 20 / SD_B
    assert totals(fitted, group(a=[6, 6, 6], b=[0, 0, 0])) == pytest.approx([expected] * 3, rel=1e-12)


def test_a_reward_that_is_the_same_everywhere_adds_nothing() -> None:
    """Its deviation from its mean is 0, and no division by 0 makes it more."""
    rewards = with_sum(auxiliary_rewards({"column:a": {}, "column:same": {}}), "each", {})
    measured = measure_groups([group(a=[0, 2, 4], same=[7, 7, 7])], rewards)
    assert measured.rewards[1].scale == RewardScale(7.0, 1.0)
    found = [response.auxiliary for response in measured.groups[0].responses]
    assert found == pytest.approx([-2 / SD_A, 0, 2 / SD_A], rel=1e-12)


def test_weights_of_the_sum_replace_a_rewards_own() -> None:
    """3 a with b left out by 0: 0, 6, 12; a reward that is not named keeps its weight."""
    rewards = auxiliary_rewards(SECTION)
    assert totals(with_sum(rewards, "sum", {"column:a": 3.0, "column:b": 0.0}), GROUP) == [0.0, 6.0, 12.0]
    assert totals(with_sum(rewards, "sum", {"column:b": 0.0}), GROUP) == [0.0, 4.0, 8.0]


def test_a_bounded_measurement_is_no_part_of_the_sum() -> None:
    """R is a alone, and each response carries b, clipped, in its own units."""
    section = {"column:a": {}, "column:b": {"at_most": 20, "clip": [0, 30]}}
    measured = measure_groups([GROUP], with_sum(auxiliary_rewards(section), "each", {"column:a": 1.0}))
    found = measured.groups[0].responses
    assert [response.bounded for response in found] == [(10.0,), (10.0,), (30.0,)]
    assert [response.auxiliary for response in found] == pytest.approx([-2 / SD_A, 0, 2 / SD_A], rel=1e-12)
    only = measure_groups([GROUP], auxiliary_rewards({"column:b": {"at_least": 11}}))
    assert [response.auxiliary for response in only.groups[0].responses] == [0.0, 0.0, 0.0]
    assert np.isfinite(only.report.combined.sd)


@pytest.mark.parametrize(
    ("section", "weights", "message"),
    [
        (SECTION, {"column:c": 1.0}, "reward_sum.weights.column:c=1.0: there is no such reward"),
        ({"column:a": {"at_least": 1}}, {"column:a": 1.0}, "this reward has a bound in place of a weight"),
        ({"column:a": {"at_least": 1, "weight": 2}}, {}, "a bounded measurement has no weight"),
        ({"column:a": {"at_most": 1, "goal": "minimise"}}, {}, "a bounded measurement has no goal"),
        ({"column:a": {"at_least": 1, "target": 2}}, {}, "a bounded measurement has no target"),
        ({"column:a": {"at_least": 1, "at_most": 2}}, {}, "name a second reward with the same measure"),
        ({"column:a": {"at_least": "much"}}, {}, "must be a finite number"),
    ],
)
def test_what_cannot_be_is_refused(section: Any, weights: dict[str, float], message: str) -> None:
    """The message names the key, the rule and the way out."""
    with pytest.raises(InputError, match=message):
        with_sum(auxiliary_rewards(section), "sum", weights)
