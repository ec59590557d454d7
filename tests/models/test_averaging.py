"""Several models as one: whole ones by their weights, adapters by their updates."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import preftune
from preftune.cli import app


def changed(model: Path, to: Path, value: float) -> Path:
    """A copy of a model with each weight set to a value."""
    shutil.copytree(model, to)
    stored = load_file(model / "model.safetensors")
    filled = {name: torch.full_like(weight, value) for name, weight in stored.items()}
    save_file(filled, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_weights_are_averaged(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Of 1 and 4: 2.5; a quarter and three quarters: 0.25 + 3 = 3.25. It loads by transformers alone."""
    pair = [changed(tiny_model_dir, tmp_path / name, value) for name, value in (("a", 1.0), ("b", 4.0))]
    for weights, expected in ((None, 2.5), ([0.25, 0.75], 3.25)):
        output = preftune.average(pair, weights, output=tmp_path / f"mean-{expected}")
        model = AutoModelForCausalLM.from_pretrained(output)
        assert {float(value) for weight in model.state_dict().values() for value in weight.unique()} == {
            expected
        }
        assert AutoTokenizer.from_pretrained(output).get_vocab()


def adapter(model: Path, to: Path, rank: int, alpha: float, seed: int, **options: Any) -> Path:
    """An adapter with random matrices on the tiny model."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "up_proj"], **options)
    adapted = get_peft_model(base, settings)
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(to)
    AutoTokenizer.from_pretrained(model).save_pretrained(to)
    return to


def updates(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each matrix, as peft computes it."""
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder)
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in adapted.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def test_updates_of_adapters_are_averaged(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Of ranks 2 and 3 with other scales, one of them by the root of the rank, the mean is exact."""
    first = adapter(tiny_model_dir, tmp_path / "a", rank=2, alpha=4, seed=1)
    second = adapter(tiny_model_dir, tmp_path / "b", rank=3, alpha=1, seed=2, use_rslora=True)
    output = preftune.average([first, second], [0.25, 0.75], output=tmp_path / "mean")
    expected = [updates(tiny_model_dir, folder) for folder in (first, second)]
    found = updates(tiny_model_dir, output)
    assert found
    for name, update in found.items():
        torch.testing.assert_close(
            update, 0.25 * expected[0][name] + 0.75 * expected[1][name], rtol=1e-5, atol=1e-5
        )
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 5


def test_the_mean_of_opposite_updates_is_none(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Of B A and (-B) A nothing is left, and of (-B) (-A), which is B A, it is B A."""
    first = adapter(tiny_model_dir, tmp_path / "a", rank=2, alpha=4, seed=1)
    signs = {"up": ("lora_B",), "both": ("lora_A", "lora_B")}
    stored = load_file(first / "adapter_model.safetensors")
    for name, turned in signs.items():
        shutil.copytree(first, tmp_path / name)
        save_file(
            {
                key: -weight if any(part in key for part in turned) else weight
                for key, weight in stored.items()
            },
            tmp_path / name / "adapter_model.safetensors",
        )
    none = preftune.average([first, tmp_path / "up"], output=tmp_path / "none")
    same = preftune.average([first, tmp_path / "both"], output=tmp_path / "same")
    assert max(float(update.abs().max()) for update in updates(tiny_model_dir, none).values()) < 1e-5
    for name, update in updates(tiny_model_dir, same).items():
        torch.testing.assert_close(update, updates(tiny_model_dir, first)[name], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_averaged_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    """One message each, and no folder."""
    whole = changed(tiny_model_dir, tmp_path / "whole", 1.0)
    larger = changed(tiny_model_dir, tmp_path / "larger", 1.0)
    stored = load_file(larger / "model.safetensors")
    name = next(name for name, weight in stored.items() if weight.dim() == 2)
    longer = stored | {name: torch.ones(stored[name].shape[0] + 1, stored[name].shape[1])}
    save_file(longer, larger / "model.safetensors", metadata={"format": "pt"})
    lora = adapter(tiny_model_dir, tmp_path / "lora", rank=2, alpha=4, seed=1)
    dora = adapter(tiny_model_dir, tmp_path / "dora", rank=2, alpha=4, seed=1, use_dora=True)
    foreign = tmp_path / "foreign"
    shutil.copytree(lora, foreign)
    settings = json.loads((lora / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "another/model"
    (foreign / "adapter_config.json").write_text(json.dumps(settings))
    output = tmp_path / "mean"
    cases: list[tuple[list[Path], list[float] | None, str]] = [
        ([whole], None, "two runs or more"),
        ([whole, whole], [0.5, 0.6], "add up to 1"),
        ([whole, whole], [1.0], "give one for each"),
        ([whole, whole], [1.5, -0.5], "must be 0 or more"),
        ([whole, larger], None, "different shapes of"),
        ([whole, lora], None, "is a whole model: merge the adapter first"),
        ([lora, dora], None, "use_dora=True"),
        ([lora, foreign], None, "average adapters of one base model"),
        ([whole, tmp_path], None, "has no model"),
    ]
    for runs, weights, message in cases:
        with pytest.raises(preftune.InputError, match=message):
            preftune.average(runs, weights, output=output)
        assert not output.exists()


def test_the_command_line_averages(tiny_model_dir: Path, tmp_path: Path) -> None:
    """`merge --average` with weights; without the flag several runs are refused."""
    pair = [changed(tiny_model_dir, tmp_path / name, value) for name, value in (("a", 1.0), ("b", 4.0))]
    names, output = [str(each) for each in pair], tmp_path / "mean"
    assert CliRunner().invoke(app, ["merge", *names, "--output", str(output)]).exit_code != 0
    assert not output.exists()
    options = ["--average", "--weights", "0.25,0.75", "--output", str(output)]
    done = CliRunner().invoke(app, ["merge", *names, *options])
    assert done.exit_code == 0, done.output
    assert {float(weight.flatten()[0]) for weight in load_file(output / "model.safetensors").values()} == {
        3.25
    }
