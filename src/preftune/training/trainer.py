"""A thin subclass of transformers' Trainer: packed batches in, any objective's terms out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from preftune.data.groups import TokenizedGroup
from preftune.models import PackedReader
from preftune.models.sharding import is_sharded, shard, whole_state
from preftune.models.value_head import save_value_head
from preftune.objectives import Objective, ScoredResponses, count_units
from preftune.training.batches import RowIndices, fill, plan_steps
from preftune.training.configuration import BatchesSection, EmaSection, StopSection, ValueHeadSection
from preftune.training.ema import Ema, EmaCallback
from preftune.training.hooks import TrainerHooks
from preftune.training.multipliers import EndOfStep, Multipliers
from preftune.training.optimizers import rounding_optimizer, split_groups
from preftune.training.rows import (
    LOADER_OPTIONS,
    Batch,
    Counts,
    IdleBatch,
    IdleRow,
    RowDataset,
    Step,
    StepLoader,
    collate,
    join,
)
from preftune.training.stopping import Stops, has_evaluation
from preftune.training.tally import Tally

HeldOutGroups = Sequence[TokenizedGroup] | Mapping[str, Sequence[TokenizedGroup]]
"""Held-out groups; several sets by name have metrics of their own, `eval_NAME_...`."""


def _nothing(responses: ScoredResponses) -> Tensor:
    """A loss of zero to which every output belongs, so that every weight has its gradient."""
    outputs = (responses.logps, responses.scores, responses.values, responses.router_loss)
    return torch.stack([0.0 * output.sum() for output in outputs if output is not None]).sum()


def _held_out(groups: HeldOutGroups | None) -> RowDataset | dict[str, RowDataset] | None:
    if not groups:
        return None
    if isinstance(groups, Mapping):
        return {name: RowDataset(own) for name, own in groups.items()}
    return RowDataset(groups)


class PackedTrainer(TrainerHooks):
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
        evaluation_groups: HeldOutGroups | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback],
        batches: BatchesSection | None = None,
        value_head: ValueHeadSection | None = None,
        fully_sharded: bool = False,
        optimizers: tuple[Any, Any] = (None, None),
        stop: StopSection | None = None,
        learning_rates: Mapping[str, float] | None = None,
        stochastic_rounding: bool = False,
        ema: EmaSection | None = None,
    ) -> None:
        super().__init__(
            model=policy,
            args=arguments,
            data_collator=collate,
            train_dataset=RowDataset(train_groups),
            eval_dataset=_held_out(evaluation_groups),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            optimizers=optimizers,
            optimizer_cls_and_kwargs=rounding_optimizer(arguments) if stochastic_rounding else None,
        )
        if fully_sharded:
            shard(policy)
            # The model has its gradients reduced; nothing is to be wrapped around it.
            self.is_distributed_loading_by_transformers = True
        self.objective = objective
        self._batches = batches
        self._value_head = value_head or ValueHeadSection()
        self._divergence: Tensor | None = None
        self._multipliers = Multipliers(objective.dual, arguments.device) if objective.dual else None
        self._exports = False
        self._max_shard_size: str | None = None
        self.kept_step: int | None = 0
        self._steps = plan_steps(train_groups, arguments, batches)
        # The loss is already divided by the counts of the whole step.
        self.loss_is_scaled_for_ga = True
        self._train_tally, self._evaluation_tally = Tally(), Tally()
        self._tokens_seen = torch.zeros((), dtype=torch.int64, device=arguments.device)
        self.stops = Stops(stop or StopSection(), policy, arguments.device, self._sum_over_processes)
        self.add_callback(self.stops)
        self._learning_rates = learning_rates or {}
        self.ema = Ema(policy.language_model, ema) if ema else None
        if self.ema:
            self.add_callback(EmaCallback(self.ema))
        if self._multipliers:
            self.add_callback(EndOfStep(self._multipliers, self._sum_over_processes))

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train as `transformers.Trainer` does; afterwards the language model is as it was given, tuned.

        Where training has ended by itself (`stops.stop`), it has the weights of the checkpoint that is kept.
        """
        if self.ema:
            self.ema.forget()
        with self.model.in_use():
            output = super().train(*arguments, **named)
            self.settle()
        return output

    def settle(self) -> None:
        """Load the weights that are kept; `kept_step` is then their step, or None where all are lost."""
        if self.ema:
            self.ema.use_last()
        self.kept_step = self._settle()
        if self.ema and self.ema.keeps_average:
            self.ema.use_average()

    def _settle(self) -> int | None:
        best, stops = self.state.best_model_checkpoint, self.stops
        stops.end(self.state)
        if self.args.load_best_model_at_end and best:
            return int(Path(best).name.removeprefix("checkpoint-"))
        if stops.stop is None:
            return int(self.state.global_step)
        for step in stops.good_steps():
            folder = Path(self.args.output_dir) / f"checkpoint-{step}"
            if folder.is_dir():
                self._load_from_checkpoint(str(folder))
                if stops.weights_are_finite():
                    return step
        return None if stops.stop.is_failure else int(self.state.global_step)

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does; the average where that is kept."""
        kept = self.ema.in_use(average=self.ema.keeps_average) if self.ema else nullcontext()
        with self.model.in_use(), kept:
            figures: dict[str, float] = super().evaluate(*arguments, **named)
        return figures

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
        counts = [count_units(row.lengths, row.chosen, row.numbers.get("groups")) for row in rows]
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

    def training_step(
        self, model: nn.Module, inputs: Step, num_items_in_batch: Counts | None = None
    ) -> Tensor:
        """Forward and backward pass of every row.

        Gradients are exchanged in the last row's backward pass, those of a sharded model in every row's.
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
        multipliers = self._multipliers.values if self._multipliers else None
        responses: ScoredResponses = replace(
            model(**inputs), divergence=self._divergence, multipliers=multipliers
        )
        if isinstance(inputs, IdleBatch):
            loss = _nothing(responses)
            return (loss, responses) if return_outputs else loss
        losses = self.objective(responses)
        own = count_units(responses.lengths, responses.chosen, responses.groups)
        (self._train_tally if model.training else self._evaluation_tally).add(losses, own)
        if self._multipliers and model.training:
            self._multipliers.add(losses)
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
        if is_new and self._learning_rates:
            split_groups(optimizer, self.model.language_model, self._learning_rates)
        if is_new and self.model.value_head is not None:
            own = {"params": list(self.model.value_head.parameters()), "weight_decay": 0.0}
            optimizer.add_param_group({**own, "lr": self._value_head.learning_rate})
        return optimizer

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
        # The usual loop does so too, but later.
        self.model.eval()
        self._estimate_divergence(row for step in dataloader for row in step)
        output = super().evaluation_loop(
            dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        self._divergence = training
        means = self._evaluation_tally.means(self._sum_over_processes)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def get_eval_dataloader(self, eval_dataset: str | RowDataset | None = None) -> DataLoader[Step]:
        """This process's share of the held-out groups, each in exactly one share, long ones together."""
        found = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        groups = (found or self.eval_dataset).groups
        longest_first = sorted(groups, key=lambda group: len(group.prompt), reverse=True)
        shares = [longest_first[process :: self.args.world_size] for process in range(self.args.world_size)]
        filled = [self._evaluation_rows(share) for share in shares]
        share = shares[self.args.process_index]
        rows: list[RowIndices | IdleRow] = [*filled[self.args.process_index]]
        if is_sharded(self.model):
            rows += [IdleRow([len(share) - 1])] * (max(map(len, filled)) - len(rows))
        return DataLoader(RowDataset(share), batch_sampler=[[row] for row in rows], collate_fn=join)

    def _evaluation_rows(self, share: Sequence[TokenizedGroup]) -> list[RowIndices]:
        if self._batches and self._batches.tokens_per_row:
            return fill(np.array([group.row_tokens for group in share]), self._batches.tokens_per_row)
        return fill(np.ones(len(share), dtype=np.int64), self.args.per_device_eval_batch_size)

    def multipliers(self) -> dict[str, float] | None:
        """The multiplier of each bound as it stands; None without bounds."""
        return self._multipliers.by_name() if self._multipliers else None

    def has_evaluated(self) -> bool:
        """Whether the policy as it stands was evaluated on held-out groups."""
        return has_evaluation(self.state, self.kept_step or 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tally's means to the Trainer's own log line."""
        if "loss" in logs:
            logs |= self._train_tally.means(self._sum_over_processes)
            logs["tokens"] = int(self._tokens_seen)
        super().log(logs, start_time)

    def _sum_over_processes(self, sums: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(sums, reduction="sum")
        return total

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, max_shard_size: str | None = None
    ) -> None:
        """Save the language model, and in a checkpoint the value head beside it.

        Args:
            output_dir: the folder; `args.output_dir` unless given.
            _internal_call: whether it is a checkpoint.
            max_shard_size: of a file of weights, such as 5GB; transformers' own unless given.
        """
        self._exports, self._max_shard_size = not _internal_call, max_shard_size
        # Whoever pushes a saved model does so once all of its folder is written.
        super().save_model(output_dir, _internal_call=True)
        if _internal_call:
            self.save_value_head(Path(output_dir or self.args.output_dir))
            if self.ema:
                self.ema.save(Path(output_dir or self.args.output_dir), writes=self.args.should_save)
            if self._multipliers and self.args.should_save:
                self._multipliers.save(Path(output_dir or self.args.output_dir))

    def save_value_head(self, folder: Path) -> None:
        """Save the value head, if there is one; every process calls it."""
        head = self.model.value_head
        if head is None:
            return
        weights = whole_state(head, keep=self.args.should_save)
        if self.args.should_save:
            save_value_head(weights, folder)
