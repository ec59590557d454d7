"""The column layouts of public preference sets, and how a row of each is written in a plain shape."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from preftune.data.groups import Message
from preftune.data.sources import Row

TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
"""How a turn begins in hh-rlhf and Nectar."""
HELPSTEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
"""How a later turn begins in HelpSteer2; the first is the user's and begins without."""
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


def _as_it_is(row: Row) -> Row:
    return row


@dataclass(frozen=True)
class Columns:
    """Which columns of the source a run reads, and as what.

    Attributes:
        shape: pairwise, groups or labelled.
        prompt: the prompt's column; None where chosen and rejected begin with it.
        responses: the columns of the responses; of a group, one that lists them or one for each.
        scores: the columns of the scores, likewise; empty where the run needs none, or there are none.
        preference: the column that says by how much the second of two responses is better than the first.
        label: the column that says whether the response of a labelled row is desirable.
        beside: other columns of texts: what goes before the prompt, or says it again.
        rewrite: makes of a row one with these columns.
        by_prompt: every row has one response, and neighbours with the same prompt are a group.
    """

    shape: Literal["pairwise", "groups", "labelled"]
    prompt: str | None
    responses: tuple[str, ...]
    scores: tuple[str, ...] = ()
    preference: str | None = None
    label: str | None = None
    beside: tuple[str, ...] = ()
    rewrite: Callable[[Row], Row] = _as_it_is
    by_prompt: bool = False

    @property
    def texts(self) -> set[str]:
        """The columns of the prompt and the responses."""
        return {self.prompt or "", *self.responses, *self.beside}

    @property
    def used(self) -> set[str]:
        """Every column that groups are built from."""
        return {*self.texts, *self.scores, self.preference or "", self.label or ""}


# --- texts to messages ---


def transcript(text: Any) -> list[Message] | None:
    """Messages of "Human: ... Assistant: ..." turns, each after an empty line; None for any other value."""
    if not isinstance(text, str) or not text.startswith("\n\nHuman:") or "\n\nAssistant:" not in text:
        return None
    return _turns(TRANSCRIPT_TURN.split(text)[1:])


def _turns(parts: list[str]) -> list[Message]:
    """Messages of roles and texts that take turns."""
    return [
        {"role": ROLES[role], "content": text.strip()}
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _user(text: Any, system: Any = None) -> Any:
    """A user's message, after a system message where there is one; what is no text stays for its rule."""
    if not isinstance(text, str):
        return text
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*before, {"role": "user", "content": text}]


def _each(items: Any, key: str) -> Any:
    """What every item of a list has under `key`; what is no such list stays for its rule."""
    if not isinstance(items, list):
        return items
    return [item.get(key) if isinstance(item, dict) else None for item in items]


# --- rows ---


def _asking(prompt: str) -> Callable[[Row], Row]:
    """The prompt's text as a user's message, after the row's system message."""
    return lambda row: {**row, prompt: _user(row.get(prompt), row.get("system"))}


def _ultrafeedback(row: Row) -> Row:
    completions = row.get("completions")
    return {
        **row,
        "instruction": _user(row.get("instruction")),
        "completions": _each(completions, "response"),
        "overall_score": _each(completions, "overall_score"),
    }


def _helpsteer2(row: Row) -> Row:
    prompt = row.get("prompt")
    return {
        **row,
        "prompt": _turns(["User", *HELPSTEER_TURN.split(prompt)]) if isinstance(prompt, str) else prompt,
    }


def _nectar(row: Row) -> Row:
    prompt, answers = row.get("prompt"), row.get("answers")
    messages = transcript(prompt) or _user(prompt)
    if isinstance(prompt, str) and not messages[-1]["content"]:
        messages = messages[:-1]  # the turn that the answers take
    ranks = _each(answers, "rank")
    if isinstance(ranks, list):
        # Rank 1 is the best.
        ranks = [-rank if isinstance(rank, int | float) else rank for rank in ranks]
    return {**row, "prompt": messages, "answers": _each(answers, "answer"), "rank": ranks}


LAYOUTS: dict[tuple[str, ...], Columns] = {
    # openbmb/UltraFeedback
    ("instruction", "completions"): Columns(
        "groups", "instruction", ("completions",), ("overall_score",), rewrite=_ultrafeedback
    ),
    # argilla/ultrafeedback-binarized-preferences
    ("instruction", "chosen_response", "rejected_response"): Columns(
        "pairwise", "instruction", ("chosen_response", "rejected_response"), rewrite=_asking("instruction")
    ),
    # argilla/distilabel-intel-orca-dpo-pairs
    ("input", "generations", "rating"): Columns(
        "groups",
        "input",
        ("generations",),
        ("rating",),
        beside=("system", "chosen", "rejected"),
        rewrite=_asking("input"),
    ),
    # Intel/orca_dpo_pairs
    ("question", "chosen", "rejected"): Columns(
        "pairwise", "question", ("chosen", "rejected"), beside=("system",), rewrite=_asking("question")
    ),
    # nvidia/HelpSteer3
    ("context", "response1", "response2", "overall_preference"): Columns(
        "groups", "context", ("response1", "response2"), preference="overall_preference"
    ),
    # nvidia/HelpSteer2, its folder `preference`
    ("prompt", "response_1", "response_2", "preference_strength"): Columns(
        "groups",
        "prompt",
        ("response_1", "response_2"),
        preference="preference_strength",
        rewrite=_helpsteer2,
    ),
    # nvidia/HelpSteer2 with a score of its own
    ("prompt", "response", "helpfulness", "score"): Columns(
        "groups", "prompt", ("response",), ("score",), rewrite=_helpsteer2, by_prompt=True
    ),
    # nvidia/HelpSteer2
    ("prompt", "response", "helpfulness"): Columns(
        "groups", "prompt", ("response",), ("helpfulness",), rewrite=_helpsteer2, by_prompt=True
    ),
    # stanfordnlp/SHP
    ("history", "human_ref_A", "human_ref_B", "score_A", "score_B"): Columns(
        "groups",
        "history",
        ("human_ref_A", "human_ref_B"),
        ("score_A", "score_B"),
        rewrite=_asking("history"),
    ),
    # berkeley-nest/Nectar
    ("prompt", "answers"): Columns("groups", "prompt", ("answers",), ("rank",), rewrite=_nectar),
}
"""Public sets that no plain shape fits, by the columns that tell them; the first that is complete is read."""
