"""What a model answers to the questions: read from upstream's files, or asked for and written as they are."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data import read_rows
from preftune.data.groups import Message
from preftune.data.rules import shorten
from preftune.errors import InputError
from preftune.evaluation.files import write_lines
from preftune.evaluation.questions import Question, check_distinct, question_key
from preftune.serving.asking import Interviewer, Request


@dataclass(frozen=True)
class ModelOutputs:
    """What one model answered.

    Attributes:
        model: its name.
        turns: by question, the answer of each turn.
    """

    model: str
    turns: Mapping[str, tuple[str, ...]]

    def __getitem__(self, question: Question) -> tuple[str, ...]:
        return self.turns[question.key]


def read_outputs(path: Path, model: str | None = None) -> ModelOutputs:
    """Read a file of answers, whichever benchmark's shape it has.

    Args:
        path: AlpacaEval's `model_outputs.json` (`instruction`, `output`, `generator`), FastChat's
            (`question_id`, `choices`, `model_id`), Arena-Hard's (`uid`, `messages`, `model`), or `prompt`
            with `response`, `completion` or `responses`, of which the first counts.
        model: the name, where the file does not say it; the file's name unless given.

    Raises:
        InputError: a row is no answer, or a question is answered twice.
    """
    answers: dict[str, tuple[str, ...]] = {}
    names: set[str] = set()
    rows = list(read_rows(path))
    keys = []
    for number, row in enumerate(rows):
        key, turns = _answered_key(row), _answered(row)
        if key is None or turns is None:
            raise InputError(
                f"{path} row {number} is not an answer: it needs instruction + output, question_id + "
                f"choices, uid + messages, or prompt + response; it has {', '.join(row) or 'nothing'}"
            )
        keys.append(key)
        answers[key] = turns
        names.update(str(row[name]) for name in ("generator", "model_id", "model") if row.get(name))
    check_distinct(keys, path)
    if len(names) > 1:
        raise InputError(f"{path} holds answers of {', '.join(sorted(names))}: give a file for each model")
    return ModelOutputs(model or next(iter(names), path.stem), answers)


def _answered_key(row: Mapping[str, Any]) -> str | None:
    for name in ("question_id", "uid"):
        if "instruction" not in row and row.get(name) is not None:
            return str(row[name])
    return question_key(row)


def _answered(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The texts of the turns; None if the row has another shape."""
    try:
        if "choices" in row:
            turns = row["choices"][0]["turns"]
        elif "messages" in row:
            turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
            turns = [turn["answer"] if isinstance(turn, Mapping) else turn for turn in turns]
        else:
            found = next(name for name in ("output", "response", "completion", "responses") if name in row)
            turns = row[found][:1] if isinstance(row[found], list) else [row[found]]
        texts = [turn["content"] if isinstance(turn, Mapping) else turn for turn in turns]
        texts = [text[-1]["content"] if isinstance(text, list) else text for text in texts]
    except (KeyError, IndexError, TypeError, StopIteration):
        return None
    return tuple(texts) if texts and all(isinstance(text, str) for text in texts) else None


def check_complete(answers: ModelOutputs, questions: Sequence[Question]) -> None:
    """Raise an InputError where a question, or a turn of one, has no answer."""
    for question in questions:
        given = len(answers.turns.get(question.key, ()))
        if given < len(question.turns):
            missing = [one for one in questions if len(answers.turns.get(one.key, ())) < len(one.turns)]
            raise InputError(
                f"{answers.model} answers {given} of {len(question.turns)} turns of {shorten(question.key)}, "
                f"and {len(missing)} of {len(questions)} questions not fully: add the answers, or ask fewer "
                "questions with --n"
            )


Temperature = Callable[[Question], float]


def ask_for_answers(
    client: Interviewer, questions: Sequence[Question], *, max_tokens: int, temperature: Temperature
) -> ModelOutputs:
    """Have a model answer every turn of every question, each with its own earlier answers before it."""
    chats: dict[str, list[Message]] = {question.key: list(question.opening) for question in questions}
    turns: dict[str, tuple[str, ...]] = {question.key: () for question in questions}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [question for question in questions if turn < len(question.turns)]
        if turn:
            for question in asked:
                answer, followup = turns[question.key][-1], question.followups[turn - 1]
                chats[question.key] += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": followup},
                ]
        requests = [
            Request(
                f"question {shorten(question.key, 40)}, turn {turn + 1}",
                tuple(chats[question.key]),
                max_tokens,
                temperature(question),
            )
            for question in asked
        ]
        title = f"answers of {client.respondent.name}" + (f", turn {turn + 1}" if turn else "")
        for question, reply in zip(asked, client.ask(requests, title), strict=True):
            turns[question.key] += (reply.text,)
    return ModelOutputs(client.respondent.name, turns)


def write_responses(path: Path, questions: Sequence[Question], answers: ModelOutputs) -> None:
    """A row of `prompt`, `response` and `model` for each question."""
    write_lines(
        path,
        (
            {
                "prompt": (question.row or {}).get("prompt", question.turns[0]),
                "response": answers[question][0],
                "model": answers.model,
            }
            for question in questions
        ),
    )


def answer_id(question: Question, answers: ModelOutputs) -> str:
    """The same for the same answer."""
    return hashlib.sha256(repr((question.key, answers.model, answers[question])).encode()).hexdigest()[:22]
