"""MT-Bench: two turns, graded from 1 to 10, or compared with a baseline's in both orders."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data import read_rows
from preftune.errors import InputError
from preftune.evaluation.benchmark import Benchmark, BenchmarkOptions
from preftune.evaluation.files import write_lines
from preftune.evaluation.judging import Item, Judgment, Submission
from preftune.evaluation.model_outputs import ModelOutputs, answer_id
from preftune.evaluation.mt_bench.figures import (
    NAME,
    NEEDS_REFERENCE,
    MTBenchRescorer,
    aggregate_mt_bench,
    read_rating,
    read_winner,
)
from preftune.evaluation.mt_bench.published import REPOSITORY
from preftune.evaluation.prompts import check_places, fill_template
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Rating, Results, Verdict, as_shown
from preftune.serving.asking import Request
from preftune.serving.replies import Reply

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Of the answers, by category."""
OTHER_TEMPERATURE = 0.7
MAX_TOKENS = 2048
SINGLE = {
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}
PAIR = {
    (False, 1): "pair-v2",
    (True, 1): "pair-math-v1",
    (False, 2): "pair-v2-multi-turn",
    (True, 2): "pair-math-v1-multi-turn",
}
"""Names of the prompts in upstream's file, by whether there is a reference and by turn."""
PREFERENCE_OF_FIRST = {"A": 1.0, "B": 0.0, "tie": 0.5}
WINNER = {1.0: "model_1", 0.0: "model_2", 0.5: "tie", None: "error"}


@dataclass(frozen=True)
class JudgePrompt:
    """A row of `judge_prompts.jsonl`."""

    name: str
    system: str
    template: str


