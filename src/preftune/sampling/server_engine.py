"""`--engine server`: any OpenAI-compatible server; every response is one request with its own seed."""

import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

from rich.progress import track

from preftune.sampling.draws import sample_seed
from preftune.sampling.engine import Generated, Sample
from preftune.sampling.settings import Conversation, SamplingSettings
from preftune.serving.client import connect, first_choice, require_key, without_key

LARGEST_SEED = 0x7FFFFFFF
"""Largest seed that every server accepts."""
VERSION_SECONDS = 5


class ServerEngine:
    """A server. OPENAI_BASE_URL and OPENAI_API_KEY set its address and key. See `SamplingEngine`.

    Text prompts go to its completions. Messages go to its chat completions, with the server's own template.
    """

    def __init__(self, model: str, rows: int) -> None:
        """Check that there is a key, and ask the server for its version.

        Args:
            model: its name at the server.
            rows: concurrent requests.

        Raises:
            InputError: the key is missing.
        """
        require_key("engine=server")
        base_url = os.environ.get("OPENAI_BASE_URL")
        self._model, self._rows = model, rows
        self.description = {"engine": "server", "version": server_version(base_url), "model": model}
        self.identity = repr((sorted(self.description.items()), base_url))

    @contextmanager
    def ready(self) -> Iterator[Sample]:
        """Open the connection, and threads that wait for replies."""
        with connect() as client, ThreadPoolExecutor(self._rows) as pool:

            def sample(
                prompts: Sequence[str | Conversation],
                repeats: Sequence[int],
                settings: SamplingSettings,
                *,
                progress: bool = False,
            ) -> list[list[Generated]]:
                requests = [
                    pool.submit(self._ask, client, prompt, _seed(settings, prompt, repeat, number), settings)
                    for prompt, repeat in zip(prompts, repeats, strict=True)
                    for number in range(settings.n)
                ]
                try:
                    # Close the bar on an error: a bar that is collected later can block others.
                    results = (request.result() for request in requests)
                    answers = list(track(results, "sampling", len(requests), disable=not progress))
                except BaseException:
                    # Do not wait for the other requests.
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                return [answers[at : at + settings.n] for at in range(0, len(answers), settings.n)]

            yield sample

    def _ask(
        self, client: Any, prompt: str | Conversation, seed: int, settings: SamplingSettings
    ) -> Generated:
        asked: dict[str, Any] = {
            "model": self._model,
            "seed": seed,
            "n": 1,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        if isinstance(prompt, str):
            create, asked["prompt"] = client.completions.create, prompt
        else:
            create, asked["messages"] = client.chat.completions.create, list(prompt)
        who = f"engine=server, model={self._model}"
        choice, usage = first_choice(create, who, "Finished shards are kept", **asked)
        text = without_key((choice.text if isinstance(prompt, str) else choice.message.content) or "")
        tokens = usage.completion_tokens if usage else None
        return Generated(text, tokens, str(choice.finish_reason))


def server_version(base_url: str | None) -> str:
    """What a server replies at /version, as vLLM's does; "unknown" if it has no such address."""
    if not base_url:
        return "unknown"
    try:
        with urllib.request.urlopen(urljoin(base_url, "/version"), timeout=VERSION_SECONDS) as answer:
            return str(json.load(answer)["version"])
    except (OSError, ValueError, LookupError, TypeError):
        return "unknown"


def _seed(settings: SamplingSettings, prompt: str | Conversation, repeat: int, sample: int) -> int:
    content = json.dumps(prompt, sort_keys=True)
    return sample_seed(settings, content, repeat, sample) & LARGEST_SEED
