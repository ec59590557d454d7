"""Several sources as one, each with its share; and a part of a source held out by prompt."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from preftune.data.columns import Asked
from preftune.data.groups import Group
from preftune.data.pairing import Pairing
from preftune.data.rules import RowReport, RowRules
from preftune.data.shapes import LoadedGroups, load_groups
from preftune.data.stored import StoredGroups
from preftune.errors import InputError


@dataclass(frozen=True)
class MixtureSource:
    """One of several sources that are trained on together.

    Attributes:
        name: for messages and counts.
        source: see `read_rows`.
        split: the split to read.
        weight: how often each group is used: 2 uses all twice, 0.5 half of them, drawn by the seed.
        limit: most groups that are used before the weight, drawn by the seed; None uses all.
        mapping: see `Asked`.

    Raises:
        InputError: the weight or the limit leaves nothing, or is no such number.
    """

    name: str
    source: Any
    split: str = "train"
    weight: int | float = 1.0
    limit: int | None = None
    mapping: Mapping[str, str | Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise InputError(
                f"source {self.name}: weight={self.weight}: it must be a finite number above 0. Correct it, "
                "or leave the source out."
            )
        if self.limit is not None and self.limit < 1:
            raise InputError(
                f"source {self.name}: limit={self.limit}: it must be a whole number from 1. Correct it, or "
                "leave the source out."
            )


def load_mixture(
    sources: Sequence[MixtureSource],
    *,
    asked: Asked,
    pairing: Pairing,
    keep_columns: bool = False,
    rules: RowRules | None = None,
    seed: int = 0,
) -> LoadedGroups:
    """Read several sources, one after the other, as one.

    Args:
        sources: with different names.
        asked: see `load_groups`; each source's mapping is its own.
        pairing: see `load_groups`.
        keep_columns: see `load_groups`.
        rules: see `load_groups`.
        seed: decides what a limit or a weight leaves out.

    Raises:
        InputError: two sources have one name, or a source cannot be used.
    """
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"data.train: two sources have the name {twice[0]!r}. Set another name for one.")
    loaded = []
    for source in sources:
        asked = replace(asked, mapping=source.mapping)
        try:
            loaded.append(
                load_groups(
                    source.source,
                    split=source.split,
                    asked=asked,
                    pairing=pairing,
                    keep_columns=keep_columns,
                    rules=rules,
                )
            )
        except InputError as error:
            raise type(error)(f"source {source.name}: {error}") from None
    return _joined(sources, loaded, seed)


def _joined(sources: Sequence[MixtureSource], loaded: Sequence[LoadedGroups], seed: int) -> LoadedGroups:
    # Rows that were joined by prompt keep the numbers of their files, which a report counts once.
    starts = np.cumsum([0, *(sum(rows for _, rows in each.sources) for each in loaded)]).tolist()
    reports = [each.report for each in loaded]
    names = [source.name for source in sources]
    report = RowReport(_locate(names, reports, starts), rows=sum(each.rows for each in reports))
    groups = StoredGroups(())
    for number, (source, each) in enumerate(zip(sources, loaded, strict=True)):
        report.dropped += each.report.dropped
        report.counts.update(each.report.counts)
        report.notes.update(each.report.notes)
        drawn = _drawn(each.groups, source, np.random.default_rng([seed, number]))
        if not drawn:
            raise InputError(
                f"source {source.name}: weight={source.weight}, limit={source.limit}: of {len(each.groups)} "
                "groups none would be used. Set a higher weight, or leave the source out."
            )
        groups += drawn.moved(starts[number])
        report.sources[source.name] = {"rows": each.report.rows, "groups": len(drawn)}
    unused = tuple(dict.fromkeys(name for each in loaded for name in each.unused_columns))
    read_as = "\n".join(
        f"{source.name}: {each.read_as}" for source, each in zip(sources, loaded, strict=True)
    )
    files = tuple(file for each in loaded for file in each.sources)
    return LoadedGroups(groups, report, loaded[0].columns, unused, read_as, files)


def _drawn(groups: StoredGroups, source: MixtureSource, random: np.random.Generator) -> StoredGroups:
    """Groups in their order, as often as the weight says."""
    order = np.arange(len(groups))
    if source.limit is not None and source.limit < len(groups):
        order = np.sort(random.permutation(len(groups))[: source.limit])
    whole, part = divmod(source.weight, 1)
    extra = np.sort(random.permutation(order)[: round(part * len(order))])
    return groups.select(np.concatenate([np.tile(order, int(whole)), extra]).tolist())


def _locate(
    names: Sequence[str], reports: Sequence[RowReport], starts: Sequence[int]
) -> Callable[[int], str]:
    def locate(row: int) -> str:
        number = max(place for place, start in enumerate(starts[:-1]) if start <= row)
        found = reports[number].locate(row - starts[number])
        return found if found.startswith(names[number]) else f"{names[number]}: {found}"

    return locate


def hold_out(groups: Sequence[Group], fraction: float, seed: int) -> tuple[StoredGroups, StoredGroups]:
    """Split groups in two by their prompts: the same prompt is never in both parts.

    A prompt's text and the seed decide, so that more rows change nothing for those that were there.

    Args:
        groups: of a source.
        fraction: about this share of the prompts is held out.
        seed: another one holds out others.

    Returns:
        What stays, and what is held out.

    Raises:
        InputError: one of the two is empty.
    """
    kept: list[int] = []
    held: list[int] = []
    for number, group in enumerate(groups):
        text = json.dumps([seed, group.prompt], sort_keys=True, default=str).encode()
        place = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
        (held if place < fraction else kept).append(number)
    if not kept or not held:
        raise InputError(
            f"data.evaluation_fraction={fraction}: of {len(groups)} groups {len(held)} would be held out and "
            f"{len(kept)} trained on. Give more data, another fraction, or data.evaluation=FILE."
        )
    stored = StoredGroups.of(groups)
    return stored.select(kept), stored.select(held)
