"""The one shape of preference data inside: a prompt with its responses, and pairs among them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32, Shaped

Message = dict[str, Any]
"""A chat message: `role` and `content`, both text; of the model also `tool_calls` and `reasoning_content`."""
Text = str | tuple[Message, ...]
"""Plain text, or the messages of a chat."""


@dataclass(frozen=True, slots=True)
class Response:
    """One response.

    Attributes:
        content: what was answered.
        score: a raw number on any scale.
        label: whether it is desirable, where that is known of it alone (KTO).
        auxiliary: auxiliary reward R, once the rewards are computed.
        prior_reward: r in [0, 1], once the score is calibrated, where the objective needs it.
        trained: whether each of its messages is trained; None trains the model's own turns.
    """

    content: Text
    score: float | None = None
    label: bool | None = None
    auxiliary: float | None = None
    prior_reward: float | None = None
    trained: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Indices of the preferred and the other response of a group.

    Attributes:
        chosen: index into the group's responses.
        rejected: index into the group's responses.
        margin: raw score difference, where the data gives that and no scores, or the objective needs it.
        gap: delta in [0, 1], once the prior is calibrated.
        weight: what its losses are multiplied by, >= 0, where the data gives that.
    """

    chosen: int
    rejected: int
    margin: float | None = None
    gap: float | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its N >= 1 responses.

    Attributes:
        prompt: what is answered.
        responses: the answers.
        pairs: preferences among them, if any.
        row: where in the source it came from.
        columns: the row's other columns, for rewards that read them.
        response_columns: which of them are a list with a value for each response; None where nobody has said,
            and the lists' lengths must tell.
        tools: JSON schemas of the functions that the model may call, for the chat template.
    """

    prompt: Text
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...]
    row: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    response_columns: frozenset[str] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenizedGroup:
    """A group as token ids: the prompt once, each response without it and with its end-of-sequence token.

    Attributes:
        prompt: token ids.
        responses: token ids of each response.
        pairs: preferences among them, if any.
        per_response: numbers of each response by their names in `preftune.objectives.NUMBERS`, where known.
        mismatched: the same prompt with a response to another one, for the estimate of the divergence from
            the reference (KTO).
        trained: whether each token of each response is trained; None where all are.
        row: where in the source it came from.
        per_token: numbers of each response's trained tokens by name, where known; none for a response that is
            not packed.
    """

    prompt: Int32[np.ndarray, "prompt_tokens"]
    responses: tuple[Int32[np.ndarray, "_"], ...]
    pairs: tuple[Pair, ...]
    per_response: Mapping[str, Shaped[np.ndarray, "responses"]] = field(default_factory=dict)
    mismatched: "TokenizedGroup | None" = None
    trained: tuple[Bool[np.ndarray, "_"], ...] | None = None
    row: int = 0
    per_token: Mapping[str, tuple[Shaped[np.ndarray, "_"], ...]] = field(default_factory=dict)

    @property
    def per_pair(self) -> dict[str, Shaped[np.ndarray, "pairs"]]:
        """Numbers of each pair by name, where every pair has one."""
        return numbers_of(self.pairs, "pair")

    @property
    def packed(self) -> list[int]:
        """Indices of the responses that something is learned from; only these are packed."""
        from preftune.objectives.responses import NUMBERS

        if not self.pairs or any(NUMBERS[name].teaches for name in self.per_response):
            return list(range(len(self.responses)))
        return sorted({index for pair in self.pairs for index in (pair.chosen, pair.rejected)})

    @property
    def packed_tokens(self) -> int:
        """Tokens of the group in a packed batch, its prompt counted once."""
        return len(self.prompt) + sum(len(self.responses[index]) for index in self.packed)

    @property
    def row_tokens(self) -> int:
        """The same, or those of what is mismatched to it if they are more: a row must hold either."""
        return max(self.packed_tokens, self.mismatched.packed_tokens if self.mismatched else 0)


def numbers_of(
    items: Sequence[Response] | Sequence[Pair], per: Literal["response", "pair"]
) -> dict[str, Shaped[np.ndarray, "_"]]:
    """Registered numbers of a group's responses, or of its pairs, by name: those that all of them have."""
    from preftune.objectives.responses import NUMBERS

    registered = {name: number for name, number in NUMBERS.items() if number.per == per and number.of}
    values = {name: [getattr(item, number.of) for item in items] for name, number in registered.items()}
    return {
        name: np.array(found, dtype=registered[name].dtype)
        for name, found in values.items()
        if None not in found
    }


def text_key(content: Any) -> str:
    """The same for equal texts or messages, whatever the order of a message's keys."""
    return json.dumps(content, sort_keys=True, default=str)


def as_text(prompt: Any) -> Text:
    """A prompt as groups hold it, from a row's text or list of messages."""
    return prompt if isinstance(prompt, str) else tuple(prompt)


def as_answer(text: str, prompt: Any) -> Text:
    """A sampled response as groups hold it: a message where the prompt is a chat, else text."""
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)
