"""What the auxiliary term and its value head add to a training step: `make bench-auxiliary`.

The same batch of pairs and the same model, whole optimizer steps through the trainer, DPO and DPO with
the auxiliary term in turn, A B A B, in one process. The ratio of neighbouring steps is what is reported: a
machine's speed drifts by more than the term costs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments
from workloads import WORKLOADS, draw_groups

from preftune import objectives
from preftune.data import TokenizedGroup
from preftune.demo.model import demo_model_dir
from preftune.models import Policy, ValueHead, has_fast_bfloat16, load_language_model, load_tokenizer
from preftune.models.allocator import keep_freed_memory
from preftune.storage.files import write_json
from preftune.training.recording import environment
from preftune.training.trainer import PackedTrainer

RESULTS = Path("benchmarks/results/auxiliary.json")
VALUE_WIDTH = 256
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo"},
    "dpo+auxiliary": {"method": "dpo", "auxiliary": {"weight": 0.1}},
}


class Contestant:
    """A trainer that takes one step at a time."""

    def __init__(self, name: str, model: str, groups: Sequence[TokenizedGroup], folder: Path) -> None:
        objective = objectives.build(OBJECTIVES[name])
        language_model = load_language_model(model, torch.float32)
        head = None
        if "value" in objective.needs:
            head = ValueHead(language_model.config.hidden_size, VALUE_WIDTH, seed=0)
        arguments = TrainingArguments(
            output_dir=str(folder),
            use_cpu=not torch.accelerator.is_available(),
            bf16=has_fast_bfloat16(language_model.device),
            remove_unused_columns=False,
            per_device_train_batch_size=len(groups),
            disable_tqdm=True,
        )
        self._trainer = PackedTrainer(
            Policy(language_model, value_head=head),
            objective,
            arguments,
            groups,
            None,
            load_tokenizer(model),
            callbacks=[],
        )
        self._trainer.create_optimizer()
        self._model, self._optimizer = self._trainer.accelerator.prepare(
            self._trainer.model, self._trainer.optimizer
        )
        self._model.train()
        self._groups = list(groups)

    def step(self) -> float:
        """Seconds of a whole optimizer step."""
        trainer = self._trainer
        began = time.perf_counter()
        (batch,), counts = trainer.get_batch_samples(
            iter([trainer.data_collator(self._groups)]), 1, trainer.args.device
        )
        trainer.training_step(self._model, batch, counts)
        trainer._get_grad_norm(self._model, trainer._clip_grad_norm(self._model))
        self._optimizer.step()
        self._model.zero_grad()
        return time.perf_counter() - began


def measure(model: str, groups: Sequence[TokenizedGroup], rounds: int) -> dict[str, Any]:
    """Seconds of both, and the ratio of every round's two steps."""
    with tempfile.TemporaryDirectory() as folder:
        contestants = {name: Contestant(name, model, groups, Path(folder)) for name in OBJECTIVES}
        for contestant in contestants.values():
            contestant.step()
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for place in range(rounds):
            # Whoever comes second may find a warmer machine.
            for name in list(contestants)[:: 1 if place % 2 else -1]:
                seconds[name].append(contestants[name].step())
        where = environment(contestants["dpo"]._trainer.args, {})
    base, auxiliary = seconds.values()
    ratios = [after / before for before, after in zip(base, auxiliary, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": where,
        "tokens": sum(group.packed_tokens for group in groups),
        "rounds": rounds,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "ratio": median(ratios),
        "ratio_quartiles": [low, high],
    }


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="another model than the demo's")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shrink", type=int, default=2, help="divides the lengths of the workload `chat`")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    keep_freed_memory()
    model = options.model or str(demo_model_dir())
    random = np.random.default_rng(0)
    groups = [
        replace(
            group,
            per_response={
                "auxiliary": random.normal(size=len(group.responses)).astype(np.float32),
                "reference_logps": random.normal(-50, 5, size=len(group.responses)).astype(np.float32),
            },
        )
        for group in draw_groups(WORKLOADS["chat"].shrunk(options.shrink), model)
    ]
    figures = measure(model, groups, options.rounds)
    write_json(options.results, figures)
    print(json.dumps({key: figures[key] for key in ("tokens", "seconds", "ratio", "ratio_quartiles")}))


if __name__ == "__main__":
    main()
