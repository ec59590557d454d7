"""The optimizer of a run: which can be used, learning rates by name, and steps of weights in bfloat16."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from preftune.errors import InputError
from preftune.training.configuration import RunConfig
from preftune.training.given import Given
from preftune.training.stochastic_rounding import StochasticAdamW

logger = logging.getLogger(__name__)

_IN_BACKWARD = (
    "it moves weights inside the backward pass of each row, before the step's other rows are computed and "
    "before gradients are clipped"
)
_UNSAVED = "what it keeps cannot be read back from a checkpoint, so that a resumed run would be another one"

REFUSED: dict[str, str] = {
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "grokadamw": _UNSAVED,
    "schedule_free_radam": "checkpoints would hold its training weights in place of its averaged ones",
    "schedule_free_adamw": "checkpoints would hold its training weights in place of its averaged ones",
    "schedule_free_sgd": "checkpoints would hold its training weights in place of its averaged ones",
}
"""Values of `training.optim` that cannot train packed rows rightly, and why."""

INSTEAD: dict[str, str] = {
    "galore": "galore_adamw",
    "apollo": "apollo_adamw",
    "lomo": "adafactor",
    "adalomo": "adafactor",
    "schedule": "adamw_torch with ema.decay=0.999",
}
"""What stands in for a refused one, by the first word of its name."""

UNSAVED = frozenset({"galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw"})
"""Optimizers that train, and whose state transformers refuses to read from a checkpoint."""

NEEDS_CUDA: dict[str, str] = {
    "galore_adamw_8bit": "galore_adamw",
    "paged_ademamix_32bit": "ademamix",
    "paged_ademamix_8bit": "ademamix_8bit",
}
"""Optimizers that were seen to fail elsewhere, and what stands in for them."""

SHARDED = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"})
"""Optimizers that update a part of a weight as they update the whole."""

ROUNDED = frozenset({"adamw_torch", "adamw_torch_fused"})
"""Optimizers that `stochastic_rounding` stands in for."""

TYPICAL_WEIGHT = 0.02
"""The size of a weight in a language model, for a word about rounding."""


def check_optimizer(arguments: TrainingArguments, config: RunConfig, given: Given) -> None:
    """Refuse an optimizer that would train wrongly, before weights load.

    Raises:
        InputError: the optimizer cannot be used, or an option does not fit it.
    """
    if given.optimizers[0] is not None:
        for key in ("learning_rates", "stochastic_rounding"):
            if value := getattr(config, key):
                raise InputError(f"{key}={value!r} with an optimizer of your own: remove one of the two")
        return
    name = OptimizerNames(arguments.optim).value
    if name in REFUSED:
        instead = INSTEAD.get(name.split("_")[0], "adamw_torch")
        raise InputError(f"training.optim={name} is refused: {REFUSED[name]}. Set training.optim={instead}")
    if name in NEEDS_CUDA and arguments.device.type != "cuda":
        raise InputError(
            f"training.optim={name} needs CUDA, and the run is on {arguments.device}: set "
            f"training.optim={NEEDS_CUDA[name]}"
        )
    if config.fully_sharded and name not in SHARDED:
        raise InputError(
            f"training.optim={name} with fully_sharded=true: it is not tested on sharded weights; set one of "
            f"{', '.join(sorted(SHARDED))}"
        )
    if config.stochastic_rounding and name not in ROUNDED:
        raise InputError(
            f"stochastic_rounding=true rounds the steps of AdamW, and training.optim={name}: set "
            "training.optim=adamw_torch, or stochastic_rounding=false"
        )
    if name in UNSAVED and arguments.save_strategy != "no":
        logger.warning(
            "training.optim=%s: its state holds objects, which are not read back from a checkpoint; the run "
            "cannot be resumed",
            name,
        )


# --- learning rates by name ---


def matched(rates: Mapping[str, float], names: Iterable[str]) -> dict[str, str]:
    """The pattern of each weight that has one.

    Args:
        rates: learning rates by pattern, a regular expression that is searched in a weight's name.
        names: of the trained weights.

    Raises:
        InputError: a pattern matches nothing, or two match one weight.
    """
    found: dict[str, str] = {}
    names = list(names)
    for pattern in rates:
        own = [name for name in names if re.search(pattern, name)]
        if not own:
            some = ", ".join(names[:3])
            raise InputError(
                f"learning_rates: the pattern {pattern!r} matches none of the {len(names)} trained weights, "
                f"such as {some}: correct it, or remove it"
            )
        for name in own:
            if name in found:
                raise InputError(
                    f"learning_rates: the patterns {found[name]!r} and {pattern!r} both match {name}: make "
                    "one of them narrower"
                )
            found[name] = pattern
    return found


def trained_names(model: nn.Module) -> list[str]:
    """Names of the weights that are trained."""
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def split_groups(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Give weights whose names match a pattern its learning rate; all else of their groups stays.

    Groups are logged with how many weights they have.

    Args:
        optimizer: of the model, before its first step.
        model: what is trained.
        rates: see `matched`.
    """
    patterns = matched(rates, trained_names(model))
    by_weight = {weight: patterns[name] for name, weight in model.named_parameters() if name in patterns}
    for group in list(optimizer.param_groups):
        own: dict[str, list[Tensor]] = {}
        for weight in group["params"]:
            if weight in by_weight:
                own.setdefault(by_weight[weight], []).append(weight)
        group["params"] = [weight for weight in group["params"] if weight not in by_weight]
        for pattern, weights in own.items():
            options = {key: value for key, value in group.items() if key != "params"}
            optimizer.add_param_group({**options, "params": weights, "lr": rates[pattern]})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for rate in sorted({group["lr"] for group in optimizer.param_groups}):
        weights = [
            weight for group in optimizer.param_groups if group["lr"] == rate for weight in group["params"]
        ]
        logger.info(
            "learning rate %g: %s parameters in %d weights",
            rate,
            f"{sum(weight.numel() for weight in weights):,}",
            len(weights),
        )


