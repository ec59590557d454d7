"""Reading what a run left in its folder."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import InputError

Series = list[tuple[int, float]]
"""(step, value) in the order of the run."""


@dataclass(frozen=True)
class RunRecord:
    """A run folder in memory.

    Attributes:
        name: what the page calls the run.
        index: its place among the runs, which decides its colour.
        config: the resolved configuration, and as the file has it in `config_text`.
        summary, environment: the files of these names.
        metrics: the lines of metrics.jsonl.
        date: the day (UTC) on which the summary was written.
    """

    name: str
    index: int
    config: dict[str, Any]
    config_text: str
    summary: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    date: str

    def series(self, metric: str) -> Series:
        """A metric over the steps, NaN where it was not finite; empty if it was not logged."""
        logged = [(line["step"], line[metric]) for line in self.metrics if metric in line]
        return [(step, math.nan if value is None else float(value)) for step, value in logged]

    @property
    def training_pairs(self) -> int | None:
        """Pairs the run was trained on."""
        found: int | None = (self.summary.get("train") or {}).get("pairs")
        return found

    @property
    def prior(self) -> dict[str, Any] | None:
        """The report on the prior of the training pairs, when the objective had one."""
        found: dict[str, Any] | None = (self.summary.get("train") or {}).get("prior")
        return found


def read_run(name: str, index: int, folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        InputError: a file is missing or cannot be read as what it should be.
    """
    config_text = _text(name, folder, "config.yaml")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise InputError(f"run {name!r}: {folder / 'config.yaml'} is not YAML: {error}") from None
    lines = _text(name, folder, "metrics.jsonl").splitlines()
    return RunRecord(
        name=name,
        index=index,
        config=_mapping(config, name, folder / "config.yaml"),
        config_text=config_text,
        summary=_json(_text(name, folder, "summary.json"), name, folder / "summary.json"),
        environment=_json(_text(name, folder, "environment.json"), name, folder / "environment.json"),
        metrics=[_json(line, name, folder / "metrics.jsonl") for line in lines if line.strip()],
        date=datetime.fromtimestamp((folder / "summary.json").stat().st_mtime, UTC).date().isoformat(),
    )


def _text(name: str, folder: Path, file: str) -> str:
    try:
        return (folder / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"run {name!r}: {folder} has no {file}; give the output folder of a finished run"
        ) from None


def _json(text: str, name: str, path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text), name, path)
    except json.JSONDecodeError as error:
        raise InputError(f"run {name!r}: {path} is not JSON: {error}") from None


def _mapping(content: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"run {name!r}: {path} has no keys: give the output folder of a finished run")
    return content
