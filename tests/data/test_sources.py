import gzip
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from preftune.data import read_rows
from preftune.errors import InputError

ROWS = [
    {"prompt": "p0", "chosen": "good", "rejected": "bad", "margin": 1.5},
    {"prompt": "p1", "chosen": "güt 🙂", "rejected": "böse", "margin": None},
]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON Lines, not escaped to ASCII."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, data: bytes) -> Path:
    """Write a file, and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


CSV = "prompt,chosen,rejected,margin\np0,good,bad,1.5\np1,güt 🙂,böse,\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", json_lines(ROWS)),
        ("windows.JSONL", b"\xef\xbb\xbf" + json_lines(ROWS).replace(b"\n", b"\r\n")),
        ("blank.jsonl", b"\n" + json_lines(ROWS) + b"\n \n"),
        ("list.json", json.dumps(ROWS, indent=1).encode()),
        ("lines.json", json_lines(ROWS)),
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS), mtime=0)),
        ("a.v2.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("a.csv", CSV.encode()),
    ],
)
def test_text_files(tmp_path: Path, name: str, data: bytes) -> None:
    """Every kind of local text file gives the same rows: with BOM, CRLF, blank lines, gzip or a list."""
    rows = read_rows(write(tmp_path / name, data))
    assert list(rows) == ROWS
    assert rows.columns == ("prompt", "chosen", "rejected", "margin")


def test_parquet_and_dataset(tmp_path: Path) -> None:
    """A Parquet file, a Dataset and a folder written by save_to_disk give the same rows."""
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "a.parquet", str(tmp_path / "saved"), dataset, dataset.with_format("numpy")):
        assert list(read_rows(source)) == ROWS


def test_splits_of_dict(tmp_path: Path) -> None:
    """A DatasetDict, in memory or on disk, gives the split asked for and names those it has."""
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS[:1]), test=datasets.Dataset.from_list(ROWS[1:])
    )
    both.save_to_disk(tmp_path / "saved")
    for source in (both, tmp_path / "saved"):
        assert [row["prompt"] for row in read_rows(source, "test")] == ["p1"]
        with pytest.raises(InputError, match=r"split=tset: .* \(did you mean 'test'\?\).*: train, test\."):
            read_rows(source, "tset")


def test_folder_joins_files_and_numbers_rows(tmp_path: Path) -> None:
    """A folder's files are read in order of name, and a row is located by its file and its row there."""
    write(tmp_path / "b.jsonl", json_lines(ROWS[1:]))
    write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(ROWS[:1])))
    write(tmp_path / "README.md", b"# no data")
    write(tmp_path / ".cache" / "c.jsonl", b"{broken")
    rows = read_rows(tmp_path)
    assert list(rows) == ROWS
    assert len(rows) == 2
    assert rows.locate(0) == f"{tmp_path / 'a.jsonl.gz'} row 0"
    assert rows.locate(1) == f"{tmp_path / 'b.jsonl'} row 0"


def test_folder_splits_by_file_name(tmp_path: Path) -> None:
    """Where file names speak of splits, only the files of the split asked for are read."""
    write(tmp_path / "data" / "train-00000.jsonl", json_lines(ROWS[:1]))
    write(tmp_path / "data" / "test_prefs-00000.jsonl", json_lines(ROWS[1:]))
    assert [row["prompt"] for row in read_rows(tmp_path)] == ["p0"]
    assert [row["prompt"] for row in read_rows(tmp_path, "test_prefs")] == ["p1"]
    with pytest.raises(InputError, match=r"split=dev: .* has no such split.* test_prefs, train"):
        read_rows(tmp_path, "dev")


def test_one_file_has_no_named_splits(tmp_path: Path) -> None:
    """A split other than train of a single file is refused instead of being ignored."""
    path = write(tmp_path / "a.jsonl", json_lines(ROWS))
    with pytest.raises(InputError, match=r"split=test: .*a\.jsonl has no named splits.*Leave the split out"):
        read_rows(path, "test")
    with pytest.raises(InputError, match="has no named splits"):
        read_rows(tmp_path, "test")


