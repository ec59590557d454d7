"""A thin subclass of transformers' Trainer: packed batches in, any objective's terms out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from preftune.data.groups import TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.models import PackedReader
from preftune.models.sharding import (
    is_sharded,
    load_whole_optimizer_state,
    load_whole_state,
    saved_weights,
    shard,
    whole_optimizer_state,
    whole_state,
)
from preftune.models.value_head import load_value_head, save_value_head
from preftune.objectives import Objective, ScoredResponses, Unit, count_units
from preftune.training.batches import Row, StepSampler, fill, plan_steps
from preftune.training.configuration import BatchesSection, ValueHeadSection
from preftune.training.tally import Tally


class Batch(dict[str, PackedBatch]):
    """The one input of what is trained, a policy or a reward model."""


class IdleBatch(Batch):
    """A row whose outputs count for nothing: a process takes it while others are still at work.

    Where the model is divided over processes, each pass of one is a pass of all.
    """


Step = list[Batch]
"""Rows that a process takes in a step, or in a micro-batch of one; among several processes each has one."""
Counts = dict[Unit, Tensor]

LOADER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "multiprocessing_context",
    "in_order",
)
"""What `training.dataloader_*` passes on to torch."""


@dataclass(frozen=True)
class IdleRow:
    """The groups of an `IdleBatch`."""

    groups: Row


class RowDataset(Dataset[Step]):
    """A list of groups, of which any row can be taken."""

    def __init__(self, groups: Sequence[TokenizedGroup]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, row: Row | IdleRow) -> Step:
        if isinstance(row, IdleRow):
            return [IdleBatch(batch) for batch in self[row.groups]]
        return collate([self.groups[index] for index in row])


class StepLoader(DataLoader[list[Any]]):
    """Loads whole steps, of whatever the data set gives for a row; the Trainer tells it the epoch."""

    def __init__(self, dataset: Dataset[list[Any]], steps: StepSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=steps, collate_fn=_join, **options)
        self._steps = steps

    def set_epoch(self, epoch: int) -> None:
        """Take the steps of this epoch."""
        self._steps.set_epoch(epoch)


def collate(groups: list[TokenizedGroup]) -> Step:
    """Pack groups into a step of one row."""
    return [Batch(batch=pack(groups))]


def _nothing(responses: ScoredResponses) -> Tensor:
    """A loss of zero to which every output belongs, so that every weight has its gradient."""
    outputs = (responses.logps, responses.scores, responses.values, responses.router_loss)
    return torch.stack([0.0 * output.sum() for output in outputs if output is not None]).sum()


def _join(steps: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(steps))


class PreferenceTrainer(Trainer):
    """Trains a policy or a reward model on any objective; it knows neither methods nor data sets.

    Losses are exact over accumulation and processes: every term is divided by the number of its items
    (pairs, tokens) in the whole optimizer step, not by a mean of micro-batches' means.
    """

    def __init__(
        self,
        policy: PackedReader,
        objective: Objective,
        arguments: TrainingArguments,
        train_groups: Sequence[TokenizedGroup],
        evaluation_groups: Sequence[TokenizedGroup] | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        batches: BatchesSection | None = None,
        value_head: ValueHeadSection | None = None,
        fully_sharded: bool = False,
    ) -> None:
        super().__init__(
            model=policy,
            args=arguments,
            data_collator=collate,
            train_dataset=RowDataset(train_groups),
            eval_dataset=RowDataset(evaluation_groups) if evaluation_groups else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        if fully_sharded:
            shard(policy)
            # The model has its gradients reduced; nothing is to be wrapped around it.
            self.is_distributed_loading_by_transformers = True
        self.objective = objective
        self._batches = batches
        self._value_head = value_head or ValueHeadSection()
        self._divergence: Tensor | None = None
        self._exports = False
        self._steps = plan_steps(train_groups, arguments, batches)
        # The loss is already divided by the counts of the whole step.
        self.loss_is_scaled_for_ga = True
        self._train_tally, self._evaluation_tally = Tally(), Tally()
        self._tokens_seen = torch.zeros((), dtype=torch.int64, device=arguments.device)

    def get_train_dataloader(self) -> StepLoader:
        """This process's rows of every step: nothing is left for accelerate to shard, or to repeat."""
        options = {name: getattr(self.args, f"dataloader_{name}") for name in LOADER_OPTIONS}
        return StepLoader(self.train_dataset, self._steps, **options)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Groups of an optimizer step on average, for the Trainer's samples per second."""
        groups: int = round(len(self.train_dataset) * args.gradient_accumulation_steps / len(self._steps))
        return groups

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: torch.device
    ) -> tuple[list[Step], Counts]:
        """What one optimizer step accumulates, and the number of items of every unit in all of it."""
        steps = [step for _, step in zip(range(num_batches), epoch_iterator, strict=False)]
        rows = [row["batch"] for step in steps for row in step]
        if not rows:
            return steps, {}
        if is_sharded(self.model):
            steps = self._with_idle_rows(steps)
        counts = [count_units(row.lengths, row.chosen) for row in rows]
        units = list(counts[0])
        tokens = torch.tensor(sum(len(row.input_ids) for row in rows))
        local = torch.stack([tokens, *(torch.stack([c[unit] for c in counts]).sum() for unit in units)])
        total = self._sum_over_processes(local.to(device, non_blocking=True))
        self._tokens_seen += total[0]
        self._estimate_divergence(row for step in steps for row in step)
        return steps, dict(zip(units, total[1:], strict=True))

    def _with_idle_rows(self, steps: list[Step]) -> list[Step]:
        """The steps, with as many rows in every process; the shortest row of a process is its idle one."""
        most = torch.tensor([len(step) for step in steps], device=self.args.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        filled = []
        for step, rows in zip(steps, most.tolist(), strict=True):
            shortest = min(step, key=lambda row: len(row["batch"].input_ids))
            filled.append([*[IdleBatch(shortest)] * (rows - len(step)), *step])
        return filled

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        # A process would hold whole gradients until the last row of a step.
        return nullcontext()

    def training_step(
        self, model: nn.Module, inputs: Step, num_items_in_batch: Counts | None = None
    ) -> Tensor:
        """Forward and backward pass of every row.

        Gradients are exchanged in the last row's backward pass, those of a divided model in every row's.
        """
        loss = torch.zeros((), device=self.args.device)
        if not inputs:
            return loss
        *rows, last = inputs
        with self.accelerator.no_sync(model):
            for row in rows:
                loss += super().training_step(model, row, num_items_in_batch)
        loss += super().training_step(model, last, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor | tuple[Tensor, ScoredResponses]:
        """This row's share of the step's loss."""
        responses: ScoredResponses = replace(model(**inputs), divergence=self._divergence)
        if isinstance(inputs, IdleBatch):
            loss = _nothing(responses)
            return (loss, responses) if return_outputs else loss
        losses = self.objective(responses)
        own = count_units(responses.lengths, responses.chosen)
        (self._train_tally if model.training else self._evaluation_tally).add(losses, own)
        # Gradients are averaged over processes afterwards, while the counts are sums over them.
        loss = losses.total(num_items_in_batch or own) * (
            self.accelerator.num_processes if model.training else 1
        )
        return (loss, responses) if return_outputs else loss

    @torch.no_grad()
    def _estimate_divergence(self, rows: Iterable[Batch]) -> None:
        """KL(policy || reference) from the rows' mismatched responses, in nats, where the objective needs it.

        One number for the whole step or evaluation, over all processes: rows and shares then change no loss.
        """
        if "divergence" not in self.objective.needs:
            return
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for row in rows:
            batch = row["batch"].mismatched
            if batch is None:
                continue
            batch = batch.to(self.args.device, non_blocking=True)
            # Not the wrapped model: in a pass without gradients DDP has nothing to exchange.
            ratios = (self.model(batch=batch).logps - batch.numbers["reference_logps"]).double()
            if isinstance(row, IdleBatch):
                continue
            total += torch.stack((ratios.sum(), torch.full_like(ratios[0], len(ratios))))
        log_ratios, responses = self._sum_over_processes(total)
        self._divergence = (log_ratios / responses).clamp(min=0).float()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The usual optimizer of the language model; the value head joins it at its own learning rate."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(self.model.language_model)
        if is_new and self.model.value_head is not None:
            own = {"params": list(self.model.value_head.parameters()), "weight_decay": 0.0}
            optimizer.add_param_group({**own, "lr": self._value_head.learning_rate})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(self.model.language_model)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> float | Tensor:
        # Called once before every update, whether the language model's gradient is clipped or not.
        norm: float | Tensor = super()._get_grad_norm(self.model.language_model, grad_norm)
        if self.model.value_head is not None:
            nn.utils.clip_grad_norm_(self.model.value_head.parameters(), self._value_head.max_grad_norm)
        return norm

    def prediction_step(self, model: nn.Module, inputs: Step, *_: Any, **__: Any) -> tuple[None, None, None]:
        """Tally rows of held-out groups; nothing is gathered per row."""
        with torch.no_grad():
            for row in inputs:
                self.compute_loss(model, self._prepare_inputs(row))
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Step],
        description: str,
        *args: Any,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> EvalLoopOutput:
        """The usual loop; its metrics are the tally's."""
        training = self._divergence
        self._estimate_divergence(row for step in dataloader for row in step)
        output = super().evaluation_loop(
            dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        self._divergence = training
        means = self._evaluation_tally.means(self._sum_over_processes)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def get_eval_dataloader(self, eval_dataset: RowDataset | None = None) -> DataLoader[Step]:
        """This process's share of the held-out groups, each in exactly one share, long ones together."""
        groups = (eval_dataset or self.eval_dataset).groups
        longest_first = sorted(groups, key=lambda group: len(group.prompt), reverse=True)
        shares = [longest_first[process :: self.args.world_size] for process in range(self.args.world_size)]
        filled = [self._evaluation_rows(share) for share in shares]
        share = shares[self.args.process_index]
        rows: list[Row | IdleRow] = [*filled[self.args.process_index]]
        if is_sharded(self.model):
            rows += [IdleRow([len(share) - 1])] * (max(map(len, filled)) - len(rows))
        return DataLoader(RowDataset(share), batch_sampler=[[row] for row in rows], collate_fn=_join)

    def _evaluation_rows(self, share: Sequence[TokenizedGroup]) -> list[Row]:
        if self._batches and self._batches.tokens_per_row:
            return fill(np.array([group.row_tokens for group in share]), self._batches.tokens_per_row)
        return fill(np.ones(len(share), dtype=np.int64), self.args.per_device_eval_batch_size)

    def has_evaluated(self) -> bool:
        """Whether the policy as it stands was evaluated on held-out groups."""
        history = self.state.log_history
        return any("eval_loss" in line and line["step"] == self.state.global_step for line in history)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tally's means to the Trainer's own log line."""
        if "loss" in logs:
            logs |= self._train_tally.means(self._sum_over_processes)
            logs["tokens"] = int(self._tokens_seen)
        super().log(logs, start_time)

    def _sum_over_processes(self, sums: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(sums, reduction="sum")
        return total

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        # A blocking copy would wait for every kernel launched before it.
        moved = {name: batch.to(self.args.device, non_blocking=True) for name, batch in inputs.items()}
        return type(inputs)(moved)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # The folder holds a language model that from_pretrained reads, and no pickled arguments.
        folder = output_dir or self.args.output_dir
        if is_sharded(self.model):
            whole = whole_state(self.model.language_model, keep=self.args.should_save)
            tied = self.model.causal_lm().all_tied_weights_keys
            state_dict = {name: weight for name, weight in whole.items() if name not in tied}
        if self.args.should_save:
            # Some models' files have other names and shapes than they; a checkpoint is read by the model's.
            names = {} if self._exports else {"save_original_format": False}
            self.model.language_model.save_pretrained(folder, state_dict=state_dict, **names)
            self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the language model, and in a checkpoint the value head beside it."""
        self._exports = not _internal_call
        super().save_model(output_dir, _internal_call)
        if _internal_call:
            self.save_value_head(Path(output_dir or self.args.output_dir))

    def save_value_head(self, folder: Path) -> None:
        """Save the value head, if there is one; every process calls it."""
        head = self.model.value_head
        if head is None:
            return
        weights = whole_state(head, keep=self.args.should_save)
        if self.args.should_save:
            save_value_head(weights, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if is_sharded(self.model):
            load_whole_state(self.model.language_model, saved_weights(folder, self.model.language_model))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model=self.model.language_model)
        if self.model.value_head is not None:
            load_whole_state(self.model.value_head, load_value_head(folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
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
        # A tied head is saved once, as the embedding; nothing else may be missing.
        missing = set(load_result.missing_keys) - set(self.model.causal_lm().all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise RuntimeError(
                f"the checkpoint lacks {missing} or has too much: {load_result.unexpected_keys}"
            )
