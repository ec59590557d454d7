"""Chat templates: a conversation becomes the text of its prompt, and of what follows with what is trained."""

import os.path
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.data.groups import Message, Response
from preftune.data.limits import TookTooLong, limited
from preftune.data.messages import REASONING
from preftune.data.rules import BadRow
from preftune.errors import InputError

if TYPE_CHECKING:
    import transformers

Chat = tuple[Message, ...]
Tools = Sequence[Mapping[str, Any]]

_NOT_WRITTEN = "it is not in what the template writes"
_ENDLESS: dict[type[BaseException], str] = {
    TookTooLong: "runs longer than 10 seconds",
    MemoryError: "takes more than 1 GiB of memory",
    RecursionError: "calls itself without end",
}
DATE = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
"""How templates write today's date, in a format that follows."""
POWER = re.compile(r"{[{%](?:(?![%}]}).)*[\w)\]]\s*\*\*\s*[\w(\[]", re.DOTALL)
"""A power in a template: one such number can take for ever to compute, and nothing can stop that."""
SECONDS = 10.0
"""Longest time of a template for one conversation; usual ones take less than a millisecond."""
MEMORY = 2**30
"""Most bytes that a template may take for one conversation."""
LONGEST_TEXT = 1_000_000
TEXT_PER_CHARACTER = 100
"""Most characters that a template may write, and how many more for each that the conversation has."""


class Segment(NamedTuple):
    """A part of a response's text, and whether it is trained."""

    text: str
    is_trained: bool


