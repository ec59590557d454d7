"""How long a preference step takes, beside TRL's: `make bench`.

The same model, pairs, precision and loss; a forward and backward pass of each in turn, several rounds. The
figures that matter are ratios measured in one run. Writes `benchmarks/results/step.json` and prints a table.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from preftune import objectives
from preftune.data import load_groups, tokenize_groups
from preftune.demo.data import demo_rows, write_splits
from preftune.demo.model import demo_model_dir
from preftune.policy import Policy, ReferenceCache
from preftune.training.trainer import PreferenceTrainer, collate

PAIRS = 4
ROUNDS = 5
RESULTS = Path("benchmarks/results/step.json")

Step = Callable[[], float]
"""One forward and backward pass; returns the loss."""


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    """What both trainers are given."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": PAIRS,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        **more,
    }


def load() -> Any:
    """A fresh copy of the model."""
    return AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32)


def pairs() -> list[dict[str, Any]]:
    """The first pairs of the demo, best over worst, as TRL reads them."""
    rows = []
    for row in demo_rows("train")[:PAIRS]:
        best, worst = (row["scores"].index(choose(row["scores"])) for choose in (max, min))
        answers = {"chosen": row["responses"][best], "rejected": row["responses"][worst]}
        messages = {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
        rows.append({"prompt": row["prompt"], **messages})
    return rows


def ours(folder: Path, share_prompts: bool) -> Step:
    """A step of preftune, with packed or with padded rows; the reference is precomputed, as it always is."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir())
    loaded = load_groups(str(write_splits(folder / "data")["train"])).groups[:PAIRS]
    policy = Policy(load(), share_prompts=share_prompts)
    autocast = torch.autocast(policy.causal_lm().device.type, torch.bfloat16)
    groups = ReferenceCache(folder, "bench").fill(policy, tokenize_groups(loaded, tokenizer), autocast)
    trainer = PreferenceTrainer(
        policy,
        objectives.build({"method": "dpo"}),
        TrainingArguments(**arguments(folder, remove_unused_columns=False)),
        groups,
        None,
        tokenizer,
        callbacks=[],
    )
    return _step(trainer, lambda: collate(groups))


def trl(folder: Path, **options: Any) -> Step:
    """TRL's step."""
    trainer = DPOTrainer(
        model=load(),
        args=DPOConfig(**arguments(folder, **options)),
        train_dataset=Dataset.from_list(pairs()),
        processing_class=AutoTokenizer.from_pretrained(demo_model_dir()),
    )
    return _step(trainer, lambda: next(iter(trainer.get_train_dataloader())))


def _step(trainer: Any, batch: Callable[[], Any]) -> Step:
    trainer.create_optimizer()
    model = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        loss = trainer.training_step(model, batch())
        model.zero_grad()
        return float(loss)

    return step


def main() -> None:
    """Measure, write and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        steps = {
            "preftune": ours(folder / "packed", share_prompts=True),
            "preftune, padded rows": ours(folder / "padded", share_prompts=False),
            "TRL, defaults": trl(folder / "trl"),
            "TRL, no checkpointing, reference precomputed": trl(
                folder / "trl-best", gradient_checkpointing=False, precompute_ref_log_probs=True
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        losses = {}
        for turn in range(ROUNDS + 1):
            for name, step in steps.items():
                began = time.perf_counter()
                losses[name] = step()
                if turn:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {
        name: {
            "seconds": round(medians[name], 3),
            "fastest": round(min(seconds[name]), 3),
            "slowest": round(max(seconds[name]), 3),
            "times_preftune": round(medians[name] / medians["preftune"], 2),
            "loss": round(losses[name], 4),
        }
        for name in steps
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        "versions": {name: version(name) for name in ("preftune", "torch", "transformers", "trl")},
        "processor": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    content = {"environment": environment, "pairs": PAIRS, "rounds": ROUNDS, "steps": rows}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    table = Table("step", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
