"""Auxiliary rewards through the real command line: what they leave behind, and what they leave alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from preftune.training import check_config
from preftune.training.preparation import prepare

Train = Callable[..., Path]

AUXILIARY = {"lexical_diversity": {"weight": 2}, "length": {"target": [4, 8], "weight": 0.1}}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The trained language model's weights."""
    return load_file(run / "model" / "model.safetensors")


def summary(run: Path) -> dict[str, Any]:
    """The run's summary."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def lines(run: Path, prefix: str = "") -> list[dict[str, float]]:
    """Logged lines that hold a loss of training, or of evaluation."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if f"{prefix}loss" in line]


@pytest.fixture
def auxiliary(config: dict[str, Any]) -> dict[str, Any]:
    """The run with auxiliary rewards."""
    config["objective"] = {"method": "dpo", "prior": "reward_gap", "auxiliary": {"weight": 0.5}}
    config["rewards"] = AUXILIARY
    return config


def test_weight_zero_is_the_plain_run_bit_for_bit(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Rewards in the configuration and a weight of 0: same weights, same metrics, no value head."""
    plain = train(config)
    config["rewards"] = AUXILIARY
    zero = train(config, "objective.auxiliary.weight=0", f"output={tmp_path / 'zero'}")
    expected = weights(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(zero).items())
    assert [line["loss"] for line in lines(zero)] == [line["loss"] for line in lines(plain)]
    assert not (zero / "value_head.safetensors").exists()


def test_factors_are_predicted_before_anything_is_trained(
    auxiliary: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One response of 32 is desired: capped by default, and warned of where the cap is taken off."""
    rows = [json.loads(line) for line in Path(auxiliary["data"]["train"]).read_text().splitlines()]
    rows = [row | {"polite_chosen": 0.0, "polite_rejected": 0.0} for row in rows]
    rows[0]["polite_chosen"] = 1.0
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(auxiliary["data"]["train"]).write_text(text, encoding="utf-8")
    auxiliary["rewards"] = {"column:polite": {}}
    auxiliary["data"]["evaluation"] = None
    found = check_config(auxiliary)
    factors = prepare(found).summary()["predicted_factors"]
    assert (factors["largest"], factors["cap"], factors["share_at_cap"]) == (20.0, 20.0, 1 / 32)
    assert "objective.auxiliary.cap" not in caplog.text
    auxiliary["objective"]["auxiliary"]["cap"] = None
    assert prepare(check_config(auxiliary)).summary()["predicted_factors"]["largest"] > 1e6
    assert "Set objective.auxiliary.cap=20" in caplog.text


def test_the_value_head_changes_no_other_weight(
    auxiliary: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """With every advantage's factor at its cap, V and its learning rate decide nothing of the language model.

    The cap lies below every factor, so the likelihood term no longer depends on V; clipping is on.
    """
    auxiliary["objective"]["auxiliary"]["cap"] = 1e-20
    slow = train(auxiliary, "value_head.learning_rate=1e-6", f"output={tmp_path / 'slow'}")
    fast = train(auxiliary, "value_head.learning_rate=0.1", f"output={tmp_path / 'fast'}")
    expected = weights(slow)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(fast).items())
    heads = [load_file(run / "value_head.safetensors") for run in (slow, fast)]
    assert not torch.equal(heads[0]["layers.4.bias"], heads[1]["layers.4.bias"])


def test_the_value_head_learns_what_a_prompt_lets_expect(auxiliary: dict[str, Any], train: Train) -> None:
    """Where the reward depends on the prompt alone, V comes to explain most of it on the training prompts."""
    rows = [
        {
            "prompt": f"{row} {'rain' if row % 2 else 'bread'}",
            "chosen": f" falls {row}",
            "score_chosen": 1,
            "grade_chosen": row % 2,
            "rejected": f" sings {row}",
            "score_rejected": 0,
            "grade_rejected": row % 2,
        }
        for row in range(16)
    ]
    file = Path(auxiliary["data"]["train"])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    del auxiliary["data"]["evaluation"]
    auxiliary["objective"]["auxiliary"] |= {"expectile": 0.5}
    auxiliary["rewards"] = {"column:grade": {}}
    auxiliary["value_head"] = {"learning_rate": 0.01}
    run = train(auxiliary, "training.num_train_epochs=12")
    first, *_, last = lines(run)
    assert first["auxiliary/squared_error"] == pytest.approx(0.25)
    assert last["auxiliary/squared_error"] < 0.1


def test_figures_are_on_the_scale_of_the_reward(auxiliary: dict[str, Any], train: Train) -> None:
    """Logged R is the data's, in its own units, and V = R - A; mean and scale stand in the run folder."""
    auxiliary["rewards"] = {"length": {"target": 0}}
    run = train(auxiliary, "training.per_device_train_batch_size=16")
    stored = json.loads((run / "rewards.json").read_text(encoding="utf-8"))
    measured = summary(run)["train"]["rewards"]["measurements"]["length"]
    assert stored["mean"] == pytest.approx(-measured["mean"], rel=1e-6)
    assert stored["scale"] == pytest.approx(measured["sd"], rel=1e-6)
    assert stored["rewards"] == auxiliary["rewards"]
    # The whole training set is one step.
    line = lines(run)[0]
    assert line["auxiliary/reward"] == pytest.approx(-measured["mean"], rel=1e-5)
    assert line["auxiliary/value"] == pytest.approx(
        line["auxiliary/reward"] - line["auxiliary/advantage"], rel=1e-5
    )
    # V starts at the mean, so A's mean is 0 and its square's is the reward's variance.
    assert line["auxiliary/advantage"] == pytest.approx(0, abs=1e-5)
    assert line["auxiliary/squared_error"] == pytest.approx(measured["sd"] ** 2, rel=1e-4)


def test_explained_variance_is_reported(auxiliary: dict[str, Any], train: Train) -> None:
    """The summary has 1 - Var(R - V) / Var(R) on the held-out responses, from the logged figures."""
    run = train(auxiliary)
    found = summary(run)
    after = lines(run, "eval_")[-1]
    variance = found["evaluation"]["rewards"]["combined"]["sd"] ** 2
    residual = after["eval_auxiliary/squared_error"] - after["eval_auxiliary/advantage"] ** 2
    assert found["value_explained_variance"] == pytest.approx(1 - residual / variance, rel=1e-4)


def test_the_exported_model_has_no_value_head(auxiliary: dict[str, Any], train: Train) -> None:
    """`model/` is a plain language model; the head lies beside it and in every checkpoint."""
    run = train(auxiliary)
    assert not list((run / "model").glob("value_head*"))
    AutoModelForCausalLM.from_pretrained(run / "model")
    assert (run / "value_head.safetensors").exists()
    assert list(run.glob("checkpoints/checkpoint-*/value_head.safetensors"))


def test_lora_trains_the_head_too(auxiliary: dict[str, Any], train: Train) -> None:
    """Under LoRA the head is trained and saved, and the adapter holds nothing of it."""
    run = train(auxiliary, "lora.rank=2")
    assert load_file(run / "value_head.safetensors")["layers.4.bias"].abs() > 0
    adapter = load_file(run / "model" / "adapter_model.safetensors")
    assert all("lora" in name for name in adapter)


def test_every_response_of_a_group_is_learned_from(
    auxiliary: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Of four scored responses all count for the auxiliary term, best and worst for the preference."""
    rows = [
        {
            "prompt": f"Prompt {row}.",
            "responses": [f"a {i} {row} b" for i in range(4)],
            "scores": [0, 1, 2, 3],
        }
        for row in range(8)
    ]
    for split, path in {"train": rows, "evaluation": rows[:3]}.items():
        file = tmp_path / f"groups-{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in path), encoding="utf-8")
        auxiliary["data"][split] = str(file)
    auxiliary["objective"] = {"method": "simpo", "auxiliary": {}}
    auxiliary["rewards"] = {"column:scores": {}}
    found = summary(train(auxiliary))["train"]
    assert (found["groups"], found["pairs"], found["responses"]) == (8, 8, 32)
    assert found["rewards"]["combined"]["mean"] == pytest.approx(np.mean([0, 1, 2, 3]))


def test_equal_rewards_are_plain_likelihood_and_said_so(
    auxiliary: dict[str, Any], train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """A reward that does not tell responses apart trains, with a warning that names what it amounts to."""
    auxiliary["rewards"] = {"regex": {"pattern": "never there"}}
    with caplog.at_level("WARNING"):
        run = train(auxiliary)
    assert "plain likelihood" in caplog.text
    assert {line["auxiliary/factor"] for line in lines(run)[:1]} == {1.0}


@pytest.mark.parametrize(
    ("responses", "farthest", "clip", "warns"),
    [
        (60, 1000, None, True),
        (60, 1000, [0, 9], False),
        # 19% of the variance.
        (60, 15, None, False),
        # Few numbers always have an extreme one.
        (20, 1000, None, False),
    ],
)
def test_a_response_that_sets_the_scale_is_said_so(
    auxiliary: dict[str, Any],
    train: Train,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    responses: int,
    farthest: int,
    clip: object,
    warns: bool,
) -> None:
    """One number far from many others is most of the variance: a warning says what to do, which ends it."""
    numbers = [*(number % 10 for number in range(responses - 1)), farthest]
    rows = [
        {
            "prompt": f"Prompt {row}.",
            "responses": [f"a {i} {row} b" for i in range(4)],
            "scores": [0, 1, 2, 3],
            "number": numbers[4 * row : 4 * row + 4],
        }
        for row in range(responses // 4)
    ]
    file = tmp_path / "groups.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    auxiliary["data"] = {"train": str(file)}
    auxiliary["objective"] = {"method": "simpo", "auxiliary": {}}
    auxiliary["rewards"] = {"column:number": {} if clip is None else {"clip": clip}}
    auxiliary["training"]["max_steps"] = 1
    with caplog.at_level("WARNING"):
        train(auxiliary)
    assert (f"one response of {responses} has the auxiliary reward 1000" in caplog.text) == warns
    assert ("of the variance" in caplog.text) == warns


def test_labels_are_balanced_and_reported(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Pairs give as many desirable as undesirable responses: a ratio of 1, which needs no advice."""
    config["objective"] = {"method": "kto"}
    found = summary(train(config))
    assert found["train"]["labels"] == {"desirable": 16, "undesirable": 16}
    assert found["label_balance"] == {"ratio": 1.0, "advice": None}


def test_single_labelled_responses_train(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """prompt/completion/label rows train; what needs pairs is not logged, and weights move the balance."""
    for split, count in {"train": 12, "evaluation": 4}.items():
        rows = [
            {"prompt": f"Prompt {row}.", "completion": f"Answer {row} {'x ' * row}", "label": row % 4 == 0}
            for row in range(count)
        ]
        file = tmp_path / f"labelled-{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config["data"][split] = str(file)
    config["objective"] = {"method": "kto", "desirable_weight": 3.5}
    del config["prior"]
    run = train(config)
    balance = summary(run)["label_balance"]
    assert balance == {"ratio": pytest.approx(3 * 3.5 / 9), "advice": None}
    line = lines(run)[-1]
    assert {"kl", "rewards/chosen", "rewards/rejected", "logps/chosen"} <= line.keys()
    assert not {"rewards/margins", "rewards/accuracies"} & line.keys()
