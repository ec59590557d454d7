"""The tables and the figure of `docs/experiments.md` from the finished points of `experiment_mappo.py`."""

import json
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from experiment_mappo import LEARNING_RATE, METHODS, PRIORS, SEEDS, STEPS, SWEEP, Point, points
from matplotlib.figure import Figure
from sections import EXPERIMENTS_PAGE, experiment_markers, write_section

from preftune.demo.data import demo_rows
from preftune.measuring.statistics import Interval, mean_interval

RESULTS = Path("docs/experiments/mappo.json")
FIGURE = Path("docs/experiments/mappo.svg")


def evaluations(point: Point) -> list[dict[str, float]]:
    """Held-out figures of a run, in order of steps."""
    lines = (point.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "eval_loss" in line]


def start() -> dict[str, float]:
    """Held-out figures of the untrained model, which the first point measured."""
    return evaluations(points()[0])[0]


def trajectory(point: Point) -> list[dict[str, float]]:
    """Changes since the untrained model at every evaluation, and the accuracy there.

    The margin is the change of log p of chosen minus that of rejected: for methods with a reference the
    implicit reward's margin over beta, and the same measure for those without.
    """
    before = start()
    changes = []
    for line in evaluations(point):
        chosen = line["eval_logps/chosen"] - before["eval_logps/chosen"]
        rejected = line["eval_logps/rejected"] - before["eval_logps/rejected"]
        accuracy = line["eval_rewards/accuracies"]
        changes.append(
            {
                "step": line["step"],
                "chosen": chosen,
                "rejected": rejected,
                "margin": chosen - rejected,
                "accuracy": accuracy,
            }
        )
    return [change for change in changes if change["step"] > 0]


def steps_view() -> dict[str, Any]:
    """At equal learning rate and steps: what the prior changes, paired by seed."""
    table = {}
    for method in METHODS:
        ends = {
            prior: [trajectory(Point(method, prior, seed, 1.0))[-1] for seed in SEEDS] for prior in PRIORS
        }
        plain, prior = ends["none"], ends["reward_gap"]
        table[method] = {
            quantity: {
                "plain": fmean(end[quantity] for end in plain),
                "prior": fmean(end[quantity] for end in prior),
                "difference": mean_interval(
                    [b[quantity] - a[quantity] for a, b in zip(plain, prior, strict=True)]
                ),
            }
            for quantity in ("chosen", "rejected", "margin", "accuracy")
        }
    return table


def margin_view() -> dict[str, Any]:
    """At equal held-out margin: a quantity under the prior minus that on plain's curve, by seed."""
    return {
        method: {quantity: _at_equal_margin(method, quantity) for quantity in ("chosen", "accuracy")}
        for method in METHODS
    }


def _at_equal_margin(method: str, quantity: str) -> dict[str, Any]:
    by_seed, compared = [], 0
    for seed in SEEDS:
        margins, values = zip(*_curve(method, "none", seed, quantity), strict=True)
        points_inside = [
            (margin, value)
            for margin, value in _curve(method, "reward_gap", seed, quantity)
            if max(margins[0], 1e-9) <= margin <= margins[-1]
        ]
        compared += len(points_inside)
        if points_inside:
            by_seed.append(fmean(v - float(np.interp(m, margins, values)) for m, v in points_inside))
    difference = mean_interval(by_seed) if len(by_seed) == len(SEEDS) else None
    return {"difference": difference, "points": compared}


def _curve(method: str, prior: str, seed: int, quantity: str) -> list[tuple[float, float]]:
    """(margin, quantity) of all learning rates and steps, by margin.

    The untrained model is part of it for changes, which start at 0; it has no accuracy of its own, since
    methods with a reference start from a tie on every pair.
    """
    ends = [end for f in (1.0, *SWEEP[prior]) for end in trajectory(Point(method, prior, seed, f))]
    untrained = [] if quantity == "accuracy" else [(0.0, 0.0)]
    return sorted([*untrained, *((end["margin"], end[quantity]) for end in ends)])


def samples_view() -> dict[str, Any]:
    """Mean reward of samples at equal learning rate, by seed; before training, over prompts."""
    table: dict[str, Any] = {"before": mean_interval([fmean(row["scores"]) for row in demo_rows("held_out")])}
    for method in METHODS:
        plain, prior = (
            [_sample_reward(Point(method, prior, seed, 1.0)) for seed in SEEDS] for prior in PRIORS
        )
        difference = mean_interval([b - a for a, b in zip(plain, prior, strict=True)])
        table[method] = {"plain": plain, "prior": prior, "difference": difference}
    return table


