"""How long a preference step takes on the processor, and how much memory, beside TRL's: `make bench`.

All contestants of a workload run in turn, round after round, in processes of their own. The figures that
matter are ratios within a round. Writes `benchmarks/results/cpu.json` and the tables of
`docs/performance.md`, and exits non-zero where the losses differ.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from math import isfinite
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from floor import Shapes, matmul_rate, multiply_adds
from processes import Worker, WorkerError
from rich.console import Console
from tables import print_workload, write_page
from workloads import WORKLOADS, Workload, count_tokens, draw_groups, write_groups

from preftune.data import TokenizedGroup
from preftune.demo.model import demo_model_dir
from preftune.models import Policy, ReferenceCache, load_language_model
from preftune.storage.files import write_json

LOSS_TOLERANCE = 1e-3
"""Of the loss in float32."""
ROUNDED_LOSS_TOLERANCE = 0.1
"""Of a step's loss in bfloat16, in which TRL's differ among themselves by 0.02 and more."""
ROUNDED_LOGP_TOLERANCE = 5e-3
"""Of a mean log p per token in bfloat16, whose own rounding error is 1e-3 over two thousand tokens."""
CANDIDATE_ROUNDS = 1
"""Rounds in which every batch size of TRL is measured; then the fastest goes on alone."""
TRL_BATCH_SIZES = (4, 2, 1)
TRL_REFERENCE_BATCH_SIZE = 8
"""The batch size at which TRL precomputes unless told otherwise."""

console = Console(file=sys.stderr)


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    model: str
    rounds: int
    workloads: list[str]
    contestants: list[str]
    shrink: int
    results: Path
    page: Path


@dataclass
class Entry:
    """A contestant at one micro-batch size, and what its steps measured, by round."""

    label: str
    worker: Worker
    at_a_time: int
    exact_loss: float | None
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def measured(self) -> list[dict[str, Any]]:
        """All rounds it took part in."""
        return list(self.steps.values())

    @property
    def seconds(self) -> float:
        """Median of a whole step."""
        return float(median(step["seconds"] for step in self.measured))

    def times(self, other: "Entry") -> float:
        """How many times slower than the other, by the median over the rounds that both ran."""
        both = self.steps.keys() & other.steps.keys()
        return float(median(self.steps[turn]["seconds"] / other.steps[turn]["seconds"] for turn in both))

    def peak_memory(self) -> float | None:
        """The most that any step held, in MB."""
        peaks = [step["peak_memory_mb"] for step in self.measured]
        return None if None in peaks else max(peaks)

    def summary(self, tokens: int) -> dict[str, Any]:
        """Figures for the results."""
        seconds = [step["seconds"] for step in self.measured]
        return {
            "at_a_time": self.at_a_time,
            "rounds": len(seconds),
            "seconds": round(self.seconds, 4),
            "fastest": round(min(seconds), 4),
            "slowest": round(max(seconds), 4),
            "forward_backward_seconds": round(
                median(step["forward_backward_seconds"] for step in self.measured), 4
            ),
            "tokens_per_second": round(tokens / self.seconds, 1),
            "peak_memory_mb": self.peak_memory(),
            "idle_memory_mb": self.measured[-1]["idle_memory_mb"],
            "loss": self.measured[0]["loss"],
            "exact_loss": self.exact_loss,
        }


def measure(workload: Workload, options: Options) -> dict[str, Any]:
    """All rounds of a workload; its row of the results.

    Raises:
        WorkerError: a worker died.
    """
    groups = draw_groups(workload, options.model)
    if workload.task == "step":
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as aside:
            groups = aside.submit(with_reference, options.model, groups).result()
    shapes, tokens = Shapes.of(options.model), count_tokens(groups)
    entries: dict[str, Entry] = {}
    rates = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        file = Path(scratch) / "groups.json"
        write_groups(file, groups)
        start = partial(_start, workload, options, file)
        ours = start([name for name in ("preftune",) if name in options.contestants], running)
        for phase, names in enumerate(_phases(workload, options)):
            with ExitStack() as of_phase:
                theirs = start(names, of_phase)
                entries |= ours | theirs
                for turn in range(options.rounds):
                    _round(ours | theirs, phase * options.rounds + turn, turn < CANDIDATE_ROUNDS)
                    rates.append(matmul_rate(shapes, tokens["packed"], tokens["responses"]))
        profile = None
        if workload.task == "step" and ours:
            profile = ours["preftune"].worker.do("profile", ours["preftune"].at_a_time)["profile"]
    row = {
        "workload": workload.name,
        "tokens": tokens,
        "pairs": sum(len(group.pairs) for group in groups),
        "contestants": {name: entry.summary(tokens["pairs"]) for name, entry in entries.items()},
        **_compare(entries),
    }
    if "preftune" in entries:
        least = multiply_adds(shapes, groups, workload.lora, trains=workload.task == "step")
        row |= _floor(least, max(rates), entries["preftune"].seconds)
    return row | {"profile": profile}


def with_reference(model: str, groups: list[TokenizedGroup]) -> list[TokenizedGroup]:
    """The groups with the reference's log-probabilities in float32, so that losses can be compared in it."""
    policy = Policy(load_language_model(model, torch.float32)).eval()
    with tempfile.TemporaryDirectory() as folder:
        cache = ReferenceCache(Path(folder), "benchmark")
        return cache.fill(policy, groups)


