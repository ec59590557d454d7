"""Runs one cell by preftune's own API, and leaves its `result.json`."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.arms import Arm
from experiments.cells import SEARCH_SEED, SETTINGS, Cell, kept_of, needed_by, result_path
from experiments.judges import (
    Judge,
    accuracy_of,
    by_measures,
    by_program,
    by_reward_model,
    one_at_a_time,
    train_reward_model,
)
from experiments.rows import Group, Splits, as_log_odds, pairs_of, splits_of
from experiments.sizes import Sizes
from experiments.variations import EVERY, PairRow
from preftune import iterate, train
from preftune.measuring.held_out import HeldOut, PolicySamples, load_policy, measure_policy
from preftune.models import generation_device, generation_dtype, has_fast_bfloat16, load_tokenizer
from preftune.sampling.sampler import sample_responses
from preftune.sampling.settings import SamplingSettings
from preftune.storage.files import read_lines, write_json

PROGRAM_REWARD = "preftune.rewards.instructions:instructions_kept"
ROWS_AT_ONCE = 128
WITH_GAPS = ("odpo", "rpo", "mmpo", "scaled_dpo", "distilled_dpo")
"""Methods that read calibrated scores by themselves."""


@dataclass(frozen=True)
class Place:
    """Where cells run.

    Attributes:
        model: the starting policy.
        where: folder of the preference data.
        sizes: of the experiment.
    """

    model: str
    where: Path | None
    sizes: Sizes

    def splits(self, cell: Cell) -> Splits:
        """The data of a cell's setting."""
        return splits_of(SETTINGS[cell.setting].data, self.where, self.sizes)

    def reward_model(self, kind: str) -> Path:
        """A reward model on the graded data, the `judge` or the `reward` of rounds; kept once trained."""
        splits = splits_of("b", self.where, self.sizes)
        groups = splits.judge if kind == "judge" else splits.train[: self.sizes.judge_prompts]
        output = self.sizes.folder / "b" / f"{kind}-model"
        return train_reward_model(groups, self.model, output, self.sizes, computing())

    def judge(self, cell: Cell) -> Judge:
        """What a cell's samples are judged by."""
        data = SETTINGS[cell.setting].data
        if data == "b":
            return by_reward_model(self.reward_model("judge"))
        return by_program if data == "a" else by_measures


def computing() -> dict[str, Any]:
    """Options of every training run."""
    return {"bf16": has_fast_bfloat16(generation_device()), "report_to": []}


def run_cell(cell: Cell, place: Place) -> None:
    """Run it and leave its result, and first the search that it needs; what is finished is left alone.

    A cell that another process is at is waited for; a killed one goes on at its last checkpoint.
    """
    path = result_path(cell, place.sizes)
    if path.exists():
        return
    for needed in needed_by(cell, place.sizes):
        run_cell(needed, place)
    with one_at_a_time(path.parent):
        if not path.exists():
            _run(cell, place, path)


def _run(cell: Cell, place: Place, path: Path) -> None:
    began = time.perf_counter()
    work = {"judge": _judge, "start": _start, "search": _search, "test": _test, "rounds": _rounds}
    result = work[cell.phase](cell, place)
    # What a killed call had done is not in it.
    seconds = round(time.perf_counter() - began, 1)
    device = generation_device().type
    about = {"seconds": seconds, "device": device, "processor": torch.backends.cpu.get_cpu_capability()}
    write_json(path, {**about, "bf16": computing()["bf16"], **result})
    for leftover in ("run", "run.given"):
        shutil.rmtree(path.with_name(leftover), ignore_errors=True)


def _judge(cell: Cell, place: Place) -> dict[str, Any]:
    judge = by_reward_model(place.reward_model("judge"))
    return {"accuracy": accuracy_of(judge, place.splits(cell).test, place.model, place.sizes)}


# --- samples ---


def _held_out(groups: Sequence[Group], place: Place, seed: int) -> HeldOut:
    device = generation_device()
    settings = SamplingSettings(
        n=place.sizes.test_samples, max_new_tokens=place.sizes.max_new_tokens, seed=seed
    )
    rows = [{"prompt": group["prompt"]} for group in groups]
    tokenizer = load_tokenizer(place.model)
    return HeldOut(rows, tokenizer, settings, generation_dtype(device), device, rows=ROWS_AT_ONCE)


def _measured(policy: str, cell: Cell, place: Place) -> dict[str, Any]:
    """A policy's samples on the test prompts, in numbers: a list for each prompt, and figures of all."""
    groups = place.splits(cell).test
    held_out = _held_out(groups, place, cell.seed)
    samples = measure_policy(policy, place.model, held_out)
    texts = [row["responses"] for row in samples.rows]
    judged = place.judge(cell)(groups, texts)
    return _numbers(samples, judged) | {"distinct": distinct([text for row in texts for text in row])}


