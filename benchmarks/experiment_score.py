"""What a reward model trained here is worth as a prior, and that scoring survives: `make experiment-score`.

Trains a reward model from SmolLM2-135M-Instruct on the demo's training prompts, scores 1,000 held-out pairs
by `preftune score`, does it again with a kill -9 at five random moments, and measures agreement and
calibration of the scores. Finished parts are kept: the command continues where it stopped. It writes
`docs/experiments/score.json` and its table in `docs/experiments.md`.
"""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from sections import EXPERIMENTS_PAGE, experiment_markers, write_section

from preftune.data import Group, load_groups
from preftune.data.pairing import all_pairs
from preftune.demo.data import demo_rows, write_jsonl
from preftune.demo.model import demo_model_dir
from preftune.measuring.statistics import mean_interval
from preftune.models import generation_device, has_fast_bfloat16
from preftune.rewards import Calibration, fit_calibration
from preftune.rewards.reliability import Reliability, reliability
from preftune.storage.files import write_json

FOLDER = Path("runs/experiment-score")
REWARD_MODEL = FOLDER / "reward-model"
RESULTS = Path("docs/experiments/score.json")
TRAINING_PROMPTS = 120
PAIRS = 1000
KILLS = 5
SEED = 0
# Small enough that a batch, which a kill loses, is a few seconds of work.
BATCH_TOKENS = 2048


def configuration() -> dict[str, Any]:
    """The run that trains the reward model."""
    return {
        "model": str(demo_model_dir()),
        "data": {
            "train": str(FOLDER / "train.jsonl"),
            "evaluation": str(FOLDER / "held_out.jsonl"),
            "pair_rule": "all_pairs",
            "evaluation_pair_rule": "all_pairs",
        },
        "objective": {"method": "bradley_terry", "center_weight": 0.01},
        "training": {
            "learning_rate": 1e-4,
            "warmup_steps": 3,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "bf16": has_fast_bfloat16(generation_device()),
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 10,
            "save_total_limit": 1,
            "seed": SEED,
        },
        "output": str(REWARD_MODEL),
        "cache": str(FOLDER / "cache"),
    }


def train() -> None:
    """Train the reward model, or go on where that stopped."""
    if (REWARD_MODEL / "summary.json").exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_jsonl(FOLDER / "train.jsonl", demo_rows("train")[:TRAINING_PROMPTS])
    # Some of the held-out prompts, for the log; all of them are scored afterwards.
    write_jsonl(FOLDER / "held_out.jsonl", demo_rows("held_out")[:8])
    file = FOLDER / "reward-model.yaml"
    file.write_text(yaml.safe_dump(configuration(), sort_keys=False), encoding="utf-8")
    flag = ["--resume"] if any(REWARD_MODEL.glob("checkpoints/*")) else ["--overwrite"]
    subprocess.run([sys.executable, "-m", "preftune", "train", str(file), *flag], check=True)


def write_pairs() -> Path:
    """A thousand of the pairs that held-out prompts make."""
    pairs = []
    for number, row in enumerate(demo_rows("held_out")):
        for places in all_pairs(row["scores"], 0, np.random.default_rng()):
            chosen, rejected = (
                [{"role": "assistant", "content": row["responses"][place]}] for place in places
            )
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "id": number})
    path = FOLDER / "pairs.jsonl"
    write_jsonl(path, sorted(random.Random(SEED).sample(pairs, PAIRS), key=lambda row: row["id"]))
    return path


# --- scoring, and killing it ---


def score_command(pairs: Path, output: Path) -> list[str]:
    """The command line."""
    prior = f"hf:{REWARD_MODEL / 'model'}:batch_tokens={BATCH_TOKENS}"
    return [
        *(sys.executable, "-m", "preftune", "score", str(pairs)),
        *("--prior", prior, "--output", str(output)),
    ]


