"""The judged benchmarks, by the name on the command line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.evaluation.protocols.alpaca_eval import AlpacaEval
from preftune.evaluation.protocols.arena_hard import ArenaHard
from preftune.evaluation.protocols.benchmark import Benchmark
from preftune.evaluation.protocols.head_to_head import HeadToHead
from preftune.evaluation.protocols.mt_bench import MTBench

REWARD = "reward"
"""The benchmark without a judge."""


@dataclass(frozen=True)
class Settings:
    """What decides a benchmark.

    Attributes:
        prompts: the judge's, as files.
        compares: whether there is a baseline.
        log_probs: whether verdicts are weighed by log-probabilities, where the benchmark does that.
    """

    prompts: Sequence[Path] = ()
    compares: bool = False
    log_probs: bool = True


@dataclass(frozen=True)
class Entry:
    """A benchmark.

    Attributes:
        build: it, from settings.
        most_prompts: files that its judge prompt may stand in; 0 where the prompt is ours.
        needs_baseline: whether it cannot do without.
    """

    build: Callable[[Settings], Benchmark]
    most_prompts: int
    needs_baseline: bool


BENCHMARKS: Mapping[str, Entry] = {
    "alpaca_eval": Entry(lambda settings: AlpacaEval.read(settings.prompts, settings.log_probs), 1, True),
    "arena_hard": Entry(lambda settings: ArenaHard.read(settings.prompts), 2, True),
    "mt_bench": Entry(lambda settings: MTBench.read(settings.prompts, settings.compares), 1, False),
    "head_to_head": Entry(lambda settings: HeadToHead(), 0, True),
}


def find_benchmark(name: str, settings: Settings) -> Benchmark:
    """The benchmark of that name.

    Raises:
        InputError: there is none, or the settings do not fit it.
    """
    entry = BENCHMARKS.get(name)
    if entry is None:
        known = [*BENCHMARKS, REWARD]
        raise InputError(
            f"PROTOCOL {name}: there is no such protocol{suggest(name, known)}: {', '.join(known)}"
        )
    if entry.needs_baseline and not settings.compares:
        raise InputError(f"{name} compares answers: name a --baseline, as a model or as a file of answers")
    if not min(entry.most_prompts, 1) <= len(settings.prompts) <= entry.most_prompts:
        files = "no file, since its prompt is ours" if not entry.most_prompts else "the benchmark's own file"
        raise InputError(
            f"--judge-prompt: {name} takes {files}, and {len(settings.prompts)} are given "
            "(`preftune evaluate fetch` downloads the benchmarks')"
        )
    return entry.build(settings)
