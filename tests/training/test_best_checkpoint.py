"""The checkpoint that is kept is the one whose held-out figure is best."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ..forks import Forks
from .test_equivalences import OBJECTIVES, Killed, Train

Message = Callable[..., str]

EVERY_STEP = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "lr_scheduler_type": "constant",
    "learning_rate": 3e-2,
}
"""At a learning rate at which held-out figures become worse again."""


def summary(run: Path) -> dict[str, Any]:
    """The run's summary."""
    content: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return content


def figures(run: Path, metric: str) -> dict[int, float]:
    """A held-out metric by step, without that of the untrained policy, which has no checkpoint."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line[metric] for line in lines if metric in line and line["step"]}


def assert_is_checkpoint(run: Path, step: int, *, value_head: bool = False) -> None:
    """The saved model has the weights of a step's checkpoint."""
    for file in ("model.safetensors", "adapter_model.safetensors"):
        if (run / "model" / file).exists():
            saved = load_file(run / "model" / file)
            kept = load_file(run / "checkpoints" / f"checkpoint-{step}" / file)
    if value_head:
        file = "value_head.safetensors"
        saved |= load_file(run / file)
        kept |= load_file(run / "checkpoints" / f"checkpoint-{step}" / file)
    assert saved.keys() == kept.keys()
    assert all(torch.equal(weight, kept[name]) for name, weight in saved.items())


CASES = [
    pytest.param({}, "rewards/accuracies", id="dpo"),
    pytest.param({"lora": {"rank": 4}}, "eval_loss", id="lora"),
    pytest.param(OBJECTIVES["auxiliary"], "loss", id="value-head", marks=pytest.mark.slow),
    pytest.param({"objective": {"method": "bradley_terry"}}, "loss", id="reward", marks=pytest.mark.slow),
]


def every_step(config: dict[str, Any], metric: str) -> dict[str, Any]:
    """The run with an evaluation and a checkpoint for each step."""
    config["training"] |= EVERY_STEP | {"metric_for_best_model": metric}
    return config


@pytest.mark.parametrize(("changes", "metric"), CASES)
def test_the_model_is_that_of_the_best_checkpoint(
    changes: dict[str, Any], metric: str, config: dict[str, Any], train: Train
) -> None:
    """Weights, adapter and value head are the named checkpoint's, and `save_total_limit` has kept it."""
    run = train(every_step(config | changes, metric))
    name = f"eval_{metric.removeprefix('eval_')}"
    found = figures(run, name)
    best = (max if metric == "rewards/accuracies" else min)(found, key=lambda step: found[step])
    assert summary(run)["kept"] == {"step": best, "metric": name, "value": found[best]}
    assert summary(run)["evaluation_end"]["step"] == best
    assert_is_checkpoint(run, best, value_head="auxiliary" in config.get("objective", {}))


def test_a_resumed_run_keeps_the_best_of_both_parts(
    config: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """The best checkpoint may be from before the kill, and in a folder that was moved since."""
    config = every_step(config, "loss")
    config["training"]["save_total_limit"] = 4
    whole = train(config)
    kept = summary(whole)["kept"]
    killed = killed_behind(whole, 2)
    stored = yaml.safe_load((killed / "config.yaml").read_text(encoding="utf-8"))
    resumed = train(stored, "--resume")
    assert summary(resumed)["kept"] == kept
    assert_is_checkpoint(resumed, kept["step"])
    models = [load_file(run / "model" / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(weight, models[1][name]) for name, weight in models[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fully-sharded"])
def test_two_processes_keep_the_best(
    sharded: bool, config: dict[str, Any], forks: Forks, tmp_path: Path
) -> None:
    """Each process has the best weights, whole or its part of them."""
    config = every_step(config | OBJECTIVES["auxiliary"], "loss") | {"fully_sharded": sharded}
    config["training"]["per_device_train_batch_size"] = 4
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    done = forks.run(["preftune", "train", str(file)], processes=2)
    assert done.status == 0, done.errors
    run = Path(config["output"])
    found = figures(run, "eval_loss")
    best = min(found, key=lambda step: found[step])
    assert summary(run)["kept"]["step"] == best
    assert_is_checkpoint(run, best, value_head=True)


def test_early_stopping_ends_the_run(config: dict[str, Any], train: Train) -> None:
    """No better loss in one evaluation: the run ends there, says so, and keeps the best."""
    config = every_step(config, "loss")
    config["training"] |= {"early_stopping_patience": 1, "early_stopping_threshold": 1e9}
    run = train(config)
    content = summary(run)
    assert content["stopped"]["by"] == "training.early_stopping_patience"
    assert content["stopped"]["step"] == content["steps"] == 2
    assert not content["stopped"]["is_failure"]
    assert "in 1 evaluation (" in content["stopped"]["message"]
    # It was asked for: there is nothing to do.
    assert "What to do" not in content["stopped"]["message"]
    assert content["kept"]["step"] in (1, 2)
    assert_is_checkpoint(run, content["kept"]["step"])


REFUSED = {
    "training.metric_for_best_model=accuracy": r"no held-out metric.*rewards/accuracies",
    "training.metric_for_best_model=displacement/none": r"choose one of loss",
    "training.metric_for_best_model=prior/gap": r"greater_is_better=true or false",
    "training.early_stopping_threshold=0.1": r"early_stopping_patience: set it too",
    "training.early_stopping_patience=0": r"early_stopping_patience=0",
    "training.early_stopping_patience=2": r"needs a metric",
    "stop.divergence_above=5": r"kl, which this objective does not have",
    "stop.not_finite=0": r"stop\.not_finite=0",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_compared_is_refused(change: str, config: dict[str, Any], refused: Message) -> None:
    """Before weights load, with the names that there are."""
    assert re.search(REFUSED[change], refused(change))


def test_the_best_needs_held_out_figures(config: dict[str, Any], refused: Message) -> None:
    """Without held-out data, or with checkpoints elsewhere than evaluations, nothing can be compared."""
    assert "set both to one" in refused(
        "training.load_best_model_at_end=true", "training.save_strategy=steps", "training.save_steps=1"
    )
    config["data"].pop("evaluation")
    assert "set data.evaluation" in refused("training.load_best_model_at_end=true")
