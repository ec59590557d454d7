"""Shared prompts change the cost of a batch and nothing else."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.data import Group, Pair, Response, TokenizedGroup, tokenize_groups
from preftune.data.packing import Span, pack
from preftune.errors import InputError
from preftune.models import Policy, attention

COMMON = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
WINDOWED = GROUPED | {"head_dim": 12, "sliding_window": 5}
EXPERTS = 4
MIXTURE = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama_tied": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    # A window is configured, and no layer has it.
    "qwen2_full": transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=5, layer_types=["full_attention"] * 2
    ),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=12),
    "gemma2": transformers.Gemma2Config(
        **WINDOWED, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=12
    ),
    "gemma3": transformers.Gemma3TextConfig(**WINDOWED),
    "mistral": transformers.MistralConfig(**WINDOWED),
    "phi3": transformers.Phi3Config(**GROUPED),
    "olmo2": transformers.Olmo2Config(**GROUPED),
    "gpt2": transformers.GPT2Config(
        n_embd=48, n_layer=2, n_head=4, vocab_size=200, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**COMMON),
    "gpt_oss": transformers.GptOssConfig(**WINDOWED, **MIXTURE),
    "mixtral": transformers.MixtralConfig(**GROUPED, **MIXTURE),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **GROUPED, head_dim=12, num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "granite": transformers.GraniteConfig(**GROUPED, logits_scaling=3.0),
    "cohere": transformers.CohereConfig(**GROUPED, logit_scale=0.5),
}

CANNOT_SHARE: dict[str, PretrainedConfig] = {
    "mamba": transformers.MambaConfig(hidden_size=48, num_hidden_layers=2, vocab_size=200),
    "bloom": transformers.BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=200),
    # It builds its window into a mask, and the window is longer than what is tried at start.
    "phimoe": transformers.PhimoeConfig(**GROUPED, **MIXTURE, sliding_window=64),
}


@dataclass(frozen=True)
class Outcome:
    """What a policy makes of a batch; a model without routers has a routers' loss of 0."""

    token_logps: Tensor
    router_loss: Tensor
    gradients: dict[str, Tensor]


def _outcome(
    policy: Policy, groups: list[TokenizedGroup], routers: bool = False, autocast: bool = False
) -> Outcome:
    batch = pack(groups)
    policy.train().zero_grad()
    # As in training: only the forward pass is in the context.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = policy.response_token_logps(batch)
        router_loss = policy(batch).router_loss if routers else logps.new_zeros(())
    # Unequal weights, so that swapped tokens would show.
    ((logps * torch.linspace(0.5, 1.5, len(logps))).sum() + 10 * router_loss).backward()
    gradients = {n: p.grad.float().clone() for n, p in policy.named_parameters() if p.grad is not None}
    return Outcome(logps.detach(), router_loss.detach(), gradients)


def _packed_policy(model: torch.nn.Module, checkpointing: bool, routers: bool = False) -> Policy:
    policy = Policy(model, share_prompts=True, router_loss=routers)
    if checkpointing:
        policy.activation_checkpointing_enable()
    return policy


def _distances(one: Outcome, other: Outcome) -> dict[str, Tensor]:
    """Relative differences of log-probabilities, the routers' loss and every weight's gradient."""
    assert one.gradients.keys() == other.gradients.keys()
    scale = torch.stack([gradient.norm() for gradient in other.gradients.values()]).max()
    # Some gradients are zero but for rounding (a key's bias moves no softmax), hence the floor.
    distances = {
        name: (one.gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-4 * scale)
        for name, gradient in other.gradients.items()
    }
    distances["token_logps"] = (one.token_logps - other.token_logps).norm() / other.token_logps.norm()
    if other.router_loss:
        distances["router_loss"] = (one.router_loss / other.router_loss - 1).abs()
    return distances


def _assert_equivalent(
    model: torch.nn.Module, groups: list[TokenizedGroup], checkpointing: bool = False
) -> None:
    routers = hasattr(model.config, "output_router_logits")
    padded = _outcome(Policy(model, share_prompts=False, router_loss=routers), groups, routers)
    packed = _outcome(_packed_policy(model, checkpointing, routers), groups, routers)
    assert (padded.router_loss > 0) == routers
    torch.testing.assert_close(packed.token_logps, padded.token_logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.router_loss, padded.router_loss, rtol=1e-5, atol=0)
    for name, distance in _distances(packed, padded).items():
        assert distance < 1e-4, name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_padded(name: str, tiny_model, token_groups) -> None:
    """Token log-probabilities and routers' losses agree to 1e-5, gradients to 1e-4 relative."""
    _assert_equivalent(tiny_model(ARCHITECTURES[name]), token_groups)


def _lora(*target_modules: str) -> Callable[[PreTrainedModel], PeftModel]:
    def wrap(model: PreTrainedModel) -> PeftModel:
        targets = list(target_modules) or "all-linear"
        # init_lora_weights=False fills B with random numbers too, so that the adapters take part.
        settings = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(model, settings)

    return wrap