def score_once(pairs: Path) -> tuple[Path, dict[str, float]]:
    """The scored pairs, and what an undisturbed call took."""
    output, timing = FOLDER / "scored.jsonl", FOLDER / "scored.seconds.json"
    if not (output.exists() and timing.exists()):
        output.unlink(missing_ok=True)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(score_command(pairs, output), check=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_json(timing, {"seconds": seconds, "processor_seconds": processor})
    found: dict[str, float] = json.loads(timing.read_text(encoding="utf-8"))
    return output, found


def kill_at_work(pairs: Path, output: Path, moment: float) -> float:
    """Kill a fresh call after `moment` seconds, or half of that as often as it was faster; returns when."""
    while True:
        for stale in FOLDER.glob(f"{output.name}*"):
            stale.unlink()
        process = subprocess.Popen(score_command(pairs, output))
        time.sleep(moment)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            return moment
        moment /= 2


def kill_and_restart(pairs: Path, number: int, moment: float) -> dict[str, Any]:
    """Kill a call after `moment` seconds, start it again, and hash its file."""
    output, record = FOLDER / f"killed-{number}.jsonl", FOLDER / f"killed-{number}.json"
    if not record.exists():
        moment = kill_at_work(pairs, output, moment)
        kept = sum(
            shard.read_text(encoding="utf-8").count("\n") for shard in FOLDER.glob(f"{output.name}.*.part")
        )
        subprocess.run(score_command(pairs, output), check=True)
        write_json(record, {"moment": moment, "scores_kept": kept, "sha256": digest(output)})
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what the scores are worth ---


def agreement(groups: Iterable[Group]) -> tuple[float, float, float]:
    """Share of pairs that the scores order as the labels do: mean over prompts, which are independent."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for group in groups:
        chosen, rejected = (response.score or 0.0 for response in group.responses)
        right[str(group.prompt)].append(chosen > rejected)
    return mean_interval([fmean(values) for values in right.values()])


def gaps(calibration: Calibration, groups: Sequence[Group]) -> Reliability:
    """The calibrated prior against the labels."""
    return reliability(np.array([calibration.gap(pair, group) for group in groups for pair in group.pairs]))


def measure(scored: Path) -> dict[str, Any]:
    """Agreement on all pairs; calibration fitted on the first half of the prompts, measured on the other."""
    groups = load_groups(str(scored), needs_prior=True).groups
    prompts = list(dict.fromkeys(str(group.prompt) for group in groups))
    first = set(prompts[: len(prompts) // 2])
    halves = [
        [group for group in groups if (str(group.prompt) in first) == wanted] for wanted in (True, False)
    ]
    fitted = fit_calibration("bradley_terry", "fit", halves[0])
    plain = fit_calibration("bradley_terry", 1.0, halves[0])
    return {
        "pairs": len(groups),
        "prompts": len(prompts),
        "agreement_by_prompt": agreement(groups),
        "agreement": gaps(plain, groups).agreement.share,
        "temperature": fitted.temperature,
        "calibration": {
            name: asdict(gaps(calibration, halves[1]))
            for name, calibration in {"temperature 1": plain, "fitted temperature": fitted}.items()
        },
    }


def markdown(results: dict[str, Any]) -> str:
    """The table of `docs/experiments.md`."""
    mean, low, high = results["agreement_by_prompt"]
    plain, fitted = results["calibration"].values()
    rows = {
        "pairs that the scores order as the labels do": f"{results['agreement']:.3f}",
        "the same, mean over prompts": f"{mean:.3f} ({low:.3f} to {high:.3f})",
        "expected calibration error at temperature 1": f"{plain['expected_calibration_error']:.3f}",
        f"... at the fitted temperature, {results['temperature']:.2f}": (
            f"{fitted['expected_calibration_error']:.3f}"
        ),
        "pairs per second": f"{results['pairs_per_second']:.1f}",
        "pairs per processor-second": f"{results['pairs_per_processor_second']:.1f}",
        "kill -9 and restart gives the same file": (
            f"{sum(kill['same'] for kill in results['kills'])} of {len(results['kills'])}"
        ),
    }
    moments = ", ".join(f"{kill['moment']:.0f} s ({kill['scores_kept']} scores)" for kill in results["kills"])
    return "\n".join(
        [
            f"Written {results['date']}: {results['pairs']} pairs of {results['prompts']} held-out prompts, "
            f"{results['responses']} different responses; {results['processor']}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
            f"Killed after {moments}.",
        ]
    )


def main() -> None:
    """Run what is missing and write what it shows."""
    train()
    pairs = write_pairs()
    scored, timing = score_once(pairs)
    chance = random.Random(SEED)
    moments = [chance.uniform(0, timing["processor_seconds"]) for _ in range(KILLS)]
    kills = [kill_and_restart(pairs, number, moment) for number, moment in enumerate(moments)]
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").split("\n") if line]
    environment = json.loads((REWARD_MODEL / "environment.json").read_text(encoding="utf-8"))
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{environment.get('processor')}, {os.cpu_count()} cores",
        "responses": len({(row["id"], str(row[side])) for row in rows for side in ("chosen", "rejected")}),
        **measure(scored),
        **timing,
        "pairs_per_second": PAIRS / timing["seconds"],
        "pairs_per_processor_second": PAIRS / timing["processor_seconds"],
        "kills": [kill | {"same": kill["sha256"] == digest(scored)} for kill in kills],
    }
    write_json(RESULTS, results)
    table = markdown(results)
    write_section(EXPERIMENTS_PAGE, experiment_markers("score"), table)
    print(table)


if __name__ == "__main__":
    main()
