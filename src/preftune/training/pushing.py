"""What of a training run goes to the hub, and when, by the fields that the Trainer's users know."""

import logging
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from preftune.models.publishing import HubRepository, link_or_copy
from preftune.storage.files import MODEL_FOLDER

logger = logging.getLogger(__name__)

NOT_OF_MODEL = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json"),
    *("training_args.bin", "multipliers.json", "checkpoint-*/*", ".push-*/*"),
)
"""Files of a checkpoint, and of the folder of several, that are no part of the model."""
_uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")


def repository_of(
    arguments: TrainingArguments, *, token: str | None = None, private: bool | None = None
) -> HubRepository:
    """The repository that the arguments name, or else one of the output folder's name."""
    return HubRepository(
        name=arguments.hub_model_id or Path(arguments.output_dir).absolute().name,
        private=arguments.hub_private_repo if private is None else private,
        revision=arguments.hub_revision,
        token=token or arguments.hub_token,
        key="training.hub_model_id",
    )


def check_repository(arguments: TrainingArguments) -> None:
    """Check name and token, where the run is to be pushed, and put the owner into the arguments' name.

    Raises:
        InputError: the name is not valid, there is no token, or the hub does not accept it or cannot be
            reached.
    """
    if arguments.push_to_hub and arguments.process_index == 0:
        arguments.hub_model_id = repository_of(arguments).checked().name


def make_repository(arguments: TrainingArguments) -> None:
    """Make the repository, where the run is to be pushed, so that a refusal comes before the work.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    if arguments.push_to_hub and arguments.process_index == 0:
        repository_of(arguments).create()
        logger.info("the model will be pushed to %s", arguments.hub_model_id)


def push_run(arguments: TrainingArguments, folder: Path) -> None:
    """Upload the model of a finished run, where that was asked for.

    Raises:
        InputError: the hub refuses, or cannot be reached; the run folder is whole.
    """
    if arguments.push_to_hub:
        address = repository_of(arguments).upload(folder / MODEL_FOLDER, "End of training", kept=folder)
        logger.info("pushed to %s", address)


def push_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Upload a checkpoint's model in the background, and all of the checkpoint if the strategy says so.

    An upload that fails is a warning: training goes on, and the run is pushed at its end.

    Args:
        trainer: has saved the checkpoint.
        checkpoint: its folder, which may go before the upload ends.
    """
    arguments, running = trainer.args, trainer.push_in_progress
    strategy = HubStrategy(arguments.hub_strategy)
    if not trainer.is_world_process_zero() or strategy == HubStrategy.END:
        return
    if running is not None and not running.is_done() and not arguments.hub_always_push:
        return
    by_step = arguments.save_strategy == SaveStrategy.STEPS
    state = trainer.state
    done = f"step {state.global_step}" if by_step else f"epoch {int(state.epoch or 0)}"
    places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
    repository, message = repository_of(arguments), f"Training in progress, {done}"
    jobs = [] if running is None or running.is_done() else running.jobs
    for place in (None, places.get(strategy))[: 2 if strategy in places else 1]:
        aside = Path(tempfile.mkdtemp(prefix=".push-", dir=checkpoint.parent))
        shutil.copytree(checkpoint, aside / checkpoint.name, copy_function=link_or_copy)
        what = message if place is None else f"{message}, checkpoint"
        job = push_in_background(repository, aside, checkpoint.name, what, place)
        job.add_done_callback(_warn)
        jobs = [*jobs, job]
    trainer.push_in_progress = PushInProgress(jobs)


def push_in_background(
    repository: HubRepository, aside: Path, name: str, message: str, place: str | None = None
) -> Future[str]:
    """Upload a folder that is there for this upload alone, after those that were begun before.

    Args:
        repository: where to.
        aside: holds the folder, and goes when the upload has ended.
        name: of the folder in it.
        message: of the commit.
        place: folder of the repository; None for its root, which gets the model's files alone.

    Returns:
        What will have the repository's address, or the InputError of a refusal.
    """

    def upload() -> str:
        leave_out = NOT_OF_MODEL if place is None else ()
        try:
            return repository.upload(aside / name, message, place=place, leave_out=leave_out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    return _uploads.submit(upload)


def _warn(job: Future[str]) -> None:
    if error := job.exception():
        logger.warning("a checkpoint was not pushed, and training goes on: %s", error)