def _frozen_head(model: PreTrainedModel) -> PreTrainedModel:
    model.get_output_embeddings().requires_grad_(False)
    return model


WAYS: dict[str, Callable[[PreTrainedModel], torch.nn.Module]] = {
    "full": lambda model: model,
    "frozen_head": _frozen_head,
    "lora": _lora(),
    "lora_with_head": _lora("q_proj", "v_proj", "lm_head"),
}
"""What of a model is trained."""

CASES = [
    pytest.param(way, checkpointing, id=f"{way}-checkpointing" if checkpointing else way)
    for way, checkpointing in [*((way, False) for way in WAYS), ("full", True), ("lora", True)]
]

TRAINED = ["llama", "llama_tied", "gemma2", "qwen3_moe", "mixtral", "gpt_oss"]


@pytest.mark.parametrize(("way", "checkpointing"), CASES)
@pytest.mark.parametrize("name", TRAINED)
def test_packed_equals_padded_however_it_is_trained(
    name: str, way: str, checkpointing: bool, tiny_model, token_groups
) -> None:
    """Adapters, a frozen head and recomputed activations change nothing (padded rows keep theirs)."""
    _assert_equivalent(WAYS[way](tiny_model(ARCHITECTURES[name])), token_groups, checkpointing)


@pytest.mark.parametrize(("way", "checkpointing"), CASES)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("name", TRAINED)
def test_packed_equals_padded_in_bfloat16(
    name: str, way: str, autocast: bool, checkpointing: bool, tiny_model, token_groups
) -> None:
    """Packed and padded rows are at most twice as far apart as padded rows are from float32."""
    config = copy.deepcopy(ARCHITECTURES[name])
    if hasattr(config, "num_experts_per_tok"):
        # Rounding can turn the choice of an expert, after which nothing is close. With all experts chosen
        # there is no choice; the routers' loss is constant then, and is left to float32.
        config.num_experts_per_tok = EXPERTS
    model = WAYS[way](tiny_model(config).to(torch.float32 if autocast else torch.bfloat16))
    exact = _outcome(Policy(copy.deepcopy(model).float(), share_prompts=False), token_groups)
    padded = _outcome(Policy(model, share_prompts=False), token_groups, autocast=autocast)
    packed = _outcome(_packed_policy(model, checkpointing), token_groups, autocast=autocast)
    cost = _distances(padded, exact)
    for weight, distance in _distances(packed, padded).items():
        assert distance <= 2 * cost[weight], weight


def test_packed_equals_padded_on_smollm2(
    smollm2_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The real model, on a real chat, agrees as the tiny ones do."""
    chat = ({"role": "user", "content": "Name three rivers and say where they end."},)
    answers = ("The Nile, the Rhine and the Amazon; they end in seas.", "Rivers end in the sea.", "Thames!")
    responses = tuple(Response(({"role": "assistant", "content": answer},)) for answer in answers)
    groups = tokenize_groups([Group(chat, responses, (Pair(0, 1), Pair(0, 2)))], smollm2_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    _assert_equivalent(model, groups)


@pytest.mark.parametrize("name", CANNOT_SHARE)
def test_architectures_that_cannot_share_fall_back_and_say_so(
    name: str, tiny_model, token_groups, caplog: pytest.LogCaptureFixture
) -> None:
    """State-space and custom-attention models are detected by their result and get padded rows."""
    model = tiny_model(CANNOT_SHARE[name])
    with caplog.at_level(logging.WARNING, logger="preftune"):
        policy = Policy(model)
    assert not policy.shares_prompts
    assert f"{type(model).__name__} cannot share prompts" in caplog.text
    # Each response scored alone, by the model's own forward, is what the fallback must give.
    batch = pack(token_groups)
    group = token_groups[0]
    row = torch.tensor([*group.prompt, *group.responses[1]])[None]
    token_logps = model(row).logits[0].log_softmax(-1)[len(group.prompt) - 1 : -1]
    alone = token_logps.gather(1, torch.tensor(group.responses[1], dtype=torch.int64)[:, None]).sum()
    assert policy(batch).logps[1].item() == pytest.approx(alone.item(), rel=1e-5)


def test_sharing_cannot_be_forced_where_it_is_wrong(tiny_model) -> None:
    """Asking for shared prompts on such a model is an error, not a wrong number."""
    with pytest.raises(ValueError, match="cannot share prompts"):
        Policy(tiny_model(CANNOT_SHARE["mamba"]), share_prompts=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_notices_responses_that_see_each_other(
    dtype: torch.dtype, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that is plainly causal over the row leaks a response into the next, and is refused."""

    def leaking(module, query, key, value, mask, *, spans, scaling=None, **_):
        whole = (Span(0, query.shape[2], 0, 0),)
        return attention.shared_prompt_attention(
            module, query, key, value, mask, spans=whole, scaling=scaling
        )

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.SHARED_PROMPT, leaking)
    assert not Policy(tiny_model(ARCHITECTURES["llama"]).to(dtype)).shares_prompts


