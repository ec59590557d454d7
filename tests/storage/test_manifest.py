"""How a finished stage is told from a cut or damaged one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from preftune.storage.hashing import hash_files
from preftune.storage.manifest import Figures, Stage, finish

Work = Callable[[], Figures]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage with a file and a folder as outputs, and a scratch folder."""
    return Stage(
        folder=tmp_path,
        name="boil",
        inputs={"water": "cold"},
        settings={"degrees": 100, "pair": (1, 2)},
        outputs=("tea.txt", "pot"),
        works=("scratch",),
        records=("log.txt",),
    )


def boil(stage: Stage, calls: list[str], text: str = "tea") -> Work:
    """Work that writes the outputs, scratch and an unfinished file, and counts its calls."""

    def work() -> Figures:
        calls.append(text)
        for name in ("tea.txt", "pot/lid.txt", "scratch/ash.txt", "tea.txt.1.part", "log.txt"):
            path = stage.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return {"cups": 2}

    return work


def test_a_finished_stage_is_kept(stage: Stage) -> None:
    """The second call does no work, and gives the same content and figures; scratch is gone, records stay."""
    calls: list[str] = []
    first = finish(stage, boil(stage, calls))
    second = finish(stage, boil(stage, calls))
    assert len(calls) == 1
    assert (first.is_new, second.is_new) == (True, False)
    assert (second.content, second.figures) == (first.content, {"cups": 2})
    assert sorted(path.name for path in stage.folder.iterdir()) == [
        "boil.manifest.json",
        "log.txt",
        "pot",
        "tea.txt",
    ]


def test_its_manifest_says_from_what_it_was_made(stage: Stage) -> None:
    """Inputs, settings, versions, and the sha256 of each output file: of `tea` as any other tool gives it."""
    finish(stage, boil(stage, []))
    manifest = json.loads(stage.manifest.read_text(encoding="utf-8"))
    of_tea = "a9f74d1ec36ebdeb2da3f6e5868090cd2a2d20b3dcca7b62f60304b1d3d9ef42"
    assert manifest["inputs"] == {"water": "cold"}
    assert manifest["settings"] == {"degrees": 100, "pair": [1, 2]}
    assert set(manifest["versions"]) == {"preftune", "torch", "transformers"}
    assert list(manifest["outputs"]) == ["tea.txt", "pot/lid.txt"]
    assert manifest["outputs"]["tea.txt"] == hash_files(stage.folder, ["tea.txt"])["tea.txt"] == of_tea


@pytest.mark.parametrize("damage", ["tea.txt", "pot/lid.txt", "boil.manifest.json"])
def test_a_damaged_output_is_made_again(stage: Stage, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A cut file, in a folder or not, and a cut manifest are named in the log, and the work is done again."""
    calls: list[str] = []
    finish(stage, boil(stage, calls))
    path = stage.folder / damage
    path.write_bytes(path.read_bytes()[:-2])
    assert finish(stage, boil(stage, calls)).is_new
    assert len(calls) == 2
    assert f"{damage} is damaged" in caplog.text
    assert not finish(stage, boil(stage, calls)).is_new


def test_what_a_killed_call_left_behind_its_manifest_is_taken_away(stage: Stage) -> None:
    """Scratch beside whole outputs goes with the next call, which does no work."""
    finish(stage, boil(stage, []))
    boil(stage, [])()
    assert not finish(stage, boil(stage, [])).is_new
    assert not (stage.folder / "scratch").exists()
    assert not (stage.folder / "tea.txt.1.part").exists()


def test_other_inputs_or_settings_are_another_stage(stage: Stage) -> None:
    """What was made from something else is gone before the work begins."""
    calls: list[str] = []
    finish(stage, boil(stage, calls))
    other = replace(stage, settings={"degrees": 90})

    def work() -> Figures:
        assert not (stage.folder / "tea.txt").exists()
        assert not (stage.folder / "log.txt").exists()
        return boil(other, calls)()

    assert finish(other, work).is_new
    assert finish(replace(other, inputs={"water": "warm"}), boil(other, calls)).is_new


def test_a_stopped_stage_goes_on_from_what_is_there(stage: Stage) -> None:
    """Work that failed leaves its files for the next call of the same stage, and for no other."""

    def fails() -> Figures:
        boil(stage, [])()
        raise RuntimeError

    def goes_on() -> Figures:
        assert (stage.folder / "scratch" / "ash.txt").exists()
        return boil(stage, [])()

    with pytest.raises(RuntimeError):
        finish(stage, fails)
    finished = finish(stage, goes_on)
    assert finished.is_new
    assert finished.is_continued
    with pytest.raises(RuntimeError):
        finish(replace(stage, inputs={"water": "warm"}), fails)
    assert not finish(stage, boil(stage, [])).is_continued
