"""The demo's packaged data: prompts, eight responses to each, and how well each keeps its instructions."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA_FILE = Path(__file__).parent / "responses.jsonl.gz"
SPLITS = ("train", "held_out")

DemoRow = dict[str, Any]


def demo_rows(split: str, path: Path = DATA_FILE) -> list[DemoRow]:
    """Rows of a split: prompt, responses, scores in [0, 1], instructions."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [row for line in lines if (row := json.loads(line))["split"] == split]


def write_splits(folder: Path, train: Sequence[DemoRow], held_out: Sequence[DemoRow]) -> dict[str, Path]:
    """Write `train.jsonl` and `held_out.jsonl`, and return their paths by split."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for path, rows in zip(paths.values(), (train, held_out), strict=True):
        write_jsonl(path, rows)
    return paths


def best_and_worst(row: DemoRow) -> DemoRow:
    """The row with its first best and first worst response alone, which is all that its pair is made of."""
    scores = row["scores"]
    kept = sorted({scores.index(max(scores)), scores.index(min(scores))})
    return row | {key: [row[key][index] for index in kept] for key in ("responses", "scores")}


def write_jsonl(path: Path, rows: Sequence[DemoRow]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
