"""How far a stage is, read from what it has written so far: whatever process writes it."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from preftune.online.evaluation import PROMPTS_PER_SHARD, SHARDS_FOLDER

Progress = Callable[[], float | None]
"""The share of the work that is done, from 0 to 1; None where it cannot be told."""

SCORE = re.compile(rb"\[\d")
"""Where an answer's score begins in a shard of `preftune score`."""
LAST_BYTES = 4096


def of_lines(folder: Path, pattern: str, total: int) -> Progress:
    """Lines of the files that match, of so many."""
    return lambda: sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern)) / total


def of_scores(folder: Path, pattern: str, total: int) -> Progress:
    """Scored responses in the shards that match, of so many."""
    return lambda: sum(len(SCORE.findall(path.read_bytes())) for path in folder.glob(pattern)) / total


def of_shards(folder: Path, prompts: int) -> Progress:
    """Finished shards of held-out answers."""
    total = -(-prompts // PROMPTS_PER_SHARD)
    return lambda: len(list((folder / SHARDS_FOLDER).glob("*.json"))) / total


def of_training(run: Path, training: Mapping[str, Any]) -> Progress:
    """Steps or epochs of a training run."""
    steps, epochs = training.get("max_steps", -1), training.get("num_train_epochs", 1)

    def share() -> float | None:
        line = _last_line(run / "metrics.jsonl")
        return float(line.get("step", 0) / steps if steps > 0 else line.get("epoch", 0) / epochs)

    return share


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON Lines file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            found: dict[str, Any] = json.loads(file.read().split(b"\n")[-2])
    except (FileNotFoundError, IndexError, ValueError):
        return {}
    return found
