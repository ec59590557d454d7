"""Adapters on a base model in 4 or 8 bits: the reference, rows, resuming, processes and shards."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig

import preftune
from preftune import InputError
from preftune.models import Policy, Quantization, load_language_model
from preftune.models.quantization import compute_alike, quantized_bytes
from preftune.training.footprint import compute_footprint

from ..conftest import rows, write_rows
from ..forks import Forks
from .test_equivalences import Killed, Train, metrics
from .test_footprint import ADAPTER, EMBEDDINGS, WEIGHTS, prepared

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"method": "dpo", "prior": "reward_gap"}},
    "kto": {"objective": {"method": "kto"}},
    "simpo": {"objective": {"method": "simpo"}},
    "bradley_terry": {"objective": {"method": "bradley_terry"}},
}
KINDS: dict[str, Any] = {
    "nf4": "nf4",
    "double": {"type": "nf4", "double": True},
    "int8": "int8",
}
ALL = [(kind, name) for kind in KINDS for name in METHODS]


def quantised(config: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """The run with an adapter on a quantised base."""
    changed = {**config, **METHODS[name], "quantization": KINDS[kind], "lora": {"rank": 4}}
    if name != "dpo":
        changed.pop("prior")
    return changed


def adapter(run: Path) -> dict[str, torch.Tensor]:
    """The trained adapter."""
    return load_file(run / "model" / "adapter_model.safetensors")


def assert_alike(run: Path, other: Path) -> None:
    """Two runs ended in the same adapter, up to rounding, and logged the same."""
    found, expected = adapter(run), adapter(other)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
    for line, expected_line in zip(metrics(run), metrics(other), strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3, abs=1e-5)


def test_the_reference_is_the_quantised_start(config: dict[str, Any], train: Train) -> None:
    """Before the first step policy and reference agree to the last bit: the loss of dpo is log 2."""
    config["training"]["learning_rate"] = 1e-2
    run = train({**quantised(config, "nf4", "dpo"), "objective": {"method": "dpo"}, "prior": {}})
    losses = [line["eval_loss"] for line in metrics(run) if "eval_loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7)
    assert losses[-1] != pytest.approx(math.log(2), abs=1e-4)
    stored = json.loads((run / "model" / "quantization.json").read_text(encoding="utf-8"))
    assert stored == {"type": "nf4", "double": False, "compute_dtype": "float32"}


def test_the_card_loads_the_model_that_was_trained(config: dict[str, Any], train: Train) -> None:
    """Its lines as they stand: over the whole weights the adapter would make another model."""
    config["training"]["learning_rate"] = 1e-2
    run = train(quantised(config, "nf4", "dpo"))
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "| quantization.type | `nf4` |" in card
    lines = card.split("```")[1].replace("THIS_REPOSITORY", str(run / "model"))
    names: dict[str, Any] = {}
    exec(lines, names)
    ids = torch.arange(5, 35).view(2, 15)
    with torch.no_grad():
        found = names["model"].eval()(input_ids=ids).logits
        expected = preftune.Run(run, {}).model.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_training_equals_that_on_the_dequantised_base(
    kind: str, name: str, config: dict[str, Any], tiny_model_dir: Path, train: Train, tmp_path: Path
) -> None:
    """Adapter and log are those of a plain run on a model whose weights are the rounded ones."""
    from preftune.models.quantization import dequantize

    run = train(quantised(config, kind, name))
    section = KINDS[kind] if isinstance(KINDS[kind], dict) else {"type": kind}
    plain = dequantize(load_language_model(str(tiny_model_dir), torch.float32, Quantization(**section)))
    plain.save_pretrained(tmp_path / "plain")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "plain")
    other = quantised(config, kind, name) | {
        "model": str(tmp_path / "plain"),
        "output": str(tmp_path / "whole"),
    }
    del other["quantization"]
    assert_alike(run, train(other))


@pytest.mark.parametrize("kind", [pytest.param("nf4"), pytest.param("int8")])
def test_shared_prompts_give_the_padded_rows_numbers(
    kind: str, tiny_model: Callable[[PretrainedConfig], Any], tiny_model_dir: Path, token_groups: Any
) -> None:
    """With dropout off, log-probabilities and gradients are those of padded rows, in either mode."""
    from preftune.data.packing import pack

    model = load_language_model(str(tiny_model_dir), torch.float32, Quantization(kind))
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    found = []
    for share in (True, False):
        policy = Policy(adapted, share_prompts=share)
        for training in (True, False):
            policy.train(training)
            logps = policy(pack(token_groups)).logps
            adapted.zero_grad()
            logps.square().mean().backward()
            grads = [w.grad.clone() for w in adapted.parameters() if w.grad is not None]
            found.append((logps.detach(), grads))
        policy.restore()
    for logps, grads in found[1:]:
        torch.testing.assert_close(logps, found[0][0], rtol=1e-5, atol=1e-5)
        for grad, expected in zip(grads, found[0][1], strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "bradley_terry"))]
)
def test_a_stopped_run_goes_on(
    name: str, config: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """Resumed from its first checkpoint, the run ends in the same adapter, bit for bit."""
    config = quantised(config, "nf4", name)
    whole = train(config)
    killed = killed_behind(whole, 2)
    resumed = train(config | {"output": str(killed)}, "--resume")
    found, expected = adapter(resumed), adapter(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in found.items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sharded"),
    [("dpo", True), ("dpo", False), ("kto", False), ("simpo", True), ("bradley_terry", True)],
)
def test_two_processes_train_the_adapter_that_one_trains(
    name: str, sharded: bool, config: dict[str, Any], train: Train, forks: Forks, tmp_path: Path
) -> None:
    """Whole in each process, and sharded over both (QLoRA with FSDP2)."""
    config = quantised(config, "nf4", name)
    one = train(config)
    config["training"] = config["training"] | {"per_device_train_batch_size": 4}
    file, output = tmp_path / "two.yaml", tmp_path / "two"
    file.write_text(
        yaml.safe_dump({**config, "output": str(output), "fully_sharded": sharded}), encoding="utf-8"
    )
    done = forks.run(["preftune", "train", str(file)], processes=2)
    assert done.status == 0, done.errors
    assert_alike(output, one)
    assert (output / "model" / "quantization.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("training", [{"gradient_checkpointing": True}, {"bf16": True}])
def test_options_of_training(training: dict[str, Any], config: dict[str, Any], train: Train) -> None:
    """Recomputed activations and bfloat16 give the same run, the second within its rounding."""
    config = quantised(config, "nf4", "dpo")
    plain = train(config)
    config["training"] = config["training"] | training
    other = train(config | {"output": config["output"] + "-other"})
    stored = json.loads((other / "model" / "quantization.json").read_text(encoding="utf-8"))
    assert stored["compute_dtype"] == ("bfloat16" if "bf16" in training else "float32")
    if "bf16" in training:
        ends = [[line["eval_loss"] for line in metrics(run) if "eval_loss" in line] for run in (other, plain)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-2)
    else:
        assert_alike(other, plain)


@pytest.mark.slow
def test_a_loaded_quantised_model_is_trained(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """In Python, loaded by transformers, it ends where the named one does."""
    named = quantised(config, "nf4", "dpo")
    run = train(named)
    model = loaded(config["model"])
    own = preftune.train(
        model=model,
        train_dataset=config["data"]["train"],
        eval_dataset=config["data"]["evaluation"],
        objective=named["objective"],
        prior=config["prior"],
        args=config["training"],
        peft_config={"r": 4},
        output=tmp_path / "own",
        cache=config["cache"],
    )
    assert_alike(own.folder, run)


def loaded(name: str) -> Any:
    """In 4 bits, by transformers alone."""
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return AutoModelForCausalLM.from_pretrained(name, quantization_config=how, dtype=torch.float32)


def test_a_loaded_quantised_model_needs_an_adapter(config: dict[str, Any]) -> None:
    """And is quantised once."""
    model, data = loaded(config["model"]), config["data"]["train"]
    with pytest.raises(InputError, match=r"model=.* is quantised by bitsandbytes: .* set peft_config\.r=16"):
        preftune.check(model=model, train_dataset=data)
    with pytest.raises(InputError, match="model is loaded already"):
        preftune.check(model=model, train_dataset=data, quantization="nf4", peft_config={"r": 4})


def test_layers_compute_the_same_in_training_and_evaluation(tiny_model_dir: Path) -> None:
    """An 8-bit product is that with the dequantised matrix, in both modes; 4 bits are not repacked."""
    for kind in ("nf4", "int8"):
        model = load_language_model(str(tiny_model_dir), torch.float32, Quantization(kind))
        layer = model.model.layers[0].mlp.up_proj
        hidden = torch.linspace(-9, 9, 64).view(2, 32)
        alone = torch.cat([layer(hidden[:1]), layer(hidden[1:])])
        assert torch.equal(model.train() and layer(hidden), model.eval() and layer(hidden))
        torch.testing.assert_close(layer(hidden), alone)
        if kind == "int8":
            matrix = layer.weight.data.float() * (layer.weight.SCB / 127)[:, None]
            torch.testing.assert_close(layer(hidden), hidden @ matrix.T)
        else:
            assert layer.support_avx512bf16_for_cpu is False
        compute_alike(model)


def test_full_training_of_a_quantised_base_is_refused(config: dict[str, Any]) -> None:
    """With the key that puts an adapter on it."""
    with pytest.raises(InputError, match=r"quantization=nf4: .*no gradient.* set lora\.rank=16"):
        preftune.check(config | {"quantization": "nf4"})


def test_without_the_library_one_message_says_what_to_install(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else, so that a wrong source is not read."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more)
    )
    config["data"]["train"] = "nowhere.jsonl"
    with pytest.raises(InputError, match=r"quantization=nf4 needs bitsandbytes.*preftune\[quantization\]"):
        preftune.check(config | {"quantization": "nf4", "lora": {"rank": 4}})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nf5", r"quantization\.type='nf5'"),
        ({"type": "int8", "double": True}, "double and compute_dtype belong to type=nf4"),
        ({"type": "nf4", "doubel": True}, "did you mean 'double'"),
        ({"double": True}, r"no 'quantization\.type'"),
    ],
)
def test_a_wrong_value_is_named(value: Any, said: str, config: dict[str, Any]) -> None:
    """With its key."""
    with pytest.raises(InputError, match=said):
        preftune.check(config | {"quantization": value, "lora": {"rank": 4}})


def test_eight_bits_are_not_sharded(config: dict[str, Any]) -> None:
    """The scales are no part of the weights; 4 bits are offered."""
    with pytest.raises(InputError, match=r"quantization=int8 with fully_sharded=true.*quantization=nf4"):
        preftune.check(config | {"quantization": "int8", "lora": {"rank": 4}, "fully_sharded": True})


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_bases_of_other_libraries_are_named(
    method: str, config: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """One message, whether the library is installed or not."""
    stored = json.loads((tiny_model_dir / "config.json").read_text(encoding="utf-8"))
    stored["quantization_config"] = {"quant_method": method, "bits": 4}
    for file in tiny_model_dir.iterdir():
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / file.name).symlink_to(file)
    (tmp_path / "base" / "config.json").unlink()
    (tmp_path / "base" / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(InputError, match=f"{method}"):
        preftune.check(config | {"model": str(tmp_path / "base"), "lora": {"rank": 4}})


@pytest.mark.slow
def test_a_base_that_was_saved_quantised_is_trained_as_it_is(
    config: dict[str, Any], tiny_model_dir: Path, train: Train, tmp_path: Path
) -> None:
    """The run equals that which quantises it, and the key beside it is refused."""
    run = train(quantised(config, "nf4", "dpo"))
    saved = load_language_model(str(tiny_model_dir), torch.float32, Quantization("nf4"))
    saved.save_pretrained(tmp_path / "saved")
    for file in tiny_model_dir.glob("*oken*"):
        (tmp_path / "saved" / file.name).symlink_to(file)
    (tmp_path / "saved" / "chat_template.jinja").symlink_to(tiny_model_dir / "chat_template.jinja")
    config = quantised(config, "nf4", "dpo") | {"model": str(tmp_path / "saved")}
    with pytest.raises(InputError, match="is quantised already, by bitsandbytes"):
        preftune.check(config)
    del config["quantization"]
    other = train(config | {"output": str(tmp_path / "other")})
    assert_alike(other, run)
    assert not (other / "model" / "quantization.json").exists()


def test_the_footprint_counts_quantised_matrices(config: dict[str, Any]) -> None:
    """Of 4 bits half a byte a weight and 4 bytes for 64; an adapter is trained in float32."""
    sizes = [32 * 32, 32 * 16, 32 * 16, 32 * 32, 32 * 48, 32 * 48, 48 * 32]
    kept = EMBEDDINGS + 2 * 2 * 32 + 32
    found = compute_footprint(prepared(config, "lora.rank=4", "quantization=nf4"))
    assert (found.parameters, found.trained) == (WEIGHTS + ADAPTER, ADAPTER)
    assert found.weights == 4 * kept + 2 * sum(size // 2 + size // 16 for size in sizes) + 4 * ADAPTER
    assert quantized_bytes(torch.empty(48, 32), Quantization("int8")) == 48 * 32 + 4 * 48


@pytest.mark.slow
def test_ten_steps_on_the_real_model(smollm2_dir: Path, tmp_path: Path) -> None:
    """SmolLM2 in 4 bits: log 2 at the start, a falling loss, and a merged model that agrees."""
    run = preftune.train(
        {
            "model": str(smollm2_dir),
            "quantization": {"type": "nf4", "double": True},
            "lora": {"rank": 8},
            "data": {"train": str(write_rows(tmp_path / "train.jsonl", rows(40, seed=1)))},
            "objective": {"method": "dpo"},
            "training": {
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-3,
                "max_steps": 10,
                "use_cpu": True,
                "save_strategy": "no",
            },
            "output": str(tmp_path / "run"),
            "cache": str(tmp_path / "cache"),
        }
    )
    losses = run.metrics["loss"].dropna().tolist()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.6
    merged = preftune.merge(run, tmp_path / "merged", max_shard_size="200MB")
    assert merged.difference < merged.tolerance
    assert sum(name.startswith("model-") for name in merged.files) > 1
