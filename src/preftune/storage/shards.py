"""Rows that are finished before the file they belong to: kept in append-only files beside it."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.storage.files import write_whole
from preftune.storage.processes import Processes, launched_processes

logger = logging.getLogger(__name__)

KEY_LENGTH = 12
"""Characters of a hash that name the shards of one content."""
CHECKSUM_LENGTH = 16
MARK = ".joined.part"
"""Ends the name of a file that says: the shards of its key are in the output, or were about to be."""


class Shards:
    """Finished rows of an output, in a file for each process: `OUTPUT.KEY.RANK.part`.

    A line holds a hash, which shows whether it is whole, and a row with its index. Every process reads the
    files of all, so a restart may have another number of them. A line that was cut when its process died, or
    was damaged later, counts as missing; where an index comes again, the last one counts.
    """

    def __init__(self, output: Path, key: str) -> None:
        """Name the files.

        Args:
            output: what the rows are for.
            key: a hash of all that decides them, cut to `KEY_LENGTH`; another key never reads these files.
        """
        self.output = output
        self._stem = f"{output.name}.{key[:KEY_LENGTH]}"
        self._reported: dict[Path, int] = {}

    @property
    def mark(self) -> Path:
        """The file that is there while the output is written and the shards are removed."""
        return self.output.with_name(f"{self._stem}{MARK}")

    @property
    def replies(self) -> Path:
        """The file for parts of rows, such as what a server has replied to so far."""
        return self.output.with_name(f"{self._stem}.replies.part")

    def rows(self) -> dict[int, Any]:
        """What is finished, by its index."""
        found: dict[int, Any] = {}
        for file in self._files():
            rows = [_row(line) for line in file.read_bytes().split(b"\n") if line]
            found.update(row for row in rows if row)
            damaged = rows.count(None)
            if damaged > self._reported.get(file, 0):
                self._reported[file] = damaged
                logger.warning("%s is damaged: %d of its lines are redone", file, damaged)
        return found

    def in_order(self, count: int) -> list[Any]:
        """All rows of the output.

        Raises:
            InputError: one is not there.
        """
        found = self.rows()
        missing = [index for index in range(count) if index not in found]
        if missing:
            raise InputError(
                f"{self.output}: row {missing[0]} is missing or damaged in its shards; run the same command "
                "again"
            )
        return [found[index] for index in range(count)]

    def append(self, rows: Mapping[int, Any], rank: int = 0) -> None:
        """Keep rows by their index; they are in this process's file when it returns.

        A value that JSON lacks, such as a date, is kept as text.

        Raises:
            InputError: there is no room for them, or the file may not be written.
        """
        path = self.output.with_name(f"{self._stem}.{rank}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(_line(index, row) for index, row in rows.items())
        try:
            with path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, 2)
                    # Ends the line that an earlier process may have left cut.
                    lines = lines if file.read(1) == b"\n" else b"\n" + lines
                file.write(lines)
        except OSError as error:
            raise _not_written(path, error) from error

    def remove(self) -> None:
        """Delete the files, once the rows are in the output."""
        for file in (*self._files(), self.replies, self.mark):
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return _matching(self.output.parent, rf"{re.escape(self._stem)}\.\d+\.part")


def write_shared(
    output: Path,
    shards: Sequence[Shards],
    work: Callable[[Processes], None],
    content: Callable[[], str],
) -> None:
    """Write an output whose rows the launched processes make together; whoever returns finds it.

    Args:
        output: the file.
        shards: of its rows.
        work: brings this process's share into the shards.
        content: joins the shards to the output's text, once all shares are there.

    Raises:
        InputError: as `write_joined`.
    """
    processes = launched_processes()
    # Nobody writes the output before everybody has seen that there is none.
    processes.wait()
    work(processes)
    processes.wait()
    if processes.rank == 0:
        write_joined(output, content(), shards)
    processes.wait()


def write_joined(output: Path, text: str, shards: Sequence[Shards]) -> None:
    """Write an output, whole, and remove its shards; `refuse_existing` removes what a killed call leaves.

    Raises:
        InputError: there is no room for it, or it may not be written.
    """
    try:
        for each in shards:
            each.mark.touch()
        write_whole(output, text)
    except OSError as error:
        raise _not_written(output, error) from error
    for each in shards:
        each.remove()


def refuse_existing(output: Path) -> None:
    """Never write over a file; shards that a killed call has left beside it are removed.

    Raises:
        InputError: there is one.
    """
    if not output.exists():
        return
    for mark in _matching(output.parent, rf"{re.escape(output.name)}\.\w+{re.escape(MARK)}"):
        Shards(output, mark.name.removeprefix(f"{output.name}.").removesuffix(MARK)).remove()
    raise InputError(f"--output {output} exists; move it, or give another name")


def _matching(folder: Path, name: str) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if re.fullmatch(name, file.name))


def _line(index: int, row: Any) -> bytes:
    content = json.dumps([index, row], default=str).encode()
    return b"%s %s\n" % (_checksum(content), content)


def _row(line: bytes) -> tuple[int, Any] | None:
    """A row with its index; None if the line is cut or damaged."""
    checksum, _, content = line.partition(b" ")
    if checksum != _checksum(content):
        return None
    index, row = json.loads(content)
    return index, row


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:CHECKSUM_LENGTH].encode()


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {error.strerror}. Finished work is kept: free disk space, or allow "
        "writing there, and run the same command again"
    )
