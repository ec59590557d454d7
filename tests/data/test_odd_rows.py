"""Odd rows of every layout: what is trained is right, or counted as dropped, or there is one clear error."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerBase

from preftune.data import load_groups, tokenize_groups
from preftune.errors import InputError, NothingLeftError

from .odd_rows import LAYOUTS, PLAIN, Case, layout_case, layout_cases, odd_cases


def check(case: Case, tokenizer: PreTrainedTokenizerBase, source: Any = None) -> None:
    """Load and tokenize the case, and compare with what it expects."""
    rows = case.rows if source is None else source
    if case.error:
        with pytest.raises(InputError, match=case.error):
            _read(case, rows, tokenizer)
        return
    try:
        tokenized, report = _read(case, rows, tokenizer)
    except NothingLeftError as error:
        assert case.dropped, error
        assert f"{case.dropped}: 1 rows dropped" in str(error)
        return
    if case.dropped:
        assert report.counts[case.dropped, "drop"] == 1
        assert len(tokenized) == len(case.rows) - 1
        return
    group = tokenized[-1]
    assert tokenizer.decode(group.prompt) == case.prompt
    masks = group.trained or [slice(None)] * len(group.responses)
    trained = tuple(tokenizer.decode(ids[mask]) for ids, mask in zip(group.responses, masks, strict=True))
    assert trained == case.trained
    assert [pair.chosen for pair in group.pairs] == ([] if case.chosen is None else [case.chosen])


def _read(case: Case, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    loaded = load_groups(rows, asked=case.asked)
    pairs = case.asked.needs_pairs
    return tokenize_groups(loaded.groups, tokenizer, report=loaded.report, needs_pairs=pairs), loaded.report


@pytest.mark.parametrize("case", list(layout_cases()), ids=lambda case: case.name)
def test_layouts_with_odd_texts(case: Case, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever the texts hold, the prompt is what was asked, and what is trained is what was answered."""
    check(case, smollm2_tokenizer)


@pytest.mark.parametrize("case", list(odd_cases()), ids=lambda case: case.name)
def test_odd_rows(case: Case, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """What is trained is right, or the row is counted as dropped, or one error says what is wrong and where."""
    check(case, smollm2_tokenizer)


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
    "a.csv": lambda row: _table(row, ","),
    "a.tsv": lambda row: _table(row, "\t"),
    "a.parquet": _parquet,
    "cells.parquet": lambda row: _parquet({name: _cell(value) for name, value in row.items()}),
    "a.jsonl.zst": lambda row: _zst(json.dumps(row).encode()),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("file", FILES)
def test_layouts_in_files(
    name: str, file: str, smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A row is the same in a table, where lists and messages are written as JSON text."""
    case = layout_case(name, PLAIN)
    (tmp_path / file).write_bytes(FILES[file](case.rows[0]))
    check(case, smollm2_tokenizer, tmp_path / file)
