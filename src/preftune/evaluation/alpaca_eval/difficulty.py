"""How hard each instruction of AlpacaEval is, as fitted over many models, and to which verdict it belongs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.evaluation.files import read_objects, read_text, require
from preftune.evaluation.length_control import Regulariser
from preftune.evaluation.verdicts import Comparison, Recording

VALUE = "instruction_difficulty"
REGULARISER = ("preference", "std_delta_len")

INSTRUCTION = "instruction"
LENGTH = "length"
POSITION = "position"


@dataclass(frozen=True)
class Difficulty:
    """Difficulties in the order of the evaluation set.

    Attributes:
        values: one an instruction.
        regulariser: rows about the baseline alone; None if the file has none.
        instructions: their texts; empty if they are not known.
        lengths: characters of the baseline's outputs to them; empty if they are not known.
    """

    values: Float64[np.ndarray, "instructions"]
    regulariser: Regulariser | None = None
    instructions: Sequence[str] = ()
    lengths: Sequence[int] = ()


@dataclass(frozen=True)
class Matched:
    """Difficulties of the verdicts of a file.

    Attributes:
        values: one a verdict.
        by: what matched them: instruction, length (of the baseline's outputs), or position.
        warning: what may be wrong; empty if nothing is.
    """

    values: Float64[np.ndarray, "verdicts"]
    by: str
    warning: str = ""


def read_difficulty(path: Path, instructions: Path | None = None) -> Difficulty:
    """Read a CSV file of difficulties, upstream's `df_gamed.csv` or any with `instruction_difficulty`.

    Args:
        path: with a column `instruction` or `index`. Columns `preference` and `std_delta_len` make each row
            a regulariser row too.
        instructions: the evaluation set in its order: a JSON list with `instruction`, and with `output` if it
            is the baseline's.

    Raises:
        InputError: a column is missing, a value is no number, or the two files differ in length.
    """
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    columns = set(rows[0]) if rows else set()
    key = INSTRUCTION if INSTRUCTION in columns else "index" if "index" in columns else ""
    if VALUE not in columns or not key:
        raise InputError(
            f"{path} has {', '.join(sorted(columns)) or 'no columns'}: add {VALUE} and either instruction or "
            "index"
        )
    numbers = {
        name: np.array([_number(path, line, name, row[name]) for line, row in enumerate(rows, 2)])
        for name in (VALUE, *REGULARISER)
        if name in columns
    }
    first = {row[key]: place for place, row in reversed(list(enumerate(rows)))}
    places, texts = sorted(first.values()), []
    if key == INSTRUCTION:
        texts = [rows[place][INSTRUCTION] for place in places]
    else:
        places.sort(key=lambda place: _number(path, place + 2, key, rows[place][key]))
    lengths: list[int] = []
    if instructions is not None:
        known = read_objects(instructions)
        for row in known:
            require(instructions, row, ("instruction",), "an evaluation set")
        if texts and set(texts) != {row["instruction"] for row in known}:
            raise InputError(
                f"{instructions} has other instructions than {path}: give the set it was fitted on"
            )
        if len(known) != len(places):
            raise InputError(
                f"{instructions}: {len(known)} instructions, and {path} has {len(places)} difficulties: give "
                "the evaluation set whole and in its order"
            )
        texts = texts or [row["instruction"] for row in known]
        if all(isinstance(row.get("output"), str) for row in known):
            by_text = {row["instruction"]: len(row["output"]) for row in known}
            lengths = [by_text[text] for text in texts]
    regulariser = None
    if len(numbers) == 3:
        regulariser = Regulariser(*(numbers[name] for name in (*REGULARISER, VALUE)))
    return Difficulty(numbers[VALUE][places], regulariser, texts, lengths)


def match(difficulty: Difficulty, recording: Recording, by_position: bool = False) -> Matched:
    """Find the difficulty that belongs to each verdict.

    By the instruction where file and difficulties name it; else by the baseline's lengths, where they are
    known and the file's are a part of them; else by position. Upstream always goes by position, so that after
    a missing row every difficulty is the next instruction's.

    Raises:
        InputError: an instruction has no difficulty, or there are more verdicts than difficulties.
    """
    verdicts = recording.comparisons
    if difficulty.instructions and recording.named and not by_position:
        places = {text: place for place, text in enumerate(difficulty.instructions)}
        unknown = [verdict.question for verdict in verdicts if verdict.question not in places]
        if unknown:
            raise InputError(
                f"{recording.source}: no difficulty for {len(unknown)} instructions, such as "
                f"{unknown[0][:80]!r}: give the difficulty of this evaluation set, or none"
            )
        return Matched(difficulty.values[[places[verdict.question] for verdict in verdicts]], INSTRUCTION)
    if difficulty.lengths and not recording.named and not by_position:
        aligned = _align(verdicts, difficulty.lengths)
        if aligned is not None:
            return Matched(difficulty.values[aligned], LENGTH)
    if len(verdicts) > len(difficulty.values):
        raise InputError(
            f"{recording.source}: {len(verdicts)} verdicts, and only {len(difficulty.values)} difficulties: "
            "give the difficulty of this evaluation set, or none"
        )
    warning = ""
    if recording.named and not by_position:
        warning = (
            "difficulties are matched by row number, as upstream does, which is wrong if rows are missing or "
            "in another order: --instructions FILE matches them by the instructions' text"
        )
    elif len(verdicts) < len(difficulty.values) and not by_position:
        warning = (
            f"{len(verdicts)} of {len(difficulty.values)} instructions, and nothing says which: difficulties "
            "go by position, as upstream's do, and are another instruction's where a row is missing before; "
            "--instructions with the baseline's outputs would tell"
        )
    return Matched(difficulty.values[: len(verdicts)], POSITION, warning)


def _align(verdicts: Sequence[Comparison], lengths: Sequence[int]) -> list[int] | None:
    """Places in the evaluation set, if the verdicts' baseline lengths are a subsequence of its own."""
    places = []
    ahead = iter(enumerate(lengths))
    for verdict in verdicts:
        found = next((place for place, length in ahead if length == verdict.baseline_length), None)
        if found is None:
            return None
        places.append(found)
    return places


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{path} line {line}: {name} = {text!r}: must be a number")
    return value
