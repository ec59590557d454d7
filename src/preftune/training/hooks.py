"""Every private method of transformers' Trainer that preftune overrides, with the reason and the version.

Tested with transformers 5.23 and 5.24, whose originals are the same; `tests/training/test_hooks.py` fails
where another version has changed one. Beside these methods, the trainer sets three things that transformers
does not document: `is_distributed_loading_by_transformers` (since 5.20; the model is sharded already, nothing
is wrapped around it), `loss_is_scaled_for_ga` (since 5.20; the loss is divided by the counts of the whole
step already) and `TrainingArguments._n_gpu` (one process takes one GPU).
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from preftune.models import PackedReader
from preftune.models.adapters import checkpoint_options, save_tuned
from preftune.models.quantization import write_quantization
from preftune.models.saving import save_model_files
from preftune.models.sharding import (
    is_sharded,
    load_whole_optimizer_state,
    load_whole_state,
    saved_weights,
    whole_optimizer_state,
    whole_state,
)
from preftune.models.value_head import load_value_head
from preftune.training.configuration import ValueHeadSection
from preftune.training.ema import Ema
from preftune.training.multipliers import Multipliers
from preftune.training.pushing import push_checkpoint
from preftune.training.rows import Batch
from preftune.training.stopping import Stops


class TrainerHooks(Trainer):
    """The private side of the trainer.

    Attributes:
        model: what reads packed rows.
        stops: what ends training where it goes wrong.
        ema: the average of the trained weights, where there is one.
    """

    model: PackedReader
    _value_head: ValueHeadSection
    _multipliers: Multipliers | None
    _exports: bool
    _max_shard_size: str | None
    stops: Stops
    ema: Ema | None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Take note of the repository, which is checked and made before weights load."""
        self.hub_model_id, self.push_in_progress = self.args.hub_model_id, None

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        # Since 5.23. Deferred, a process would hold whole gradients until the last row of a step.
        return nullcontext()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # Since 5.10. The value head has a norm of its own, so the language model is clipped alone.
        norm: Tensor = super()._clip_grad_norm(self.model.language_model)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> float | Tensor:
        # Since 5.10. Called once before every update, whether the gradient is clipped or not: here the
        # value head is clipped.
        norm: float | Tensor = super()._get_grad_norm(self.model.language_model, grad_norm)
        self.stops.see(norm)
        if self.model.value_head is not None:
            nn.utils.clip_grad_norm_(self.model.value_head.parameters(), self._value_head.max_grad_norm)
        return norm

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        # Since 4. A blocking copy would wait for every kernel launched before it.
        moved = {name: batch.to(self.args.device, non_blocking=True) for name, batch in inputs.items()}
        return type(inputs)(moved)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # Since 4. The folder holds a language model that from_pretrained reads, and no pickled arguments.
        folder = output_dir or self.args.output_dir
        if is_sharded(self.model):
            whole = whole_state(self.model.language_model, keep=self.args.should_save)
            tied = self.model.causal_lm().all_tied_weights_keys
            state_dict = {name: weight for name, weight in whole.items() if name not in tied}
        if self.args.should_save:
            language_model, path = self.model.language_model, Path(folder)
            if self._exports:
                options = {"max_shard_size": self._max_shard_size} if self._max_shard_size else {}
                save_tuned(language_model, path, state_dict, **options)
            else:
                # Some models' files have other names and shapes; a checkpoint is read by the model's own.
                told = checkpoint_options(language_model)
                save_model_files(
                    language_model, path, state_dict=state_dict, save_original_format=False, **told
                )
            self.processing_class.save_pretrained(folder)
            if hasattr(language_model, "peft_config"):
                write_quantization(self.model.causal_lm(), Path(folder))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Since 4. A copy of the checkpoint is uploaded in the background, without pickles unless asked for.
        push_checkpoint(self, Path(checkpoint_folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Since 4. The checkpoint is the language model's; value head and multipliers lie beside it.
        folder = Path(resume_from_checkpoint)
        if self.ema:
            self.ema.load(folder)
        if is_sharded(self.model):
            load_whole_state(self.model.language_model, saved_weights(folder, self.model.language_model))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model=self.model.language_model)
        if self.model.value_head is not None:
            load_whole_state(self.model.value_head, load_value_head(folder))
        if self._multipliers:
            self._multipliers.load(folder)

    def _load_best_model(self) -> None:
        # Since 4. The other end of `_save` here too.
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Since 4. Of a sharded model the whole state is saved, so that other processes can go on with it.
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Since 4. The other end of `_save_optimizer_and_scheduler`.
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if not (Path(checkpoint) / OPTIMIZER_NAME).exists():
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        load_whole_optimizer_state(self.model, self.optimizer.optimizer, state)
        self.lr_scheduler.load_state_dict(schedule)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Since 4. A tied head is saved once, as the embedding; nothing else may be missing.
        missing = set(load_result.missing_keys) - set(self.model.causal_lm().all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise RuntimeError(
                f"the checkpoint lacks {missing} or has too much: {load_result.unexpected_keys}"
            )
