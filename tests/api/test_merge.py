"""`preftune merge`: what is written is the adapted model, and what cannot be merged is left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import preftune
from preftune import InputError
from preftune.api.run import Run
from preftune.storage.files import replaced_folder

Train = Callable[..., Path]
IDS = torch.arange(5, 35).view(2, 15)


def adapted(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run with an adapter that learns something in its four steps."""
    config["training"]["learning_rate"] = 1e-2
    return {**config, "lora": {"rank": 4}, **changes}


def outputs(model: Any) -> torch.Tensor:
    """Logits of fixed tokens."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    "quantization", ["nf4", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (None, "int8"))]
)
def test_the_merged_model_is_the_adapted_one(
    quantization: str | None, config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """In plain transformers: logits, where generation stops, chat template, and files as small as asked."""
    config = adapted(config, objective={"method": "dpo"}, prior={})
    run = train(config | ({"quantization": quantization} if quantization else {}))
    merged = preftune.merge(run, tmp_path / "merged", max_shard_size="4MB")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = outputs(Run(run, {}).model)
    start = outputs(AutoModelForCausalLM.from_pretrained(config["model"]))
    assert (outputs(whole) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (start - expected).abs().max() > 1e-2 * expected.abs().max()
    assert merged.difference <= merged.tolerance == 1e-4
    assert whole.dtype == torch.float32
    assert not hasattr(whole.config, "quantization_config")
    stops = json.loads((run / "model" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert whole.generation_config.eos_token_id == stops
    kept = [AutoTokenizer.from_pretrained(folder) for folder in (run / "model", tmp_path / "merged")]
    assert kept[0].chat_template == kept[1].chat_template
    assert sum(name.endswith(".safetensors") for name in merged.files) > 1
    samples = [
        preftune.sample(folder, ["rain"], n=2, max_new_tokens=6)[0]["responses"]
        for folder in (run / "model", tmp_path / "merged")
    ]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_reward_model_is_merged_with_its_score(
    quantization: str | None, config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Scores in plain transformers are those of the trained model; the settings of its text are kept."""
    config = adapted(config, objective={"method": "bradley_terry"})
    config.pop("prior")
    config["data"]["chat_template_kwargs"] = {"enable_thinking": False}
    run = preftune.train(config | ({"quantization": quantization} if quantization else {}))
    expected = outputs(run.model)
    preftune.merge(run, tmp_path / "merged")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (outputs(whole) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert whole.config.preftune_tokens == "training"
    assert whole.config.preftune_chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.slow
def test_what_lies_beside_the_model_is_carried_along(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Value head, rewards and calibration, byte for byte, and a card of the whole model."""
    objective = {"method": "dpo", "prior": "reward_gap", "auxiliary": {"weight": 0.5}}
    run = train(adapted(config, objective=objective, rewards={"lexical_diversity": {"weight": 2}}))
    merged = preftune.merge(run, tmp_path / "merged", dtype="bfloat16")
    for name in ("value_head.safetensors", "rewards.json", "calibration.json"):
        assert name in merged.files
        assert (tmp_path / "merged" / name).read_bytes() == (run / name).read_bytes()
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "| lora.rank | `4` |" in card
    assert merged.dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An untrained adapter of rank 2 on the tiny model, with random weights on both sides."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    how = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, how).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_merged_model_that_differs_is_not_written(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight that is not the adapted one's shows, and neither the folder nor a part of it stays."""
    from preftune.models import merging

    whole = merging.merged_weights

    def wrong(*arguments: Any) -> Any:
        model = whole(*arguments)
        model.model.layers[0].mlp.up_proj.weight.data[0] *= 2
        return model

    monkeypatch.setattr(merging, "merged_weights", wrong)
    with pytest.raises(InputError, match=r"differs from the base with its adapter.*Nothing was written"):
        preftune.merge(adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_bad_input_is_named_before_weights_load(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole model, no adapter, folders in one another, a full folder, a missing base, an unknown type."""
    from preftune.models import merging

    monkeypatch.setattr(merging, "load_language_model", None)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine", encoding="utf-8")
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    stored = json.loads((moved / "adapter_config.json").read_text(encoding="utf-8"))
    text = json.dumps(stored | {"base_model_name_or_path": str(tmp_path / "gone")})
    (moved / "adapter_config.json").write_text(text, encoding="utf-8")
    for source, output, options, said in (
        (tiny_model_dir, "out", {}, "is a whole model, merged already or trained without lora"),
        (tmp_path / "nowhere", "out", {}, "is not a folder"),
        (full, "out", {}, r"has no adapter \(adapter_config.json\)"),
        (adapter, "full", {}, "is not empty"),
        (adapter, "full/notes.txt", {}, "is a file"),
        (adapter, "adapter/merged", {}, "contain each other"),
        (moved, "out", {}, "gone, which is not a folder"),
        (adapter, "out", {"dtype": "float8"}, "dtype=float8 must be one of float32, bfloat16, float16"),
    ):
        with pytest.raises(InputError, match=said):
            preftune.merge(source, tmp_path / output, **options)
    assert (full / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_named(adapter: Path, tmp_path: Path) -> None:
    """With the first tensor that does not fit."""
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: torch.zeros(2, 2)}, file)
    with pytest.raises(InputError, match="does not fit its base model"):
        preftune.merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_how_close_they_are(
    adapter: Path, tmp_path: Path, preftune: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0, the folder and no bars of transformers; a second call is refused with exit code 2."""
    code, errors = preftune("merge", str(adapter), "--output", str(tmp_path / "merged"))
    assert code == 0
    assert "Writing" not in errors
    assert "Loading" not in errors
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    code, errors = preftune("merge", str(adapter), "--output", str(tmp_path / "merged"))
    assert code == 2
    assert "is not empty" in errors


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    """What is stopped half way leaves nothing; an empty folder is taken."""
    target = tmp_path / "folder"
    target.mkdir()

    def stopped() -> None:
        with replaced_folder(target) as aside:
            (aside / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert sorted(tmp_path.iterdir()) == [target]
    with replaced_folder(target) as aside:
        (aside / "whole").touch()
    assert [path.name for path in target.iterdir()] == ["whole"]
