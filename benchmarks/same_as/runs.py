"""The small runs that both sides do, each through the real command line; both sides must know its words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]
Words = tuple[str, ...]

PREFTUNE: Words = ("-m", "preftune")
KILLED: Words = ("killed.py",)
SIGKILL = -9

KILL_BEHIND_CHECKPOINT = '''"""preftune, killed as soon as its first checkpoint is whole."""

import os
import runpy
import signal

from transformers.trainer_callback import DefaultFlowCallback


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


DefaultFlowCallback.on_save = kill
runpy.run_module("preftune", run_name="__main__", alter_sys=True)
'''

OWN_REWARD = '''"""A reward of the user's own."""


def rainy(prompts, completions, **columns):
    """How often it rains."""
    return [float(str(completion).count("rain")) for completion in completions]
'''

WRITE_REPORT = '''"""A page of a run and of what was said about it."""

from pathlib import Path

from preftune.report import write_report

found = sorted(Path("out").glob("*/results.json"))
write_report(Path("page.html"), "Report", {"tuned": Path("tuned")}, evaluations=found)
'''


@dataclass(frozen=True)
class Command:
    """One call of Python.

    Attributes:
        words: what follows the interpreter's name.
        status: the exit status that it must have.
        processes: how many do it together, told so as `torchrun` tells them.
    """

    words: Words
    status: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Run:
    """Commands that share a working folder, which holds a copy of the inputs as `inputs`.

    Attributes:
        commands: one behind the other.
        configs: YAML files by name, written before.
        files: other files by name.
    """

    commands: tuple[Command, ...]
    configs: Mapping[str, Config] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def _train_config(**keys: Any) -> Config:
    """Two epochs of two steps and a part of one."""
    config: Config = {
        "model": "inputs/tiny",
        "data": {"train": "inputs/train.jsonl", "evaluation": "inputs/held_out.jsonl"},
        "objective": {"method": "dpo"},
        "training": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "use_cpu": True,
        },
        "output": "out",
        "cache": "cache",
        **keys,
    }
    if "batches" in keys:
        del config["training"]["per_device_train_batch_size"]
    return config


def _training(processes: int = 1, **keys: Any) -> Run:
    command = Command((*PREFTUNE, "train", "run.yaml"), processes=processes)
    return Run((command,), {"run.yaml": _train_config(**keys)})


def _verb(line: str) -> Command:
    return Command((*PREFTUNE, *line.split()))


PRIOR: Config = {"method": "dpo", "prior": "reward_gap"}
BY_TOKENS: Config = {"tokens_per_step": 1200, "tokens_per_row": 500}
IDENTITY: Config = {"calibration": "identity"}
AUXILIARY: Config = {
    "objective": {"method": "dpo", "prior": "reward_gap", "auxiliary": {"weight": 0.5, "cap": 20.0}},
    "prior": IDENTITY,
    "rewards": {"lexical_diversity": {"weight": 2}, "length": {"target": [40, 80], "weight": 0.1}},
}


def _methods(*names: str, **keys: Any) -> Run:
    """One command a method, into a folder of its own."""
    lines = (f"train run.yaml objective.method={name} output=out/{name}" for name in names)
    return Run(tuple(map(_verb, lines)), {"run.yaml": _train_config(**keys)})


def _resumed() -> Run:
    """Killed behind the first checkpoint, and gone on with to the end."""
    train = "train run.yaml training.save_strategy=steps training.save_steps=2"
    killed = Command((*KILLED, *train.split()), SIGKILL)
    files = {"killed.py": KILL_BEHIND_CHECKPOINT}
    return Run((killed, _verb(f"{train} --resume")), {"run.yaml": _train_config(**AUXILIARY)}, files)


def _iterated(override: str = "") -> Run:
    training = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "use_cpu": True,
        "bf16": False,
    }
    config: Config = {
        "model": "inputs/tiny",
        "prompts": "inputs/prompts.jsonl",
        "held_out": "inputs/held_out_prompts.jsonl",
        "reward": "reading_grade",
        "rounds": 2,
        "sampling": {"n": 3, "max_new_tokens": 12},
        "evaluation": {"n": 2},
        "train": {"prior": {"calibration": "minmax"}, "training": training},
        "output": "out",
    }
    return Run((_verb(f"iterate rounds.yaml {override}"),), {"rounds.yaml": config})


def _swept() -> Run:
    sweep = _verb("sweep run.yaml objective.beta=0.1,0.3 --n 2 --max-new-tokens 12")
    return Run((sweep,), {"run.yaml": _train_config(rewards={"length": {"target": 3, "weight": 2.0}})})


def _sampled() -> Run:
    """By transformers, and by a server."""
    data, shape = "inputs/prompts.jsonl", "--n 3 --max-new-tokens 16 --top-p 0.9 --rows 8"
    here = _verb(f"sample inputs/tiny {data} --output sampled.jsonl {shape}")
    there = _verb(f"sample m {data} --output served.jsonl --n 2 --engine server --rows 1")
    return Run((here, there))


def _reward_model_scored() -> Run:
    """A reward model is trained, and scores."""
    config = _train_config(objective={"method": "bradley_terry", "center_weight": 0.01})
    scored = _verb("score inputs/unscored.jsonl --output scored.jsonl --prior hf:out/model")
    return Run((_verb("train run.yaml"), scored), {"run.yaml": config})


def _scored() -> Run:
    """By a policy, measures, a function of the user's own in the working folder, and a judge."""
    score = "score inputs/unscored.jsonl --output"
    policy = "--prior policy:inputs/tiny:reference=inputs/mixture"
    rewards = "--reward reading_grade --reward repetition:n=1 --reward rainy_reward:rainy"
    commands = (f"{score} scored.jsonl {policy} {rewards}", f"{score} judged.jsonl --prior judge:m:workers=1")
    return Run(tuple(map(_verb, commands)), files={"rainy_reward.py": OWN_REWARD})


def _rescored(benchmark: str, files: str) -> Command:
    """Figures from recorded judgments, in every form."""
    forms = {"output": "json", "csv": "csv", "markdown": "md", "items": "items.jsonl"}
    written = " ".join(f"--{flag} {benchmark}.{suffix}" for flag, suffix in forms.items())
    return _verb(f"evaluate rescore {benchmark} {files} {written}")


def _evaluated(benchmark: str, words: str, model: str = "openai:m") -> Command:
    where = f"--output out/{benchmark} --cache cache --concurrency 1"
    return _verb(f"evaluate run {benchmark} --model {model} {words} {where}")


def _evaluated_by_server() -> Run:
    """By judges, again from their recorded judgments, and prepared for people."""
    judge = "--judge judge:m --judge-prompt inputs"
    alpaca = "--questions inputs/alpaca.jsonl --baseline inputs/alpaca.jsonl"
    arena = "--questions inputs/arena.jsonl --baseline inputs/arena_baseline.jsonl"
    outputs = "out/alpaca_eval/model_outputs.json inputs/alpaca_outputs.json"
    return Run(
        (
            _evaluated("alpaca_eval", f"{judge}/alpaca_prompt.txt {alpaca}"),
            _evaluated("arena_hard", f"{judge}/arena_prompt.yaml {arena}"),
            _evaluated("mt_bench", f"{judge}/mt_bench_prompts.jsonl --questions inputs/mt_bench.jsonl"),
            _rescored("alpaca_eval", "out/alpaca_eval/annotations.json"),
            _rescored("arena_hard", "out/arena_hard/judgments.jsonl"),
            _rescored("mt_bench", "out/mt_bench/judgments.jsonl"),
            _verb(f"evaluate human page {outputs} --output page.html"),
        )
    )


def _evaluated_here() -> Run:
    """By a reward and by a judge, and shown on the page of a run."""
    prompts = "--questions inputs/held_out_prompts.jsonl --max-new-tokens 12"
    graded = f"--reward reading_grade --baseline inputs/mixture {prompts}"
    judged = f"{prompts} --baseline inputs/head_to_head_baseline.jsonl --judge judge:m"
    return Run(
        (
            _evaluated("reward", graded, model="inputs/tiny"),
            _evaluated("head_to_head", judged, model="inputs/tiny"),
            _verb("train run.yaml output=tuned"),
            Command(("report.py",)),
        ),
        {"run.yaml": _train_config()},
        {"report.py": WRITE_REPORT},
    )


RUNS: Mapping[str, Run] = {
    "prior": _training(objective=PRIOR, prior=IDENTITY),
    "simpo_lora": _training(objective={"method": "simpo"}, lora={"rank": 4}),
    "kto_by_tokens": _training(objective={"method": "kto"}, batches=BY_TOKENS),
    "auxiliary": _training(**AUXILIARY),
    "reward_model": _reward_model_scored(),
    "offline_ppo": _training(objective={"method": "offline_ppo"}, rewards={"length": {"target": 0}}),
    "csft": _training(objective={"method": "csft"}),
    "pair_methods": _methods("ipo", "cpo", "hinge"),
    "reward_methods": _methods("alol", "dro_v", "modpo", rewards={"length": {"target": 40, "weight": 0.1}}),
    "mixture": _training(model="inputs/mixture", objective=PRIOR, prior=IDENTITY),
    "resumed": _resumed(),
    "two_processes": _training(2, objective=PRIOR, prior=IDENTITY),
    "fully_sharded": _training(2, **AUXILIARY, fully_sharded=True),
    "sample": _sampled(),
    "score": _scored(),
    "iterate_rounds": _iterated(),
    "iterate_batches": _iterated("update_every=batch"),
    "sweep": _swept(),
    "rescore": Run((_rescored("alpaca_eval", "inputs/annotations_a.json inputs/annotations_b.json"),)),
    "evaluate_server": _evaluated_by_server(),
    "evaluate_here": _evaluated_here(),
}
