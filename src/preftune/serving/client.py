"""The connection to an OpenAI-compatible endpoint: a request, and in plain words what can go wrong."""

import asyncio
import base64
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx2

from preftune.data.rules import shorten
from preftune.errors import InputError
from preftune.serving.replies import Reply

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
SHORTEST_SECRET = 8
LARGEST_REPLY = 2**26
"""Bytes: more than 16,000 tokens with 20 alternatives each take."""
SECONDS_TO_CONNECT = 30.0
LONGEST_WAIT = 60.0
"""Seconds, whatever a server asks for."""
VERSION_SECONDS = 5.0
MOST_REDIRECTS = 3
MANY = 1000
UNREADABLE = 2
"""How often a request is sent again whose reply cannot be read."""


@dataclass(eq=False)
class Fault(Exception):  # noqa: N818  # one try of several; what the user may see is an InputError
    """One try that failed.

    Attributes:
        why: what happened.
        fix: what to do about it.
        more_tries: that are worth it.
        wait: seconds to wait before the next, where the server says so.
    """

    why: str
    fix: str
    more_tries: int = MANY
    wait: float | None = None


class _Http(httpx2.AsyncClient):
    """What openai sends with. It limits the size of a reply and follows redirects within the same origin."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; the reply has its whole content, and may be a redirect that must not be followed.

        Raises:
            Fault: the reply is too long.
        """
        for name in [name for name in request.headers if name.startswith("x-stainless")]:
            # These tell about this machine.
            del request.headers[name]
        for _ in range(MOST_REDIRECTS + 1):
            content = bytearray()
            async with aclosing(await super().send(request, **options | {"stream": True})) as response:
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST_REPLY:
                        raise Fault(
                            f"the reply is longer than {LARGEST_REPLY >> 20} MB",
                            "See what stands at OPENAI_BASE_URL: no completion is that long",
                            more_tries=0,
                        )
            target = response.next_request
            # A 301, 302 or 303 turns a POST into a GET.
            if not target or (target.url.origin, target.method) != (request.url.origin, request.method):
                break
            request = target
        # The content is decoded already.
        response.headers.pop("Content-Encoding", None)
        whole = httpx2.Response(
            response.status_code, headers=response.headers, content=bytes(content), request=response.request
        )
        whole.next_request = target
        return whole


