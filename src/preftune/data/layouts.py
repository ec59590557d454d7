"""The column layouts of public preference sets, and how a row of each is written in a plain shape."""

import numbers
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from preftune.data.messages import ROLES, as_message, structured, transcript, turns, whole
from preftune.data.rules import BadRow
from preftune.data.sources import Row

HELPSTEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
"""How a later turn begins in HelpSteer2; the first is the user's and begins without."""
CONVERSATIONS = ("conversations", "messages", "conversation")
"""Columns of whole conversations, in ShareGPT's and OpenAI's sets."""


def _as_it_is(row: Row) -> Row:
    return row


@dataclass(frozen=True)
class Columns:
    """Which columns of the source a run reads, and as what.

    Attributes:
        shape: pairwise, groups or labelled.
        prompt: the prompt's column; None where the responses begin with it.
        responses: the columns of the responses; of a group, one that lists them or one for each.
        scores: the columns of the scores, likewise; empty where the run needs none, or there are none.
        preference: the column that says by how much the second of two responses is better than the first.
        better: the column that says which of two responses is better, 0 or 1.
        label: the column that says whether the response of a labelled row is desirable.
        tools: the column of the tools' JSON schemas.
        weight: the column of the weight of the row's pair.
        system: the column of the system's message, where no other field has it.
        beside: other columns of texts: what goes before the prompt, or says it again.
        rewrite: makes of a row one with these columns.
        by_prompt: every row has one response, and rows with the same prompt, system message and tools are a
            group.
    """

    shape: Literal["pairwise", "groups", "labelled"]
    prompt: str | None
    responses: tuple[str, ...]
    scores: tuple[str, ...] = ()
    preference: str | None = None
    better: str | None = None
    label: str | None = None
    tools: str | None = None
    weight: str | None = None
    system: str | None = None
    beside: tuple[str, ...] = ()
    rewrite: Callable[[Row], Row] = _as_it_is
    by_prompt: bool = False

    @property
    def texts(self) -> set[str]:
        """The columns of the prompt and the responses."""
        return {self.prompt or "", *self.responses, *self.beside}

    @property
    def shared(self) -> frozenset[str]:
        """The columns that say what is asked, the same for all responses that are joined by prompt."""
        return frozenset(name for name in (self.prompt, self.system, self.tools) if name)

    @property
    def used(self) -> set[str]:
        """Every column that groups are built from."""
        others = (self.preference, self.better, self.label, self.tools, self.weight, self.system)
        return {*self.texts, *self.scores, *(name for name in others if name)}

    def describe(self, found: Collection[str], sources: Mapping[str, str]) -> str:
        """What is read as what, for the log.

        Args:
            found: columns of the data.
            sources: the column in the data of those that were mapped.
        """
        prompt = f"`{self.prompt}`" if self.prompt else "what the responses begin with"
        if self.prompt is None and self.shape == "labelled":
            prompt = "the messages before the last of the model"
        before = [name for name in self.beside if name in ALPACA_BESIDE and name in found]
        parts = {
            "prompt": prompt + "".join(f" + `{name}`" for name in before),
            "responses": self.responses,
            "scores": self.scores,
            "preference": self.preference,
            "better": self.better,
            "label": self.label,
            "tools": self.tools,
            "weight": self.weight,
            "system": self.system,
        }
        return "; ".join(
            f"{name}: {value if isinstance(value, str) and name == 'prompt' else _listed(value, sources)}"
            for name, value in parts.items()
            if value
        )


ALPACA_BESIDE = ("input", "system", "history")


def _listed(names: str | Sequence[str], sources: Mapping[str, str]) -> str:
    each = [names] if isinstance(names, str) else names
    return ", ".join(f"`{sources.get(name, name)}`" for name in each)


# --- texts to messages ---


def _user(text: Any) -> Any:
    """A user's message; what is no text stays for its rule."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


def text_beside(row: Row, column: str) -> str:
    """Text that goes with the prompt; nothing where the cell is null or blank.

    Raises:
        BadRow: it is anything else, or holds half a surrogate pair.
    """
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise BadRow("missing_field", column, value, "it must be text, or null")
    return whole(value, column) if value and value.strip() else ""


def after_system(row: Row, messages: Any) -> Any:
    """The messages after the row's system message; what is no list stays for its rule.

    Raises:
        BadRow: the row's system is no text, or the messages begin with another one.
    """
    system = text_beside(row, "system")
    if not system or not isinstance(messages, list):
        return messages
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    role = first.get("role") or first.get("from")
    if not isinstance(role, str) or ROLES.get(role.strip().lower()) != "system":
        return [{"role": "system", "content": system}, *messages]
    if as_message(first, "system", Counter())["content"].strip() != system.strip():
        why = "the conversation has a system message of its own that differs from it. Keep one of them"
        raise BadRow("prompt_mismatch", "system", system, why)
    return messages


def _each(items: Any, key: str) -> Any:
    """What every item of a list has under `key`; what is no such list stays for its rule."""
    items = structured(items)
    if not isinstance(items, list):
        return items
    return [item.get(key) if isinstance(item, dict) else None for item in items]


# --- rows ---


def _asking(prompt: str) -> Callable[[Row], Row]:
    """The prompt's text as a user's message, after the row's system message."""
    return lambda row: {**row, prompt: after_system(row, _user(row.get(prompt)))}


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
        "prompt": turns(["User", *HELPSTEER_TURN.split(prompt)]) if isinstance(prompt, str) else prompt,
    }


