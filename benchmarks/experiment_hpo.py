"""What auxiliary rewards buy on a real model, and what they cost: `make experiment-hpo` and its like.

Sweeps the weight of the auxiliary term over seeds on SmolLM2-135M-Instruct by `preftune sweep`, then
compares every weight with weight 0, the base method, prompt by prompt and seed by seed. Finished runs are
kept: the command continues where it stopped. It writes `docs/experiments/NAME.json`, the figure of the front
and the table of `docs/experiments.md`; a repeat writes the runs together too.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib.figure import Figure
from safety_prompts import safety_rows
from sections import EXPERIMENTS_PAGE, experiment_markers, markdown_table, write_section

from preftune.demo.data import DemoRow, demo_rows, write_jsonl
from preftune.demo.model import demo_model_dir
from preftune.measuring.statistics import Interval, mean_interval
from preftune.models import generation_device, has_fast_bfloat16

MAX_NEW_TOKENS = 64
HELD_OUT_PROMPTS = 50
PROCESSES = 2
KEY, SEED_KEY = "objective.auxiliary.weight", "training.seed"
FOLDER = Path("docs/experiments")


@dataclass(frozen=True)
class Experiment:
    """One auxiliary reward on one set of prompts.

    Attributes:
        measure: what the reward measures; less is better.
        clip: lowest and highest measurement that counts as such, in the reward and in the figures.
        rows: of a split of the data, with prompt, responses and scores.
        training_prompts: how many of them are trained on.
        steps: optimizer steps, of PROMPTS_PER_STEP prompts with all their responses each.
        learning_rate: of AdamW on the adapters.
        temperature: of the auxiliary term.
        held_out_responses: of the data, to each held-out prompt, whose pairs accuracy is over.
        samples: drawn for each held-out prompt.
        weights: of the auxiliary term; 0 is the base.
        seeds: of the training runs of each weight.
        score_weight: of the data's preference scores in R beside the measure; 0 leaves them out.
    """

    measure: str
    clip: tuple[float, float] | None
    rows: Callable[[str], list[DemoRow]]
    training_prompts: int
    steps: int
    learning_rate: float
    temperature: float
    held_out_responses: int
    samples: int
    weights: tuple[float, ...]
    seeds: tuple[int, ...]
    score_weight: float


PROMPTS_PER_STEP = 2
UNCLIPPED = Experiment(
    measure="reading_grade",
    clip=None,
    rows=demo_rows,
    training_prompts=48,
    steps=10,
    learning_rate=1e-3,
    temperature=1 / 3,
    held_out_responses=3,
    samples=4,
    weights=(0, 0.03, 0.1, 0.3, 1),
    seeds=(0, 1, 2),
    score_weight=0,
)
CLIPPED = replace(UNCLIPPED, clip=(0, 20), samples=10, weights=(0, 0.1, 0.15, 0.2, 0.3), seeds=(9, 10, 11))
GENTLE = replace(
    CLIPPED,
    steps=16,
    learning_rate=3e-4,
    temperature=1,
    weights=(0, 0.3, 0.6, 1, 2),
    seeds=(12, 13, 14),
)
WITH_SCORE = replace(GENTLE, samples=6, weights=(0, 0.5, 1, 2, 4), seeds=(15, 16, 17, 18), score_weight=12)
EXPERIMENTS = {
    "hpo": WITH_SCORE,
    "hpo-repeat": replace(WITH_SCORE, seeds=(23, 24, 25, 26)),
    # Fixed before it ran: the weight that is judged alone, here and over the seeds of all three runs.
    "hpo-confirmation": replace(WITH_SCORE, weights=(0, 1), seeds=(31, 32, 33, 34, 35, 36, 37, 38)),
    "hpo-gentle": GENTLE,
    "hpo-clipped": CLIPPED,
    "hpo-unclipped": UNCLIPPED,
    "hpo-unclipped-repeat": replace(UNCLIPPED, weights=(0, 0.1, 0.2, 0.3, 1), seeds=(3, 4, 5)),
    "hpo-unclipped-score": replace(
        UNCLIPPED, weights=(0, 0.1, 0.3, 0.5, 1), seeds=(6, 7, 8), score_weight=14
    ),
    "safety": replace(
        UNCLIPPED,
        measure="toxicity_words",
        rows=safety_rows,
        held_out_responses=4,
        samples=2,
        weights=(0, 0.1, 0.3, 1),
    ),
}
REPEATS: dict[str, tuple[str, ...]] = {
    "hpo-repeat": ("hpo",),
    "hpo-confirmation": ("hpo", "hpo-repeat"),
    "hpo-unclipped-repeat": ("hpo-unclipped",),
}
"""Runs with other seeds, and what they repeat."""


def configuration(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The run that is swept."""
    clip = {"clip": list(experiment.clip)} if experiment.clip else {}
    rewards: dict[str, Any] = {experiment.measure: {"goal": "minimise", **clip}}
    if experiment.score_weight:
        # The measure alone does not ask whether what is simple is any good.
        rewards["column:scores"] = {"weight": experiment.score_weight}
    return {
        "model": str(demo_model_dir()),
        "data": {
            "train": str(folder / "train.jsonl"),
            "evaluation": str(folder / "held_out.jsonl"),
            # Pairs of best and worst alone would make two points of accuracy a single pair.
            "evaluation_pair_rule": "all_pairs",
        },
        "objective": {
            "method": "dpo",
            "prior": "reward_gap",
            "auxiliary": {"weight": 0.0, "temperature": experiment.temperature, "cap": None},
        },
        "prior": {"calibration": "identity"},
        "rewards": rewards,
        "lora": {"rank": 16},
        "training": {
            "learning_rate": experiment.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 2,
            "per_device_train_batch_size": PROMPTS_PER_STEP,
            "max_steps": experiment.steps,
            "bf16": has_fast_bfloat16(generation_device()),
            "eval_on_start": False,
            "eval_strategy": "no",
            "save_strategy": "no",
        },
        "output": str(folder / "sweep"),
        "cache": str(folder / "cache"),
    }


