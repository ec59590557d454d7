"""What a run would take if it were trained in another way: estimates, from shapes and one measured step."""

from dataclasses import dataclass
from math import ceil

from torch import nn

from preftune.errors import InputError
from preftune.models.adapters import base_of
from preftune.models.quantization import Quantization
from preftune.training.adapters import puts_adapter
from preftune.training.configuration import LoraSection
from preftune.training.footprint import (
    MeasuredStep,
    adapted_shapes,
    bytes_of,
    model_shapes,
    optimizer_states,
    saved_by,
    seconds_of_run,
    value_head_weights,
)
from preftune.training.given import NOTHING_GIVEN
from preftune.training.preparation import PreparedRun

PROCESSES = 8
"""Over which a run of one process would be sharded."""
QLORA = Quantization("nf4", double=True)
FROZEN_WORK = 2 / 3
"""Of full training's operations: two for the forward pass and four for the backward pass of each weight and
token, of which the gradient of a weight that is not trained is two."""


@dataclass(frozen=True)
class Alternative:
    """A way to train, in bytes on one device.

    Attributes:
        name: such as `LoRA, rank 16`.
        weights: all of them, with those that are gathered while a layer is computed.
        gradients: likewise.
        optimizer: its state; None where the optimizer's is not known.
        work: operations of one process for a token, of those of full training in one process.
        is_least: whether something that takes time is not in `work`.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int | None
    work: float
    is_least: bool = False

    @property
    def total(self) -> int:
        """Weights, gradients and the optimizer's state as far as it is known."""
        return self.weights + self.gradients + (self.optimizer or 0)


def alternatives(prepared: PreparedRun) -> tuple[Alternative, ...]:
    """Full training, LoRA, QLoRA and full training sharded by FSDP2, whichever the run uses.

    Weights are in the run's `model_dtype`. QLoRA (arXiv 2305.14314) has the matrices of the layers in 4 bits,
    with an 8-bit constant for each 64 weights and a 32-bit one for each 256 of those (double quantization).
    FSDP2 shards everything over the processes, and gathers the largest layer and what stands in no layer.
    """
    states, base = optimizer_states(prepared), model_shapes(prepared)
    head = bytes_of(value_head_weights(prepared, base))
    sizes = bytes_of(base.parameters()) + head
    full = Alternative("all weights", sizes, sizes, _times(states, sizes), 1.0)
    others = (*_with_lora(prepared, base, head), _sharded(prepared, base, full))
    return (full, *(way for way in others if way))


def _with_lora(prepared: PreparedRun, base: nn.Module, head: int) -> tuple[Alternative, ...]:
    """LoRA as the run has it, or by default, and the same on 4 bits; nothing where it does not fit."""
    config, states = prepared.config, optimizer_states(prepared)
    # A start that is trained further, or wholly, is compared with a new adapter of the usual rank.
    lora = config.lora if config.lora and puts_adapter(config, NOTHING_GIVEN) else LoraSection()
    try:
        model = adapted_shapes(
            prepared, config.model_copy(update={"model": base_of(config.model), "lora": lora}), NOTHING_GIVEN
        )
    except InputError:
        return ()
    trained = bytes_of(weight for weight in model.parameters() if weight.requires_grad) + head
    whole, state = bytes_of(model.parameters()) + head, _times(states, trained)
    saved = saved_by(QLORA, base)
    return (
        Alternative(f"LoRA, rank {lora.rank}", whole, trained, state, FROZEN_WORK),
        Alternative(f"QLoRA, rank {lora.rank}", whole + saved, trained, state, FROZEN_WORK, is_least=True),
    )


def seconds_of(prepared: PreparedRun, measured: MeasuredStep, way: Alternative) -> float:
    """Seconds of all steps in a way, by the operations of the measured step, which was the run's own."""
    own = FROZEN_WORK if prepared.trains_adapter else 1.0
    return seconds_of_run(prepared, measured) * way.work / own


def _times(states: int | None, size: int) -> int | None:
    return None if states is None else states * size


def _sharded(prepared: PreparedRun, model: nn.Module, full: Alternative) -> Alternative | None:
    """Full training sharded over the run's processes; None where the model does not name its layers."""
    kinds = set(model._no_split_modules or ())  # type: ignore[arg-type]
    layers = [bytes_of(each.parameters()) for each in model.modules() if type(each).__name__ in kinds]
    if not layers:
        return None
    processes = prepared.arguments.world_size if prepared.arguments.world_size > 1 else PROCESSES
    gathered = full.weights - sum(layers) + max(layers)
    share = ceil(full.weights / processes)
    return Alternative(
        f"FSDP2, {processes} processes",
        share + gathered,
        share + gathered,
        None if full.optimizer is None else ceil(full.optimizer / processes),
        1 / processes,
        is_least=True,
    )
