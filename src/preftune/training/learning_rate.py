"""The learning rate of a run that names none, by what is trained."""

import logging

from transformers import TrainingArguments

from preftune.objectives import Method, method_named
from preftune.training.adapters import trains_adapter
from preftune.training.configuration import RunConfig
from preftune.training.given import Given

logger = logging.getLogger(__name__)

ADAPTER_FACTOR = 10
"""Adapters learn best at ten times the rate of all weights: LoRA Without Regret, Schulman and others 2025."""

_KEY = "learning_rate"


def with_learning_rate(config: RunConfig, given: Given) -> RunConfig:
    """The configuration with `training.learning_rate`; a value that the user gave stays.

    A caller's own `TrainingArguments` have always one, and are taken as they are: see `check_own_rate`.

    Args:
        config: the run, with the resolved objective.
        given: objects in place of what the configuration names.
    """
    if _KEY in config.training or given.arguments is not None:
        return config
    rate, trained = default_learning_rate(config, given)
    if given.optimizers[0] is None:
        logger.info("learning rate %g, the default for %s: training.learning_rate is not set", rate, trained)
    return config.model_copy(update={"training": {**config.training, _KEY: rate}})


def default_learning_rate(config: RunConfig, given: Given) -> tuple[float, str]:
    """The method's rate, ten times it for adapters, and in words what is trained at that rate."""
    name = config.objective.get("method")
    # Nothing is known of an objective of the caller's own.
    method = method_named(name) if name and not given.objective else Method
    what = "policy" if method.trains_policy else "reward model"
    if trains_adapter(config, given):
        # A product of 10 would have a digit too many: 10 * 1e-6 is 9.999999999999999e-06.
        return float(f"{ADAPTER_FACTOR * method.learning_rate:.6g}"), f"adapters of a {what}"
    return method.learning_rate, f"all weights of a {what}"


def check_own_rate(rate: float, config: RunConfig, given: Given) -> None:
    """Warn of transformers' own default where it is far above ours; nobody can tell whether it was meant."""
    default, trained = default_learning_rate(config, given)
    theirs = TrainingArguments.__dataclass_fields__[_KEY].default
    if given.optimizers[0] is None and rate == theirs and rate > ADAPTER_FACTOR * default:
        logger.warning(
            "args.learning_rate=%g is the default of transformers' TrainingArguments, and %s are trained: "
            "preference tuning needs less, such as %g; set it, or give args as a mapping, where preftune's "
            "default counts",
            rate,
            trained,
            default,
        )
