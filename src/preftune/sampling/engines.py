"""The sampling engines, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.sampling.engine import SamplingEngine


def _transformers(model: str, rows: int) -> SamplingEngine:
    from preftune.sampling.transformers_engine import TransformersEngine

    return TransformersEngine(model, rows)


def _vllm(model: str, rows: int) -> SamplingEngine:
    from preftune.sampling.vllm_engine import VllmEngine

    return VllmEngine(model, rows)


def _server(model: str, rows: int, **spending: Any) -> SamplingEngine:
    from preftune.sampling.server_engine import ServerEngine

    return ServerEngine(model, rows, **spending)


ENGINES: Mapping[str, Callable[..., SamplingEngine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "server": _server,
}
"""Values of `--engine`: transformers or vLLM in this process, or an OpenAI-compatible server."""
ELSEWHERE = frozenset({"server"})
"""Engines whose weights are not this machine's, and so never those that were just trained."""


def build_engine(
    name: str, model: str, rows: int, *, price: str | None = None, max_cost: float | None = None
) -> SamplingEngine:
    """An engine for a model; nothing heavy is loaded yet.

    Args:
        name: in `ENGINES`.
        model: folder or hub name; for `server` the name it has there.
        rows: responses decoded together; for `server` requests at the same time.
        price: what a million tokens of prompts and of responses cost at a server, as in "2.5,10".
        max_cost: stop before this process spends more at a server.

    Raises:
        InputError: the engine does not exist, or does not work with this model or on this machine.
    """
    if name not in ENGINES:
        raise InputError(f"engine={name} must be one of {', '.join(ENGINES)}{suggest(name, list(ENGINES))}")
    if rows < 1:
        raise InputError(f"rows={rows}: rows must be at least 1.")
    spending = {
        key: value for key, value in {"price": price, "max_cost": max_cost}.items() if value is not None
    }
    if spending and name != "server":
        raise InputError(
            f"{', '.join(spending)}: engine={name} costs nothing; give engine=server, or leave it out"
        )
    return ENGINES[name](model, rows, **spending)
