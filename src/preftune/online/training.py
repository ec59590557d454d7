"""The training stage of a round: `preftune train`, here or in other processes, and the model it gives."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from preftune.errors import InputError, NotFiniteError
from preftune.models import load_language_model, load_tokenizer
from preftune.models.allocator import free_memory
from preftune.models.merging import merged_weights
from preftune.models.quantization import read_quantization
from preftune.online.guards import GuardStop
from preftune.storage.files import MODEL_FOLDER, write_json, write_whole
from preftune.storage.manifest import Figures
from preftune.storage.processes import run_verb
from preftune.training.configuration import RunConfig, dump_yaml
from preftune.training.preparation import CHECKPOINT_FOLDER, with_defaults
from preftune.training.run import LiveData, failure_of, last_checkpoint, run_training

logger = logging.getLogger(__name__)

RUN_FOLDER, CONFIG_FILE, LOG_FILE = "training", "training.yaml", "training.log"
LAUNCH_FILE = "training.launch.json"
WORKS = (
    *(f"{RUN_FOLDER}/{CHECKPOINT_FOLDER}", f"{RUN_FOLDER}/*.part"),
    *(f"{name}*" for name in (LAUNCH_FILE, CONFIG_FILE)),
)
RECORDS = (RUN_FOLDER, LOG_FILE)
"""What the stage leaves beside the model, for its own use and for people."""
FIGURES = ("steps", "accuracy", "chosen_logp_change", "rejected_logp_change")
"""Of a run's summary: what the rounds are told by."""


def train_round(
    config: RunConfig,
    target: Path,
    launch: Sequence[str],
    live: LiveData | None = None,
    write_page: Callable[[Path], None] | None = None,
) -> Figures:
    """Train, resume from the last whole checkpoint, and leave a whole model at `target`.

    The run folder stays as the record of the training. An adapter is merged into what it was trained on: the
    next round samples from whole weights, and starts a new adapter on them.

    Args:
        config: the run; its output folder is only used for it.
        target: where the model goes.
        launch: words before `-m -- preftune`; none trains in this process.
        live: see `run_training`; only in this process.
        write_page: called with the finished run folder; other processes write their page themselves.

    Raises:
        InputError: training failed.
        GuardStop: training met numbers that are not finite.
    """
    config = with_defaults(config)
    run = Path(config.output)
    if not _is_finished(config, run):
        resume = _can_resume(config, run, launch)
        write_json(run.with_name(LAUNCH_FILE), list(launch))
        try:
            if launch:
                file, log = run.with_name(CONFIG_FILE), run.with_name(LOG_FILE)
                write_whole(file, dump_yaml(config.model_dump(mode="json")))
                run_verb(launch, ["train", str(file), "--resume" if resume else "--overwrite"], log)
            else:
                run_training(config, resume=resume, overwrite=not resume, live=live, write_page=write_page)
                free_memory()
        except (InputError, NotFiniteError):
            _guard(run)
            raise
    _guard(run)
    _place_model(config, run / MODEL_FOLDER, target)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    prior = summary["train"]["prior"]
    return {**{key: summary[key] for key in FIGURES}, "prior_gap": prior and prior["mean_gap"]}


def _guard(run: Path) -> None:
    """End the rounds where training in this round has lost its numbers."""
    if (failure := failure_of(run)) is not None:
        raise GuardStop(f"training: {failure['message']}")


def steps_taken(run: Path) -> int:
    """Steps that a run had taken at its last whole checkpoint."""
    checkpoint = last_checkpoint(run / CHECKPOINT_FOLDER)
    return int(Path(checkpoint).name.removeprefix("checkpoint-")) if checkpoint else 0


def _is_finished(config: RunConfig, run: Path) -> bool:
    return _is_of(config, run) and _reads(run / "summary.json") and (run / MODEL_FOLDER).is_dir()


def _can_resume(config: RunConfig, run: Path, launch: Sequence[str]) -> bool:
    """Whether the folder has a whole checkpoint of this run on as many processes; a cut one is removed."""
    for state in run.glob(f"{CHECKPOINT_FOLDER}/checkpoint-*/trainer_state.json"):
        if not _reads(state):
            logger.warning("%s is incomplete: training resumes from the checkpoint before it", state.parent)
            shutil.rmtree(state.parent)
    stored = run.with_name(LAUNCH_FILE)
    alike = _reads(stored) and json.loads(stored.read_text(encoding="utf-8")) == list(launch)
    return alike and _is_of(config, run) and last_checkpoint(run / CHECKPOINT_FOLDER) is not None


def _is_of(config: RunConfig, run: Path) -> bool:
    """Whether the folder's configuration is whole and this one."""
    try:
        stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return False
    return bool(stored == config.model_dump(mode="json"))


def _reads(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _place_model(config: RunConfig, trained: Path, target: Path) -> None:
    """A whole model at `target`: linked from the run folder, or merged from its adapter."""
    aside = target.with_name(f"{target.name}.part")
    for old in (aside, target):
        shutil.rmtree(old, ignore_errors=True)
    if (trained / "adapter_config.json").is_file():
        quantization = read_quantization(trained)
        base = load_language_model(config.model, getattr(torch, config.model_dtype), quantization)
        merged_weights(trained, base).save_pretrained(aside)
        load_tokenizer(str(trained)).save_pretrained(aside)
        del base
        free_memory()
    else:
        shutil.copytree(trained, aside, copy_function=_link)
    aside.rename(target)


def _link(source: str, target: str) -> None:
    """A second name for a file, which takes no room; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