def run(name: str) -> Path:
    """Write data and configuration, and sweep."""
    experiment, folder = EXPERIMENTS[name], Path("runs") / f"experiment-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", experiment.rows("train")[: experiment.training_prompts])
    held_out = [
        row | {key: row[key][: experiment.held_out_responses] for key in ("responses", "scores")}
        for row in experiment.rows("held_out")
    ]
    untied = [row for row in held_out if len(set(row["scores"])) > 1]
    write_jsonl(folder / "held_out.jsonl", untied[:HELD_OUT_PROMPTS])
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(configuration(experiment, folder), sort_keys=False), encoding="utf-8")
    # Seeds inside, so that both processes have runs of weight 0, which take half the time.
    swept = [f"{KEY}={_listed(experiment.weights)}", f"{SEED_KEY}={_listed(experiment.seeds)}"]
    sampling = ["--n", str(experiment.samples), "--max-new-tokens", str(MAX_NEW_TOKENS)]
    command = [sys.executable, "-m", "preftune", "sweep", str(file), *swept, *sampling]
    # Small matrices: a process for each core gets more out of the cores than a thread for each.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    shards = [
        subprocess.Popen([*command, "--shard", f"{number}/{PROCESSES}"], env=environment)
        for number in range(1, PROCESSES + 1)
    ]
    if sum(shard.wait() for shard in shards):
        sys.exit("a shard failed; its message is above, and the same command continues there")
    subprocess.run(command, check=True)
    return folder / "sweep"


def _listed(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


# --- comparing weights ---


def point_folder(sweep: Path, weight: float, seed: int) -> Path:
    """Where a point of the sweep is kept."""
    return sweep / f"{KEY}={weight},{SEED_KEY}={seed}"


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def by_prompt(folder: Path, experiment: Experiment) -> list[float]:
    """A model's measurement of each held-out prompt's samples, averaged over them."""
    low, high = experiment.clip or (-math.inf, math.inf)
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line)["measurements"][experiment.measure] for line in lines if line]
    return [fmean(min(max(value, low), high) for value in row) for row in rows]


def by_seed(sweep: Path, experiment: Experiment, weight: float) -> list[list[float]]:
    """For every seed the measurement of each prompt."""
    return [by_prompt(point_folder(sweep, weight, seed), experiment) for seed in experiment.seeds]


