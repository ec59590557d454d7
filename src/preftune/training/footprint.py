"""Memory and time of a run: what follows from its configuration, and what one real step shows."""

import copy
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import OptimizerNames

from preftune.data import TokenizedGroup
from preftune.errors import InputError
from preftune.models import Policy
from preftune.models.adapters import shapes_of
from preftune.models.quantization import (
    Quantization,
    constants_bytes,
    count_weights,
    quantized_bytes,
    quantized_matrices,
)
from preftune.training.adapters import FORMS, adapter_shapes, start_of
from preftune.training.batches import plan_steps
from preftune.training.configuration import RunConfig
from preftune.training.given import Given
from preftune.training.optimizers import matched, note_lost_updates, trained_names
from preftune.training.policy import (
    build_policy,
    by_other_reference,
    has_other_reference,
    new_value_head,
    with_reference_logps,
)
from preftune.training.preparation import PreparedRun
from preftune.training.quantizing import quantization_of_run
from preftune.training.trainer import PackedTrainer

OPTIMIZER_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1}
"""Numbers that an optimizer keeps for each trained weight, in the weight's data type."""


@dataclass(frozen=True)
class Footprint:
    """Memory of the model on one device, in bytes, computed of its shapes; no weights are loaded.

    Attributes:
        device: where the run would train.
        available: memory of that device, in all; None where it is not known.
        parameters: weights of the model, adapter and value head.
        trained: those of them that are trained.
        weights: bytes of all.
        gradients: bytes of one gradient for each trained weight.
        optimizer: bytes of the optimizer's state; None where the optimizer is not one of `OPTIMIZER_STATES`.
        average: bytes of `ema`, with the weights that are set aside while it is evaluated.
    """

    device: str
    available: int | None
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int | None
    average: int = 0

    @property
    def total(self) -> int:
        """Weights, gradients, the average, and the optimizer's state as far as it is known."""
        return self.weights + self.gradients + self.average + (self.optimizer or 0)


@dataclass(frozen=True)
class MeasuredStep:
    """One step of the run, taken twice on a model that is then dropped; the second time counts.

    Attributes:
        tokens: of the step, each prompt counted once.
        row_tokens: of its longest row.
        seconds: forward and backward passes and the optimizer's step.
        activations: bytes. On CUDA, the peak of the allocator less weights, gradients and optimizer state;
            elsewhere, what the forward pass of a row keeps for the backward pass.
        peak: bytes that the allocator held at most, on CUDA.
    """

    tokens: int
    row_tokens: int
    seconds: float
    activations: int
    peak: int | None


def compute_footprint(prepared: PreparedRun) -> Footprint:
    """Memory that follows from the model's shapes, data types, adapter and optimizer.

    Raises:
        InputError: the adapter does not fit the model.
    """
    weights = list(_shapes(prepared))
    trained = [weight for weight in weights if weight.requires_grad]
    states = optimizer_states(prepared)
    gradients = bytes_of(trained)
    return Footprint(
        device=str(prepared.arguments.device),
        available=_device_memory(prepared.arguments.device),
        parameters=sum(map(count_weights, weights)),
        trained=sum(weight.numel() for weight in trained),
        weights=bytes_of(weights) + _beside_weights(prepared),
        gradients=gradients,
        optimizer=None if states is None else states * gradients,
        average=_average_bytes(prepared, trained),
    )


def _average_bytes(prepared: PreparedRun, trained: Sequence[Tensor]) -> int:
    # A value head has no average, and is small beside what has one.
    return sum(4 * weight.numel() for weight in trained) + bytes_of(trained) if prepared.config.ema else 0


def check_trained_weights(prepared: PreparedRun) -> None:
    """Check what the configuration says of the trained weights, by their names and data types.

    Raises:
        InputError: a pattern of `learning_rates` matches no weight, rounding has nothing to round, or the
            adapter does not fit the model.
    """
    config = prepared.config
    model = _shaped_model(prepared)
    if config.learning_rates:
        matched(config.learning_rates, trained_names(model))
    note_lost_updates(model, prepared.arguments.learning_rate, config.stochastic_rounding)


def _beside_weights(prepared: PreparedRun) -> int:
    """Bytes that quantised matrices take more than their parameters say, or less than their shapes do."""
    given, quantization = prepared.given.model, quantization_of_run(prepared.config)
    if given is not None:
        return constants_bytes(given)
    if quantization is None:
        return 0
    return saved_by(quantization, model_shapes(prepared))


def saved_by(quantization: Quantization, model: nn.Module) -> int:
    """Bytes by which a model's weights change once they are quantised; negative, as it gets smaller."""
    return sum(
        quantized_bytes(matrix, quantization) - bytes_of([matrix]) for matrix in quantized_matrices(model)
    )


def optimizer_states(prepared: PreparedRun) -> int | None:
    """Numbers that the run's optimizer keeps for each trained weight; None where that is not known."""
    if prepared.given.optimizers[0] is not None:
        return None
    if prepared.config.stochastic_rounding:
        # Two in float32, of weights in bfloat16.
        return 4
    return OPTIMIZER_STATES.get(OptimizerNames(prepared.arguments.optim).value)


