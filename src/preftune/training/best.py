"""Which checkpoint is the best: what a run must have for it, and metrics by the names that users know."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from preftune.errors import InputError
from preftune.training.configuration import StopSection
from preftune.training.stopping import CHOSEN, DIVERGENCE

GREATER = ("rewards/accuracies", "rewards/margins", "rewards/chosen", CHOSEN)
"""How metrics end of which more is better."""
LESS = ("loss", "rewards/rejected", "logps/rejected", "displacement/chosen", "displacement/both", DIVERGENCE)
"""How metrics end of which less is better, beside the terms of the loss."""


def check_best(arguments: TrainingArguments, chosen: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Check what decides the best checkpoint, and say which way is better where only the name tells.

    Args:
        arguments: of the run; `greater_is_better` is set where it was not chosen.
        chosen: the section `training`, with `greater_is_better` as it was chosen or None; empty where a
            caller's own arguments say everything.
        metrics: names of the held-out metrics; none where nothing is held out.

    Raises:
        InputError: there is nothing to compare, or no such metric.
    """
    patience = chosen.get("early_stopping_patience")
    if patience is None and "early_stopping_threshold" in chosen:
        raise InputError(
            f"training.early_stopping_threshold={chosen['early_stopping_threshold']} is read with "
            "training.early_stopping_patience: set it too, or remove the threshold"
        )
    metric = arguments.metric_for_best_model
    if patience is not None and metric is None:
        raise InputError(
            f"training.early_stopping_patience={patience} needs a metric: set "
            "training.metric_for_best_model=loss or another, or training.load_best_model_at_end=true"
        )
    if metric is None and arguments.save_strategy != SaveStrategy.BEST:
        return
    if not metrics or arguments.eval_strategy == "no":
        key = "load_best_model_at_end" if arguments.load_best_model_at_end else "metric_for_best_model"
        missing = "training.eval_strategy=epoch" if metrics else "data.evaluation"
        raise InputError(
            f"training.{key}={getattr(arguments, key)} compares held-out figures, and nothing is evaluated "
            f"while training: set {missing}, or remove it"
        )
    if metric is None:
        raise InputError(
            "training.save_strategy=best needs a metric: set training.metric_for_best_model=loss"
        )
    _check_metric(metric, metrics)
    direction = _is_better_when_greater(metric)
    if direction is not None and chosen.get("greater_is_better") is None:
        arguments.greater_is_better = direction
    elif direction is None and chosen.get("greater_is_better", "") is None:
        raise InputError(
            f"training.metric_for_best_model={metric} does not tell whether more or less of it is better: "
            "set training.greater_is_better=true or false"
        )


def check_strategies(chosen: Mapping[str, Any], is_evaluated: bool) -> None:
    """Checkpoints must be written where held-out figures are taken, for one of them to be the best.

    Raises:
        InputError: they are not.
    """
    if not chosen.get("load_best_model_at_end"):
        return
    if not is_evaluated:
        raise InputError(
            "training.load_best_model_at_end=true compares held-out figures, and there are no held-out data: "
            "set data.evaluation, or remove it"
        )
    if chosen["save_strategy"] == "best":
        return
    evaluated, saved = chosen["eval_strategy"], chosen["save_strategy"]
    if evaluated != saved:
        raise InputError(
            f"training.load_best_model_at_end=true with training.eval_strategy={evaluated} and "
            f"training.save_strategy={saved}: a checkpoint is needed for each evaluation; set both to one"
        )


def check_stop(section: StopSection, arguments: TrainingArguments, metrics: Sequence[str]) -> None:
    """Check that there are the figures which the section's bounds are about.

    Raises:
        InputError: there are not.
    """
    bounds = {"chosen_logp_change_below": CHOSEN, "divergence_above": DIVERGENCE}
    for key, metric in bounds.items():
        value = getattr(section, key)
        if value is None:
            continue
        if not metrics or arguments.eval_strategy == "no":
            raise InputError(
                f"stop.{key}={value} bounds a held-out figure, and nothing is evaluated while training: set "
                f"data.evaluation and training.eval_strategy, or remove it"
            )
        if not any(name.endswith(metric) for name in metrics):
            raise InputError(
                f"stop.{key}={value} bounds the metric {metric}, which this objective does not have: remove "
                "it (`preftune methods` shows what a method needs; methods that need the divergence have kl)"
            )
    if section.chosen_logp_change_below is not None and not arguments.eval_on_start:
        raise InputError(
            f"stop.chosen_logp_change_below={section.chosen_logp_change_below} compares with the untrained "
            "policy: set training.eval_on_start=true"
        )


def _check_metric(metric: str, metrics: Sequence[str]) -> None:
    if metric.removeprefix("eval_") not in metrics:
        raise InputError(
            f"training.metric_for_best_model={metric} is no held-out metric of this run: choose one of "
            f"{', '.join(metrics)}"
        )


def _is_better_when_greater(metric: str) -> bool | None:
    """What the name tells; transformers takes every name for greater that does not end in "loss"."""
    if metric.endswith(GREATER):
        return True
    return False if metric.endswith(LESS) or "loss/" in metric else None
