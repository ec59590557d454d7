"""The runs that are compared, as words of the command line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]
TRAINING: Tree = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "use_cpu": True,
}
DATA: Tree = {"train": "inputs/train.jsonl", "evaluation": "inputs/held_out.jsonl"}
REWARDS: Tree = {"reading_grade": {"goal": "minimise"}, "length": {"measure": "words:count", "weight": 0.1}}


def training(objective: Tree, model: str = "inputs/model", **keys: Any) -> Tree:
    """A run of three steps."""
    settings = {**TRAINING, **keys.pop("training", {})}
    prior = {"prior": {"calibration": "identity"}} if objective.get("prior") == "reward_gap" else {}
    return {"model": model, "data": DATA, "objective": objective, "training": settings, **prior, **keys}


ROUNDS: Tree = {
    "model": "inputs/model",
    "prompts": "inputs/prompts.jsonl",
    "held_out": "inputs/questions.jsonl",
    "rounds": 2,
    "reward": "reading_grade",
    "sampling": {"n": 3, "max_new_tokens": 6},
    "evaluation": {"n": 2},
    "train": {
        "prior": {"calibration": "minmax"},
        "training": {
            **{key: TRAINING[key] for key in ("learning_rate", "save_strategy", "use_cpu")},
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "save_steps": 1,
            "bf16": False,
        },
    },
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@dataclass(frozen=True)
class Side:
    """One of the two commits.

    Attributes:
        title: for messages.
        source: its `src`.
        folder: where its runs go.
        inputs: what both read, linked into every run's folder.
        is_kept: whether finished runs are kept for the next call.
    """

    title: str
    source: Path
    folder: Path
    inputs: Path
    is_kept: bool

    def make(self, name: str, run: Callable[["Side", Path], None]) -> str:
        """Make a run; the end of what it wrote where it failed."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "inputs").symlink_to(self.inputs.resolve())
        try:
            run(self, place)
        except subprocess.CalledProcessError as error:
            return str(error.stderr or error)[-2000:]
        return ""

    def call(self, place: Path, *words: str, processes: int = 1) -> None:
        """Run a verb in a run's folder.

        Raises:
            CalledProcessError: it failed.
        """
        launcher = TORCHRUN if processes > 1 else ()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(self.source.resolve()), str(self.inputs.resolve()))),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PREFTUNE_CACHE": str((place / "cache").resolve()),
        }
        subprocess.run(
            [sys.executable, *launcher, "-m", "preftune", *words],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )


def train(tree: Tree, processes: int = 1) -> Callable[[Side, Path], None]:
    """A training run."""

    def run(side: Side, place: Path) -> None:
        _write(place / "run.yaml", tree | {"output": "out"})
        side.call(place, "train", "run.yaml", processes=processes)

    return run


def _write(path: Path, tree: Tree) -> None:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")


DPO = training({"method": "dpo", "prior": "reward_gap"})


def resumed(side: Side, place: Path) -> None:
    """A run that was cut behind its first checkpoint, and goes on."""
    train(DPO)(side, place)
    out = place / "out"
    for checkpoint in (out / "checkpoints").iterdir():
        if checkpoint.name != "checkpoint-2":
            shutil.rmtree(checkpoint)
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    side.call(place, "train", "run.yaml", "--resume")


def sample(side: Side, place: Path) -> None:
    """Samples of texts and chats."""
    words = (
        "--output",
        "sampled.jsonl",
        "--n",
        "3",
        "--max-new-tokens",
        "8",
        "--seed",
        "5",
        "--top-p",
        "0.9",
    )
    side.call(place, "sample", "inputs/model", "inputs/prompts.jsonl", *words)


def score(side: Side, place: Path) -> None:
    """Scores by measures, a function of one's own, a judge and an implicit reward."""
    rewards = (
        "reading_grade",
        "toxicity",
        "words:count",
        "policy:inputs/other:reference=inputs/model,name=implicit",
    )
    flags = [word for reward in rewards for word in ("--reward", reward)]
    side.call(place, "score", "inputs/train.jsonl", *flags, "--output", "scored.jsonl")
    side.call(place, "score", "inputs/plain.jsonl", "--prior", "judge:scripted", "--output", "judged.jsonl")


def iterate(mode: str) -> Callable[[Side, Path], None]:
    """Two rounds."""

    def run(side: Side, place: Path) -> None:
        _write(place / "rounds.yaml", ROUNDS | {"update_every": mode, "output": "out"})
        side.call(place, "iterate", "rounds.yaml")

    return run


def sweep(side: Side, place: Path) -> None:
    """Two weights of an auxiliary reward."""
    tree = training({"method": "dpo", "auxiliary": {"weight": 0.1}}, rewards=REWARDS, output="out")
    _write(place / "run.yaml", tree)
    words = ("objective.auxiliary.weight=0,0.3", "--n", "2", "--max-new-tokens", "6")
    side.call(place, "sweep", "run.yaml", *words)


def rescore(side: Side, place: Path) -> None:
    """Figures from recorded verdicts of three benchmarks."""
    for protocol, file in (
        ("alpaca_eval", "slim.json"),
        ("mt_bench", "single.jsonl"),
        ("arena_hard", "battles.jsonl"),
    ):
        words = (protocol, f"inputs/{file}", "--output", f"{protocol}.json", "--csv", f"{protocol}.csv")
        side.call(place, "evaluate", "rescore", *words)


def evaluate(side: Side, place: Path) -> None:
    """A comparison by a judge on loopback, and the mean of a reward."""
    models = (
        "--model",
        "inputs/model",
        "--baseline",
        "inputs/other",
        "--questions",
        "inputs/questions.jsonl",
    )
    short = ("--max-new-tokens", "6")
    words = ("head_to_head", *models, "--judge", "judge:scripted", "--output", "head_to_head", *short)
    side.call(place, "evaluate", "run", *words)
    words = ("reward", *models, "--reward", "reading_grade", "--output", "reward", *short)
    side.call(place, "evaluate", "run", *words)


RUNS: dict[str, Callable[[Side, Path], None]] = {
    "dpo, prior": train(DPO),
    "simpo, LoRA": train(training({"method": "simpo"}, lora={"rank": 4})),
    "kto": train(training({"method": "kto"})),
    "dpo, auxiliary": train(training({"method": "dpo", "auxiliary": {"weight": 0.1}}, rewards=REWARDS)),
    "bradley_terry": train(training({"method": "bradley_terry"})),
    "offline_ppo": train(training({"method": "offline_ppo"}, rewards=REWARDS)),
    "csft": train(training({"method": "csft"})),
    "mixture": train(training({"method": "dpo", "router_loss_weight": 0.01}, model="inputs/mixture")),
    "resumed": resumed,
    "two processes": train(DPO, processes=2),
    "sharded": train(training({"method": "dpo", "prior": "reward_gap"}, fully_sharded=True), processes=2),
    "sample": sample,
    "score": score,
    "iterate by round": iterate("round"),
    "iterate by batch": iterate("batch"),
    "sweep": sweep,
    "rescore": rescore,
    "evaluate": evaluate,
}
