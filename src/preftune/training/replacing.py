"""One run at a time in a folder, and an old run that goes only once the new one has taken a step."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preftune.errors import InputError
from preftune.storage.locks import LOCK_FILE, locked

ASIDE, MOVING, GOING = ".replaced", ".replaced.moving", ".replaced.going"
"""Folders in the run folder: an old run that was moved aside; one on its way there or back; one to remove."""
OWN_NAMES = frozenset({LOCK_FILE, ASIDE, MOVING, GOING})
"""What may stand in a folder that has no run."""


class FolderLock:
    """The lock of a run folder, which the main process holds for all until `stack` is closed."""

    def __init__(self, folder: Path, state: PartialState, stack: ExitStack) -> None:
        self._folder, self._state, self._stack = folder, state, stack
        self._is_held = False

    def take(self, then: Callable[[], None], *, make: bool = False) -> None:
        """Take the lock unless it is held; then let the main process do what needs it.

        Args:
            then: what the main process does.
            make: make the folder where it is missing; without it, a missing one has no lock.

        Raises:
            InputError: another process holds it, or `then` raised it: in all processes.
        """
        said: list[Any] = [None]
        if self._state.is_main_process:
            try:
                if not self._is_held and (make or self._folder.is_dir()):
                    self._stack.enter_context(locked(self._folder, "train"))
                    self._is_held = True
                    then()
            except InputError as error:
                said = [str(error)]
        broadcast_object_list(said)
        if said[0] is not None:
            raise InputError(said[0])


def move_aside(folder: Path, names: Iterable[str]) -> None:
    """Move an old run's files away, links as links; `put_back` undoes it, and `forget` makes it final."""
    moving = folder / MOVING
    moving.mkdir()
    for name in names:
        if (folder / name).exists() or (folder / name).is_symlink():
            (folder / name).rename(moving / name)
    moving.rename(folder / ASIDE)


def put_back(folder: Path, names: Iterable[str]) -> None:
    """Bring back what a call moved aside before it ended without a step, whenever it was killed.

    Args:
        folder: the run folder.
        names: of everything that the new run may have written.
    """
    remove(folder / GOING)
    aside, moving = folder / ASIDE, folder / MOVING
    if aside.is_dir():
        for name in names:
            remove(folder / name)
        aside.rename(moving)
    if moving.is_dir():
        for path in moving.iterdir():
            path.rename(folder / path.name)
        moving.rmdir()


def forget(folder: Path) -> None:
    """Remove what was moved aside."""
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).rename(folder / GOING)
        remove(folder / GOING)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link but never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class ForgetAtFirstStep(TrainerCallback):
    """Lets the old run go once the new one has taken a step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget it."""
        if state.is_world_process_zero:
            forget(self._folder)