def test_columns_are_those_of_any_row(tmp_path: Path) -> None:
    """A key that only a later line has is a column too."""
    path = write(tmp_path / "a.jsonl", json_lines([{"a": 1}, {"a": 2, "b": 3}]))
    assert read_rows(path).columns == ("a", "b")


def test_csv_text_stays_text(tmp_path: Path) -> None:
    """A CSV prompt or response that looks like a number is text, and quoted newlines are kept."""
    path = write(tmp_path / "a.csv", b'prompt,chosen,rejected,score_chosen\n"1\n+1",2,03,4\n')
    assert list(read_rows(path)) == [{"prompt": "1\n+1", "chosen": "2", "rejected": "03", "score_chosen": 4}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.jsonl",
            json_lines(ROWS) + b'{"prompt": "p',
            r"a\.jsonl line 3: not valid JSON .* character 11.*cut",
        ),
        ("a.jsonl", json_lines(ROWS[:1]) + b"[1]\n", r"a\.jsonl line 2: \[1\] is not a JSON object"),
        ("a.jsonl", json_lines(ROWS[:1]) + b'{"a": "\xff"}\n', r"a\.jsonl line 2: byte 7 is not UTF-8.*Save"),
        ("a.jsonl", b'{"a": "\\ud83d"}\n', r"a\.jsonl line 1: .*half a surrogate pair"),
        ("a.json", b'[{"a": 1}, 2]', r"a\.json item 1: 2 is not a JSON object"),
        ("a.json", b'[{"a": 1},', r"a\.json: not valid JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(json_lines(ROWS), mtime=0)[:-9],
            r"a\.jsonl\.gz: the compressed file is damaged or cut",
        ),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz: the compressed file is damaged"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv: not a valid UTF-8 CSV file.*Expected 2 columns"),
        ("a.csv", b"prompt\n\xff\xfe\n", r"a\.csv: not a valid UTF-8 CSV file"),
        ("a.parquet", b"nothing", r"a\.parquet: not a valid Parquet file"),
        ("a.txt", b"nothing", r"a\.txt: files ending in \.txt cannot be read.*\.jsonl"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """A damaged file is refused with its name, the line where there are lines, and what is wrong."""
    with pytest.raises(InputError, match=message):
        read_rows(write(tmp_path / name, data))


def test_folder_without_data(tmp_path: Path) -> None:
    """A folder without data files says which endings it looked for."""
    with pytest.raises(InputError, match=r"no file ending in \.jsonl, \.json"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    "source", ["./data", "/no/such", "~/no_such", "pairs.jsonl", "org/pairs.csv", "a/b/c", ""]
)
def test_missing_path_never_reaches_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a path and does not exist is refused before any network is tried."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    if source == "":
        monkeypatch.setattr(Path, "exists", lambda _: False)
        monkeypatch.setattr(Path, "is_dir", lambda _: False)
    with pytest.raises(InputError, match=r"there is no such file or folder.*hub name"):
        read_rows(source)


def test_misspelt_path_is_suggested(tmp_path: Path) -> None:
    """A path one letter off names the file that does exist."""
    write(tmp_path / "pairs.jsonl", json_lines(ROWS))
    with pytest.raises(InputError, match=r"did you mean 'pairs\.jsonl'\?"):
        read_rows(tmp_path / "pars.jsonl")


@pytest.mark.parametrize(
    ("source", "asked"),
    [("org/name", ("org/name", None, "train")), ("name:config-1", ("name", "config-1", "train"))],
)
def test_hub_name(source: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name, with a configuration after a colon, is loaded by `datasets` without remote code."""
    calls = []

    def load(name: str, config: str | None, **options: Any) -> datasets.Dataset:
        calls.append((name, config, options.pop("split")))
        assert not options
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows(source)
    assert calls == [asked]
    assert rows.locate(1) == f"{asked[0]} (train) row 1"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("offline"),
        ValueError("Unknown split"),
        RuntimeError("scripts are no longer supported"),
    ],
)
def test_hub_failure(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be read is the user's error, with name, split, cause and fix."""

    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=rf"^org/name:c, split=dev: .*{error}.*Check the name"):
        read_rows("org/name:c", "dev")


def test_other_objects_are_refused() -> None:
    """A streamed data set, or any other object, is refused by its type."""
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(InputError, match=r"the data is a IterableDataset.*save it as JSONL"):
        read_rows(streamed)


def test_import_is_light() -> None:
    """Importing preftune.data loads neither datasets, transformers nor pyarrow."""
    import subprocess

    code = "import preftune.data, sys; print({'datasets', 'transformers', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "cells", "line"),
    [
        ("a.tsv", 'q1\ta\t"He said\nq2\tb\t"She said\nq3\tc\td\n', 3),
        ("a.csv", 'q1,a,"He said\nq2,b,c\nq3,c,d\n', 4),
        ("a.csv", 'q1,a,"He" said\nq2,b,c\n', 2),
    ],
    ids=["joins two rows", "joins all that follow", "loses what stands behind it"],
)
def test_quotes_that_join_rows_are_refused(tmp_path: Path, name: str, cells: str, line: int) -> None:
    """A cell that begins with a quotation mark and does not end with one is an error with its line."""
    header = "prompt,chosen,rejected\n".replace(",", "\t" if name.endswith("tsv") else ",")
    path = write(tmp_path / name, (header + cells).encode())
    with pytest.raises(InputError, match=rf"{name} line {line}: a cell begins with a quotation mark and"):
        read_rows(path)


