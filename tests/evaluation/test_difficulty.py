"""Which difficulty belongs to which verdict."""

import json
from pathlib import Path

import pytest

from preftune.errors import InputError
from preftune.evaluation.alpaca_eval.difficulty import match, read_difficulty
from preftune.evaluation.verdicts import Comparison, Recording

INDEXED = "index,instruction_difficulty\n2,0.3\n0,0.1\n1,0.2\n3,0.4\n"
GAMED = (
    "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    "verbose,0,0.8,-1,0.1,False\nverbose,1,0.6,-2,0.2,False\n"
    "concise,0,0.2,1,0.1,False\nconcise,1,0.4,2,0.2,False\n"
)
OUTPUTS = [{"instruction": name, "output": name * (place + 3)} for place, name in enumerate("abcd")]
"""Outputs of 3, 4, 5 and 6 characters."""


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Difficulties 0.1 to 0.4 by index, in a jumbled file."""
    (tmp_path / "difficulty.csv").write_text(INDEXED, encoding="utf-8")
    return tmp_path / "difficulty.csv"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """The evaluation set with the baseline's outputs."""
    (tmp_path / "outputs.json").write_text(json.dumps(OUTPUTS), encoding="utf-8")
    return tmp_path / "outputs.json"


def recording(questions: str, lengths: tuple[int, ...] = (), named: bool = True) -> Recording:
    """Verdicts on questions of one letter each."""
    verdicts = [
        Comparison(question, 1.0, baseline_length=lengths[place] if lengths else None)
        for place, question in enumerate(questions)
    ]
    return Recording("model", "baseline", verdicts, "file", named=named)


def test_by_instruction_whatever_the_order(indexed: Path, outputs: Path) -> None:
    """Question d comes first and b is missing: each verdict has its own difficulty."""
    found = match(read_difficulty(indexed, outputs), recording("dac"))
    assert (found.values.tolist(), found.by, found.warning) == ([0.4, 0.1, 0.3], "instruction", "")


def test_by_the_instructions_of_the_difficulty_file(tmp_path: Path) -> None:
    """A column of instructions needs no evaluation set."""
    file = tmp_path / "named.csv"
    file.write_text("instruction,instruction_difficulty\nb,2\na,1\n", encoding="utf-8")
    found = match(read_difficulty(file), recording("ab"))
    assert (found.values.tolist(), found.by) == ([1, 2], "instruction")


def test_by_length_where_the_file_names_no_prompt(indexed: Path, outputs: Path) -> None:
    """The baseline's lengths 3, 5, 6 tell that the second row is missing."""
    found = match(read_difficulty(indexed, outputs), recording("012", (3, 5, 6), named=False))
    assert (found.values.tolist(), found.by) == ([0.1, 0.3, 0.4], "length")


def test_by_position_where_nothing_else_tells(indexed: Path, outputs: Path) -> None:
    """The rows after the missing one have their neighbour's difficulty, and a warning says so.

    Verdicts that name their instructions are warned of even where none is missing: the order may differ.
    """
    found = match(read_difficulty(indexed), recording("012", (3, 5, 6), named=False))
    assert (found.values.tolist(), found.by) == ([0.1, 0.2, 0.3], "position")
    assert "3 of 4 instructions" in found.warning
    for named in ("acd", "abcd"):
        assert "--instructions FILE matches them" in match(read_difficulty(indexed), recording(named)).warning
    asked = match(read_difficulty(indexed, outputs), recording("acd"), by_position=True)
    assert (asked.values.tolist(), asked.by, asked.warning) == ([0.1, 0.2, 0.3], "position", "")


def test_regulariser_rows_are_read_where_they_are(tmp_path: Path, indexed: Path) -> None:
    """Upstream's table has one row for each variant of the baseline, and difficulties once each."""
    file = tmp_path / "gamed.csv"
    file.write_text(GAMED, encoding="utf-8")
    found = read_difficulty(file)
    assert found.values.tolist() == [0.1, 0.2]
    assert found.regulariser is not None
    assert found.regulariser.preference.tolist() == [0.8, 0.6, 0.2, 0.4]
    assert found.regulariser.length.tolist() == [-1, -2, 1, 2]
    assert found.regulariser.difficulty.tolist() == [0.1, 0.2, 0.1, 0.2]
    assert read_difficulty(indexed).regulariser is None


def test_what_does_not_belong_together_is_an_error(tmp_path: Path, indexed: Path, outputs: Path) -> None:
    """Unknown instructions, too many rows, a set of another size, missing columns and words for numbers."""
    with pytest.raises(InputError, match="no difficulty for 1 instructions, such as 'z'"):
        match(read_difficulty(indexed, outputs), recording("az"))
    with pytest.raises(InputError, match="5 verdicts, and only 4 difficulties"):
        match(read_difficulty(indexed), recording("abcde"))
    outputs.write_text(json.dumps(OUTPUTS[:2]), encoding="utf-8")
    with pytest.raises(InputError, match=r"2 instructions, and .* has 4 difficulties"):
        read_difficulty(indexed, outputs)
    other = tmp_path / "other.csv"
    other.write_text("index,hardness\n0,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="add instruction_difficulty and either"):
        read_difficulty(other)
    other.write_text("index,instruction_difficulty\n0,hard\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: instruction_difficulty = 'hard'"):
        read_difficulty(other)
