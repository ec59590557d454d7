"""One training run: everything that can fail is checked first, then weights load, then it trains."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from preftune.errors import InputError, NotFiniteError
from preftune.models import PackedReader, Policy
from preftune.models.adapters import base_of
from preftune.models.allocator import keep_freed_memory
from preftune.models.value_head import VALUE_HEAD_FILE
from preftune.storage.cache import cache_dir
from preftune.storage.cards import check_card
from preftune.storage.files import MODEL_FOLDER, REPORT_FILE, write_json
from preftune.training.configuration import RunConfig, dump_yaml
from preftune.training.footprint import check_trained_weights
from preftune.training.given import NOTHING_GIVEN, Given
from preftune.training.policy import (
    GroupsByName,
    build_policy,
    by_other_reference,
    has_other_reference,
    visited_groups,
    with_reference_logps,
)
from preftune.training.preparation import (
    CHECKPOINT_FOLDER,
    EVALUATION,
    PreparedRun,
    prepare,
    with_defaults,
)
from preftune.training.pushing import make_repository, push_run
from preftune.training.recording import ConsoleProgress, Recorder, environment
from preftune.training.replacing import (
    OWN_NAMES,
    FolderLock,
    ForgetAtFirstStep,
    forget,
    move_aside,
    put_back,
)
from preftune.training.splits import PreparedData
from preftune.training.stopping import describe_ending, early_stopping
from preftune.training.trainer import HeldOutGroups, PackedTrainer

logger = logging.getLogger(__name__)

REWARDS_FILE = "rewards.json"
CALIBRATION_FILE = "calibration.json"
OTHER_FOLDERS = {"average": "model_last", "last": "model_average"}
"""With an average of the weights, where those are that `MODEL_FOLDER` has not, by `ema.keep`."""
RUN_FILES = (
    *("config.yaml", "environment.json", "metrics.jsonl", "summary.json", REPORT_FILE),
    *(VALUE_HEAD_FILE, REWARDS_FILE, CALIBRATION_FILE, CHECKPOINT_FOLDER, MODEL_FOLDER),
    *OTHER_FOLDERS.values(),
)
"""What a run writes into its folder."""


@runtime_checkable
class LiveData(Protocol):
    """Groups that are made while the policy trains, in place of those of `data.train`.

    What is fitted to training data, such as a calibration, is fitted to `data.train` all the same.
    """

    def trainer(
        self,
        prepared: PreparedRun,
        policy: PackedReader,
        evaluation_groups: HeldOutGroups | None,
        callbacks: Sequence[TrainerCallback],
    ) -> PackedTrainer:
        """What trains on them."""
        ...

    def trained_on(self, prepared: PreparedRun) -> PreparedData:
        """All of them, once training has come to its end."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a run has left in memory.

    Attributes:
        summary: what summary.json holds.
        model: the tuned language model; None if the run was finished by an earlier call.
        tokenizer: its tokenizer, likewise.
    """

    summary: dict[str, Any]
    model: nn.Module | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def run_training(
    config: RunConfig,
    given: Given = NOTHING_GIVEN,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    live: LiveData | None = None,
    write_page: Callable[[Path], None] | None = None,
) -> Trained:
    """Train, and leave a run folder with config, metrics, summary, environment and the model.

    Args:
        config: the run.
        given: objects in place of what the configuration names.
        resume: continue from the last checkpoint of the same run.
        overwrite: replace a run that is already in the output folder.
        progress: show bars.
        live: what makes the groups that are trained on; None trains on those of `data.train`.
        write_page: called with the folder by the main process, once the rest of it is written.

    Raises:
        InputError: something is wrong with the configuration or the data, before any weights load.
        NotFiniteError: training has met numbers that are not finite; the folder says what is kept.
    """
    config = with_defaults(config, given)
    folder = Path(config.output)
    # Without `cpu`, processes on a machine without accelerator would each be the main one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    with ExitStack() as stack:
        lock = FolderLock(folder, state, stack)
        lock.take(lambda: put_back(folder, RUN_FILES))
        if resume:
            config = _with_first_date(config, folder)
        check_folder(config, resume=resume, overwrite=overwrite)
        # No process may find what another has just written.
        state.wait_for_everyone()
        if resume and (folder / "summary.json").exists():
            return _finished(folder)
        prepared = prepare(config, progress, is_live=live is not None, given=given)
        record = environment(prepared.arguments, prepared.fingerprints)
        if resume:
            _check_environment(folder, record)
        start = _Start(prepared, record, lock, resume=resume, overwrite=overwrite)
        return _train(start, live, write_page, progress and state.is_main_process)


@dataclass(frozen=True)
class _Start:
    """A run that is about to load its weights, and what it needs to take its folder."""

    prepared: PreparedRun
    record: dict[str, Any]
    lock: FolderLock
    resume: bool
    overwrite: bool

    @property
    def folder(self) -> Path:
        return Path(self.prepared.config.output)

    def take_folder(self) -> None:
        """Write the first files; an old run is moved aside."""
        config, folder = self.prepared.config, self.folder
        # Another call may have written there since, if there was no folder to lock.
        self.lock.take(lambda: check_folder(config, resume=self.resume, overwrite=self.overwrite), make=True)
        if PartialState().is_main_process:
            _start_folder(self.prepared, folder, self.record, keep=self.resume)
        PartialState().wait_for_everyone()


def _finished(folder: Path) -> Trained:
    """What an earlier call has finished.

    Raises:
        NotFiniteError: it ended without numbers.
    """
    logger.info("%s is finished; there is nothing to resume", folder)
    if failure := failure_of(folder):
        raise NotFiniteError(failure["message"])
    return Trained(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def failure_of(folder: Path) -> dict[str, Any] | None:
    """What a run that met numbers which are not finite says of that; None of other runs, finished or not."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    stopped: dict[str, Any] | None = summary.get("stopped")
    return stopped if stopped and stopped["is_failure"] else None


