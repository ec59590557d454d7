"""Odd rows of every layout: what is trained is right, or counted as dropped, or there is one clear error."""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerBase

from preftune.data import Asked, RowReport, TokenizedGroup, load_groups, tokenize_groups
from preftune.errors import InputError, NothingLeftError

from .odd_rows import (
    END,
    LABELS,
    LAYOUTS,
    NEITHER,
    PLAIN,
    PRIOR,
    Case,
    layout_case,
    layout_cases,
    odd_cases,
)


def check(case: Case, tokenizer: PreTrainedTokenizerBase, source: Any = None) -> None:
    """Load and tokenize the case, and compare with what it expects."""
    source = case.rows if source is None else source
    if case.error or (case.dropped and len(case.rows) == 1):
        error, words = (
            (InputError, case.error) if case.error else (NothingLeftError, f"{case.dropped}: 1 row")
        )
        with pytest.raises(error, match=words):
            read(case, source, tokenizer)
        return
    groups, report = read(case, source, tokenizer)
    if case.dropped:
        assert (report.dropped, report.counts[case.dropped, "drop"]) == (1, 1)
        assert len(groups) == len(case.rows) - 1
        return
    compare(case, groups[-1], tokenizer)


def compare(case: Case, group: TokenizedGroup, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokens of a row with what the case expects."""
    assert (case.name, tokenizer.decode(group.prompt)) == (case.name, case.prompt)
    assert (case.name, trained_texts(group, tokenizer)) == (case.name, case.trained)
    assert [pair.chosen for pair in group.pairs] == ([] if case.chosen is None else [case.chosen])


def read(
    case: Case, source: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedGroup], RowReport]:
    """The case's rows as tokens, and what was counted."""
    loaded = load_groups(source, asked=case.asked)
    pairs = case.asked.needs_pairs
    groups = tokenize_groups(loaded.groups, tokenizer, report=loaded.report, needs_pairs=pairs)
    return groups, loaded.report


def trained_tokens(group: TokenizedGroup) -> list[list[int]]:
    """The trained token ids of each response."""
    masks = group.trained or [np.ones(len(ids), dtype=bool) for ids in group.responses]
    return [ids[mask].tolist() for ids, mask in zip(group.responses, masks, strict=True)]


def trained_texts(group: TokenizedGroup, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of the trained tokens of each response."""
    return tuple(tokenizer.decode(ids) for ids in trained_tokens(group))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_with_odd_texts(name: str, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever the texts hold, the prompt is what was asked, and what is trained is what was answered."""
    cases = layout_cases(name)
    together = replace(cases[0], rows=[row for case in cases for row in case.rows])
    groups, _ = read(together, together.rows, smollm2_tokenizer)
    for case, group in zip(cases, groups, strict=True):
        compare(case, group, smollm2_tokenizer)
    for case in cases:
        if "JSON list" in case.name:
            check(case, smollm2_tokenizer)  # what all rows of a source look like is no chance


@pytest.mark.parametrize("case", list(odd_cases()), ids=lambda case: case.name)
def test_odd_rows(case: Case, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """What is trained is right, or the row is counted as dropped, or one error says what is wrong where."""
    check(case, smollm2_tokenizer)


VALUES: list[Any] = [
    *(None, 5, -1.5, True, float("nan"), 10**400, Decimal("sNaN"), "", "[", "{}", "[]", "\x00", "\ud800"),
    *('[{"role": "user"}]', "system", [], {}, [None], [[]], [[["a"]]], {"role": 5}, {"a": {"b": [1]}}),
    *({"from": "gpt", "value": None}, ("a",), {1, 2}, b"x", object(), np.array([1, 2])),
]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a row."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*place, key))


def with_value(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """The row with another value at a place."""
    if not place:
        return new
    changed = with_value(value[place[0]], place[1:], new)
    if isinstance(value, dict):
        return {**value, place[0]: changed}
    return [changed if number == place[0] else item for number, item in enumerate(value)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_value_gives_a_traceback(name: str, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Any value at any place of a row is trained, dropped or refused by an error of ours."""
    chance = random.Random(name)
    case = layout_case(name, PLAIN)
    beside = {"tools": [{"name": "add", "parameters": {}}], "system": "S", "history": [["a", "b"]]}
    row = case.rows[0] | beside
    for place in places(row):
        changed = with_value(row, place, chance.choice(VALUES))
        with suppress(InputError):
            read(case, [row, changed], smollm2_tokenizer)


# --- files ---


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _table(row: dict[str, Any], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([row.keys(), [_cell(value) for value in row.values()]])
    return text.getvalue().encode()


def _zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def _parquet(row: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    datasets.Dataset.from_list([row]).to_parquet(sink)
    return sink.getvalue()


FILES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "a.tsv.gz": lambda row: gzip.compress(_table(row, "\t")),
    "a.parquet": _parquet,
    "cells.parquet": lambda row: _parquet({name: _cell(value) for name, value in row.items()}),
    "a.jsonl.zst": lambda row: _zst(json.dumps(row).encode()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_in_files(name: str, smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A row is the same in every kind of file; tables have lists and messages as JSON text."""
    case = layout_case(name, PLAIN)
    for file, written in FILES.items():
        (tmp_path / file).write_bytes(written(case.rows[0]))
        check(replace(case, name=file), smollm2_tokenizer, tmp_path / file)


def test_numbers_in_tables_stay_text(smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Texts of a CSV file that look like numbers are texts, in mapped columns and in those of layouts."""
    for header, asked in {
        "frage,gut,schlecht": Asked(mapping={"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}),
        "prompt,chosen,rejected": Asked(),
    }.items():
        (tmp_path / "a.csv").write_text(f"{header}\n007,1e3,2024-01-01\n")
        case = Case(header, [{}], asked, "007", (f"1e3{END}", f"2024-01-01{END}"), chosen=0)
        check(case, smollm2_tokenizer, tmp_path / "a.csv")


# --- folders and slices ---

TEN = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(10)]


def json_lines(*rows: dict[str, Any]) -> bytes:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def folder(path: Path, files: dict[str, Any]) -> Path:
    """A folder with files, of rows where they are numbers of `TEN`."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [TEN[number] for number in content] if isinstance(content, range) else []
        (path / name).write_bytes(content.encode() if isinstance(content, str) else json_lines(*rows))
    return path


def card(configs: str) -> str:
    """A README that lists configurations."""
    return f"---\nconfigs:\n{configs}---\n# A set\n"


DEFAULT = card("- config_name: default\n  data_files:\n  - split: train\n    path: {path}\n")
TWO = card(
    "- config_name: a\n  data_files: a/*\n- config_name: b\n  data_dir: b\n- config_name: c\n  data_dir: c\n"
)


@pytest.mark.parametrize(
    ("files", "where", "split", "read"),
    [
        ({"train_prefs.jsonl": range(3), "train_sft.jsonl": range(5)}, "", "train_prefs", range(3)),
        (
            {"train_prefs.jsonl": range(3), "train_sft.jsonl": range(5)},
            "",
            "train",
            "split=train: .*train_sft",
        ),
        (
            {"evaluation.jsonl": range(3), "pairs.jsonl": range(5)},
            "",
            "train",
            r"pairs\.jsonl speaks of no split",
        ),
        ({"evaluation.jsonl": range(3), "pairs.jsonl": range(5)}, "pairs.jsonl", "train", range(5)),
        (
            {"README.md": DEFAULT.format(path="d/*"), "d/x.jsonl": range(2), "y.jsonl": range(5)},
            "",
            "train",
            range(2),
        ),
        ({"README.md": DEFAULT.format(path="d"), "d/x.jsonl": range(2)}, "", "train", range(2)),
        (
            {"README.md": DEFAULT.format(path="e/*"), "d/x.jsonl": range(2)},
            "",
            "train",
            r"path=e/\*: .* no such file",
        ),
        ({"README.md": DEFAULT.format(path="/etc/*"), "x.jsonl": range(2)}, "", "train", r"path=/etc/\*: "),
        (
            {"README.md": DEFAULT.format(path="''"), "x.jsonl": range(2)},
            "",
            "train",
            r"path=: .* no such file",
        ),
        (
            {"README.md": DEFAULT.format(path="d/*"), "d/x.jsonl": range(2)},
            "",
            "test",
            "split=test: .*found: train",
        ),
        (
            {"README.md": "---\n: [\n---\n", "x.jsonl": range(2)},
            "",
            "train",
            r"README\.md: .* not valid YAML",
        ),
        ({"README.md": "---\nconfigs: 5\n---\n", "x.jsonl": range(2)}, "", "train", range(2)),
        ({"README.md": "no front matter", "x.jsonl": range(2)}, "", "train", range(2)),
        ({"README.md": TWO, "a/x.jsonl": range(2), "b/x.jsonl": range(3)}, ":a", "train", range(2)),
        ({"README.md": TWO, "a/x.jsonl": range(2), "b/x.jsonl": range(3)}, ":b", "train", range(3)),
        (
            {"README.md": TWO, "a/x.jsonl": range(2), "b/x.jsonl": range(3)},
            ":c",
            "train",
            "/c: the folder has no",
        ),
        ({"README.md": TWO, "a/x.jsonl": range(2)}, ":d", "train", "lists 3 configurations, not 'd'"),
        ({"README.md": TWO, "a/x.jsonl": range(2)}, "", "train", "lists 3 configurations"),
        ({"x.jsonl": range(2)}, ":a", "train", "the card lists none, not 'a'"),
        ({"x.jsonl": range(10)}, "", "train[10%:20%]", range(1, 2)),
        ({"x.jsonl": range(4), "y.jsonl": range(4, 10)}, "", "train[3:6]", range(3, 6)),
        ({"x.jsonl": range(10)}, "x.jsonl", "train[-2:]", range(8, 10)),
        ({"x.jsonl": range(10)}, "x.jsonl", "train[:999]", range(10)),
        ({"x.jsonl": range(10)}, "x.jsonl", "train[5:2]", "has no rows"),
        ({"x.jsonl": range(10)}, "x.jsonl", "train[20:30]", "has no rows"),
        ({"x.jsonl": range(10)}, "x.jsonl", "train[5]", r"split=train\[5\]: this is no slice"),
        ({"x.jsonl": range(10)}, "x.jsonl", "train[a:b]", r"this is no slice"),
        ({"x.csv": "prompt,chosen,chosen\na,b,c\n"}, "", "train", "the header has 'chosen' twice"),
        ({"x.csv": "prompt,chosen,rejected\n"}, "", "train", "has no rows"),
        ({"x.csv": "prompt,chosen,rejected\na,b\n"}, "", "train", "not a valid UTF-8 CSV"),
        ({"x.csv": ""}, "", "train", "not a valid UTF-8 CSV"),
        ({"x.jsonl": '{"score": ' + "9" * 5000 + "}"}, "", "train", "line 1: the JSON cannot be read"),
        ({"x.jsonl": "[" * 100000}, "", "train", "the JSON cannot be read"),
        ({"x.jsonl.zst": "no zst"}, "", "train", r"x\.jsonl\.zst: the compressed file is damaged"),
        ({"x.csv.zst": "no zst"}, "", "train", r"x\.csv\.zst: not a valid"),
        ({"x.tsv.gz": "no gz"}, "", "train", r"x\.tsv\.gz: not a valid"),
        ({"x.parquet": "no Parquet"}, "", "train", r"x\.parquet: not a valid Parquet"),
    ],
)
def test_folders(files: dict[str, Any], where: str, split: str, read: range | str, tmp_path: Path) -> None:
    """The rows of the split asked for are read, and no others; or an error says what to give."""
    source = folder(tmp_path, files)
    source = f"{source}{where}" if where.startswith(":") else source / where
    if isinstance(read, str):
        with pytest.raises(InputError, match=read):
            load_groups(source, split=split)
        return
    loaded = load_groups(source, split=split)
    assert [group.prompt for group in loaded.groups] == [f"{number}?" for number in read]


def test_slices_of_a_dataset() -> None:
    """A slice beyond the end of a Dataset has no rows, as one of a file."""
    dataset = datasets.Dataset.from_list(TEN)
    assert [group.prompt for group in load_groups(dataset, split="train[90%:]").groups] == ["9?"]
    with pytest.raises(InputError, match="has no rows"):
        load_groups(dataset, split="train[20:30]")


# --- real files ---

PREFERENCES = Path(__file__).parents[3] / "shared" / "fixtures" / "preferences"
"""Published files, which the project does not have itself."""

REAL: dict[str, tuple[int, Asked, str]] = {
    "hh_harmless_test.jsonl.gz": (1996, Asked(), "what the responses begin with"),
    "alpaca_graded.jsonl.gz": (691, PRIOR, "`prompt`"),
    "llama_factory/dpo_en_demo.json": (300, Asked(), "`conversations`"),
    "llama_factory/kto_en_demo.json": (300, LABELS, "the messages before the last of the model"),
    "llama_factory/v1_dpo_demo.jsonl": (10, Asked(), "what the responses begin with"),
    "llama_factory/glaive_toolcall_20.json": (20, NEITHER, "the messages before the last of the model"),
}
"""Groups, what is asked for, and what is read as the prompt."""


@pytest.mark.skipif(not PREFERENCES.is_dir(), reason=f"{PREFERENCES} is absent")
@pytest.mark.parametrize("name", REAL)
def test_published_files(name: str) -> None:
    """Published files are read as they are, and each response follows a question."""
    groups, asked, prompt = REAL[name]
    loaded = load_groups(PREFERENCES / name, asked=asked)
    assert len(loaded.groups) == groups
    assert f"prompt: {prompt};" in loaded.read_as
    assert loaded.unused_columns == (("models",) if "alpaca" in name else ())
    for group in loaded.groups:
        if not isinstance(group.prompt, str):
            assert group.prompt[-1]["role"] in ("user", "tool")
            assert all(response.content[0]["role"] == "assistant" for response in group.responses)


# --- the table of docs/data.md ---

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
HEAD = "| layout | example row | prompt | chosen | trained tokens of chosen |\n|---|---|---|---|---|\n"


def as_code(text: Any) -> str:
    """Text in backticks, on one line of a table."""
    shown = str(text).replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`"


def shown_text(content: Any) -> str:
    """Text, or each message, as a cell of the table."""
    if isinstance(content, str):
        return as_code(content)
    return " ".join(as_code(f"{turn['role']}: {turn['content']}") for turn in content)


def table_line(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What becomes of a plain row of a layout."""
    case = layout_case(name, PLAIN)
    (group,) = load_groups(case.rows, asked=case.asked).groups
    (tokenized,) = tokenize_groups([group], tokenizer)
    mapping = [f"data.columns.{key}={value}" for key, value in (case.asked.mapping or {}).items()]
    chosen = case.chosen or 0
    tokens = " ".join(as_code(tokenizer.decode([token])) for token in trained_tokens(tokenized)[chosen])
    cells = [
        " ".join([name, *(f"`{setting.replace(chr(39), chr(34))}`" for setting in mapping)]),
        as_code(json.dumps(case.rows[0], ensure_ascii=False)),
        shown_text(group.prompt),
        shown_text(group.responses[chosen].content),
        tokens,
    ]
    return f"| {' | '.join(cells)} |\n"


def test_table_of_layouts(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """The page's table is what the code reads; REWRITE_DOCS=1 in the environment writes it anew."""
    table = HEAD + "".join(table_line(name, smollm2_tokenizer) for name in LAYOUTS)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(HEAD.splitlines()[0])
    after = rest.partition("\n\n")[2]
    expected = f"{before}{table}\n{after}"
    if os.environ.get("REWRITE_DOCS") == "1":
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected
