"""The sampling engines, by name."""

from collections.abc import Callable, Mapping

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.sampling.engine import SamplingEngine


def _transformers(model: str, rows: int) -> SamplingEngine:
    from preftune.sampling.transformers_engine import TransformersEngine

    return TransformersEngine(model, rows)


def _vllm(model: str, rows: int) -> SamplingEngine:
    from preftune.sampling.vllm_engine import VllmEngine

    return VllmEngine(model, rows)


def _server(model: str, rows: int) -> SamplingEngine:
    from preftune.sampling.server_engine import ServerEngine

    return ServerEngine(model, rows)


ENGINES: Mapping[str, Callable[[str, int], SamplingEngine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "server": _server,
}
"""Values of `--engine`: transformers or vLLM in this process, or an OpenAI-compatible server."""


def build_engine(name: str, model: str, rows: int) -> SamplingEngine:
    """Build an engine for a model. Weights are loaded later.

    Args:
        name: in `ENGINES`.
        model: folder or hub name; for `server` the name it has there.
        rows: responses decoded together; for `server` requests at the same time.

    Raises:
        InputError: the engine does not exist, or does not work with this model or on this machine.
    """
    if name not in ENGINES:
        raise InputError(f"engine={name} must be one of {', '.join(ENGINES)}{suggest(name, list(ENGINES))}")
    if rows < 1:
        raise InputError(f"rows={rows} must be >= 1: set a number from 1 on")
    return ENGINES[name](model, rows)
