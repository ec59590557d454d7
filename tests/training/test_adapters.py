"""What adapters may be, what is saved of them, and what is said of those that cannot be trained."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from preftune.data import TokenizedGroup
from preftune.data.packing import pack
from preftune.errors import InputError
from preftune.models import Policy
from preftune.models.adapters import adapted_without_content
from preftune.training import check_config
from preftune.training.adapters import reference_is_base
from preftune.training.given import NOTHING_GIVEN
from preftune.training.policy import language_model
from preftune.training.preparation import prepare

from .test_adapter_starts import losses_of, plain_numbers, save_sft_adapter

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """An adapter's folder."""
    return save_sft_adapter(tiny_model_dir, tmp_path_factory.mktemp("sft") / "adapter")


@pytest.fixture
def refused(config: dict[str, Any]) -> Callable[..., str]:
    """The message about a configuration, before weights load."""

    def message(**changes: Any) -> str:
        with pytest.raises(InputError) as error:
            prepare(check_config(config | changes))
        return str(error.value)

    return message


def saved(adapter: Path, folder: Path, **changes: Any) -> str:
    """A copy of an adapter with other values in its configuration."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")
    return str(folder)


# --- what is said ---


def test_an_adapter_without_a_start_names_both_ways(refused: Callable[..., str], sft: Path) -> None:
    """Nothing is guessed: the error names both values, and what each does."""
    said = refused(model=str(sft))
    assert "lora.start=continue to train this adapter further" in said
    assert "lora.start=merge to merge it into its base model" in said


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"start": "continue", "rank": 8}, "lora.rank describes a new one"),
        ({"start": "merge"}, "set lora.rank=16 for a new adapter, or lora.rank=null for all its weights"),
        ({"rank": None}, "lora.rank=null trains all weights of a merged start"),
        ({"start": "merge", "rank": None, "alpha": 3}, "no other key of lora"),
        ({"r": 4}, "write lora.rank"),
        ({"task_type": "SEQ_CLS"}, "it follows from objective.method"),
        ({"lora_dropuot": 0.1}, "did you mean 'lora_dropout'?"),
        ({"lora_dropout": "much"}, "lora.lora_dropout='much': Input should be a valid number"),
        ({"layers_to_transform": [0]}, "cannot be used when `target_modules` is a str"),
        ({"init_lora_weights": "eva"}, "reads data or quantises before training"),
        (
            {"init_lora_weights": "pissa", "use_dora": True},
            "twice the rank, which there is not with use_dora",
        ),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens cannot be trained here"),
        ({"target_modules": ["q_proj", "k_prj"]}, "no module 'k_prj': did you mean 'k_proj'?"),
        ({"modules_to_save": ["lm_haed"]}, "no module 'lm_haed': did you mean 'lm_head'?"),
        ({"rank_pattern": {"q_porj": 8}}, "no module 'q_porj'"),
        ({"modules_to_save": ["lm_head"]}, "set ensure_weight_tying=true to train one for both"),
        ({"target_modules": ["q_proj", "lm_head"]}, "would merge into another model than was trained"),
        ({"trainable_token_indices": {"lm_head": [3]}}, "would merge into another model"),
        ({"start": "continue"}, "is a whole model and no adapter"),
    ],
)
def test_what_lora_cannot_be_is_said_before_weights_load(
    refused: Callable[..., str], lora: dict[str, Any], said: str
) -> None:
    """Each contradiction, misspelling and missing module has a message with what to do."""
    assert said in refused(lora=lora)


def test_adapters_that_fit_no_model_are_refused_before_weights_load(
    refused: Callable[..., str], sft: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Another base model, too few weights, no base, an adapter of an adapter, another type."""
    start = {"lora": {"start": "continue"}}
    other = tmp_path / "other"
    wider = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=259)
    LlamaForCausalLM(wider).save_pretrained(other)
    named = "base_model_name_or_path"
    assert "is of another model" in refused(model=saved(sft, tmp_path / "1", **{named: str(other)}), **start)
    lost = str(tmp_path / "lost/model")
    assert "which is not a folder" in refused(model=saved(sft, tmp_path / "2", **{named: lost}), **start)
    assert "names no base model" in refused(model=saved(sft, tmp_path / "3", **{named: None}), **start)
    assert "is an adapter too" in refused(model=saved(sft, tmp_path / "4", **{named: str(sft)}), **start)
    kind = {"peft_type": "ADALORA", "total_step": 5}
    assert "type ADALORA cannot be trained" in refused(model=saved(sft, tmp_path / "5", **kind), **start)
    modules = {"target_modules": ["q_proj", "c_attn"]}
    assert "no module 'c_attn'" in refused(model=saved(sft, tmp_path / "6", **modules), **start)
    kind = {"task_type": "SEQ_CLS"}
    assert "a reward model's adapter" in refused(model=saved(sft, tmp_path / "7", **kind), **start)
    fewer = tmp_path / "8"
    saved(sft, fewer)
    weights = load_file(fewer / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, fewer / "adapter_model.safetensors")
    assert "and 0 more weights are missing" in refused(model=str(fewer), **start)
    (fewer / "adapter_model.safetensors").unlink()
    assert "without adapter_model.safetensors" in refused(model=str(fewer), **start)
    (fewer / "adapter_config.json").write_text("{", encoding="utf-8")
    assert "is not an adapter's configuration of peft" in refused(model=str(fewer), **start)


