"""Which points of a sweep lie on the Pareto front, and which another one beats."""

from dataclasses import replace

from preftune.measuring.tradeoff import START, SweepPoint, planes, reward_front, tradeoff_table


def point(name: str, accuracy: float | None, drift: float, reward: float | None) -> SweepPoint:
    """A point whose intervals reach 0.1 to each side."""

    def interval(mean: float) -> tuple[float, float, float]:
        return mean, mean - 0.1, mean + 0.1

    return SweepPoint(
        name,
        accuracy,
        interval(drift),
        None if reward is None else interval(reward),
        {},
    )


POINTS = (
    point(START, None, 0.0, 0.2),
    point("0", 0.7, 1.0, 0.3),
    point("0.1", 0.65, 2.0, 0.5),
    point("0.3", 0.6, 3.0, 0.4),
)


def test_front_of_accuracy_and_reward() -> None:
    """0.7 and 0.65 trade accuracy for reward; 0.6 has less of both than 0.65, which dominates it."""
    plane = planes(POINTS)[0]
    assert (plane.x, plane.y) == ("accuracy", "reward")
    assert [each.name for each in plane.front()] == ["0.1", "0"]
    dominator = plane.dominator(POINTS[3])
    assert dominator is not None
    assert dominator.name == "0.1"


def test_less_drift_is_better() -> None:
    """The start pays nothing and is on the front; 0.3 drifts more than 0.1 for less reward."""
    plane = planes(POINTS)[1]
    assert (plane.x, plane.y) == ("drift", "reward")
    assert [each.name for each in plane.front()] == [START, "0", "0.1"]


def test_the_dominator_is_on_the_front() -> None:
    """Of a chain of ever better points, the last is named: one that something else beats is no advice."""
    chain = [point(str(place), place / 10, 0.0, place / 10) for place in range(1, 5)]
    plane = planes(chain)[0]
    assert [plane.dominator(each) for each in chain] == [chain[3], chain[3], chain[3], None]


def test_equal_points_do_not_dominate_each_other() -> None:
    """Of two points in one place neither is better on any axis."""
    plane = planes([point("a", 0.5, 1.0, 0.5), point("b", 0.5, 1.0, 0.5)])[0]
    assert [each.name for each in plane.front()] == ["a", "b"]


def test_drift_below_zero_is_no_merit() -> None:
    """A divergence cannot be negative: -0.5 and -0.1 are both zero with noise, and the reward decides."""
    low, high = point("low", 0.5, -0.5, 0.3), point("high", 0.5, -0.1, 0.4)
    assert planes([low, high])[1].dominator(low) == high


def test_without_rewards_accuracy_is_weighed_against_drift() -> None:
    """A sweep without auxiliary rewards still has a front, of the points that have an accuracy."""
    points = [point(START, None, 0.0, None), point("a", 0.6, 1.0, None), point("b", 0.5, 2.0, None)]
    (plane,) = planes(points)
    assert (plane.x, plane.y) == ("drift", "accuracy")
    assert [each.name for each in plane.front()] == ["a"]


def test_what_is_no_number_is_not_compared() -> None:
    """A diverged run has no place on the plane, and cannot stand on its front."""
    points = [point("a", float("nan"), 1.0, 0.5), point("b", 0.5, 1.0, 0.4), point("c", 0.4, 1.0, 0.3)]
    assert [each.name for each in planes(points)[0].points] == ["b", "c"]
    assert tradeoff_table(points)[1][0][-2] == "not compared"


def of_rewards(name: str, **rewards: float) -> SweepPoint:
    """A point that is measured by rewards of its own."""
    return replace(
        point(name, 0.5, 1.0, 0.3), rewards={key: (value, value, value) for key, value in rewards.items()}
    )


def test_front_of_two_rewards() -> None:
    """(3, 0), (2, 2) and (0, 3) trade one for the other; (1, 1) has less of both than (2, 2)."""
    points = [of_rewards("a", x=3.0, y=0.0), of_rewards("b", x=2.0, y=2.0), of_rewards("c", x=0.0, y=3.0)]
    worse = of_rewards("d", x=1.0, y=1.0)
    front = reward_front([*points, worse])
    assert front is not None
    assert (front.names, front.title) == (("x", "y"), "x against y")
    assert [each.name for each in front.front()] == ["a", "b", "c"]
    dominator = front.dominator(worse)
    assert dominator is not None
    assert dominator.name == "b"


def test_a_third_reward_keeps_a_point_on_the_front() -> None:
    """(1, 1) is beaten by (2, 2) in two dimensions, and not where it has more of a third reward."""
    points = [
        of_rewards("b", x=2.0, y=2.0, z=0.0),
        of_rewards("d", x=1.0, y=1.0, z=1.0),
        of_rewards("e", x=1.0, y=1.0, z=0.0),
    ]
    front = reward_front(points)
    assert front is not None
    assert [each.name for each in front.front()] == ["b", "d"]
    heads, rows = tradeoff_table(points)
    assert heads[4:7] == ["R of x", "R of y", "R of z"]
    assert heads[-1] == "x, y against z"
    assert [row[-1] for row in rows] == ["on the front", "on the front", "dominated by b"]


def test_points_without_rewards_of_their_own_have_no_front() -> None:
    """A sweep that names no rewards has the two planes and no more."""
    assert reward_front(POINTS) is None
    assert tradeoff_table(POINTS)[0][-2:] == ["Reward against accuracy", "Reward against drift"]