def _nectar(row: Row) -> Row:
    prompt, answers = row.get("prompt"), row.get("answers")
    messages = transcript(prompt) or _user(prompt)
    if isinstance(prompt, str) and not messages[-1]["content"]:
        messages = messages[:-1]  # the turn that the answers take
    ranks = _each(answers, "rank")
    if isinstance(ranks, list):
        # Rank 1 is the best.
        ranks = [-rank if isinstance(rank, numbers.Real | Decimal) else rank for rank in ranks]
    return {**row, "prompt": messages, "answers": _each(answers, "answer"), "rank": ranks}


def _alpaca(row: Row) -> Row:
    """Instruction and input, after the system's text and earlier turns."""
    instruction = row.get("instruction")
    if not isinstance(instruction, str):
        raise BadRow("missing_field", "instruction", instruction, "it must be text")
    asked = [text for text in (instruction, text_beside(row, "input")) if text]
    return {**row, "instruction": after_system(row, [*_earlier(row), *_user("\n".join(asked))])}


def _earlier(row: Row) -> list[dict[str, str]]:
    """The messages of Alpaca's `history`: pairs of what was asked and answered.

    Raises:
        BadRow: it is anything else.
    """
    history = structured(row.get("history") or [])
    is_list = isinstance(history, list) and all(isinstance(pair, list | tuple) for pair in history)
    if not is_list or not all(len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in history):
        why = "it must be a list of pairs of texts: what was asked, and what was answered"
        raise BadRow("missing_field", "history", row.get("history"), why)
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _alpaca_ranking(row: Row) -> Row:
    output = structured(row.get("output"))
    if not isinstance(output, list) or len(output) != len(RANKED):
        raise BadRow("missing_field", "output", row.get("output"), "it must be a list of two responses")
    return {**_alpaca(row), **dict(zip(RANKED, output, strict=True))}


def _with_system(conversation: str) -> Callable[[Row], Row]:
    """The conversation after the row's system message."""

    def rewrite(row: Row) -> Row:
        found = structured(row.get(conversation))
        messages = transcript(found) or found
        if not isinstance(messages, list):
            raise BadRow("missing_field", conversation, messages, "it must be a list of messages")
        return {**row, conversation: after_system(row, messages)}

    return rewrite


def _openai(row: Row) -> Row:
    asked = structured(row.get("input"))
    if not isinstance(asked, Mapping):
        return row
    tools = row.get("tools") if asked.get("tools") is None else asked["tools"]
    return {**row, "input": structured(asked.get("messages")), "tools": tools}


def conversation_layout(found: Sequence[str], label: str | None) -> Columns | None:
    """A whole conversation in one column, with a label beside it or without."""
    name = next((name for name in CONVERSATIONS if name in found), None)
    if name is None:
        return None
    beside = ("system",) if "system" in found else ()
    return Columns("labelled", None, (name,), label=label, beside=beside, rewrite=_with_system(name))


RANKED = ("output[0]", "output[1]")
"""The better and the worse response that Alpaca's `output` lists."""
ALPACA = Columns("pairwise", "instruction", ("chosen", "rejected"), beside=ALPACA_BESIDE, rewrite=_alpaca)
ALPACA_RANKING = Columns(
    "pairwise",
    "instruction",
    RANKED,
    beside=("output", *ALPACA_BESIDE),
    rewrite=_alpaca_ranking,
)
ALPACA_ANSWER = Columns("labelled", "instruction", ("output",), beside=ALPACA_BESIDE, rewrite=_alpaca)
"""An instruction with one output."""

LAYOUTS: dict[tuple[str, ...], Columns] = {
    # ShareGPT's ranking of the next message, as LLaMA-Factory and ms-swift read it
    **{
        (name, "chosen", "rejected"): Columns(
            "pairwise", name, ("chosen", "rejected"), beside=("system",), rewrite=_with_system(name)
        )
        for name in CONVERSATIONS
    },
    # LLaMA-Factory's second data format
    ("chosen_messages", "rejected_messages"): Columns(
        "pairwise", None, ("chosen_messages", "rejected_messages")
    ),
    # OpenAI's preference fine-tuning
    ("input", "preferred_output", "non_preferred_output"): Columns(
        "pairwise",
        "input",
        ("preferred_output", "non_preferred_output"),
        tools="tools",
        rewrite=_openai,
    ),
    # lvwerra/stack-exchange-paired
    ("question", "response_j", "response_k"): Columns(
        "pairwise", "question", ("response_j", "response_k"), rewrite=_asking("question")
    ),
    # PKU-Alignment/PKU-SafeRLHF
    ("prompt", "response_0", "response_1"): Columns(
        "groups", "prompt", ("response_0", "response_1"), rewrite=_asking("prompt")
    ),
    ("question", "response_0", "response_1"): Columns(
        "groups", "question", ("response_0", "response_1"), rewrite=_asking("question")
    ),
    # Alpaca's columns with a pair
    ("instruction", "chosen", "rejected"): ALPACA,
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
