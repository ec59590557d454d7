"""A run from what the command line says: every name is looked up, and what does not fit is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.errors import InputError
from preftune.evaluation.answers import read_answers
from preftune.evaluation.entrants import Asking, Exam, find_entrant, find_judge
from preftune.evaluation.protocols.benchmark import Benchmark
from preftune.evaluation.protocols.head_to_head import HeadToHead
from preftune.evaluation.protocols.table import Settings, find_benchmark
from preftune.evaluation.questions import read_questions
from preftune.evaluation.reward import evaluate_reward
from preftune.evaluation.running import Evaluation
from preftune.evaluation.verdicts import Results
from preftune.rewards.sources import resolve_source
from preftune.storage.cache import cache_dir


@dataclass(frozen=True)
class Order:
    """What is asked for, as `preftune evaluate run` has it; see its help."""

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


def judged(order: Order, asking: Asking) -> Evaluation:
    """A judged benchmark, ready to run.

    Raises:
        InputError: something that was asked for does not exist, or does not fit the protocol.
    """
    settings = Settings(order.judge_prompts, bool(order.baselines), order.log_probs)
    benchmark = find_benchmark(order.protocol, settings)
    if order.judge is None:
        raise InputError(f"{order.protocol} needs a --judge: judge:NAME at an endpoint, or local:MODEL")
    if order.reward is not None:
        raise InputError(f"--reward {order.reward}: {order.protocol} has a judge and no reward: leave it out")
    if order.attempts < 1:
        raise InputError(f"--attempts {order.attempts}: it must be at least 1")
    if not order.log_probs and not hasattr(benchmark, "log_probs"):
        raise InputError(f"--without-log-probs: {order.protocol} uses none: leave it out")
    return Evaluation(
        benchmark,
        _exam(order, benchmark),
        find_entrant(order.model, asking),
        find_judge(order.judge, asking),
        [find_entrant(baseline, asking) for baseline in order.baselines],
        read_answers(order.references) if order.references else None,
        order.attempts,
    )


def rewarded(order: Order, asking: Asking, output: Path) -> list[Results]:
    """Run the benchmark without a judge.

    Raises:
        InputError: as `judged`, or the reward cannot be measured.
    """
    if order.reward is None:
        raise InputError("reward needs --reward SPEC: what `preftune score` takes (`preftune score --list`)")
    for flag, given in {"--judge": order.judge, "--judge-prompt": order.judge_prompts}.items():
        if given:
            raise InputError(f"{flag}: reward asks no judge: leave it out, or name it as --reward judge:NAME")
    if len(order.baselines) > 1:
        raise InputError("--baseline: reward compares with one: give the others a run of their own")
    scoring = resolve_source("--reward", order.reward)
    baseline = find_entrant(order.baselines[0], asking) if order.baselines else None
    exam = _exam(order, HeadToHead())
    return evaluate_reward(exam, find_entrant(order.model, asking), baseline, scoring, output)


def _exam(order: Order, benchmark: Benchmark) -> Exam:
    if order.max_tokens is not None and order.max_tokens < 1:
        raise InputError(f"--max-new-tokens {order.max_tokens}: it must be at least 1")
    fixed = order.temperature
    if fixed is not None and not fixed >= 0:
        raise InputError(f"--temperature {fixed:g}: it must be 0 (greedy) or more")
    return Exam(
        [
            replace(question, followups=question.followups[: benchmark.turns - 1])
            for question in read_questions(order.questions, order.n)
        ],
        order.max_tokens or benchmark.answer_tokens,
        benchmark.temperature if fixed is None else lambda question: fixed,
        order.cache or cache_dir(),
        progress=True,
    )
