"""Two folders, file by file: JSON by key, tensors by name, everything else byte by byte."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from differences import NOT_COMPARED, VOLATILE_KEYS, WANTED


@dataclass
class Found:
    """What a comparison has found.

    Attributes:
        files: how many were compared.
        differences: as `FILE: KEY: one is ..., the other ...`.
        wanted: reasons of those that are wanted, each time.
    """

    files: int = 0
    differences: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)


def compare_folders(run: str, one: Path, other: Path) -> Found:
    """Every file of two folders that is not volatile."""
    found = Found()
    files = {folder: set(_files(folder)) for folder in (one, other)}
    for name in sorted(files[one] | files[other]):
        found.files += 1
        if name not in files[one] or name not in files[other]:
            _add(found, run, name, "", f"only in the {'commit' if name in files[one] else 'working tree'}")
            continue
        for key, text in _differences(one / name, other / name):
            _add(found, run, name, key, text)
    return found


def _add(found: Found, run: str, file: str, key: str, text: str) -> None:
    for wanted in WANTED:
        if fnmatch(run, wanted.run) and fnmatch(file, wanted.file) and fnmatch(key, wanted.key):
            found.wanted.append(wanted.reason)
            return
    found.differences.append(f"{file}: {key + ': ' if key else ''}{text}")


def _files(folder: Path) -> Iterator[str]:
    # A link to a folder is not followed: what it names is compared where it lies.
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        linked = any((folder / part).is_symlink() for part in (path.relative_to(folder).parents))
        is_volatile = any(fnmatch(name, pattern) for pattern in NOT_COMPARED)
        if path.is_file() and not path.is_symlink() and not linked and not is_volatile:
            yield name


def _differences(one: Path, other: Path) -> Iterator[tuple[str, str]]:
    if one.read_bytes() == other.read_bytes():
        return
    if one.suffix == ".json":
        yield from _of_values("", json.loads(one.read_text()), json.loads(other.read_text()))
    elif one.suffix == ".jsonl":
        lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (one, other)]
        yield from _of_values("", *lines)
    elif one.suffix == ".safetensors":
        yield from _of_tensors(one, other)
    elif one.suffix in (".pt", ".bin", ".pth"):
        yield from _of_states(one, other)
    else:
        yield "", f"other bytes ({one.stat().st_size} and {other.stat().st_size})"


def _of_values(key: str, one: Any, other: Any) -> Iterator[tuple[str, str]]:
    if any(fnmatch(key.rpartition(".")[2], pattern) for pattern in VOLATILE_KEYS):
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            own = f"{key}.{name}" if key else name
            if name not in one or name not in other:
                if not any(fnmatch(name, pattern) for pattern in VOLATILE_KEYS):
                    yield own, f"only in the {'commit' if name in one else 'working tree'}"
            else:
                yield from _of_values(own, one[name], other[name])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _of_values(f"{key}[{number}]", *pair)
    elif one != other and not (_is_nan(one) and _is_nan(other)):
        yield key, f"{str(one)[:60]} and {str(other)[:60]}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _of_tensors(one: Path, other: Path) -> Iterator[tuple[str, str]]:
    from safetensors.torch import load_file

    yield from _of_states_in(load_file(one), load_file(other), "")


def _of_states(one: Path, other: Path) -> Iterator[tuple[str, str]]:
    """Containers whose bytes hold addresses: compared by what is in them."""
    import torch

    try:
        states = [torch.load(path, map_location="cpu", weights_only=True) for path in (one, other)]
    except Exception as error:
        yield "", f"cannot be read safely: {str(error)[:80]}"
        return
    yield from _of_states_in(states[0], states[1], "")


def _of_states_in(one: Any, other: Any, key: str) -> Iterator[tuple[str, str]]:
    import torch

    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from _of_states_in(one[name], other[name], f"{key}.{name}" if key else str(name))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _of_states_in(*pair, f"{key}[{number}]")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or not torch.equal(one, other):
            yield key, "other tensors"
    elif type(one) is not type(other) or (not callable(one) and str(one) != str(other)):
        yield key, f"{str(one)[:60]} and {str(other)[:60]}"
