"""Which rewards a sweep weighs against one another, and what its samples have of each."""

from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.rewards import auxiliary_rewards
from preftune.sweep.evaluation import mean_rewards
from preftune.sweep.front import front_names
from preftune.sweep.points import sweep_points
from preftune.training.configuration import check_config

REWARDS = auxiliary_rewards(
    {
        "brief": {"measure": "repetition", "goal": "minimise"},
        "varied": {"measure": "lexical_diversity"},
        "json": {"measure": "valid_json", "at_least": 0.5},
        "thanks": {"measure": "regex", "pattern": "thank", "target": 1},
    }
)
SWEPT = "reward_sum.weights={brief: 1, varied: 0},{brief: 0, varied: 1}"


def names(
    asked: tuple[str, ...], *overrides: str, weights: dict[str, float] | None = None
) -> tuple[str, ...]:
    """The front of a sweep of these overrides."""
    tree: dict[str, Any] = {"model": "m", "data": {"train": "t"}, "reward_sum": {"weights": weights or {}}}
    points = sweep_points(overrides)
    return front_names(asked, [check_config(tree)], points, REWARDS)


def test_swept_weights_name_the_front() -> None:
    """A list of mappings is a sweep of as many points, and its rewards are weighed against one another."""
    points = sweep_points([SWEPT])
    assert [point.values["reward_sum.weights"] for point in points] == [
        "{brief: 1, varied: 0}",
        "{brief: 0, varied: 1}",
    ]
    assert names((), SWEPT, weights={"brief": 1.0, "varied": 0.0}) == ("brief", "varied")


def test_other_sweeps_have_a_front_where_it_is_asked_for() -> None:
    """A sweep of beta, or of one reward's weight, has none unless rewards are named; those named win."""
    assert names((), "objective.beta=0.1,0.3", weights={"brief": 1.0, "varied": 0.0}) == ()
    assert names((), "reward_sum.weights={brief: 1},{brief: 0}", weights={"brief": 1.0}) == ()
    asked = ("brief", "varied", "json")
    assert names(asked, SWEPT, weights={"brief": 1.0, "varied": 0.0}) == asked


@pytest.mark.parametrize(
    ("asked", "weights", "message"),
    [
        (("brief", "varid"), {}, "'varid' is no reward that can be measured.*did you mean 'varied'"),
        (("brief",), {}, r"here are 1 \(brief\): pass --front NAME,NAME"),
        ((), dict.fromkeys(("brief", "varied", "json", "thanks"), 1.0), "here are 4"),
    ],
)
def test_a_front_has_two_or_three_axes(
    asked: tuple[str, ...], weights: dict[str, float], message: str
) -> None:
    """What is no reward, and too few or too many of them, is said with the way out."""
    with pytest.raises(InputError, match=message):
        names(asked, SWEPT, weights=weights)


def test_the_rewards_of_samples_by_hand(tmp_path: Path) -> None:
    """Means over prompts of R_k without its weight, each by its goal: -0.25, -0.5 from the target, 0.75.

    Repetitions (0, 0.5) and (0.25, 0.25) are 0.25 on average, to be minimised. Of the bounded one more is
    better, as it is to be at least something.
    """
    rows = [
        {"measurements": {"brief": [0.0, 0.5], "thanks": [1.0, 0.0], "json": [1.0, 1.0]}},
        {"measurements": {"brief": [0.25, 0.25], "thanks": [1.0, 0.0], "json": [1.0, 0.0]}},
    ]
    found = mean_rewards(rows, REWARDS, ("brief", "thanks", "json"))
    assert {name: interval[0] for name, interval in found.items()} == {
        "brief": -0.25,
        "thanks": -0.5,
        "json": 0.75,
    }
    # Both prompts have -0.25, so that nothing is uncertain.
    assert found["brief"] == (-0.25, -0.25, -0.25)
