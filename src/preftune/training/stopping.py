"""When training ends by itself, and which weights are kept then."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from preftune.training.configuration import EARLY_STOPPING, RunConfig, StopSection
from preftune.training.recording import is_evaluation

logger = logging.getLogger(__name__)

CHOSEN, DIVERGENCE = "logps/chosen", "kl"
"""Held-out metrics that bounds are about."""
STEPS_BETWEEN_READS = 10
"""Steps whose gradients wait on the device at most until they are looked at; every log line looks too."""


@dataclass(frozen=True)
class Stop:
    """Why training ended before its last step.

    Attributes:
        by: the key that ended it.
        step: optimizer steps that were taken.
        value: what was found; None for a number that is not finite.
        limit: the key's value.
        reason: all of this in words.
        advice: what to do; empty where the end was asked for.
        is_failure: whether the weights after that step are of no use.
    """

    by: str
    step: int
    value: float | None
    limit: float | int | None
    reason: str
    advice: str
    is_failure: bool = False


class Stops(TrainerCallback):
    """Watches a run, and ends it where the section `stop` says so.

    Attributes:
        stop: why it has ended; None while nothing has.
    """

    def __init__(
        self, section: StopSection, model: nn.Module, device: torch.device, reduce: Callable[[Tensor], Tensor]
    ) -> None:
        self.stop: Stop | None = None
        self._section, self._model, self._reduce = section, model, reduce
        self._not_finite = torch.zeros((), dtype=torch.int64, device=device)
        self._logged = 0
        self._bad_logs = 0
        self._saved: list[int] = []
        self._bad_evaluation: int | None = None

    def see(self, norm: float | Tensor) -> None:
        """Count a step's gradient norm, without reading it from the device."""
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        bad = ~torch.isfinite(torch.as_tensor(norm, device=self._not_finite.device))
        self._not_finite = torch.where(bad, self._not_finite + 1, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Checkpoints up to the step at which a run resumes are its own, wherever its folder is by now."""
        folder = Path(args.output_dir)
        self._logged = done = state.global_step
        self._saved = [step for step in checkpoint_steps(folder) if 0 < step <= done]
        best = Path(state.best_model_checkpoint or f"checkpoint-{state.best_global_step}").name
        if done and (folder / best).is_dir():
            state.best_model_checkpoint = str(folder / best)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Remember a checkpoint."""
        self._saved.append(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save no checkpoint of weights that are not finite: it may push out the last good one."""
        if state.global_step % STEPS_BETWEEN_READS == 0:
            self._look(state.global_step, control)
        if control.should_save and not self.weights_are_finite():
            logger.warning(
                "step %d: weights are NaN or infinite, and no checkpoint is saved", state.global_step
            )
            control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Once the run has ended there is nothing to evaluate, or to save as a checkpoint."""
        if self.stop:
            control.should_evaluate = control.should_save = False
        self.on_step_end(args, state, control, **named)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Read the count where a training line is written, and the device is read anyway."""
        logs = logs or {}
        if "loss" not in logs:
            return
        self._bad_logs = (
            0 if math.isfinite(logs["loss"]) else self._bad_logs + state.global_step - self._logged
        )
        self._logged = state.global_step
        self._look(state.global_step, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Compare held-out figures with their bounds."""
        losses = [value for name, value in (metrics or {}).items() if name.endswith("_loss")]
        self._bad_evaluation = None if all(map(math.isfinite, losses)) else state.global_step
        for name, value in (metrics or {}).items():
            found = self._beyond(name, value, state)
            if found and not self.stop:
                self.stop = found
                self._end(control)

    def weights_are_finite(self) -> bool:
        """Whether every weight that is trained is a finite number; processes agree."""
        trained = [weight.detach() for weight in self._model.parameters() if weight.requires_grad]
        sharded = any(isinstance(weight, DTensor) for weight in trained)
        local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained]
        wrong = torch.stack([(~weight.isfinite().all()).double() for weight in local]).sum()
        return not bool(self._reduce(wrong) if sharded else wrong)

    def end(self, state: TrainerState) -> None:
        """Look at the weights once training has ended: a run may be too short to stop."""
        is_bad = self._bad_evaluation == state.global_step or not self.weights_are_finite()
        if self.stop is None and is_bad:
            self.stop = self._without_numbers(state.global_step, self._bad_steps())

    def good_steps(self) -> Iterator[int]:
        """Steps of the checkpoints from before what ended the run, the newest first."""
        assert self.stop is not None
        before = self.stop.step
        if self.stop.is_failure:
            # The weights of the step before the first bad one are those that gave it.
            before -= max(self._bad_steps(), 1)
        return (step for step in sorted(self._saved, reverse=True) if step < before)

    def _bad_steps(self) -> int:
        """Steps on end without finite numbers, up to the last one."""
        return max(int(self._not_finite), self._bad_logs)

    def _look(self, step: int, control: TrainerControl) -> None:
        limit = self._section.not_finite
        if limit and not self.stop and (steps := self._bad_steps()) >= limit:
            self.stop = self._without_numbers(step, steps)
            self._end(control)

    def _end(self, control: TrainerControl) -> None:
        control.should_training_stop = True
        control.should_evaluate = control.should_save = False

    def _without_numbers(self, step: int, steps: int) -> Stop:
        if steps:
            found = f"the loss or the norm of the gradient was NaN or infinite in the last {steps} steps"
        else:
            found = "the weights, or the held-out loss that they give, are NaN or infinite"
        return Stop(
            by="stop.not_finite",
            step=step,
            value=None,
            limit=self._section.not_finite,
            reason=f"{found} (stop.not_finite={self._section.not_finite})",
            advice="set a lower training.learning_rate; if that changes nothing, look at the data by "
            "`preftune inspect`",
            is_failure=True,
        )

    def _beyond(self, name: str, value: float | int, state: TrainerState) -> Stop | None:
        most, least = self._section.divergence_above, self._section.chosen_logp_change_below
        if name.endswith(f"_{DIVERGENCE}") and most is not None and value > most:
            return Stop(
                by="stop.divergence_above",
                step=state.global_step,
                value=value,
                limit=most,
                reason=f"{name}={value:.4g} nats per response, above stop.divergence_above={most:g}",
                advice="set a lower training.learning_rate, or a higher objective.beta",
            )
        if not name.endswith(f"_{CHOSEN}") or least is None:
            return None
        start = next((line[name] for line in state.log_history if name in line and not line["step"]), value)
        if value - start >= least:
            return None
        return Stop(
            by="stop.chosen_logp_change_below",
            step=state.global_step,
            value=value - start,
            limit=least,
            reason=f"{name} has changed by {value - start:.4g} nats per response since the start, below "
            f"stop.chosen_logp_change_below={least:g}",
            advice="set a lower training.learning_rate, a prior, or objective.likelihood_weight, which keeps "
            "the chosen responses likely",
        )


class EarlyStopping(EarlyStoppingCallback):
    """Transformers' own, whose count goes on where a run is resumed."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Take the count of the checkpoint."""
        stored: Any = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and isinstance(stored, dict):
            self.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]
        super().on_train_begin(args, state, control, **named)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **named: Any,
    ) -> None:
        """Count, where the metric is among the figures: each of several held-out sets has some of its own."""
        metric = str(args.metric_for_best_model)
        if f"eval_{metric.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **named)

    def stopped(self, args: TrainingArguments, state: TrainerState) -> Stop | None:
        """Why training ended, if it was this."""
        patience = self.early_stopping_patience
        if self.early_stopping_patience_counter < patience or state.global_step >= state.max_steps:
            return None
        return Stop(
            by="training.early_stopping_patience",
            step=state.global_step,
            value=state.best_metric,
            limit=patience,
            reason=f"{args.metric_for_best_model} has not become better than {state.best_metric} in "
            f"{patience} evaluation{'s' * (patience > 1)} (training.early_stopping_patience={patience})",
            advice="",
        )


