"""Those who are measured, each driven through its own trainer: preftune, and TRL's DPO.

All get the same tokens and weights. The policy's weights are moved off the reference's by seeded noise, so
that the loss is not log 2, and the learning rate is 0, so that every step computes the same loss. In
bfloat16 losses differ by rounding alone, TRL's from its own at another batch size by 0.02; so each contestant
also says what it computes in float32.
"""

import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import Trainer
from trl_examples import Example, trl_examples

from preftune import objectives
from preftune.data import TokenizedGroup
from preftune.models import Policy, ReferenceCache, load_language_model, load_tokenizer
from preftune.models.allocator import keep_freed_memory
from preftune.training import check_config
from preftune.training.configuration import LoraSection, RunConfig

# The command line's own, so that a user's settings are measured and not a copy of them.
from preftune.training.policy import language_model, training_precision
from preftune.training.preparation import training_arguments
from preftune.training.trainer import PackedTrainer

WEIGHT_NOISE = 1e-3
ADAPTER_NOISE = 4e-3


@dataclass(frozen=True)
class Measured:
    """One step; `loss` is the mean negative log p of a response token where nothing is trained."""

    seconds: float
    forward_backward_seconds: float
    loss: float


@dataclass(frozen=True)
class Setting:
    """What a contestant is built from."""

    model: str
    groups: list[TokenizedGroup]
    lora: bool = False


class Contestant(Protocol):
    """Anything that can be measured."""

    items: int
    """Groups (preftune) or pairs (TRL) of the whole batch."""
    exact_loss: float | None
    """The loss of the first group's pairs in float32, where that is not what steps compute anyway."""

    def step(self, at_a_time: int, first_only: bool = False) -> Measured:
        """The whole batch, `at_a_time` items in a micro-batch; or its first item alone, to warm up."""
        ...


class TrainingSteps:
    """Whole optimizer steps of a transformers Trainer: forward, backward, clipping, AdamW, zero_grad."""

    def __init__(self, trainer: Trainer, examples: Sequence[Any], of_first_group: int) -> None:
        """Prepare the trainer as its `train` would; `of_first_group` examples are the first group's."""
        self.items = len(examples)
        self._trainer, self._examples = trainer, examples
        # Before accelerate puts autocast around the model.
        self.exact_loss = _exact_loss(trainer, examples[:of_first_group])
        if trainer.args.gradient_checkpointing:
            trainer.model.activation_checkpointing_enable()  # as Trainer.train begins
        trainer.create_optimizer()
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0
        self._model, self._optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        self._model.train()

    def step(self, at_a_time: int, first_only: bool = False) -> Measured:
        """The whole batch, accumulated over micro-batches."""
        trainer = self._trainer
        examples = self._examples[:1] if first_only else self._examples
        began = time.perf_counter()
        parts = [examples[start : start + at_a_time] for start in range(0, len(examples), at_a_time)]
        trainer.current_gradient_accumulation_steps = len(parts)
        batches, items = trainer.get_batch_samples(
            map(trainer.data_collator, parts), len(parts), trainer.args.device
        )
        losses = [trainer.training_step(self._model, batch, items) for batch in batches]
        loss = float(torch.stack(losses).sum())
        accumulated = time.perf_counter()
        trainer.accelerator.clip_grad_norm_(self._model.parameters(), trainer.args.max_grad_norm)
        self._optimizer.step()
        self._model.zero_grad()
        ended = time.perf_counter()
        return Measured(ended - began, accumulated - began, loss)


class ReferencePass:
    """Scoring responses under the reference; there is no backward pass."""

    def __init__(
        self,
        score: Callable[[Sequence[Any], int], float],
        examples: Sequence[Any],
        tokens: Callable[..., int],
    ) -> None:
        self.items = len(examples)
        self.exact_loss: float | None = None
        self._score, self._examples, self._tokens = score, examples, tokens

    def step(self, at_a_time: int, first_only: bool = False) -> Measured:
        """All groups or pairs."""
        examples = self._examples[:1] if first_only else self._examples
        began = time.perf_counter()
        logp = self._score(examples, at_a_time)
        seconds = time.perf_counter() - began
        return Measured(seconds, seconds, -logp / sum(map(self._tokens, examples)))


def preftune(setting: Setting, share_prompts: bool | None = None) -> TrainingSteps:
    """Preftune as its command line sets it up."""
    keep_freed_memory()
    config = _configuration(setting)
    model = language_model(config)
    move_off_reference(model, setting.lora)
    trainer = PackedTrainer(
        Policy(model, share_prompts),
        objectives.build(config.objective),
        training_arguments(config, is_evaluated=False),
        setting.groups,
        None,
        load_tokenizer(setting.model),
        callbacks=[],
    )
    return TrainingSteps(trainer, setting.groups, 1)


def preftune_padded(setting: Setting) -> TrainingSteps:
    """Preftune with a padded row for every response, as for models that cannot share prompts."""
    return preftune(setting, share_prompts=False)


