"""The learning rate of a run whose configuration has none."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch.optim import SGD
from transformers import AutoModelForCausalLM, TrainingArguments

from preftune.training import check_config
from preftune.training.given import NOTHING_GIVEN, Given
from preftune.training.preparation import prepare, with_defaults

Train = Callable[..., Path]


def resolved(config: dict[str, Any], given: Given = NOTHING_GIVEN) -> Any:
    """The rate that a configuration gets."""
    return with_defaults(check_config(config), given).training.get("learning_rate")


RATES: dict[str, tuple[dict[str, Any], float]] = {
    "all weights": ({}, 1e-6),
    "lora": ({"lora": {"rank": 4}}, 1e-5),
    "reward model": ({"objective": {"method": "bradley_terry"}}, 1e-5),
    "reward model with lora": ({"objective": {"method": "bradley_terry"}, "lora": {}}, 1e-4),
}


@pytest.mark.parametrize("name", RATES)
def test_what_is_trained_decides(name: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """1e-6 of a policy, 1e-5 of a reward model, ten times that for adapters; said in the log, once."""
    caplog.set_level(logging.INFO, "preftune")
    changed, rate = RATES[name]
    del config["training"]["learning_rate"]
    prepared = prepare(check_config({**config, "prior": {}, "objective": {}, **changed}))
    assert (prepared.arguments.learning_rate, prepared.config.training["learning_rate"]) == (rate, rate)
    assert caplog.text.count(f"learning rate {rate:g}, ") == 1
    assert ("adapters" in caplog.text) == ("lora" in name)
    assert ("of a reward model: " in caplog.text) == ("reward" in name)


@pytest.mark.parametrize("name", RATES)
def test_a_given_rate_wins(name: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is trained, the user's value stays, and nothing is said of it."""
    caplog.set_level(logging.INFO, "preftune")
    config["training"]["learning_rate"] = 3e-4
    assert resolved(config | {"prior": {}, "objective": {}} | RATES[name][0]) == 3e-4
    assert "learning rate" not in caplog.text


def test_adapters_of_the_callers_count(config: dict[str, Any], tiny_model_dir: Path) -> None:
    """`peft_config` and a `PeftModel` are adapters as `lora` is."""
    del config["training"]["learning_rate"]
    lora = LoraConfig(r=4, target_modules="all-linear")
    assert resolved(config, Given(adapter=lora)) == 1e-5
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert resolved(config, Given(model=plain)) == 1e-6
    assert resolved(config, Given(model=get_peft_model(plain, lora))) == 1e-5


OWN: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "transformers' default, all weights": ({}, {}, True),
    "transformers' default, adapters": ({}, {"adapter": LoraConfig(r=4)}, False),
    "transformers' default, an optimizer of one's own": (
        {},
        {"optimizers": (SGD([torch.zeros(1, requires_grad=True)], 1e-3), None)},
        False,
    ),
    "a rate of one's own": ({"learning_rate": 1e-3}, {}, False),
}


@pytest.mark.parametrize("name", OWN)
def test_own_arguments_are_taken_as_they_are(
    name: str, config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their rate is not replaced; transformers' 5e-5 on all weights is warned of, with what to set."""
    changed, given, is_warned = OWN[name]
    arguments = TrainingArguments(str(tmp_path / "own"), use_cpu=True, report_to="none", **changed)
    prepared = prepare(check_config(config | {"training": {}}), given=Given(arguments=arguments, **given))
    assert prepared.arguments.learning_rate == changed.get("learning_rate", 5e-5)
    assert ("args.learning_rate=5e-05 is the default of transformers'" in caplog.text) == is_warned
    assert ("such as 1e-06" in caplog.text) == is_warned


def test_the_run_folder_keeps_the_rate(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """`config.yaml` has the rate that was taken, an override wins, and a resume asks for no more."""
    del config["training"]["learning_rate"]
    run = train(config, "lora.rank=4")
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert written["training"]["learning_rate"] == 1e-5
    assert train(config, "lora.rank=4", "--resume") == run
    other = train(config, "training.learning_rate=2e-5", f"output={tmp_path / 'other'}")
    written = yaml.safe_load((other / "config.yaml").read_text(encoding="utf-8"))
    assert written["training"]["learning_rate"] == 2e-5
