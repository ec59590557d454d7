"""An old run goes once the new one has taken a step, and one call at a time writes a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.errors import InputError
from preftune.storage.locks import locked
from preftune.training import check_config
from preftune.training.replacing import ASIDE, GOING, MOVING, forget, move_aside, put_back
from preftune.training.run import RUN_FILES, run_training
from preftune.training.trainer import PackedTrainer

CommandLine = Callable[..., tuple[int, str]]


def files(folder: Path) -> dict[str, str]:
    """What a folder holds, by path."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run, and a file that is none of its own."""
    run = tmp_path / "old"
    for name in ("model/weights", "checkpoints/checkpoint-2/weights", "config.yaml", "summary.json", "notes"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("old")
    return run


def test_what_was_moved_aside_comes_back(old: Path) -> None:
    """Also where the new run has written files of the same names, and of others."""
    before = files(old)
    move_aside(old, RUN_FILES)
    assert set(files(old)) == {"notes", *(f"{ASIDE}/{name}" for name in before if name != "notes")}
    (old / "config.yaml").write_text("new")
    (old / "metrics.jsonl").write_text("new")
    put_back(old, RUN_FILES)
    assert files(old) == before


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_kill_while_moving_loses_nothing(old: Path, moved: int) -> None:
    """Some files are aside and the others still in place: all come back."""
    before = files(old)
    (old / MOVING).mkdir()
    for name in ("model", "config.yaml", "summary.json")[:moved]:
        (old / name).rename(old / MOVING / name)
    put_back(old, RUN_FILES)
    assert files(old) == before


def test_what_is_forgotten_does_not_come_back(old: Path) -> None:
    """Even if the removal was cut short."""
    move_aside(old, RUN_FILES)
    (old / "config.yaml").write_text("new")
    shutil.copytree(old / ASIDE, old / GOING)
    shutil.rmtree(old / ASIDE)
    put_back(old, RUN_FILES)
    forget(old)
    assert files(old) == {"notes": "old", "config.yaml": "new"}


def test_links_go_and_their_targets_stay(old: Path, tmp_path: Path) -> None:
    """A linked `model` or `checkpoints` folder is somebody else's."""
    for name in ("model", "checkpoints"):
        (old / name).rename(tmp_path / f"other {name}")
        (old / name).symlink_to(tmp_path / f"other {name}")
    move_aside(old, RUN_FILES)
    forget(old)
    assert files(old) == {"notes": "old"}
    assert files(tmp_path / "other model") == {"weights": "old"}
    assert files(tmp_path / "other checkpoints") == {"checkpoint-2/weights": "old"}


def test_a_new_run_that_fails_before_its_first_step_brings_the_old_one_back(
    config: dict[str, Any], old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after the weights have loaded is late, and removes nothing."""
    before = files(old)

    def fail(*_: Any, **__: Any) -> None:
        assert (old / ASIDE / "summary.json").exists()
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(PackedTrainer, "train", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        run_training(check_config(config | {"output": str(old)}), overwrite=True)
    assert files(old) == before


def test_a_second_training_in_a_folder_is_refused(
    config: dict[str, Any], preftune: CommandLine, tmp_path: Path
) -> None:
    """While the first holds the folder, at the start, and where it has taken it since."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with locked(Path(config["output"]), "train"):
        code, errors = preftune("train", str(file))
    assert code == 2
    assert "in use by another preftune train" in " ".join(errors.split())


def test_a_folder_that_was_taken_meanwhile_is_refused(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls that both found no folder: the second finds the first's run and keeps it."""
    from preftune.training import run

    original = run.build_policy

    def meanwhile(prepared: Any) -> Any:
        Path(config["output"]).mkdir()
        (Path(config["output"]) / "config.yaml").write_text("first")
        return original(prepared)

    monkeypatch.setattr(run, "build_policy", meanwhile)
    with pytest.raises(InputError, match="already has a run"):
        run_training(check_config(config))
    assert files(Path(config["output"])) == {"config.yaml": "first"}
