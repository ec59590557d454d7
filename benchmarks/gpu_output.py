"""What the checks of a day with a GPU share: their options, and rows that are written as they come."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
PACKAGES = ("preftune", "torch", "transformers", "trl", "peft")


@dataclass(frozen=True)
class Options:
    """Of a check."""

    output: Path
    small: bool
    device: torch.device


def options(description: str | None) -> Options:
    """From the command line; without a device only `--small` runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--small", action="store_true", help="tiny models, on a CPU too")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.small:
        parser.error("no CUDA device here; --small tries the script on the CPU")
    return Options(given.output, given.small, device)


def environment() -> Row:
    """Where this was measured."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda,
        "versions": {name: version(name) for name in PACKAGES},
    }


def write(output: Path, rows: Iterator[Row]) -> None:
    """Write the file anew with every row, so that a check that is stopped keeps what it had.

    Raises:
        SystemExit: something does not hold, or failed.
    """
    content: Row = {"environment": environment(), "rows": []}
    for row in rows:
        content["rows"].append(row)
        print(json.dumps(row), flush=True)
        aside = output.with_suffix(".aside")
        aside.write_text(json.dumps(content) + "\n", encoding="utf-8")
        aside.replace(output)
    sys.exit(any(row.get("holds") is False or "failed" in str(row.get("outcome")) for row in content["rows"]))