def _sample_reward(point: Point) -> float:
    done = json.loads((point.folder / "done.json").read_text(encoding="utf-8"))
    return fmean(fmean(rewards) for rewards in done["sample_rewards"])


def markdown(results: dict[str, Any]) -> str:
    """The three tables."""

    def show(value: Interval | None, digits: int) -> str:
        if value is None:
            return "not comparable"
        return f"{value[0]:+.{digits}f} ({value[1]:+.{digits}f} to {value[2]:+.{digits}f})"

    swept = ", ".join(f"{prior} at {LEARNING_RATE * f:g}" for prior, fs in SWEEP.items() for f in fs)
    lines = [
        f"Written {results['date']}: {len(points())} runs of {STEPS} steps, seeds {SEEDS}, learning rate "
        f"{LEARNING_RATE:g}; in the sweep also prior {swept}. Log p is in nats per held-out response.",
        "",
        "**At equal learning rate and steps** (difference: prior minus plain, paired by seed, 95% interval)",
        "",
        "| method | log p chosen, plain | prior | difference | accuracy, plain | prior | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, row in results["steps"].items():
        c, a = row["chosen"], row["accuracy"]
        lines.append(
            f"| {method} | {c['plain']:+.1f} | {c['prior']:+.1f} | {show(c['difference'], 1)} "
            f"| {a['plain']:.3f} | {a['prior']:.3f} | {show(a['difference'], 3)} |"
        )
    lines += [
        "",
        "**At equal held-out margin** (prior minus plain at the same margin, interpolated over plain's "
        "learning rates and steps, 95% interval over seeds; in brackets the points compared)",
        "",
        "| method | log p chosen, difference | accuracy, difference |",
        "|---|---|---|",
    ]
    for method, row in results["margin"].items():
        chosen, accuracy = row["chosen"], row["accuracy"]
        lines.append(
            f"| {method} | {show(chosen['difference'], 1)} [{chosen['points']}] "
            f"| {show(accuracy['difference'], 3)} [{accuracy['points']}] |"
        )
    before = results["samples"]["before"]
    lines += [
        "",
        "**Reward of samples** on held-out prompts at equal learning rate, by seed (difference: 95% interval "
        f"over seeds; before training {before[0]:.3f}, over prompts {before[1]:.3f} to {before[2]:.3f})",
        "",
        "| method | plain | with prior | difference |",
        "|---|---|---|---|",
    ]
    for method in METHODS:
        row = results["samples"][method]
        plain, prior = (", ".join(f"{reward:.3f}" for reward in row[key]) for key in ("plain", "prior"))
        lines.append(f"| {method} | {plain} | {prior} | {show(row['difference'], 3)} |")
    return "\n".join(lines)


COLOURS = {"none": "#0072b2", "reward_gap": "#d55e00"}
LABELS = {"none": "plain", "reward_gap": "with prior"}


def draw() -> None:
    """Change of log p of chosen, a column per method: above against steps, below against the margin."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    rows = {"step (equal rate)": _by_step, "held-out margin (nats)": _by_margin}
    panels = figure.subplots(len(rows), len(METHODS))
    for line_of, label, row in zip(rows.values(), rows, panels, strict=True):
        for axes, method in zip(row, METHODS, strict=True):
            for prior, seed in product(PRIORS, SEEDS):
                across, chosen = zip(*line_of(method, prior, seed), strict=True)
                name = LABELS[prior] if seed == SEEDS[0] else None
                axes.plot(across, chosen, "o-", color=COLOURS[prior], markersize=3, linewidth=0.8, label=name)
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("change of log p of chosen")
    for axes, method in zip(panels[0], METHODS, strict=True):
        axes.set_title(method)
    panels[0][0].legend(frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})


def _by_step(method: str, prior: str, seed: int) -> list[tuple[float, float]]:
    ends = trajectory(Point(method, prior, seed, 1.0))
    return [(0.0, 0.0), *((end["step"], end["chosen"]) for end in ends)]


def _by_margin(method: str, prior: str, seed: int) -> list[tuple[float, float]]:
    return _curve(method, prior, seed, "chosen")


def main() -> None:
    """Write the JSON, the figure and the tables."""
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "steps": steps_view(),
        "margin": margin_view(),
        "samples": samples_view(),
        "trajectories": {point.folder.name: trajectory(point) for point in points()},
    }
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "preftune"
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw()
    write_section(EXPERIMENTS_PAGE, experiment_markers("mappo"), markdown(results))


if __name__ == "__main__":
    main()