def _phases(workload: Workload, options: Options) -> list[list[str]]:
    """Who runs beside preftune: all at once, waiting, would not fit into 20 GB."""
    phases = [["preftune_padded"]] if workload.name == "chat" else []
    phases += [["trl_default"], ["trl_best"]]
    return [[name for name in names if name in options.contestants] for names in phases]


def _start(
    workload: Workload, options: Options, groups: Path, names: list[str], running: ExitStack
) -> dict[str, Entry]:
    """Start workers together, wait for them, and let each do its batch's first item."""
    common = {"model": options.model, "groups": str(groups), "lora": workload.lora, "task": workload.task}
    workers = [running.enter_context(Worker({**common, "contestant": name}, groups.parent)) for name in names]
    entries = {}
    for worker in workers:
        built = worker.ready()
        for size in _batch_sizes(worker.name, workload, built["items"]):
            label = f"{worker.name}_{size}" if worker.name == "trl_best" else worker.name
            entries[label] = Entry(label, worker, size, built["exact_loss"])
    for worker in workers:
        worker.do("warm_up", 1)
    return entries


def _batch_sizes(contestant: str, workload: Workload, items: int) -> list[int]:
    if contestant == "trl_best":
        return [size for size in TRL_BATCH_SIZES if size <= items]
    if contestant == "trl_default" and workload.task == "reference":
        return [TRL_REFERENCE_BATCH_SIZE]
    return [items]


def _round(entries: dict[str, Entry], turn: int, try_all: bool) -> None:
    """A step of every contestant in turn; of TRL at its batch sizes all, or the fastest so far."""
    candidates = [entry for entry in entries.values() if entry.worker.name == "trl_best"]
    resting = []
    if candidates and not try_all:
        fastest = min(candidates, key=lambda entry: entry.seconds)
        resting = [entry.label for entry in candidates if entry is not fastest]
    for entry in entries.values():
        if entry.label not in resting:
            step = entry.steps[turn] = entry.worker.do("step", entry.at_a_time)
            console.print(f"  round {turn}: {entry.label} {step['seconds']:.2f} s, loss {step['loss']:.5f}")


def _compare(entries: dict[str, Entry]) -> dict[str, Any]:
    """Ratios to preftune, where it and the others ran, and whether all computed the same loss."""
    rounded = _spread([step["loss"] for entry in entries.values() for step in entry.measured])
    exact = [entry.exact_loss for entry in entries.values() if entry.exact_loss is not None]
    difference = _spread(exact) if exact else None
    agree = rounded <= (ROUNDED_LOSS_TOLERANCE if exact else ROUNDED_LOGP_TOLERANCE)
    row: dict[str, Any] = {
        "largest_loss_difference": difference,
        "largest_rounded_loss_difference": rounded,
        # Written so that NaN is a difference too.
        "losses_agree": agree and (difference is None or difference <= LOSS_TOLERANCE),
    }
    ours, default = entries.get("preftune"), entries.get("trl_default")
    # Its defaults are TRL's best where nothing beats them.
    tried = [entry for entry in entries.values() if entry.worker.name.startswith("trl_")]
    if not (ours and default and len(tried) > 1):
        return row
    best = min(tried, key=lambda entry: entry.seconds)
    row |= {
        "trl_best": best.label,
        "speedup_vs_trl_default": round(default.times(ours), 3),
        "speedup_vs_trl_best": round(best.times(ours), 3),
    }
    own, theirs = ours.peak_memory(), default.peak_memory()
    row["peak_memory_ratio"] = round(own / theirs, 3) if own and theirs else None
    return row