def _train(
    start: _Start, live: LiveData | None, write_page: Callable[[Path], None] | None, show: bool
) -> Trained:
    """Load weights, train, and write what the run leaves."""
    prepared, folder = start.prepared, start.folder
    if prepared.arguments.device.type == "cpu":
        keep_freed_memory()
    check_trained_weights(prepared)
    make_repository(prepared.arguments)
    visited = visited_groups(prepared, is_live=live is not None)
    # Before the policy loads, so that one model is in memory at a time.
    scored = by_other_reference(prepared, show, only=visited) if has_other_reference(prepared) else None
    # Adapters start at random numbers, which the seed decides too.
    set_seed(prepared.arguments.seed)
    policy = build_policy(prepared)
    # Only now is it certain that the new run starts.
    start.take_folder()
    recorder, bar = Recorder(folder / "metrics.jsonl"), ConsoleProgress(enabled=show)
    try:
        groups: GroupsByName = {name: data.groups for name, data in prepared.splits.items()}
        if "reference" in prepared.objective.needs and isinstance(policy, Policy):
            groups = scored or with_reference_logps(prepared, policy, show, only=visited)
        checkpoint = last_checkpoint(folder / CHECKPOINT_FOLDER) if start.resume else None
        callbacks = [recorder, bar, ForgetAtFirstStep(folder)]
        trainer = _trainer(prepared, policy, groups, callbacks, live, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
    except BaseException:
        if PartialState().is_main_process:
            put_back(folder, RUN_FILES)
        raise
    finally:
        bar.close()
    if PartialState().is_main_process:
        forget(folder)
    _evaluate_kept(prepared, trainer)
    policy.restore()
    return _finish(prepared, policy, trainer, recorder, live, write_page)


def _evaluate_kept(prepared: PreparedRun, trainer: PackedTrainer) -> None:
    """Take held-out figures of the weights that are kept, where there are none yet."""
    kept = trainer.kept_step
    if kept is None or not prepared.held_out or trainer.has_evaluated():
        return
    last, trainer.state.global_step = trainer.state.global_step, kept
    trainer.evaluate()
    trainer.settle()
    trainer.state.global_step = last


def _finish(
    prepared: PreparedRun,
    policy: PackedReader,
    trainer: PackedTrainer,
    recorder: Recorder,
    live: LiveData | None,
    write_page: Callable[[Path], None] | None,
) -> Trained:
    """Write what a trained run leaves.

    Raises:
        NotFiniteError: training has met numbers that are not finite.
    """
    folder = Path(prepared.config.output)
    ending = describe_ending(trainer, prepared.config)
    if trainer.kept_step is not None:
        trainer.save_model(str(folder / MODEL_FOLDER), max_shard_size=prepared.config.max_shard_size)
        trainer.save_value_head(folder)
        if trainer.ema and prepared.config.ema:
            with trainer.ema.in_use(average=not trainer.ema.keeps_average):
                other = folder / OTHER_FOLDERS[prepared.config.ema.keep]
                trainer.save_model(str(other), max_shard_size=prepared.config.max_shard_size)
    if live:
        prepared = replace(prepared, train=live.trained_on(prepared))
    summary = _summary(prepared, recorder, trainer, is_live=live is not None) | ending
    if PartialState().is_main_process:
        write_json(folder / "summary.json", summary)
        if write_page:
            write_page(folder)
    if stopped := ending.get("stopped"):
        if stopped["is_failure"]:
            raise NotFiniteError(stopped["message"])
        logger.warning("%s", stopped["message"])
    if PartialState().is_main_process:
        push_run(prepared.arguments, folder)
    return Trained(summary, policy.language_model, prepared.tokenizer)


def _trainer(
    prepared: PreparedRun,
    policy: PackedReader,
    groups: GroupsByName,
    callbacks: list[TrainerCallback],
    live: LiveData | None,
    checkpoint: str | None,
) -> PackedTrainer:
    """What trains on the groups, or on those that are made meanwhile."""
    config, given = prepared.config, prepared.given
    if not prepared.held_out or checkpoint:
        prepared.arguments.eval_on_start = False
    held_out = prepared.held_out_groups(groups)
    callbacks = [*callbacks, *early_stopping(config), *given.callbacks]
    if live:
        trainer = live.trainer(prepared, policy, held_out, callbacks)
    else:
        trainer = PackedTrainer(
            policy,
            prepared.objective,
            prepared.arguments,
            groups["train"],
            held_out,
            prepared.tokenizer,
            callbacks,
            batches=config.batches,
            value_head=config.value_head,
            fully_sharded=_is_sharded(config),
            optimizers=given.optimizers,
            stop=config.stop,
            learning_rates=config.learning_rates,
            stochastic_rounding=config.stochastic_rounding,
            ema=config.ema,
        )
    # The run has a bar of its own.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _summary(
    prepared: PreparedRun, recorder: Recorder, trainer: PackedTrainer, *, is_live: bool
) -> dict[str, Any]:
    """What summary.json holds."""
    figures = recorder.summary(trainer.kept_step)
    summary = prepared.summary() | figures | {"shares_prompts": trainer.model.shares_prompts}
    if trainer.stops.stop or trainer.state.global_step < prepared.steps:
        summary["steps"] = trainer.state.global_step
    if is_live:
        steps = trainer.state.global_step
        summary |= {"steps": steps, "tokens_per_step": round(prepared.train.tokens / steps)}
    multipliers = trainer.multipliers()
    # With bounds V expects more than R.
    held_out = {} if multipliers else prepared.held_out
    summary["value_explained_variance"] = _explained_variance(held_out, figures["evaluation_end"])
    if ema := prepared.config.ema:
        summary["ema"] = {"decay": ema.decay, MODEL_FOLDER: ema.keep, "other": OTHER_FOLDERS[ema.keep]}
    if multipliers is not None:
        summary["multipliers"] = multipliers
    return summary


