"""Large sets outside of memory: groups in a temporary file, and token ids in one that is mapped."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from tempfile import SpooledTemporaryFile, TemporaryFile, gettempdir
from typing import Any, overload
from weakref import finalize

import numpy as np
from jaxtyping import Int32, Int64

from preftune.data.groups import Group, Pair, Response, TokenizedGroup, as_text
from preftune.errors import InputError

IN_MEMORY = 16 * 2**20
"""Bytes that never reach the disk."""


class StoredGroups(Sequence[Group]):
    """Groups that are read from a temporary file whenever they are asked for.

    A loop over them holds one at a time. The file is gone with the last that reads it, and small sets have
    none.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        """Store groups, which may come one by one.

        Raises:
            InputError: the temporary folder is full.
        """
        file, entries = _GroupFile(), array("q")
        for group in groups:
            entries.extend((0, file.add(group), group.row))
        self._files: tuple[_GroupFile, ...] = (file,)
        # Of each group its file, where it begins there, and its row.
        self._entries: Int64[np.ndarray, "groups 3"] = np.array(entries, dtype=np.int64).reshape(-1, 3)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "StoredGroups":
        """The groups, stored unless they are."""
        return groups if isinstance(groups, cls) else cls(groups)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Group]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> list[Group]: ...
    def __getitem__(self, place: int | slice) -> Group | list[Group]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        file, start, row = map(int, self._entries[place])
        return self._files[file].read(start, row)

    def select(self, places: Sequence[int]) -> "StoredGroups":
        """Those at the places, in that order, from the same file."""
        return self._with(self._files, self._entries[np.asarray(places, dtype=np.int64)])

    def moved(self, rows: int) -> "StoredGroups":
        """The same, their rows so much higher."""
        return self._with(self._files, self._entries + np.array([0, 0, rows]))

    def __add__(self, other: "StoredGroups") -> "StoredGroups":
        entries = other._entries + np.array([len(self._files), 0, 0])
        return self._with((*self._files, *other._files), np.concatenate([self._entries, entries]))

    def _with(
        self, files: tuple["_GroupFile", ...], entries: Int64[np.ndarray, "others 3"]
    ) -> "StoredGroups":
        new = StoredGroups(())
        new._files, new._entries = files, entries
        return new


@dataclass
class _GroupFile:
    """A line of JSON for each group; one that JSON would change, as it does a date, is kept as it is."""

    file: Any = field(default_factory=lambda: SpooledTemporaryFile(IN_MEMORY))  # noqa: SIM115 as long as this
    size: int = 0
    kept: dict[int, Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finalize(self, self.file.close)

    def add(self, group: Group) -> int:
        """Append a group, and say where it begins."""
        start = self.size
        try:
            line = json.dumps(_to_json(group)).encode() + b"\n"
            is_same = _from_json(line, group.row) == group
        except (TypeError, ValueError, RecursionError):
            is_same = False
        if not is_same:
            self.kept[start], line = group, b"\n"
        _write(self.file, line)
        self.size += len(line)
        return start

    def read(self, start: int, row: int) -> Group:
        """The group that begins there, as one of this row."""
        if start in self.kept:
            return replace(self.kept[start], row=row)
        self.file.seek(start)
        line: bytes = self.file.readline()
        return _from_json(line, row)


def _write(file: Any, data: Any) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise InputError(
            f"{gettempdir()}: the data set could not be stored while it is read ({error}). Set the "
            "environment variable TMPDIR to a folder with room for its text and token ids."
        ) from error


_OF_RESPONSE, _OF_PAIR = (attrgetter(*(each.name for each in fields(of))) for of in (Response, Pair))
"""All fields in their order."""


def _to_json(group: Group) -> list[Any]:
    own = None if group.response_columns is None else sorted(group.response_columns)
    responses, pairs = map(_OF_RESPONSE, group.responses), map(_OF_PAIR, group.pairs)
    return [group.prompt, [*responses], [*pairs], dict(group.columns), own, group.tools]


def _from_json(line: bytes, row: int) -> Group:
    prompt, responses, pairs, columns, own, tools = json.loads(line)
    return Group(
        as_text(prompt),
        tuple(Response(as_text(content), *_from_lists(more)) for content, *more in responses),
        tuple(Pair(*pair) for pair in pairs),
        row,
        columns,
        None if own is None else frozenset(own),
        tuple(tools),
    )


def _from_lists(values: list[Any]) -> list[Any]:
    """JSON has no tuples."""
    return [tuple(value) if isinstance(value, list) else value for value in values]


# --- token ids ---


def with_mapped_tokens(groups: Iterable[TokenizedGroup]) -> list[TokenizedGroup]:
    """The groups, with the token ids of a large set in a temporary file that is mapped into memory.

    The system takes such memory back where it is needed, and reads it again.

    Raises:
        InputError: the temporary folder is full.
    """
    kept: list[TokenizedGroup] = []
    size = moved = 0
    with ExitStack() as stack:
        file: Any = None
        for group in groups:
            kept.append(group)
            size += sum(ids.nbytes for ids in (group.prompt, *group.responses))
            if size > IN_MEMORY:
                file = file or stack.enter_context(TemporaryFile())
                _move_tokens(kept, moved, file)
                moved, size = len(kept), 0
        if file is None:
            return kept
        _move_tokens(kept, moved, file)
        file.flush()
        # Copied where it is written to, so that nobody changes the file.
        ids = np.memmap(file, dtype=np.int32, mode="c").view(np.ndarray)
    stop = 0
    for place, group in enumerate(kept):
        ends = np.cumsum([len(group.prompt), *map(len, group.responses)])
        prompt, *responses = np.split(ids[stop : stop + ends[-1]], ends[:-1])
        kept[place] = replace(group, prompt=prompt, responses=tuple(responses))
        stop += int(ends[-1])
    return kept


def _move_tokens(groups: list[TokenizedGroup], start: int, file: Any) -> None:
    """Write the token ids of the groups from `start` on, and leave arrays of their lengths without them."""
    moved = groups[start:]
    if moved:
        _write(file, np.concatenate([ids for group in moved for ids in (group.prompt, *group.responses)]))
    groups[start:] = [
        replace(group, prompt=_hollow(group.prompt), responses=tuple(map(_hollow, group.responses)))
        for group in moved
    ]


def _hollow(ids: Int32[np.ndarray, "tokens"]) -> Int32[np.ndarray, "tokens"]:
    return np.broadcast_to(np.int32(0), ids.shape)