@dataclass(frozen=True)
class MTBench(Benchmark):
    """FastChat's protocol. See `Benchmark`.

    Attributes:
        prompts: by name.
        compares: whether answers are compared with a baseline's; else graded.
    """

    prompts: Mapping[str, JudgePrompt]
    compares: bool = False

    name = NAME
    version = "mt_bench 1"
    most_prompts = 1
    needs_baseline = False
    turns = 2
    reply_tokens = 200
    repository = REPOSITORY
    rescorer = MTBenchRescorer

    @classmethod
    def build(cls, options: BenchmarkOptions) -> "MTBench":
        """With upstream's `judge_prompts.jsonl`."""
        (path,) = options.prompts
        compares = options.compares
        found = {}
        for number, row in enumerate(read_rows(path)):
            try:
                found[row["name"]] = JudgePrompt(row["name"], row["system_prompt"], row["prompt_template"])
            except KeyError as error:
                raise InputError(
                    f"--judge-prompt {path} row {number} has no {error}: give upstream's judge_prompts.jsonl"
                ) from None
        for key, name in (PAIR if compares else SINGLE).items():
            if name not in found:
                raise InputError(
                    f"--judge-prompt {path} has no prompt {name!r}: give upstream's judge_prompts.jsonl"
                )
            check_places(found[name].template, set(_places(*key, compares=compares)), f"{path} {name}")
        return cls(found, compares)

    def temperature(self, question: Question) -> float:
        """Upstream's, by category."""
        return TEMPERATURES.get(question.category, OTHER_TEMPERATURE)

    def write_answers(self, path: Path, questions: Sequence[Question], answers: ModelOutputs) -> None:
        """FastChat's answer file."""
        rows = (
            {
                "question_id": (question.row or {}).get("question_id", question.key),
                "answer_id": answer_id(question, answers),
                "model_id": answers.model,
                "choices": [{"index": 0, "turns": list(answers[question])}],
                "tstamp": time.time(),
            }
            for question in questions
        )
        write_lines(path, rows)

    def items(self, submission: Submission) -> list[Item]:
        """Both turns of every question, in both orders where answers are compared."""
        sides = (True, False) if self.compares else (None,)
        return [
            Item(question, self._request(submission, question, turn, model_first), model_first, turn)
            for question in submission.questions
            for turn in range(1, len(question.turns) + 1)
            for model_first in sides
        ]

    def _request(
        self, submission: Submission, question: Question, turn: int, model_first: bool | None
    ) -> Request:
        has_reference = question.category in NEEDS_REFERENCE
        prompt = self.prompt(question, turn)
        answer = submission.answers[question]
        texts: list[tuple[str, Sequence[str]]] = [("question", question.turns)]
        if model_first is None:
            texts.append(("answer", answer))
        else:
            other = submission.baselines[question.key][question]
            a, b = as_shown(answer, other, model_first)
            texts += [("answer_a", a), ("answer_b", b)]
        values = {
            name if turn == 1 else f"{name}_{number}": text
            for name, turns in texts
            for number, text in enumerate(turns[:turn], start=1)
        }
        if has_reference:
            references = _reference(submission, question)
            values |= {f"ref_answer_{number}": text for number, text in enumerate(references, start=1)}
        return Request(
            f"question {question.key}, turn {turn}",
            (
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": fill_template(prompt.template, values)},
            ),
            MAX_TOKENS,
            0.0,
        )

    def prompt(self, question: Question, turn: int) -> JudgePrompt:
        """The one that a question's turn is judged by."""
        names = PAIR if self.compares else SINGLE
        return self.prompts[names[question.category in NEEDS_REFERENCE, turn]]

    def verdict(self, submission: Submission, item: Item, reply: Reply | None) -> Verdict:
        """The grade, or who wins."""
        question, text = item.question, reply.text if reply else ""
        if item.model_first is None:
            return Rating(question.key, read_rating(text), item.turn, question.category)
        return submission.comparison(item, PREFERENCE_OF_FIRST.get(read_winner(text) or ""))

    def figures(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Results]:
        """See `aggregate_mt_bench`."""
        return [aggregate_mt_bench(submission.recording(judgments))]

    def rows(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """FastChat's judgment file, `_single` or `_pair`."""
        if not self.compares:
            return [self._graded(submission, judgment) for judgment in judgments]
        pairs = zip(judgments[::2], judgments[1::2], strict=True)
        return [self._compared(submission, *pair) for pair in pairs]

    def _about(self, submission: Submission, judgment: Judgment) -> Mapping[str, Any]:
        question, turn = judgment.item.question, judgment.item.turn
        return {
            "question_id": (question.row or {}).get("question_id", question.key),
            "judge": [submission.judge, self.prompt(question, turn).name],
            "turn": turn,
            "category": question.category,
            "tstamp": time.time(),
        }

    def _graded(self, submission: Submission, judgment: Judgment) -> Mapping[str, Any]:
        rating = judgment.verdict.rating if isinstance(judgment.verdict, Rating) else None
        return {
            **self._about(submission, judgment),
            "model": submission.answers.model,
            "user_prompt": _user_prompt(judgment),
            "judgment": judgment.text,
            "score": -1 if rating is None else rating,
        }

    def _compared(self, submission: Submission, first: Judgment, second: Judgment) -> Mapping[str, Any]:
        games = {"g1": first, "g2": second}
        row = {
            **self._about(submission, first),
            "model_1": submission.answers.model,
            "model_2": submission.baseline,
        }
        for game, judgment in games.items():
            row |= {
                f"{game}_winner": WINNER[judgment.preference],
                f"{game}_user_prompt": _user_prompt(judgment),
                f"{game}_judgment": judgment.text,
            }
        return row


def _places(has_reference: bool, turn: int, *, compares: bool) -> list[str]:
    """What a prompt shows."""
    names = ["question", *(("answer_a", "answer_b") if compares else ("answer",))]
    numbers = range(1, turn + 1)
    places = names if turn == 1 else [f"{name}_{number}" for name in names for number in numbers]
    return [*places, *(f"ref_answer_{number}" for number in numbers if has_reference)]


def _reference(submission: Submission, question: Question) -> tuple[str, ...]:
    found = submission.references.turns.get(question.key) if submission.references else None
    if found is None or len(found) < len(question.turns):
        raise InputError(
            f"question {question.key} is about {question.category}, whose judge is shown a right answer: "
            "give --references FILE with upstream's reference answers"
        )
    return found


def _user_prompt(judgment: Judgment) -> str:
    return judgment.item.request.messages[-1]["content"] if judgment.item.request else ""