def _is_sharded(config: RunConfig) -> bool:
    processes = PartialState().num_processes
    if config.fully_sharded and processes == 1:
        logger.warning("fully_sharded=true: one process has nothing to shard; start more by torchrun")
    return config.fully_sharded and processes > 1


def _with_first_date(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the date on which the run began, where its chat template writes one."""
    stored = folder / "config.yaml"
    before = yaml.safe_load(stored.read_text(encoding="utf-8")) if stored.exists() else None
    written = ((before or {}).get("data") or {}).get("template_date")
    if written is None or config.data.template_date:
        return config
    data = config.data.model_copy(update={"template_date": date.fromisoformat(str(written))})
    return config.model_copy(update={"data": data})


def check_folder(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that the output folder can take the run.

    Raises:
        InputError: it has a run or other files, holds the model, or cannot be written; or the run that is to
            be resumed is another one.
    """
    folder = Path(config.output)
    stored = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output={folder} is a file; give a folder")
    if stored.exists() and resume:
        before = yaml.safe_load(stored.read_text(encoding="utf-8")) or {}
        now = config.model_dump(mode="json")
        changed = [key for key in now if now[key] != before.get(key)]
        if changed:
            raise InputError(
                f"--resume: {', '.join(changed)} differ from {stored}; resume with the same configuration, "
                "or start another run with another output"
            )
    elif stored.exists() and not overwrite:
        raise InputError(
            f"output={folder} already has a run; pass --resume to resume it, --overwrite to replace it, "
            "or another output"
        )
    elif not stored.exists() and folder.exists() and {path.name for path in folder.iterdir()} - OWN_NAMES:
        raise InputError(f"output={folder} is not empty and has no run; give an empty or new folder")
    if overwrite:
        check_card(folder / MODEL_FOLDER, "--overwrite")
    for source in dict.fromkeys((config.model, base_of(config.model))):
        if overwrite and folder.resolve() in Path(source).resolve().parents:
            raise InputError(f"model={source} is in output={folder}, which --overwrite replaces: move it")
    for place in (folder, Path(config.cache) if config.cache else cache_dir()):
        existing = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            key = "output" if place == folder else "cache"
            raise InputError(f"{key}={place} cannot be written; give another {key}=FOLDER")


def _check_environment(folder: Path, record: dict[str, Any]) -> None:
    """A resumed run must use the same data and number of processes."""
    stored = folder / "environment.json"
    if not stored.exists():
        return
    before = json.loads(stored.read_text(encoding="utf-8"))
    for key, what in {"data": "the data", "processes": "the number of processes"}.items():
        if before[key] != record[key]:
            raise InputError(
                f"--resume: {what} changed since {stored} ({before[key]} there, {record[key]} now); "
                "restore it, or start another run with another output"
            )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; transformers writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in whole}
    return str(steps[max(steps)]) if steps else None


