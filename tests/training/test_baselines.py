"""The methods HPO is compared with, each through the real command line once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from preftune.objectives import METHODS

Train = Callable[..., Path]
CommandLine = Callable[..., tuple[int, str]]

# What a method logs of its own.
LOGGED = {
    "offline_ppo": {"loss/policy", "loss/value", "policy/ratio", "policy/clipped"},
    "alol": {"loss/policy", "loss/value", "policy/factor", "policy/kept"},
    "dro_v": {"loss/policy", "loss/value"},
    "modpo": {"loss/preference"},
}


@pytest.fixture
def baseline(config: dict[str, Any]) -> dict[str, Any]:
    """A run that wants short responses, a whole epoch a step."""
    del config["prior"]
    config["rewards"] = {"length": {"target": 0}}
    config["training"]["per_device_train_batch_size"] = 16
    return config


def lines(run: Path, prefix: str = "") -> list[dict[str, float]]:
    """Logged lines that hold a loss of training, or of evaluation."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if f"{prefix}loss" in line]


@pytest.mark.parametrize("method", LOGGED)
def test_each_method_trains_on_rewards(
    baseline: dict[str, Any], train: Train, method: str, tiny_model_dir: Path
) -> None:
    """It trains on all responses, logs its own figures, and has a value only if it needs one.

    In the first step policy and reference agree, so ratios are 1 and nothing is clipped; the mean of R and
    its standardisation are those of the training set.
    """
    baseline["objective"] = {"method": method}
    run = train(baseline)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    first = lines(run)[0]
    assert first.keys() >= {*LOGGED[method], "auxiliary/reward", "rewards/margins", "rewards/accuracies"}
    assert first["auxiliary/reward"] == pytest.approx(summary["standardization"]["mean"], rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-3)
    if method == "offline_ppo":
        assert first["policy/ratio"] == pytest.approx(1, abs=1e-3)
        assert first["policy/clipped"] == 0
    assert summary["train"]["responses"] == 32
    assert (run / "value_head.safetensors").exists() == ("value" in summary["needs"])
    assert (summary["value_explained_variance"] is not None) == ("value" in summary["needs"])
    trained, start = (load_file(folder / "model.safetensors") for folder in (run / "model", tiny_model_dir))
    assert any(not torch.equal(weight, start[name]) for name, weight in trained.items())


def test_every_method_of_auxiliary_rewards_is_tried_here() -> None:
    """A method of auxiliary rewards that joins the table has to be trained once."""
    assert set(LOGGED) == {name for name, method in METHODS.items() if method.learns_auxiliary}


@pytest.mark.parametrize(
    ("objective", "fragments"),
    [
        ({"method": "alol"}, ["objective.method=alol learns from auxiliary rewards", "another method"]),
        ({"method": "dpo", "auxiliary": {}}, ["objective.auxiliary is set", "remove objective.auxiliary"]),
    ],
)
def test_rewards_that_are_missing_are_named(
    config: dict[str, Any],
    preftune: CommandLine,
    tmp_path: Path,
    objective: dict[str, Any],
    fragments: list[str],
) -> None:
    """Without the section `rewards` a run that learns from it stops: it is said who asks, and the fix."""
    del config["prior"]
    config["objective"] = objective
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, stderr = preftune("train", str(file))
    assert code == 2
    for fragment in [*fragments, "`rewards` names no reward", "rewards.reading_grade.goal=minimise"]:
        assert fragment in stderr


def test_auxiliary_on_top_is_refused(config: dict[str, Any], preftune: CommandLine, tmp_path: Path) -> None:
    """HPO's terms beside a method of auxiliary rewards are an error of the configuration, not a traceback."""
    config["objective"] = {"method": "dro_v", "auxiliary": {}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, stderr = preftune("train", str(file))
    assert code == 2
    assert "objective: auxiliary cannot be added to method 'dro_v'" in stderr


# --- conditional supervised fine-tuning ---


@pytest.fixture
def conditional(config: dict[str, Any]) -> dict[str, Any]:
    """A run on pairs behind control texts, all of them in one step."""
    del config["prior"]
    config["objective"] = {"method": "csft"}
    config["data"]["control"] = {"good": "+", "bad": " -"}
    config["training"] |= {"per_device_train_batch_size": 32, "num_train_epochs": 1, "eval_on_start": False}
    return config


def test_conditional_fine_tuning_learns_responses_behind_their_text(
    conditional: dict[str, Any],
    train: Train,
    tiny_model_dir: Path,
    smollm2_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The loss is the plain model's NLL of chosen responses behind one text and of rejected behind the other.

    It is a mean over response tokens, in which the texts' own do not count. The saved template ends what it
    asks with the good text, so that the saved model samples behind it.
    """
    run = train(conditional)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    rows = Path(conditional["data"]["train"]).read_text(encoding="utf-8").splitlines()
    nats, sums = [], {"chosen": 0.0, "rejected": 0.0}
    for row in map(json.loads, rows):
        asked = smollm2_tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        for name, control in {"chosen": "+", "rejected": " -"}.items():
            prompt = smollm2_tokenizer(asked + control)["input_ids"]
            response = smollm2_tokenizer(row[name][0]["content"] + "<|im_end|>")["input_ids"]
            with torch.no_grad():
                logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            own = [float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(response)]
            nats += own
            sums[name] += sum(own) / len(rows)
    (first,) = lines(run)
    assert first["loss"] == pytest.approx(-sum(nats) / len(nats), abs=1e-4)
    for name, mean in sums.items():
        assert first[f"logps/{name}"] == pytest.approx(mean, abs=1e-3)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["train"]["labels"] == {"desirable": 16, "undesirable": 16}
    assert "reference" not in summary["needs"]

    saved = AutoTokenizer.from_pretrained(run / "model")
    chat = json.loads(rows[0])["prompt"]
    plain, asked = (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for tokenizer in (smollm2_tokenizer, saved)
    )
    assert asked == plain + "+"


def test_control_texts_have_defaults_and_survive_a_second_run(
    conditional: dict[str, Any], train: Train
) -> None:
    """A run without texts takes those of HALOs and writes them down; one from its model adds none."""
    del conditional["data"]["control"]
    first = train(conditional)
    stored = yaml.safe_load((first / "config.yaml").read_text(encoding="utf-8"))
    assert stored["data"]["control"] == {"good": "<|good|>", "bad": "<|bad|>"}
    fingerprint = json.loads((first / "summary.json").read_text(encoding="utf-8"))["train"]["fingerprint"]
    again = train(conditional, f"model={first / 'model'}", f"output={first.parent / 'again'}")
    summary = json.loads((again / "summary.json").read_text(encoding="utf-8"))
    assert summary["train"]["fingerprint"] == fingerprint


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (
            ["objective.method=dpo"],
            ["data.control is set, and objective.method=dpo", "set objective.method=csft"],
        ),
        (["data.control={good: x, bad: x}"], ["data.control", "good='x' and bad='x' must differ"]),
        (["data.control.goood=x"], ["unknown key 'data.control.goood': did you mean 'good'?"]),
        (["objective.prior=reward_gap"], ["prior = 'reward_gap' is not defined for method 'csft'"]),
    ],
)
def test_control_texts_that_cannot_be_used(
    conditional: dict[str, Any],
    preftune: CommandLine,
    tmp_path: Path,
    overrides: list[str],
    fragments: list[str],
) -> None:
    """Texts that nothing reads, that are the same or misspelt, and a prior, are refused with the fix."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(conditional), encoding="utf-8")
    code, stderr = preftune("train", str(file), *overrides)
    assert code == 2
    for fragment in fragments:
        assert fragment in stderr
