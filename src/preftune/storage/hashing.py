"""Hashes of files and of JSON: what a result was made from, in short."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash of every file, and of every file in a folder, by its path in `folder`."""
    files: list[Path] = []
    for name in names:
        path = folder / name
        files += sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files}


def hash_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(content: Any) -> str:
    """Hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
