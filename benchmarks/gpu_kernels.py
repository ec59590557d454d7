"""Whether a device computes what padded rows compute: `python benchmarks/gpu_kernels.py --output FILE`.

Tiny random models of many architectures, in float32 and bfloat16. For each way to share prompts that the
device has, log-probabilities and gradients are compared with those of the model's own padded rows; then rows
of many lengths are read, and compilations counted.
"""

import copy
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from gpu_output import Row, options, write
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import pack
from preftune.models import Policy, ValueHead
from preftune.models.attention import implementations

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = COMMON | {"head_dim": 16, "sliding_window": 40}
# Every expert is chosen: rounding turns a choice, after which nothing is close.
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 4}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**COMMON),
    "qwen2": transformers.Qwen2Config(**COMMON),
    "qwen3": transformers.Qwen3Config(**COMMON, head_dim=16),
    "gemma2": transformers.Gemma2Config(
        **WINDOWED, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=16
    ),
    "gemma3": transformers.Gemma3TextConfig(**WINDOWED),
    "mistral": transformers.MistralConfig(**WINDOWED),
    "gpt_oss": transformers.GptOssConfig(**WINDOWED, **MIXTURE),
    "mixtral": transformers.MixtralConfig(**COMMON, **MIXTURE),
}
TOLERANCES = {torch.float32: (1e-3, 1e-2), torch.bfloat16: (3e-2, 2e-1)}
"""Largest relative difference of log-probabilities, and of the whole gradient."""
MOST_COMPILATIONS = 8
"""For rows of any length: passes with and without gradients, a first length and a symbol for all others."""


def groups(seed: int, longest: int = 300) -> list[TokenizedGroup]:
    """Three prompts with two or three responses, of random lengths."""
    random = np.random.default_rng(seed)

    def tokens(most: int) -> np.ndarray:
        return random.integers(3, 256, size=int(random.integers(2, most)), dtype=np.int32)

    return [
        TokenizedGroup(tokens(longest), tuple(tokens(longest) for _ in range(count)), (Pair(0, 1),))
        for count in (2, 3, 2)
    ]


def model_of(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Random weights, wide enough apart that no token is a coin toss."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.1)
    moved: nn.Module = model.to(device, dtype)
    return moved


def outcome(policy: Policy, batch: Any, autocast: bool) -> dict[str, Tensor]:
    """Log-probabilities, values where there is a head, and the gradient of all weights in one."""
    policy.train().zero_grad()
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=autocast):
        responses = policy(batch)
    assert responses.logps is not None
    weights = torch.linspace(0.5, 1.5, len(responses.logps), device=responses.logps.device)
    total = (responses.logps * weights).sum()
    found = {"logps": responses.logps.detach()}
    if responses.values is not None:
        total = total + responses.values.sum()
        found["values"] = responses.values.detach()
    total.backward()
    gradients = [weight.grad.float().flatten() for weight in policy.parameters() if weight.grad is not None]
    return found | {"gradient": torch.cat(gradients)}


def with_adapter(model: nn.Module) -> nn.Module:
    """Adapters that are not zero."""
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    adapted: nn.Module = get_peft_model(model, adapter)
    return adapted


def value_head_of(device: torch.device) -> ValueHead:
    """A head that says something: a new one says 0."""
    head = ValueHead(64, 16, seed=0)
    for weight in head.parameters():
        nn.init.normal_(weight, std=0.1)
    return head.to(device)


def compare(
    name: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    adapt: Callable[[nn.Module], nn.Module] = lambda model: model,
    value_head: bool = False,
    checkpointing: bool = False,
    autocast: bool = False,
) -> Iterator[Row]:
    """Every way to share prompts on this device, against padded rows."""
    batch = pack(groups(0)).to(device)
    label = {"model": name, "dtype": str(dtype).removeprefix("torch."), "autocast": autocast}
    label |= {"adapter": adapt is with_adapter, "value_head": value_head, "checkpointing": checkpointing}

    def policy(share: bool) -> Policy:
        model = adapt(model_of(config, dtype, device))
        head = value_head_of(device) if value_head else None
        return Policy(model, share_prompts=share or False, value_head=head)

    exact, near = TOLERANCES[torch.bfloat16 if autocast else dtype]
    padded = outcome(policy(share=False), batch, autocast)
    chosen = Policy(adapt(model_of(config, dtype, device)))
    for attention in implementations(device):
        row = {**label, "attention": attention, "chosen": attention == chosen._attention}
        try:
            shared = policy(share=True)
            if checkpointing:
                shared.activation_checkpointing_enable()
            shared.causal_lm().set_attn_implementation(attention)
            found = outcome(shared, batch, autocast)
            differences = {
                key: float((found[key] - value).norm() / value.norm()) for key, value in padded.items()
            }
            holds = all(
                difference < (near if key == "gradient" else exact) for key, difference in differences.items()
            )
            yield row | {key: float(f"{value:.3g}") for key, value in differences.items()} | {"holds": holds}
        except Exception as error:  # the others are still worth having
            traceback.print_exc()
            yield row | {"outcome": f"failed: {type(error).__name__}: {error}"[:300]}


def compilations(device: torch.device) -> Row:
    """How many graphs a model's kernels need for twelve rows of other lengths."""
    from torch._dynamo.utils import counters

    policy = Policy(model_of(ARCHITECTURES["gemma2"], torch.bfloat16, device))
    before = counters["stats"]["unique_graphs"]
    for seed in range(1, 13):
        outcome(policy, pack(groups(seed, longest=40 * seed)).to(device), autocast=False)
    count = counters["stats"]["unique_graphs"] - before
    return {
        "model": "gemma2, rows of 12 lengths",
        "compilations": count,
        "most": MOST_COMPILATIONS,
        "holds": count <= MOST_COMPILATIONS,
    }


def all_rows(device: torch.device, small: bool) -> Iterator[Row]:
    """The comparisons in order of value."""
    names = ["llama", "gemma2"] if small else list(ARCHITECTURES)
    for dtype in (torch.float32, torch.bfloat16):
        for name in names:
            yield from compare(name, ARCHITECTURES[name], dtype, device)
    yield compilations(device)
    llama = ARCHITECTURES["llama"]
    yield from compare("llama", llama, torch.float32, device, autocast=True)
    yield from compare("llama", llama, torch.float32, device, adapt=with_adapter, checkpointing=True)
    yield from compare("llama", llama, torch.float32, device, value_head=True)
    yield from compare("llama", llama, torch.bfloat16, device, adapt=with_adapter, value_head=True)


def main() -> None:
    """Compare, and write after every row."""
    given = options(__doc__)
    torch.backends.cuda.matmul.allow_tf32 = False
    write(given.output, all_rows(given.device, given.small))


if __name__ == "__main__":
    main()