class ChatTemplate:
    """A tokenizer's chat template, asked in one way by training, scoring and sampling."""

    def __init__(
        self,
        tokenizer: "transformers.PreTrainedTokenizerBase",
        kwargs: Mapping[str, Any] | None = None,
        notes: Counter[str] | None = None,
        today: date | None = None,
    ) -> None:
        """Take a tokenizer's template.

        Args:
            tokenizer: whose template is asked; it may have none, as long as nobody asks.
            kwargs: passed on to the template, such as `{"enable_thinking": False}`.
            notes: counts what was done, for the report.
            today: what a template that writes today's date writes; None for the day on which it is asked.
        """
        self._tokenizer = tokenizer
        self._kwargs = dict(kwargs or {})
        if today is not None and isinstance(tokenizer.chat_template, str):
            dated = DATE.sub(lambda found: repr(today.strftime(found[2])), tokenizer.chat_template)
            self._kwargs["chat_template"] = dated
        self._notes = Counter() if notes is None else notes

    @cached_property
    def _special(self) -> list[str]:
        """Special tokens, the longest first."""
        added = self._tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | {*self._tokenizer.all_special_tokens}
        return sorted(special - {""}, key=len, reverse=True)

    @property
    def writes_date(self) -> bool:
        """Whether the template writes today's date."""
        return bool(DATE.search(str(self._tokenizer.chat_template or "")))

    def prompt(self, messages: Chat, tools: Tools = ()) -> str:
        """The text up to where the model's response begins; a begun turn of the model is continued.

        Raises:
            BadRow: the template refuses the messages.
            InputError: there is no template, or it is not valid.
        """
        if _is_begun(messages):
            return self._apply(messages, tools, continue_final_message=True)
        return self._apply(messages, tools, add_generation_prompt=True)

    def response(self, messages: Chat, prompt: str, response: Response, tools: Tools = ()) -> list[Segment]:
        """The text that follows the prompt up to the end of the last trained turn, in parts.

        Args:
            messages: of the prompt.
            prompt: its text.
            response: text, or messages.
            tools: that the model may call.

        Raises:
            BadRow: the template refuses the messages, or leaves out what is trained.
        """
        content = response.content
        turns = ({"role": "assistant", "content": content},) if isinstance(content, str) else content
        trained = response.trained or tuple(turn["role"] == "assistant" for turn in turns)
        last = max(place for place, is_trained in enumerate(trained) if is_trained)
        turns = turns[: last + 1]
        said = turns[0]
        if _is_begun(messages):
            self._notes["prompts that end in a begun turn of the model, which is continued"] += 1
            begun = messages[-1]["content"] + turns[0]["content"]
            messages, turns = messages[:-1], ({**turns[0], "content": begun}, *turns[1:])
        if len(turns) > 1:
            return self._several(messages, prompt, turns, said, trained, tools)
        return [Segment(self._single(messages, prompt, turns[0], said, tools), is_trained=True)]

    def conversation(self, messages: Chat, tools: Tools = ()) -> str:
        """The text of a whole conversation.

        Raises:
            BadRow: the template refuses the messages.
            InputError: there is no template, or it is not valid.
        """
        return self._apply(messages, tools)

    def turn_end(self) -> str:
        """What the template writes after a turn of the model: special tokens; empty where it writes none.

        Raises:
            BadRow: the template refuses a question and its answer.
        """
        answer = "\N{BLACK SQUARE}"
        asked = ({"role": "user", "content": "?"}, {"role": "assistant", "content": answer})
        text = self._apply(asked, ()).rpartition(answer)[2]
        return text[slice(*self._closing(text))].strip()

    def _single(self, messages: Chat, prompt: str, turn: Message, said: Message, tools: Tools) -> str:
        """The text of a response of one message; `said` is its turn without what the prompt had begun."""
        full = self._apply((*messages, turn), tools)
        if full.startswith(prompt):
            text = self._cut_after_turn(full[len(prompt) :])
            missing = _missing(said, text)
            if not missing:
                return text
            opening = _thinking_opened(prompt)
            can_be_written = "</think>" in said["content"]
        else:
            # The generation prompt opens with more than the template writes back, such as a thinking block.
            opening = prompt[len(os.path.commonprefix([prompt, full])) :].strip()  # noqa: RUF071
            missing = next((key for key in (*REASONING, "tool_calls") if said.get(key)), "")
            can_be_written = not missing
        if not can_be_written:
            raise BadRow("template_loses", "response", missing, _NOT_WRITTEN)
        own = str(said["content"])
        if opening and own.lstrip().startswith(opening):
            own = own.lstrip()[len(opening) :].removeprefix("\n")
            self._notes[f"responses without their own {opening!r}, which the generation prompt has"] += 1
        elif opening:
            self._notes[f"responses that follow {opening!r} of the generation prompt"] += 1
        else:
            self._notes["responses as the row has them, which the template would write otherwise"] += 1
        return own + (full[slice(*self._closing(full))].strip() or self._eos())

    def _several(
        self, messages: Chat, prompt: str, turns: Chat, said: Message, trained: Sequence[bool], tools: Tools
    ) -> list[Segment]:
        """The parts of a response of several messages, of which the model's own are trained.

        `said` is the first turn without what the prompt had begun.
        """
        full = self._apply((*messages, *turns), tools)
        end = self._closing(full)[1]
        full = full[:end] if end else full + self._eos()
        segments: list[Segment] = []
        place, before = len(prompt), messages
        for number, (turn, is_trained) in enumerate(zip(turns, trained, strict=False)):
            if is_trained:
                start = prompt if number == 0 else self._apply(before, tools, add_generation_prompt=True)
                stop = full
                if number < len(turns) - 1:
                    stop = self._turn_stop(full, start, (*before, turn), tools)
                missing = _missing(turn if number else said, stop[len(start) :])
                if missing or not full.startswith(start) or not full.startswith(stop):
                    why = "the template writes this turn differently once others follow it"
                    raise BadRow("template_loses", "response", missing or turn["content"], why)
                segments += [Segment(full[place : len(start)], is_trained=False)] * (len(start) > place)
                segments.append(Segment(self._with_one_end(stop[len(start) :]), is_trained=True))
                place = len(stop)
            before = (*before, turn)
        return segments

    def _turn_stop(self, full: str, start: str, messages: Chat, tools: Tools) -> str:
        """The conversation up to the end of a turn that others follow."""
        stop = self._apply(messages, tools)
        stop = stop[: self._closing(stop)[1] or len(stop)]
        if full.startswith(stop):
            return stop
        # Some write the last turn with more, such as an empty thinking block: its first end token counts.
        place = max((full.find(part, len(start)) + len(part) for part in _said(messages[-1])), default=0)
        ends = [(full.find(token, place), token) for token in self._special if token in full[place:]]
        found, token = min(ends, default=(len(full), ""))
        return full[: found + len(token)]

    def _closing(self, text: str) -> tuple[int, int]:
        """Where the special tokens that end a text begin and end, whitespace apart; (0, 0) without any."""
        end = start = place = len(text.rstrip())
        while special := next((token for token in self._special if text.endswith(token, 0, place)), None):
            start = place - len(special)
            place = len(text[:start].rstrip())
        return (start, end) if start < end else (0, 0)

    def _cut_after_turn(self, text: str) -> str:
        """End the text with the tokens that close its turn; EOS where the template writes none."""
        end = self._closing(text)[1]
        return self._with_one_end(text[:end]) if end else text + self._eos()

    def _with_one_end(self, text: str) -> str:
        """A turn that brought its end along, which the template writes too, with one; others as they are."""
        if not (end := self._closing(text)[1]):
            return text
        last = next(token for token in self._special if text.endswith(token, 0, end))
        while (before := text[: end - len(last)].rstrip()).endswith(last):
            end = len(before)
        return text[:end]

    def _eos(self) -> str:
        return str(self._tokenizer.eos_token)

    def _apply(self, messages: Chat, tools: Tools, **how: Any) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        template = self._tokenizer.chat_template
        if not template:
            raise InputError(
                "there are messages, and the tokenizer has no chat template. Use an instruction-tuned "
                "model's tokenizer, set its chat_template, or give plain text."
            )
        self._require(messages, tools, str(template))
        given = {"tools": [dict(tool) for tool in tools]} if tools else {}
        roles = ", ".join(message["role"] for message in messages)
        try:
            with limited(SECONDS, MEMORY):
                text = self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, **how, **self._kwargs | given
                )
        except TemplateSyntaxError as error:
            raise InputError(
                f"The tokenizer's chat template is not valid: line {error.lineno}: {error.message}. Mend it."
            ) from error
        except (TookTooLong, MemoryError, RecursionError) as error:
            raise _without_end(_ENDLESS[type(error)]) from error
        except (TemplateError, TypeError, ValueError) as error:
            why = f"it refuses the roles {roles}: {error}"
            raise BadRow("template_refuses", "prompt", messages[0]["content"], why) from error
        except Exception as error:
            why = f"it fails at the roles {roles}: {type(error).__name__}: {error}"
            raise BadRow("template_refuses", "prompt", messages[0]["content"], why) from error
        if not isinstance(text, str) or not text.strip():
            raise BadRow("template_refuses", "prompt", messages[0]["content"], "it writes no text")
        if len(text) > LONGEST_TEXT + TEXT_PER_CHARACTER * len(repr((messages, tools))):
            raise _without_end(f"writes {len(text):,} characters")
        return text

    def _require(self, messages: Chat, tools: Tools, template: str) -> None:
        """Refuse what the template would leave out without a word.

        Raises:
            BadRow: it never looks at tools or their calls.
        """
        if POWER.search(template):
            raise InputError(
                "The tokenizer's chat template computes a power (`**`), which may take for ever. Mend it."
            )
        if tools and "tools" not in template:
            raise BadRow("template_refuses", "tools", tools[0], "it never looks at `tools`")
        if "tool_calls" not in template and any("tool_calls" in message for message in messages):
            raise BadRow("template_refuses", "prompt", messages[-1], "it never looks at `tool_calls`")


def _without_end(what: str) -> InputError:
    return InputError(
        f"The tokenizer's chat template {what} for one conversation. Mend it, or give another tokenizer."
    )


def _is_begun(messages: Chat) -> bool:
    """Whether the prompt ends in a turn of the model that its response goes on with."""
    return bool(messages) and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")


def _thinking_opened(prompt: str) -> str:
    opened = re.search(r"<think(?:ing)?>\s*\Z", prompt)
    return opened.group().strip() if opened else ""


def _said(turn: Message) -> list[str]:
    """What a message says, in the parts that a template writes as they are."""
    said = [turn["content"], *(str(turn[key]) for key in REASONING if turn.get(key))]
    return [*said, *(call["function"]["name"] for call in turn.get("tool_calls", ()))]


def _missing(turn: Message, text: str) -> str:
    """What of a turn is not in its rendered text, whitespace apart; empty where nothing is missing."""
    written = "".join(text.split())
    return next((part for part in _said(turn) if "".join(part.split()) not in written), "")
