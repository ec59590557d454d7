"""Auxiliary rewards of a data set's groups, and their statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from preftune.data.groups import Group
from preftune.data.rules import shorten, suggest
from preftune.data.stored import StoredGroups
from preftune.errors import InputError
from preftune.rewards.auxiliary import AuxiliaryReward, Where, combine

GROUPS_PER_CALL = 256
"""Groups given to a measure at once: enough for a classifier to sort them by length."""
LARGEST_REWARD = 1e15
"""The sum of its square over many responses fits in float32."""
NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not pass to reward functions, which get them under other names."""


@dataclass(frozen=True)
class Spread:
    """Statistics over all responses; `sd` is the population standard deviation."""

    mean: float
    sd: float
    min: float
    max: float


@dataclass(frozen=True)
class RewardReport:
    """Statistics of the auxiliary rewards on the data.

    Attributes:
        measurements: raw measurements by reward.
        combined: the auxiliary reward R.
        dropped: groups dropped because a reward's column was missing.
    """

    measurements: dict[str, Spread]
    combined: Spread
    dropped: int


@dataclass(frozen=True)
class MeasuredGroups:
    """Groups whose responses have their auxiliary reward R.

    Attributes:
        groups: the measured groups, in order.
        measurements: by reward, the raw measurement of every response of every group, in order.
        report: their statistics.
    """

    groups: StoredGroups
    measurements: dict[str, Float64[np.ndarray, "responses"]]
    report: RewardReport


def measure_groups(
    groups: Sequence[Group],
    rewards: Sequence[AuxiliaryReward],
    locate: Where = "row {}".format,
    missing: str = "error",
    progress: bool = False,
) -> MeasuredGroups:
    """Set `Response.auxiliary` of every response.

    Args:
        groups: with the row's columns, if a reward reads them.
        rewards: at least one.
        locate: names a row for messages, such as `pairs.jsonl row 3`.
        missing: if a group lacks a reward's column, stop with an `error` or `drop` the group.
        progress: show a progress bar.

    Raises:
        InputError: a column is missing from every row, or from some with `error`; a reward does not return a
            finite number for each response; or no group is left.
    """
    kept = _with_columns(groups, rewards, locate, missing)
    measurements = {reward.name: _measurements(kept, reward, locate, progress) for reward in rewards}
    combined = combine(rewards, measurements)
    _check_range(combined, kept, locate)
    totals = iter(combined.tolist())
    return MeasuredGroups(
        StoredGroups(
            replace(group, responses=tuple(replace(r, auxiliary=next(totals)) for r in group.responses))
            for group in kept
        ),
        measurements,
        RewardReport(
            {name: _spread(values) for name, values in measurements.items()},
            _spread(combined),
            len(groups) - len(kept),
        ),
    )


def _check_range(combined: Float64[np.ndarray, "responses"], groups: Sequence[Group], locate: Where) -> None:
    """Check that float32, in which runs compute, holds the rewards."""
    rows = [group.row for group in groups for _ in group.responses]
    for row, total in zip(rows, combined.tolist(), strict=True):
        if not abs(total) < LARGEST_REWARD:
            raise InputError(
                f"{locate(row)}: the weighted sum of the rewards is {total:.4g}, and its size must be below "
                f"{LARGEST_REWARD:g}: lower the weights, or scale the measurements"
            )


def _spread(values: Float64[np.ndarray, "responses"]) -> Spread:
    return Spread(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))


def _measurements(
    groups: Sequence[Group], reward: AuxiliaryReward, locate: Where, progress: bool
) -> Float64[np.ndarray, "responses"]:
    """Measure one reward of every response, some groups at a time."""
    from rich.progress import track

    found: list[float] = []
    starts = range(0, len(groups), GROUPS_PER_CALL)
    for start in track(starts, description=f"Measuring {reward.name}", disable=not progress):
        chunk = groups[start : start + GROUPS_PER_CALL]
        rows = [group.row for group in chunk for _ in group.responses]

        def where(place: int, rows: Sequence[int] = rows) -> str:
            return locate(rows[place])

        found += reward.measurements(
            [group.prompt for group in chunk for _ in group.responses],
            [response.content for group in chunk for response in group.responses],
            _columns(chunk, reward, locate),
            where,
        )
    return np.array(found, dtype=np.float64)


