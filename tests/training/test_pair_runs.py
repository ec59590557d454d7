"""What goes with methods of pairs, through the real command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

Train = Callable[..., Path]
CommandLine = Callable[..., tuple[int, str]]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "smoothed": {"method": "dpo", "label_smoothing": 0.1, "prior": "reward_gap"},
    "means": {"method": "hinge", "length_normalized": True, "beta": 1.0, "prior": "reward_gap"},
    "robust": {"method": "robust", "prior": "reward_gap"},
    "likelihood": {"method": "simpo", "likelihood_weight": 0.5, "likelihood_reduction": "sum"},
    "mix": {
        "mix": {"dpo": 0.8, "kto": 0.2, "means": {"method": "hinge", "length_normalized": True}},
        "prior": "reward_gap",
        "likelihood_weight": 0.1,
    },
}


def lines(run: Path, prefix: str = "") -> list[dict[str, float]]:
    """Logged lines that hold a loss of training, or of evaluation."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if f"{prefix}loss" in line]


def weigh(path: str, weights: list[Any], column: str = "weight") -> None:
    """Give the rows of a file a weight each."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    for row, weight in zip(rows, weights, strict=True):
        row[column] = weight
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_twenty_steps_learn(name: str, config: dict[str, Any], train: Train) -> None:
    """Twenty steps over all pairs lower the loss, and the chosen responses' margins grow."""
    config["objective"] = OBJECTIVES[name]
    if "prior" not in OBJECTIVES[name]:
        del config["prior"]
    config["data"].pop("evaluation")
    config["training"] |= {"max_steps": 20, "per_device_train_batch_size": 16, "save_strategy": "no"}
    config["training"]["learning_rate"] = 1e-2
    steps = lines(train(config))
    assert len(steps) >= 20
    assert steps[19]["loss"] < 0.95 * steps[0]["loss"]
    assert steps[19]["rewards/margins"] > steps[0]["rewards/margins"] + 0.1
    if name == "mix":
        own = {
            "preference/dpo": 0.8,
            "preference/kto": 0.2,
            "preference/means": 1.0,
            "chosen_likelihood": 0.1,
        }
        total = sum(weight * steps[0][f"loss/{term}"] for term, weight in own.items())
        assert steps[0]["loss"] == pytest.approx(total, rel=1e-5)


def test_accumulation_changes_nothing_with_weights_and_a_mix(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Eight micro-batches of one weighted pair end in the weights of one batch of eight."""
    config["objective"] = OBJECTIVES["mix"]
    config["training"] |= {"optim": "sgd", "learning_rate": 0.1}
    weigh(config["data"]["train"], [0.25 * (place % 9) for place in range(16)])
    whole_run = train(config)
    split_run = train(
        config,
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=8",
        f"output={tmp_path / 'split'}",
    )
    whole, split = (load_file(run / "model" / "model.safetensors") for run in (whole_run, split_run))
    for name, weight in split.items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-6)


def test_weights_of_one_are_no_weights(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Bit for bit the run without the column; other weights end elsewhere, and the summary has them."""
    config["data"].pop("evaluation")
    config["training"] |= {"max_steps": 2, "save_strategy": "no"}
    plain = train(config)
    weigh(config["data"]["train"], [1] * 16)
    ones = train(config, f"output={tmp_path / 'ones'}")
    weigh(config["data"]["train"], [2, 0] * 8, column="trust")
    other = train(config, f"output={tmp_path / 'other'}", "data.columns.weight=trust")
    models = [load_file(run / "model" / "model.safetensors") for run in (plain, ones, other)]
    assert all(torch.equal(weight, models[1][name]) for name, weight in models[0].items())
    assert not all(torch.equal(weight, models[2][name]) for name, weight in models[0].items())
    summaries = [json.loads((run / "summary.json").read_text())["train"] for run in (plain, other)]
    assert "weights" not in summaries[0]
    assert summaries[1]["weights"] == {"mean": 1.0, "low": 0.0, "high": 2.0}


def test_a_weight_of_zero_is_no_pair_but_counts_in_the_mean(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Eight pairs of weight 2 beside eight of 0 give the first loss of the eight alone."""
    path = Path(config["data"]["train"])
    config["objective"] = {"method": "simpo"}
    config["training"] |= {"max_steps": 1, "per_device_train_batch_size": 16}
    del config["prior"]
    weigh(str(path), [2.0] * 8 + [0.0] * 8)
    weighted = lines(train(config))[0]
    rows = path.read_text(encoding="utf-8").splitlines(True)[:8]
    path.write_text("".join(rows), encoding="utf-8")
    weigh(str(path), [1.0] * 8)
    alone = lines(train(config, f"output={tmp_path / 'alone'}"))[0]
    assert weighted["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert weighted["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)


def test_a_source_of_a_mixture_without_weights_has_ones(
    config: dict[str, Any], preftune: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights of one source are not lost beside another's rows: those count 1."""
    path = Path(config["data"]["train"])
    rows = path.read_text(encoding="utf-8").splitlines(True)
    (tmp_path / "second.jsonl").write_text("".join(rows[8:]), encoding="utf-8")
    path.write_text("".join(rows[:8]), encoding="utf-8")
    weigh(str(path), [3.0] * 8)
    config["data"]["train"] = [{"source": str(path)}, {"source": str(tmp_path / "second.jsonl")}]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with caplog.at_level("INFO"):
        code, errors = preftune("train", str(file), "--dry-run")
    assert code == 0, errors
    assert "weights of pairs: mean 2, from 1 to 3" in caplog.text


@pytest.mark.parametrize(
    ("weights", "overrides", "code", "words"),
    [
        ([0.0] * 16, [], 2, "all pairs have the weight 0, so nothing is learned"),
        ([10.0] * 16, [], 0, "the mean weight of pairs is 10, and losses and gradients are so many times"),
        ([1.0] * 16, ["objective={method: kto}"], 0, "the column `weight` is not read: it weighs pairs"),
        ([1.0] * 16, ["objective={method: qrpo}"], 0, "the column `weight` is not read: it weighs pairs"),
    ],
)
def test_weights_that_need_a_word(
    config: dict[str, Any],
    preftune: CommandLine,
    tmp_path: Path,
    weights: list[float],
    overrides: list[str],
    code: int,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What leaves nothing to learn or has no place stops the run; what scales the loss is said."""
    weigh(config["data"]["train"], weights)
    del config["prior"]
    config["objective"] = {"method": "dpo"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    found, errors = preftune("train", str(file), "--dry-run", *overrides)
    assert found == code, errors
    assert words in errors + caplog.text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective={likelihood_reduction: sum}"], "likelihood_reduction = 'sum' is read with"),
        (["loss_weights=[1]"], "what TRL calls loss_weights is 'objective.mix' here"),
        (["objective={mix: {dpo: 1, simpo: 1}}", "data.control={good: a, bad: b}"], "objective.mix is not"),
        (["objective={mix: {dpo: 1, alol: 1}}"], "objective.method=alol learns from auxiliary rewards"),
    ],
)
def test_objectives_that_cannot_be_are_messages(
    config: dict[str, Any], preftune: CommandLine, tmp_path: Path, overrides: list[str], words: str
) -> None:
    """Mistakes in a mix, and a name of TRL's, are one message and exit code 2."""
    config["objective"] = {}
    del config["prior"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, log = preftune("train", str(file), "--dry-run", *overrides)
    assert code == 2
    assert words in log
