"""The figure of a setting."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Json = dict[str, Any]
WIDTH, HEIGHT = 11.0, 4.2


def draw(path: Path, found: Json) -> bool:
    """Gain against learning rate and steps, and differences on test; False with nothing to draw."""
    search, comparisons = found["search"], found["comparisons"].get("as it is", {})
    if not search and not comparisons:
        return False
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "preftune"
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    by_rate, by_steps, tested = figure.subplots(1, 3)
    colours = mpl.colormaps["tab20"]
    for number, (arm, row) in enumerate(search.items()):
        style = {"color": colours(number % 20), "linewidth": 2.5 if number == 0 else 1, "marker": "."}
        rates = sorted({point["rate"] for point in row["gains"]})
        best = [max(point["gain"] for point in row["gains"] if point["rate"] == rate) for rate in rates]
        by_rate.plot(rates, best, label=arm, **style)
        kept = sorted(
            (point["steps"], point["gain"]) for point in row["gains"] if point["rate"] == row["rate"]
        )
        by_steps.plot(*zip(*kept, strict=True), **style)
    by_rate.set_xscale("log")
    by_rate.set_xlabel("learning rate, at its best steps")
    by_rate.set_ylabel("gain in judge reward, validation")
    by_steps.set_xlabel("steps, at the kept learning rate")
    for axes in (by_rate, by_steps):
        axes.axhline(0, color="grey", linewidth=0.5)
    _draw_differences(tested, comparisons)
    for axes in (by_rate, by_steps, tested):
        axes.spines[["top", "right"]].set_visible(False)
    if search:
        by_rate.legend(fontsize=6, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    return True


def _judged(row: Json) -> Json | None:
    """The first of an arm's differences."""
    return next(iter(row.get("differences", {}).values()), None)


def _draw_differences(axes: Any, comparisons: Json) -> None:
    names = [arm for arm, row in comparisons.get("kept", {}).items() if _judged(row)]
    for offset, marker, point in ((0.12, "o", "kept"), (-0.12, "x", "long")):
        rows = comparisons.get(point, {})
        for place, arm in enumerate(reversed(names)):
            found = _judged(rows.get(arm, {}))
            if found:
                reach = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
                label = {"kept": "tuned", "long": "four times as long"}[point] if place == 0 else None
                axes.errorbar(
                    found["mean"],
                    place + offset,
                    xerr=reach,
                    fmt=marker,
                    color="black",
                    label=label,
                    markersize=4,
                )
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=7)
    axes.set_xlabel("difference in what it is judged by, test")
    if names:
        axes.legend(fontsize=7, frameon=False)
