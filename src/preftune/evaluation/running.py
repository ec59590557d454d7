"""A benchmark from questions to figures: answers, verdicts, files. What was asked once is not asked again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.evaluation.answers import Answers, check_complete, write_lines
from preftune.evaluation.arena_hard import RULES
from preftune.evaluation.entrants import Entrant, Exam
from preftune.evaluation.judging import Contest, Judge, Judgment
from preftune.evaluation.protocols.arena_hard import version_of
from preftune.evaluation.protocols.benchmark import Benchmark
from preftune.evaluation.questions import Question
from preftune.evaluation.rehearsal import CountTokens, Estimate, Rehearsal, estimated_tokens
from preftune.evaluation.verdicts import Results, invalid_rate
from preftune.serving.asking import Respondent
from preftune.storage.files import write_json

STAND_IN = "An answer that nobody has given yet. " * 32
"""About 300 tokens, for estimates where neither model nor baseline has answered."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that decides a run of a judged benchmark.

    Attributes:
        benchmark: the protocol.
        exam: what is asked, and how it is answered.
        model: whose answers are judged.
        judge: who judges.
        baselines: whose answers they are compared with; several where categories have their own.
        references: right answers for the judge.
        attempts: replies asked for until one holds a verdict.
    """

    benchmark: Benchmark
    exam: Exam
    model: Entrant
    judge: Respondent
    baselines: Sequence[Entrant] = ()
    references: Answers | None = None
    attempts: int = 3

    @property
    def entrants(self) -> list[Entrant]:
        """The model and the baselines."""
        return [self.model, *self.baselines]


def run(evaluation: Evaluation, output: Path) -> list[Results]:
    """Answer, judge, and write the files.

    The folder gets the answers and the judgments in upstream's shapes, `items.jsonl` with one verdict a line,
    and `results.json`.

    Args:
        evaluation: what to do.
        output: folder; what an earlier run left there is replaced.

    Returns:
        The figures, as in `results.json`.

    Raises:
        InputError: somebody who is asked fails. What was said so far is kept, and the same call goes on.
    """
    # Whatever is wrong with the files is found before anybody is asked.
    rehearse(evaluation)
    benchmark, exam = evaluation.benchmark, evaluation.exam
    output.mkdir(parents=True, exist_ok=True)
    answers = [exam.sit(entrant, exam.interview) for entrant in evaluation.entrants]
    benchmark.write_answers(output / benchmark.answers_file, exam.questions, answers[0])
    for entrant, given in zip(evaluation.baselines, answers[1:], strict=True):
        if not isinstance(entrant, Answers):
            benchmark.write_answers(output / f"baseline_{benchmark.answers_file}", exam.questions, given)
    contest = _contest(evaluation, answers)
    judge = Judge(exam.interview(evaluation.judge, benchmark.version), evaluation.attempts)
    judgments = judge.judge(
        benchmark.cases(contest), lambda case, reply: benchmark.verdict(contest, case, reply)
    )
    _write_judgments(output / benchmark.judgments_file, benchmark.rows(contest, judgments))
    write_lines(output / "items.jsonl", (_item(judgment) for judgment in judgments))
    stamp: Results = {"judge": contest.judge, "comparable": not benchmark.caveats}
    if benchmark.caveats:
        stamp["not_comparable_because"] = "; ".join(benchmark.caveats)
    results = [found | stamp for found in _figures(benchmark, contest, judgments)]
    write_json(output / "results.json", results)
    return results


def rehearse(evaluation: Evaluation, count: CountTokens = estimated_tokens) -> list[Estimate]:
    """What `run` would ask of whom, without asking.

    Answers that nobody gave yet are taken to be as long as the median of those that there are.

    Args:
        evaluation: what would be done.
        count: tokens of a text.

    Raises:
        InputError: what was given does not fit together.
    """
    benchmark, exam = evaluation.benchmark, evaluation.exam
    known = [entrant for entrant in evaluation.entrants if isinstance(entrant, Answers)]
    # Not the same as any: equal answers need no judge.
    stand_in = (_median_answer(known) or STAND_IN) + "."
    rehearsals: list[Rehearsal] = []

    def interview(respondent: Respondent, version: str) -> Rehearsal:
        rehearsals.append(Rehearsal(exam.interview(respondent, version), stand_in, count))
        return rehearsals[-1]

    contest = _contest(evaluation, [exam.sit(entrant, interview) for entrant in evaluation.entrants])
    interviewer = exam.interview(evaluation.judge, benchmark.version)
    judge = Rehearsal(interviewer, "", count, benchmark.reply_tokens)
    judge.ask([case.request for case in benchmark.cases(contest) if case.request], "verdicts")
    return [rehearsal.estimate() for rehearsal in (*rehearsals, judge)]


def _contest(evaluation: Evaluation, answers: Sequence[Answers]) -> Contest:
    model, *baselines = answers
    questions = evaluation.exam.questions
    check_complete(model, questions)
    if len(baselines) == 1:
        check_complete(baselines[0], questions)
    chosen = (
        {question.key: choose_baseline(question, baselines) for question in questions}
        if evaluation.benchmark.compares
        else {}
    )
    return Contest(questions, model, evaluation.judge.name, chosen, evaluation.references)


def choose_baseline(question: Question, baselines: Sequence[Answers]) -> Answers:
    """The baseline of a question: the only one, or the one that its category is compared with.

    Raises:
        InputError: there is none for it.
    """
    if len(baselines) == 1:
        return baselines[0]
    wanted = RULES[version_of(question)].baselines.get(question.category)
    for baseline in baselines:
        if baseline.model == wanted and len(baseline.turns.get(question.key, ())) >= len(question.turns):
            return baseline
    names = ", ".join(baseline.model for baseline in baselines) or "none"
    raise InputError(
        f"question {question.key!r} of category {question.category!r} is compared with "
        f"{wanted or 'no baseline'}, and the baselines given are {names}: give one --baseline for all, or "
        "the file of that one, complete"
    )


def _figures(benchmark: Benchmark, contest: Contest, judgments: Sequence[Judgment]) -> list[Results]:
    try:
        return benchmark.figures(contest, judgments)
    except InputError as error:
        # The verdicts are recorded; that none can be read is a result.
        head = {"protocol": benchmark.name, "model": contest.answers.model, "baseline": contest.baseline}
        rate = invalid_rate([judgment.verdict for judgment in judgments])
        return [{**head, "n": 0, "win_rate": None, "invalid_rate": rate, "warnings": [str(error)]}]


def _median_answer(known: Sequence[Answers]) -> str | None:
    texts = sorted((text for answers in known for turns in answers.turns.values() for text in turns), key=len)
    return texts[len(texts) // 2] if texts else None


def _write_judgments(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_lines(path, rows)


def _item(judgment: Judgment) -> Mapping[str, Any]:
    reply = judgment.reply
    return {
        **asdict(judgment.verdict),
        "reply": reply.text if reply else None,
        "prompt_tokens": reply.prompt_tokens if reply else None,
        "completion_tokens": reply.completion_tokens if reply else None,
        "seconds": reply.seconds if reply else None,
    }