# --- what is trained ---


UNTIED = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "embed_tokens"], "rank": 4}


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 4}},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa"},
        {"lora_dropout": 0.5},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [1, 2, 198]},
    ],
    ids=["dora", "patterns", "layers", "olora", "pissa", "dropout", "tied", "tokens"],
)
@pytest.mark.slow
def test_every_kind_of_lora_starts_at_log_2_and_loads_in_peft(
    lora: dict[str, Any], config: dict[str, Any], train: Train
) -> None:
    """Loss log 2 on held-out pairs before the first step; what is saved gives the trained numbers."""
    config["objective"], config["lora"] = {"method": "dpo"}, {"rank": 4, **lora}
    del config["prior"]
    run = train(config)
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
    evaluations = [line for line in lines if "eval_loss" in line]
    assert evaluations[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert evaluations[-1]["eval_loss"] != pytest.approx(math.log(2), abs=1e-4)
    prepared = prepare(check_config(config))
    loaded = AutoPeftModelForCausalLM.from_pretrained(run / "model").eval()
    with torch.no_grad():
        found = plain_numbers(loaded, prepared.held_out["evaluation"].groups).view(-1, 2)
    assert found[:, 0].mean().item() == pytest.approx(evaluations[-1]["eval_logps/chosen"], abs=2e-3)
    assert found[:, 1].mean().item() == pytest.approx(evaluations[-1]["eval_logps/rejected"], abs=2e-3)


@pytest.mark.parametrize("kind", [IA3Config, LoHaConfig], ids=["ia3", "loha"])
def test_other_adapters_read_packed_rows_as_padded_ones(
    kind: Any, token_groups: list[TokenizedGroup], tiny_model: Callable[..., Any]
) -> None:
    """IA3 and LoHa work inside the layers: prompts are shared, and numbers equal the model's own rows."""
    adapted = get_peft_model(
        tiny_model(tiny_config()), kind(target_modules=["q_proj", "v_proj"], **_form(kind))
    )
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, mean=float("ia3" in name), std=0.3)
    policy = Policy(adapted.eval())
    assert policy.shares_prompts
    with torch.no_grad():
        found = policy(pack(token_groups)).logps
    policy.restore()
    with torch.no_grad():
        torch.testing.assert_close(found, plain_numbers(adapted, token_groups), rtol=1e-4, atol=1e-3)


