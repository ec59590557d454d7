"""The one shape of preference data inside: a prompt with its responses, and pairs among them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

Message = dict[str, str]
"""A chat message: {"role": ..., "content": ...}."""
Text = str | tuple[Message, ...]
"""Plain text, or the messages of a chat."""


@dataclass(frozen=True)
class Response:
    """One response; `score` is a raw number on any scale."""

    content: Text
    score: float | None = None


@dataclass(frozen=True)
class Pair:
    """Indices of the preferred and the other response of a group.

    Attributes:
        chosen: index into the group's responses.
        rejected: index into the group's responses.
        margin: raw score difference, where the data gives that and no scores.
        gap: delta in [0, 1], once the prior is calibrated.
    """

    chosen: int
    rejected: int
    margin: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Group:
    """A prompt with its N >= 1 responses. `row` says where in the source it came from."""

    prompt: Text
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...]
    row: int = 0


@dataclass(frozen=True)
class TokenizedGroup:
    """A group as token ids: the prompt once, each response without it and with its end-of-sequence token."""

    prompt: Int32[np.ndarray, "prompt_tokens"]
    responses: tuple[Int32[np.ndarray, "_"], ...]
    pairs: tuple[Pair, ...]
    reference_logps: Float32[np.ndarray, "responses"] | None = None

    @property
    def paired(self) -> list[int]:
        """Indices of the responses that some pair uses; only these are packed."""
        return sorted({index for pair in self.pairs for index in (pair.chosen, pair.rejected)})

    @property
    def packed_tokens(self) -> int:
        """Tokens of the group in a packed batch, its prompt counted once."""
        return len(self.prompt) + sum(len(self.responses[index]) for index in self.paired)
