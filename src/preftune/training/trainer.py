"""A thin subclass of transformers' Trainer: packed batches in, any objective's terms out."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from preftune.data.groups import TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.objectives import Objective, ScoredResponses, Unit, count_units
from preftune.policy import Policy
from preftune.training.tally import Tally

Batch = dict[str, PackedBatch]
Counts = dict[Unit, Tensor]


class GroupDataset(Dataset[TokenizedGroup]):
    """A list of groups, as torch's DataLoader wants it."""

    def __init__(self, groups: Sequence[TokenizedGroup]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> TokenizedGroup:
        return self._groups[index]


def collate(groups: list[TokenizedGroup]) -> Batch:
    """Pack groups into the one input of `Policy.forward`."""
    return {"batch": pack(groups)}


class PreferenceTrainer(Trainer):
    """Trains a policy on any objective; it knows neither methods nor data sets.

    Losses are exact over accumulation and processes: every term is divided by the number of its items
    (pairs, tokens) in the whole optimizer step, not by a mean of micro-batches' means.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        arguments: TrainingArguments,
        train_groups: Sequence[TokenizedGroup],
        evaluation_groups: Sequence[TokenizedGroup] | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            model=policy,
            args=arguments,
            data_collator=collate,
            train_dataset=GroupDataset(train_groups),
            eval_dataset=GroupDataset(evaluation_groups) if evaluation_groups else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.objective = objective
        # The loss is already divided by the counts of the whole step.
        self.loss_is_scaled_for_ga = True
        self._train_tally, self._evaluation_tally = Tally(), Tally()
        self._tokens_seen = torch.zeros((), dtype=torch.int64, device=arguments.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Counts]:
        """The micro-batches of one optimizer step, and the number of items of every unit in all of them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = [count_units(batch["batch"].lengths, batch["batch"].chosen) for batch in batches]
        units = list(counts[0])
        tokens = torch.tensor(sum(len(batch["batch"].input_ids) for batch in batches))
        local = torch.stack([tokens, *(torch.stack([c[unit] for c in counts]).sum() for unit in units)])
        total = self._sum_over_processes(local.to(device))
        self._tokens_seen += total[0]
        return batches, dict(zip(units, total[1:], strict=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor | tuple[Tensor, ScoredResponses]:
        """This micro-batch's share of the step's loss."""
        responses: ScoredResponses = model(**inputs)
        losses = self.objective(responses)
        own = count_units(responses.lengths, responses.chosen)
        (self._train_tally if model.training else self._evaluation_tally).add(losses, own)
        # Gradients are averaged over processes afterwards, while the counts are sums over them.
        loss = losses.total(num_items_in_batch or own) * (
            self.accelerator.num_processes if model.training else 1
        )
        return (loss, responses) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: Batch, *_: Any, **__: Any) -> tuple[None, None, None]:
        """Tally a batch of held-out groups; nothing is gathered per batch."""
        with torch.no_grad():
            self.compute_loss(model, self._prepare_inputs(inputs))
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Batch],
        description: str,
        *args: Any,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> EvalLoopOutput:
        """The usual loop; its metrics are the tally's."""
        output = super().evaluation_loop(
            dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        means = self._evaluation_tally.means(self._sum_over_processes)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:
        """This process's share of the held-out groups, each in exactly one share, long ones together."""
        groups = sorted(eval_dataset or self.eval_dataset, key=lambda group: len(group.prompt), reverse=True)
        share = groups[self.args.process_index :: self.args.world_size]
        return DataLoader[Any](
            GroupDataset(share), batch_size=self.args.per_device_eval_batch_size, collate_fn=collate
        )

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
        return {name: batch.to(self.args.device) for name, batch in inputs.items()}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # The folder holds a language model that from_pretrained reads, and no pickled arguments.
        folder = output_dir or self.args.output_dir
        if self.args.should_save:
            self.model.language_model.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model=self.model.language_model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied head is saved once, as the embedding; nothing else may be missing.
        missing = set(load_result.missing_keys) - set(self.model.causal_lm().all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise RuntimeError(
                f"the checkpoint lacks {missing} or has too much: {load_result.unexpected_keys}"
            )
