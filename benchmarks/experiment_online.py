"""What online rounds do to rewards, with the reward-gap prior and without: `make experiment-online`.

Three rounds of `preftune iterate` over three seeds on SmolLM2-135M-Instruct, once with plain DPO (I-DPO) and
once with the prior (I-DPO + MaPPO), rewarded by the reward model of `make experiment-score`, which is trained
here where it is not there yet. A stopped experiment continues. It writes `docs/experiments/online.json`, the
figure and the table of `docs/experiments.md`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import experiment_score
import matplotlib as mpl
import yaml
from matplotlib.figure import Figure
from sections import EXPERIMENTS_PAGE, experiment_markers, markdown_table, write_section

from preftune.demo.data import demo_rows, write_jsonl
from preftune.demo.model import demo_model_dir
from preftune.measuring.statistics import Interval, mean_interval
from preftune.models import generation_device, has_fast_bfloat16
from preftune.rewards.instructions import instruction_score
from preftune.storage.files import write_json

FOLDER = Path("runs/experiment-online")
RESULTS = Path("docs/experiments/online.json")
ARMS = {"I-DPO": "none", "I-DPO + MaPPO": "reward_gap"}
"""Prior by name."""
SEEDS = (0, 1, 2)
ROUNDS = 3
PROMPTS_PER_ROUND = 12
PROMPTS_PER_STEP = 4
SAMPLES = 8
HELD_OUT_PROMPTS = 24
HELD_OUT_SAMPLES = 2
MAX_NEW_TOKENS = 48


def configuration(prior: str, model: str, reward: str) -> dict[str, Any]:
    """The rounds of an arm; seed and output are given with each call."""
    return {
        "model": model,
        "prompts": str(FOLDER / "prompts.jsonl"),
        "held_out": str(FOLDER / "held_out.jsonl"),
        "reward": reward,
        "rounds": ROUNDS,
        "sampling": {"n": SAMPLES, "max_new_tokens": MAX_NEW_TOKENS},
        "evaluation": {"n": HELD_OUT_SAMPLES},
        "train": {
            "lora": {"rank": 16},
            "objective": {"method": "dpo", "prior": prior},
            "training": {
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "per_device_train_batch_size": PROMPTS_PER_STEP,
                "gradient_accumulation_steps": 1,
                "bf16": has_fast_bfloat16(generation_device()),
                "save_strategy": "no",
            },
        },
    }


def folder_of(arm: str, seed: int) -> Path:
    """Where the rounds of an arm and a seed are kept."""
    return FOLDER / f"{ARMS[arm]}-{seed}"


def run() -> None:
    """Train the reward model where it lacks, then an arm in each of two processes."""
    experiment_score.train()
    FOLDER.mkdir(parents=True, exist_ok=True)
    asked = ("prompt", "instructions")
    for file, split, count in (
        ("prompts.jsonl", "train", ROUNDS * PROMPTS_PER_ROUND),
        ("held_out.jsonl", "held_out", HELD_OUT_PROMPTS),
    ):
        # From the end: the reward model was trained on the first training prompts.
        rows = demo_rows(split)[-count:]
        write_jsonl(FOLDER / file, [{key: row[key] for key in asked} for row in rows])
    # Small matrices: a process for each core gets more out of two cores than a thread for each.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    shares = [subprocess.Popen([sys.executable, __file__, arm], env=environment) for arm in ARMS]
    if sum(share.wait() for share in shares):
        sys.exit("an arm failed; its message is above, and the same command continues there")


def run_arm(arm: str) -> None:
    """Every seed of an arm."""
    file = FOLDER / f"{ARMS[arm]}.yaml"
    reward = f"hf:{experiment_score.REWARD_MODEL / 'model'}"
    tree = configuration(ARMS[arm], str(demo_model_dir()), reward)
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    for seed in SEEDS:
        given = [f"seed={seed}", f"output={folder_of(arm, seed)}"]
        subprocess.run([sys.executable, "-m", "preftune", "iterate", str(file), *given], check=True)


# --- what it shows ---


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def answers(arm: str, seed: int, number: int) -> list[dict[str, Any]]:
    """Held-out prompts with answers and rewards after a round; round 0 is before the first."""
    folder = folder_of(arm, seed) / (f"round-{number}" if number else "start")
    lines = (folder / "held_out.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def per_prompt(arm: str, number: int, figure: str) -> list[float]:
    """A figure of each held-out prompt's answers, averaged over answers and seeds."""
    tables = []
    for seed in SEEDS:
        rows = answers(arm, seed, number)
        tables.append([fmean(_verified(row) if figure == "verifier" else row[figure]) for row in rows])
    return [fmean(values) for values in zip(*tables, strict=True)]


def _verified(row: dict[str, Any]) -> list[float]:
    """How well each answer keeps its prompt's instructions."""
    return [instruction_score(text, row["instructions"]) for text in row["responses"]]


def of_seeds(arm: str, number: int, *keys: str) -> list[float]:
    """A figure of every seed's round."""
    found = []
    for seed in SEEDS:
        summary = read(folder_of(arm, seed) / "summary.json")
        value: Any = summary["figures"][f"round {number}"] if number else {"evaluation": summary["start"]}
        for key in keys:
            value = value[key]
        found.append(value)
    return found


def chosen_change(arm: str, number: int) -> list[float]:
    """For every seed, the chosen held-out responses' change of log-probability since the start."""
    rounds = [of_seeds(arm, each, "training", "chosen_logp_change") for each in range(1, number + 1)]
    return [sum(values) for values in zip(*rounds, strict=True)] if rounds else [0.0] * len(SEEDS)


