"""Files of verdicts, answers and instructions, in the shapes that other tools write."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.storage.files import as_lines, write_whole

Record = Mapping[str, Any]


def read_objects(path: Path) -> list[Record]:
    """Objects of a JSON list, of a single JSON object, or of JSON Lines.

    Raises:
        InputError: the file is missing, empty, or holds something else.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError:
        # Not splitlines: texts may hold other line separators.
        lines = enumerate(text.split("\n"), 1)
        content = [_line(path, number, line) for number, line in lines if line.strip()]
    rows = content if isinstance(content, list) else [content]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{path} must be a list of JSON objects or JSON Lines, and must not be empty: correct the file"
        )
    return rows


def read_text(path: Path, flag: str = "") -> str:
    """Text of a file.

    Args:
        path: of a UTF-8 text.
        flag: of the command line that names the file, for the message.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        name = f"{flag} {path}".strip()
        raise InputError(f"{name} cannot be read ({error}): give the path of a UTF-8 text file") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: it cannot be read.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines, whole."""
    write_whole(path, as_lines(rows))


def require(path: Path, row: Record, keys: tuple[str, ...], shape: str) -> None:
    """Refuse a row that lacks keys of its shape.

    Raises:
        InputError: naming them.
    """
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(
            f"{path}: no {', '.join(missing)} in a row with {', '.join(map(str, row)) or 'no keys'}: "
            f"{shape} has {', '.join(keys)}"
        )


def _line(path: Path, number: int, line: str) -> Record:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path} line {number} is not JSON ({error}): give JSON or JSON Lines") from error
    if not isinstance(row, dict):
        raise InputError(f"{path} line {number} must be a JSON object: correct it")
    return row
