"""The demo: the same data learned by rank, by how much better, and with a wish of its own beside it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from preftune.demo.data import DemoRow, best_and_worst, demo_rows, write_jsonl, write_splits
from preftune.demo.model import demo_model_dir
from preftune.errors import InputError
from preftune.measuring.samples import SampleRewards, SideBySide
from preftune.measuring.statistics import Interval, mean_interval
from preftune.models import (
    generation_device,
    generation_dtype,
    has_fast_bfloat16,
    load_language_model,
    load_tokenizer,
)
from preftune.report import write_report
from preftune.rewards.instructions import instruction_score
from preftune.rewards.measures.reading import reading_grade
from preftune.sampling.sampler import sample_responses
from preftune.storage.files import REPORT_FILE, write_json

# The verifier's scores lie in [0, 1] already.
PRIOR: dict[str, Any] = {"prior": {"calibration": "identity"}}
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"method": "dpo", "prior": "none"}},
    "dpo+prior": {"objective": {"method": "dpo", "prior": "reward_gap"}, **PRIOR},
    "dpo+prior+reading": {
        "objective": {
            "method": "dpo",
            "prior": "reward_gap",
            "auxiliary": {"weight": 0.3, "cap": 20},
        },
        **PRIOR,
        "rewards": {"reading_grade": {"goal": "minimise", "clip": [0, 20]}},
    },
}
TRAINING: dict[str, Any] = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "per_device_train_batch_size": 4,
    "max_steps": 16,
    "save_strategy": "no",
}
TRAINING_PROMPTS = 64
"""As many as the steps take: the rest would only be scored under the reference."""
SAMPLES_PER_PROMPT = 2
MAX_NEW_TOKENS = 64


TITLE = "DPO, DPO with a reward-gap prior, and both with simpler language, on the same data"
NOTES = (
    "Chosen and rejected are the best and the worst of eight responses the model itself gave to each prompt, "
    "scored by a program that checks the prompt's instructions. The held-out prompts are about other topics.",
    "Held-out loss can rise with the prior while margin and accuracy grow: it counts the rejected response's "
    "fall only in part. Read margin and accuracy.",
    "DPO only knows that one response beats the other, and pushes both log-probabilities down to widen the "
    "margin. With the reward-gap prior (MaPPO) the rejected response counts as much as it is worse: a near "
    "tie is no longer pushed apart, and the chosen response keeps more of its probability.",
    "The third run also wants simpler language: of all eight responses those become likelier that are easier "
    "to read than their prompt lets expect (UPO), whatever the pairs prefer.",
    "The prior also makes the gradient smaller, so at equal learning rate the policy moves less. Compared at "
    "equal margin, plain training with a smaller learning rate did as well: see docs/experiments.md.",
)


@dataclass(frozen=True)
class SampledRow:
    """A held-out prompt with sampled responses, their rewards and their reading grades."""

    prompt: str
    responses: list[str]
    rewards: list[float]
    grades: list[float]


def sample_rewards(
    model: str | Path,
    rows: Sequence[DemoRow],
    *,
    n: int = SAMPLES_PER_PROMPT,
    seed: int = 0,
    progress: bool = False,
) -> list[SampledRow]:
    """Sample n responses to each row's prompt and score how well they keep its instructions."""
    device = generation_device()
    sampled = sample_responses(
        load_language_model(str(model), generation_dtype(device)).to(device),
        load_tokenizer(str(model)),
        [row["prompt"] for row in rows],
        n=n,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        seed=seed,
        progress=progress,
    )
    scored = []
    for row, responses in zip(rows, sampled, strict=True):
        texts = [response.text for response in responses]
        rewards = [instruction_score(text, row["instructions"]) for text in texts]
        grades = [reading_grade(text) for text in texts]
        scored.append(SampledRow(row["prompt"][-1]["content"], texts, rewards, grades))
    return scored


def run_demo(output: Path, model: str | None = None) -> None:
    """Train every run, sample before and after, and leave a table, `summary.json` and `report.html`.

    Args:
        output: the demo's folder; an earlier demo in it is replaced, and nothing else touched.
        model: another model than the packaged one.

    Raises:
        InputError: the packaged model is not installed, or a training run failed.
    """
    started = time.perf_counter()
    console = Console()
    console.rule(f"preftune demo: {TITLE}")
    model = model or str(demo_model_dir())
    for name in ("summary.json", REPORT_FILE):
        (output / name).unlink(missing_ok=True)
    train, held_out = demo_rows("train")[:TRAINING_PROMPTS], demo_rows("held_out")
    # Held-out pairs need no other responses, and evaluation is quicker without them.
    data = write_splits(output / "data", train, [best_and_worst(row) for row in held_out])
    threads = _useful_threads()
    torch.set_num_threads(threads)
    console.print(f"Model {model}, {threads} thread(s), {len(train)} training prompts")

    console.rule("Before: what the model answers to held-out prompts")
    samples = {"before": sample_rewards(model, held_out, progress=True)}
    summary: dict[str, dict[str, Any]] = {}
    for name, sections in RUNS.items():
        console.rule(f"Training: {name}")
        summary[name] = _train(output / name, model, sections, data, threads)
        samples[name] = sample_rewards(output / name / "model", held_out, progress=True)
        summary[name] |= sample_figures(samples["before"], samples[name])
    _write(output, summary, samples)
    console.print(_table(summary))
    console.print(
        f"{output / REPORT_FILE} shows it; finished in {time.perf_counter() - started:.0f} seconds",
        soft_wrap=True,
    )