def _numbers(samples: PolicySamples, judged: dict[str, list[list[float]]]) -> dict[str, Any]:
    return {
        "rewards": judged["reward"],
        "by_prompt": {
            **{name: [fmean(row) for row in rows] for name, rows in judged.items()},
            "kl": [fmean(row) for row in samples.drift],
            "tokens": [fmean(row) for row in samples.lengths],
            "finished": [fmean(row["finished"]) for row in samples.rows],
        },
    }


def distinct(texts: Sequence[str]) -> dict[str, float]:
    """Different 1- and 2-grams of words over all of them."""
    found = {}
    for n in (1, 2):
        grams = [
            tuple(words[start : start + n])
            for words in (text.lower().split() for text in texts)
            for start in range(len(words) - n + 1)
        ]
        found[str(n)] = len(set(grams)) / len(grams) if grams else 0.0
    return found


def _start(cell: Cell, place: Place) -> dict[str, Any]:
    if cell.seed >= SEARCH_SEED:
        return {"worth": _worth(place.model, cell, place)}
    return {"points": {"start": _measured(place.model, cell, place)}}


# --- training ---


def training_rows(cell: Cell, place: Place) -> list[dict[str, Any]]:
    """What a cell trains on."""
    groups, arm = place.splits(cell).train, cell.definition
    if arm.responses == "all":
        return [{key: group[key] for key in ("prompt", "responses", "scores")} for group in groups]
    if not cell.variation:
        return _as_rows(pairs_of(groups), arm, cell)
    variation = EVERY[cell.variation]
    pairs = variation.change(pairs_of(groups, variation.responses))
    return _as_rows(pairs[: variation.pairs] if variation.epochs else pairs, arm, cell)


def _as_rows(pairs: list[PairRow], arm: Arm, cell: Cell) -> list[dict[str, Any]]:
    is_graded = SETTINGS[cell.setting].data == "b"
    scored = as_log_odds(pairs) if arm.log_odds and is_graded else pairs
    return [
        row | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in scored
    ]


def _trained(cell: Cell, place: Place, rate: float, steps: int, every: int, held_out: list[Group]) -> Path:
    """The run's folder, with a checkpoint every so many steps; a killed run goes on."""
    folder, arm = result_path(cell, place.sizes).with_name("run"), cell.definition
    reads_gaps = arm.objective.get("prior") == "reward_gap" or arm.objective["method"] in WITH_GAPS
    prior: dict[str, Any] = {"calibration": arm.calibration} if reads_gaps else {}
    if prior and cell.variation:
        prior["negative_gap"] = "clip"
    evaluated = _as_rows(pairs_of(held_out), arm, cell)
    if SETTINGS[cell.setting].data != "c":
        # Accuracy decides nothing there, and reading takes time.
        evaluated = evaluated[: place.sizes.evaluation_pairs]
    evaluation: dict[str, Any] = {"eval_strategy": "no", "eval_on_start": False}
    if evaluated:
        evaluation = {"eval_strategy": "steps", "eval_steps": every, "eval_on_start": True}
    arguments = {
        "learning_rate": rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(2, steps),
        "per_device_train_batch_size": place.sizes.pairs_per_step,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": None,
        "seed": cell.seed,
        **evaluation,
    }
    resume = any((folder / "checkpoints").glob("*")) and not (folder / "summary.json").exists()
    if not (folder / "summary.json").exists():
        train(
            model=place.model,
            train_dataset=training_rows(cell, place),
            eval_dataset=evaluated or None,
            objective=dict(arm.objective),
            rewards={name: dict(options) for name, options in arm.rewards.items()} or None,
            prior=prior or None,
            peft_config={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            args=computing() | arguments,
            output=str(folder),
            cache=str(place.sizes.folder / "cache"),
            resume=resume,
            overwrite=not resume,
        )
    return folder


def _checkpoint(folder: Path, steps: int) -> str:
    return str(folder / "checkpoints" / f"checkpoint-{steps}")


def _search(cell: Cell, place: Place) -> dict[str, Any]:
    """How well every number of steps of the grid does on validation prompts."""
    assert cell.rate is not None
    sizes, groups = place.sizes, place.splits(cell).validation
    by_accuracy = SETTINGS[cell.setting].data == "c"
    folder = _trained(
        cell, place, cell.rate, max(sizes.steps), min(sizes.steps), groups if by_accuracy else []
    )
    if by_accuracy:
        lines = _evaluations(folder)
        return {"worth": {str(steps): [lines[steps]["eval_rewards/accuracies"]] for steps in sizes.steps}}
    checkpoints = {steps: _checkpoint(folder, steps) for steps in sizes.steps}
    return {"worth": {str(steps): _worth(policy, cell, place) for steps, policy in checkpoints.items()}}


def _worth(policy: str, cell: Cell, place: Place) -> list[float]:
    """Mean reward of a policy's samples for each validation prompt."""
    groups = place.splits(cell).validation
    held_out = _held_out(groups, place, cell.seed)
    sampled = sample_responses(
        load_policy(policy, place.model, held_out),
        held_out.tokenizer,
        [row["prompt"] for row in held_out.prompts],
        n=place.sizes.validation_samples,
        max_new_tokens=place.sizes.max_new_tokens,
        seed=cell.seed,
        rows=ROWS_AT_ONCE,
    )
    texts = [[response.text for response in row] for row in sampled]
    return [fmean(row) for row in place.judge(cell)(groups, texts)["reward"]]


def _evaluations(folder: Path) -> dict[int, dict[str, float]]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["step"]: line for line in lines if "eval_loss" in line}


