"""What every engine that samples looks like."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from preftune.sampling.settings import Conversation, SamplingSettings


@dataclass(frozen=True)
class Generated:
    """One response.

    Attributes:
        text: without special tokens.
        tokens: how many the model gave, the one that ends it included; None where the engine does not say.
        finish_reason: "stop" where the model ended it, "length" where it was cut; servers have others.
    """

    text: str
    tokens: int | None
    finish_reason: str


@runtime_checkable
class Sample(Protocol):
    """Samples n responses to each of some prompts, in their order.

    A response depends on nothing but the settings' seed, its prompt, how often that has come before and its
    own number, as far as the engine's arithmetic allows.
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
        identity: what decides its text besides prompts and settings.
        description: the part of that which is written beside the responses: engine, version, model.
    """

    identity: str
    description: dict[str, str]

    def ready(self) -> AbstractContextManager[Sample]:
        """Load what sampling needs, for as long as the context is open."""
        ...
