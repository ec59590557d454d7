"""Where rows come from: local files and folders, `datasets` objects, and the Hugging Face hub."""

import csv
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from io import BufferedIOBase, BufferedReader, BytesIO, TextIOWrapper
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from preftune.data.rules import shorten, suggest
from preftune.errors import InputError

Row = Mapping[str, Any]

GIVEN_ROWS = "the given rows"
"""How messages call rows that a caller has in memory."""

SHOWN_FILES = 3
"""Files of a source that are named in a message."""
HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?")
SPLIT_WORDS = (
    *("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"),
    *("held_out", "heldout"),
)
SLICED = re.compile(r"(?P<split>[^\[]+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")
"""A split of which only some rows are read, as `datasets` writes it: `train[:1000]`, `train[10%:20%]`."""
SHARD = re.compile(r"-\d+(-of-\d+.*)?$")
"""How the name of a part of a split ends."""
MOST_BYTES_OF_BLOCK = 2**31 - 1
BATCH_ROWS = 1024
"""Rows of a table that are Python's at once."""
CSV_TEXT = (
    *("prompt", "chosen", "rejected", "completion", "instruction", "input", "output", "system", "question"),
    *("response", "response_0", "response_1", "response_2", "response1", "response2"),
    *("response_j", "response_k", "chosen_response", "rejected_response", "human_ref_A", "human_ref_B"),
    *("chosen_messages", "rejected_messages", "preferred_output", "non_preferred_output", "messages"),
    *("conversations", "conversation", "history", "context", "tools", "responses", "completions"),
    *("generations", "answers", "all_generated_responses"),
)
"""CSV columns that stay text even where every cell looks like a number."""


@runtime_checkable
class Table(Protocol):
    """What a list of rows and a `datasets.Dataset` have in common."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...


@dataclass(frozen=True)
class FileRows:
    """Rows that are read from their file whenever they are asked for.

    Attributes:
        path: of the file.
        read: all its rows.
        places: which of them these are.
        stamp: size and time of the file when its rows were counted.
    """

    path: Path
    read: Callable[[], Iterable[Row]]
    places: range
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path, count: int, read: Callable[[], Iterable[Row]]) -> "FileRows":
        """All `count` rows of a file."""
        return cls(path, read, range(count), _stamp(path))

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Row]:
        if _stamp(self.path) != self.stamp:
            raise InputError(f"{self.path}: the file was changed while it was read. Start again.")
        return islice(self.read(), self.places.start, self.places.stop)

    def select(self, places: range) -> "FileRows":
        """Neighbouring ones of these."""
        return replace(self, places=self.places[places.start : places.stop])


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat() if path.exists() else None
    return (found.st_size, found.st_mtime_ns) if found else (0, 0)


@dataclass(frozen=True)
class SourcePart:
    """Rows of one file, or of one `datasets.Dataset`.

    Attributes:
        name: for messages.
        columns: every column of any row.
        rows: an empty one stands for an unreadable line, so that the numbers of the others stay.
        unreadable: numbers of those.
        first: number of the first row in its file, where only some of them are read.
    """

    name: str
    columns: tuple[str, ...]
    rows: Table
    unreadable: frozenset[int] = frozenset()
    first: int = 0

    def between(self, start: int, stop: int) -> "SourcePart":
        """The rows from `start` up to `stop`, under the numbers that they have."""
        start, stop = (min(max(place, 0), len(self.rows)) for place in (start, stop))
        rows: Table = []
        if start < stop:
            is_list = isinstance(self.rows, list | tuple)
            rows = self.rows[start:stop] if is_list else self.rows.select(range(start, stop))  # type: ignore[index, attr-defined]
        unreadable = frozenset(number - start for number in self.unreadable if start <= number < stop)
        return SourcePart(self.name, self.columns, rows, unreadable, self.first + start)


@dataclass(frozen=True)
class Rows:
    """The rows of a source, numbered from 0 across its files."""

    parts: tuple[SourcePart, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of any file, in the order of appearance."""
        return tuple(dict.fromkeys(column for part in self.parts for column in part.columns))

    @property
    def unreadable(self) -> frozenset[int]:
        """Numbers of the rows that stand for unreadable lines."""
        starts = accumulate((len(part.rows) for part in self.parts), initial=0)
        return frozenset(
            start + row for start, part in zip(starts, self.parts, strict=False) for row in part.unreadable
        )

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part.rows

    @property
    def locate(self) -> Callable[[int], str]:
        """Names a row for a message, as the file and the 0-based row in it, without holding the rows."""
        sizes = [(part.name, len(part.rows), part.first) for part in self.parts]

        def locate(row: int) -> str:
            for name, size, first in sizes:
                if row < size:
                    return f"{name} row {first + row}"
                row -= size
            raise IndexError(row)

        return locate

    @property
    def described(self) -> str:
        """Which files, and how many rows of each."""
        shown = [f"{part.name} ({len(part.rows):,} rows)" for part in self.parts[:SHOWN_FILES]]
        more = len(self.parts) - len(shown)
        return ", ".join(shown) + (f" and {more} more files ({len(self):,} rows in all)" if more else "")

    def sliced(self, start: str | None, stop: str | None) -> "Rows":
        """The rows between two places, each a number or a percentage, from the end where negative."""
        first, last = _place(start, 0, len(self)), _place(stop, len(self), len(self))
        parts, before = [], 0
        for part in self.parts:
            parts.append(part.between(first - before, last - before))
            before += len(part.rows)
        return Rows(tuple(part for part in parts if len(part.rows)))


