"""`--engine server`: any OpenAI-compatible server; every response is one request with its own seed."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from preftune.data.rules import shorten
from preftune.sampling.draws import sample_seed
from preftune.sampling.engine import Generated, Sample
from preftune.sampling.settings import Conversation, SamplingSettings
from preftune.serving.asking import Interview, Request
from preftune.serving.endpoint import SLOW, Endpoint, Limits
from preftune.serving.prices import Budget, Price
from preftune.serving.replies import ReplyCache

VERSION = "sample 1"
"""Of how responses are asked for."""
LARGEST_SEED = 0x7FFFFFFF
"""That every server reads."""


class ServerEngine:
    """A server. OPENAI_BASE_URL and OPENAI_API_KEY set its address and key. See `SamplingEngine`.

    Text prompts go to its completions. Messages go to its chat completions, with the server's own template.
    """

    def __init__(
        self, model: str, rows: int, *, price: str | None = None, max_cost: float | None = None
    ) -> None:
        """Check that there is a key, and ask the server for its version where it tells.

        Args:
            model: its name at the server.
            rows: requests at the same time.
            price: see `build_engine`.
            max_cost: see there.

        Raises:
            InputError: key, address or price cannot be used.
        """
        self._endpoint = Endpoint(
            model,
            Limits(rows, timeout=SLOW),
            price=None if price is None else Price.parse("--price", price),
            budget=Budget(max_cost),
            title=f"engine=server, model={model}",
        )
        self.description = {"engine": "server", "version": self._endpoint.server_version(), "model": model}
        self.identity = repr((sorted(self.description.items()), os.environ.get("OPENAI_BASE_URL")))

    def ready(self, kept: Path | None = None) -> AbstractContextManager[Sample]:
        """The server; every response is in the file as soon as it is there."""
        cache = ReplyCache(kept)

        def sample(
            prompts: Sequence[str | Conversation],
            repeats: Sequence[int],
            settings: SamplingSettings,
            *,
            progress: bool = False,
        ) -> list[list[Generated]]:
            requests = [
                _request(prompt, repeat, number, settings)
                for prompt, repeat in zip(prompts, repeats, strict=True)
                for number in range(settings.n)
            ]
            replies = Interview(self._endpoint, cache, VERSION, progress).ask(requests, "sampling")
            answers = [
                Generated(reply.text, reply.completion_tokens, reply.finish_reason) for reply in replies
            ]
            return [answers[at : at + settings.n] for at in range(0, len(answers), settings.n)]

        return nullcontext(sample)


def _request(prompt: str | Conversation, repeat: int, number: int, settings: SamplingSettings) -> Request:
    """What is asked for a response."""
    content = json.dumps(prompt, sort_keys=True)
    seed = sample_seed(settings, content, repeat, number) & LARGEST_SEED
    return Request(
        f"response {number} to {shorten(prompt)}",
        () if isinstance(prompt, str) else tuple(map(dict, prompt)),
        settings.max_new_tokens,
        float(settings.temperature),
        prompt=prompt if isinstance(prompt, str) else None,
        options={"seed": seed, "n": 1, "top_p": settings.top_p},
    )