def over_seeds(tables: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each prompt."""
    return [fmean(values) for values in zip(*tables, strict=True)]


def of_seeds(sweep: Path, experiment: Experiment, weight: float, file: str, *keys: str) -> list[float]:
    """A figure of every seed's run."""
    figures = []
    for seed in experiment.seeds:
        found: Any = read(point_folder(sweep, weight, seed) / file)
        for key in keys:
            found = found[key]
        figures.append(found)
    return figures


def compare(sweep: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """A row for every weight: its figures, and its differences to weight 0."""
    tables = {weight: by_seed(sweep, experiment, weight) for weight in experiment.weights}
    base = over_seeds(tables[0])
    base_accuracy = of_seeds(sweep, experiment, 0, "summary.json", "accuracy")
    rows = []
    for weight in experiment.weights:
        measured = over_seeds(tables[weight])
        accuracy = of_seeds(sweep, experiment, weight, "summary.json", "accuracy")
        explained = of_seeds(sweep, experiment, weight, "summary.json", "value_explained_variance")
        rows.append(
            {
                "weight": weight,
                "measure": mean_interval(measured),
                "measure_difference": _difference(measured, base) if weight else None,
                "accuracy": accuracy,
                "accuracy_difference": _difference(accuracy, base_accuracy) if weight else None,
                "drift": fmean(of_seeds(sweep, experiment, weight, "evaluation.json", "drift", "mean")),
                "tokens": fmean(of_seeds(sweep, experiment, weight, "evaluation.json", "tokens", "mean")),
                "value_explained_variance": explained if weight else None,
                "measured": tables[weight],
            }
        )
    return rows


def pool(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences to weight 0 over the seeds of several runs, for the weights that all have."""
    runs = [{row["weight"]: row for row in each["weights"]} for each in results]
    weights = [weight for weight in runs[0] if all(weight in run for run in runs)]
    measured, accuracy = (
        {weight: [seed for run in runs for seed in run[weight][key]] for weight in weights}
        for key in ("measured", "accuracy")
    )
    return [
        {
            "weight": weight,
            "over_prompts": _difference(over_seeds(tables), over_seeds(measured[0])),
            "over_seeds": _difference([*map(fmean, tables)], [*map(fmean, measured[0])]),
            "accuracy": _difference(accuracy[weight], accuracy[0]),
        }
        for weight, tables in measured.items()
        if weight
    ]


def _difference(values: list[float], base: list[float]) -> Interval:
    return mean_interval([value - other for value, other in zip(values, base, strict=True)])


# --- writing ---


def show(value: Interval, digits: int, sign: str = "") -> str:
    """A mean and its interval."""
    mean, low, high = (f"{number:{sign}.{digits}f}" for number in value)
    return f"{mean} ({low} to {high})"


def markdown(experiment: Experiment, results: dict[str, Any]) -> str:
    """The table of `docs/experiments.md`."""
    measure, start = experiment.measure, results["start"]
    heads = (
        "weight",
        f"{measure} of samples",
        "difference",
        "held-out accuracy, by seed",
        "difference",
        "drift, nats",
        "tokens",
        "value's explained variance, by seed",
    )
    runs = len(results["weights"]) * len(experiment.seeds)
    clipped = f"clipped to {list(experiment.clip)}, " if experiment.clip else ""
    about = (
        f"Written {results['date']}: {runs} runs of {results['steps']} steps, seeds {experiment.seeds}, "
        f"{results['prompts']} held-out prompts with {results['samples']} samples each for every seed. The "
        f"untrained model's samples have a {measure} of {show(tuple(start['measure']), 2)}, {clipped}and "
        f"{start['tokens']:.0f} tokens. Differences are to weight 0, with 95% intervals: of the measure "
        "paired by prompt, of accuracy paired by seed."
    )
    rows = []
    for row in results["weights"]:
        base = row["weight"] == 0
        rows.append(
            [
                f"{row['weight']:g}",
                show(row["measure"], 2),
                "" if base else show(row["measure_difference"], 2, "+"),
                ", ".join(f"{value:.3f}" for value in row["accuracy"]),
                "" if base else show(row["accuracy_difference"], 3, "+"),
                f"{row['drift']:.1f}",
                f"{row['tokens']:.0f}",
                "" if base else ", ".join(f"{value:.2f}" for value in row["value_explained_variance"]),
            ]
        )
    return f"{about}\n\n{markdown_table(heads, rows)}"


def pooled_markdown(measure: str, rows: list[dict[str, Any]]) -> str:
    """The table of several runs together."""
    heads = ("weight", f"{measure}, by prompt", f"{measure}, by seed", "accuracy, by seed")
    cells = [
        [
            f"{row['weight']:g}",
            *(show(row[key], 2, "+") for key in ("over_prompts", "over_seeds")),
            show(row["accuracy"], 3, "+"),
        ]
        for row in rows
    ]
    return markdown_table(heads, cells)


def draw(path: Path, measure: str, rows: list[dict[str, Any]]) -> None:
    """The front: the samples' measure against held-out accuracy, a point for every weight."""
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "preftune"
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        mean, low, high = row["measure"]
        accuracy = fmean(row["accuracy"])
        axes.plot([accuracy] * 2, [low, high], color="#0072b2", linewidth=1)
        axes.plot([min(row["accuracy"]), max(row["accuracy"])], [mean] * 2, color="#0072b2", linewidth=1)
        axes.plot(accuracy, mean, "o", color="#0072b2")
        axes.annotate(f"{row['weight']:g}", (accuracy, mean), (5, 5), textcoords="offset points")
    axes.set_xlabel("held-out accuracy (bar: least to most of the seeds)")
    axes.set_ylabel(f"{measure} of samples (bar: 95%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def write(name: str, sweep: Path) -> None:
    """The JSON, the figure and the table."""
    experiment = EXPERIMENTS[name]
    start = read(sweep / "start" / "evaluation.json")
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "steps": experiment.steps,
        "seeds": experiment.seeds,
        "clip": experiment.clip,
        "prompts": start["prompts"],
        "samples": start["n"],
        "start": {
            "measure": mean_interval(by_prompt(sweep / "start", experiment)),
            "tokens": start["tokens"]["mean"],
        },
        "weights": compare(sweep, experiment),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(FOLDER / f"{name}.svg", experiment.measure, results["weights"])
    table = markdown(experiment, results)
    if name in REPEATS:
        earlier = REPEATS[name]
        rows = pool([*(read(FOLDER / f"{each}.json") for each in earlier), results])
        together = f"Differences to weight 0 over the seeds of {', '.join(earlier)} and {name} together:"
        table = "\n\n".join([table, together, pooled_markdown(experiment.measure, rows)])
    write_section(EXPERIMENTS_PAGE, experiment_markers(name), table)
    print(table)


def main() -> None:
    """Run the experiment that the command line names, and write what it shows."""
    (name,) = sys.argv[1:]
    write(name, run(name))


if __name__ == "__main__":
    main()