class Server:
    """An endpoint.

    Attributes:
        address: without a name and password.
    """

    def __init__(self, who: str) -> None:
        """Read what OPENAI_BASE_URL and OPENAI_API_KEY name.

        Args:
            who: needs it, for messages.

        Raises:
            InputError: there is no key, or one of them cannot be used.
        """
        key, given = os.environ.get("OPENAI_API_KEY"), (os.environ.get("OPENAI_BASE_URL") or OPENAI).strip()
        if not key:
            raise InputError(
                f"{who} needs OPENAI_API_KEY in the environment (any text for a server without keys) and "
                "OPENAI_BASE_URL for another endpoint than OpenAI's, such as http://localhost:8000/v1: "
                "set them"
            )
        if not all("!" <= character <= "~" for character in key):
            raise InputError(
                "OPENAI_API_KEY holds a blank, a line break or a character outside ASCII, and a key has none "
                "of these: set it again"
            )
        try:
            url = httpx2.URL(given)
            usable = url.scheme in ("http", "https") and bool(url.host) and url.port != 0
            self.address = _bare(given).rstrip("/")
        except (httpx2.InvalidURL, ValueError):
            usable = False
        if not usable:
            shown = given.rpartition("@")[2].partition("?")[0]
            raise InputError(
                f"OPENAI_BASE_URL={shown}: it must be the address of an API, such as "
                "http://localhost:8000/v1: set it again"
            )
        self._key, self._login = key, (url.username, url.password) if url.username else ()

    def connect(self) -> "openai.AsyncOpenAI":
        """A client; it sets no limit of its own to what runs at the same time."""
        import openai

        http = _Http(
            auth=httpx2.BasicAuth(*self._login) if self._login else None,
            timeout=httpx2.Timeout(None, connect=SECONDS_TO_CONNECT),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )
        return openai.AsyncOpenAI(base_url=self.address, api_key=self._key, max_retries=0, http_client=http)

    async def post(
        self, client: "openai.AsyncOpenAI", path: str, body: Mapping[str, Any], seconds: float
    ) -> Reply:
        """Send one request once.

        Args:
            client: of `connect`.
            path: behind the address.
            body: JSON.
            seconds: until the last byte of the reply.

        Returns:
            The first choice, without secrets.

        Raises:
            Fault: there is none.
        """
        import openai

        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                # Half a surrogate pair goes out escaped.
                response = await client.post(path, content=json.dumps(body).encode(), cast_to=httpx2.Response)
        except TimeoutError:
            raise Fault(
                f"no whole reply came within {seconds:g} seconds",
                "Give it more time, ask for less at the same time, or see whether the server is at work",
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (openai.OpenAIError, ValueError) as error:
            cause = error.__cause__ or error
            raise Fault(
                f"the connection failed ({self._masked(str(cause)) or type(cause).__name__})",
                "Start the server, or correct OPENAI_BASE_URL",
            ) from None
        return self._read(response, time.monotonic() - started)

    async def version(self) -> str:
        """What a server answers at /version, as vLLM's does; "unknown" where it has no such address."""
        import openai

        if self.address == OPENAI:
            return "unknown"
        try:
            async with asyncio.timeout(VERSION_SECONDS), self.connect() as client:
                response = await client.get(urljoin(self.address, "/version"), cast_to=httpx2.Response)
            return str(self._masked(response.json())["version"])
        except (TimeoutError, Fault, openai.OpenAIError, ValueError, LookupError, TypeError):
            return "unknown"

    def _read(self, response: httpx2.Response, seconds: float) -> Reply:
        """The first choice."""
        said, trouble = response.text, " is not JSON"
        try:
            said, trouble = self._masked(response.json()), " has no choices"
            choice, trouble = said["choices"][0], "'s choice has no text"
            text = (choice["message"].get("content") if "message" in choice else choice["text"]) or ""
            log_probs = [dict(token) for token in (choice.get("logprobs") or {}).get("content") or ()]
            usage = said.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            prompt, completion = (count if isinstance(count, int) else None for count in counts)
            return Reply(
                # Half of a surrogate pair, such as a cut emoji, is no text that can be written.
                text=text.encode("utf-8", "replace").decode(),
                finish_reason=str(choice.get("finish_reason") or ""),
                log_probs=log_probs or None,
                prompt_tokens=prompt,
                completion_tokens=completion,
                seconds=round(seconds, 3),
            )
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise Fault(
                f"the reply{trouble}: {shorten(self._masked(said), 200)}",
                "See that OPENAI_BASE_URL is the address of its API, which mostly ends in /v1, and that the "
                "model replies with text",
                UNREADABLE,
                _wait(response.headers),
            ) from None

    def _refusal(self, error: "openai.APIStatusError") -> Fault:
        """What an error status means. A content filter refuses with one of the 400s."""
        import openai

        status, response, more_tries = error.status_code, error.response, 0
        if target := response.next_request:
            return Fault(
                f"{_bare(str(response.url))} redirects to {self._masked(_bare(str(target.url)))} ({status}), "
                "and requests with the key go to OPENAI_BASE_URL alone",
                "Set OPENAI_BASE_URL to the new address if you trust it",
                more_tries,
            )
        try:
            body = self._masked(error.body)
        except RecursionError:
            body = self._masked(response.text)
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                why, fix = "the key is refused", "Set OPENAI_API_KEY to a key that may use this model"
            case openai.NotFoundError():
                why = "there is no such model or address"
                fix = "Correct the model's name, or OPENAI_BASE_URL, which mostly ends in /v1"
            case openai.RateLimitError():
                why, more_tries = "it is busy or a quota is used up", MANY
                fix = "Ask for less at the same time, see your quota, or wait"
            case openai.InternalServerError() | openai.APIStatusError(status_code=408 | 409):
                why, fix, more_tries = "the server fails", "See its log, or wait", MANY
            case _ if "content_filter" in str(body) or "content_policy" in str(body):
                why, fix = "its content filter refuses this", "Leave the row out, or ask another model"
            case _:
                why, fix = "the request is refused", "Change what it names"
        said = shorten(body.get("message", body) if isinstance(body, dict) else body, 400)
        return Fault(f"{why} ({status}): {said}", fix, more_tries, _wait(response.headers))

    def _masked(self, content: Any) -> Any:
        """What a server says, with `***` for the secrets in it: some repeat what they are sent."""
        if isinstance(content, str):
            login = base64.b64encode(":".join(self._login).encode()).decode()
            for secret in (self._key, login, *self._login[1:]):
                # A stand-in for servers without keys may be a letter, and stands in every word.
                content = content.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else content
            return content
        if isinstance(content, dict):
            return {self._masked(key): self._masked(value) for key, value in content.items()}
        return [self._masked(each) for each in content] if isinstance(content, list) else content


def _bare(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, up to the longest; None where it asks for none."""
    exact, given = headers.get("Retry-After-Ms"), headers.get("Retry-After", "")
    try:
        seconds = float(exact) / 1000 if exact else float(given)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if math.isfinite(seconds) else None
