"""Measurements of a data set's responses, written into it as columns that `column:NAME` reads back."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.data import LoadedGroups, load_groups, read_rows
from preftune.errors import InputError
from preftune.rewards.auxiliary import (
    COLUMN_PREFIX,
    OF_EVERY_REWARD,
    AuxiliaryReward,
    resolve_reward,
)
from preftune.rewards.measures import MEASURES
from preftune.rewards.measuring import measure_groups
from preftune.writing import write_whole

logger = logging.getLogger(__name__)

SPECIFICATION = re.compile(r"(?P<measure>.+?)(?::(?P<options>\w+=.*))?", re.DOTALL)


def score_file(
    data: str,
    output: Path,
    specifications: Sequence[str],
    *,
    split: str = "train",
    tokenizer: str | None = None,
    progress: bool = False,
) -> int:
    """Write the rows of a data set with a column of raw measurements for each reward.

    The column has the measure's or the function's name. Pairs get NAME_chosen and NAME_rejected, groups a
    list under NAME, single responses a number.

    Args:
        data: any source that `load_groups` reads.
        output: JSON Lines.
        specifications: `NAME` or `NAME:option=value,option=value`, with a name in `MEASURES` or
            `module:function`.
        split: the split to read.
        tokenizer: folder or hub name, for measures that count tokens.
        progress: show a bar per reward.

    Returns:
        The number of rows written; a row that no group is built from is left out, and the log says why.

    Raises:
        InputError: a specification, the data or the output cannot be used.
    """
    if output.exists():
        raise InputError(f"--output {output} exists; move it, or give another name")
    rewards = _rewards(specifications, tokenizer)
    loaded = load_groups(data, split=split, needs_pairs=False, keep_columns=True)
    table = read_rows(data, split)
    taken = [name for reward in rewards for name in _columns(reward.name, loaded) if name in table.columns]
    if taken:
        raise InputError(f"{data} has the column {taken[0]!r} already: rename or remove it")
    if loaded.report.dropped:
        logger.warning("%s", loaded.report.summary())
    measured = measure_groups(loaded.groups, rewards, loaded.report.locate, progress=progress)
    numbers = {name: iter(values.tolist()) for name, values in measured.measurements.items()}
    rows, lines = list(table), []
    for group in measured.groups:
        row = dict(rows[group.row])
        for name, values in numbers.items():
            row.update(_cells(name, loaded, [next(values) for _ in group.responses]))
        lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    write_whole(output, "".join(lines))
    return len(lines)


def _columns(name: str, loaded: LoadedGroups) -> tuple[str, ...]:
    return (f"{name}_chosen", f"{name}_rejected") if loaded.columns.shape == "pairwise" else (name,)


def _cells(name: str, loaded: LoadedGroups, numbers: list[float]) -> Mapping[str, Any]:
    columns = _columns(name, loaded)
    if len(columns) == 2:
        return dict(zip(columns, numbers, strict=True))
    return {name: numbers if loaded.columns.shape == "groups" else numbers[0]}


# --- what is asked for ---


def _rewards(specifications: Sequence[str], tokenizer: str | None) -> list[AuxiliaryReward]:
    loaded = None
    if tokenizer is not None:
        from preftune.policy import load_tokenizer

        loaded = load_tokenizer(tokenizer)
    rewards: list[AuxiliaryReward] = []
    for specification in specifications:
        source, options = _parse(specification)
        name = source.rpartition(":")[2]
        if name in [reward.name for reward in rewards]:
            raise InputError(f"--reward {specification}: there is a column {name!r} already; measure it once")
        # Only measurements are written, so that it does not matter what is wanted of them.
        settings = {"measure": source, "goal": "maximise", **options}
        rewards.append(resolve_reward(f"--reward {source}", name, settings, loaded))
    return rewards


def _parse(specification: str) -> tuple[str, dict[str, Any]]:
    """A measure and its options, whose values are YAML."""
    match = SPECIFICATION.fullmatch(specification)
    if match is None or match["measure"].startswith(COLUMN_PREFIX):
        raise InputError(
            f"--reward {specification!r} must be a measure or module:function: give one of "
            f"{', '.join(MEASURES)}"
        )
    options = {}
    for part in re.split(r",(?=\w+=)", match["options"] or ""):
        key, _, value = part.partition("=")
        if key in OF_EVERY_REWARD:
            raise InputError(f"--reward {specification}: {key} belongs in a run's configuration; remove it")
        try:
            options.update({key: yaml.safe_load(value)} if key else {})
        except yaml.YAMLError:
            raise InputError(f"--reward {specification}: {value!r} is not YAML; quote it") from None
    return match["measure"], options