def test_csv_cells_as_they_may_be(tmp_path: Path) -> None:
    """A mark inside of a cell, doubled marks and line breaks, and a cell of 3 MB are read as they are."""
    long = "x" * 3_000_000
    cells = f'5" pipe,"He said ""no""","a\nb"\n{long},b,c\n'
    rows = list(read_rows(write(tmp_path / "a.csv", f"prompt,chosen,rejected\n{cells}".encode())))
    assert list(rows[0].values()) == ['5" pipe', 'He said "no"', "a\nb"]
    assert rows[1]["prompt"] == long


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    """JSON would keep the last of two prompts, or of two contents of a message, without a word."""
    row = b'{"prompt": "p", "chosen": [{"content": "a", "role": "assistant", "content": "b"}]}'
    data = b"[" + row + b"]" if name == "a.json" else row
    with pytest.raises(
        InputError, match=r"the JSON cannot be read \(an object has the key 'content' twice\)"
    ):
        read_rows(write(tmp_path / name, data))


def test_a_transform_is_refused() -> None:
    """Rows are read as they are stored, so what a transform makes of them would be lost."""
    dataset = datasets.Dataset.from_list(ROWS).with_transform(lambda batch: batch)
    with pytest.raises(InputError, match=r"it has a transform .* Apply it with `map`"):
        read_rows(dataset)


def test_classes_are_read_by_name(tmp_path: Path) -> None:
    """The number of a class says nothing where `true` is the first; classes named by numbers keep theirs."""
    features = datasets.Features(
        label=datasets.ClassLabel(names=["true", "false"]), score=datasets.ClassLabel(names=["0", "1"])
    )
    found = [{"label": 0, "score": 1}, {"label": 1, "score": 0}, {"label": None, "score": 0}]
    dataset = datasets.Dataset.from_list(found, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    named = [{"label": "true", "score": 1}, {"label": "false", "score": 0}, {"label": None, "score": 0}]
    for source in (dataset, tmp_path / "a.parquet"):
        assert list(read_rows(source)) == named
        assert list(read_rows(source, "train[1:2]")) == named[1:2]


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (pa.table([["a"], ["b"]], names=["chosen", "chosen"]), "chosen.* exists 2 times"),
        (pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}), "map<string, int64"),
    ],
    ids=["a column twice", "a type that datasets does not know"],
)
def test_parquet_columns_that_cannot_be_read(tmp_path: Path, table: pa.Table, error: str) -> None:
    """Such a column is an error that names the file, and no traceback."""
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet: not a valid Parquet file: .*{error}.*JSON Lines"):
        read_rows(tmp_path / "a.parquet")


def test_a_row_that_holds_itself_is_refused() -> None:
    """Rows of a caller may have no end."""
    row: dict[str, Any] = {"prompt": "p"}
    row["row"] = row
    with pytest.raises(InputError, match="the given rows: a row holds lists or mappings in each other"):
        read_rows([row])
