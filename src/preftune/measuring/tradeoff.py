"""What the points of a sweep gain and what they pay, and which of them another point beats at both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from preftune.measuring.formatting import NOT_MEASURED, format_number
from preftune.measuring.statistics import Interval

Axis = Literal["accuracy", "drift", "reward"]
AXES: dict[Axis, tuple[str, int]] = {
    "accuracy": ("held-out accuracy", 1),
    "drift": ("drift, nats per response", -1),
    "reward": ("auxiliary reward", 1),
}
"""Name of each axis, and the sign that makes more of it better."""

START = "starting model"


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep, measured on held-out prompts.

    Attributes:
        name: of its run, or START.
        accuracy: share of held-out pairs that the implicit reward ranks as the data do; None if there is
            none to measure, as of the starting model.
        drift: estimated KL divergence from the starting model, in nats per response.
        reward: auxiliary reward R of sampled responses; None without rewards.
        measurements: further means of sampled responses, by name.
        rewards: mean R_k of sampled responses by the reward's name, of two or three that are weighed against
            one another; empty where none are.
    """

    name: str
    accuracy: float | None
    drift: Interval
    reward: Interval | None
    measurements: Mapping[str, Interval]
    rewards: Mapping[str, Interval] = field(default_factory=dict)

    def place(self, axis: Axis) -> float | None:
        """Where the point lies on an axis."""
        if axis == "accuracy":
            return self.accuracy
        interval = self.drift if axis == "drift" else self.reward
        return None if interval is None else interval[0]

    def interval(self, axis: Axis) -> tuple[float, float] | None:
        """The ends of its 95% interval there, where it has one."""
        found = {"accuracy": None, "drift": self.drift, "reward": self.reward}[axis]
        return None if found is None else found[1:]


@dataclass(frozen=True)
class Plane:
    """Two axes, and the points that have a place on both."""

    x: Axis
    y: Axis
    points: tuple[SweepPoint, ...]

    @property
    def title(self) -> str:
        """What is weighed against what."""
        return f"{self.y.capitalize()} against {self.x}"

    def dominator(self, point: SweepPoint) -> SweepPoint | None:
        """A point that is at least as good on both axes and better on one; None on the Pareto front.

        Of several, one that is on the front itself.
        """
        return _dominator(self.points, self._worth, point)

    def front(self) -> list[SweepPoint]:
        """The points that nothing dominates, from left to right."""
        free = [point for point in self.points if self.dominator(point) is None]
        return sorted(free, key=self.at)

    def at(self, point: SweepPoint) -> tuple[float, float]:
        """Where one of the plane's points lies."""
        x, y = point.place(self.x), point.place(self.y)
        assert x is not None
        assert y is not None
        return x, y

    def _worth(self, point: SweepPoint) -> tuple[float, float]:
        x, y = (
            # No divergence is negative: an estimate below zero is noise, and no better than zero.
            max(0.0, place) if axis == "drift" else place
            for axis, place in zip((self.x, self.y), self.at(point), strict=True)
        )
        return AXES[self.x][1] * x, AXES[self.y][1] * y


@dataclass(frozen=True)
class RewardFront:
    """Two or three rewards, and the points of which all are measured."""

    names: tuple[str, ...]
    points: tuple[SweepPoint, ...]

    @property
    def title(self) -> str:
        """What is weighed against what."""
        return f"{', '.join(self.names[:-1])} against {self.names[-1]}"

    def dominator(self, point: SweepPoint) -> SweepPoint | None:
        """A point that is at least as good in every reward and better in one; None on the Pareto front."""
        return _dominator(self.points, self._worth, point)

    def front(self) -> list[SweepPoint]:
        """The points that nothing dominates, in order."""
        return [point for point in self.points if self.dominator(point) is None]

    def _worth(self, point: SweepPoint) -> tuple[float, ...]:
        return tuple(point.rewards[name][0] for name in self.names)


def reward_front(points: Sequence[SweepPoint]) -> RewardFront | None:
    """The front of the rewards that the points have; None where they have none."""
    names = tuple(dict.fromkeys(name for point in points for name in point.rewards))
    if not names:
        return None
    measured = [point for point in points if point.rewards.keys() >= set(names)]
    finite = [point for point in measured if all(math.isfinite(point.rewards[name][0]) for name in names)]
    return RewardFront(names, tuple(finite))


def planes(points: Sequence[SweepPoint]) -> list[Plane]:
    """The planes that at least two points have a place on.

    The auxiliary reward is weighed against accuracy and against drift; without rewards, accuracy against
    drift.
    """
    rewarded = any(point.reward is not None for point in points)
    axes: list[tuple[Axis, Axis]] = (
        [("accuracy", "reward"), ("drift", "reward")] if rewarded else [("drift", "accuracy")]
    )
    placed = [
        Plane(x, y, tuple(point for point in points if _is_placed(point, x) and _is_placed(point, y)))
        for x, y in axes
    ]
    return [plane for plane in placed if len(plane.points) > 1]


def weighings(points: Sequence[SweepPoint]) -> list[Plane | RewardFront]:
    """Everything that is weighed: the planes, and the front of the rewards where there is one."""
    front = reward_front(points)
    return [*planes(points), *([front] if front else [])]


def tradeoff_table(points: Sequence[SweepPoint]) -> tuple[list[str], list[list[str]]]:
    """Heads of the columns, and a row of text for each point."""
    front = reward_front(points)
    weighed = weighings(points)
    measured = list(dict.fromkeys(name for point in points for name in point.measurements))
    rewarded = any(point.reward is not None for point in points)
    heads = ["Run", "Accuracy", "Drift, nats", *(["Auxiliary reward"] if rewarded else []), *measured]
    heads += [f"R of {name}" for name in (front.names if front else ())]
    rows = []
    for point in points:
        cells = [point.name, format_number(point.accuracy, 2), _written(point.drift)]
        cells += [_written(point.reward)] if rewarded else []
        cells += [_written(point.measurements.get(name)) for name in measured]
        cells += [_written(point.rewards.get(name)) for name in (front.names if front else ())]
        rows.append([*cells, *(_standing(plane, point) for plane in weighed)])
    return [*heads, *(plane.title for plane in weighed)], rows


def _is_placed(point: SweepPoint, axis: Axis) -> bool:
    place = point.place(axis)
    return place is not None and math.isfinite(place)


def _dominator(
    points: Sequence[SweepPoint], worth: Callable[[SweepPoint], tuple[float, ...]], point: SweepPoint
) -> SweepPoint | None:
    """Of several points that beat it, one that is on the front itself."""
    better = [other for other in points if _beats(worth(other), worth(point))]
    return max(better, key=worth, default=None)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine >= its for mine, its in zip(one, other, strict=True))


def _written(interval: Interval | None) -> str:
    if interval is None:
        return NOT_MEASURED
    mean, low, high = interval
    return format_number(mean, 2, interval=(low, high))


def _standing(plane: Plane | RewardFront, point: SweepPoint) -> str:
    if point not in plane.points:
        return "not compared"
    dominator = plane.dominator(point)
    return "on the front" if dominator is None else f"dominated by {dominator.name}"
