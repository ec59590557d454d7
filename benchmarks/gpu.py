"""Speed and memory of a DPO step on one GPU, beside TRL's: `python benchmarks/gpu.py`.

Forward and backward pass on the shapes of Qwen2.5 with random weights made on the device, several batches of
random tokens for each number. Nothing is downloaded. `--small` is the same on tiny models, also on a CPU.

A rate counts the tokens of the data, each prompt once per response, whatever a contestant computes or pads:
for the same pairs it is the same number for all. "1 response per prompt" are the pairs of "2 responses per
prompt", packed with a copy of the prompt in front of every response: preftune where nothing is shared. TRL
copies prompts in any case.
"""

import argparse
import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_contestants import (
    CONTESTANTS,
    Groups,
    Range,
    Setting,
    Size,
    language_model,
    qwen,
    tokenizer,
    with_references,
)
from gpu_output import environment
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2Config

from preftune.data import Pair, TokenizedGroup
from preftune.models.head import response_token_logps
from preftune.sampling.sampler import sample_responses
from preftune.storage.files import write_json

RESPONSES_PER_PROMPT = (1, 2, 8)
SHORT = ("preftune", "TRL defaults, sdpa", "TRL fastest, sdpa")
"""Contestants of `--short`."""

Row = dict[str, Any]


def sizes(memory: int) -> list[Size]:
    """Qwen2.5; 7B with adapters where weights, gradients, Adam's moments and a reference would not fit."""
    seven = 7.6e9 * torch.bfloat16.itemsize
    return [
        Size("Qwen2.5-0.5B", qwen(24, 896, 4864, 14, 2, 151936, True), pairs=8),
        Size("Qwen2.5-1.5B", qwen(28, 1536, 8960, 12, 2, 151936, True), pairs=8),
        Size(
            "Qwen2.5-7B", qwen(28, 3584, 18944, 28, 4, 152064, False), pairs=4, lora=5 * seven > 0.8 * memory
        ),
    ]


def small_sizes() -> list[Size]:
    """Two layers of width 64, with and without adapters."""
    config = qwen(2, 64, 128, 4, 2, 256, True)
    return [Size("small", config, pairs=4), Size("small", config, pairs=4, lora=True)]