def preftune_reference(setting: Setting) -> ReferencePass:
    """The reference cache, filled from nothing each time."""
    keep_freed_memory()
    config = _configuration(setting)
    policy = Policy(language_model(config))
    policy.eval()

    def score(groups: Sequence[TokenizedGroup], _: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            cache = ReferenceCache(Path(folder), "benchmark")
            precision = training_precision(training_arguments(config, is_evaluated=False))
            filled = cache.fill(policy, groups, precision)
        return sum(float(group.per_response["reference_logps"].sum()) for group in filled)

    return ReferencePass(score, setting.groups, lambda group: sum(map(len, group.responses)))


def trl_default(setting: Setting) -> TrainingSteps:
    """TRL as DPOConfig comes: activations recomputed, a second model as the reference."""
    return TrainingSteps(_dpo_trainer(setting), trl_examples(setting.groups), len(setting.groups[0].pairs))


def trl_best(setting: Setting) -> TrainingSteps:
    """TRL without recomputation, the reference's log-probabilities given."""
    trainer = _dpo_trainer(setting, gradient_checkpointing=False, precompute_ref_log_probs=True)
    return TrainingSteps(trainer, trl_examples(setting.groups), len(setting.groups[0].pairs))


def trl_reference(setting: Setting) -> ReferencePass:
    """TRL's own precomputation."""
    disable_progress_bars()
    trainer = _dpo_trainer(setting, noise=False, precompute_ref_log_probs=True)
    passes = iter(range(1_000_000))

    def score(examples: Sequence[Example], at_a_time: int) -> float:
        trainer._precompute_model_hash = f"pass {next(passes)}"  # else it finds the last pass's file
        scored = trainer._precompute_ref_logps(Dataset.from_list(list(examples)), "train", at_a_time)
        return sum(sum(scored[name]) for name in ("ref_chosen_logps", "ref_rejected_logps"))

    return ReferencePass(
        score,
        trl_examples(setting.groups),
        lambda example: len(example["chosen_ids"]) + len(example["rejected_ids"]),
    )


CONTESTANTS: dict[str, dict[str, Callable[[Setting], Contestant]]] = {
    "step": {
        "preftune": preftune,
        "preftune_padded": preftune_padded,
        "trl_default": trl_default,
        "trl_best": trl_best,
    },
    "reference": {"preftune": preftune_reference, "trl_default": trl_reference, "trl_best": trl_reference},
}
"""By task and name."""


@torch.no_grad()
def _exact_loss(trainer: Trainer, examples: Sequence[Any]) -> float:
    """The trainer's own loss of one batch, without autocast."""
    device = trainer.args.device
    (batch,), items = trainer.get_batch_samples(iter([trainer.data_collator(examples)]), 1, device)
    rows = batch if isinstance(batch, list) else [batch]
    with _without_autocast(getattr(trainer, "ref_model", None)):
        losses = [trainer.compute_loss(trainer.model, row, num_items_in_batch=items) for row in rows]
    return float(torch.stack(losses).sum())


@contextmanager
def _without_autocast(reference: Any) -> Iterator[None]:
    """Take off what accelerate put around TRL's second model."""
    wrapped = getattr(reference, "forward", None)
    if hasattr(reference, "_original_forward"):
        reference.forward = reference._original_forward
    try:
        yield
    finally:
        if wrapped:
            reference.forward = wrapped


def _configuration(setting: Setting) -> RunConfig:
    return check_config(
        {
            "model": setting.model,
            "lora": {} if setting.lora else None,
            "data": {"train": "given as tokens"},
            "objective": {"method": "dpo"},
            "training": {
                "learning_rate": 1e-6,
                "per_device_train_batch_size": len(setting.groups),
                "bf16": True,
                "report_to": "none",
            },
            "output": tempfile.mkdtemp(),
        }
    )


def _dpo_trainer(setting: Setting, noise: bool = True, **options: Any) -> Trainer:
    # Only here, so that preftune's memory does not hold it.
    from trl import DPOConfig, DPOTrainer

    section = LoraSection()
    adapters = LoraConfig(
        r=section.rank, lora_alpha=section.alpha, target_modules=section.target_modules, task_type="CAUSAL_LM"
    )
    trainer = DPOTrainer(
        model=load_language_model(setting.model, torch.float32),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=not torch.accelerator.is_available(),
            bf16=True,
            report_to="none",
            disable_tqdm=True,
            **options,
        ),
        # The constructor wants text; steps are given token ids.
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=load_tokenizer(setting.model),
        peft_config=adapters if setting.lora else None,
    )
    if noise:
        move_off_reference(trainer.model, setting.lora)
    return trainer


@torch.no_grad()
def move_off_reference(model: torch.nn.Module, lora: bool) -> None:
    """Seeded noise by parameter name: relative on all matrices, or absolute in all adapters."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or not parameter.requires_grad:
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if not lora:
            parameter.mul_(1 + WEIGHT_NOISE * noise)
        elif "lora_A" in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(ADAPTER_NOISE * noise)
