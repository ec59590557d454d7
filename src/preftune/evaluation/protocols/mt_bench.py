"""MT-Bench: two turns, graded from 1 to 10, or compared with a baseline's in both orders."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from preftune.data import read_rows
from preftune.errors import InputError
from preftune.evaluation.answers import write_fastchat
from preftune.evaluation.judging import Case, Contest, Judgment, recording
from preftune.evaluation.mt_bench import NEEDS_REFERENCE, aggregate, read_rating, read_winner
from preftune.evaluation.protocols.prompts import check_places, fill
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Comparison, Rating, Results, Verdict
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
class Prompt:
    """A row of `judge_prompts.jsonl`."""

    name: str
    system: str
    template: str


@dataclass(frozen=True)
class MTBench:
    """FastChat's protocol. See `Benchmark`.

    Attributes:
        prompts: by name.
        compares: whether answers are compared with a baseline's; else graded.
    """

    prompts: Mapping[str, Prompt]
    compares: bool = False

    name = "mt_bench"
    version = "mt_bench 1"
    turns = 2
    caveats: ClassVar[tuple[str, ...]] = ()
    answers_file = "answers.jsonl"
    judgments_file = "judgments.jsonl"
    answer_tokens = 1024
    reply_tokens = 200
    write_answers = staticmethod(write_fastchat)

    @classmethod
    def read(cls, prompts: Sequence[Path], compares: bool = False) -> "MTBench":
        """With upstream's `judge_prompts.jsonl`."""
        (path,) = prompts
        found = {}
        for number, row in enumerate(read_rows(path)):
            try:
                found[row["name"]] = Prompt(row["name"], row["system_prompt"], row["prompt_template"])
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

    def cases(self, contest: Contest) -> list[Case]:
        """Both turns of every question, in both orders where answers are compared."""
        orders = (True, False) if self.compares else (None,)
        return [
            Case(question, self._request(contest, question, turn, order), order, turn)
            for question in contest.questions
            for turn in range(1, len(question.turns) + 1)
            for order in orders
        ]

    def _request(self, contest: Contest, question: Question, turn: int, model_first: bool | None) -> Request:
        has_reference = question.category in NEEDS_REFERENCE
        prompt = self.prompt(question, turn)
        answer = contest.answers[question]
        texts: list[tuple[str, Sequence[str]]] = [("question", question.turns)]
        if model_first is None:
            texts.append(("answer", answer))
        else:
            other = contest.baselines[question.key][question]
            a, b = (answer, other) if model_first else (other, answer)
            texts += [("answer_a", a), ("answer_b", b)]
        values = {
            name if turn == 1 else f"{name}_{number}": text
            for name, turns in texts
            for number, text in enumerate(turns[:turn], start=1)
        }
        if has_reference:
            references = _reference(contest, question)
            values |= {f"ref_answer_{number}": text for number, text in enumerate(references, start=1)}
        return Request(
            f"question {question.key}, turn {turn}",
            (
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": fill(prompt.template, values)},
            ),
            MAX_TOKENS,
            0.0,
        )

    def prompt(self, question: Question, turn: int) -> Prompt:
        """The one that a question's turn is judged by."""
        names = PAIR if self.compares else SINGLE
        return self.prompts[names[question.category in NEEDS_REFERENCE, turn]]

    def verdict(self, contest: Contest, case: Case, reply: Reply | None) -> Verdict:
        """The grade, or who wins."""
        question, text = case.question, reply.text if reply else ""
        if case.model_first is None:
            return Rating(question.key, read_rating(text), case.turn, question.category)
        first = PREFERENCE_OF_FIRST.get(read_winner(text) or "")
        return Comparison(
            question.key,
            first if first is None or case.model_first else 1 - first,
            case.model_first,
            turn=case.turn,
            category=question.category,
            model_length=len(contest.answers[question][case.turn - 1]),
            baseline_length=len(contest.baselines[question.key][question][case.turn - 1]),
        )

    def figures(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Results]:
        """See `preftune.evaluation.mt_bench`."""
        return [aggregate(recording(contest, judgments))]

    def rows(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """FastChat's judgment file, `_single` or `_pair`."""
        if not self.compares:
            return [self._graded(contest, judgment) for judgment in judgments]
        pairs = zip(judgments[::2], judgments[1::2], strict=True)
        return [self._compared(contest, *pair) for pair in pairs]

    def _about(self, contest: Contest, judgment: Judgment) -> Mapping[str, Any]:
        question, turn = judgment.case.question, judgment.case.turn
        return {
            "question_id": (question.row or {}).get("question_id", question.key),
            "judge": [contest.judge, self.prompt(question, turn).name],
            "turn": turn,
            "category": question.category,
            "tstamp": time.time(),
        }

    def _graded(self, contest: Contest, judgment: Judgment) -> Mapping[str, Any]:
        rating = judgment.verdict.rating if isinstance(judgment.verdict, Rating) else None
        return {
            **self._about(contest, judgment),
            "model": contest.answers.model,
            "user_prompt": _user_prompt(judgment),
            "judgment": judgment.reply.text if judgment.reply else "",
            "score": -1 if rating is None else rating,
        }

    def _compared(self, contest: Contest, first: Judgment, second: Judgment) -> Mapping[str, Any]:
        games = {"g1": first, "g2": second}
        row = {**self._about(contest, first), "model_1": contest.answers.model, "model_2": contest.baseline}
        for game, judgment in games.items():
            preference = judgment.verdict.preference if isinstance(judgment.verdict, Comparison) else None
            row |= {
                f"{game}_winner": WINNER[preference],
                f"{game}_user_prompt": _user_prompt(judgment),
                f"{game}_judgment": judgment.reply.text if judgment.reply else "",
            }
        return row


def _places(has_reference: bool, turn: int, *, compares: bool) -> list[str]:
    """What a prompt shows."""
    names = ["question", *(("answer_a", "answer_b") if compares else ("answer",))]
    numbers = range(1, turn + 1)
    places = names if turn == 1 else [f"{name}_{number}" for name in names for number in numbers]
    return [*places, *(f"ref_answer_{number}" for number in numbers if has_reference)]


def _reference(contest: Contest, question: Question) -> tuple[str, ...]:
    found = contest.references.turns.get(question.key) if contest.references else None
    if found is None or len(found) < len(question.turns):
        raise InputError(
            f"question {question.key} is about {question.category}, whose judge is shown a right answer: "
            "give --references FILE with upstream's reference answers"
        )
    return found


def _user_prompt(judgment: Judgment) -> str:
    return judgment.case.request.messages[-1]["content"] if judgment.case.request else ""
