"""How far a stage is, read from what it has written so far: whatever process writes it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Progress = Callable[[], float | None]
"""The share of the work that is done, from 0 to 1; None if it cannot be told."""

LAST_BYTES = 4096


def of_rows(output: Path, total: int) -> Progress:
    """Finished rows in the shards of an output, of so many."""
    return lambda: (
        sum(path.read_bytes().count(b"\n") for path in output.parent.glob(f"{output.name}.*part")) / total
    )


def of_training(run: Path, training: Mapping[str, Any]) -> Progress:
    """Steps or epochs of a training run."""
    steps, epochs = training.get("max_steps", -1), training.get("num_train_epochs", 1)

    def share() -> float | None:
        line = _last_line(run / "metrics.jsonl")
        return float(line.get("step", 0) / steps if steps > 0 else line.get("epoch", 0) / epochs)

    return share


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON Lines file; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            found: dict[str, Any] = json.loads(file.read().split(b"\n")[-2])
    except (FileNotFoundError, IndexError, ValueError):
        return {}
    return found
