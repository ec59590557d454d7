"""Rounds over objects: a loaded model, rows, and a function as the reward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import preftune
from preftune.errors import InputError

PROMPTS = ["the cat", "a dog", "one fish", "two birds", "the sun", "a tree"]


def longer(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Prefer what has more letters."""
    return [float(len(str(completion))) for completion in completions]


def settings(output: Path, **keys: Any) -> dict[str, Any]:
    """One small round."""
    training = {"per_device_train_batch_size": 2, "warmup_steps": 0, "use_cpu": True, "bf16": False}
    return {
        "rounds": 1,
        "sampling": {"n": 3, "max_new_tokens": 6},
        "evaluation": {"n": 2},
        "train": {"prior": {"calibration": "minmax"}, "training": training},
        "output": str(output),
        **keys,
    }


def test_rounds_take_a_model_rows_and_a_function(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The round samples from the model and scores with the function; a second call finds it finished."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    objects: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "prompts": PROMPTS[:4],
        "held_out": [{"prompt": prompt} for prompt in PROMPTS[4:]],
        "reward": longer,
    }
    rounds = preftune.iterate(settings(tmp_path / "rounds"), **objects)
    assert rounds.last_good == 1
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    changed = [
        name for name, weight in rounds.model.state_dict().items() if not torch.equal(before[name], weight)
    ]
    assert changed
    again = preftune.iterate(settings(tmp_path / "rounds"), **objects)
    assert again.summary == rounds.summary


def test_other_processes_cannot_see_a_function(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Launched stages need a reward by name."""
    launched = settings(tmp_path / "rounds", launch=["torchrun"], model=str(tiny_model_dir))
    with pytest.raises(InputError, match=r"reward is a function, and launch=.*name it as module:function"):
        preftune.iterate(launched, prompts=PROMPTS[:4], held_out=PROMPTS[4:], reward=longer)