def _spread(losses: list[float]) -> float:
    return max(losses) - min(losses) if all(map(isfinite, losses)) else float("nan")


def _floor(least: int, rate: float, seconds: float) -> dict[str, Any]:
    return {
        "multiply_adds": least,
        "matmul_multiply_adds_per_second": rate,
        "floor_seconds": round(least / rate, 4),
        "fraction_of_floor": round(least / rate / seconds, 4),
    }


def environment(options: Options) -> dict[str, Any]:
    """What the figures depend on beside the workloads."""
    packages = ("preftune", "torch", "transformers", "trl", "peft", "accelerate")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "processor": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "model": Path(options.model).name,
        "numerics": "float32 weights, bfloat16 autocast",
        "rounds": options.rounds,
    }


def write_results(options: Options, rows: list[dict[str, Any]], surroundings: dict[str, Any]) -> None:
    """Replace the rows of the workloads that ran, in the JSON and on the page."""
    content = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    kept = {row["workload"]: row for row in content.get("workloads", [])}
    kept |= {row["workload"]: row | {"environment": surroundings} for row in rows}
    content["environment"] = surroundings
    content["workloads"] = [kept[name] for name in WORKLOADS if name in kept]
    content["profile"] = [
        {"workload": row["workload"], **entry}
        for row in content["workloads"]
        for entry in row.pop("profile", None) or _stored_profile(content, row["workload"])
    ]
    content.setdefault("growth", {})
    write_json(
        options.results, {key: content[key] for key in ("environment", "workloads", "growth", "profile")}
    )
    write_page(options.page, content)


def _stored_profile(content: dict[str, Any], workload: str) -> list[dict[str, Any]]:
    return [entry for entry in content.get("profile", []) if entry["workload"] == workload]


def parse_options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ["preftune", "preftune_padded", "trl_default", "trl_best"]
    parser.add_argument("--model", help="model folder (default: the demo's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="may be repeated")
    parser.add_argument(
        "--contestants", nargs="+", choices=names, default=names, help="fewer than all: nothing is written"
    )
    parser.add_argument("--shrink", type=int, default=1, help="divide all lengths by this")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/cpu.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    given = parser.parse_args()
    if given.rounds < 1 or given.shrink < 1:
        parser.error("--rounds and --shrink are at least 1")
    if given.shrink > 1 and parser.get_default("results") in (given.results, None):
        parser.error("--shrink is for trying the benchmark out: give --results and --page of your own")
    return Options(
        given.model or str(demo_model_dir()),
        given.rounds,
        given.workload or list(WORKLOADS),
        given.contestants,
        given.shrink,
        given.results,
        given.page,
    )


def main() -> None:
    """Measure, write and print."""
    options = parse_options()
    surroundings = environment(options)
    rows = []
    for name in options.workloads:
        workload = WORKLOADS[name] if options.shrink == 1 else WORKLOADS[name].shrunk(options.shrink)
        began = time.monotonic()
        console.print(f"[bold]{name}[/]")
        try:
            rows.append(measure(workload, options))
        except WorkerError as error:
            sys.exit(str(error))
        console.print(f"  {time.monotonic() - began:.0f} s in all")
        print_workload(rows[-1])
        if len(options.contestants) == 4:
            write_results(options, [rows[-1]], surroundings)
    differing = [row["workload"] for row in rows if not row["losses_agree"]]
    if differing:
        sys.exit(f"the losses differ by more than they may: {', '.join(differing)}")


if __name__ == "__main__":
    main()