def _test(cell: Cell, place: Place) -> dict[str, Any]:
    """Train at the kept point and for longer, and measure both."""
    kept = kept_of(cell, place.sizes)
    assert kept is not None, f"{cell.name}: its search has not ended"
    rate, steps = kept
    epochs = EVERY[cell.variation].epochs if cell.variation else None
    if epochs:
        steps = max(1, len(training_rows(cell, place)) * epochs // place.sizes.pairs_per_step)
    most = steps if epochs else steps * place.sizes.too_long
    folder = _trained(cell, place, rate, most, steps, place.splits(cell).test)
    lines = _evaluations(folder)
    points = {}
    for name, at in {"kept": steps, **({} if epochs else {"long": most})}.items():
        points[name] = _measured(_checkpoint(folder, at), cell, place) | {
            "steps": at,
            "accuracy": lines[at]["eval_rewards/accuracies"],
            "chosen_logp_change": lines[at]["eval_logps/chosen"] - lines[0]["eval_logps/chosen"],
            "rejected_logp_change": lines[at]["eval_logps/rejected"] - lines[0]["eval_logps/rejected"],
        }
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "rate": rate,
        "value_explained_variance": _find(summary, "value_explained_variance"),
        "points": points,
    }


def _find(tree: dict[str, Any], key: str) -> Any:
    """The first value of this key, at any depth."""
    if key in tree:
        return tree[key]
    below = (_find(value, key) for value in tree.values() if isinstance(value, dict))
    return next((value for value in below if value is not None), None)


# --- rounds ---


def _rounds(cell: Cell, place: Place) -> dict[str, Any]:
    """Rounds of `preftune iterate`, or one round over the same prompts, and the last policy's samples."""
    kept = kept_of(cell, place.sizes)
    assert kept is not None, f"{cell.name}: its search has not ended"
    sizes, splits, arm = place.sizes, place.splits(cell), cell.definition
    is_graded = SETTINGS[cell.setting].data == "b"
    keys = ("prompt",) if is_graded else ("prompt", "instructions")
    rounds = 1 if cell.arm.endswith("one round") else sizes.rounds
    folder = result_path(cell, sizes).with_name("run")
    reward = f"hf:{place.reward_model('reward')}" if is_graded else PROGRAM_REWARD
    prior = {"calibration": "sigmoid" if is_graded else "identity"}
    # The reward model's prompts are not asked again.
    asked = splits.train[-sizes.rounds * sizes.round_prompts :]
    done = iterate(
        {
            "model": place.model,
            "rounds": rounds,
            "reward": reward,
            "sampling": {"n": 8, "max_new_tokens": sizes.max_new_tokens},
            "evaluation": {"n": max(2, sizes.test_samples)},
            "train": {
                "lora": {"rank": 16},
                "objective": dict(arm.objective),
                **({"prior": prior} if arm.objective["prior"] == "reward_gap" else {}),
                "training": computing()
                | {
                    "learning_rate": kept[0],
                    "lr_scheduler_type": "constant_with_warmup",
                    "warmup_steps": 2,
                    "per_device_train_batch_size": sizes.pairs_per_step,
                    "gradient_accumulation_steps": 1,
                    "save_strategy": "no",
                },
            },
            "seed": cell.seed,
            "output": str(folder),
        },
        prompts=[{key: row[key] for key in keys} for row in asked],
        held_out=[{key: row[key] for key in keys} for row in splits.test],
    )
    judge, points = place.judge(cell), {}
    for number in range(rounds + 1):
        rows = read_lines(folder / (f"round-{number}" if number else "start") / "held_out.jsonl")
        texts = [row["responses"] for row in rows]
        judged = judge(splits.test, texts)
        points["start" if not number else "kept" if number == rounds else f"round {number}"] = {
            "rewards": judged["reward"],
            "by_prompt": {name: [fmean(row) for row in values] for name, values in judged.items()},
            "distinct": distinct([text for row in texts for text in row]),
        }
    return {"rate": kept[0], "summary": done.summary.get("figures", {}), "points": points}
