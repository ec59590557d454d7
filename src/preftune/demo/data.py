"""The demo's packaged data: prompts, eight responses to each, and how well each keeps its instructions."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA_FILE = Path(__file__).parent / "responses.jsonl.gz"
SPLITS = ("train", "held_out")

Row = dict[str, Any]


def demo_rows(split: str, path: Path = DATA_FILE) -> list[Row]:
    """Rows of a split: prompt, responses, scores in [0, 1], instructions."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [row for line in lines if (row := json.loads(line))["split"] == split]


def write_splits(folder: Path) -> dict[str, Path]:
    """Write `train.jsonl` and `held_out.jsonl`, and return their paths by split."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for split, path in paths.items():
        write_jsonl(path, demo_rows(split))
    return paths


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
