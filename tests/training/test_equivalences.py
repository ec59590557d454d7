"""Through the real command line: what must not change a run does not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

TIMES = ("runtime", "per_second", "seconds")
Train = Callable[..., Path]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The trained model's weights."""
    return load_file(run / "model" / "model.safetensors")


def assert_close(run: Path, other: Path) -> None:
    """Two runs ended in the same weights, up to the rounding of another order of summation."""
    expected = weights(other)
    for name, weight in weights(run).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6)


def metrics(run: Path) -> list[dict[str, float]]:
    """Every logged line, without what the clock decides."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith(TIMES)} for line in lines
    ]


# cpo has a term per pair and a term per token: a mean of micro-batch means would show in the second.
@pytest.mark.parametrize("objective", [{"method": "dpo"}, {"method": "cpo"}], ids=lambda o: o["method"])
def test_accumulating_eight_times_one_pair_equals_one_batch_of_eight(
    objective: dict[str, Any], config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Same weights and same logged losses, although the micro-batches have unequal token counts."""
    config["objective"] = objective
    whole = train(config)
    split = train(
        config,
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=8",
        f"output={tmp_path / 'split'}",
    )
    assert_close(split, whole)
    for line, expected in zip(metrics(split), metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Killed in the second epoch, after lines beyond the checkpoint were logged, then resumed."""
    whole = train(config)
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "checkpoint-4")
    shutil.rmtree(killed / "model")
    (killed / "summary.json").unlink()
    stored = yaml.safe_load((killed / "config.yaml").read_text(encoding="utf-8"))
    (killed / "config.yaml").write_text(yaml.safe_dump(stored | {"output": str(killed)}), encoding="utf-8")
    resumed = train(config, f"output={killed}", "--resume")
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]  # the last line averages over this process's steps
    assert (resumed / "summary.json").exists()


def test_two_processes_equal_one(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Two real processes with half the batch each give the weights and held-out metrics of one."""
    config["objective"] = {"method": "cpo", "prior": "reward_gap"}
    one = train(config)
    file = tmp_path / "two.yaml"
    two = tmp_path / "two"
    halved = config["training"] | {"per_device_train_batch_size": 4}
    file.write_text(yaml.safe_dump(config | {"training": halved, "output": str(two)}), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "preftune", "train", str(file)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "environment.json").read_text(encoding="utf-8"))["processes"] == 2
    assert_close(two, one)
    for line, expected in zip(metrics(two), metrics(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_shared_prompts_equal_padded_rows(
    config: dict[str, Any], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run on padded rows ends in the weights of the same run on shared prompts."""
    shared = train(config)
    monkeypatch.setattr("preftune.policy.policy.Policy._sharing_agrees", lambda self: False)
    padded = train(config, f"output={tmp_path / 'padded'}", f"cache={tmp_path / 'other-cache'}")
    assert json.loads((shared / "summary.json").read_text(encoding="utf-8"))["shares_prompts"]
    assert not json.loads((padded / "summary.json").read_text(encoding="utf-8"))["shares_prompts"]
    assert_close(padded, shared)


def test_bf16_autocast_follows_fp32(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Under bf16 the weights stay float32 and the held-out loss ends within one percent of fp32's."""
    full = train(config)
    half = train(config, "training.bf16=true", f"output={tmp_path / 'bf16'}")
    assert all(weight.dtype == torch.float32 for weight in weights(half).values())
    losses = [[line["eval_loss"] for line in metrics(run) if "eval_loss" in line][-1] for run in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]
