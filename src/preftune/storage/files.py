"""Files that a reader finds old or new, never half written."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

MODEL_FOLDER, REPORT_FILE = "model", "report.html"
"""In the folder of a run, of rounds and of a sweep."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; what stands there at the end is renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may write the same file and have the same number; any one is whole.
    aside = path.with_name(f"{path.name}.{os.getpid()}.{token_hex(4)}.part")
    try:
        yield aside
        os.replace(aside, path)
    except Exception:
        # What was written of it would keep a full disk full.
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which is absent or empty; at the end it is renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.{token_hex(4)}.part")
    aside.mkdir()
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write text aside and rename it into place."""
    with replaced(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON, whole; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def finite(content: Any) -> Any:
    """The same content with None in place of NaN and infinities."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file that preftune has written."""
    # Not splitlines: responses may hold other line separators than the file's.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines; a value that JSON lacks, such as a date, becomes text."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
