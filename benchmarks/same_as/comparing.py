"""Compare what two sides have written: files become values by key, so that a difference has a name."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load

Values = dict[str, object]

MISSING = "(missing)"
WHOLE = "(bytes)"
ORDER = "(key order)"
SHOWN = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Difference:
    """One key that differs.

    Attributes:
        file: path in the run's folder.
        key: key path, tensor or line; `(missing)` where one side lacks the file.
        base: the value on the side of the commit, shortened.
        new: the value on the other.
    """

    file: str
    key: str
    base: str
    new: str

    def __str__(self) -> str:
        return f"{self.file} {self.key}: {self.base} -> {self.new}"


def compare_folders(base: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[Difference]:
    """All differences between two run folders.

    Args:
        base: content of each file by its path.
        new: the other side's.
    """
    found: list[Difference] = []
    for file in sorted(base.keys() | new.keys()):
        if file not in base or file not in new:
            here, there = ("there" if file in side else "not there" for side in (base, new))
            found.append(Difference(file, MISSING, here, there))
        elif base[file] != new[file]:
            found += compare_files(file, base[file], new[file])
    return found


def compare_files(file: str, base: bytes, new: bytes) -> list[Difference]:
    """Differences between two contents of a file, by key.

    Args:
        file: its path; the suffix says how it is read.
        base: the content on the side of the commit.
        new: the content on the other.
    """
    ours, theirs = values(file, base), values(file, new)
    found = [
        Difference(file, key, _shown(ours, key), _shown(theirs, key))
        for key in dict.fromkeys([*ours, *theirs])
        if key not in ours or key not in theirs or _bits(ours[key]) != _bits(theirs[key])
    ]
    orders = [[key for key in side if key in ours and key in theirs] for side in (ours, theirs)]
    if orders[0] != orders[1] and not file.endswith(".safetensors"):
        found.append(Difference(file, ORDER, *(", ".join(keys)[:SHOWN] for keys in orders)))
    if not found and not file.endswith(CONTAINERS):
        found.append(Difference(file, WHOLE, f"{len(base)} bytes", f"{len(new)} bytes"))
    return found


CONTAINERS = (".pt", ".pth", ".bin")
"""Files that torch writes, whose bytes differ where the content is the same."""


def values(file: str, content: bytes) -> Values:
    """What a file holds, by key: `a.b[0]` in JSON and YAML, tensors by name, text by line."""
    suffix = Path(file).suffix
    try:
        if suffix == ".json":
            return flat(json.loads(content))
        if suffix == ".jsonl":
            return flat([json.loads(line) for line in content.splitlines()])
        if suffix == ".yaml":
            return flat(yaml.safe_load(content))
        if suffix == ".csv":
            return flat(list(csv.DictReader(io.StringIO(content.decode()))))
        if suffix == ".safetensors":
            return {**load(content)}
        if suffix in CONTAINERS:
            return flat(_loaded(content))
        if suffix in (".html", ".txt", ".md", ".svg", ".jinja"):
            return _lines(content.decode())
    except (ValueError, yaml.YAMLError):
        pass  # a file that is not what its name says is compared by its bytes
    return {WHOLE: hashlib.sha256(content).hexdigest()}


def _lines(text: str) -> Values:
    """Lines by number, those of a page's table or list by the row's name too."""
    found: Values = {}
    for number, line in enumerate(text.split("\n"), start=1):
        row = re.match(r'<(?:tr><th scope="row"|dt)>(.*?)</', line)
        found[f"line {number}" + (f", row {row[1]}" if row else "")] = line
    return found


def flat(content: Any, path: str = "") -> Values:
    """Leaves by their path; an empty list or mapping is a leaf."""
    if isinstance(content, Mapping) and content:
        parts = {f"{path}.{name}" if path else str(name): part for name, part in content.items()}
    elif isinstance(content, list | tuple) and content:
        parts = {f"{path}[{index}]": part for index, part in enumerate(content)}
    else:
        return {path: content}
    return {key: leaf for name, part in parts.items() for key, leaf in flat(part, name).items()}


def _bits(leaf: object) -> tuple[object, ...]:
    """What says whether two leaves are the same to the bit, in type too: 1 is not 1.0, and NaN is NaN."""
    if isinstance(leaf, torch.Tensor):
        content = leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return torch.Tensor, leaf.dtype, leaf.shape, content
    if isinstance(leaf, np.ndarray):
        return np.ndarray, leaf.dtype, leaf.shape, leaf.tobytes()
    return type(leaf), repr(leaf)


def _loaded(content: bytes) -> Any:
    # What transformers itself allows for the state of random numbers.
    reconstruct = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(allowed):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _shown(side: Values, key: str) -> str:
    if key not in side:
        return MISSING
    value = side[key]
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.reshape(-1)[:2].tolist()}"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
