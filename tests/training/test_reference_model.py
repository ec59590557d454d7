"""`reference`: comparing with another model than the one that is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

CommandLine = Callable[..., tuple[int, str]]
Train = Callable[..., Path]


@pytest.fixture
def other(tiny_model_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """The tiny model with other weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    folder = tmp_path / "other"
    model.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


def first_evaluation(run: Path) -> dict[str, float]:
    """Held-out figures before the first step."""
    found: dict[str, float] = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return found


@pytest.mark.slow
def test_log_ratios_are_against_the_reference(config: dict[str, Any], train: Train, other: Path) -> None:
    """Before the first step the implicit reward is beta (log pi - log pi_ref) of two different models."""
    config["training"] |= {"max_steps": 1}
    compared = first_evaluation(train(config, f"reference={other}"))
    own = first_evaluation(train(config, "output=" + config["output"] + "-own"))
    of_other = first_evaluation(train(config, f"model={other}", "output=" + config["output"] + "-other"))
    for side in ("chosen", "rejected"):
        expected = 0.1 * (own[f"eval_logps/{side}"] - of_other[f"eval_logps/{side}"])
        assert compared[f"eval_rewards/{side}"] == pytest.approx(expected, abs=1e-4)
        assert abs(expected) > 1e-2
        assert own[f"eval_rewards/{side}"] == pytest.approx(0, abs=1e-5)


def test_a_reference_with_another_vocabulary_is_refused(
    config: dict[str, Any],
    preftune: CommandLine,
    tmp_path: Path,
    other: Path,
) -> None:
    """Token by token the two could not be compared."""
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["preference-tuned"])
    tokenizer.save_pretrained(other)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config | {"reference": str(other)}), encoding="utf-8")
    code, errors = preftune("train", str(file))
    assert code == 2
    assert "have different vocabularies" in errors
    assert not Path(config["output"]).exists()