def _place(written: str | None, default: int, count: int) -> int:
    if written is None:
        return default
    number = round(int(written[:-1]) * count / 100) if written.endswith("%") else int(written)
    return max(number + count, 0) if number < 0 else min(number, count)


@dataclass(frozen=True)
class _Reading:
    """How files are read; see `read_rows`."""

    unreadable_line: str
    texts: frozenset[str]


def read_rows(
    source: Any, split: str = "train", *, unreadable_line: str = "error", texts: Collection[str] = ()
) -> Rows:
    """Read a source of preference data.

    Args:
        source: a `datasets.Dataset` or `DatasetDict`; a list of rows, each a mapping; a file (.jsonl, .json,
            .csv, .tsv, each also with .gz or .zst, .parquet); a folder of such files, one written by
            `save_to_disk`, or a copy of one of the hub's; or a hub name, `org/name` or `org/name:config`.
            What exists on disk is never looked up on the hub.
        split: the split to read, or some rows of it: `train[:1000]`, `train[10%:20%]`. A `Dataset` is already
            one split, so its name is not asked.
        unreadable_line: stop with an `error` at a line of a JSON Lines file that is no JSON object, or
            `drop` it.
        texts: columns that stay text where a CSV file's cells look like numbers, besides `CSV_TEXT`.

    Raises:
        InputError: the source does not exist, cannot be read, or has no such split.
    """
    if sliced := SLICED.fullmatch(split):
        rows = read_rows(source, sliced["split"], unreadable_line=unreadable_line, texts=texts)
        return rows.sliced(sliced["start"], sliced["stop"])
    if "[" in split:
        raise InputError(
            f"split={split}: this is no slice. Write it as train[:1000], train[-50:] or train[10%:20%]."
        )
    how = _Reading(unreadable_line, frozenset(texts))
    if not isinstance(source, str | Path):
        return Rows((_from_object(source, split),))
    path = Path(source).expanduser()
    folder, _, config = str(path).rpartition(":")
    if not path.exists() and folder and Path(folder).is_dir():
        return _read_folder(Path(folder), split, how, config)
    if path.is_dir():
        return _read_folder(path, split, how)
    if path.exists():
        _require_train(split, str(source))
        return Rows((_read_file(path, how),))
    hub_name = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if hub_name is None or _suffix(path) in READERS:
        raise _no_such_path(path)
    return Rows((_from_hub(hub_name["name"], hub_name["config"], split),))


# --- datasets objects and the hub ---


def _from_object(source: Any, split: str, name: str = "the given data set") -> SourcePart:
    if isinstance(source, list | tuple):
        return _from_rows(source)
    import datasets

    if isinstance(source, datasets.DatasetDict):
        if split not in source:
            raise _no_such_split(split, name, list(source))
        source, name = source[split], f"{name} ({split})"
    if not isinstance(source, datasets.Dataset):
        raise InputError(
            f"the data is a {type(source).__name__}: it must be a file, a folder, a hub name, a list of "
            "rows, a datasets.Dataset or a DatasetDict. Load a streamed data set whole, or save it as JSONL."
        )
    if source.format["type"] == "custom":
        raise InputError(
            f"{name}: it has a transform (`set_transform` or `with_transform`), and rows are read as they "
            "are stored. Apply it with `map`, or take it off with `reset_format()`."
        )
    return SourcePart(name, tuple(source.column_names), _as_stored(source))


def _as_stored(dataset: Any) -> Any:
    """The data set as Python's own values, and the names of classes in place of their numbers.

    Which number a class has says nothing: `true` may be the first.
    """
    import datasets

    classes = {
        column: feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
        and feature.names != [str(number) for number in range(feature.num_classes)]
    }
    if not classes:
        return dataset.with_format(None)

    def named(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            column: [_class_name(classes[column], value) for value in values] if column in classes else values
            for column, values in batch.items()
        }

    return dataset.with_transform(named)


