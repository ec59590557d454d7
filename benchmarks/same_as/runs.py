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
    """Two epochs of two steps and a part of one; keys with dots go into the parts."""
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
    }
    for path, value in keys.items():
        part, _, key = path.partition("__")
        if key:
            config[part][key] = value
        else:
            config[part] = value
    if "batches" in keys:
        del config["training"]["per_device_train_batch_size"]
    return config


def _training(processes: int = 1, **keys: Any) -> Run:
    command = Command((*PREFTUNE, "train", "run.yaml"), processes=processes)
    return Run((command,), {"run.yaml": _train_config(**keys)})


PRIOR: Config = {"method": "dpo", "prior": "reward_gap"}
BY_TOKENS: Config = {"tokens_per_step": 1200, "tokens_per_row": 500}
IDENTITY: Config = {"calibration": "identity"}
AUXILIARY: Config = {
    "objective": {"method": "dpo", "prior": "reward_gap", "auxiliary": {"weight": 0.5}},
    "prior": IDENTITY,
    "rewards": {"lexical_diversity": {"weight": 2}, "length": {"target": [40, 80], "weight": 0.1}},
}


def _methods(*names: str, **keys: Any) -> Run:
    """One command a method, into a folder of its own."""
    changes = ((f"objective.method={name}", f"output=out/{name}") for name in names)
    commands = tuple(Command((*PREFTUNE, "train", "run.yaml", *words)) for words in changes)
    return Run(commands, {"run.yaml": _train_config(**keys)})


def _resumed() -> Run:
    """Killed behind the first checkpoint, and gone on with to the end."""
    config = _train_config(**AUXILIARY, training__save_strategy="steps", training__save_steps=2)
    killed = Command((*KILLED, "train", "run.yaml"), SIGKILL)
    again = Command((*PREFTUNE, "train", "run.yaml", "--resume"))
    return Run((killed, again), {"run.yaml": config}, {"killed.py": KILL_BEHIND_CHECKPOINT})


def _iterated(*overrides: str) -> Run:
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
    return Run((Command((*PREFTUNE, "iterate", "rounds.yaml", *overrides)),), {"rounds.yaml": config})


def _swept() -> Run:
    options = ("--n", "2", "--max-new-tokens", "12")
    command = Command((*PREFTUNE, "sweep", "run.yaml", "objective.beta=0.1,0.3", *options))
    return Run((command,), {"run.yaml": _train_config(rewards={"length": {"target": 3, "weight": 2.0}})})


SAMPLED: Words = ("sample", "inputs/tiny", "inputs/prompts.jsonl", "--output", "sampled.jsonl", "--n", "3")
SAMPLED_BY_SERVER: Words = ("sample", "m", "inputs/prompts.jsonl", "--output", "served.jsonl", "--n", "2")
SCORED: Words = ("score", "inputs/unscored.jsonl", "--output", "scored.jsonl")
REWARDS: Words = ("--reward", "reading_grade", "--reward", "repetition:n=1", "--reward", "rainy_reward:rainy")


def _sampled() -> Run:
    here = Command((*PREFTUNE, *SAMPLED, "--max-new-tokens", "16", "--top-p", "0.9", "--rows", "8"))
    there = Command((*PREFTUNE, *SAMPLED_BY_SERVER, "--engine", "server", "--rows", "1"))
    return Run((here, there))


def _reward_model_scored() -> Run:
    """A reward model is trained, and scores."""
    config = _train_config(objective={"method": "bradley_terry", "center_weight": 0.01})
    scored = (*PREFTUNE, *SCORED, "--prior", "hf:out/model")
    return Run((Command((*PREFTUNE, "train", "run.yaml")), Command(scored)), {"run.yaml": config})


def _scored() -> Run:
    policy = "policy:inputs/tiny:reference=inputs/mixture"
    judged = ("score", "inputs/unscored.jsonl", "--output", "judged.jsonl", "--prior", "judge:m:workers=1")
    return Run(
        (
            Command((*PREFTUNE, *SCORED, "--prior", policy, *REWARDS)),
            Command((*PREFTUNE, *judged)),
        ),
        # The user's own function is found in the working folder.
        files={"rainy_reward.py": "from inputs.rainy_reward import rainy\n"},
    )


