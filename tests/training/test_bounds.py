"""Bounds, standardised rewards and the head of HALOs through the real command line."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ..forks import Forks
from .test_auxiliary_runs import lines, summary
from .test_equivalences import Killed, Train, assert_close, by_tokens, metrics, on_two_processes, value_head
from .test_equivalences import weights as model_weights

CommandLine = Callable[..., tuple[int, str]]

AT_LEAST = {
    "short": {"measure": "length", "goal": "minimise", "weight": 1.0},
    "length": {"at_least": 8},
    "varied": {"measure": "lexical_diversity", "at_most": 0.95},
}
"""Shorter answers are wanted, but not too short ones, nor all too varied ones."""


@pytest.fixture
def bounded(config: dict[str, Any]) -> dict[str, Any]:
    """A run with a reward and two bounds that learn fast."""
    config["objective"] = {
        "method": "dpo",
        "auxiliary": {"weight": 0.5, "temperature": 1.0, "cap": 20, "multiplier_rate": 0.7},
    }
    config["rewards"] = AT_LEAST
    del config["prior"]
    return config


def stored(folder: Path) -> dict[str, float]:
    """The multipliers of a checkpoint."""
    found: dict[str, float] = json.loads((folder / "multipliers.json").read_text(encoding="utf-8"))
    return found


def test_multipliers_follow_their_bounds(bounded: dict[str, Any], train: Train) -> None:
    """A step moves each by the rate times the slack of the logged mean; the next one logs what came of it."""
    run = train(bounded)
    steps = lines(run)
    scales = summary(run)["standardization"]["bounds"]
    assert scales["length"]["at_least"] == 8
    assert scales["varied"]["at_most"] == 0.95
    for name, sign in {"length": 1, "varied": -1}.items():
        limit = AT_LEAST[name]["at_least" if sign > 0 else "at_most"]
        expected = 0.0
        for line in steps:
            assert line[f"bounds/{name}/multiplier"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            slack = sign * (line[f"bounds/{name}/mean"] - limit) / scales[name]["scale"]
            expected = min(max(expected - 0.7 * slack, 0.0), 10.0)
        assert summary(run)["multipliers"][name] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert max(summary(run)["multipliers"].values()) > 0.1
    # Held-out responses are weighted by what the multipliers are then, and move nothing.
    assert {"eval_bounds/length/mean", "eval_bounds/length/multiplier"} <= lines(run, "eval_")[-1].keys()


def test_accumulating_changes_no_multiplier(bounded: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Eight micro-batches of one pair move the multipliers as one of eight does, and end in its weights."""
    whole = train(bounded)
    split = train(
        bounded,
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=8",
        f"output={tmp_path / 'split'}",
    )
    assert_close(split, whole)
    assert summary(split)["multipliers"] == pytest.approx(summary(whole)["multipliers"], rel=1e-4)
    for line, expected in zip(metrics(split), metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_two_processes_have_the_multipliers_of_one(
    bounded: dict[str, Any], train: Train, forks: Forks, tmp_path: Path
) -> None:
    """Uneven shares of a step, in rows of tokens: the same multipliers, weights and metrics."""
    path = Path(bounded["data"]["train"])
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:13]), encoding="utf-8")
    config = by_tokens(bounded, tokens_per_step=300, tokens_per_row=120)
    one = train(config)
    two = on_two_processes(config, tmp_path / "two", partial(forks.run, processes=2))
    assert_close(two, one)
    assert summary(two)["multipliers"] == pytest.approx(summary(one)["multipliers"], rel=1e-4)
    for line, expected in zip(metrics(two), metrics(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("head", ["preftune", "halos"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    head: str, bounded: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """Multipliers go on where the checkpoint has them, and so does either head, dropout included."""
    bounded["value_head"] = {"architecture": head}
    bounded["training"] |= {"per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 2}
    bounded["training"]["save_total_limit"] = 3
    whole = train(bounded)
    assert max(stored(whole / "checkpoints" / "checkpoint-2").values()) > 0
    resumed = train(bounded, f"output={killed_behind(whole, 2)}", "--resume")
    expected = model_weights(whole) | value_head(whole)
    found = model_weights(resumed) | value_head(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]  # the last line averages over this process's steps
    assert summary(resumed)["multipliers"] == summary(whole)["multipliers"]


def test_bounds_alone_train(bounded: dict[str, Any], train: Train, caplog: pytest.LogCaptureFixture) -> None:
    """Without a weighted reward R is 0, the first factors are 1, and no warning calls that a mistake."""
    bounded["rewards"] = {"length": {"at_least": 8}}
    with caplog.at_level("WARNING"):
        run = train(bounded)
    first = lines(run)[0]
    assert (first["auxiliary/reward"], first["auxiliary/factor"]) == (0.0, 1.0)
    assert "plain likelihood" not in caplog.text


def test_a_bound_that_no_weighting_meets_is_refused(bounded: dict[str, Any], preftune: CommandLine) -> None:
    """The message says how far the training responses reach, before any weights load."""
    bounded["rewards"] = {"length": {"at_least": 1000}}
    file = Path(bounded["output"]).with_suffix(".yaml")
    file.write_text(json.dumps(bounded), encoding="utf-8")
    code, errors = preftune("train", str(file))
    assert code == 2
    text = " ".join(errors.split())
    assert "rewards.length.at_least=1000, and the largest measurement of the 32 training responses is" in text


def test_a_bound_needs_the_auxiliary_term(config: dict[str, Any], preftune: CommandLine) -> None:
    """A method that learns from rewards itself has no factors for a multiplier."""
    config |= {"objective": {"method": "dro_v"}, "rewards": {"length": {"at_least": 8}}}
    del config["prior"]
    file = Path(config["output"]).with_suffix(".yaml")
    file.write_text(json.dumps(config), encoding="utf-8")
    code, errors = preftune("train", str(file))
    assert code == 2
    assert "rewards.length has a bound" in errors


def test_each_reward_is_standardised_over_the_training_set(config: dict[str, Any], train: Train) -> None:
    """Mean and scale of each stand in summary and run folder, and held-out rewards are on the same scale."""
    config["objective"] = {"method": "dpo", "auxiliary": {"weight": 0.5}}
    config["rewards"] = {"lexical_diversity": {"weight": 2}, "length": {"goal": "minimise"}}
    config["reward_sum"] = {"normalize": "each", "weights": {"length": 0.5}}
    del config["prior"]
    run = train(config)
    found = summary(run)
    measured = found["train"]["rewards"]["measurements"]
    scales = found["train"]["rewards"]["scales"]
    assert scales["length"]["mean"] == pytest.approx(-measured["length"]["mean"])
    assert scales["length"]["scale"] == pytest.approx(measured["length"]["sd"])
    assert found["standardization"]["mean"] == pytest.approx(0, abs=1e-6)
    held_out = found["evaluation"]["rewards"]
    means = {"lexical_diversity": held_out["measurements"]["lexical_diversity"]["mean"]}
    means["length"] = -held_out["measurements"]["length"]["mean"]
    weights = {"lexical_diversity": 2, "length": 0.5}
    expected = sum(
        weights[name] * (mean - scales[name]["mean"]) / scales[name]["scale"] for name, mean in means.items()
    )
    assert held_out["combined"]["mean"] == pytest.approx(expected, rel=1e-6)
    assert json.loads((run / "rewards.json").read_text(encoding="utf-8"))["scales"] == scales
