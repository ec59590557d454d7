"""The interface of every sampling engine."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from preftune.sampling.settings import Conversation, SamplingSettings


@dataclass(frozen=True)
class Generated:
    """One response.

    Attributes:
        text: without special tokens.
        tokens: number of generated tokens, including the one that ends it; None if the engine does not say.
        finish_reason: "stop" if the model ended it, "length" if it was truncated; servers have others.
    """

    text: str
    tokens: int | None
    finish_reason: str


@runtime_checkable
class Sample(Protocol):
    """Samples n responses to each prompt, in the order of the prompts.

    A response depends only on the seed in the settings, its prompt, the number of earlier prompts that are
    the same, and its own number. Rounding in the engine can still change it.
    """

    def __call__(
        self,
        prompts: Sequence[str | Conversation],
        repeats: Sequence[int],
        settings: SamplingSettings,
        *,
        progress: bool = False,
    ) -> list[list[Generated]]:
        """Sample."""
        ...


@runtime_checkable
class SamplingEngine(Protocol):
    """Something that samples.

    Attributes:
        identity: everything besides prompts and settings that decides the text.
        description: the part of the identity that is written beside the responses: engine, version, model.
    """

    identity: str
    description: dict[str, str]

    def ready(self, kept: Path | None = None) -> AbstractContextManager[Sample]:
        """Load what sampling needs, for as long as the context is open.

        Args:
            kept: a file for responses that are paid for one by one, and must be asked for once; None keeps
                none. Engines in this process make no use of it.
        """
        ...