def _double(gradient: Tensor) -> Tensor:
    return 2 * gradient


def _fail(gradient: Tensor) -> Tensor:
    raise RuntimeError("no backward kernel")


@pytest.mark.parametrize("hook", [_double, _fail])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_notices_a_broken_backward_pass(
    dtype: torch.dtype, hook: Callable[[Tensor], Tensor], tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention whose forward pass is right and whose gradient is wrong, or fails, is refused."""

    def broken(*args, **named):
        output, weights = attention.shared_prompt_attention(*args, **named)
        if output.requires_grad:
            output.register_hook(hook)
        return output, weights

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.SHARED_PROMPT, broken)
    model = tiny_model(ARCHITECTURES["llama"]).to(dtype)
    assert not Policy(model).shares_prompts
    assert not Policy(WAYS["lora"](model)).shares_prompts


@pytest.mark.parametrize("way", WAYS)
def test_the_probe_leaves_no_trace(way: str, tiny_model) -> None:
    """No weight has a gradient or another requires_grad than before, and no hook stays on the embeddings."""
    model = WAYS[way](tiny_model(ARCHITECTURES["mixtral"]))
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    hooks = dict(model.get_input_embeddings()._forward_hooks)
    with torch.no_grad():
        assert Policy(model, router_loss=True).shares_prompts
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == trained
    assert all(weight.grad is None for weight in model.parameters())
    assert model.get_input_embeddings()._forward_hooks == hooks


@pytest.mark.parametrize("training", [False, True])
def test_a_policy_keeps_the_mode_of_its_model(training: bool, tiny_model) -> None:
    """What is tried at construction leaves a model in the mode it came in."""
    model = tiny_model(ARCHITECTURES["llama"]).train(training)
    assert Policy(model).language_model.training is training


def test_a_model_belongs_to_one_policy_at_a_time(tiny_model) -> None:
    """A second policy would take shared prompts for the model's own attention; after restoring, it may."""
    model = tiny_model(ARCHITECTURES["llama"])
    policy = Policy(model)
    with pytest.raises(ValueError, match=r"restore\(\) first"):
        Policy(model)
    policy.restore()
    assert Policy(model).shares_prompts


def test_router_loss_is_refused_where_there_is_none(tiny_model) -> None:
    """A model without routers cannot be asked for their loss, whether it shares prompts or not."""
    for share_prompts in (None, False):
        with pytest.raises(InputError, match=r"LlamaForCausalLM gives no load-balancing loss"):
            Policy(tiny_model(ARCHITECTURES["llama"]), share_prompts, router_loss=True)


@pytest.mark.parametrize("share_prompts", [True, False])
def test_router_loss_without_a_gradient_is_refused(share_prompts: bool, tiny_model, token_groups) -> None:
    """Reentrant checkpointing hides the routers from autograd; that is an error and not a smaller loss."""
    policy = Policy(tiny_model(ARCHITECTURES["mixtral"]), share_prompts, router_loss=True).train()
    policy.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="use_reentrant=false"):
        policy(pack(token_groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_accepts_the_real_model(smollm2_dir: Path, dtype: torch.dtype) -> None:
    """SmolLM2 shares prompts in either precision."""
    assert Policy(AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype)).shares_prompts


def test_no_response_sees_another(tiny_model, token_groups) -> None:
    """Changing one response's tokens leaves every other response's log-probability as it was, bit for bit."""
    policy = Policy(tiny_model(ARCHITECTURES["llama"]), share_prompts=True)
    group = token_groups[0]
    before = policy(pack([group])).logps
    changed = TokenizedGroup(
        group.prompt, (*group.responses[:2], group.responses[2][::-1].copy()), group.pairs
    )
    after = policy(pack([changed])).logps
    assert torch.equal(before[:2], after[:2])
    assert before[2] != after[2]


NOISE = {
    "routers": transformers.MixtralConfig(**GROUPED, **MIXTURE, router_jitter_noise=0.5),
    "modules": transformers.GPT2Config(
        n_embd=48, n_layer=2, n_head=4, vocab_size=200, n_positions=128, resid_pdrop=0.5, attn_pdrop=0.5
    ),
    "attention": transformers.LlamaConfig(**GROUPED, attention_dropout=0.5),
    "functional": transformers.OPTConfig(
        hidden_size=48,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=200,
        word_embed_proj_dim=48,
        dropout=0.5,
        layerdrop=0.5,
    ),
}


@pytest.mark.parametrize("kind", NOISE)
def test_noise_is_off_while_training(kind: str, tiny_model, token_groups) -> None:
    """With any kind of dropout, or noise at the routers, training mode gives the same numbers twice."""
    config = NOISE[kind]
    policy = Policy(tiny_model(config)).train()
    batch = pack(token_groups)
    assert torch.equal(policy(batch).logps, policy(batch).logps)
    rows = Policy(tiny_model(config), share_prompts=False).train()
    assert torch.equal(rows(batch).logps, rows(batch).logps)
