"""What the finished cells of a setting come to, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

import numpy as np

from experiments.arms import Arm
from experiments.cells import (
    SEARCH_SEED,
    SETTINGS,
    Cell,
    Grid,
    Phase,
    Setting,
    cells_of,
    grid_of,
    kept_point,
    result_of,
)
from experiments.comparing import Effect, Table, effect, holm, share_left, verdict, width
from experiments.sizes import Sizes
from preftune.measuring.held_out import win_rate

Json = dict[str, Any]
BySeed = dict[int, Json]
FEWEST_SEEDS = 2
SMALLEST_OF_PROGRAM = 0.03
SMALLEST_IN_DEVIATIONS = 0.1
MOST_ACCURACY_LOST = 0.02
SCALARS = ("accuracy", "chosen_logp_change", "rejected_logp_change")


def gather(setting: Setting, tables: Sequence[str], parts: Sequence[str], sizes: Sizes) -> Json:
    """Everything of a setting whose cells are there, and the names of those that are not."""
    cells = [cell for cell in cells_of(parts, tables, sizes) if cell.setting == setting.name]
    missing = [cell.name for cell in cells if result_of(cell, sizes) is None]
    found: Json = {"setting": setting.name, "sizes": asdict(sizes), "missing": missing, "cells": len(cells)}
    judge = result_of(Cell("b", "judge"), sizes) if setting.data == "b" else None
    if judge is not None:
        found["judge"] = judge["accuracy"]
    variations = ["", *dict.fromkeys(cell.variation for cell in cells if cell.variation)]
    found["comparisons"] = {
        variation or "as it is": compared(setting, variation, sizes) for variation in variations
    }
    found["search"] = {arm: search for arm in setting.arms if (search := searched(setting, arm, sizes))}
    return found


# --- search ---


def searched(setting: Setting, arm: str, sizes: Sizes) -> Json | None:
    """An arm's grid as gains over the start, its kept point, and the width of its range."""
    if setting.root(arm) != (setting.name, arm):
        return None
    grid, start = grid_of(setting.name, arm, sizes), start_worth(setting, sizes)
    if grid is None or start is None:
        return None
    gains: Grid = {point: worth - start for point, worth in grid.items()}
    rate, steps = kept_point(grid)
    by_rate = {each: max(gains[each, count] for count in sizes.steps) for each in sizes.rates}
    found = width(by_rate)
    return {
        "start": start,
        "gains": [{"rate": one, "steps": count, "gain": gain} for (one, count), gain in gains.items()],
        "rate": rate,
        "steps": steps,
        "at_edge": rate in (min(sizes.rates), max(sizes.rates)) or steps == max(sizes.steps),
        "width": None if found is None else {**asdict(found), "factor": found.factor},
    }


def start_worth(setting: Setting, sizes: Sizes) -> float | None:
    """The start on validation prompts, over the seeds of search; of accuracy, that of chance."""
    if setting.data == "c":
        return 0.5
    seeds = range(SEARCH_SEED, SEARCH_SEED + sizes.search_seeds)
    results = [result_of(Cell(setting.name, "start", seed=seed), sizes) for seed in seeds]
    if any(result is None for result in results):
        return None
    return float(np.mean([result["worth"] for result in results if result is not None]))


# --- test ---


def results_of(setting: Setting, arm: str, variation: str, sizes: Sizes) -> BySeed:
    """An arm's results that are there."""
    phase: Phase = "rounds" if setting.name.startswith("d-") else "test"
    return _finished(
        sizes, [Cell(setting.name, phase, arm, seed, variation=variation) for seed in range(sizes.seeds)]
    )


def starts_of(setting: Setting, sizes: Sizes) -> BySeed:
    """The start's samples that are there."""
    name = setting.name.removeprefix("d-")
    return _finished(sizes, [Cell(name, "start", seed=seed) for seed in range(sizes.seeds)])


def _finished(sizes: Sizes, cells: Sequence[Cell]) -> BySeed:
    return {cell.seed: result for cell in cells if (result := result_of(cell, sizes)) is not None}


def table_of(results: Sequence[Json], point: str, figure: str) -> Table:
    """A figure for each seed and prompt."""
    return np.array([result["points"][point]["by_prompt"][figure] for result in results], dtype=np.float64)


