"""DPO with and without the prior for ten times the steps of `make experiment-mappo`, on a GPU.

`python benchmarks/gpu_lesson.py --output FILE`: held-out figures at the end of each run, seed by seed, at the
learning rate of that experiment and at half of it for plain DPO, which moves as far as the prior does.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import experiment_mappo
from experiment_mappo import Point, configuration
from gpu_output import Row, options, write
from gpu_real import tiny_model

FIGURES = ("eval_rewards/margins", "eval_rewards/accuracies", "eval_logps/chosen", "eval_logps/rejected")


def all_rows(small: bool) -> Iterator[Row]:
    """One run after another; those of the first seed come first."""
    from preftune.demo.data import demo_rows, write_splits
    from preftune.training import check_config
    from preftune.training.run import run_training

    folder = Path(tempfile.mkdtemp())
    experiment_mappo.STEPS = 2 if small else 10 * experiment_mappo.STEPS
    rows = (demo_rows("train"), demo_rows("held_out"))
    if small:
        rows = (rows[0][:8], rows[1][:3])
    try:
        write_splits(folder / "data", *rows)
        for seed in range(1 if small else 3):
            for prior, factor in (("none", 1.0), ("reward_gap", 1.0), ("none", 0.5)):
                point = Point("dpo", prior, seed, factor)
                settings = configuration(point, folder / "data") | {"output": str(folder / point.folder.name)}
                if small:
                    settings["model"] = str(tiny_model(folder / "tiny"))
                    settings["training"] |= {"bf16": False}
                settings["training"]["eval_on_start"] = True
                summary = run_training(check_config(settings), overwrite=True).summary
                end = summary["evaluation_end"]
                yield {
                    "prior": prior,
                    "learning_rate": settings["training"]["learning_rate"],
                    "seed": seed,
                    "steps": summary["steps"],
                    "tokens_per_second": summary["tokens_per_second"],
                    "chosen_logp_change": summary["chosen_logp_change"],
                    **{name: end[name] for name in FIGURES},
                }
                shutil.rmtree(settings["output"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Train, and write after every run."""
    given = options(__doc__)
    write(given.output, all_rows(given.small))


if __name__ == "__main__":
    main()
