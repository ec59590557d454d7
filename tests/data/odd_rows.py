"""Rows as people have them, in every layout, with what is trained of each: written here by hand of ChatML."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

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
        chosen: index of the better answer; None where there is no pair.
    """

    row: Callable[[Texts], Row]
    asked: Callable[[Texts], list[Turn] | str] = lambda t: [("user", t.question)]
    needs: Asked = field(default_factory=Asked)
    responses: Callable[[Texts], list[str]] = lambda t: [t.good, t.bad]
    strips: bool = False
    chosen: int | None = 0


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
    "a tool's and a user's turn in a response": Layout(
        lambda t: {
            "prompt": [user(t.question)],
            **both(
                [assistant("Wait."), message("tool", "2+2=4"), assistant(t.good)],
                [assistant(t.bad), user("Sure?"), assistant("No.")],
            ),
        },
        responses=lambda t: [f"Wait.{END}{t.good}", f"{t.bad}{END}No."],
    ),
    "messages with loss weights": Layout(
        lambda t: {
            "messages": [
                user("Hi"),
                assistant("Hello!") | {"loss_weight": 0},
                user(t.question),
                assistant(t.good) | {"loss_weight": 1},
            ],
            "label": True,
        },
        lambda t: [("user", "Hi"), ("assistant", "Hello!"), ("user", t.question)],
        LABELS,
        first_good,
        chosen=None,
    ),
    "a begun answer": Layout(
        lambda t: {"prompt": [user(t.question), assistant("It is ")], **both(t.good, t.bad)},
        lambda t: chatml(("user", t.question)) + "It is ",
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
        chosen=None,
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
        chosen=None,
    ),
    "ShareGPT alone": Layout(
        lambda t: {"conversations": [turn("human", t.question), turn("gpt", t.good)]},
        needs=NEITHER,
        responses=first_good,
        chosen=None,
    ),
    "messages with a label": Layout(
        lambda t: {"messages": [user(t.question), assistant(t.good)], "label": True},
        needs=LABELS,
        responses=first_good,
        chosen=None,
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
        chosen=None,
    ),
    "Alpaca alone": Layout(
        lambda t: {"instruction": t.question, "output": t.good},
        needs=NEITHER,
        responses=first_good,
        chosen=None,
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
        chosen=1,
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
        chosen=1,
    ),
    "scored group of messages": Layout(
        lambda t: {
            "prompt": [user(t.question)],
            "responses": [[assistant(t.bad)], [assistant(t.good)]],
            "scores": [1.5, 3],
        },
        needs=PRIOR,
        responses=lambda t: [t.bad, t.good],
        chosen=1,
    ),
    "labelled response": Layout(
        lambda t: {"prompt": t.question, "completion": t.good, "label": True},
        lambda t: t.question,
        LABELS,
        first_good,
        chosen=None,
    ),
    "mapped columns": Layout(
        lambda t: {"frage": t.question, "gut": t.good, "schlecht": t.bad},
        lambda t: t.question,
        Asked(mapping={"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}),
    ),
    "system beside a prompt of messages": Layout(
        lambda t: {
            "prompt": [user(t.question)],
            "system": t.system,
            **both([assistant(t.good)], [assistant(t.bad)]),
        },
        with_system,
    ),
    "system beside whole conversations": Layout(
        lambda t: {
            "system": t.system,
            **both([user(t.question), assistant(t.good)], [user(t.question), assistant(t.bad)]),
        },
        with_system,
    ),
    "system beside texts": Layout(
        lambda t: {"prompt": t.question, "system": t.system, **both(t.good, t.bad)},
        with_system,
        Asked(mapping={"system": "system"}),
    ),
    "system beside texts, as text": Layout(
        lambda t: {"prompt": t.question, "system": t.system, **both(t.good, t.bad)},
        lambda t: f"{t.system}\n{t.question}",
        Asked(mapping={"prompt": ["system", "prompt"]}),
    ),
    "system beside texts, left out": Layout(
        lambda t: {"prompt": t.question, "system": t.system, **both(t.good, t.bad)},
        lambda t: t.question,
        Asked(mapping={"system": "unused"}),
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
    trained = tuple(text + END for text in responses)
    return Case(f"{name}: {t.kind}", [layout.row(t)], layout.needs, prompt, trained, chosen=layout.chosen)


def layout_cases(name: str) -> list[Case]:
    """A layout with every kind of text."""
    return [layout_case(name, odd_texts(kind, random.Random(f"{name} {kind}"))) for kind in ODD]


# --- rows that break a rule, or nearly ---

Q, A, B = "2+2?", "4", "5"
ASKED = chatml(("user", Q))
PAIR: Row = {"prompt": Q, **both(A, B)}
GROUP: Row = {"prompt": Q, "responses": [A, B, "four"], "scores": [2, 1, 3]}
CHAT: Row = {"prompt": [user(Q)], **both([assistant(A)], [assistant(B)])}
SHAREGPT: Row = {"conversations": [turn("human", Q)], **both(A, B)}
ALPACA: Row = {"instruction": Q, **both(A, B)}
ANSWERED = (A + END, B + END)
CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}


def text_cells() -> Iterator[Case]:
    """Cells of prompts and responses that hold no text."""
    for column in ("prompt", "chosen", "rejected"):
        for value in (None, 5, 2.5, True, float("nan"), {"a": 1}, ["a"], [None], [{"role": "user"}]):
            error = rf"rule missing_field .*\n  .*row 0, column `{column}`: .*\nFix the data, or set data"
            yield Case(f"{column}: {value!r}", [PAIR | {column: value}], error=error)
    for value in ("", " \n\t", "\u2003"):
        yield Case(
            f"prompt: {value!r}",
            [PAIR | {"prompt": value}],
            error=r"rule empty_prompt .*\n  .*column `prompt`",
        )
        for column in ("chosen", "rejected"):
            yield Case(f"{column}: {value!r}", [PAIR, PAIR | {column: value}], dropped="empty_response")
            odd = CHAT | {column: [assistant(value)]}
            yield Case(f"{column}: message {value!r}", [CHAT, odd], dropped="empty_response")
    for prompt in ([], [user("")], [message("system", " ")]):
        for row in (CHAT, PAIR, {**both([user(Q), assistant(A)], [user(Q), assistant(B)])}):
            yield Case(
                f"prompt: {prompt!r} before {row['chosen']!r}",
                [row | {"prompt": prompt}],
                error=r"rule empty_prompt .*\n  .*column `prompt`",
            )
    yield Case("chosen: no message", [CHAT, CHAT | {"chosen": []}], dropped="empty_response")
    yield Case("equal texts", [PAIR, PAIR | {"chosen": B}], dropped="equal_responses")
    yield Case("equal messages", [CHAT, CHAT | {"chosen": [assistant(B)]}], dropped="equal_responses")
    swapped = [{"content": B, "role": "assistant"}]
    yield Case("equal messages, keys swapped", [CHAT, CHAT | {"chosen": swapped}], dropped="equal_responses")
    yield Case(
        "equal but for the role's name",
        [CHAT, CHAT | {"chosen": [message("gpt", B)]}],
        dropped="equal_responses",
    )
    yield Case(
        "equal once tokenized", [CHAT, CHAT | {"chosen": [assistant(B + END)]}], dropped="equal_responses"
    )
    for column in ("prompt", "chosen"):
        for half in ("\ud83d", "4 \udc00 4"):
            error = rf"column `{column}`: .*half a surrogate pair"
            yield Case(f"{column}: half a surrogate {half!r}", [PAIR | {column: half}], error=error)
            role = user if column == "prompt" else assistant
            yield Case(f"{column}: message with {half!r}", [CHAT | {column: [role(half)]}], error=error)


def prompts_in_texts() -> Iterator[Case]:
    """Text responses that begin with their prompt, by design or by chance."""
    repeated = [{"prompt": f"{n}+{n}?", **both(f"{n}+{n}? {n + n}", f"{n}+{n}? {n}")} for n in range(3, 9)]
    by_chance = {"prompt": "2", **both("2 apples", "2 pears")}
    yield Case(
        "prompt repeated by all",
        [*repeated, by_chance],
        prompt="2",
        trained=(f" apples{END}", f" pears{END}"),
        chosen=0,
    )
    yield Case(
        "prompt repeated by chance",
        [PAIR, by_chance],
        prompt="2",
        trained=(f"2 apples{END}", f"2 pears{END}"),
        chosen=0,
    )
    yield Case(
        "by chance, the others later",
        [by_chance, PAIR, by_chance | {"prompt": "2 "}],
        prompt="2 ",
        trained=(f"2 apples{END}", f"2 pears{END}"),
        chosen=0,
    )
    yield Case(
        "prompt repeated, but not here",
        [*repeated * 4, PAIR],
        error=r"rule prompt_mismatch .*\n  .*row 24, column `chosen`: '4'.*first rows repeat",
    )
    yield Case(
        "prompt repeated by one of two",
        [PAIR, {"prompt": "2", **both("2 apples", "pears")}],
        prompt="2",
        trained=(f"2 apples{END}", f"pears{END}"),
        chosen=0,
    )
    yield Case(
        "nothing after the prompt",
        [*repeated, {"prompt": "2", **both("2", "2 pears")}],
        dropped="empty_response",
    )
    group = {"prompt": "2", "responses": ["2 apples", "2 pears"], "scores": [1, 2]}
    yield Case(
        "a group, by chance",
        [GROUP, group],
        prompt="2",
        trained=(f"2 apples{END}", f"2 pears{END}"),
        chosen=1,
    )
    single = {"prompt": "2", "completion": "2 apples", "label": True}
    yield Case(
        "a label, by chance",
        [{"prompt": Q, "completion": A, "label": True}, single],
        LABELS,
        prompt="2",
        trained=(f"2 apples{END}",),
    )
    # Whether a cell of JSON is messages is decided by the whole column too.
    said = json.dumps([user("hi")])
    yield Case(
        "messages as an answer",
        [PAIR, {"prompt": "A message?", **both(said, "none")}],
        prompt="A message?",
        trained=(said + END, f"none{END}"),
        chosen=0,
    )
    yield Case(
        "messages as a question", [PAIR, PAIR | {"prompt": said}], prompt=said, trained=ANSWERED, chosen=0
    )


def numbers() -> Iterator[Case]:
    """Scores, labels and preferences, however they are written."""
    kept = {"prompt": Q, "trained": (A + END, B + END, f"four{END}"), "chosen": 2}
    for scores in (
        [Decimal("2"), Decimal("1.5"), Decimal("3")],
        [np.float32(2), np.int64(1), np.float16(3)],
        np.array([2.0, 1.0, 3.0]),
        (2, 1, 3),
        [Fraction(2), Fraction(1, 2), 3],
        [-2, -1e300, 0],
        "[2, 1, 3]",
    ):
        yield Case(f"scores: {scores!r}", [GROUP | {"scores": scores}], PRIOR, **kept)
    for odd in (
        float("nan"),
        float("inf"),
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("1e999"),
        10**400,
        np.float32("nan"),
        "2",
        "high",
        True,
        [1],
        {},
    ):
        yield Case(
            f"score: {odd!r}",
            [GROUP | {"scores": [2, odd, 3]}],
            PRIOR,
            error=r"rule nan_score .*\n  .*row 0, column `scores`: ",
        )
        pair = PAIR | {"score_chosen": odd, "score_rejected": 1}
        yield Case(
            f"score_chosen: {odd!r}",
            [pair],
            PRIOR,
            error=r"rule nan_score .*\n  .*row 0, column `score_chosen`: ",
        )
    for odd in (None, [], [2, 1], [2, 1, 3, 4], [2, None, 3], 2, {"a": 1}):
        yield Case(
            f"scores: {odd!r}",
            [GROUP, GROUP | {"scores": odd}],
            PRIOR,
            error=r"rule missing_score .*\n  .*row 1, column `scores`: ",
        )
    yield Case("all scores tied", [GROUP, GROUP | {"scores": [1, 1, 1]}], PRIOR, dropped="tied_scores")
    yield Case(
        "all responses equal", [GROUP, GROUP | {"responses": [A, A, A]}], PRIOR, dropped="equal_responses"
    )
    yield Case(
        "best and worst are one text, its mean as good as the other",
        [GROUP, GROUP | {"responses": [A, B, B], "scores": [2, 1, 3]}],
        PRIOR,
        dropped="tied_scores",
    )
    yield Case(
        "best and worst are one text, its mean better",
        [GROUP | {"responses": [A, B, B], "scores": [2, 1, 9]}],
        PRIOR,
        prompt=Q,
        trained=(A + END, B + END, B + END),
        chosen=1,
    )
    yield Case(
        "one response", [GROUP, {"prompt": Q, "responses": [A], "scores": [1]}], PRIOR, dropped="tied_scores"
    )
    for odd in (None, [], "a", {"a": 1}, 5):
        yield Case(
            f"responses: {odd!r}",
            [GROUP | {"responses": odd}],
            PRIOR,
            error=r"rule missing_field .*\n  .*column `responses`: .*it must be a list",
        )
    answer = {"prompt": Q, "completion": A}
    for label in (True, 1, 1.0, " TRUE\n", "false", np.bool_(True), np.int64(0), -1, Decimal(1), "0"):
        yield Case(f"label: {label!r}", [answer | {"label": label}], LABELS, prompt=Q, trained=(A + END,))
    for label in (None, "yes", "", 2, 0.5, float("nan"), [], {}, Decimal("sNaN")):
        yield Case(
            f"label: {label!r}",
            [answer | {"label": label}],
            LABELS,
            error=r"rule bad_label .*\n  .*column `label`: .*true or false, 1 or 0",
        )
    nectar = {
        "prompt": transcribed(PLAIN, ""),
        "answers": [{"answer": A, "rank": 1}, {"answer": B, "rank": 2}],
    }
    for kind in (int, float, Decimal, np.float32, np.int64):
        answers = [one | {"rank": kind(one["rank"])} for one in nectar["answers"]]
        asked = chatml(("user", "Hi"), ("assistant", "Hello!"), ("user", Q))
        yield Case(
            f"rank as {kind.__name__}",
            [nectar | {"answers": answers}],
            PRIOR,
            prompt=asked,
            trained=ANSWERED,
            chosen=0,
        )


def better_ids() -> Iterator[Case]:
    """Two responses, and the number of the better."""
    row = {"prompt": Q, "response_0": A, "response_1": B}
    for name in ("better_response_id", "safer_response_id", "better"):
        for better in (0, 1, "0", "1", 1.0, np.int64(1)):
            yield Case(
                f"{name}: {better!r}",
                [row | {name: better}],
                prompt=ASKED,
                trained=ANSWERED,
                chosen=int(better),
            )
    for odd in (None, 2, -1, "A", "", True, 0.5, [0], float("nan")):
        yield Case(
            f"better_response_id: {odd!r}",
            [row | {"better_response_id": odd}],
            error=r"rule bad_label .*\n  .*column `better_response_id`: .*must be the number",
        )
    two = row | {"better_response_id": 0, "safer_response_id": 1}
    yield Case(
        "better and safer",
        [two],
        error=r"both say .*Set data\.columns\.better=better_response_id or data\.columns\.better=safer_",
    )
    yield Case(
        "better and safer, mapped",
        [two],
        Asked(mapping={"better": "safer_response_id"}),
        prompt=ASKED,
        trained=ANSWERED,
        chosen=1,
    )
    yield Case(
        "neither",
        [row],
        error=r"says which of `response_0`, `response_1` is better\. Set data\.columns\.better=COLUMN",
    )
    yield Case("neither, where none is needed", [row], NEITHER, prompt=ASKED, trained=ANSWERED)
    yield Case(
        "a prior", [row | {"better_response_id": 0}], PRIOR, error=r"The prior needs a score per response"
    )
    yield Case(
        "two equal",
        [row | {"better_response_id": 0}, row | {"response_1": A, "better_response_id": 0}],
        dropped="equal_responses",
    )


def roles() -> Iterator[Case]:
    """Names of roles, in any case, and what no role may say."""
    for asks in ("user", "User", " HUMAN ", "prompter"):
        for answers in ("assistant", "ASSISTANT", "gpt", "Model", "bot", "ChatGPT ", "AI"):
            row = both([turn(asks, Q), turn(answers, A)], [message(asks, Q), message(answers, B)])
            yield Case(f"{asks!r} and {answers!r}", [row], prompt=ASKED, trained=ANSWERED, chosen=0)
    for role in ("narrator", "critic"):
        yield Case(
            f"only {role}",
            [CHAT | {"chosen": [message(role, A)]}],
            error=r"rule (nothing_trained|prompt_mismatch) .*\n  .*column `chosen`",
        )
    for role in (None, 5, ["user"]):
        yield Case(
            f"role {role!r}",
            [CHAT | {"chosen": [message(role, A)]}],
            error=r"rule missing_field .*\n  .*column `chosen`: .*text under `role`",
        )
    for content in (
        None,
        5,
        {"type": "text", "text": A},
        [{"type": "image_url", "image_url": "x"}],
        [5],
        [{"text": 5}],
    ):
        yield Case(
            f"content {content!r}",
            [CHAT | {"chosen": [assistant(content)]}],
            error=r"rule missing_field .*\n  .*column `chosen`: .*(text or parts of|cannot be trained)",
        )
    many = [assistant(A), user("Sure?"), assistant("Yes.")]
    yield Case(
        "several turns",
        [CHAT | {"chosen": many}],
        prompt=ASKED,
        trained=(f"{A}{END}Yes.{END}", B + END),
        chosen=0,
    )
    yield Case(
        "a user's turn last",
        [CHAT | {"chosen": [*many, user("Thanks")]}],
        prompt=ASKED,
        trained=(f"{A}{END}Yes.{END}", B + END),
        chosen=0,
    )
    used = [assistant("Wait."), message("tool", "4"), assistant(A)]
    yield Case(
        "a tool's turn",
        [CHAT | {"chosen": used}],
        prompt=ASKED,
        trained=(f"Wait.{END}{A}{END}", B + END),
        chosen=0,
    )
    yield Case(
        "a system's turn",
        [CHAT | {"chosen": [assistant(A), message("system", "Stop."), assistant("Yes.")]}],
        prompt=ASKED,
        trained=(f"{A}{END}Yes.{END}", B + END),
        chosen=0,
    )
    begun = CHAT | {"prompt": [user(Q), assistant("It is ")]}
    yield Case("a begun turn", [begun], prompt=f"{ASKED}It is ", trained=ANSWERED, chosen=0)
    yield Case(
        "a begun turn, then others",
        [begun | {"chosen": many}],
        prompt=f"{ASKED}It is ",
        trained=(f"{A}{END}Yes.{END}", B + END),
        chosen=0,
    )
    yield Case(
        "a begun turn, whole conversations",
        [both([user(Q), assistant("It is "), assistant(A)], [user(Q), assistant("It is "), assistant(B)])],
        prompt=f"{ASKED}It is ",
        trained=ANSWERED,
        chosen=0,
    )
    yield Case(
        "other prompts",
        [
            both([user(Q), assistant(A)], [user(Q), assistant(B)]),
            both([user(Q), assistant(A)], [user("3+3?"), assistant(B)]),
        ],
        dropped="different_prompts",
    )
    yield Case(
        "another prompt beside",
        [{"prompt": "3+3?", **both([user(Q), assistant(A)], [user(Q), assistant(B)])}],
        error=r"rule prompt_mismatch .*\n  .*column `chosen`",
    )
    yield Case(
        "text and messages",
        [PAIR | {"chosen": [assistant(A)]}],
        error=r"rule missing_field .*\n.*one response is text, another is messages",
    )
    one = {"prompt": Q, "completion": [user(Q), assistant(A), user("Sure?")], "label": True}
    yield Case("a completion that ends with the user", [one], LABELS, prompt=ASKED, trained=(A + END,))


def sharegpt() -> Iterator[Case]:
    """ShareGPT's odd rows."""
    spoken = {
        "conversations": [turn("human", Q), turn("gpt", A), turn("human", "Sure?")],
        **both("Yes.", "No."),
    }
    asked = chatml(("user", Q), ("assistant", A), ("user", "Sure?"))
    yield Case("earlier turns", [spoken], prompt=asked, trained=(f"Yes.{END}", f"No.{END}"), chosen=0)
    labelled = [*spoken["conversations"], turn("gpt", "Yes.")]
    yield Case(
        "only the last turn",
        [{"conversations": labelled, "label": 1}],
        LABELS,
        prompt=asked,
        trained=(f"Yes.{END}",),
    )
    yield Case(
        "a last turn of the user",
        [{"conversations": [*labelled, turn("human", "Ok")], "label": 1}],
        LABELS,
        prompt=asked,
        trained=(f"Yes.{END}",),
    )
    yield Case(
        "no turn of the model",
        [{"conversations": [turn("human", Q)], "label": True}],
        LABELS,
        error=r"rule nothing_trained .*\n  .*column `conversations`",
    )
    yield Case(
        "no question",
        [{"conversations": [turn("gpt", A)], "label": True}],
        LABELS,
        error=r"rule empty_prompt .*\n  .*column `conversations`",
    )
    yield Case("no label", [{"conversations": labelled}], LABELS, error=r"have one response and no label")
    yield Case(
        "no pair", [{"conversations": labelled, "label": True}], error=r"a row has one response and no pair"
    )
    for odd in (None, [], "Hi", 5, [None]):
        yield Case(
            f"conversations: {odd!r}",
            [SHAREGPT | {"conversations": odd}],
            error=r"rule (missing_field|empty_prompt) .*\n  .*row 0, column `conversations`: ",
        )
    own = [turn("system", "Be brief."), turn("human", Q)]
    both_systems = chatml(("system", "Be brief."), ("user", Q))
    yield Case(
        "a system twice",
        [SHAREGPT | {"conversations": own, "system": "Be brief."}],
        prompt=both_systems,
        trained=ANSWERED,
        chosen=0,
    )
    yield Case(
        "two systems",
        [SHAREGPT | {"conversations": own, "system": "Be kind."}],
        error=r"rule prompt_mismatch .*\n  .*column `system`: 'Be kind\.': .*system message of its own",
    )
    for odd in (None, "", "  "):
        yield Case(f"system: {odd!r}", [SHAREGPT | {"system": odd}], prompt=ASKED, trained=ANSWERED, chosen=0)
    for odd in (5, ["Be brief."], {"a": 1}):
        for row in (SHAREGPT, ALPACA, {"question": Q, **both(A, B)}):
            yield Case(
                f"system: {odd!r} beside {next(iter(row))}",
                [row | {"system": odd}],
                error=r"rule missing_field .*\n  .*column `system`: .*it must be text",
            )
    called = [turn("human", Q), turn("function_call", json.dumps(CALL)), turn("observation", "4")]
    yield Case(
        "a call the template has no words for",
        [SHAREGPT | {"conversations": called}],
        error=r"rule template_refuses .*\n.*it never looks at `tool_calls`",
    )
    for odd in (
        "add(2, 2)",
        "5",
        '["add"]',
        "[5]",
        '{"arguments": {}}',
        '{"name": "add", "arguments": [2]}',
        '{"name": "add", "arguments": "2"}',
    ):
        spoiled = [turn("human", Q), turn("function_call", odd), turn("observation", "4")]
        yield Case(
            f"call: {odd}",
            [SHAREGPT | {"conversations": spoiled}],
            error=r"rule bad_tools .*\n  .*column `conversations`",
        )


def systems() -> Iterator[Case]:
    """A system's text beside the plain shapes."""
    said = chatml(("system", "Be brief."), ("user", Q))
    spoken = Asked(mapping={"system": "how"})
    scored = {"prompt": [user(Q)], "responses": [A, B], "scores": [2, 1]}
    for row in (CHAT, scored):
        yield Case(
            f"beside {list(row)}", [row | {"system": "Be brief."}], prompt=said, trained=ANSWERED, chosen=0
        )
    own = CHAT | {"prompt": [message("system", "Be brief."), user(Q)]}
    yield Case("its own again", [own | {"system": "Be brief."}], prompt=said, trained=ANSWERED, chosen=0)
    yield Case(
        "not its own",
        [own | {"system": "Be kind."}],
        error=r"rule prompt_mismatch .*\n  .*column `system`: 'Be kind\.': .*system message of its own",
    )
    neither = r"row 1: the column `system` has text, the prompt is plain text.*\[system, prompt\].*=unused"
    for row in (PAIR, {"prompt": Q, "responses": [A, B], "scores": [2, 1]}, both(f"{Q}\n{A}", f"{Q}\n{B}")):
        yield Case(
            f"texts {list(row)}", [row | {"system": None}, row | {"system": "Be brief."}], error=neither
        )
    for blank in (None, "", " "):
        yield Case(f"no text: {blank!r}", [PAIR | {"system": blank}], prompt=Q, trained=ANSWERED, chosen=0)
        # Where it is asked for, all rows are conversations.
        yield Case(f"no text, mapped: {blank!r}", [PAIR | {"how": blank}], spoken, ASKED, ANSWERED, chosen=0)
    yield Case("mapped", [PAIR | {"how": "Be brief."}], spoken, said, ANSWERED, chosen=0)
    yield Case("mapped, a layout", [SHAREGPT | {"how": "Be brief."}], spoken, said, ANSWERED, chosen=0)
    yield Case(
        "left out of a layout",
        [SHAREGPT | {"system": "Be brief."}],
        Asked(mapping={"system": "unused"}),
        ASKED,
        ANSWERED,
        chosen=0,
    )
    yield Case(
        "rows joined by prompt",
        [
            {"prompt": Q, "response": answer, "helpfulness": helpfulness, "how": "Be brief."}
            for answer, helpfulness in ((A, 4), (B, 0))
        ],
        spoken,
        said,
        ANSWERED,
        chosen=0,
    )


def alpaca() -> Iterator[Case]:
    """Alpaca's odd rows."""
    earlier = [("user", "Hi"), ("assistant", "Hello!"), ("user", Q)]
    for history in ([["Hi", "Hello!"]], [("Hi", "Hello!")], json.dumps([["Hi", "Hello!"]])):
        yield Case(
            f"history: {history!r}",
            [ALPACA | {"history": history}],
            prompt=chatml(*earlier),
            trained=ANSWERED,
            chosen=0,
        )
    for history in (None, [], ""):
        yield Case(
            f"history: {history!r}", [ALPACA | {"history": history}], prompt=ASKED, trained=ANSWERED, chosen=0
        )
    for odd in (
        [None],
        ["Hi"],
        [["Hi"]],
        [["Hi", "Hello!", "more"]],
        [["Hi", None]],
        [[5, 6]],
        {"a": 1},
        5,
        "Hi",
    ):
        yield Case(
            f"history: {odd!r}",
            [ALPACA | {"history": odd}],
            error=r"rule missing_field .*\n  .*column `history`: .*pairs of texts",
        )
    for blank in (None, "", " "):
        yield Case(f"input: {blank!r}", [ALPACA | {"input": blank}], prompt=ASKED, trained=ANSWERED, chosen=0)
    for odd in (5, ["a"], {"a": 1}):
        yield Case(
            f"input: {odd!r}",
            [ALPACA | {"input": odd}],
            error=r"rule missing_field .*\n  .*column `input`: .*it must be text",
        )
    for odd in (None, 5, {"a": 1}):
        yield Case(
            f"instruction: {odd!r}",
            [ALPACA | {"instruction": odd}],
            error=r"rule missing_field .*\n  .*column `instruction`",
        )
    yield Case(
        "only an input", [ALPACA | {"instruction": "", "input": Q}], prompt=ASKED, trained=ANSWERED, chosen=0
    )
    yield Case(
        "nothing asked",
        [ALPACA | {"instruction": "", "input": ""}],
        error=r"rule empty_prompt .*\n  .*column `instruction`",
    )
    ranked = {"instruction": Q, "output": [A, B]}
    for odd in ([A], [A, B, "6"], [], None, A):
        yield Case(
            f"output: {odd!r}",
            [ranked, ranked | {"output": odd}],
            error=r"rule missing_field .*\n  .*row 1, column `output`: .*two responses",
        )
    for odd in ([A, None], [5, B]):
        yield Case(
            f"output: {odd!r}",
            [ranked, ranked | {"output": odd}],
            error=r"rule missing_field .*\n  .*row 1, column `output\[\d\]`",
        )
    yield Case("output: equal", [ranked, ranked | {"output": [A, A]}], dropped="equal_responses")
    yield Case("output: empty", [ranked, ranked | {"output": [A, ""]}], dropped="empty_response")


def weights_and_tools() -> Iterator[Case]:
    """Weights of messages, and tools."""

    def weighed(*weights: Any) -> Row:
        said = [user(Q), assistant(A), user("Sure?"), assistant("Yes.")]
        messages = [
            one | ({} if weight is None else {"loss_weight": weight})
            for one, weight in zip(said, weights, strict=True)
        ]
        return {"messages": messages, "label": True}

    after = chatml(("user", Q), ("assistant", A), ("user", "Sure?"))
    yield Case(
        "all turns of the model", [weighed(0, 1, 0, 1)], LABELS, prompt=ASKED, trained=(f"{A}{END}Yes.{END}",)
    )
    yield Case("the last turn", [weighed(0, 0, 0, 1)], LABELS, prompt=after, trained=(f"Yes.{END}",))
    yield Case("the first turn", [weighed(0, 1, 0, 0)], LABELS, prompt=ASKED, trained=(A + END,))
    yield Case(
        "some weights", [weighed(None, 1, None, True)], LABELS, prompt=ASKED, trained=(f"{A}{END}Yes.{END}",)
    )
    yield Case(
        "no turn", [weighed(0, 0, 0, 0)], LABELS, error=r"rule nothing_trained .*\n  .*column `messages`"
    )
    for odd in (0.5, 2, -1, "1", float("nan"), [1]):
        for place in range(4):
            weights = [odd if place == n else float(n in (1, 3)) for n in range(4)]
            yield Case(
                f"weight {odd!r} at {place}",
                [weighed(*weights)],
                LABELS,
                error=r"rule bad_weight .*\n  .*row 0, column `messages`: .*in full .* or not at all",
            )
    for place in (0, 2):
        weights = [float(n in (1, 3, place)) for n in range(4)]
        yield Case(
            f"the user's turn {place}",
            [weighed(*weights)],
            LABELS,
            error=r"rule bad_weight .*\n  .*only the model's own messages are trained",
        )
    for spoiled in ("chosen", "rejected"):
        pair = {
            f"{name}_messages": [
                user(Q) | {"loss_weight": 0.5 * (name == spoiled)},
                assistant(answer) | {"loss_weight": 1},
            ]
            for name, answer in (("chosen", A), ("rejected", B))
        }
        yield Case(
            f"a weight in the prompt of {spoiled}",
            [pair],
            error=rf"rule bad_weight .*\n  .*column `{spoiled}_messages`: 0\.5",
        )
    for odd in ("add", "5", 5, ["add"], '["add"]', True):
        yield Case(
            f"tools: {odd!r}", [CHAT | {"tools": odd}], error=r"rule bad_tools .*\n  .*column `tools`: "
        )
    for blank in (None, "", "[]", [], " "):
        yield Case(f"tools: {blank!r}", [CHAT | {"tools": blank}], prompt=ASKED, trained=ANSWERED, chosen=0)
    for tools in ([CALL], json.dumps([CALL]), json.dumps(CALL)):
        yield Case(
            f"tools: {tools!r}",
            [CHAT | {"tools": tools}],
            error=r"rule template_refuses .*\n.*it never looks at `tools`",
        )
    for odd in (
        5,
        True,
        "add",
        ["add"],
        {"name": 5},
        [{"function": "add"}],
        [{"function": {"name": "add", "arguments": "{"}}],
    ):
        answer = {"role": "assistant", "content": "", "tool_calls": odd}
        yield Case(
            f"tool_calls: {odd!r}",
            [CHAT | {"chosen": [answer]}],
            error=r"rule bad_tools .*\n  .*column `chosen`",
        )
    for blank in (None, [], "", "[]"):
        answer = {"role": "assistant", "content": A, "tool_calls": blank}
        yield Case(
            f"tool_calls: {blank!r}", [CHAT | {"chosen": [answer]}], prompt=ASKED, trained=ANSWERED, chosen=0
        )
    openai = {
        "input": {"messages": [user(Q)]},
        "preferred_output": [assistant(A)],
        "non_preferred_output": [assistant(B)],
    }
    for odd in (None, {}, {"messages": None}, {"messages": "[]"}, 5, '{"messages": 5}'):
        yield Case(
            f"input: {odd!r}",
            [openai | {"input": odd}],
            error=r"rule (missing_field|empty_prompt) .*\n  .*column `input`: ",
        )


def mappings() -> Iterator[Case]:
    """Columns that are mapped, or should be."""
    row = {"frage": Q, "mehr": "Bitte.", "eins": A, "zwei": B, "gut": 3, "schlecht": 1}
    pair = {"chosen": "eins", "rejected": "zwei"}
    both_read = {"trained": ANSWERED, "chosen": 0}
    yield Case(
        "prompt of two columns",
        [row],
        Asked(mapping={"prompt": ["frage", "mehr"], **pair}),
        prompt=f"{Q}\nBitte.",
        **both_read,
    )
    for blank in (None, ""):
        yield Case(
            f"second column {blank!r}",
            [row | {"mehr": blank}],
            Asked(mapping={"prompt": ["frage", "mehr"], **pair}),
            prompt=Q,
            **both_read,
        )
    yield Case(
        "second column a number",
        [row | {"mehr": 5}],
        Asked(mapping={"prompt": ["frage", "mehr"], **pair}),
        error=r"rule missing_field .*\n  .*column `prompt`: .*(texts|text)",
    )
    yield Case(
        "both columns null",
        [row | {"mehr": None, "frage": None}],
        Asked(mapping={"prompt": ["frage", "mehr"], **pair}),
        error=r"rule (missing_field|empty_prompt) .*\n  .*column `prompt`",
    )
    yield Case(
        "responses of two columns",
        [row],
        Asked(mapping={"prompt": "frage", "responses": ["eins", "zwei"], "scores": ["gut", "schlecht"]}),
        prompt=Q,
        **both_read,
    )
    yield Case(
        "scores of two columns",
        [row],
        Asked(
            needs_prior=True,
            mapping={"prompt": "frage", **pair, "score_chosen": "gut", "score_rejected": "schlecht"},
        ),
        prompt=Q,
        **both_read,
    )
    yield Case(
        "swapped",
        [PAIR],
        Asked(mapping={"chosen": "rejected", "rejected": "chosen"}),
        prompt=Q,
        trained=ANSWERED[::-1],
        chosen=0,
    )
    yield Case(
        "an unknown column",
        [row],
        Asked(mapping={"prompt": "fragen"}),
        error=r"data\.columns\.prompt=fragen: the data has no such column \(did you mean 'frage'\?\)",
    )
    yield Case(
        "an unknown name",
        [row],
        Asked(mapping={"promt": "frage"}),
        error=r"data\.columns\.promt=frage: there is no such name \(did you mean 'prompt'\?\)",
    )
    yield Case("no mapping", [row], error=r"are no shape of preference data")
    yield Case(
        "a prompt's misspelling", [{"promt": Q, **both(A, B)}], error=r"Set data\.columns\.prompt=promt"
    )
    yield Case(
        "a prompt's other name",
        [{"query": Q, **both(A, B)}],
        error=r"`query` could hold it\. Set data\.columns\.prompt=query",
    )
    shared = {"frage": "2+2 is what?", **both("2+2? 4", "2+2? 5")}
    yield Case(
        "another text",
        [shared],
        error=r"Set data\.columns\.prompt=frage, or data\.columns\.prompt=shared_beginning",
    )
    yield Case("nothing shared", [both(A, B)], error=r"rule empty_prompt .*\n  .*share no beginning")
    yield Case(
        "shared_beginning, nothing shared",
        [shared | both(A, B)],
        Asked(mapping={"prompt": "shared_beginning"}),
        error=r"rule empty_prompt .*\n  .*share no beginning",
    )


def odd_cases() -> Iterator[Case]:
    """Every odd row that is no plain row of a layout."""
    for family in (
        text_cells,
        prompts_in_texts,
        numbers,
        better_ids,
        roles,
        sharegpt,
        systems,
        alpaca,
        weights_and_tools,
        mappings,
    ):
        for case in family():
            yield replace(case, name=f"{family.__name__}: {case.name}")
