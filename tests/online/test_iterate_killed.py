"""Rounds that are killed at any moment, or run out of room, end as uninterrupted ones: byte for byte."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import artifacts, write_folder

ROOM = 3_000_000
"""Bytes of a file: samples fit, a model of 6 MB does not."""


class Starts:
    """Starts of the rounds in a folder."""

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self._server = server

    def start(self, folder: Path, seconds: float | None = None, room: int | None = None) -> dict[str, Any]:
        """One start, to its end or killed after so many seconds, with so many bytes in a file at most."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"folder": str(folder), "seconds": seconds, "room": room}) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def starts() -> Iterator[Starts]:
    """The server."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("start_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A process that forks must not have threads.
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    yield Starts(server)
    server.kill()
    server.communicate()


def uninterrupted(starts: Starts, model: Path, folder: Path, **keys: Any) -> Path:
    """The output of rounds that nothing has stopped."""
    write_folder(folder, model, **keys)
    ended = starts.start(folder)
    assert ended["status"] == 0, ended["errors"]
    return folder / "out"


@pytest.fixture(scope="module")
def whole(starts: Starts, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a stage after another."""
    return uninterrupted(starts, tiny_model_dir, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("update_every", ["round", "batch"])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, update_every: str, starts: Starts, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Weights and all artifacts are those of the uninterrupted rounds, however often they were killed.

    Where a start comes to its end before it is killed, others begin in a new folder.
    """
    whole = uninterrupted(starts, tiny_model_dir, tmp_path / "whole", update_every=update_every)
    expected = artifacts(whole)
    moments = random.Random(kills)
    timing = (whole / "timing.jsonl").read_text().splitlines()
    work = sum(json.loads(line)["seconds"] for line in timing)
    killed = folders = 0
    folder = None
    while killed < kills or folder is not None:
        if folder is None:
            folders += 1
            folder = write_folder(tmp_path / str(folders), tiny_model_dir, update_every=update_every)
        seconds = moments.uniform(0.3, 2 + work / 3) if killed < kills else None
        ended = starts.start(folder, seconds)
        if ended["status"] == -signal.SIGKILL:
            killed += 1
            continue
        assert ended["status"] == 0, ended["errors"]
        found = artifacts(folder / "out")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        folder = None
    assert killed == kills


@pytest.mark.slow
def test_no_room(starts: Starts, whole: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A file that cannot be written is one clear error; what is finished stays, and the rerun heals."""
    folder = write_folder(tmp_path / "full", tiny_model_dir)
    ended = starts.start(folder, room=ROOM)
    assert ended["status"] == 2
    assert "Traceback" not in ended["errors"]
    words = " ".join(ended["errors"].split())
    assert "cannot be written" in words
    assert "run the same command again" in words
    samples = folder / "out" / "round-1" / "samples.jsonl"
    before = samples.stat().st_mtime_ns
    assert starts.start(folder)["status"] == 0
    assert samples.stat().st_mtime_ns == before
    assert artifacts(folder / "out") == artifacts(whole)
