"""A manifest records the inputs and outputs of a stage, and shows whether the stage is finished and whole."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preftune.storage.files import write_json
from preftune.storage.hashing import hash_file, hash_files, hash_json

logger = logging.getLogger(__name__)

PACKAGES = ("preftune", "torch", "transformers")

Figures = dict[str, Any]
"""What a stage has counted or measured, in JSON's types."""


@dataclass(frozen=True)
class Stage:
    """A step of a command, whose files stand in one folder.

    Attributes:
        folder: where.
        name: of the stage.
        inputs: a hash of each thing it reads.
        settings: everything else that decides its outputs.
        outputs: files and folders that later stages read.
        works: what is only there while it works, as patterns.
        records: what it leaves for people, and no later stage reads.
    """

    folder: Path
    name: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]
    works: tuple[str, ...] = ()
    records: tuple[str, ...] = ()

    @property
    def manifest(self) -> Path:
        """Where its manifest stands."""
        return self.folder / f"{self.name}.manifest.json"

    @property
    def scratch(self) -> tuple[str, ...]:
        """Patterns of what is of no more use once the stage is finished."""
        written = (*self.outputs, self.manifest.name)
        return (*self.works, *(f"{name}.*part" for name in written))

    @property
    def made_from(self) -> dict[str, Any]:
        """What decides its outputs, as its manifest says it."""
        return {"inputs": dict(self.inputs), "settings": json.loads(json.dumps(self.settings, default=str))}


@dataclass(frozen=True)
class Finished:
    """A stage that has come to its end.

    Attributes:
        content: a hash of its outputs.
        figures: what it counted or measured.
        is_new: whether it was made in this call.
        is_continued: whether an earlier call had begun it.
    """

    content: str
    figures: Figures
    is_new: bool = False
    is_continued: bool = False


def finish(stage: Stage, work: Callable[[], Figures]) -> Finished:
    """Keep the stage where its outputs are whole, else make it, from where an earlier call was stopped.

    Outputs that were made from something else, or are no longer as they were written, go first.

    Args:
        stage: what is wanted.
        work: makes the outputs, resumes from those that exist, and returns the figures.
    """
    found = _read(stage.manifest)
    same = {key: found.get(key) for key in ("inputs", "settings")} == stage.made_from
    if same and found.get("outputs"):
        damaged = _damaged(stage.folder, found["outputs"])
        if damaged is None:
            # A call that was killed after writing its manifest has left them.
            _remove(stage.folder, stage.scratch)
            return Finished(_digest(found["outputs"]), found["figures"])
        logger.warning("%s is %s: %s is redone", stage.folder / damaged[0], damaged[1], _title(stage))
    is_continued = same and not found.get("outputs")
    if not is_continued:
        _clear(stage)
    record = {"stage": stage.name, **stage.made_from, "versions": {name: version(name) for name in PACKAGES}}
    # From here on, what lies in the folder was made from these inputs.
    write_json(stage.manifest, record)
    figures = work()
    outputs = hash_files(stage.folder, stage.outputs)
    write_json(stage.manifest, record | {"outputs": outputs, "figures": figures})
    _remove(stage.folder, stage.scratch)
    return Finished(_digest(outputs), figures, is_new=True, is_continued=is_continued)


def _read(path: Path) -> dict[str, Any]:
    """A manifest; nothing where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        logger.warning("%s is damaged: its stage is redone", path)
        return {}
    return found if isinstance(found, dict) else {}


def _damaged(folder: Path, outputs: Mapping[str, str]) -> tuple[str, str] | None:
    """The first output that is not as it was written, and what it is instead."""
    for name, expected in outputs.items():
        if not (folder / name).is_file():
            return name, "missing"
        if hash_file(folder / name) != expected:
            return name, "damaged"
    return None


def _digest(outputs: Mapping[str, str]) -> str:
    return hash_json(dict(outputs))


def _clear(stage: Stage) -> None:
    """Take away what an earlier call has left of a stage; the manifest first, which vouches for it."""
    stage.manifest.unlink(missing_ok=True)
    stage.folder.mkdir(parents=True, exist_ok=True)
    _remove(stage.folder, (*stage.outputs, *stage.records, *stage.scratch))


def _remove(folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _title(stage: Stage) -> str:
    return f"{stage.name} of {stage.folder.name}"
