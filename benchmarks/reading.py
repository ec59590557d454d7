"""Memory and time that reading a large set takes, from its file to token ids, beside the size of its text.

    python benchmarks/reading.py pairs.jsonl.gz --rows 200000 --model FOLDER --suffix .jsonl

Repeats a small file's rows with a number behind each prompt and response, until there are enough.
"""

import argparse
import gzip
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

from preftune.training.configuration import RunConfig
from preftune.training.preparation import prepare

KINDS = {"anonymous": "RssAnon", "with mapped files": "VmRSS"}
"""Memory of the process, as Linux names it; it takes that of mapped files back where it needs it."""
TEXTS = ("prompt", "chosen", "rejected", "responses")


def _numbered(value: Any, number: int) -> Any:
    if isinstance(value, list):
        return [_numbered(item, number) for item in value]
    return f"{value} ({number})" if isinstance(value, str) else value


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    for number in count():
        for row in rows:
            yield {name: _numbered(value, number) if name in TEXTS else value for name, value in row.items()}


def _write(rows: Iterator[Mapping[str, Any]], path: Path) -> int:
    """Write rows in the format of the path's ending; returns the bytes of their text."""
    found = list(rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in found]
    size = sum(len(line.encode()) + 1 for line in lines)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".gz":
        with gzip.open(path, "wt", compresslevel=1) as file:
            file.writelines(f"{line}\n" for line in lines)
    else:
        import pyarrow as pa
        from pyarrow import csv, parquet

        table = pa.Table.from_pylist(found)
        (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(table, path)
    return size


def _memory() -> dict[str, int]:
    """Bytes by kind."""
    status = Path("/proc/self/status").read_text()
    found = {kind: re.search(rf"{name}:\s+(\d+) kB", status) for kind, name in KINDS.items()}
    return {kind: int(match[1]) * 1024 for kind, match in found.items() if match}


class Peak:
    """The most memory of each kind while a block ran, beyond what was there at its start."""

    def __enter__(self) -> "Peak":
        self._start = self._most = _memory()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            now = _memory()
            self._most = {kind: max(most, now[kind]) for kind, most in self._most.items()}

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self.beyond = {kind: most - self._start[kind] for kind, most in self._most.items()}


def main() -> None:
    """Measure one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--model", required=True)
    parser.add_argument("--suffix", default=".jsonl", help=".jsonl, .jsonl.gz, .csv or .parquet")
    parser.add_argument("overrides", nargs="*", help="keys of the configuration, as JSON: objective='{...}'")
    given = parser.parse_args()
    overrides = {
        key: json.loads(value) for key, _, value in (each.partition("=") for each in given.overrides)
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}{given.suffix}" for name in ("few", "many")}
        _write(islice(_rows(given.source), 100), paths["few"])
        size = _write(islice(_rows(given.source), given.rows), paths["many"])
        for name, path in paths.items():
            config = RunConfig.model_validate(
                {
                    "model": given.model,
                    "output": str(Path(folder) / "run"),
                    "objective": {"method": "dpo"},
                    "training": {"bf16": False},
                    "data": {"train": str(path)},
                    **overrides,
                }
            )
            start = time.perf_counter()
            with Peak() as peak:
                prepared = prepare(config)
                fingerprint = prepared.train.fingerprint
            if name == "few":
                continue  # loads what is loaded once
            print(f"{given.rows:,} rows as {given.suffix}: {size / 1e6:.0f} MB of text")
            print(f"{time.perf_counter() - start:.1f} s, {prepared.train.tokens:,} tokens, {fingerprint}")
            for kind, most in peak.beyond.items():
                print(f"peak beyond the start, {kind}: {most / 1e6:.0f} MB, {most / size:.2f} of the text")


if __name__ == "__main__":
    main()
