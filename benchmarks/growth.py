"""How preftune's forward and backward pass grows with what is put in: `make bench-growth`.

Random models of SmolLM2's shape with few layers; one factor changes at a time, over eightfold, while the
rest stays as in `Point`. Writes the fitted exponents into `benchmarks/results/cpu.json`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tables import write_page
from transformers import LlamaConfig, LlamaForCausalLM
from worker import forget_peak, memory_mb, release_memory

from preftune import objectives
from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.models import Policy
from preftune.models.allocator import keep_freed_memory
from preftune.objectives import count_units
from preftune.storage.files import write_json

REPEATS = 3
HEAD_WIDTH = 64
FEWEST_TOKEN = 3
"""Token ids below are special ones."""


@dataclass(frozen=True)
class Point:
    """A batch and a model; the defaults are what does not vary."""

    groups: int = 4
    prompt: int = 128
    response: int = 64
    responses: int = 2
    vocabulary: int = 49_152
    width: int = 576
    layers: int = 6

    def batch(self) -> PackedBatch:
        """Random tokens; every response is in one pair with its neighbour."""
        random = np.random.default_rng(0)

        def tokens(count: int) -> np.ndarray:
            return random.integers(FEWEST_TOKEN, self.vocabulary, size=count, dtype=np.int32)

        pairs = tuple(Pair(index, index + 1) for index in range(0, self.responses, 2))
        return pack(
            [
                TokenizedGroup(
                    tokens(self.prompt),
                    tuple(tokens(self.response) for _ in range(self.responses)),
                    pairs,
                    {"reference_logps": np.full(self.responses, -self.response * 10, dtype=np.float32)},
                )
                for _ in range(self.groups)
            ]
        )

    def policy(self) -> Policy:
        """A model with random weights, three query heads to a key head as in SmolLM2."""
        torch.manual_seed(0)
        heads = self.width // HEAD_WIDTH
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
        return Policy(LlamaForCausalLM(config))


BASE = Point()


@dataclass(frozen=True)
class Factor:
    """One thing that grows, and the points at which it is measured."""

    name: str
    values: tuple[float, ...]
    points: tuple[Point, ...]


def factors() -> list[Factor]:
    """All factors; each spans at least eightfold in four values."""
    groups, lengths, responses = (2, 4, 8, 16), (256, 512, 1024, 2048), (2, 4, 8, 16)
    shares, vocabularies, widths = (1, 2, 4, 8), (19_008, 32_000, 49_152, 152_064), (192, 384, 768, 1536)
    return [
        Factor(
            "tokens, by more groups",
            tuple(count * (BASE.prompt + BASE.responses * BASE.response) for count in groups),
            tuple(replace(BASE, groups=count) for count in groups),
        ),
        Factor(
            "tokens, by one longer group",
            tuple(2 * length for length in lengths),
            tuple(replace(BASE, groups=1, prompt=length, response=length // 2) for length in lengths),
        ),
        Factor(
            "prompt's share of 1280 tokens",
            tuple(share / 10 for share in shares),
            tuple(replace(BASE, groups=2, prompt=64 * share, response=32 * (10 - share)) for share in shares),
        ),
        Factor(
            "responses per prompt",
            responses,
            tuple(replace(BASE, groups=1, prompt=512, responses=count) for count in responses),
        ),
        Factor("vocabulary", vocabularies, tuple(replace(BASE, vocabulary=size) for size in vocabularies)),
        Factor("width", widths, tuple(replace(BASE, width=width) for width in widths)),
    ]


def measure(point: Point) -> tuple[float, float | None]:
    """Median seconds of a pass, and a pass's most memory above the idle level, in MB.

    Gradients stay allocated between passes, so that the idle level holds weights and gradients and what is
    above it is what a pass needs.
    """
    policy, batch = point.policy(), point.batch()
    _forward_backward(policy, batch)
    release_memory()
    forget_peak()
    idle = memory_mb("VmRSS")
    _forward_backward(policy, batch)
    peak = memory_mb("VmHWM")
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        _forward_backward(policy, batch)
        seconds.append(time.perf_counter() - began)
    return median(seconds), peak - idle if peak and idle else None


def _forward_backward(policy: Policy, batch: PackedBatch) -> None:
    objective = objectives.build({"method": "dpo"})
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(policy(batch)).total(count_units(batch.lengths, batch.chosen))
    torch.autograd.backward(loss)


def fit_exponent(values: Sequence[float], measured: Sequence[float | None]) -> dict[str, float] | None:
    """Slope of log measured over log value by least squares, with its standard error."""
    if None in measured:
        return None
    x, y = np.log(np.array(values, dtype=float)), np.log(np.array(measured, dtype=float))
    deviation = x - x.mean()
    slope = float(deviation @ y / (deviation @ deviation))
    residuals = y - y.mean() - slope * deviation
    error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / (deviation @ deviation)))
    return {"exponent": round(slope, 4), "standard_error": round(error, 4)}


def measure_factor(factor: Factor) -> dict[str, Any]:
    """A factor's entry of the results."""
    seconds, memory = zip(*map(measure, factor.points), strict=True)
    return {
        "name": factor.name,
        "values": list(factor.values),
        "tokens": [len(point.batch().input_ids) for point in factor.points],
        "seconds": [round(value, 4) for value in seconds],
        "memory_mb": [None if value is None else round(value, 1) for value in memory],
        "seconds_exponent": fit_exponent(factor.values, seconds),
        "memory_exponent": fit_exponent(factor.values, memory),
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/cpu.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--factor", action="append", help="the beginning of one's name; may be repeated")
    given = parser.parse_args()
    if not given.results.exists():
        parser.error(f"{given.results} does not exist; run benchmarks/cpu.py first")
    keep_freed_memory()
    console, table = Console(file=sys.stdout), Table("what grows", "seconds", "MB", "exponents (seconds, MB)")
    entries = []
    load = os.getloadavg()[0]
    content = json.loads(given.results.read_text(encoding="utf-8"))
    stored = {entry["name"]: entry for entry in content["growth"].get("factors", [])}
    for factor in factors():
        wanted = given.factor is None or factor.name.startswith(tuple(given.factor))
        if not wanted and factor.name not in stored:
            continue
        entry = measure_factor(factor) if wanted else stored[factor.name]
        entries.append(entry)
        fits = (entry["seconds_exponent"], entry["memory_exponent"])
        shown = "; ".join(f"{f['exponent']:.2f} ± {f['standard_error']:.2f}" if f else "none" for f in fits)
        table.add_row(factor.name, str(entry["seconds"]), str(entry["memory_mb"]), shown)
    console.print(table)
    content["growth"] = {
        "threads": torch.get_num_threads(),
        "load_at_start": round(load, 2),
        "layers": BASE.layers,
        "factors": entries,
    }
    write_json(given.results, content)
    write_page(given.page, content)


if __name__ == "__main__":
    main()
