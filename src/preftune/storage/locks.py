"""A folder that one call at a time writes."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune.errors import InputError

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path, verb: str) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process.

    Args:
        folder: what is written; it is made where it is missing.
        verb: of the command line, which the message names.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise
            raise InputError(
                f"output={folder} is in use by another preftune {verb}, or by a process that it started; "
                "wait for it, or end it"
            ) from None
        # Processes that it starts hold it too: one that outlives this process still writes there.
        os.set_inheritable(file.fileno(), True)
        yield
