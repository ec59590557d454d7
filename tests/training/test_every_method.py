"""Every method of the table is trained, resumed, split and adapted by the same code."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainingArguments

from preftune import PreferenceTrainer
from preftune.objectives import METHODS

from ..conftest import rows
from ..forks import Forks
from .test_equivalences import Killed, assert_close, metrics, on_two_processes, value_head, weights

Train = Callable[..., Path]

STEPS = 20


@pytest.fixture
def configure(config: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """A run of a method with its defaults: with the prior if it takes it, and rewards if it learns them."""

    def run_of(name: str) -> dict[str, Any]:
        takes_prior = "reward_gap" in METHODS[name].priors
        config["objective"] = {"method": name, "prior": "reward_gap" if takes_prior else "none"}
        if not takes_prior:
            del config["prior"]
        if METHODS[name].reads_control:  # which makes each response a group of its own
            config["training"]["per_device_train_batch_size"] = 16
        if METHODS[name].learns_auxiliary:
            config["rewards"] = {"length": {"target": 0}}
        return config

    return run_of


def losses(run: Path) -> list[float]:
    """What was logged of training, step by step."""
    return [line["loss"] for line in metrics(run) if "loss" in line and "grad_norm" in line]


@pytest.mark.parametrize("name", METHODS)
def test_it_trains(
    name: str, configure: Callable[[str], dict[str, Any]], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Two steps have finite losses and gradients, and move the weights."""
    config = configure(name)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, learning_rate=1e-3, report_to="none", use_cpu=True
    )
    trainer = PreferenceTrainer(
        model=str(tiny_model_dir),
        train_dataset=Dataset.from_list(rows(16, seed=1)),
        args=arguments,
        cache=tmp_path / "cache",
        **{key: config[key] for key in ("objective", "prior", "rewards") if key in config},
    )
    trainer.train()
    steps = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert len(steps) == 2
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps)
    trainer.save_model(str(tmp_path / "out"))
    start, trained = (load_file(f / "model.safetensors") for f in (tiny_model_dir, tmp_path / "out"))
    assert any(not torch.equal(trained[weight], start[weight]) for weight in trained.keys() & start.keys())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_twenty_steps_are_resumed_bit_for_bit(
    name: str, configure: Callable[[str], dict[str, Any]], train: Train, killed_behind: Killed
) -> None:
    """Killed within the fourth of ten epochs and resumed, a run ends in the same weights and metrics."""
    config = configure(name)
    config["training"] |= {"num_train_epochs": STEPS // 2, "save_strategy": "steps", "save_steps": 7}
    config["training"]["save_total_limit"] = 4
    whole = train(config)
    assert len(losses(whole)) == STEPS
    resumed = train(config, f"output={killed_behind(whole, 7)}", "--resume")
    expected, found = weights(whole) | value_head(whole), weights(resumed) | value_head(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_and_processes_change_nothing(
    name: str, configure: Callable[[str], dict[str, Any]], train: Train, tmp_path: Path, forks: Forks
) -> None:
    """Groups one by one, and half of them on each of two processes, end in the weights of all at once.

    With plain gradient descent, since Adam divides rounding by rounding where a gradient vanishes. Gradients
    are clipped to a small norm, so that a step is as long for every method.
    """
    config = configure(name)
    config["training"] |= {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.1}
    config["training"]["num_train_epochs"] = STEPS // 2
    whole = train(config)
    groups = config["training"]["per_device_train_batch_size"]
    split = train(
        config,
        "training.per_device_train_batch_size=1",
        f"training.gradient_accumulation_steps={groups}",
        f"output={tmp_path / 'split'}",
    )
    config["training"]["per_device_train_batch_size"] = groups // 2
    launch = partial(forks.run, processes=2)
    for other in (split, on_two_processes(config, tmp_path / "two", launch)):
        assert_close(other, whole)
        assert losses(other) == pytest.approx(losses(whole), rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_an_adapter(
    name: str, configure: Callable[[str], dict[str, Any]], train: Train, tmp_path: Path
) -> None:
    """Twenty steps under LoRA have finite losses, and the adapter is no longer the one it started as."""
    run = train(configure(name), f"training.num_train_epochs={STEPS // 2}", "lora={rank: 4}")
    assert len(losses(run)) == STEPS
    assert all(math.isfinite(loss) for loss in losses(run))
    adapter = load_file(run / "model" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for key, weight in adapter.items() if "lora_B" in key)
