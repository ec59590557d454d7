"""Processes that share a command's work, and other verbs in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from preftune.errors import InputError

LAST_LINES = 15


@dataclass(frozen=True)
class Processes:
    """The processes that share a command's work.

    Attributes:
        rank: this one's number.
        count: how many there are.
        wait: returns once all have called it.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


def launched_processes() -> Processes:
    """Those that `torchrun` or `accelerate launch` started; without them, one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    # One process may have finished hours before another.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def leave_processes() -> None:
    """End the connections between processes, so that one that exits first does not abort another."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


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
        # The folder's lock goes along: a process that outlives this one still holds it.
        done = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, check=False, close_fds=False)
    if done.returncode:
        written = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise InputError(
            f"`{' '.join(command)}` failed; the end of {log}:\n" + "\n".join(written[-LAST_LINES:])
        )
