"""The questions of a benchmark, read from upstream's shapes and from any file of prompts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.data import read_rows
from preftune.data.groups import Message
from preftune.data.rules import shorten
from preftune.errors import InputError

SHAPES: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction",),
    "turns": ("question_id", "uid"),
    "prompt": ("uid", "prompt"),
}
"""The column that holds the question, and those that may be its key, the first that is there."""


@dataclass(frozen=True)
class Question:
    """One question, or a conversation whose user's side is known.

    Attributes:
        key: the same in every file about it: an instruction, an id, or the prompt itself.
        opening: the messages up to the first answer.
        followups: what the user says after each answer but the last.
        category: empty if there is none.
        row: as it was read.
    """

    key: str
    opening: tuple[Message, ...]
    followups: tuple[str, ...] = ()
    category: str = ""
    row: Mapping[str, Any] | None = None

    @property
    def turns(self) -> tuple[str, ...]:
        """What the user asks in each turn; an opening of several messages as one text."""
        return (conversation_text(self.opening), *self.followups)


def read_questions(path: Path, n: int | None = None) -> list[Question]:
    """Read the first n questions, or all.

    Args:
        path: rows with `instruction` (AlpacaEval), `turns` and an id (MT-Bench, the older Arena-Hard), `uid`
            and `prompt` (Arena-Hard), or only `prompt`: text or messages.
        n: at least 1.

    Raises:
        InputError: there is none, a row has another shape, or two are the same.
    """
    if n is not None and n < 1:
        raise InputError(f"--n {n} must be >= 1: set a number from 1 on")
    questions = [
        read_question(row, f"{path} row {number}") for number, row in enumerate(islice(read_rows(path), n))
    ]
    if not questions:
        raise InputError(f"{path} holds no questions")
    check_distinct((question.key for question in questions), path)
    return questions


def read_question(row: Mapping[str, Any], where: str) -> Question:
    """A question from a row.

    Raises:
        InputError: the row has none of the shapes.
    """
    key, asked = question_key(row), next((row[name] for name in SHAPES if row.get(name)), None)
    category = row.get("category") or row.get("dataset") or ""
    if key is None or not asked:
        raise InputError(
            f"{where} is not a question: it needs `instruction`, `turns` with `question_id`, `uid` with "
            f"`prompt`, or `prompt`; it has {', '.join(row) or 'nothing'}"
        )
    if "turns" in row and "instruction" not in row:
        first, *others = (turn if isinstance(turn, str) else turn["content"] for turn in asked)
        return Question(key, _opening(first, where), tuple(others), category, row)
    return Question(key, _opening(asked, where), (), category, row)


def question_key(row: Mapping[str, Any]) -> str | None:
    """The key of the question that a row asks or answers; None if it has none."""
    for column, keys in SHAPES.items():
        found = next((row[name] for name in keys if row.get(name) is not None), None)
        if found is not None and (row.get(column) or column == "turns"):
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return None


def check_distinct(keys: Iterable[str], path: Path) -> None:
    """Raise an InputError where a key comes twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise InputError(f"{path} has {shorten(key)} twice: remove one, since figures are by question")
        seen.add(key)


def conversation_text(messages: Sequence[Message]) -> str:
    """The content of a single message; of several the contents, after their roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _opening(asked: Any, where: str) -> tuple[Message, ...]:
    if isinstance(asked, str):
        return ({"role": "user", "content": asked},)
    if not isinstance(asked, Sequence) or not all(
        isinstance(message, Mapping) and isinstance(message.get("content"), str) and "role" in message
        for message in asked
    ):
        raise InputError(
            f"{where}: {shorten(asked)} must be text, or messages with role and content: correct it"
        )
    return tuple({"role": message["role"], "content": message["content"]} for message in asked)
