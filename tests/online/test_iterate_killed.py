"""Rounds that are killed at any moment, or run out of room, end as uninterrupted ones: byte for byte."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ..forks import Forks, Started
from .conftest import artifacts, write_folder

LITTLE_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
"""
"""Bytes of a file: samples fit, a model of 6 MB does not."""


# Drawing pages takes most of the time, and they hold seconds, so that no two are the same.
NO_PAGES = """
from preftune.api import iterate
from preftune.measuring import comparison
iterate.PAGES = comparison.NO_PAGES
"""


def begin(forks: Forks, folder: Path, setup: str = "") -> Started:
    """Start the rounds in a folder."""
    return forks.start(["preftune", "iterate", "rounds.yaml"], folder=folder, setup=NO_PAGES + setup)


def uninterrupted(forks: Forks, model: Path, folder: Path, **keys: Any) -> Path:
    """The output of rounds that nothing has stopped."""
    write_folder(folder, model, **keys)
    ended = begin(forks, folder).wait()
    assert ended.status == 0, ended.errors
    return folder / "out"


@pytest.fixture(scope="module")
def whole(forks: Forks, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a stage after another."""
    return uninterrupted(forks, tiny_model_dir, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("update_every", ["round", "batch"])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, update_every: str, forks: Forks, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Weights and all artifacts are those of the uninterrupted rounds, however often they were killed.

    Where a start comes to its end before it is killed, others begin in a new folder.
    """
    whole = uninterrupted(forks, tiny_model_dir, tmp_path / "whole", update_every=update_every)
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
        started = begin(forks, folder)
        if seconds is not None:
            time.sleep(seconds)
            started.kill()
        ended = started.wait()
        if ended.status == -signal.SIGKILL:
            killed += 1
            continue
        assert ended.status == 0, ended.errors
        found = artifacts(folder / "out")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        folder = None
    assert killed == kills


@pytest.mark.slow
def test_no_room(forks: Forks, whole: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A file that cannot be written is one clear error; what is finished stays, and the rerun heals."""
    folder = write_folder(tmp_path / "full", tiny_model_dir)
    ended = begin(forks, folder, LITTLE_ROOM).wait()
    assert ended.status == 2
    assert "Traceback" not in ended.errors
    words = " ".join(ended.errors.split())
    assert "cannot be written" in words
    assert "run the same command again" in words
    samples = folder / "out" / "round-1" / "samples.jsonl"
    before = samples.stat().st_mtime_ns
    assert begin(forks, folder).wait().status == 0
    assert samples.stat().st_mtime_ns == before
    assert artifacts(folder / "out") == artifacts(whole)
