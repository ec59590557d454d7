"""A benchmark from questions to figures: outputs, verdicts, files. What was asked once is not asked again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.evaluation.benchmark import Benchmark
from preftune.evaluation.cost_estimate import CostEstimate, CountTokens, DryRun, estimated_tokens
from preftune.evaluation.files import write_lines
from preftune.evaluation.judging import Judgment, Submission, judge
from preftune.evaluation.model_outputs import ModelOutputs, check_complete
from preftune.evaluation.models import Generation, ModelOrOutputs
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Results, invalid_rate
from preftune.serving.asking import Respondent
from preftune.storage.files import write_json

STAND_IN = "An answer that nobody has given yet. " * 32
"""About 300 tokens, for estimates where neither model nor baseline has answered."""


@dataclass(frozen=True)
class BenchmarkRun:
    """Everything that decides a run of a judged benchmark.

    Attributes:
        benchmark: the protocol.
        generation: what is asked, and how it is answered.
        model: whose outputs are judged.
        judge: who judges.
        baselines: whose outputs they are compared with; several where categories have their own.
        references: right answers for the judge.
        attempts: replies asked for until one holds a verdict.
    """

    benchmark: Benchmark
    generation: Generation
    model: ModelOrOutputs
    judge: Respondent
    baselines: Sequence[ModelOrOutputs] = ()
    references: ModelOutputs | None = None
    attempts: int = 3

    @property
    def models(self) -> list[ModelOrOutputs]:
        """The model and the baselines."""
        return [self.model, *self.baselines]


def run_benchmark(run: BenchmarkRun, output: Path) -> list[Results]:
    """Answer, judge, and write the files.

    The folder gets the model outputs and the judgments in upstream's shapes, `items.jsonl` with one verdict a
    line, and `results.json`.

    Args:
        run: what to do.
        output: folder; what an earlier run left there is replaced.

    Returns:
        The figures, as in `results.json`.

    Raises:
        InputError: somebody who is asked fails. What was said so far is kept, and the same call goes on.
    """
    # Whatever is wrong with the files is found before anybody is asked.
    estimate_cost(run)
    benchmark, generation = run.benchmark, run.generation
    output.mkdir(parents=True, exist_ok=True)
    outputs = [generation.outputs(model) for model in run.models]
    benchmark.write_answers(output / benchmark.answers_file, generation.questions, outputs[0])
    for model, given in zip(run.baselines, outputs[1:], strict=True):
        if not isinstance(model, ModelOutputs):
            path = output / f"baseline_{benchmark.answers_file}"
            benchmark.write_answers(path, generation.questions, given)
    submission = _submission(run, outputs)
    judgments = judge(
        generation.client(run.judge, benchmark.version),
        benchmark.items(submission),
        lambda item, reply: benchmark.verdict(submission, item, reply),
        run.attempts,
    )
    _write_judgments(output / benchmark.judgments_file, benchmark.rows(submission, judgments))
    write_lines(output / "items.jsonl", (_row(judgment) for judgment in judgments))
    stamp: Results = {"judge": submission.judge, "comparable": not benchmark.caveats}
    if benchmark.caveats:
        stamp["not_comparable_because"] = "; ".join(benchmark.caveats)
    results = [found | stamp for found in _figures(benchmark, submission, judgments)]
    write_json(output / "results.json", results)
    return results


def estimate_cost(run: BenchmarkRun, count: CountTokens = estimated_tokens) -> list[CostEstimate]:
    """What `run_benchmark` would ask of whom, without asking.

    Answers that nobody gave yet are taken to be as long as the median of those that there are.

    Args:
        run: what would be done.
        count: tokens of a text.

    Raises:
        InputError: what was given does not fit together.
    """
    benchmark, generation = run.benchmark, run.generation
    known = [model for model in run.models if isinstance(model, ModelOutputs)]
    likely = _median_answer(known) or STAND_IN
    dry_runs: list[DryRun] = []

    def new_client(respondent: Respondent, version: str) -> DryRun:
        # Not the same as any, nor as another's: equal answers need no judge.
        stand_in = likely + chr(ord("A") + len(dry_runs))
        dry_runs.append(DryRun(generation.client(respondent, version), stand_in, count))
        return dry_runs[-1]

    submission = _submission(run, [generation.outputs(model, new_client) for model in run.models])
    client = generation.client(run.judge, benchmark.version)
    judge_run = DryRun(client, "", count, benchmark.reply_tokens)
    judge_run.ask([item.request for item in benchmark.items(submission) if item.request], "verdicts")
    return [dry_run.estimate() for dry_run in (*dry_runs, judge_run)]


def _submission(run: BenchmarkRun, outputs: Sequence[ModelOutputs]) -> Submission:
    model, *baselines = outputs
    questions = run.generation.questions
    check_complete(model, questions)
    if len(baselines) == 1:
        check_complete(baselines[0], questions)
    chosen = (
        {question.key: choose_baseline(run.benchmark, question, baselines) for question in questions}
        if run.benchmark.compares
        else {}
    )
    return Submission(questions, model, run.judge.name, chosen, run.references)


def choose_baseline(
    benchmark: Benchmark, question: Question, baselines: Sequence[ModelOutputs]
) -> ModelOutputs:
    """The baseline of a question: the only one, or the one that its category is compared with.

    Raises:
        InputError: there is none for it.
    """
    if len(baselines) == 1:
        return baselines[0]
    wanted = benchmark.baseline_of(question)
    for baseline in baselines:
        if baseline.model == wanted and len(baseline.turns.get(question.key, ())) >= len(question.turns):
            return baseline
    names = ", ".join(baseline.model for baseline in baselines) or "none"
    raise InputError(
        f"question {question.key!r} of category {question.category!r} is compared with "
        f"{wanted or 'no baseline'}, and the baselines given are {names}: give one --baseline for all, or "
        "the file of that one, complete"
    )


def _figures(benchmark: Benchmark, submission: Submission, judgments: Sequence[Judgment]) -> list[Results]:
    try:
        return benchmark.figures(submission, judgments)
    except InputError as error:
        # The verdicts are recorded; that none can be read is a result.
        head = {
            "protocol": benchmark.name,
            "model": submission.answers.model,
            "baseline": submission.baseline,
        }
        rate = invalid_rate([judgment.verdict for judgment in judgments])
        return [{**head, "n": 0, "win_rate": None, "invalid_rate": rate, "warnings": [str(error)]}]


def _median_answer(known: Sequence[ModelOutputs]) -> str | None:
    texts = sorted((text for answers in known for turns in answers.turns.values() for text in turns), key=len)
    return texts[len(texts) // 2] if texts else None


def _write_judgments(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_lines(path, rows)


def _row(judgment: Judgment) -> Mapping[str, Any]:
    reply = judgment.reply
    return {
        **asdict(judgment.verdict),
        "reply": reply.text if reply else None,
        "prompt_tokens": reply.prompt_tokens if reply else None,
        "completion_tokens": reply.completion_tokens if reply else None,
        "seconds": reply.seconds if reply else None,
    }