def draw(size: Size, setting: Setting, responses: int, seed: int) -> Groups:
    """A batch of random groups, `responses` each, with the policy's pairs one behind the other."""
    random = np.random.default_rng(seed)

    def tokens(bounds: Range) -> np.ndarray:
        return random.integers(4, size.config.vocab_size, size=random.integers(*bounds), dtype=np.int32)

    pairs = tuple(Pair(first, first + 1) for first in range(0, responses, 2))
    return [
        TokenizedGroup(
            tokens(setting.prompt), tuple(tokens(setting.response) for _ in range(responses)), pairs
        )
        for _ in range(size.pairs // len(pairs))
    ]


def data_tokens(groups: Groups) -> int:
    """Tokens of prompts and responses, each prompt once per response."""
    return sum(len(group.prompt) + len(response) for group in groups for response in group.responses)


def liger(config: Qwen2Config, head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, hidden, targets)
    return loss


def cut_cross_entropy(config: Qwen2Config, head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Apple's cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(hidden, head.weight, targets, reduction="sum")
    return loss


HEADS: dict[str, Callable[[Qwen2Config, nn.Linear, Tensor, Tensor], Tensor]] = {
    "preftune": lambda config, head, hidden, targets: (
        -response_token_logps(head, config, hidden, targets).sum()
    ),
    "all logits at once": lambda config, head, hidden, targets: functional.cross_entropy(
        head(hidden).float(), targets, reduction="sum"
    ),
    "Liger": liger,
    "cut-cross-entropy": cut_cross_entropy,
}


def attempt(action: Callable[..., Any], *given: Any) -> tuple[Any, str]:
    """The action's result, and how it went: what one contestant cannot do does not end the others."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return action(*given), "measured"
    except torch.OutOfMemoryError:
        return None, "out of memory"
    except (ImportError, OSError) as error:  # not installed, or not to be had from the hub
        return None, f"skipped: {error}"
    except Exception as error:  # the rest is still worth having; the exit status tells
        traceback.print_exc()
        return None, f"failed: {type(error).__name__}: {error}"


def measure(step: Callable[[Any], float], inputs: list[Any], tokens: list[int]) -> Row:
    """Rates over the inputs, after one round of them to warm up; reading a loss waits for the device."""
    for item in inputs:
        step(item)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    losses, rates = [], []
    for item, count in zip(inputs, tokens, strict=True):
        began = time.perf_counter()
        losses.append(step(item))
        rates.append(count / (time.perf_counter() - began))
    return {
        "tokens_per_second": round(statistics.median(rates)),
        "slowest": round(min(rates)),
        "fastest": round(max(rates)),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) or None,
        "loss": statistics.mean(losses),
    }


def step_rows(size: Size, setting: Setting, data: dict[int, list[Groups]], name: str) -> Iterator[Row]:
    """One contestant on all workloads."""
    contestant, outcome = attempt(CONTESTANTS[name], size, setting)
    for responses, batches in data.items():
        figures = None
        if contestant is not None:
            inputs = [contestant.collate(groups, responses > 1) for groups in batches]
            figures, outcome = attempt(
                measure, contestant.step, inputs, [data_tokens(each) for each in batches]
            )
            if figures:
                # Of the median batch; the same products for everybody, whatever a contestant computes.
                needed = statistics.median(needed_flops(size, each) / data_tokens(each) for each in batches)
                figures["needed_tflops"] = round(needed * figures["tokens_per_second"] / 1e12, 1)
        yield {
            "responses_per_prompt": responses,
            "contestant": name,
            "attention": contestant and contestant.attention,
            "outcome": outcome,
            **(figures or {}),
        }


def head_rows(size: Size, setting: Setting) -> Iterator[Row]:
    """The head alone: from hidden states to the sum of log-probabilities and back."""
    torch.manual_seed(0)
    config, count, device, dtype = size.config, setting.head_tokens, setting.device, setting.dtype
    head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)
    hidden = torch.randn(count, config.hidden_size, dtype=dtype, requires_grad=True, device=device)
    targets = torch.randint(config.vocab_size, (count,), device=device)

    def step(score: Callable[..., Tensor]) -> float:
        head.weight.grad = hidden.grad = None
        loss = score(config, head, hidden, targets)
        torch.autograd.backward(loss)
        return float(loss.detach())

    for name, score in HEADS.items():
        figures, outcome = attempt(measure, step, [score] * setting.batches, [count] * setting.batches)
        yield {"head_tokens": count, "contestant": name, "outcome": outcome, **(figures or {})}


def rows_of(size: Size, setting: Setting, contestants: Iterable[str] = CONTESTANTS) -> Iterator[Row]:
    """All that is measured on one size."""
    labels = {"model": size.name, "trained": "adapters" if size.lora else "all"}
    data = {}
    for responses in RESPONSES_PER_PROMPT:
        batches = [draw(size, setting, max(2, responses), seed) for seed in range(setting.batches)]
        data[responses] = with_references(size, setting, batches)
    for name in contestants:
        yield from ({**labels, **row} for row in step_rows(size, setting, data, name))
    yield from ({**labels, **row} for row in head_rows(size, setting))
    row, outcome = attempt(sampling_row, size, setting)
    yield {**labels, **(row or {"contestant": "preftune, sampling", "outcome": outcome})}


def matmul_rate(setting: Setting) -> float:
    """Products of two large square matrices in 16 bits: the card's rate in TFLOP/s, 2 n^3 for each."""
    size = 8192 if setting.device == "cuda" else 256
    left, right = (torch.randn(size, size, device=setting.device, dtype=setting.dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        began = time.perf_counter()
        float((left @ right)[0, 0])  # reading a number waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[3:]) / 1e12


def needed_flops(size: Size, groups: Groups) -> float:
    """Floating-point operations that a step needs: 6 for each weight and token, each prompt read once."""
    config = size.config
    kv = config.num_key_value_heads / config.num_attention_heads
    width, inner = config.hidden_size, config.intermediate_size
    layer = width * width * (2 + 2 * kv) + 3 * width * inner
    tokens = sum(group.packed_tokens for group in groups)
    responses = sum(len(response) for group in groups for response in group.responses)
    return float(6 * (config.num_hidden_layers * layer * tokens + width * config.vocab_size * responses))


def sampling_row(size: Size, setting: Setting) -> Row:
    """Tokens a second of eight responses to each of sixteen prompts."""
    model = language_model(size, setting, seed=0).eval()
    longest = 128 if setting.device == "cuda" else 8
    random = np.random.default_rng(0)
    prompts = [" ".join(random.choice(["a", "b", "c"], size=24)) for _ in range(16)]
    options: dict[str, Any] = {"n": 8, "max_new_tokens": longest, "rows": 128}
    sample_responses(model, tokenizer(), prompts[:2], **options)
    began = time.perf_counter()
    sampled = sample_responses(model, tokenizer(), prompts, **options)
    seconds = time.perf_counter() - began
    tokens = sum(len(response.tokens) for group in sampled for response in group)
    rate = round(tokens / seconds)
    return {"contestant": "preftune, sampling", "outcome": "measured", "tokens_per_second": rate}


def optional_packages() -> Row:
    """Versions of what is measured where it is installed."""
    names = filter(find_spec, ("flash_attn", "kernels", "liger_kernel", "cut_cross_entropy"))
    return {"optional": {name: version(name) for name in names}}


def print_table(rows: list[Row]) -> None:
    """Rates and peaks, model by model."""
    table = Table("model", "trained", "responses", "contestant", "tokens/s", "peak GB", "loss")
    for row in rows:
        figures = [row["outcome"][:24]]
        if "tokens_per_second" in row:
            loss = f"{row['loss']:.4f}" if "loss" in row else ""
            figures = [f"{row['tokens_per_second']:,}", str(row.get("peak_gb", "")), loss]
        workload = str(row.get("responses_per_prompt", "head alone" if "head_tokens" in row else ""))
        table.add_row(row["model"], row["trained"], workload, row["contestant"], *figures)
    Console().print(table)


def all_rows(small: bool, short: bool) -> Iterator[Row]:
    """The card's own rate, then size by size."""
    setting = Setting("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    contestants = list(CONTESTANTS)
    if small:
        setting = replace(
            setting, dtype=torch.float32, prompt=(8, 24), response=(4, 16), batches=2, head_tokens=32
        )
        measured = small_sizes()
    else:
        measured = sizes(torch.cuda.get_device_properties(0).total_memory)
    if short:
        measured, setting = measured[:1], replace(setting, batches=2 if small else 3)
        contestants = [name for name in SHORT if name in CONTESTANTS]
    yield {"contestant": "matrix products", "outcome": "measured", "tflops": round(matmul_rate(setting), 2)}
    for size in measured:
        yield from rows_of(size, setting, contestants)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny models in float32, on a CPU too")
    parser.add_argument("--short", action="store_true", help="the smallest size, and TRL on SDPA alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu-speed.json"))
    options = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several the trainers would replicate the model
    if not torch.cuda.is_available() and not options.small:
        parser.error("no CUDA device here; --small tries the script on tiny models on the CPU")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content: Row = {"environment": environment() | optional_packages(), "rows": []}
    for row in all_rows(options.small, options.short):
        content["rows"].append(row)
        # With every row: a run that is stopped keeps what it had.
        write_json(options.output, content)
    print_table([row for row in content["rows"] if "model" in row])
    sys.exit(any(row["outcome"].startswith("failed") for row in content["rows"]))


if __name__ == "__main__":
    main()