def _start_folder(prepared: PreparedRun, folder: Path, record: dict[str, Any], keep: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not keep and (folder / "config.yaml").exists():
        move_aside(folder, RUN_FILES)
    resolved = prepared.config.model_dump(mode="json")
    (folder / "config.yaml").write_text(dump_yaml(resolved), encoding="utf-8")
    write_json(folder / "environment.json", record)
    if prepared.calibration:
        # Scores of other data are placed on this scale by Calibration.from_dict.
        fitted_on = {"data": prepared.train.fingerprint}
        write_json(folder / CALIBRATION_FILE, prepared.calibration.to_dict() | fitted_on)
    if prepared.standardization:
        # What it takes to read the value head: which reward it expects, and on what scale.
        rewards = {"rewards": prepared.config.rewards, **prepared.standardization.to_dict()}
        if prepared.train.rewards and prepared.train.rewards.scales:
            rewards["scales"] = prepared.train.rewards.to_dict()["scales"]
        write_json(folder / REWARDS_FILE, rewards)


def _explained_variance(held_out: Mapping[str, PreparedData], figures: dict[str, Any]) -> float | None:
    """Share of the held-out auxiliary reward's variance that V explains, 1 - Var(R - V) / Var(R)."""
    # Only the process that records has the figures.
    if figures.get("eval_auxiliary/squared_error") is None or EVALUATION not in held_out:
        return None
    variance = float(held_out[EVALUATION].auxiliary.var())
    residual = figures["eval_auxiliary/squared_error"] - figures["eval_auxiliary/advantage"] ** 2
    return 1 - residual / variance if variance else None
