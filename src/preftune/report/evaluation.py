"""The section on what judges, people and tests said: from `results.json` to figures and a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.measuring.formatting import format_number

Bounds = tuple[float, float]

LEVEL_IN_ERRORS = 1.96
"""Half of a 95% interval, in standard errors."""


@dataclass(frozen=True)
class Evaluated:
    """One model under one protocol.

    Attributes:
        name: of the model, as the page shows it.
        index: its place among runs and models, which decides its colour.
        results: as `preftune evaluate` wrote them.
    """

    name: str
    index: int
    results: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        """A figure; None if there is none that is a number."""
        value: Any = self.results.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and math.isfinite(value) else None

    def interval(self, key: str = "interval", around: str = "") -> Bounds | None:
        """The ends of an interval.

        Args:
            key: of the ends.
            around: a figure whose standard error stands in for ends that are not there; empty for none.
        """
        ends = self.results.get(key)
        if (
            isinstance(ends, Sequence)
            and len(ends) == 2
            and all(isinstance(end, int | float) for end in ends)
        ):
            return float(ends[0]), float(ends[1])
        value, error = self.number(around), self.number(around.replace("win_rate", "standard_error"))
        if value is None or error is None:
            return None
        half = LEVEL_IN_ERRORS * error
        return max(0.0, value - half), min(100.0, value + half)

    @property
    def protocol(self) -> str:
        """By which it was measured, and of what category."""
        return ", ".join(str(self.results[key]) for key in ("protocol", "category") if self.results.get(key))

    @property
    def baseline(self) -> str:
        """Whom it was compared with; empty for nobody."""
        found = self.results.get("baseline")
        return "" if found is None else _short_path(str(found))


def read_evaluations(paths: Sequence[Path], runs: Sequence[str] = ()) -> list[Evaluated]:
    """Read files of results, in order.

    Args:
        paths: `results.json` files.
        runs: names of the page's runs; a model of the same name has the run's colour.

    Raises:
        InputError: a file cannot be read, or holds no results.
    """
    found = [results for path in paths for results in _read(Path(path))]
    names = _distinct_names([str(results["model"]) for results in found])
    indices = {name: index for index, name in enumerate(dict.fromkeys([*runs, *names]))}
    return [Evaluated(name, indices[name], results) for name, results in zip(names, found, strict=True)]


def evaluation_table(evaluations: Sequence[Evaluated]) -> tuple[list[str], list[list[str]]]:
    """Heads of the columns that anything has a figure for, and a row of text for each evaluation."""
    heads = {
        "Model": [one.name for one in evaluations],
        "Protocol": [one.protocol for one in evaluations],
        "Against": [one.baseline for one in evaluations],
        "n": [_written(one.number("n"), 0) for one in evaluations],
        "Win rate, %": [_written(one.number("win_rate"), 1, one.interval()) for one in evaluations],
        "At equal length, %": [
            _written(one.number("length_controlled_win_rate"), 1, controlled_interval(one))
            for one in evaluations
        ],
        "Average": [_written(one.number("average"), 2, one.interval()) for one in evaluations],
        "Mean reward": [
            _written(one.number("mean_reward"), 2, one.interval("interval")) for one in evaluations
        ],
        "Difference": [_difference(one) for one in evaluations],
    }
    filled = {head: cells for head, cells in heads.items() if any(cells)}
    return list(filled), [list(row) for row in zip(*filled.values(), strict=True)]


def controlled_interval(one: Evaluated) -> Bounds | None:
    """Of the length-controlled win rate; from its standard error where nothing better is there."""
    return one.interval("length_controlled_interval", around="length_controlled_win_rate")


def _difference(one: Evaluated) -> str:
    """To the model that the results state it to: of win rates, averages or mean rewards."""
    found = one.results.get("difference")
    if isinstance(found, Mapping):
        inner = Evaluated(one.name, one.index, found)
        figures = map(inner.number, ("win_rate", "average", "mean_reward"))
        value = next((figure for figure in figures if figure is not None), None)
        return _written(value, 2, inner.interval(), signed=True)
    return _written(one.number("difference"), 2, one.interval("difference_interval"), signed=True)


def _written(
    value: float | None, digits: int, interval: Bounds | None = None, *, signed: bool = False
) -> str:
    return "" if value is None else format_number(value, digits, signed=signed, interval=interval)


def _read(path: Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; give a results.json") from None
    rows = content if isinstance(content, list) else [content]
    if not rows or not all(isinstance(row, dict) and "protocol" in row and "model" in row for row in rows):
        raise InputError(f"{path} holds no results: give a results.json of `preftune evaluate`")
    return rows


def _distinct_names(models: Sequence[str]) -> list[str]:
    """Folders by their last part, unless two models would then have one name."""
    shortened = {model: _short_path(model) for model in models}
    clashes = len(set(shortened.values())) < len(shortened)
    return [model if clashes else shortened[model] for model in models]


def _short_path(model: str) -> str:
    return Path(model).name if model.startswith(("/", ".", "~")) else model
