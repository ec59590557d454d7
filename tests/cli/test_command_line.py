"""The command line answers fast, helps, and leaves what it promises."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from preftune.objectives import METHODS, PRIORS

CommandLine = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    "arguments",
    [[*verb, "--help"] for verb in ([], ["train"], ["sample"], ["iterate"], ["evaluate", "run"], ["demo"])],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """No help page waits for torch, transformers or datasets."""
    code = (
        "import sys; from preftune.cli import main; sys.argv = ['preftune', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_train_help_shows_what_people_change() -> None:
    """The ten most changed settings stand in `preftune train --help`."""
    done = subprocess.run(
        [sys.executable, "-m", "preftune", "train", "--help"], capture_output=True, text=True, check=False
    )
    for key in ("model=", "data.train=", "objective.method=", "objective.prior=", "lora.rank=", "output="):
        assert key in done.stdout


def test_run_folder_holds_what_a_reader_needs(config: dict[str, Any], train: Callable[..., Path]) -> None:
    """Resolved configuration, metrics, summary, environment, report and the model."""
    run = train(config)
    names = {path.name for path in run.iterdir()}
    wanted = {"config.yaml", "metrics.jsonl", "summary.json", "environment.json", "report.html", "model"}
    assert wanted <= names
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    smoothing = {"label_smoothing": 0.0, "length_normalized": False}
    assert resolved["objective"] == {"method": "dpo", "beta": 0.1, "prior": "reward_gap"} | smoothing
    assert resolved["prior"] == {"calibration": "identity", "temperature": 1.0, "negative_gap": "error"}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [line for line in lines if "eval_loss" in line]
    change = held_out[-1]["eval_logps/chosen"] - held_out[0]["eval_logps/chosen"]
    assert summary["chosen_logp_change"] == pytest.approx(change)
    assert summary["accuracy"] == held_out[-1]["eval_rewards/accuracies"]
    assert summary["steps"] == max(line["step"] for line in lines) == 4
    assert summary["train"]["pairs"] == 16
    assert summary["train"]["prior"]["mean_gap"] == pytest.approx(held_out[0]["eval_prior/gap"], abs=0.3)
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert environment["data"]["train"] == summary["train"]["fingerprint"]
    assert not list(run.rglob("training_args.bin"))


def test_lora_run_saves_an_adapter_that_loads(
    config: dict[str, Any], train: Callable[..., Path], tiny_model_dir: Path
) -> None:
    """`lora.rank` trains an adapter only, and peft reads what the run leaves."""
    run = train(config, "lora.rank=4", "training.learning_rate=1e-2")
    adapted = AutoPeftModelForCausalLM.from_pretrained(run / "model")
    weights = {name: weight for name, weight in adapted.named_parameters() if "lora_B" in name}
    assert weights
    assert all(weight.abs().max() > 0 for weight in weights.values())
    base = adapted.unload()
    untouched = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    assert all(torch.equal(weight, untouched[name]) for name, weight in base.state_dict().items())


def test_train_lists_every_method_and_prior() -> None:
    """`--list` needs no configuration, and shows all that the registries hold."""
    done = subprocess.run(
        [sys.executable, "-m", "preftune", "train", "--list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*METHODS, *PRIORS))