def compared(setting: Setting, variation: str, sizes: Sizes) -> dict[str, Json]:
    """Every arm that is there, and its difference to the one it is compared with, by point."""
    starts = starts_of(setting, sizes)
    own = {arm: results_of(setting, arm, variation, sizes) for arm in setting.arms}
    # Without the start there is no gain; a single seed says nothing of seeds.
    own = {arm: {seed: by[seed] for seed in by if seed in starts} for arm, by in own.items()}
    there = {arm: by for arm, by in own.items() if len(by) >= FEWEST_SEEDS}
    if not there:
        return {}
    smallest = smallest_of(setting, list(starts.values()))
    found: dict[str, Json] = {}
    for point in ("kept", "long"):
        arms = {
            arm: by for arm, by in there.items() if all(point in result["points"] for result in by.values())
        }
        if arms:
            found[point] = {
                arm: figures_of(list(by.values()), [starts[seed] for seed in by], point)
                for arm, by in arms.items()
            }
            add_differences(found[point], arms, setting.arms, point, smallest)
    if {"kept", "long"} <= found.keys():
        for arm, row in found["long"].items():
            gains = [found[each][arm]["gain"]["mean"] for each in ("kept", "long")]
            row["share_left"] = share_left(*gains)
    return found


def smallest_of(setting: Setting, starts: Sequence[Json]) -> float:
    """The difference in reward that counts, by the protocol."""
    if setting.data == "a":
        return SMALLEST_OF_PROGRAM
    if setting.data == "c":
        return 0.0
    rewards = [value for start in starts for row in start["points"]["start"]["rewards"] for value in row]
    return SMALLEST_IN_DEVIATIONS * float(stdev(rewards))


def figures_of(results: Sequence[Json], starts: Sequence[Json], point: str) -> Json:
    """Means with their intervals, and the figures that a seed has one of."""
    figures: Json = {
        name: asdict(effect(table_of(results, point, name)))
        for name in results[0]["points"][point]["by_prompt"]
    }
    gains = table_of(results, point, "reward") - table_of(starts, "start", "reward")
    figures["gain"] = asdict(effect(gains))
    wins = [
        [win_rate(*rows) for rows in zip(*(each["rewards"] for each in both), strict=True)]
        for both in zip(
            (result["points"][point] for result in results),
            (start["points"]["start"] for start in starts),
            strict=True,
        )
    ]
    figures["win_rate"] = asdict(effect(np.array(wins)))
    for n in ("1", "2"):
        figures[f"distinct_{n}"] = [result["points"][point]["distinct"][n] for result in results]
    for name in SCALARS:
        if name in results[0]["points"][point]:
            figures[name] = [result["points"][point][name] for result in results]
    explained = [result.get("value_explained_variance") for result in results]
    return figures | ({} if None in explained else {"value_explained_variance": explained})


def add_differences(
    rows: dict[str, Json],
    results: Mapping[str, BySeed],
    arms: Mapping[str, Arm],
    point: str,
    smallest: float,
) -> None:
    """To every arm whose counterpart is there, add paired differences, Holm's p-values and verdicts."""
    found: dict[tuple[str, str], Effect] = {}
    for arm in rows:
        base = arms[arm].compared_with
        if base == arm or base not in rows:
            continue
        shared = [seed for seed in results[arm] if seed in results[base]]
        for figure in arms[arm].judged_by if len(shared) >= FEWEST_SEEDS else ():
            own, other = (
                table_of([results[name][seed] for seed in shared], point, figure) for name in (arm, base)
            )
            found[arm, figure] = effect(own - other)
    adjusted = holm([difference.p for difference in found.values()])
    for ((arm, figure), difference), p in zip(found.items(), adjusted, strict=True):
        base = arms[arm].compared_with
        lost = _accuracy_lost(rows[base], rows[arm])
        rows[arm].setdefault("differences", {})[figure] = {
            **asdict(difference),
            "to": base,
            "seeds": len(difference.by_seed),
            "p_holm": p,
            "smallest": smallest if figure == "reward" else 0.0,
            "verdict": _said(difference, p, figure, smallest, lost),
            "accuracy_lost": lost,
        }


def _said(difference: Effect, p: float, figure: str, smallest: float, lost: float | None) -> str:
    """The verdict; of an auxiliary reward, whose figure is to fall, at no more than so much accuracy."""
    if figure == "reward":
        return verdict(difference, p, smallest)
    said = {"helps": "hurts", "hurts": "helps"}.get(plain := verdict(difference, p, 0.0), plain)
    if said == "helps" and (lost is None or lost > MOST_ACCURACY_LOST):
        return f"moves it, at {100 * lost:.1f} points of accuracy" if lost is not None else "moves it"
    return said


def _accuracy_lost(base: Json, arm: Json) -> float | None:
    if "accuracy" not in base or "accuracy" not in arm:
        return None
    return fmean(base["accuracy"]) - fmean(arm["accuracy"])


def settings_of(names: Sequence[str]) -> list[Setting]:
    """By name."""
    return [SETTINGS[name] for name in names]