def measure_step(prepared: PreparedRun) -> MeasuredStep:
    """Load the model and take the step of the first epoch that has the longest row.

    Nothing is written but the reference's log-probabilities of the step, to the cache.

    Raises:
        InputError: the model was given as an object, which a step would change, or cannot be loaded.
    """
    if prepared.given.model is not None:
        raise InputError(
            "measure: a step would change the model that is given as an object: give its name or folder"
        )
    groups, row_tokens = _heaviest_step(prepared)
    only = replace(prepared, train=replace(prepared.train, groups=groups), held_out={})
    # Before the policy loads, so that one model is in memory at a time.
    scored = by_other_reference(only) if has_other_reference(only) else None
    set_seed(prepared.arguments.seed)
    policy = build_policy(only)
    if scored is None and "reference" in prepared.objective.needs and isinstance(policy, Policy):
        scored = with_reference_logps(only, policy)
    clock, device = _Clock(), prepared.arguments.device
    with tempfile.TemporaryDirectory() as folder:
        trainer = _SavingCounter(
            policy,
            prepared.objective,
            _two_steps(prepared, folder),
            scored["train"] if scored else groups,
            None,
            prepared.tokenizer,
            [clock],
            batches=prepared.config.batches,
            value_head=prepared.config.value_head,
            stochastic_rounding=prepared.config.stochastic_rounding,
            ema=prepared.config.ema,
        )
        trainer.remove_callback(PrinterCallback)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trainer.train()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    state = compute_footprint(prepared).total
    return MeasuredStep(
        tokens=sum(group.packed_tokens for group in groups),
        row_tokens=row_tokens,
        seconds=clock.seconds[-1],
        activations=trainer.saved if peak is None else max(peak - state, 0),
        peak=peak,
    )


def seconds_of_run(prepared: PreparedRun, measured: MeasuredStep) -> float:
    """Seconds that all steps would take at the measured step's tokens per second."""
    tokens = prepared.train.tokens / prepared.steps_per_epoch * prepared.steps
    return measured.seconds / measured.tokens * tokens


# --- shapes ---


def _shapes(prepared: PreparedRun) -> Sequence[nn.Parameter]:
    """The run's weights, of which those that need not exist yet are shapes without content."""
    model = _shaped_model(prepared)
    return [*model.parameters(), *value_head_weights(prepared, model)]


def _shaped_model(prepared: PreparedRun) -> nn.Module:
    given = prepared.given
    is_merged = start_of(prepared.config, given) == "merge"
    if given.model is None or given.adapter is not None or is_merged:
        return adapted_shapes(prepared, prepared.config, given)
    whole: nn.Module = given.model
    return whole


def model_shapes(prepared: PreparedRun) -> nn.Module:
    """The model that the run tunes, without content and without an adapter."""
    task = "SEQ_CLS" if "score" in prepared.objective.needs else "CAUSAL_LM"
    own = copy.deepcopy(prepared.given.model_config(prepared.config.model))
    if task == "SEQ_CLS":
        own.num_labels = 1
    return shapes_of(own, _dtype(prepared), FORMS[task])


def _dtype(prepared: PreparedRun) -> torch.dtype:
    given = prepared.given.model
    dtype: torch.dtype = getattr(torch, prepared.config.model_dtype) if given is None else given.dtype
    return dtype


def adapted_shapes(prepared: PreparedRun, config: RunConfig, given: Given) -> nn.Module:
    """The same with the adapter of a configuration, or of a caller.

    Raises:
        InputError: the adapter does not fit the model.
    """
    task = "SEQ_CLS" if "score" in prepared.objective.needs else "CAUSAL_LM"
    own = prepared.given.model_config(config.model)
    return adapter_shapes(config, given, own, _dtype(prepared), task)


def value_head_weights(prepared: PreparedRun, model: nn.Module) -> Sequence[nn.Parameter]:
    """The weights of the value head that the objective needs; none where it needs none."""
    if "value" not in prepared.objective.needs:
        return []
    width = model.get_output_embeddings().weight.shape[1]  # type: ignore[operator]
    head = new_value_head(width, prepared.config.value_head, prepared.arguments.seed)
    return list(head.parameters())


def bytes_of(weights: Iterable[Tensor]) -> int:
    """What weights take, each in its data type."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _device_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


# --- the step ---


class _Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(_now() - self._started)


def _now() -> float:
    """The time, once the device has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


class _SavingCounter(PackedTrainer):
    """Counts what a row's forward pass keeps for its backward pass, where no allocator says it."""

    saved = 0

    def compute_loss(self, model: nn.Module, *arguments: Any, **named: Any) -> Any:
        if self.args.device.type == "cuda":
            return super().compute_loss(model, *arguments, **named)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = super().compute_loss(model, *arguments, **named)
        self.saved = max(self.saved, sum(kept.values()))
        return loss


def _heaviest_step(prepared: PreparedRun) -> tuple[list[TokenizedGroup], int]:
    """The groups of the first epoch's step with the longest row, and the tokens of that row."""
    groups = prepared.train.groups
    plan = list(plan_steps(groups, prepared.arguments, prepared.config.batches))
    accumulated = prepared.arguments.gradient_accumulation_steps

    def longest(rows: Sequence[Sequence[int]]) -> int:
        return max(sum(groups[index].row_tokens for index in row) for row in rows)

    starts = range(0, len(plan), accumulated)
    steps = [list(chain.from_iterable(plan[start : start + accumulated])) for start in starts]
    heaviest = max(steps, key=longest)
    return [groups[index] for row in heaviest for index in row], longest(heaviest)


def _two_steps(prepared: PreparedRun, folder: str) -> Any:
    """The run's arguments for two steps of which nothing stays."""
    arguments = copy.copy(prepared.arguments)
    arguments.output_dir, arguments.max_steps, arguments.report_to = folder, 2, []
    arguments.save_strategy = arguments.eval_strategy = arguments.logging_strategy = "no"
    arguments.eval_on_start, arguments.disable_tqdm = False, True
    return arguments