def _columns(groups: Sequence[Group], reward: AuxiliaryReward, locate: Where) -> dict[str, list[Any]]:
    """A value for each response: its number if a column is the reward, else the row's own columns.

    A column may have a value for each response, as `column:NAME` reads it: a list for a group, NAME_chosen
    and NAME_rejected for a pair. Any other value belongs to the row and is the same for all its responses.
    """
    if reward.column:
        return {reward.column: [number for g in groups for number in _numbers(g, reward, locate) or ()]}
    names = dict.fromkeys(name for group in groups for name in group.columns if name not in NOT_COLUMNS)
    found = {name: _values(groups, name) for name in names}
    paired = [name.removesuffix("_chosen") for name in names if name.endswith("_chosen")]
    for name in paired:
        free = name not in names and name not in NOT_COLUMNS and f"{name}_rejected" in names
        if free and all(len(group.responses) == 2 and group.response_columns is None for group in groups):
            found[name] = [group.columns.get(column) for group in groups for column in _of_pair(name)]
    return found


def _values(groups: Sequence[Group], name: str) -> list[Any]:
    """A column's value for each response of the groups."""
    told = all(group.response_columns is not None for group in groups)
    lists = [(group.columns[name], group) for group in groups if group.columns.get(name) is not None]
    fits = any(len(group.responses) > 1 for _, group in lists) and all(
        isinstance(values, list | tuple) and len(values) == len(group.responses) for values, group in lists
    )
    found: list[Any] = []
    for group in groups:
        value, count = group.columns.get(name), len(group.responses)
        own = name in (group.response_columns or ()) if told else fits
        found += value if own and value is not None else [value] * count
    return found


# --- columns of numbers ---


def _with_columns(
    groups: Sequence[Group], rewards: Sequence[AuxiliaryReward], locate: Where, missing: str
) -> StoredGroups:
    """The groups that have the columns of all rewards."""
    kept = StoredGroups.of(groups)
    for reward in rewards:
        if reward.column is None:
            continue
        has_numbers = [_numbers(group, reward, locate) is not None for group in kept]
        having = [place for place, is_there in enumerate(has_numbers) if is_there]
        if has_numbers and not having:
            raise _no_column(groups, reward)
        if len(having) == len(kept):
            continue
        if missing == "error":
            raise InputError(
                f"reward {reward.name!r}: the column {reward.column!r} is missing or null in "
                f"{len(kept) - len(having):,} of {len(kept):,} rows, first in "
                f"{locate(kept[has_numbers.index(False)].row)}: fill it in, or set "
                "data.rules.missing_reward=drop"
            )
        kept = kept.select(having)
    return kept


def _numbers(group: Group, reward: AuxiliaryReward, locate: Where) -> Sequence[Any] | None:
    """A number for each response, None if one is missing; for a pair, chosen comes before rejected.

    Raises:
        InputError: the column's number of values differs from the group's number of responses.
    """
    name, count = str(reward.column), len(group.responses)
    values = group.columns.get(name)
    if values is None and count == 2:
        values = [group.columns.get(column) for column in _of_pair(name)]
    if values is None:
        return None
    if count == 1 and not isinstance(values, list | tuple):
        values = [values]
    if not isinstance(values, list | tuple) or len(values) != count:
        raise InputError(
            f"reward {reward.name!r}, {locate(group.row)}, column {name!r}: {shorten(values)} must be a list "
            f"with a number for each of the {count} responses: correct it (pairs may have the columns "
            f"{' and '.join(_of_pair(name))} instead)"
        )
    return None if any(value is None for value in values) else values


def _of_pair(name: str) -> tuple[str, str]:
    return f"{name}_chosen", f"{name}_rejected"


def _no_column(groups: Sequence[Group], reward: AuxiliaryReward) -> InputError:
    found = dict.fromkeys(name for group in groups for name in group.columns)
    names = [name.removesuffix("_chosen").removesuffix("_rejected") for name in found]
    column = str(reward.column)
    return InputError(
        f"reward {reward.name!r}: no row has the column {column!r}{suggest(column, names)} or, for pairs, "
        f"{' and '.join(_of_pair(column))}: use one of {', '.join(found) or '(none)'}"
    )
