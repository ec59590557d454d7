"""What samples: one small interface, and the engines behind it by name."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.online.settings import Chat, SamplingSettings


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
        prompts: Sequence[str | Chat],
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


def _transformers(model: str, rows: int) -> SamplingEngine:
    from preftune.online.transformers_engine import TransformersEngine

    return TransformersEngine(model, rows)


def _vllm(model: str, rows: int) -> SamplingEngine:
    from preftune.online.vllm_engine import VllmEngine

    return VllmEngine(model, rows)


def _server(model: str, rows: int) -> SamplingEngine:
    from preftune.online.server_engine import ServerEngine

    return ServerEngine(model, rows)


ENGINES: Mapping[str, Callable[[str, int], SamplingEngine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "server": _server,
}
"""What `--engine` takes: the model in this process, vLLM in this process, or any OpenAI-compatible server."""


def build_engine(name: str, model: str, rows: int) -> SamplingEngine:
    """An engine for a model; nothing heavy is loaded yet.

    Args:
        name: in `ENGINES`.
        model: folder or hub name; for `server` the name it has there.
        rows: responses decoded together; for `server` requests at the same time.

    Raises:
        InputError: there is no such engine, or it cannot be used with this model or on this machine.
    """
    if name not in ENGINES:
        raise InputError(f"engine={name} is none of {', '.join(ENGINES)}{suggest(name, list(ENGINES))}")
    if rows < 1:
        raise InputError(f"rows={rows}: rows must be at least 1.")
    return ENGINES[name](model, rows)
