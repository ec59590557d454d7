"""Two real processes that divide a model between them train the model that one process trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ..forks import Forks
from .test_equivalences import OBJECTIVES, Killed, Train, assert_close, by_tokens, metrics, value_head

BY_TOKENS = {"tokens_per_step": 300, "tokens_per_row": 120}
"""One process has more rows in a step than the other."""


@pytest.fixture
def divided(forks: Forks) -> Callable[..., Path]:
    """A run on two processes with half of the model each."""

    def run(config: dict[str, Any], output: Path, *flags: str) -> Path:
        file = output.with_suffix(".yaml")
        sharded = config | {"output": str(output), "fully_sharded": True}
        file.write_text(yaml.safe_dump(sharded), encoding="utf-8")
        done = forks.run(["preftune", "train", str(file), *flags], processes=2)
        assert done.status == 0, done.errors
        assert json.loads((output / "environment.json").read_text(encoding="utf-8"))["processes"] == 2
        return output

    return run


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("cpo", {"objective": {"method": "cpo", "prior": "reward_gap"}}, marks=pytest.mark.slow),
        ("kto", {"batches": BY_TOKENS}),
        ("auxiliary", {"batches": BY_TOKENS, "lora": {"rank": 4}}),
        ("dpo", {"training": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}}),
        pytest.param("auxiliary", {"batches": BY_TOKENS}, marks=pytest.mark.slow),
        pytest.param("reward", {"batches": BY_TOKENS}, marks=pytest.mark.slow),
        pytest.param("dpo", {"training": {"gradient_checkpointing": True}}, marks=pytest.mark.slow),
    ],
    ids=["cpo", "kto", "lora", "accumulated", "auxiliary", "reward", "checkpointing"],
)
def test_a_divided_model_equals_a_whole_one(
    name: str,
    changes: dict[str, Any],
    config: dict[str, Any],
    train: Train,
    divided: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Weights, value head and metrics are those of one process, with thirteen groups that come out uneven."""
    config |= OBJECTIVES.get(name, {"objective": {"method": "bradley_terry"}})
    path = Path(config["data"]["train"])
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:13]), encoding="utf-8")
    config["training"] |= changes.pop("training", {})
    if "batches" in changes:
        config = by_tokens(config, **changes["batches"])
    config |= changes
    one = train(config)
    if "batches" not in changes:
        config["training"]["per_device_train_batch_size"] //= 2
    two = divided(config, tmp_path / "two")
    if "lora" in changes:
        file = "adapter_model.safetensors"
        expected, found = (load_file(run / "model" / file) for run in (one, two))
        assert found.keys() == expected.keys()
        for key, weight in found.items():
            torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5)
    else:
        assert_close(two, one)
    for line, expected_line in zip(metrics(two), metrics(one), strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        OBJECTIVES["auxiliary"],
        pytest.param({"objective": {"method": "bradley_terry"}, "lora": {"rank": 4}}, marks=pytest.mark.slow),
        pytest.param(OBJECTIVES["auxiliary"] | {"model_dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=["auxiliary", "reward-lora", "bfloat16"],
)
def test_a_divided_run_that_was_stopped_goes_on(
    changes: dict[str, Any],
    config: dict[str, Any],
    killed_behind: Killed,
    divided: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Resumed from a checkpoint, weights, value head and the rest of the log are those of the whole run."""
    config |= changes
    config["training"] |= {"per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 2}
    config["training"]["save_total_limit"] = 3
    whole = divided(config, tmp_path / "whole")
    resumed = divided(config, killed_behind(whole, 2), "--resume")
    file = "adapter_model.safetensors" if "lora" in changes else "model.safetensors"
    expected, found = (load_file(run / "model" / file) | value_head(run) for run in (whole, resumed))
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]


def test_an_optimizer_that_cannot_be_divided_is_refused(config: dict[str, Any], train: Train) -> None:
    """Before any weights load, with the ones that can be."""
    with pytest.raises(AssertionError, match=r"training\.optim=adafactor.*adamw_torch"):
        train(config, "fully_sharded=true", "training.optim=adafactor")


def test_each_process_holds_its_part(forks: Forks, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Two processes have half of the weights each, and together all of them."""
    script = tmp_path / "parts.py"
    script.write_text(
        "import torch\n"
        "from preftune.models import Policy, load_language_model\n"
        "from preftune.models.sharding import shard, whole_state\n"
        "torch.distributed.init_process_group('gloo')\n"
        f"model = load_language_model({str(tiny_model_dir)!r}, torch.float32)\n"
        "before = {name: weight.clone() for name, weight in model.state_dict().items()}\n"
        "policy = Policy(model)\n"
        "total = sum(weight.numel() for weight in policy.parameters())\n"
        "shard(policy)\n"
        "own = sum(weight.to_local().numel() for weight in policy.parameters())\n"
        "after = whole_state(policy.language_model)\n"
        "same = all(torch.equal(after[name], weight) for name, weight in before.items())\n"
        # A file for each: what two processes print may run together.
        f"file = open(f'{tmp_path}/{{torch.distributed.get_rank()}}.txt', 'w')\n"
        "file.write(f'{own / total:.2f} {same}')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    done = forks.run([str(script)], processes=2)
    assert done.status == 0, done.errors
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["0.50 True"] * 2
