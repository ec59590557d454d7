"""A folder that one call at a time writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from preftune.errors import InputError
from preftune.storage.locks import locked


def test_a_folder_is_held_by_one_call(tmp_path: Path) -> None:
    """The second is refused, with the folder and the verb; the third finds it free again."""
    with (
        locked(tmp_path / "out", "sweep"),
        pytest.raises(InputError, match=r"output=.*out is in use by another preftune sweep"),
        locked(tmp_path / "out", "sweep"),
    ):
        pass
    with locked(tmp_path / "out", "sweep"):
        pass


def test_a_process_that_was_left_behind_holds_it(tmp_path: Path) -> None:
    """What a call has started keeps the lock until it ends too."""
    with locked(tmp_path, "iterate"):
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with pytest.raises(InputError, match="is in use"), locked(tmp_path, "iterate"):
        pass
    left.communicate(b"\n")
    with locked(tmp_path, "iterate"):
        pass
