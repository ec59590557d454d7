"""Shared prompts change the cost of a batch and nothing else."""

import logging
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from preftune.data import Group, Pair, Response, TokenizedGroup, tokenize_groups
from preftune.data.packing import Span, pack
from preftune.policy import Policy, attention

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

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama_tied": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**GROUPED),
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
    "gpt_oss": transformers.GptOssConfig(**WINDOWED, num_local_experts=4, num_experts_per_tok=2),
    "granite": transformers.GraniteConfig(**GROUPED, logits_scaling=3.0),
    "cohere": transformers.CohereConfig(**GROUPED, logit_scale=0.5),
}

CANNOT_SHARE: dict[str, PretrainedConfig] = {
    "mamba": transformers.MambaConfig(hidden_size=48, num_hidden_layers=2, vocab_size=200),
    "bloom": transformers.BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=200),
    # It builds its window into a mask, and the window is longer than what is tried at start.
    "phimoe": transformers.PhimoeConfig(
        **GROUPED, sliding_window=64, num_local_experts=4, num_experts_per_tok=2
    ),
}


def _token_logps_and_gradients(
    policy: Policy, groups: list[TokenizedGroup]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = pack(groups)
    policy.zero_grad()
    logps = policy.response_token_logps(batch)
    # Unequal weights, so that swapped tokens would show.
    (logps * torch.linspace(0.5, 1.5, len(logps))).sum().backward()
    return logps.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def _assert_equivalent(model: torch.nn.Module, groups: list[TokenizedGroup]) -> None:
    shared = Policy(model, share_prompts=True)
    logps, gradients = _token_logps_and_gradients(shared, groups)
    shared.restore_attention()
    expected_logps, expected_gradients = _token_logps_and_gradients(
        Policy(model, share_prompts=False), groups
    )
    assert gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(logps, expected_logps, rtol=1e-5, atol=1e-5)
    scale = torch.stack([gradient.norm() for gradient in expected_gradients.values()]).max()
    for name, expected in expected_gradients.items():
        # Some gradients are zero but for rounding (a key's bias moves no softmax), hence the floor.
        difference = (gradients[name] - expected).norm() / expected.norm().clamp(min=1e-4 * scale)
        assert difference < 1e-4, name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_padded(name: str, tiny_model, token_groups) -> None:
    """Token log-probabilities agree to 1e-5, gradients to 1e-4 relative, with windows, caps and sinks."""
    _assert_equivalent(tiny_model(ARCHITECTURES[name]), token_groups)


def test_packed_equals_padded_under_gradient_checkpointing(tiny_model, token_groups) -> None:
    """Recomputed layers see the same spans as in the first forward pass."""
    model = tiny_model(ARCHITECTURES["llama"])
    policy = Policy(model, share_prompts=True)
    plain = _token_logps_and_gradients(policy, token_groups)[1]
    policy.gradient_checkpointing_enable()
    policy.train()
    recomputed = _token_logps_and_gradients(policy, token_groups)[1]
    assert all(torch.allclose(recomputed[name], gradient, rtol=1e-5) for name, gradient in plain.items())


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


DROPOUT = {
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


@pytest.mark.parametrize("kind", DROPOUT)
def test_dropout_is_off_while_training(kind: str, tiny_model, token_groups) -> None:
    """A model configured with any kind of dropout gives the same log-probabilities twice in training mode."""
    config = DROPOUT[kind]
    policy = Policy(tiny_model(config)).train()
    batch = pack(token_groups)
    assert torch.equal(policy(batch).logps, policy(batch).logps)
    rows = Policy(tiny_model(config), share_prompts=False).train()
    assert torch.equal(rows(batch).logps, rows(batch).logps)