def _class_name(names: Sequence[str], number: int | None) -> str | None:
    """The name of a class; none for the -1 of a row without one."""
    return names[number] if number is not None and 0 <= number < len(names) else None


def _from_rows(rows: Sequence[Any]) -> SourcePart:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"{GIVEN_ROWS}: row {number} is {shorten(row)}. Give a mapping of columns to values for "
                "every row."
            )
    try:
        plain = [_plain(row) for row in rows]
    except RecursionError:
        raise InputError(
            f"{GIVEN_ROWS}: a row holds lists or mappings in each other too many times, or itself. Remove it."
        ) from None
    columns = tuple(dict.fromkeys(column for row in plain for column in row))
    return SourcePart(GIVEN_ROWS, columns, plain)


def _plain(value: Any) -> Any:
    """The value as a JSON file would give it: Python's own numbers and lists for numpy's, and for tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Decimal) and value.is_snan():
        return math.nan  # a signalling NaN cannot even be compared
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _from_hub(name: str, config: str | None, split: str) -> SourcePart:
    import datasets

    try:
        dataset = datasets.load_dataset(name, config, split=split)
    # Missing, gated, offline, an unknown split or configuration, a loading script: the user's to settle.
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        title = f"{name}:{config}" if config else name
        raise InputError(
            f"{title}, split={split}: the hub data set could not be read: "
            f"{shorten(str(error), 300)} "
            "Check the name, the split and the network, or download it and give the file or folder."
        ) from error
    return _from_object(dataset, split, f"{name} ({split})")


# --- files and folders ---


def _suffix(path: Path) -> str:
    """Give the ending that says how to read a file: `.jsonl`, `.jsonl.gz`; not `.v2.jsonl`."""
    is_compressed = path.suffix.lower() in COMPRESSED
    return "".join(path.suffixes[-2:]).lower() if is_compressed else path.suffix.lower()


def _no_such_path(path: Path) -> InputError:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return InputError(
        f"{path}: there is no such file or folder{suggest(path.name, siblings)}. "
        "Give an existing path, or a hub name such as org/name."
    )


def _no_such_split(split: str, source: str, found: list[str]) -> InputError:
    return InputError(
        f"split={split}: {source} has no such split{suggest(split, found)}. Splits found: {', '.join(found)}."
    )


def _require_train(split: str, source: str) -> None:
    if split != "train":
        raise InputError(
            f"split={split}: {source} has no named splits, so all of it is the split `train`. "
            "Leave the split out, or give the file that holds it."
        )


def _read_file(path: Path, how: _Reading) -> SourcePart:
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise InputError(
            f"{path}: files ending in {_suffix(path) or 'nothing'} cannot be read. "
            f"Convert it to one of {', '.join(READERS)}."
        )
    return reader(path, how)


def _read_folder(folder: Path, split: str, how: _Reading, config: str | None = None) -> Rows:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        import datasets

        return Rows((_from_object(datasets.load_from_disk(str(folder)), split, str(folder)),))
    configured = _configured_files(folder, config)
    by_split = configured or _files_by_name(folder)
    if split not in by_split:
        if not configured and not any(
            _named_split(file.relative_to(folder)) for files in by_split.values() for file in files
        ):
            _require_train(split, str(folder))
        raise _no_such_split(split, str(folder), sorted(by_split))
    return Rows(tuple(_read_file(file, how) for file in by_split[split]))


def _configured_files(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """Files of each split, as the card of a hub's copy lists them; none without such a card.

    Raises:
        InputError: the card lists several configurations and none was asked for, or not the one that was.
    """
    card = folder / "README.md"
    entries = _listed_configs(card) if card.exists() else []
    configs = {str(entry["config_name"]): entry for entry in entries if "config_name" in entry}
    if config is None and len(configs) == 1:
        (config,) = configs
    if config not in configs:
        if configs or config:
            names = " or ".join(f"{folder}:{name}" for name in configs)
            how = f"the card lists {len(configs)} configurations" if configs else "the card lists none"
            raise InputError(f"{folder}: {how}, not {config!r}. Give {names or folder}.")
        return {}
    below = folder / str(configs[config].get("data_dir") or "")
    files: Any = configs[config].get("data_files")
    if not files:
        return _files_by_name(below) if below != folder else {}
    by_split: dict[str, list[Path]] = {}
    for entry in files if isinstance(files, list) else [files]:
        split, patterns = (
            (str(entry.get("split", "train")), entry.get("path"))
            if isinstance(entry, Mapping)
            else ("train", entry)
        )
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            by_split.setdefault(split, []).extend(_matching(below, pattern, card))
    return by_split


def _listed_configs(card: Path) -> list[Mapping[str, Any]]:
    """What the front matter of a card says of its configurations; nothing where it says nothing."""
    import yaml

    lines = card.read_text(encoding="utf-8", errors="replace").split("---\n")
    try:
        front = yaml.safe_load(lines[1]) if len(lines) > 1 else None
    except yaml.YAMLError as error:
        raise InputError(
            f"{card}: the front matter is not valid YAML: {error}. Mend or remove it."
        ) from error
    configs = front.get("configs") if isinstance(front, Mapping) else None
    return [entry for entry in configs if isinstance(entry, Mapping)] if isinstance(configs, list) else []


def _matching(folder: Path, pattern: Any, card: Path) -> list[Path]:
    """Files that a card's pattern names, those of a folder included.

    Raises:
        InputError: there are none.
    """
    is_inside = isinstance(pattern, str) and pattern and not Path(pattern).is_absolute()
    found = sorted(folder.glob(pattern)) if is_inside else []
    files = [file for path in found for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    if files := [file for file in files if file.is_file() and _suffix(file) in READERS]:
        return files
    raise InputError(
        f"{card}: path={pattern}: {folder} has no such file that can be read. Download it, mend the card, or "
        "give the file itself."
    )


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    """Files of each split that their names speak of; all are `train` where no name does.

    Raises:
        InputError: there is no file that can be read, or some names speak of a split and others do not.
    """
    files = sorted(
        file
        for file in folder.rglob("*")
        if _suffix(file) in READERS and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    if not files:
        raise InputError(f"{folder}: the folder has no file ending in {', '.join(READERS)}.")
    named: dict[str | None, list[Path]] = {}
    for file in files:
        named.setdefault(_named_split(file.relative_to(folder)), []).append(file)
    unnamed = named.pop(None, [])
    if unnamed and named:
        other = next(iter(named.values()))[0].relative_to(folder)
        raise InputError(
            f"{folder}: the name of {unnamed[0].relative_to(folder)} speaks of no split, that of {other} "
            f"does. Give the file itself, such as {unnamed[0]}."
        )
    return {"train": unnamed} if unnamed else {str(name): found for name, found in named.items()}


def _named_split(file: Path) -> str | None:
    """Find the split a file's path speaks of: `test-00000-of-00001.parquet`, `train_prefs.jsonl`."""
    stem = SHARD.sub("", file.name.removesuffix(_suffix(file)))
    words = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
    for name in (stem, *reversed(file.parent.parts)):
        if re.fullmatch(rf"({words})([-_.]\w+)?", name, re.IGNORECASE):
            # `train_prefs` is a split of its own, and `train1` a part of `train`.
            return re.sub(r"[-_.]?\d+$", "", name)
        if found := re.search(rf"(?:^|[^a-zA-Z0-9])({words})(?:$|[^a-zA-Z])", name, re.IGNORECASE):
            return found[1]
    return None


