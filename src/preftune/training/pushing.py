"""What of a training run goes to the hub, and when, by the fields that the Trainer's users know."""

import logging
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from preftune.errors import InputError
from preftune.models.publishing import Repository, link_or_copy
from preftune.storage.cards import CARD_FILE

logger = logging.getLogger(__name__)

OF_TRAINING = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json"),
    *("training_args.bin", "multipliers.json", CARD_FILE),
)
"""Files of a checkpoint that are no part of the model."""
_uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")


def repository_of(
    arguments: TrainingArguments, *, token: str | None = None, private: bool | None = None
) -> Repository:
    """The repository that the arguments name, or else one of the output folder's name."""
    return Repository(
        name=arguments.hub_model_id or Path(arguments.output_dir).absolute().name,
        private=arguments.hub_private_repo if private is None else private,
        revision=arguments.hub_revision,
        token=token or arguments.hub_token,
        key="training.hub_model_id",
    )


def open_repository(arguments: TrainingArguments) -> None:
    """Make the repository, where the run is to be pushed, so that a refusal comes before the work.

    Raises:
        InputError: the name is not valid, there is no token, or the hub refuses or cannot be reached.
    """
    if arguments.push_to_hub and arguments.process_index == 0:
        repository_of(arguments).checked().create()


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
    repository = repository_of(arguments)
    if "/" not in repository.name:
        repository = repository.owned_by(trainer.hub_model_id)
    by_step = arguments.save_strategy == SaveStrategy.STEPS
    state = trainer.state
    done = f"step {state.global_step}" if by_step else f"epoch {int(state.epoch or 0)}"
    places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
    aside = Path(tempfile.mkdtemp(prefix=".push-", dir=checkpoint.parent))
    shutil.copytree(checkpoint, aside / checkpoint.name, copy_function=link_or_copy)
    job = _uploads.submit(
        _upload, repository, aside, checkpoint.name, f"Training in progress, {done}", places.get(strategy)
    )
    jobs = [] if running is None or running.is_done() else running.jobs
    trainer.push_in_progress = PushInProgress([*jobs, job])


def _upload(repository: Repository, aside: Path, name: str, message: str, place: str | None) -> None:
    try:
        repository.upload(aside / name, message, leave_out=OF_TRAINING)
        if place is not None:
            repository.upload(aside / name, f"{message}, checkpoint", place=place, leave_out=[CARD_FILE])
    except InputError as error:
        logger.warning("a checkpoint was not pushed, and training goes on: %s", error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
