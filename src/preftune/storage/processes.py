"""Other verbs of the command line, in processes of their own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from preftune.errors import InputError

LAST_LINES = 15


def run_verb(launch: Sequence[str], arguments: Sequence[str], log: Path) -> None:
    """Run `preftune` with these arguments by what starts its processes; what they write goes to a file.

    Args:
        launch: words before `-m -- preftune`, such as those of torchrun; none is one process.
        arguments: the verb and what it takes.
        log: the file.

    Raises:
        InputError: the verb failed; the message has the end of what it wrote.
    """
    # Without the dashes torchrun takes `--n` for an option of its own, cut short.
    words = [*launch, "-m", "--"] if launch else [sys.executable, "-m"]
    command = [*words, "preftune", *arguments]
    with log.open("w", encoding="utf-8") as lines:
        # The folder's lock goes along: a process that is left behind still holds it.
        done = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, check=False, close_fds=False)
    if done.returncode:
        written = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise InputError(
            f"`{' '.join(command)}` failed; the end of {log}:\n" + "\n".join(written[-LAST_LINES:])
        )
