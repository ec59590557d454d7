"""A run from what the command line says: every name is looked up, and what does not fit is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.errors import InputError
from preftune.evaluation.benchmark import Benchmark, BenchmarkOptions
from preftune.evaluation.model_outputs import Temperature, read_outputs
from preftune.evaluation.models import Asking, Generation, find_judge, find_model
from preftune.evaluation.questions import read_questions
from preftune.evaluation.reward import evaluate_reward
from preftune.evaluation.running import BenchmarkRun
from preftune.evaluation.table import find_benchmark
from preftune.evaluation.verdicts import Results
from preftune.rewards.sources import resolve_source
from preftune.storage.cache import cache_dir


@dataclass(frozen=True)
class RunOptions:
    """What `preftune evaluate run` can be told; see its help."""

    protocol: str
    model: str
    questions: Path
    judge: str | None = None
    baselines: Sequence[str] = ()
    judge_prompts: Sequence[Path] = ()
    references: Path | None = None
    reward: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    attempts: int = 3
    log_probs: bool = True
    cache: Path | None = None


def judged(options: RunOptions, asking: Asking) -> BenchmarkRun:
    """A judged benchmark, ready to run.

    Raises:
        InputError: something that was asked for does not exist, or does not fit the protocol.
    """
    protocol = options.protocol
    benchmark = find_benchmark(
        protocol, BenchmarkOptions(options.judge_prompts, bool(options.baselines), options.log_probs)
    )
    if options.judge is None:
        raise InputError(f"{protocol} needs a --judge: judge:NAME at an endpoint, or local:MODEL")
    if options.reward is not None:
        raise InputError(f"--reward {options.reward}: {protocol} uses a judge: remove the option")
    if options.attempts < 1:
        raise InputError(f"--attempts {options.attempts} must be >= 1: set a number from 1 on")
    return BenchmarkRun(
        benchmark,
        _generation(options, benchmark),
        find_model(options.model, asking),
        find_judge(options.judge, asking),
        [find_model(baseline, asking) for baseline in options.baselines],
        read_outputs(options.references) if options.references else None,
        options.attempts,
    )


def rewarded(options: RunOptions, asking: Asking, output: Path) -> list[Results]:
    """Run the benchmark without a judge.

    Raises:
        InputError: as `judged`, or the reward cannot be measured.
    """
    if options.reward is None:
        raise InputError("reward needs --reward SPEC: what `preftune score` takes (`preftune score --list`)")
    for flag, given in {"--judge": options.judge, "--judge-prompt": options.judge_prompts}.items():
        if given:
            raise InputError(f"{flag}: reward does not use a judge: remove it, or use --reward judge:NAME")
    if len(options.baselines) > 1:
        raise InputError("--baseline: reward compares with one: give the others a run of their own")
    scoring = resolve_source("--reward", options.reward)
    baseline = find_model(options.baselines[0], asking) if options.baselines else None
    model = find_model(options.model, asking)
    return evaluate_reward(_generation(options), model, baseline, scoring, output)


def _generation(options: RunOptions, benchmark: Benchmark | None = None) -> Generation:
    """What is asked, by the benchmark's habits; without one, by those that `Benchmark` has by itself."""
    habits = benchmark or Benchmark
    if options.max_tokens is not None and options.max_tokens < 1:
        raise InputError(f"--max-new-tokens {options.max_tokens} must be >= 1: set a number from 1 on")
    temperature: Temperature = benchmark.temperature if benchmark else lambda question: 0.0
    if options.temperature is not None:
        fixed = options.temperature
        if not fixed >= 0:
            raise InputError(f"--temperature {fixed:g} must be >= 0: set 0 for greedy sampling")
        temperature = lambda question: fixed  # noqa: E731
    return Generation(
        [
            replace(question, followups=question.followups[: habits.turns - 1])
            for question in read_questions(options.questions, options.n)
        ],
        options.max_tokens or habits.answer_tokens,
        temperature,
        options.cache or cache_dir(),
        progress=True,
    )