def _form(kind: Any) -> dict[str, Any]:
    own = {"feedforward_modules": []} if kind is IA3Config else {"r": 2}
    return {"task_type": "CAUSAL_LM", **own}


def tiny_config(tied: bool = False) -> LlamaConfig:
    """Two layers, 200 tokens."""
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
        tie_word_embeddings=tied,
    )


WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "head": (False, {"modules_to_save": ["lm_head"]}),
    "embeddings": (False, {"modules_to_save": ["embed_tokens"]}),
    "both": (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied": (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "adapters on both": (False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tokens": (True, {"trainable_token_indices": [5, 7]}),
}


@pytest.mark.parametrize("way", WAYS)
def test_trained_heads_and_embeddings_have_the_padded_rows_gradients(
    way: str, token_groups: list[TokenizedGroup], tiny_model: Callable[..., Any]
) -> None:
    """The chunked head reads the copy that is trained: its numbers and gradients are the plain model's."""
    tied, fields = WAYS[way]
    model = tiny_model(tiny_config(tied))
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **fields}
    adapted = get_peft_model(model, LoraConfig(**fields))
    torch.manual_seed(1)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.1 * torch.randn_like(weight))
    policy = Policy(adapted.eval())
    assert policy.shares_prompts
    weigh = torch.linspace(0.5, 1.5, sum(len(group.responses) for group in token_groups))
    found = policy(pack(token_groups)).logps
    own = torch.autograd.grad((found * weigh).sum(), list(trained.values()))
    policy.restore()
    plain = plain_numbers(adapted, token_groups)
    expected = torch.autograd.grad((plain * weigh).sum(), list(trained.values()))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)
    for name, gradient, other in zip(trained, own, expected, strict=True):
        assert other.norm() > 0, name
        assert (gradient - other).norm() < 1e-3 * other.norm(), name


def test_dropout_on_a_head_draws_once(
    token_groups: list[TokenizedGroup], tiny_model: Callable[..., Any]
) -> None:
    """In training the chunk that the backward pass computes again has the forward pass's mask."""
    config = LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.5, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_model(tiny_config()), config)
    torch.nn.init.normal_(adapted.get_base_model().lm_head.lora_B["default"].weight, std=0.3)
    policy = Policy(adapted)
    policy.train()
    weight = adapted.get_base_model().lm_head.lora_B["default"].weight

    def total() -> torch.Tensor:
        torch.manual_seed(3)
        return policy(pack(token_groups)).logps.sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    direction = torch.randn_like(weight)
    step = 1e-2 * direction / direction.norm()
    with torch.no_grad():
        weight.add_(step)
        above = total()
        weight.sub_(2 * step)
        below = total()
    assert ((above - below) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=0.02)


def test_an_adapters_dropout_is_on_in_training_alone(
    token_groups: list[TokenizedGroup], tiny_model: Callable[..., Any]
) -> None:
    """Two training passes differ, two evaluations do not, and the model's own dropout stays off."""
    config = tiny_config()
    config.attention_dropout = 0.5
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    policy, batch = Policy(get_peft_model(tiny_model(config), adapter)), pack(token_groups)
    policy.train()
    with torch.no_grad():
        first, second = policy(batch).logps, policy(batch).logps
        assert not torch.equal(first, second)
        with policy.language_model.disable_adapter():
            assert torch.equal(policy(batch).logps, policy(batch).logps)
        policy.eval()
        assert torch.equal(policy(batch).logps, policy(batch).logps)


