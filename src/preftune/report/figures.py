"""Figures as inline SVG: text stays text, and colours follow the page's light or dark scheme."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from preftune.measuring.formatting import format_number
from preftune.measuring.tradeoff import AXES, Plane, SweepPoint
from preftune.report.drawing import HEIGHT, INK, MUTED, PAPER, panel, short, svg
from preftune.report.drawing import colour as _colour
from preftune.report.drawing import marker as _marker
from preftune.report.folders import Series

LABEL_GAP = 0.085
"""Least distance of two labels in a panel of this height, as a share of its axes."""


@dataclass(frozen=True)
class RunLine:
    """One run in a panel over the steps.

    Attributes:
        name: its label.
        index: its place among the runs, which decides colour and marker.
        held_out: evaluations, drawn as joined points.
        training: training steps, drawn faintly behind them.
    """

    name: str
    index: int
    held_out: Series
    training: Series = field(default_factory=list)

    def finite(self) -> list[float]:
        """Every value that can be drawn."""
        return [value for _, value in (*self.held_out, *self.training) if math.isfinite(value)]


@dataclass(frozen=True)
class RewardRow:
    """One mean with its interval; `index` is None for the model before training."""

    name: str
    index: int | None
    mean: float
    low: float
    high: float


def value_range(lines: Iterable[RunLine]) -> tuple[float, float]:
    """Limits that hold every line and zero, for panels that are to be compared."""
    values = [0.0, *(value for line in lines for value in line.finite())]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def steps_panel(
    key: str, title: str, lines: Sequence[RunLine], limits: tuple[float, float], baseline: float = 0.0
) -> str:
    """A metric over the training steps, every run labelled at the end of its line.

    Args:
        key: unique on the page; the SVG's ids start with it.
        title: what is drawn.
        lines: the runs; one without a finite value is left out.
        limits: of the value axis.
        baseline: the value that means "nothing learned", drawn as a line.
    """
    drawn = [line for line in lines if line.finite()]
    height = max(HEIGHT, HEIGHT * LABEL_GAP * len(drawn))
    with panel(title, height) as (figure, axes):
        longest = max((len(short(line.name)) for line in drawn), default=0)
        figure.subplots_adjust(left=0.13, right=0.97 - 0.0185 * longest, top=0.87, bottom=0.17)
        axes.axhline(baseline, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for line in drawn:
            _draw_line(axes, line)
        axes.set_ylim(*limits)
        axes.set_xlim(left=min(0.0, -0.03 * axes.get_xlim()[1]))
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        _label_ends(axes, drawn, gap=LABEL_GAP * HEIGHT / height)
        return svg(figure, key, _describe_lines(title, drawn))


def rewards_panel(key: str, title: str, rows: Sequence[RewardRow]) -> str:
    """Means with their 95% intervals, one row each, the numbers beside them."""
    with panel(title, height=0.85 + 0.5 * len(rows)) as (figure, axes):
        longest = max(len(short(row.name)) for row in rows)
        head = 0.42 / figure.get_figheight()
        figure.subplots_adjust(left=0.05 + 0.0185 * longest, right=0.96, top=1 - head, bottom=head * 0.8)
        for position, row in enumerate(rows):
            colour = MUTED if row.index is None else _colour(row.index)
            axes.plot([row.low, row.high], [position, position], color=colour, linewidth=2)
            axes.plot([row.mean], [position], color=colour, marker=_marker(row.index), markersize=6.5)
            text = format_number(row.mean, 2, interval=(row.low, row.high))
            axes.annotate(
                text, (row.mean, position), (0, 7), textcoords="offset points", ha="center", color=colour
            )
        axes.set_yticks(range(len(rows)), [short(row.name) for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(INK if row.index is None else _colour(row.index))
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.set_xmargin(0.3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        described = "; ".join(
            f"{row.name} {format_number(row.mean, 2, interval=(row.low, row.high))}" for row in rows
        )
        return svg(figure, key, f"{title}: {described}.")


def gap_panel(key: str, title: str, index: int, histogram: Sequence[int], mean: int | float) -> str:
    """Number of pairs per tenth of the prior gap, with the mean gap."""
    bins = len(histogram)
    with panel(title) as (figure, axes):
        figure.subplots_adjust(left=0.04, right=0.96, top=0.78, bottom=0.17)
        centres = [(place + 0.5) / bins for place in range(bins)]
        bars = axes.bar(centres, histogram, width=0.92 / bins, color=_colour(index), alpha=0.85)
        axes.bar_label(
            bars, labels=[str(count) if count else "" for count in histogram], padding=2, color=MUTED
        )
        if math.isfinite(mean):
            above = axes.get_xaxis_transform()
            axes.plot([mean], [1.04], "v", color=INK, markersize=5, transform=above, clip_on=False)
            side = "right" if mean > 0.8 else "left" if mean < 0.2 else "center"
            axes.annotate(f"mean {format_number(mean, 2)}", (mean, 1.08), xycoords=above, ha=side)
        axes.set_title(title, pad=26)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.12 * max(*histogram, 1))
        axes.set_xlabel("prior gap δ = reward of chosen − reward of rejected")  # noqa: RUF001 a minus sign
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        counts = ", ".join(str(count) for count in histogram)
        described = f"{title}: pairs per tenth from 0 to 1: {counts}; mean gap {format_number(mean, 2)}."
        return svg(figure, key, described)


def reliability_panel(key: str, title: str, index: int, bins: Sequence[Mapping[str, Any]]) -> str:
    """How often labels agree with a prior, by the probability it states, with the number of pairs.

    Args:
        key: unique on the page; the SVG's ids start with it.
        title: whose prior on which pairs.
        index: of the run, which decides the colour.
        bins: as in summary.json, by rising probability.
    """
    colour = _colour(index)
    with panel(title) as (figure, axes):
        figure.subplots_adjust(left=0.16, right=0.96, top=0.78, bottom=0.17)
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for place, found in enumerate(bins):
            x, agreement = found["probability"], found["agreement"]
            axes.plot([x, x], [agreement["low"], agreement["high"]], color=colour, linewidth=1.5, alpha=0.5)
            axes.plot(
                [x], [agreement["share"]], color=colour, marker=_marker(index), markersize=5.5, clip_on=False
            )
            axes.annotate(
                format_number(found["pairs"], 0),
                (x, 1.03 + 0.09 * (place % 2)),  # numbers of neighbours would touch
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                color=MUTED,
                fontsize=8,
            )
        axes.set_title(title, pad=26)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("probability the prior states, (1 + |δ|) / 2")
        axes.set_ylabel("labels that agree")
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        described = "; ".join(_describe_bin(found) for found in bins)
        return svg(figure, key, f"{title}: share of labels that agree, by stated probability: {described}.")


def _describe_bin(found: Mapping[str, Any]) -> str:
    agreement = found["agreement"]
    share = format_number(agreement["share"], 2, interval=(agreement["low"], agreement["high"]))
    return f"{share} at {format_number(found['probability'], 2)}, {format_number(found['pairs'], 0)} pairs"


def tradeoff_panel(key: str, plane: Plane, indices: Mapping[str, int]) -> str:
    """Points on a plane with their 95% intervals; the Pareto front filled and joined, the others hollow.

    Args:
        key: unique on the page; the SVG's ids start with it.
        plane: axes and points.
        indices: place among the runs by name, which decides colour and marker; the starting model has none.
    """
    front = plane.front()
    with panel(plane.title) as (figure, axes):
        figure.subplots_adjust(left=0.13, right=0.95, top=0.87, bottom=0.17)
        # What the front leaves reachable: as little drift, or as much of the rest, as each point has.
        steps = "steps-post" if AXES[plane.x][1] < 0 else "steps-pre"
        axes.plot(
            *zip(*map(plane.at, front), strict=True),
            color=MUTED,
            linewidth=1,
            alpha=0.6,
            drawstyle=steps,
        )
        for point in plane.points:
            _draw_point(axes, plane, point, indices.get(point.name), filled=point in front)
        axes.margins(0.18, 0.14)
        axes.set_xlabel(AXES[plane.x][0])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.grid()
        axes.spines["left"].set_visible(False)
        return svg(figure, key, _describe_plane(plane))


def _draw_line(axes: Axes, line: RunLine) -> None:
    colour = _colour(line.index)
    if line.training:
        axes.plot(
            *zip(*line.training, strict=True), color=colour, linewidth=1, alpha=0.3 if line.held_out else 0.8
        )
    if line.held_out:
        axes.plot(
            *zip(*line.held_out, strict=True),
            color=colour,
            linewidth=1.8,
            marker=_marker(line.index),
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            clip_on=False,
        )


def _draw_point(axes: Axes, plane: Plane, point: SweepPoint, index: int | None, filled: bool) -> None:
    x, y = plane.at(point)
    colour = MUTED if index is None else _colour(index)
    across, along = point.interval(plane.x), point.interval(plane.y)
    if across is not None:
        axes.plot(across, (y, y), color=colour, linewidth=1, alpha=0.5)
    if along is not None:
        axes.plot((x, x), along, color=colour, linewidth=1, alpha=0.5)
    axes.plot(
        [x],
        [y],
        marker=_marker(index),
        markersize=6.5,
        color=colour,
        markerfacecolor=colour if filled else PAPER,
        markeredgewidth=1.4,
    )
    axes.annotate(short(point.name), (x, y), (5, 5), textcoords="offset points", color=colour)


def _describe_plane(plane: Plane) -> str:
    described = []
    for point in plane.points:
        dominator = plane.dominator(point)
        standing = "on the Pareto front" if dominator is None else f"dominated by {dominator.name}"
        x, y = (
            format_number(point.place(axis), 2, interval=point.interval(axis)) for axis in (plane.x, plane.y)
        )
        described.append(f"{point.name} has {plane.x} {x}, {plane.y} {y}, {standing}")
    return f"{plane.title}: {'; '.join(described)}."


def _label_ends(axes: Axes, lines: Sequence[RunLine], gap: float) -> None:
    """Write every run's name beside the end of its line, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ends = [min(1.0, max(0.0, (_last(line)[1] - low) / (high - low))) for line in lines]
    for line, place in zip(lines, _apart(ends, gap), strict=True):
        axes.annotate(
            short(line.name),
            (1.03, place),
            xycoords="axes fraction",
            va="center",
            color=_colour(line.index),
            annotation_clip=False,
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Move places up until they are `gap` apart, then down again as far as they left [0, 1]."""
    order = sorted(range(len(places)), key=lambda position: places[position])
    moved = list(places)
    for lower, upper in itertools.pairwise(order):
        moved[upper] = max(moved[upper], moved[lower] + gap)
    ceiling = 1.0
    for position in reversed(order):
        moved[position] = min(moved[position], ceiling)
        ceiling = moved[position] - gap
    return moved


def _last(line: RunLine) -> tuple[int, float]:
    """The last value that can be drawn: of the evaluations, or else of the training steps."""
    for series in (line.held_out, line.training):
        drawn = [point for point in series if math.isfinite(point[1])]
        if drawn:
            return drawn[-1]
    raise ValueError(f"{line.name} has nothing to draw")


def _describe_lines(title: str, lines: Sequence[RunLine]) -> str:
    ends = []
    for line in lines:
        step, value = _last(line)
        ends.append(f"{line.name} ends at {format_number(value, 2)} after step {step}")
    return f"{title}: {'; '.join(ends)}."
