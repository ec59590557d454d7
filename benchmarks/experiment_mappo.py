"""MaPPO's claim on a real model: `make experiment-mappo`.

Trains SmolLM2-135M-Instruct with every method, plain and with the reward-gap prior, at several learning
rates and seeds, on the demo's pairs; then compares held-out pairs and samples. A finished run is kept: the
command continues where it stopped. The last step writes `docs/experiments/mappo.json` and the tables of
`docs/experiments.md`.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo"},
    "ipo": {"method": "ipo"},
    "simpo": {"method": "simpo"},
    "cpo": {"method": "cpo"},
    # At the default beta of 0.1 the chosen responses, which are shorter, start with a margin of 7.6: the
    # logistic loss is flat there, and little but the likelihood term is trained.
    "cpo, beta 0.01": {"method": "cpo", "beta": 0.01},
}
PRIORS = ("none", "reward_gap")
SEEDS = (0, 1, 2)
LEARNING_RATE = 1e-4
STEPS = 16
PAIRS_PER_STEP = 3
SAMPLES_PER_PROMPT = 2
WORKERS = 2
FOLDER = Path("runs/experiment-mappo")

# The prior weakens the gradient, so at equal learning rate it also moves less. To compare at equal held-out
# margin, the plain method gets smaller steps too, and the prior larger ones.
SWEEP = {"none": (0.5,), "reward_gap": (2.0,)}


@dataclass(frozen=True)
class Point:
    """One run of the experiment; `method` is a key of METHODS."""

    method: str
    prior: str
    seed: int
    factor: float

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        method = self.method.replace(", ", "-").replace(" ", "-")
        return FOLDER / f"{method}-{self.prior}-x{self.factor:g}-seed{self.seed}"


def points() -> list[Point]:
    """All runs, those at the common learning rate first."""
    same = [Point(m, p, s, 1.0) for s, m, p in product(SEEDS, METHODS, PRIORS)]
    swept = [Point(m, p, s, f) for s, m, p in product(SEEDS, METHODS, PRIORS) for f in SWEEP[p]]
    return same + swept


def configuration(point: Point, data: Path) -> dict[str, Any]:
    """The run as `preftune train` would read it."""
    from preftune.demo.model import demo_model_dir
    from preftune.models import generation_device, has_fast_bfloat16

    return {
        "model": str(demo_model_dir()),
        "data": {"train": str(data / "train.jsonl"), "evaluation": str(data / "held_out.jsonl")},
        "objective": METHODS[point.method] | {"prior": point.prior},
        "prior": {"calibration": "identity"},
        "training": {
            "learning_rate": LEARNING_RATE * point.factor,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 2,
            "per_device_train_batch_size": PAIRS_PER_STEP,
            "per_device_eval_batch_size": 8,
            "max_steps": STEPS,
            "bf16": has_fast_bfloat16(generation_device()),
            "seed": point.seed,
            "eval_strategy": "steps",
            "eval_steps": STEPS // 2,
            # The untrained model's figures are the same for every point: one of them measures it.
            "eval_on_start": point == points()[0],
            "save_strategy": "no",
        },
        "output": str(point.folder),
    }


def work(worker: int) -> None:
    """Run every WORKERS-th point that is not finished, one thread each."""
    import torch

    from preftune.demo.data import demo_rows, write_splits
    from preftune.demo.run import sample_rewards
    from preftune.training import check_config
    from preftune.training.run import run_training

    torch.set_num_threads(1)
    data = FOLDER / f"data-{worker}"
    held_out = demo_rows("held_out")
    write_splits(data, demo_rows("train"), held_out)
    for index, point in enumerate(points()):
        if index % WORKERS != worker or (point.folder / "done.json").exists():
            continue
        print(f"[{index + 1}/{len(points())}] {point.folder.name}", flush=True)
        run_training(check_config(configuration(point, data)), overwrite=True)
        rewards = None
        if point.factor == 1.0:
            sampled = sample_rewards(point.folder / "model", held_out, n=SAMPLES_PER_PROMPT, seed=point.seed)
            rewards = [row.rewards for row in sampled]
        shutil.rmtree(point.folder / "model")
        (point.folder / "done.json").write_text(json.dumps({"sample_rewards": rewards}))


def main() -> None:
    """Run all points on all workers, then write the tables."""
    if len(sys.argv) == 2:
        work(int(sys.argv[1]))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    workers = [subprocess.Popen([sys.executable, __file__, str(worker)]) for worker in range(WORKERS)]
    if sum(worker.wait() for worker in workers):
        sys.exit("a worker failed; fix it and run again: finished points are kept")
    subprocess.run([sys.executable, str(Path(__file__).with_name("tabulate_mappo.py"))], check=True)


if __name__ == "__main__":
    main()