def test_every_field_reaches_peft(config: dict[str, Any]) -> None:
    """Keys of `lora` are peft's fields, and what is read back from config.yaml is the same."""
    lora = {"rank": 4, "lora_dropout": 0.1, "use_rslora": True, "bias": "all", "exclude_modules": ["v_proj"]}
    read = check_config(config | {"lora": lora})
    adapter = language_model(read, NOTHING_GIVEN).peft_config["default"]
    assert (adapter.r, adapter.lora_dropout, adapter.use_rslora, adapter.bias) == (4, 0.1, True, "all")
    assert adapter.exclude_modules == {"v_proj"}
    for section in (
        lora,
        {"start": "continue"},
        {"start": "merge", "rank": None},
        {"start": "merge", "rank": 4},
    ):
        read = check_config(config | {"lora": section})
        again = check_config(yaml.safe_load(yaml.safe_dump(read.model_dump(mode="json"))))
        assert again.lora == read.lora
    assert "start" not in check_config(config | {"lora": {"rank": 4}}).model_dump()["lora"]


@pytest.mark.parametrize(
    ("init", "is_base"), [(True, True), ("gaussian", True), ("pissa", False), ("olora", False)]
)
def test_only_an_untouched_base_is_the_reference(config: dict[str, Any], init: Any, is_base: bool) -> None:
    """PiSSA and OLoRA change the base: there the reference is the model as it starts, adapter on."""
    read = check_config(config | {"lora": {"init_lora_weights": init}})
    assert reference_is_base(read, NOTHING_GIVEN) == is_base


# --- starts ---


def test_a_merged_start_that_is_trained_wholly_is_saved_whole(
    config: dict[str, Any], train: Train, sft: Path, tiny_model_dir: Path
) -> None:
    """Before the first step the model is peft's merged one, and the run leaves whole weights."""
    config |= {"model": str(sft), "lora": {"start": "merge", "rank": None}}
    config["training"] |= {"max_steps": 1, "learning_rate": 1e-12}
    run = train(config)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    expected = PeftModel.from_pretrained(base, sft).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(run / "model").state_dict()
    assert not (run / "model" / "adapter_config.json").exists()
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())


def test_a_new_adapter_on_a_merged_start_brings_its_base(
    config: dict[str, Any], train: Train, sft: Path, tmp_path: Path
) -> None:
    """The merged model lies beside the adapter; a folder that has moved starts another run."""
    config |= {"model": str(sft), "lora": {"start": "merge", "rank": 4}}
    config["training"]["max_steps"] = 2
    run = train(config)
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-6)
    moved = tmp_path / "moved"
    shutil.move(run / "model", moved)
    groups = prepare(check_config(config)).train.groups
    whole = AutoModelForCausalLM.from_pretrained(moved / "base")
    with torch.no_grad():
        expected = plain_numbers(PeftModel.from_pretrained(whole, moved).eval(), groups)
        again = language_model(check_config(config | {"model": str(moved), "lora": {"start": "continue"}}))
        assert torch.equal(plain_numbers(again.eval(), groups), expected)


def test_an_adapter_without_content_takes_no_memory() -> None:
    """Every weight of the model and the adapter is a shape."""
    with torch.device("meta"):
        model = LlamaForCausalLM(tiny_config())
    adapted = adapted_without_content(
        model, LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"), "lora"
    )
    assert all(weight.is_meta for weight in adapted.parameters())


# --- given models ---


def test_what_a_given_peft_model_cannot_be(config: dict[str, Any], tiny_model: Callable[..., Any]) -> None:
    """Two adapters, a merged one, one that is off, and prompt tuning each have a message."""
    from preftune.models.adapters import check_adapter_config, check_peft_model

    lora = LoraConfig(target_modules=["q_proj"])
    two = get_peft_model(tiny_model(tiny_config()), lora)
    two.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"adapters default, other, and one is trained"):
        check_peft_model(two)
    one = get_peft_model(tiny_model(tiny_config()), LoraConfig(target_modules=["q_proj"]))
    check_peft_model(one)
    one.merge_adapter()
    with pytest.raises(InputError, match="adapter is merged"):
        check_peft_model(one)
    one.unmerge_adapter()
    one.base_model.disable_adapter_layers()
    with pytest.raises(InputError, match="adapter is off"):
        check_peft_model(one)
    prompts = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(InputError, match="puts trained vectors before each row"):
        check_adapter_config(prompts, "peft_config")
