"""Files of a run: metrics.jsonl, environment.json, summary.json, and a bar while it runs."""

import json
import platform
import re
import resource
import subprocess
import time
from collections.abc import Iterable
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preftune.storage.files import finite

HYPERPARAMETERS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16", "gradient_checkpointing"),
    *("seed",),
)
"""Fields of the Trainer's arguments that decide what is learned, wherever they were given."""

PACKAGES = ("preftune", "torch", "transformers", "accelerate", "peft", "datasets", "safetensors")


def environment(arguments: TrainingArguments, data_fingerprints: dict[str, str]) -> dict[str, Any]:
    """What the run's figures depend on beside its configuration."""
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": str(arguments.device),
        "processes": arguments.world_size,
        "threads": torch.get_num_threads(),
        "seed": arguments.seed,
        "training": {name: _plain(getattr(arguments, name)) for name in HYPERPARAMETERS},
        "commit": _commit(),
        "data": data_fingerprints,
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _commit() -> str | None:
    """Commit of preftune's own checkout, with the suffix `-dirty` if files differ; None when installed."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


class Recorder(TrainerCallback):
    """Writes every log line to metrics.jsonl and measures the steps themselves.

    Training lines carry the run's `seconds` and `tokens` so far, over all resumes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[dict[str, Any]] = []
        self._before = {"seconds": 0.0, "tokens": 0}
        self._seconds = 0.0
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """After a resume, forget what was logged beyond the checkpoint: it is about to be logged again."""
        if state.is_world_process_zero:
            at_checkpoint = {_kind(line) for line in state.log_history if line["step"] == state.global_step}
            self._lines = [
                line
                for line in _whole_lines(self._path)
                if line["step"] < state.global_step
                or (line["step"] == state.global_step and _kind(line) in at_checkpoint)
            ]
            for line in self._lines:
                self._before = {key: line.get(key, value) for key, value in self._before.items()}
            text = "".join(json.dumps(line) + "\n" for line in self._lines)
            self._path.write_text(text, encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append one line."""
        if not state.is_world_process_zero:
            return
        line: dict[str, Any] = finite({"step": state.global_step, **(logs or {})})
        if "tokens" in line:
            line["tokens"] += self._before["tokens"]
            line["seconds"] = self._before["seconds"] + self._seconds
        self._lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock: evaluation, checkpoints and data loading are not training."""
        self._seconds += time.perf_counter() - self._started

    def summary(self, kept: int | None = None) -> dict[str, Any]:
        """Figures of the run: held-out metrics at its start and end, speed and memory.

        Changes are None if the untrained policy was not evaluated, and of a reward model.

        Args:
            kept: the step whose weights are kept; the last one unless given.
        """
        evaluations = _by_step(line for line in self._lines if is_evaluation(line))
        before, after = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
        after = next((line for line in evaluations if line["step"] == kept), after)
        trained = [line for line in self._lines if "tokens" in line]
        seconds, tokens = (trained[-1]["seconds"], trained[-1]["tokens"]) if trained else (0.0, 0)
        return {
            "chosen_logp_change": _change("eval_logps/chosen", before, after),
            "rejected_logp_change": _change("eval_logps/rejected", before, after),
            "accuracy": after.get("eval_rewards/accuracies"),
            "evaluation_start": before,
            "evaluation_end": after,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether a log line is about held-out data: `eval_loss`, or `eval_NAME_loss` of a set with a name."""
    return _kind(line).startswith("eval_")


def _kind(line: dict[str, Any]) -> str:
    """What a log line is about; there is one of a kind at most for a step."""
    kinds = (key for key in line if key == "train_runtime" or re.fullmatch("eval_(.+_)?loss", key))
    return next(kinds, "loss")


def _by_step(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each step, with the figures of all held-out sets."""
    merged: dict[int, dict[str, Any]] = {}
    for line in lines:
        merged[line["step"]] = merged.get(line["step"], {}) | line
    return list(merged.values())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines; a killed run may have left half of the last one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _change(metric: str, before: dict[str, Any], after: dict[str, Any]) -> float | None:
    if before.get("step") != 0 or after.get("step") == 0:
        return None
    if after.get(metric) is None or before.get(metric) is None:
        return None
    change: float = after[metric] - before[metric]
    return change


WIDE = 110
"""Columns of a terminal on which the bar shows all figures."""


class ConsoleProgress(TrainerCallback):
    """A bar with the loss and the margin, and a line for each evaluation."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar."""
        if not (self._enabled and state.is_world_process_zero):
            return
        self._progress = Progress(
            TextColumn("Training"),
            BarColumn(),
            # Where it gets narrow the bar alone gives way.
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show training figures in the bar and print held-out figures above it."""
        if self._progress is None or self._task is None or logs is None:
            return
        if is_evaluation(logs):
            self._progress.console.print(
                f"[bold]step {state.global_step}[/] held-out {_line(logs, _kind(logs).removesuffix('loss'))}"
            )
        elif "loss" in logs:
            # The fourth figure leaves no room for a bar.
            figures = 3 if self._progress.console.width < WIDE else None
            self._progress.update(self._task, description=_line(logs, "", figures))

    def close(self) -> None:
        """Close the bar, also where training was interrupted."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _line(logs: dict[str, Any], prefix: str, figures: int | None = None) -> str:
    shown = {
        "loss": "loss",
        "rewards/margins": "margin",
        "rewards/accuracies": "accuracy",
        "logps/chosen": "log p chosen",
    }
    found = [f"{label} {logs[prefix + key]:.3f}" for key, label in shown.items() if prefix + key in logs]
    return "  ".join(found[:figures])
