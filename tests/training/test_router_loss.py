"""Mixtures of experts train with their routers' loss, unless told otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase


@pytest.fixture
def mixture_dir(tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folder of a random Mixtral with SmolLM2's tokenizer."""
    transformers.set_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=len(smollm2_tokenizer),
        max_position_embeddings=256,
        router_aux_loss_coef=0.25,
    )
    folder = tmp_path / "mixture"
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_weight_is_the_models_own(
    config: dict[str, Any], mixture_dir: Path, train: Callable[..., Path]
) -> None:
    """Without the key, preference + 0.25 * router is the loss, held out as well, and config.yaml says so."""
    config["model"] = str(mixture_dir)
    run = train(config)
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["objective"]["router_loss_weight"] == 0.25
    lines = [line for line in metrics_of(run) if "loss" in line or "eval_loss" in line]
    assert {"loss" in line for line in lines} == {True, False}
    for line in lines:
        prefix = "" if "loss" in line else "eval_"
        router, preference = line[f"{prefix}loss/router"], line[f"{prefix}loss/preference"]
        # Two of four experts for each token: 2 when balanced.
        assert 1.9 < router < 4
        assert line[f"{prefix}loss"] == pytest.approx(preference + 0.25 * router, rel=1e-4)


def test_the_loss_can_be_left_out(
    config: dict[str, Any], mixture_dir: Path, train: Callable[..., Path]
) -> None:
    """A weight of 0 trains without it."""
    config["model"] = str(mixture_dir)
    config["objective"]["router_loss_weight"] = 0
    assert not any("loss/router" in line for line in metrics_of(train(config)))


def test_a_resumed_mixture_equals_an_uninterrupted_one(
    config: dict[str, Any],
    mixture_dir: Path,
    train: Callable[..., Path],
    killed_behind: Callable[[Path, int], Path],
) -> None:
    """Its checkpoints are read although Mixtral's files keep experts apart that the model has together.

    What the run leaves in the end is such a file.
    """
    config["model"] = str(mixture_dir)
    config["training"] |= {"save_strategy": "steps", "save_steps": 2}
    whole = train(config)
    resumed = train(config, f"output={killed_behind(whole, 2)}", "--resume")
    start, expected, found = (
        load_file(folder / "model.safetensors")
        for folder in (mixture_dir, whole / "model", resumed / "model")
    )
    assert start.keys() == expected.keys() == found.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_a_model_without_routers_is_refused(
    config: dict[str, Any], preftune: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """The configuration tells, so the error comes with --dry-run too."""
    config["objective"]["router_loss_weight"] = 0.1
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, errors = preftune("train", str(file), "--dry-run")
    assert code == 2
    assert "objective.router_loss_weight=0.1" in errors
    assert "remove the key" in errors
