"""Files that a reader finds old or new, never half written."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write text aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file; either is whole.
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError:
        # What was written of it would keep a full disk full.
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON, whole."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file that preftune has written."""
    # Not splitlines: responses may hold other line separators than the file's.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines; a value that JSON lacks, such as a date, becomes text."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
