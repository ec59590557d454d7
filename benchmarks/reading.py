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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


def _write(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Write rows in the format of the path's ending, few at a time; returns the bytes of their text."""
    size = 0
    with ExitStack() as stack:
        write = None
        while some := list(islice(rows, 1000)):
            write = write or stack.enter_context(_writer(path, some))
            write(some)
            size += sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in some)
    return size


@contextmanager
def _writer(path: Path, rows: list[dict[str, Any]]) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    if path.suffix in (".jsonl", ".gz"):
        with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
            yield lambda some: file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in some)
        return
    import pyarrow as pa
    from pyarrow import csv, parquet

    schema = pa.Table.from_pylist(rows).schema
    with (csv.CSVWriter if path.suffix == ".csv" else parquet.ParquetWriter)(path, schema) as table:
        yield lambda some: table.write_table(pa.Table.from_pylist(some, schema))


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
            start = time.process_time()
            with Peak() as peak:
                prepared = prepare(config)
                fingerprint = prepared.train.fingerprint
            if name == "few":
                continue  # loads what is loaded once
            print(f"{given.rows:,} rows as {given.suffix}: {size / 1e6:.0f} MB of text")
            seconds = time.process_time() - start
            print(f"{seconds:.1f} s of the CPU, {prepared.train.tokens:,} tokens, {fingerprint}")
            for kind, most in peak.beyond.items():
                print(f"peak beyond the start, {kind}: {most / 1e6:.0f} MB, {most / size:.2f} of the text")


if __name__ == "__main__":
    main()