def _rescored(benchmark: str, *files: str) -> Command:
    """Figures from recorded judgments, in every form."""
    forms = {"--output": "json", "--csv": "csv", "--markdown": "md", "--items": "items.jsonl"}
    written = (word for flag, suffix in forms.items() for word in (flag, f"{benchmark}.{suffix}"))
    return Command((*PREFTUNE, "evaluate", "rescore", benchmark, *files, *written))


def _evaluated(benchmark: str, *words: str, model: str = "openai:m") -> Command:
    where = ("--output", f"out/{benchmark}", "--cache", "cache", "--concurrency", "1")
    return Command((*PREFTUNE, "evaluate", "run", benchmark, "--model", model, *words, *where))


RATED_BY_PEOPLE: Words = (
    *("evaluate", "human", "page", "out/alpaca_eval/model_outputs.json", "inputs/alpaca_outputs.json"),
    *("--output", "page.html"),
)


def _evaluated_by_server() -> Run:
    judge: Words = ("--judge", "judge:m")
    alpaca: Words = ("--questions", "inputs/alpaca.jsonl", "--baseline", "inputs/alpaca.jsonl")
    arena: Words = ("--questions", "inputs/arena.jsonl", "--baseline", "inputs/arena_baseline.jsonl")
    again = (
        _rescored("alpaca_eval", "out/alpaca_eval/annotations.json"),
        _rescored("arena_hard", "out/arena_hard/judgments.jsonl"),
        _rescored("mt_bench", "out/mt_bench/judgments.jsonl"),
    )
    return Run(
        (
            _evaluated("alpaca_eval", *judge, *alpaca, "--judge-prompt", "inputs/alpaca_prompt.txt"),
            _evaluated("arena_hard", *judge, *arena, "--judge-prompt", "inputs/arena_prompt.yaml"),
            _evaluated(
                *("mt_bench", *judge, "--questions", "inputs/mt_bench.jsonl"),
                *("--judge-prompt", "inputs/mt_bench_prompts.jsonl"),
            ),
            *again,
            Command((*PREFTUNE, *RATED_BY_PEOPLE)),
        )
    )


def _evaluated_here() -> Run:
    """By a reward and by a judge, and shown on the page of a run."""
    prompts: Words = ("--questions", "inputs/held_out_prompts.jsonl", "--max-new-tokens", "12")
    graded: Words = ("--reward", "reading_grade", "--baseline", "inputs/mixture")
    baseline: Words = ("--baseline", "inputs/head_to_head_baseline.jsonl", "--judge", "judge:m")
    return Run(
        (
            _evaluated("reward", *graded, *prompts, model="inputs/tiny"),
            _evaluated("head_to_head", *prompts, *baseline, model="inputs/tiny"),
            Command((*PREFTUNE, "train", "run.yaml", "output=tuned")),
            Command(("report.py",)),
        ),
        {"run.yaml": _train_config()},
        {"report.py": WRITE_REPORT},
    )


MIXTURE: Config = {"model": "inputs/mixture", "objective": PRIOR, "prior": IDENTITY}

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
    "mixture": _training(**MIXTURE),
    "resumed": _resumed(),
    "two_processes": _training(2, objective=PRIOR, prior=IDENTITY),
    "fully_sharded": _training(2, **AUXILIARY, fully_sharded=True),
    "sample": _sampled(),
    "score": _scored(),
    "iterate_rounds": _iterated(),
    "iterate_batches": _iterated("update_every=batch"),
    "sweep": _swept(),
    "rescore": Run((_rescored("alpaca_eval", "inputs/annotations_a.json", "inputs/annotations_b.json"),)),
    "evaluate_server": _evaluated_by_server(),
    "evaluate_here": _evaluated_here(),
}