# --- weights in bfloat16 ---


def bfloat16_spacing(weight: float) -> float:
    """Distance of a number of bfloat16 to the next, which has 8 bits of significand."""
    return float(2.0 ** (math.floor(math.log2(abs(weight))) - 7))


def note_lost_updates(model: nn.Module, learning_rate: float, is_rounded: bool) -> None:
    """Warn of trained weights in bfloat16, whose updates are mostly rounded away.

    Args:
        model: what is trained.
        learning_rate: the size of a step of AdamW, about.
        is_rounded: whether updates are rounded stochastically.

    Raises:
        InputError: updates are to be rounded, and no trained weight is in bfloat16.
    """
    is_bfloat16 = [weight.dtype == torch.bfloat16 for weight in model.parameters() if weight.requires_grad]
    if is_rounded and not any(is_bfloat16):
        raise InputError(
            "stochastic_rounding=true is for trained weights in bfloat16, and there are none: set "
            "model_dtype=bfloat16 without lora, or stochastic_rounding=false"
        )
    if not any(is_bfloat16) or is_rounded:
        return
    spacing = bfloat16_spacing(TYPICAL_WEIGHT)
    logger.warning(
        "%s weights are trained in bfloat16, which loses small updates: near %g its numbers are %.1e apart, "
        "a step of %g is %.2g of that, and what is below half is rounded away; set "
        "model_dtype=float32 with training.bf16=true, or stochastic_rounding=true, or lora.rank=16",
        "all" if all(is_bfloat16) else "some",
        TYPICAL_WEIGHT,
        spacing,
        learning_rate,
        learning_rate / spacing,
    )


def rounding_optimizer(arguments: TrainingArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """AdamW with stochastic rounding, as the Trainer takes it."""
    return StochasticAdamW, {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "seed": arguments.seed,
    }