def _useful_threads() -> int:
    """All threads, or one where the others are busy: waiting for a busy core costs more than it brings."""
    matrix = torch.randn(1024, 1024, dtype=generation_dtype(torch.device("cpu")))
    everything = torch.get_num_threads()
    seconds = {}
    for threads in (1, everything):
        torch.set_num_threads(threads)
        matrix @ matrix  # the first product starts the threads
        began = time.perf_counter()
        for _ in range(50):
            matrix @ matrix
        seconds[threads] = time.perf_counter() - began
    return min(seconds, key=lambda threads: seconds[threads])


def _train(
    folder: Path, model: str, sections: dict[str, Any], data: dict[str, Path], threads: int
) -> dict[str, Any]:
    """Run `preftune train` in a process of its own, so that its memory is its own too."""
    configuration = {
        "model": model,
        "data": {"train": str(data["train"]), "evaluation": str(data["held_out"])},
        **sections,
        "training": TRAINING | {"bf16": has_fast_bfloat16(generation_device())},
        "output": str(folder),
    }
    file = folder.with_name(f"{folder.name}.yaml")
    file.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "preftune", "train", str(file), "--overwrite"]
    if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False).returncode:
        raise InputError(f"training failed; its message is above, and `{' '.join(command)}` repeats it")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = ("chosen_logp_change", "rejected_logp_change", "accuracy")
    measured = ("seconds", "tokens_per_second", "peak_rss_mb")
    return {key: summary[key] for key in (*kept, *measured)}


def sample_figures(before: Sequence[SampledRow], after: Sequence[SampledRow]) -> dict[str, dict[str, float]]:
    """Mean reward and reading grade of samples with 95% intervals, before and after training."""
    figures = {}
    for moment, rows in {"before": before, "after": after}.items():
        # Responses to one prompt are alike, so a prompt's mean counts once.
        for name, values in {
            "reward": [fmean(row.rewards) for row in rows],
            "grade": [fmean(row.grades) for row in rows],
        }.items():
            interval = dict(zip(("mean", "low", "high"), mean_interval(values), strict=True))
            figures[f"sample_{name}_{moment}"] = interval
    return figures


def _write(output: Path, summary: dict[str, dict[str, Any]], samples: dict[str, list[SampledRow]]) -> None:
    write_json(output / "summary.json", summary)
    for name, rows in samples.items():
        write_jsonl(output / f"samples-{name}.jsonl", [asdict(row) for row in rows])
    rewards = {
        name: SampleRewards(
            before=_triple(figures["sample_reward_before"]), after=_triple(figures["sample_reward_after"])
        )
        for name, figures in summary.items()
    }
    # Every n-th prompt and the first response to it: shown as they came, not picked.
    shown = range(0, len(samples["before"]), len(samples["before"]) // 3)[:3]
    side_by_side = [
        SideBySide(
            samples["before"][index].prompt,
            {name: (rows[index].responses[0], rows[index].rewards[0]) for name, rows in samples.items()},
        )
        for index in shown
    ]
    write_report(
        output / REPORT_FILE,
        TITLE,
        {name: output / name for name in summary},
        rewards=rewards,
        samples=side_by_side,
        notes=NOTES,
    )


def _triple(interval: dict[str, float]) -> Interval:
    return interval["mean"], interval["low"], interval["high"]


def _with_interval(figure: str, digits: int) -> str:
    return f"{{{figure}[mean]:.{digits}f}} ({{{figure}[low]:.{digits}f}} to {{{figure}[high]:.{digits}f}})"


TABLE = {
    "log p of chosen, change": "{chosen_logp_change:+.1f}",
    "log p of rejected, change": "{rejected_logp_change:+.1f}",
    "accuracy of the implicit reward": "{accuracy:.2f}",
    "reward of samples before": _with_interval("sample_reward_before", 3),
    "reward of samples after": _with_interval("sample_reward_after", 3),
    "reading grade of samples before": _with_interval("sample_grade_before", 1),
    "reading grade of samples after": _with_interval("sample_grade_after", 1),
    "training, seconds": "{seconds:.0f}",
    "tokens per second": "{tokens_per_second:.0f}",
    "peak memory, MB": "{peak_rss_mb}",
}


def _table(summary: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Held-out prompts")
    table.add_column("")
    for name in summary:
        table.add_column(name, justify="right")
    for label, template in TABLE.items():
        table.add_row(label, *(template.format(**figures) for figures in summary.values()))
    return table