def compare() -> list[dict[str, Any]]:
    """A row for every round of every arm, and its differences to the start and to plain DPO."""
    plain = next(iter(ARMS))
    rows = []
    for arm in ARMS:
        for number in range(ROUNDS + 1):
            rewards, scores = per_prompt(arm, number, "scores"), per_prompt(arm, number, "verifier")
            rows.append(
                {
                    "arm": arm,
                    "round": number,
                    "reward": mean_interval(rewards),
                    "reward_since_start": _difference(rewards, per_prompt(arm, 0, "scores")),
                    "reward_against_plain": _difference(rewards, per_prompt(plain, number, "scores")),
                    "verifier": mean_interval(scores),
                    "win_rate": fmean(of_seeds(arm, number, "evaluation", "win_rate", "mean")),
                    "drift": fmean(of_seeds(arm, number, "evaluation", "drift", "mean")),
                    "entropy": of_seeds(arm, number, "evaluation", "entropy", "mean"),
                    "tokens": fmean(of_seeds(arm, number, "evaluation", "tokens", "mean")),
                    "chosen_logp_change": chosen_change(arm, number),
                    "samples": fmean(of_seeds(arm, number, "samples", "mean")) if number else None,
                    "prior_gap": of_seeds(arm, number, "training", "prior_gap") if number else None,
                }
            )
    return rows


def _difference(values: Sequence[float], base: Sequence[float]) -> Interval:
    return mean_interval([value - other for value, other in zip(values, base, strict=True)])


def show(value: Interval, digits: int, sign: str = "") -> str:
    """A mean and its interval."""
    mean, low, high = (f"{number:{sign}.{digits}f}" for number in value)
    return f"{mean} ({low} to {high})"


def markdown(results: dict[str, Any]) -> str:
    """The table of `docs/experiments.md`."""
    heads = (
        "rounds done",
        "reward of held-out samples",
        "since the start",
        "less I-DPO's",
        "win rate",
        "verifier's score",
        "drift, nats",
        "log p of chosen, change by seed",
        "entropy by seed, nats",
        "tokens",
    )
    about = (
        f"Written {results['date']}: {len(ARMS)} x {len(SEEDS)} runs of {ROUNDS} rounds of "
        f"{PROMPTS_PER_ROUND} prompts, {SAMPLES} samples to each; {HELD_OUT_PROMPTS} held-out prompts with "
        f"{HELD_OUT_SAMPLES} samples each for every seed. Intervals are 95%, over prompts; differences are "
        "paired by prompt. The verifier's score is the demo's check of the prompt's instructions, which no "
        "training saw."
    )
    parts = [about]
    for arm in ARMS:
        is_plain = arm == next(iter(ARMS))
        cells = [
            [
                str(row["round"]),
                show(row["reward"], 2),
                show(row["reward_since_start"], 2, "+") if row["round"] else "",
                show(row["reward_against_plain"], 2, "+") if row["round"] and not is_plain else "",
                f"{row['win_rate']:.2f}" if row["round"] else "",
                show(row["verifier"], 2),
                f"{row['drift']:.1f}",
                ", ".join(f"{value:+.1f}" for value in row["chosen_logp_change"]) if row["round"] else "",
                ", ".join(f"{value:.2f}" for value in row["entropy"]),
                f"{row['tokens']:.0f}",
            ]
            for row in results["rows"]
            if row["arm"] == arm
        ]
        parts += [f"**{arm}**", markdown_table(heads, cells)]
    return "\n\n".join(parts)


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Reward and change of the chosen log-probability against rounds, for both arms."""
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "preftune"
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    reward, chosen = figure.subplots(1, 2)
    for place, (arm, colour) in enumerate(zip(ARMS, ("#0072b2", "#d55e00"), strict=True)):
        own = [row for row in rows if row["arm"] == arm]
        # Beside one another, so that neither interval hides the other.
        at = [row["round"] + 0.05 * (2 * place - 1) for row in own]
        means = [row["reward"][0] for row in own]
        ends = [[abs(row["reward"][end] - row["reward"][0]) for row in own] for end in (1, 2)]
        reward.errorbar(at, means, ends, color=colour, marker="o", label=arm)
        changes = [row["chosen_logp_change"] for row in own]
        chosen.plot(at, [fmean(values) for values in changes], color=colour, marker="o", label=arm)
        chosen.vlines(at, [min(values) for values in changes], [max(values) for values in changes], colour)
    reward.set_ylabel("reward of held-out samples (bar: 95%)")
    chosen.set_ylabel("log p of chosen, change (bar: seeds)")
    reward.legend()
    for axes in (reward, chosen):
        axes.set_xlabel("rounds done")
        axes.set_xticks(range(ROUNDS + 1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def seconds() -> float:
    """What all stages took together."""
    lines = [
        json.loads(line)
        for arm in ARMS
        for seed in SEEDS
        for line in (folder_of(arm, seed) / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return float(sum(line["seconds"] for line in lines))


def write() -> None:
    """The JSON, the figure and the table."""
    rows = compare()
    results = {"date": datetime.now(UTC).date().isoformat(), "seconds": round(seconds()), "rows": rows}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS, results)
    draw(RESULTS.with_suffix(".svg"), rows)
    table = markdown(results)
    write_section(EXPERIMENTS_PAGE, experiment_markers("online"), table)
    print(table)


def main() -> None:
    """An arm's rounds where one is named, else everything."""
    if len(sys.argv) > 1:
        run_arm(sys.argv[1])
    else:
        run()
        write()


if __name__ == "__main__":
    main()