def _read_json(path: Path, how: _Reading) -> SourcePart:
    """Read JSON Lines, or a JSON list of objects: the first character tells them apart."""
    with _intact(path), _open(path) as file:
        start = file.read(1)
        while start.isspace() or start in (b"\xef", b"\xbb", b"\xbf"):
            start = file.read(1)
    if start == b"[":
        with _intact(path), _open(path) as file:
            rows: Table = _json_list(file, path)
        return SourcePart(str(path), tuple(dict.fromkeys(column for row in rows for column in row)), rows)
    count, columns, unreadable = 0, dict[str, None](), set[int]()
    for row in _json_lines(path, how.unreadable_line):
        if row is None:
            unreadable.add(count)
        columns.update(dict.fromkeys(row or ()))
        count += 1
    rows = FileRows.of(path, count, lambda: (row or {} for row in _json_lines(path, how.unreadable_line)))
    return SourcePart(str(path), tuple(columns), rows, frozenset(unreadable))


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Say so where a file is damaged.

    Raises:
        InputError: it is.
    """
    import pyarrow as pa

    try:
        yield
    except (EOFError, OSError, zlib.error, pa.ArrowInvalid) as error:
        kind = "compressed file" if path.suffix.lower() in COMPRESSED else "file"
        raise InputError(f"{path}: the {kind} is damaged or cut ({error}). Write it again.") from error


def _open(path: Path) -> BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _json_lines(path: Path, unreadable_line: str) -> Iterator[dict[str, Any] | None]:
    """The objects of the lines that are not blank; None for one that is unreadable."""
    with _intact(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _json_object(line, f"{path} line {number}")
            except InputError as error:
                if unreadable_line == "error":
                    raise InputError(f"{error} Or set data.rules.unreadable_line=drop.") from error
                yield None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    row = _parse(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where}: {shorten(row)} is not a JSON object. Write one object per line.")
    return row


def _json_list(file: BufferedIOBase, path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _parse(file.read(), str(path))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(
                f"{path} item {number}: {shorten(row)} is not a JSON object. Write a list of objects."
            )
    return rows


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _parse(data: bytes, where: str) -> Any:
    try:
        value = DECODER.decode(data.decode("utf-8-sig"))
        if rb"\ud" in data.lower():  # half an emoji, cut by an earlier tool, would only fail in the tokenizer
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: a string holds half a surrogate pair (a cut emoji). Repair the text."
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not valid JSON ({error.msg} at character {error.pos}). Is the file cut? "
            "Repair or remove it."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists in lists without an end
        raise InputError(f"{where}: the JSON cannot be read ({error}). Repair or remove it.") from error
    return value


def _read_csv(path: Path, how: _Reading) -> SourcePart:
    import pyarrow as pa
    from pyarrow import csv as tables

    text = tables.ConvertOptions(column_types=dict.fromkeys((*CSV_TEXT, *how.texts), pa.string()))
    delimiter = "\t" if _suffix(path).startswith(".tsv") else ","
    parsing = tables.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    try:
        with _open(path) as file:
            data = file.read()
        _check_quotes(data, delimiter, path)
        # One block: a row may be longer than the usual ones of 1 MiB.
        reading = tables.ReadOptions(block_size=min(max(len(data), 1), MOST_BYTES_OF_BLOCK))
        table = tables.read_csv(BytesIO(data), reading, parsing, text)
    except (pa.ArrowInvalid, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: not a valid UTF-8 CSV file: {shorten(str(error), 300)}") from error
    if twice := [name for name, times in Counter(table.column_names).items() if times > 1]:
        raise InputError(f"{path}: the header has {twice[0]!r} twice. Rename one of the columns.")
    rows = FileRows.of(path, len(table), lambda: _python_rows(table.to_batches(BATCH_ROWS)))
    return SourcePart(str(path), tuple(table.column_names), rows)


def _check_quotes(data: bytes, delimiter: str, path: Path) -> None:
    """Refuse quotation marks that would join the rows between them, or lose what stands behind them.

    Raises:
        InputError: a cell that begins with one does not end with one.
    """
    if b'"' not in data:
        return
    lines = TextIOWrapper(BytesIO(data), encoding="utf-8-sig", errors="replace", newline="")
    most = csv.field_size_limit(max(len(data), csv.field_size_limit()))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        raise InputError(
            f"{path} line {reader.line_num}: a cell begins with a quotation mark and does not end with one "
            f"({error}). Put such a cell in quotation marks and double those inside of it, or write the file "
            "as JSON Lines."
        ) from error
    finally:
        csv.field_size_limit(most)


def _python_rows(batches: Iterable[Any]) -> Iterator[Row]:
    return (row for batch in batches for row in batch.to_pylist())


def _read_parquet(path: Path, _how: _Reading) -> SourcePart:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    @contextmanager
    def valid() -> Iterator[None]:
        try:
            yield
        # A column that is there twice, or of a type that datasets does not know, is an error of theirs.
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: not a valid Parquet file: {shorten(str(error), 300)}. Mend it, or write it as JSON "
                "Lines."
            ) from error

    def read() -> Iterator[Row]:
        with valid(), parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                table = pa.Table.from_batches([batch], file.schema_arrow)
                yield from _as_stored(datasets.Dataset(table))

    with valid():
        empty = parquet.ParquetDataset(path).schema.empty_table()
        columns = tuple(datasets.Dataset(empty).column_names)
    with valid(), parquet.ParquetFile(path) as file:
        # Read to its end, so that a damaged file is an error before anything else is.
        count = sum(len(batch) for batch in file.iter_batches(BATCH_ROWS))
    return SourcePart(str(path), columns, FileRows.of(path, count, read))


COMPRESSED = (".gz", ".zst")
READERS: dict[str, Callable[[Path, _Reading], SourcePart]] = {
    **{
        suffix + compressed: reader
        for suffix, reader in {
            ".jsonl": _read_json,
            ".json": _read_json,
            ".csv": _read_csv,
            ".tsv": _read_csv,
        }.items()
        for compressed in ("", *COMPRESSED)
    },
    ".parquet": _read_parquet,
}
