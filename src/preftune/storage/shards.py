"""Rows that are finished before the file they belong to, each with a hash that tells whether it is whole."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.storage.files import write_json
from preftune.storage.hashing import hash_json

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def write_shard(file: Path, rows: Sequence[Row]) -> None:
    """Keep some rows; a value that JSON lacks, such as a date, is kept as text."""
    kept = json.loads(json.dumps(rows, default=str))
    write_json(file, {"content": hash_json(kept), "rows": kept})


def read_shard(file: Path) -> list[Row] | None:
    """The rows of a shard, if it is there and as it was written."""
    if not file.exists():
        return None
    try:
        shard = json.loads(file.read_text(encoding="utf-8"))
        rows: list[Row] = shard["rows"]
        if hash_json(rows) == shard["content"]:
            return rows
    except (ValueError, KeyError, TypeError):
        pass
    logger.warning("%s is damaged and is made again", file)
    return None
