"""A thin subclass of transformers' Trainer: packed batches in, any objective's terms out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from preftune.data.groups import TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.objectives import Objective, ScoredResponses, Unit, count_units
from preftune.policy import PackedReader
from preftune.training.batches import Row, StepSampler, fill, plan_steps
from preftune.training.configuration import BatchesSection, ValueHeadSection
from preftune.training.tally import Tally

Batch = dict[str, PackedBatch]
"""The one input of what is trained, a policy or a reward model."""
Step = list[Batch]
"""Rows that a process takes between two exchanges of gradients; among several it has at least one."""
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


class RowDataset(Dataset[Step]):
    """A list of groups, of which any row can be taken."""

    def __init__(self, groups: Sequence[TokenizedGroup]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, row: Row) -> Step:
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
    return [{"batch": pack(groups)}]


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
        self.objective = objective
        self._batches = batches
        self._value_head = value_head or ValueHeadSection()
        self._divergence: Tensor | None = None
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
        counts = [count_units(row.lengths, row.chosen) for row in rows]
        units = list(counts[0])
        tokens = torch.tensor(sum(len(row.input_ids) for row in rows))
        local = torch.stack([tokens, *(torch.stack([c[unit] for c in counts]).sum() for unit in units)])
        total = self._sum_over_processes(local.to(device, non_blocking=True))
        self._tokens_seen += total[0]
        self._estimate_divergence(rows)
        return steps, dict(zip(units, total[1:], strict=True))

    def training_step(
        self, model: nn.Module, inputs: Step, num_items_in_batch: Counts | None = None
    ) -> Tensor:
        """Forward and backward pass of every row; gradients are exchanged in the last row's backward."""
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
        losses = self.objective(responses)
        own = count_units(responses.lengths, responses.chosen)
        (self._train_tally if model.training else self._evaluation_tally).add(losses, own)
        # Gradients are averaged over processes afterwards, while the counts are sums over them.
        loss = losses.total(num_items_in_batch or own) * (
            self.accelerator.num_processes if model.training else 1
        )
        return (loss, responses) if return_outputs else loss

    @torch.no_grad()
    def _estimate_divergence(self, rows: Iterable[PackedBatch]) -> None:
        """KL(policy || reference) from the rows' mismatched responses, in nats, where the objective needs it.

        One number for the whole step or evaluation, over all processes: rows and shares then change no loss.
        """
        if "divergence" not in self.objective.needs:
            return
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in [row.mismatched for row in rows if row.mismatched is not None]:
            batch = batch.to(self.args.device, non_blocking=True)
            # Not the wrapped model: in a pass without gradients processes have nothing to exchange.
            ratios = (self.model(batch=batch).logps - batch.reference_logps).double()
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
        self._estimate_divergence(row["batch"] for step in dataloader for row in step)
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
        share = longest_first[self.args.process_index :: self.args.world_size]
        if self._batches and self._batches.tokens_per_row:
            rows = fill(np.array([group.row_tokens for group in share]), self._batches.tokens_per_row)
        else:
            rows = fill(np.ones(len(share), dtype=np.int64), self.args.per_device_eval_batch_size)
        return DataLoader(RowDataset(share), batch_sampler=[[row] for row in rows], collate_fn=_join)

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
        return {name: batch.to(self.args.device, non_blocking=True) for name, batch in inputs.items()}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # The folder holds a language model that from_pretrained reads, and no pickled arguments.
        folder = output_dir or self.args.output_dir
        if self.args.should_save:
            self.model.language_model.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the language model, and in a checkpoint the value head beside it."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and self.model.value_head is not None and self.args.should_save:
            self.model.value_head.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model=self.model.language_model)
        if self.model.value_head is not None:
            self.model.value_head.load(Path(resume_from_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied head is saved once, as the embedding; nothing else may be missing.
        missing = set(load_result.missing_keys) - set(self.model.causal_lm().all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise RuntimeError(
                f"the checkpoint lacks {missing} or has too much: {load_result.unexpected_keys}"
            )
