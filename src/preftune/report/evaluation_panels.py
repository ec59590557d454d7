"""Figures of what judges said: outcomes, categories, and the win rate at equal length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from preftune.measuring.formatting import format_number
from preftune.report.drawing import GRID, INK, MUTED, PAPER, colour, marker, panel, short, svg
from preftune.report.evaluation import Bounds


@dataclass(frozen=True)
class Outcomes:
    """One model's wins, ties and losses.

    Attributes:
        label: of its row.
        index: of the model, which decides the colour.
        wins, ties, losses: counts, not all zero.
        win_rate: in percent; None if it was not measured.
        interval: of the win rate.
    """

    label: str
    index: int
    wins: float
    ties: float
    losses: float
    win_rate: float | None
    interval: Bounds | None


@dataclass(frozen=True)
class Categories:
    """One model's average grade in each category."""

    name: str
    index: int
    grades: dict[str, float]


@dataclass(frozen=True)
class Controlled:
    """One model's win rate as it is and at equal length, in percent, with their intervals."""

    name: str
    index: int
    win_rate: float
    interval: Bounds | None
    controlled: float
    controlled_interval: Bounds | None


def outcomes_panel(key: str, title: str, rows: Sequence[Outcomes]) -> str:
    """A bar of wins, ties and losses for each row, and above it the win rate with its interval."""
    with panel(title, height=0.85 + 0.62 * len(rows)) as (figure, axes):
        longest = max(len(short(row.label)) for row in rows)
        room = 0.42 / figure.get_figheight()
        figure.subplots_adjust(left=0.05 + 0.0185 * longest, right=0.96, top=1 - room, bottom=room * 0.8)
        for position, row in enumerate(rows):
            _draw_outcomes(axes, position, row)
        axes.axvline(50, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(colour(row.index))
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.spines["left"].set_visible(False)
        return svg(figure, key, f"{title}: {'; '.join(map(_describe_outcomes, rows))}.")


def categories_panel(key: str, title: str, models: Sequence[Categories]) -> str:
    """A radar of average grades, from 0 in the middle to 10; a category that is missing breaks the line."""
    names = list(dict.fromkeys(category for model in models for category in model.grades))
    angles = [2 * math.pi * place / len(names) for place in range(len(names))]
    with panel(title, height=3.6 + 0.2 * len(models), polar=True) as (figure, axes):
        below = (0.45 + 0.2 * len(models)) / figure.get_figheight()
        figure.subplots_adjust(left=0.2, right=0.8, top=0.84, bottom=below)
        for model in models:
            grades = [model.grades.get(name, math.nan) for name in names]
            axes.plot(
                [*angles, angles[0]],
                [*grades, grades[0]],
                color=colour(model.index),
                linewidth=1.6,
                marker=marker(model.index),
                markersize=4.5,
                label=short(model.name),
            )
        axes.set_xticks(angles, names)
        axes.tick_params(axis="x", pad=7)
        axes.set_ylim(0, 10)
        axes.set_yticks([2, 4, 6, 8, 10], ["", "4", "", "8", ""])
        axes.grid(color=GRID)
        axes.spines["polar"].set_color(GRID)
        axes.set_title(title, pad=24)
        figure.legend(loc="lower center", frameon=False, labelcolor="linecolor")
        return svg(figure, key, f"{title}: {'; '.join(map(_describe_categories, models))}.")


def controlled_panel(key: str, title: str, models: Sequence[Controlled]) -> str:
    """Win rate against length-controlled win rate; below the diagonal, length has helped."""
    with panel(title) as (figure, axes):
        figure.subplots_adjust(left=0.14, right=0.95, top=0.87, bottom=0.17)
        for model in models:
            _draw_controlled(axes, model)
        low, high = _limits(models)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("win rate, %")
        axes.set_ylabel("at equal length, %")
        axes.grid()
        axes.spines["left"].set_visible(False)
        return svg(figure, key, f"{title}: {'; '.join(map(_describe_controlled, models))}.")


def _draw_outcomes(axes: Axes, position: int, row: Outcomes) -> None:
    total = row.wins + row.ties + row.losses
    start = 0.0
    looks = ((row.wins, colour(row.index), 0.85), (row.ties, MUTED, 0.45), (row.losses, GRID, 1.0))
    for count, fill, alpha in looks:
        share = 100 * count / total
        axes.barh([position], [share], left=start, height=0.42, color=fill, alpha=alpha)
        # A narrower part has no room for its number.
        if share >= 8:
            ink = PAPER if fill == colour(row.index) else INK
            place = (start + share / 2, position)
            axes.annotate(format_number(count, 0), place, ha="center", va="center", color=ink, fontsize=8)
        start += share
    if row.win_rate is None:
        return
    if row.interval is not None:
        axes.plot(row.interval, [position - 0.3] * 2, color=INK, linewidth=1.5)
    axes.plot([row.win_rate], [position - 0.3], color=INK, marker="o", markersize=4)
    side = "left" if row.win_rate < 20 else "right" if row.win_rate > 80 else "center"
    text = format_number(row.win_rate, 1, interval=row.interval)
    axes.annotate(
        text,
        (row.win_rate, position - 0.3),
        (0, 4),
        textcoords="offset points",
        ha=side,
        color=INK,
        fontsize=8.5,
    )


def _draw_controlled(axes: Axes, model: Controlled) -> None:
    x, y, own = model.win_rate, model.controlled, colour(model.index)
    if model.interval is not None:
        axes.plot(model.interval, (y, y), color=own, linewidth=1, alpha=0.5)
    if model.controlled_interval is not None:
        axes.plot((x, x), model.controlled_interval, color=own, linewidth=1, alpha=0.5)
    axes.plot([x], [y], marker=marker(model.index), markersize=6.5, color=own)
    axes.annotate(short(model.name), (x, y), (5, 5), textcoords="offset points", color=own)


def _limits(models: Sequence[Controlled]) -> Bounds:
    """One range for both axes, so that the diagonal is one, with room for labels."""
    values = [
        value
        for model in models
        for value in (
            model.win_rate,
            model.controlled,
            *(model.interval or ()),
            *(model.controlled_interval or ()),
        )
    ]
    margin = max(3.0, 0.15 * (max(values) - min(values)))
    return max(0.0, min(values) - margin), min(100.0, max(values) + margin)


def _describe_outcomes(row: Outcomes) -> str:
    wins, ties, losses = (format_number(count, 0) for count in (row.wins, row.ties, row.losses))
    rate = (
        "" if row.win_rate is None else f", win rate {format_number(row.win_rate, 1, interval=row.interval)}"
    )
    return f"{row.label} {wins} wins, {ties} ties, {losses} losses{rate}"


def _describe_categories(model: Categories) -> str:
    grades = ", ".join(f"{name} {format_number(grade, 2)}" for name, grade in model.grades.items())
    return f"{model.name} {grades}"


def _describe_controlled(model: Controlled) -> str:
    plain = format_number(model.win_rate, 1, interval=model.interval)
    controlled = format_number(model.controlled, 1, interval=model.controlled_interval)
    return f"{model.name} {plain}, at equal length {controlled}"
