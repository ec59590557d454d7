"""The benchmarks, by the name on the command line: the one place that knows them all."""

from collections.abc import Mapping

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.evaluation.alpaca_eval.protocol import AlpacaEval
from preftune.evaluation.arena_hard.protocol import ArenaHard
from preftune.evaluation.benchmark import Benchmark, BenchmarkOptions, RescoreOptions, Rescorer
from preftune.evaluation.head_to_head.protocol import HeadToHead
from preftune.evaluation.length_control import MODES
from preftune.evaluation.mt_bench.protocol import MTBench
from preftune.evaluation.published import Repository

REWARD = "reward"
"""The benchmark without a judge."""

BENCHMARKS: Mapping[str, type[Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        AlpacaEval,
        ArenaHard,
        MTBench,
        HeadToHead,
    )
}

REPOSITORIES: Mapping[str, Repository] = {
    name: benchmark.repository for name, benchmark in BENCHMARKS.items() if benchmark.repository
}
"""The benchmarks' own files."""

RESCORERS: Mapping[str, type[Rescorer]] = {
    name: benchmark.rescorer for name, benchmark in BENCHMARKS.items() if benchmark.rescorer
}


def find_benchmark(name: str, options: BenchmarkOptions) -> Benchmark:
    """The benchmark of that name.

    Raises:
        InputError: there is none, or the options do not fit it.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        known = [*BENCHMARKS, REWARD]
        raise InputError(f"PROTOCOL {name} is unknown{suggest(name, known)}: use one of {', '.join(known)}")
    if benchmark.needs_baseline and not options.compares:
        raise InputError(f"{name} compares answers: name a --baseline, as a model or as a file of answers")
    most = benchmark.most_prompts
    if not min(most, 1) <= len(options.prompts) <= most:
        files = "the benchmark's own file" if most else "no file, since its prompt is ours"
        raise InputError(
            f"--judge-prompt: {name} takes {files}, and {len(options.prompts)} are given "
            "(`preftune evaluate fetch` downloads the benchmarks')"
        )
    if not options.log_probs and not benchmark.weighs_verdicts:
        raise InputError(f"--without-log-probs: {name} does not use log-probabilities: remove the option")
    return benchmark.build(options)


def find_rescorer(name: str, options: RescoreOptions) -> Rescorer:
    """What makes figures of a benchmark's recorded verdicts.

    Raises:
        InputError: there is no such benchmark, or an option is another one's.
    """
    if name not in RESCORERS:
        raise InputError(f"protocol = {name!r}: must be one of {', '.join(RESCORERS)}")
    for owner, rescorer in RESCORERS.items():
        for option in rescorer.own_options:
            if owner != name and getattr(options, option):
                raise InputError(
                    f"--{option.replace('_', '-')} is for {owner}, and this is {name}: remove it"
                )
    if options.difficulty is None and (options.instructions is not None or options.by_position):
        raise InputError(
            "--instructions and --difficulty-by-position say which difficulty is whose: give --difficulty too"
        )
    if options.mode not in MODES:
        raise InputError(f"--mode {options.mode}: must be one of {', '.join(MODES)}")
    return RESCORERS[name](options)
