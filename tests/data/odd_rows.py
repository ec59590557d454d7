"""Rows as people have them, in every layout, with what is trained of each: written here by hand of ChatML."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from preftune.data import Asked

END = "<|im_end|>"
NO_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2's template says where a conversation has no system message."""

Row = dict[str, Any]
Turn = tuple[str, str]
"""A role and a text."""


def message(role: str, content: Any) -> Row:
    """A message as OpenAI writes it."""
    return {"role": role, "content": content}


def user(content: Any) -> Row:
    """A user's message."""
    return message("user", content)


def assistant(content: Any) -> Row:
    """A message of the model."""
    return message("assistant", content)


def turn(speaker: str, value: Any) -> Row:
    """A message as ShareGPT writes it."""
    return {"from": speaker, "value": value}


def chatml(*turns: Turn, ends: bool = False) -> str:
    """A conversation as SmolLM2 reads it, up to where the model answers."""
    asked = turns if turns[0][0] == "system" else (("system", NO_SYSTEM), *turns)
    text = "".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in asked)
    return text if ends else text + "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Texts:
    """What is asked and answered in a row.

    Attributes:
        question: of the user.
        good: the better answer.
        bad: the worse answer.
        system: what the system says.
        kind: what is odd about them.
    """

    question: str
    good: str
    bad: str
    system: str = "Be brief."
    kind: str = "plain"


PLAIN = Texts("2+2?", "4", "5")

WORDS = ("rain", "Tee", "çay", "水", "кот", "two", "egg", "of", "the", "3.5", "don't", "naïve", "A")
ODD: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "emoji": lambda text: f"🙂 {text} 👩‍👩‍👧",
    "combining": lambda text: f"e\u0301{text}\u200d\u00ad",
    "right to left": lambda text: f"\u05e9\u05dc\u05d5\u05dd {text} \u202e",
    "spaces around": lambda text: f"  {text} \t",
    "lines around": lambda text: f"\n\n{text}\r\n\n",
    "a number": lambda text: str(len(text)),
    "JSON object": lambda text: json.dumps({"text": text}),
    "JSON list": lambda text: json.dumps([text, 1]),
    "special tokens": lambda text: f"<|im_start|>{text} <|endoftext|> <|im_end|>!",
    "its own end": lambda text: f"{text} <|im_end|>.",
    "roles in the text": lambda text: f"User: {text}\nAssistant: no",
    "zero byte": lambda text: f"{text}\x00.",
    "quotes and commas": lambda text: f'"{text}", "a"";\t{text}',
}
"""What may be odd about a text."""


def odd_texts(kind: str, chance: random.Random) -> Texts:
    """Texts of a kind; the answers differ from the first character on."""

    def words() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 5)))

    spoil = ODD[kind]
    if kind == "a number":
        return Texts("7", "14", "25", "0", kind)
    good, bad = (spoil(words() + mark) for mark in "+-")
    return Texts(spoil(words() + "?"), f"G{good}", f"B{bad}", spoil(words()), kind)


@dataclass(frozen=True)
class Layout:
    """A layout, with a row of it and what is read.

    Attributes:
        row: a row with the texts.
        asked: turns of the prompt, or its text.
        needs: what the objective needs.
        responses: the answers that are read, in the row's order.
        strips: whether the layout's texts lose the whitespace around them.
    """

    row: Callable[[Texts], Row]
    asked: Callable[[Texts], list[Turn] | str] = lambda t: [("user", t.question)]
    needs: Asked = field(default_factory=Asked)
    responses: Callable[[Texts], list[str]] = lambda t: [t.good, t.bad]
    strips: bool = False


LABELS = Asked(needs_pairs=False, needs_labels=True)
NEITHER = Asked(needs_pairs=False)
PRIOR = Asked(needs_prior=True)


def both(chosen: Any, rejected: Any) -> Row:
    """The columns of a pair."""
    return {"chosen": chosen, "rejected": rejected}


def with_system(t: Texts) -> list[Turn]:
    """The prompt of a row with a system's text."""
    return [("system", t.system), ("user", t.question)]


def transcribed(t: Texts, answer: str) -> str:
    """A dialogue as hh-rlhf writes it."""
    return f"\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: {t.question}\n\nAssistant: {answer}"


def first_good(t: Texts) -> list[str]:
    """The only answer of a row."""
    return [t.good]


