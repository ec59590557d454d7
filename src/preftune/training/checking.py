"""What the Trainer would find out late, tried before weights load: values, trackers, optimizer, schedule."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.optimization import get_scheduler
from transformers.training_args import OptimizerNames

from preftune.errors import InputError
from preftune.training.given import Given

_STEPS_TRIED = 10
"""Of the schedule that is tried; its own errors do not depend on how many there are."""
_LARGEST_SEED = 2**32 - 1
"""NumPy's, whose generator is seeded too."""


def _at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: least <= value < math.inf, f"{least} or more, and finite"


def _above(bound: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: bound < value < math.inf, f"above {bound}, and finite"


_DECAY: tuple[Callable[[Any], bool], str] = (lambda value: 0 <= value < 1, "0 or more, and below 1")
_SEED: tuple[Callable[[Any], bool], str] = (
    lambda value: 0 <= value <= _LARGEST_SEED,
    f"from 0 to {_LARGEST_SEED}",
)

RULES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "learning_rate": (*_at_least(0), "1e-6"),
    "weight_decay": (*_at_least(0), "0.01"),
    "adam_beta1": (*_DECAY, "0.9"),
    "adam_beta2": (*_DECAY, "0.999"),
    "adam_epsilon": (*_at_least(0), "1e-8"),
    "max_grad_norm": (*_at_least(0), "1.0"),
    "warmup_steps": (*_at_least(0), "0.1"),
    "num_train_epochs": (*_above(0), "1"),
    "max_steps": (*_at_least(-1), "-1"),
    "per_device_train_batch_size": (*_at_least(1), "8"),
    "per_device_eval_batch_size": (*_at_least(1), "8"),
    "gradient_accumulation_steps": (*_at_least(1), "1"),
    "dataloader_num_workers": (*_at_least(0), "0"),
    "dataloader_prefetch_factor": (*_at_least(1), "2"),
    "logging_steps": (*_above(0), "1"),
    "eval_steps": (*_above(0), "100"),
    "save_steps": (*_above(0), "100"),
    "eval_delay": (*_at_least(0), "0"),
    "save_total_limit": (*_at_least(1), "2"),
    "seed": (*_SEED, "42"),
    "data_seed": (*_SEED, "42"),
    "ddp_timeout": (*_above(0), "1800"),
}
"""What a number must be, in code and in words, and one that is; None is allowed where the field allows it."""


def check_values(given: dict[str, Any]) -> None:
    """Check fields of `TrainingArguments`, before one is made of them or after.

    Raises:
        InputError: a number is outside its range.
    """
    for name, (holds, rule, example) in RULES.items():
        value = given.get(name)
        if value is not None and not holds(value):
            raise InputError(
                f"training.{name}={value!r} must be {rule}: set such a number, as training.{name}={example}"
            )


def check_arguments(arguments: TrainingArguments, given: Given) -> None:
    """Check values, and try what a run would build of them once weights are loaded.

    Args:
        arguments: of the run.
        given: whose optimizer and scheduler stand in for those of the arguments.

    Raises:
        InputError: a value is wrong, or a tracker, the optimizer or the schedule cannot be built.
    """
    check_values({name: getattr(arguments, name) for name in RULES})
    _check_trackers(arguments)
    optimizer, scheduler = given.optimizers
    if optimizer is None:
        optimizer = _try_optimizer(arguments)
    if scheduler is None and optimizer is not None:
        _try_schedule(arguments, optimizer)


def _check_trackers(arguments: TrainingArguments) -> None:
    installed = get_available_reporting_integrations()
    for name in arguments.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"training.report_to={name} is unknown; choose from {known}, or none")
        if name not in installed and not (name == "flyte" and find_spec("flytekit")):
            raise InputError(
                f"training.report_to={name}: its package is not installed, or is switched off by an "
                "environment variable; install it, or set training.report_to=none (metrics.jsonl has the "
                "same figures)"
            )


def _try_optimizer(arguments: TrainingArguments) -> torch.optim.Optimizer | None:
    """The optimizer on a small layer; None where only the real model can tell."""
    name = OptimizerNames(arguments.optim).value
    # Without random numbers: the caller may draw some too.
    layer: Any = nn.ParameterList([nn.Parameter(torch.zeros(2, 2))])
    low_rank = name.startswith(("galore", "apollo"))
    if low_rank and arguments.optim_target_modules is None:
        raise InputError(
            f"training.optim={name} needs the layers whose gradients it projects: set "
            "training.optim_target_modules=all-linear, or another optim"
        )
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, layer)
        optimizer: torch.optim.Optimizer = kind([{"params": layer.parameters()}], **options)
    except (ImportError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if low_rank and "target modules" in str(error):
            return None
        chosen = f" with training.optim_args={arguments.optim_args!r}" if arguments.optim_args else ""
        raise InputError(
            f"training.optim={name}{chosen} cannot be built: {_line(error)}. Install what it needs, or "
            "correct its options (optim_args is written as name=value,name=value), or set "
            "training.optim=adamw_torch"
        ) from None
    return optimizer


def _try_schedule(arguments: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    name = arguments.lr_scheduler_type.value
    try:
        get_scheduler(
            name,
            optimizer=optimizer,
            num_warmup_steps=arguments.get_warmup_steps(_STEPS_TRIED),
            num_training_steps=_STEPS_TRIED,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise InputError(
            f"training.lr_scheduler_type={name} with "
            f"training.lr_scheduler_kwargs={arguments.lr_scheduler_kwargs!r} cannot be built: "
            f"{_line(error)}. Correct lr_scheduler_kwargs, or choose another schedule"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
