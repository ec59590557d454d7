"""Rows that are finished before their output: what is read back, and what is not."""

import hashlib
import json
import logging
from datetime import date
from pathlib import Path

import pytest

from preftune.errors import InputError
from preftune.storage.shards import Shards, refuse_existing, write_joined

KEY = "0123456789ab"


def test_rows_of_all_processes_are_read_and_the_last_of_an_index_counts(tmp_path: Path) -> None:
    """Two processes' rows come in order of their index, and one that was made again replaces the first."""
    Shards(tmp_path / "out.jsonl", KEY).append({2: "c", 0: 0.1}, rank=1)
    Shards(tmp_path / "out.jsonl", KEY).append({1: {"day": date(2026, 1, 2)}})
    Shards(tmp_path / "out.jsonl", KEY).append({0: "a"}, rank=1)
    assert Shards(tmp_path / "out.jsonl", KEY).in_order(3) == ["a", {"day": "2026-01-02"}, "c"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"out.jsonl.{KEY}.0.part",
        f"out.jsonl.{KEY}.1.part",
    ]


def test_a_line_is_a_hash_before_index_and_row(tmp_path: Path) -> None:
    """The file can be read without preftune: sha256 of the JSON behind it, cut to 16 characters."""
    shards = Shards(tmp_path / "out.jsonl", KEY)
    shards.append({7: [1.5, "é"]})
    content = json.dumps([7, [1.5, "é"]])
    (file,) = tmp_path.iterdir()
    assert file.read_text() == f"{hashlib.sha256(content.encode()).hexdigest()[:16]} {content}\n"


def test_another_key_or_output_is_never_read(tmp_path: Path) -> None:
    """Of another content, and of a file whose name begins or ends alike."""
    Shards(tmp_path / "out.jsonl", KEY).append({0: "a"})
    for name, key in (("out.jsonl", "ba9876543210"), ("out", KEY), ("about.jsonl", KEY)):
        assert Shards(tmp_path / name, key).rows() == {}


@pytest.mark.parametrize("size", [-1, -3, -20])
def test_a_cut_line_is_missing_and_the_next_one_is_not(tmp_path: Path, size: int) -> None:
    """A process that died while it wrote loses the row, or its end of line; what is added later is whole."""
    shards = Shards(tmp_path / "out.jsonl", KEY)
    shards.append({0: "first", 1: "second"})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    shards.append({2: "third"})
    found = shards.rows()
    assert found == {0: "first", 2: "third"} | ({1: "second"} if size == -1 else {})
    if size != -1:
        with pytest.raises(InputError, match=r"out.jsonl: row 1 is missing or damaged"):
            shards.in_order(3)


def test_a_damaged_row_is_named_once_and_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A word changed in a line that is still JSON is found by its hash; reading again says nothing new."""
    shards = Shards(tmp_path / "out.jsonl", KEY)
    shards.append({0: "rain", 1: "bread"})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().replace(b"rain", b"pain"))
    with caplog.at_level(logging.WARNING):
        assert shards.rows() == shards.rows() == {1: "bread"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is damaged: 1 of its lines are redone"
    ]


def test_a_file_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """The error has the file and the reason."""
    (tmp_path / f"out.jsonl.{KEY}.0.part").mkdir()
    with pytest.raises(InputError, match=r"out.jsonl.*cannot be written: Is a directory.*is kept"):
        Shards(tmp_path / "out.jsonl", KEY).append({0: "a"})


def test_an_output_takes_its_shards_along_and_no_others(tmp_path: Path) -> None:
    """What is joined goes; another key's stays, also when the file that is there is refused."""
    output = tmp_path / "out.jsonl"
    own, other = Shards(output, KEY), Shards(output, "ba9876543210")
    own.append({0: "a"})
    other.append({0: "b"})
    refuse_existing(output)
    write_joined(output, "a\n", [own])
    with pytest.raises(InputError, match=r"--output .*out.jsonl exists; move it"):
        refuse_existing(output)
    assert output.read_text() == "a\n"
    assert own.rows() == {}
    assert other.rows() == {0: "b"}
    assert len(list(tmp_path.iterdir())) == 2