LAYOUTS: dict[str, Layout] = {
    "pair of texts": Layout(lambda t: {"prompt": t.question, **both(t.good, t.bad)}, lambda t: t.question),
    "pair of texts that begin with the prompt": Layout(
        lambda t: {"prompt": t.question, **both(t.question + t.good, t.question + t.bad)},
        lambda t: t.question,
    ),
    "pair of whole texts": Layout(
        lambda t: both(f"{t.question}\n{t.good}", f"{t.question}\n{t.bad}"), lambda t: f"{t.question}\n"
    ),
    "pair of messages": Layout(
        lambda t: {"prompt": [user(t.question)], **both([assistant(t.good)], [assistant(t.bad)])}
    ),
    "messages, answers as text": Layout(lambda t: {"prompt": [user(t.question)], **both(t.good, t.bad)}),
    "text, answers as messages": Layout(
        lambda t: {"prompt": t.question, **both([assistant(t.good)], [assistant(t.bad)])}
    ),
    "pair of whole conversations": Layout(
        lambda t: both([user(t.question), assistant(t.good)], [user(t.question), assistant(t.bad)])
    ),
    "whole conversations beside their prompt": Layout(
        lambda t: {
            "prompt": t.question,
            **both(
                [message("system", t.system), user(t.question), assistant(t.good)],
                [message("system", t.system), user(t.question), assistant(t.bad)],
            ),
        },
        with_system,
    ),
    "pair of transcripts": Layout(
        lambda t: both(transcribed(t, t.good), transcribed(t, t.bad)),
        lambda t: [("user", "Hi"), ("assistant", "Hello!"), ("user", t.question)],
        strips=True,
    ),
    "ShareGPT, answers as messages": Layout(
        lambda t: {
            "conversations": [turn("human", t.question)],
            **both(turn("gpt", t.good), turn("gpt", t.bad)),
        }
    ),
    "ShareGPT, answers as lists, system beside": Layout(
        lambda t: {
            "conversations": [turn("human", t.question)],
            "system": t.system,
            **both([turn("gpt", t.good)], [turn("gpt", t.bad)]),
        },
        with_system,
    ),
    "ShareGPT, answers as text": Layout(
        lambda t: {"conversation": [turn("Human", t.question)], **both(t.good, t.bad)}
    ),
    "ShareGPT with a label": Layout(
        lambda t: {"conversations": [turn("human", t.question), turn("gpt", t.good)], "label": True},
        needs=LABELS,
        responses=first_good,
    ),
    "ShareGPT with kto_tag and system": Layout(
        lambda t: {
            "conversations": [turn("human", t.question), turn("gpt", t.good)],
            "kto_tag": False,
            "system": t.system,
        },
        with_system,
        LABELS,
        first_good,
    ),
    "ShareGPT alone": Layout(
        lambda t: {"conversations": [turn("human", t.question), turn("gpt", t.good)]},
        needs=NEITHER,
        responses=first_good,
    ),
    "messages with a label": Layout(
        lambda t: {"messages": [user(t.question), assistant(t.good)], "label": True},
        needs=LABELS,
        responses=first_good,
    ),
    "Alpaca": Layout(
        lambda t: {"instruction": t.question, "input": "", **both(t.good, t.bad)},
    ),
    "Alpaca with input, system, history": Layout(
        lambda t: {
            "instruction": "Answer.",
            "input": t.question,
            "system": t.system,
            "history": [["Hi", "Hello!"]],
            **both(t.good, t.bad),
        },
        lambda t: [
            ("system", t.system),
            ("user", "Hi"),
            ("assistant", "Hello!"),
            ("user", f"Answer.\n{t.question}"),
        ],
    ),
    "Alpaca, the output a list": Layout(
        lambda t: {"instruction": t.question, "input": "", "output": [t.good, t.bad]}
    ),
    "Alpaca with a label": Layout(
        lambda t: {"instruction": t.question, "input": "", "output": t.good, "label": True},
        needs=LABELS,
        responses=first_good,
    ),
    "Alpaca alone": Layout(
        lambda t: {"instruction": t.question, "output": t.good}, needs=NEITHER, responses=first_good
    ),
    "OpenAI preferences": Layout(
        lambda t: {
            "input": {"messages": [message("developer", t.system), user(t.question)], "tools": []},
            "preferred_output": [assistant(t.good)],
            "non_preferred_output": [assistant(t.bad)],
        },
        with_system,
    ),
    "content in parts": Layout(
        lambda t: {
            "prompt": [user([{"type": "text", "text": t.question}])],
            **both(
                [assistant([{"type": "text", "text": t.good[:1]}, {"type": "text", "text": t.good[1:]}])],
                [assistant([{"type": "text", "text": t.bad}])],
            ),
        }
    ),
    "chosen_messages": Layout(
        lambda t: {
            f"{name}_messages": [
                user([{"type": "text", "value": t.question}]) | {"loss_weight": 0.0},
                assistant([{"type": "text", "value": answer}]) | {"loss_weight": 1.0},
            ]
            for name, answer in (("chosen", t.good), ("rejected", t.bad))
        }
    ),
    "question, response_j, response_k": Layout(
        lambda t: {"question": t.question, "response_j": t.good, "response_k": t.bad}
    ),
    "response_0, response_1": Layout(
        lambda t: {
            "prompt": t.question,
            "response_0": t.bad,
            "response_1": t.good,
            "better_response_id": 1,
        },
        responses=lambda t: [t.bad, t.good],
    ),
    "system, question, chosen, rejected": Layout(
        lambda t: {"system": t.system, "question": t.question, **both(t.good, t.bad)}, with_system
    ),
    "scored pair": Layout(
        lambda t: {
            "prompt": t.question,
            **both(t.good, t.bad),
            "score_chosen": 9.5,
            "score_rejected": 2,
        },
        lambda t: t.question,
        PRIOR,
    ),
    "scored group": Layout(
        lambda t: {"prompt": t.question, "responses": [t.bad, t.good], "scores": [1.5, 3]},
        lambda t: t.question,
        PRIOR,
        lambda t: [t.bad, t.good],
    ),
    "scored group of messages": Layout(
        lambda t: {
            "prompt": [user(t.question)],
            "responses": [[assistant(t.bad)], [assistant(t.good)]],
            "scores": [1.5, 3],
        },
        needs=PRIOR,
        responses=lambda t: [t.bad, t.good],
    ),
    "labelled response": Layout(
        lambda t: {"prompt": t.question, "completion": t.good, "label": True},
        lambda t: t.question,
        LABELS,
        first_good,
    ),
    "mapped columns": Layout(
        lambda t: {"frage": t.question, "gut": t.good, "schlecht": t.bad},
        lambda t: t.question,
        Asked(mapping={"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}),
    ),
    "two columns mapped to the prompt": Layout(
        lambda t: {"frage": "Sag:", "mehr": t.question, **both(t.good, t.bad)},
        lambda t: f"Sag:\n{t.question}",
        Asked(mapping={"prompt": ["frage", "mehr"]}),
    ),
    "shared beginning beside another column": Layout(
        lambda t: {"question": "which?", **both(f"{t.question}\n{t.good}", f"{t.question}\n{t.bad}")},
        lambda t: f"{t.question}\n",
        Asked(mapping={"prompt": "shared_beginning"}),
    ),
}


@dataclass(frozen=True)
class Case:
    """Rows, and what becomes of the last of them.

    Attributes:
        name: family and variation.
        rows: of the source.
        asked: what the objective needs.
        prompt: text of the prompt's tokens.
        trained: of each response, the text of its trained tokens.
        dropped: the rule under which the last row is dropped.
        error: what the error says, a regular expression.
        chosen: index of the chosen response, where there is a pair.
    """

    name: str
    rows: list[Row]
    asked: Asked = field(default_factory=Asked)
    prompt: str = ""
    trained: tuple[str, ...] = ()
    dropped: str = ""
    error: str = ""
    chosen: int | None = None


def layout_case(name: str, t: Texts) -> Case:
    """A row of a layout with the texts, and what is trained of it."""
    layout = LAYOUTS[name]
    asked = layout.asked(t)
    responses = layout.responses(t)
    if layout.strips and isinstance(asked, list):
        asked = [(role, text.strip()) for role, text in asked]
        responses = [text.strip() for text in responses]
    prompt = asked if isinstance(asked, str) else chatml(*asked)
    chosen = None if len(responses) == 1 else layout.responses(t).index(t.good)
    trained = tuple(text + END for text in responses)
    return Case(f"{name}: {t.kind}", [layout.row(t)], layout.needs, prompt, trained, chosen=chosen)


def layout_cases() -> Iterator[Case]:
    """Every layout with every kind of text."""
    for number, name in enumerate(LAYOUTS):
        for kind in ODD:
            yield layout_case(name, odd_texts(kind, random.Random(f"{number} {kind}")))