def describe_ending(trainer: Any, config: RunConfig) -> dict[str, Any]:
    """What summary.json says of the checkpoint that was kept, and of why training ended before its last step.

    Args:
        trainer: a `PackedTrainer` that has trained.
        config: the run.

    Returns:
        `kept`, where weights of an earlier step may be the model, and `stopped`; nothing for other runs.
    """
    arguments, state, kept = trainer.args, trainer.state, trainer.kept_step
    callbacks = trainer.callback_handler.callbacks
    early = (each.stopped(arguments, state) for each in callbacks if isinstance(each, EarlyStopping))
    stop = trainer.stops.stop or next(filter(None, early), None)
    ending: dict[str, Any] = {}
    if stop or arguments.load_best_model_at_end:
        metric = (
            arguments.metric_for_best_model
            and f"eval_{arguments.metric_for_best_model.removeprefix('eval_')}"
        )
        lines = (line for line in state.log_history if line["step"] == kept and metric in line)
        value = next((line[metric] for line in lines), None)
        ending["kept"] = {"step": kept, "metric": metric, "value": value}
    if stop:
        where = (
            "no checkpoint is from before, and no model is written"
            if kept is None
            else f"the model has the weights of step {kept}"
        )
        advice = _with_values(stop, arguments, config)
        message = f"stopped at step {stop.step}: {stop.reason}; {where}"
        message += f". What to do: {advice}" if advice else ""
        ending["stopped"] = {**asdict(stop), "message": message}
    return ending


def _with_values(stop: Stop, arguments: TrainingArguments, config: RunConfig) -> str:
    """A stop's advice for a run: from which values on, and nothing that is set already."""
    rate = f"training.learning_rate than {arguments.learning_rate:g}"
    if stop.is_failure and not 0 < arguments.max_grad_norm <= 1:
        rate += ", or training.max_grad_norm=1.0"
    if stop.is_failure and config.model_dtype != "float32":
        rate += ", or model_dtype=float32"
    return stop.advice.replace("training.learning_rate", rate)


def early_stopping(config: RunConfig) -> list[TrainerCallback]:
    """What a configuration asks for of early stopping."""
    chosen = {key: value for key, value in config.training.items() if key in EARLY_STOPPING}
    return [EarlyStopping(**chosen)] if "early_stopping_patience" in chosen else []


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end: trainer_state.json is written last."""
    whole = folder.glob("checkpoint-*/trainer_state.json")
    return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in whole)


def has_evaluation(state: TrainerState, step: int) -> bool:
    """Whether the policy of a step was evaluated on held-out groups."""
    return any(is_evaluation(line) and line["step"] == step for line in state.log_history)
