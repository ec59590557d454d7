import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from preftune.data import (
    Group,
    Pair,
    Response,
    TokenizedGroup,
    load_groups,
    read_rows,
    sources,
    stored,
    tokenization,
)
from preftune.data.stored import StoredGroups, with_mapped_tokens
from preftune.errors import InputError

PAIR = Group("2+2?", (Response("4", 1.5), Response("5", -2.0)), (Pair(0, 1, margin=3.5, gap=0.25),), row=7)
CHAT = Group(
    ({"role": "user", "content": "2+2? \N{SLIGHTLY SMILING FACE}"},),
    (
        Response(
            (
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "add", "arguments": {"of": [2, 2.0, None, True]}}}],
                },
                {"role": "tool", "content": "4"},
                {"role": "assistant", "content": "4"},
            ),
            label=True,
            auxiliary=0.1,
            trained=(False, False, True),
        ),
    ),
    (),
    row=8,
    columns={"source": "a", "ids": [1, 2]},
    response_columns=frozenset({"ids"}),
    tools=({"type": "function", "function": {"name": "add"}},),
)
DATED = replace(PAIR, columns={"when": date(2026, 1, 2), 3: ("a", "b")})


@pytest.fixture(params=[0, 2**20], ids=["on disk", "in memory"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Where large sets begin."""
    monkeypatch.setattr(stored, "IN_MEMORY", request.param)
    return int(request.param)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format of the path's ending."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(lines)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs with different texts."""
    return [{"prompt": f"p{number}", "chosen": f"c{number}", "rejected": "r"} for number in range(count)]


@pytest.mark.usefixtures("limit")
def test_a_stored_group_is_what_it_was() -> None:
    """Text, messages, numbers, tools, and columns that JSON does not know come back equal, each time."""
    groups = StoredGroups(iter([PAIR, CHAT, DATED, CHAT]))
    assert list(groups) == [PAIR, CHAT, DATED, CHAT]
    assert groups[-1] == CHAT
    assert groups[1:3] == [CHAT, DATED]
    assert repr(list(groups)) == repr([PAIR, CHAT, DATED, CHAT])


@pytest.mark.usefixtures("limit")
def test_stored_groups_are_chosen_and_joined() -> None:
    """Places may repeat, rows are moved, and what is joined keeps both parts' order."""
    chosen = StoredGroups([PAIR, CHAT]).select([1, 0, 1])
    joined = chosen.moved(10) + StoredGroups([DATED])
    moved = [replace(group, row=group.row + 10) for group in (CHAT, PAIR, CHAT)]
    assert list(joined) == [*moved, DATED]
    assert list(chosen) == [CHAT, PAIR, CHAT]
    assert list(StoredGroups([]) + chosen.select([])) == []


def test_a_full_disk_is_an_error_that_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing more can be written, the message says which variable names another folder."""

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(stored, "SpooledTemporaryFile", lambda _: Full())
    with pytest.raises(InputError, match=r"No space left on device.* TMPDIR"):
        StoredGroups([PAIR])


def is_mapped(array: Any) -> bool:
    """Whether an array is a view of a mapped file."""
    return isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and is_mapped(array.base))


def test_token_ids_of_a_large_set_are_in_a_mapped_file(limit: int) -> None:
    """They are the same, may be written to, and of a small set they stay as they are."""
    groups = [
        TokenizedGroup(
            np.array([1, 2], np.int32), (np.array([3], np.int32), np.array([4, 5, 6], np.int32)), ()
        ),
        TokenizedGroup(np.array([7], np.int32), (), (), row=9),
    ]
    kept = with_mapped_tokens(iter(groups))
    assert [group.prompt.tolist() for group in kept] == [[1, 2], [7]]
    assert [[ids.tolist() for ids in group.responses] for group in kept] == [[[3], [4, 5, 6]], []]
    assert kept[1].row == 9
    assert is_mapped(kept[0].responses[1]) == (limit == 0)
    kept[0].prompt[0] = 8
    assert kept[0].prompt.tolist() == [8, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet"])
def test_rows_are_the_same_each_time_they_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gives its rows, and slices of them, as often as asked, over the borders of its batches."""
    monkeypatch.setattr(sources, "BATCH_ROWS", 2)
    path = write(tmp_path / name, pairs(8))
    rows = read_rows(path)
    assert len(rows) == 8
    assert list(rows) == list(rows) == pairs(8)
    assert list(read_rows(path, "train[1:7]").sliced("1", "-1")) == pairs(8)[2:6]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """Rows that were counted and are others when they are read are refused."""
    path = write(tmp_path / "a.jsonl", pairs(2))
    rows = read_rows(path)
    write(path, pairs(3))
    with pytest.raises(InputError, match=r"a\.jsonl: the file was changed while it was read"):
        list(rows)


@pytest.fixture
def most_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The most rows of JSON Lines that were there at once."""

    class Row(dict[str, Any]):
        """Can be referred to weakly, as a dict cannot."""

    found: list[ref[Row]] = []
    counts: list[int] = []
    parse = sources._parse

    def counted(data: bytes, where: str) -> Row:
        row = Row(parse(data, where))
        found[:] = [other for other in found if other() is not None] + [ref(row)]
        counts.append(len(found))
        return row

    monkeypatch.setattr(sources, "_parse", counted)
    return lambda: max(counts)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_rows_become_groups_one_by_one(name: str, tmp_path: Path, most_rows: Callable[[], int]) -> None:
    """A source of 200 rows never has more than 3 of them in memory."""
    loaded = load_groups(write(tmp_path / name, pairs(200)))
    assert [group.prompt for group in loaded.groups] == [f"p{number}" for number in range(200)]
    assert most_rows() <= 3


def helpsteer(prompts: list[str]) -> list[dict[str, Any]]:
    """Rows that are joined by prompt."""
    return [
        {"prompt": prompt, "response": f"r{number}", "helpfulness": number, "coherence": 1}
        for number, prompt in enumerate(prompts)
    ]


def test_rows_that_are_joined_wait_for_their_prompt_alone(
    tmp_path: Path, most_rows: Callable[[], int]
) -> None:
    """Where rows of a prompt are neighbours, its rows alone are in memory, and 2 that come and go."""
    rows = helpsteer([f"p{number // 2}" for number in range(100)])
    loaded = load_groups(write(tmp_path / "a.jsonl", rows))
    assert [len(group.responses) for group in loaded.groups] == [2] * 50
    assert most_rows() <= 4


def test_rows_that_are_joined_keep_the_order_of_their_first() -> None:
    """However rows of several prompts mix, a group stands where its first row does."""
    loaded = load_groups(helpsteer(["a", "b", "b", "c", "a", "c", "b"]))
    found = [
        (group.prompt[0]["content"], group.row, [each.content[0]["content"] for each in group.responses])
        for group in loaded.groups
    ]
    assert found == [("a", 0, ["r0", "r4"]), ("b", 1, ["r1", "r2", "r6"]), ("c", 3, ["r3", "r5"])]
    assert loaded.report.rows == 3


def test_groups_become_tokens_a_call_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 groups no more are in memory than go to the tokenizer at once, twice."""

    class Columns(dict[str, Any]):
        """Can be referred to weakly, as a dict cannot."""

    found: list[ref[Columns]] = []
    counts: list[int] = []
    read = stored._GroupFile.read

    def counted(file: stored._GroupFile, start: int, row: int) -> Group:
        columns = Columns()
        found[:] = [other for other in found if other() is not None] + [ref(columns)]
        counts.append(len(found))
        return replace(read(file, start, row), columns=columns)

    loaded = load_groups(write(tmp_path / "a.jsonl", pairs(100)))
    monkeypatch.setattr(stored._GroupFile, "read", counted)
    monkeypatch.setattr(tokenization, "GROUPS_PER_CALL", 10)
    core = Tokenizer(models.WordLevel({"x": 0, "e": 1}, unk_token="x"))
    tokenized = tokenization.tokenize_groups(
        loaded.groups, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="e")
    )
    assert [group.prompt.tolist() for group in tokenized] == [[0]] * 100
    assert 10 <= max(counts) <= 20
