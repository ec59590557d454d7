"""The least time a step could take on this machine, and where the rest of it goes."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from preftune.data import TokenizedGroup
from preftune.data.packing import pack
from preftune.models import load_model_config
from preftune.training.configuration import LoraSection

REPEATS = 3


@dataclass(frozen=True)
class Shapes:
    """A model's matrices, (outputs, inputs) of each, and the size of its attention."""

    body: tuple[tuple[int, int], ...]
    head: tuple[int, int]
    layers: int
    attention_width: int

    @classmethod
    def of(cls, model: str) -> "Shapes":
        """Read from the configuration; no weights are loaded."""
        config = load_model_config(model)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
        head = network.get_output_embeddings()
        linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            tuple((module.out_features, module.in_features) for module in linear),
            tuple(head.weight.shape),
            config.num_hidden_layers,
            width * config.num_attention_heads,
        )


def multiply_adds(shapes: Shapes, groups: Sequence[TokenizedGroup], lora: bool, trains: bool) -> int:
    """Multiply-adds that no implementation can leave out: every token once, visible keys only.

    A trained matrix is multiplied three times (forward, and for the gradients of its inputs and of its
    weights), a frozen one twice, a reference pass's once.
    """
    batch = pack(groups)
    tokens, responses = len(batch.input_ids), len(batch.targets)
    body, head = sum(a * b for a, b in shapes.body), shapes.head[0] * shapes.head[1]
    visible = 0
    for span in batch.spans:
        own = span.stop - span.start
        visible += own * (own + 1) // 2 + own * (span.prefix_stop - span.prefix_start)
    attention = visible * shapes.layers * shapes.attention_width
    if not trains:
        return tokens * body + responses * head + 2 * attention
    passes = 2 if lora else 3
    adapters = (LoraSection().rank or 0) * sum(a + b for a, b in shapes.body) if lora else 0
    return passes * (tokens * body + responses * head) + 3 * tokens * adapters + 6 * attention


def matmul_rate(shapes: Shapes, tokens: int, responses: int) -> float:
    """Multiply-adds per second of the model's own products in bfloat16, each at its best of several."""
    counts = Counter((tokens, *shape) for shape in shapes.body) + Counter([(responses, *shapes.head)])
    total = sum(count * rows * outputs * inputs for (rows, outputs, inputs), count in counts.items())
    return total / sum(count * _best_seconds(*shape) for shape, count in counts.items())


def _best_seconds(rows: int, outputs: int, inputs: int) -> float:
    left = torch.randn(rows, inputs, dtype=torch.bfloat16)
    right = torch.randn(outputs, inputs, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - began)
    return best


CLASSES: dict[str, tuple[str, ...]] = {
    "clipping and optimizer": ("_foreach_", "_fused_adam", "Optimizer"),
    # Batched products and softmax stand nowhere else in the model.
    "attention": ("BlockedAttention", "scaled_dot_product", "flash_attention", "aten::bmm", "aten::_softmax"),
    "matrix products": ("aten::mm", "addmm", "mkldnn", "aten::linear", "aten::matmul"),
    "casts, copies and indexing": (
        *("copy", "aten::to", "aten::cat", "clone", "contiguous", "index", "gather", "scatter", "fill"),
        *("zero", "empty", "resize", "slice", "narrow", "stride", "transpose", "view", "reshape", "aten::t"),
        *("expand", "embedding", "split", "select", "detach", "masked", "where"),
    ),
    "elementwise and norms": (
        *("mul", "add", "sub", "div", "pow", "sqrt", "mean", "sum", "silu", "neg", "exp", "log", "max"),
        *("sigmoid", "softplus", "segment_reduce", "norm", "cos", "sin", "abs", "softmax", "reciprocal"),
    ),
}
"""Fragments of operators' names; the first class that has one of them gets the operator."""


def profile(step: Callable[[], Any]) -> list[dict[str, Any]]:
    """Processor time of one step by class of operator, and its share."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step()
    seconds = dict.fromkeys((*CLASSES, "other"), 0.0)
    for event in recorded.key_averages():
        seconds[operator_class(event.key)] += event.self_cpu_time_total / 1e6
    total = sum(seconds.values())
    return [
        {"class": name, "seconds": round(value, 4), "share": round(value / total, 4)}
        for name, value in seconds.items()
    ]


def operator_class(name: str) -> str:
    """Which class of CLASSES an operator counts to."""
    return next((kind for kind, parts in CLASSES.items() if any(part in name for part in parts)), "other")
