"""The connection to an OpenAI-compatible endpoint: a request, and in plain words what can go wrong."""

import asyncio
import base64
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import httpx2

from preftune.data.rules import shorten
from preftune.errors import InputError

OPENAI = "https://api.openai.com/v1"
HEADERS = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
"""What OpenAI's own clients send besides the key, and the variables that it stands in."""
SHORTEST_SECRET = 8
LARGEST_REPLY = 2**26
"""Bytes: more than 16,000 tokens with 20 alternatives each take."""
SECONDS_TO_CONNECT = 30.0
LONGEST_WAIT = 60.0
"""Seconds, whatever a server asks for."""
VERSION_SECONDS = 5.0
MOST_REDIRECTS = 3
UNREADABLE = 2
"""How often a request is sent again whose reply cannot be read."""


class Fault(Exception):  # noqa: N818  # one try of several; what the user may see is an InputError
    """One try that failed.

    Attributes:
        why: what happened.
        fix: what to do about it.
        more_tries: that are worth it.
        wait: seconds to wait before the next, where the server says so.
    """

    def __init__(self, why: str, fix: str, more_tries: int = 1000, wait: float | None = None) -> None:
        super().__init__(why)
        self.why, self.fix, self.more_tries, self.wait = why, fix, more_tries, wait


@dataclass(frozen=True)
class Server:
    """An endpoint. Secrets stand in no representation of it.

    Attributes:
        address: without a name and password.
        key: what it knows the caller by.
        login: name and password that stood in the address; empty where there were none.
    """

    address: str
    key: str = field(repr=False)
    login: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def from_environment(cls, who: str) -> "Server":
        """What OPENAI_BASE_URL and OPENAI_API_KEY name.

        Args:
            who: needs it, for messages.

        Raises:
            InputError: there is no key, or one of them cannot be used.
        """
        key, given = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL") or OPENAI
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
        parts = urlsplit(given.strip())
        host = parts.netloc.rpartition("@")[2]
        try:
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            shown = given.rpartition("@")[2].partition("?")[0]
            raise InputError(
                f"OPENAI_BASE_URL={shown}: it must be the address of an API, such as "
                "http://localhost:8000/v1: set it again"
            )
        login = tuple(unquote(part or "") for part in (parts.username, parts.password) if parts.username)
        return cls(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), key, login)

    def connect(self) -> httpx2.AsyncClient:
        """A connection; it sets no limit of its own to what runs at the same time."""
        named = {header: os.environ.get(variable) for header, variable in HEADERS.items()}
        headers = {header: value for header, value in named.items() if value}
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers},
            auth=httpx2.BasicAuth(*self.login) if self.login else None,
            timeout=httpx2.Timeout(None, connect=SECONDS_TO_CONNECT),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def post(
        self, http: httpx2.AsyncClient, path: str, body: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Send one request once.

        Args:
            http: of `connect`.
            path: behind the address.
            body: JSON.
            seconds: until the last byte of the reply.

        Returns:
            A completion with at least one choice, without secrets.

        Raises:
            Fault: there is none.
        """
        try:
            async with asyncio.timeout(seconds):
                status, headers, content = await self._send(http, self.address + path, body)
        except TimeoutError:
            raise Fault(
                f"no whole reply came within {seconds:g} seconds",
                "Give it more time, ask for less at the same time, or see whether the server is at work",
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise Fault(
                f"the connection failed ({self.masked(str(error)) or type(error).__name__})",
                "Start the server, or correct OPENAI_BASE_URL",
            ) from None
        try:
            reply = self.masked(json.loads(content))
        except (ValueError, RecursionError):
            reply = None
        if status >= 400:
            raise _refusal(status, headers, reply or self.masked(content.decode("utf-8", "replace")))
        if isinstance(reply, dict) and isinstance(reply.get("choices"), list) and reply["choices"]:
            return reply
        if reply is None:
            why = f"the reply is not JSON: {shorten(self.masked(content.decode('utf-8', 'replace')), 200)}"
        else:
            why = f"the reply has no choices: {shorten(reply, 200)}"
        fix = "See that OPENAI_BASE_URL is the address of its API, which mostly ends in /v1"
        raise Fault(why, fix, UNREADABLE, _wait(headers))

    async def version(self) -> str:
        """What a server answers at /version, as vLLM's does; "unknown" where it has no such address."""
        if self.address == OPENAI:
            return "unknown"
        try:
            async with asyncio.timeout(VERSION_SECONDS), self.connect() as http:
                _, _, content = await self._send(http, urljoin(self.address, "/version"))
            return str(self.masked(json.loads(content))["version"])
        except (TimeoutError, Fault, httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError):
            return "unknown"

    async def _send(
        self, http: httpx2.AsyncClient, url: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and content of the reply, after redirects within the same origin."""
        # Half a surrogate pair goes out escaped.
        asked = ("GET", None) if body is None else ("POST", json.dumps(body))
        for _ in range(MOST_REDIRECTS + 1):
            content = bytearray()
            async with http.stream(asked[0], url, content=asked[1]) as response:
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST_REPLY:
                        raise Fault(
                            f"the reply is longer than {LARGEST_REPLY >> 20} MB",
                            "See what stands at OPENAI_BASE_URL: no completion is that long",
                            more_tries=0,
                        )
            if not response.is_redirect:
                return response.status_code, response.headers, bytes(content)
            target = urljoin(url, response.headers.get("Location", ""))
            if not _may_follow(url, target, response.status_code):
                break
            url = target
        raise Fault(
            f"{url} redirects to {self.masked(_shown(target))} ({response.status_code}), and requests with "
            "the key go to OPENAI_BASE_URL alone",
            "Set OPENAI_BASE_URL to the new address if you trust it",
            more_tries=0,
        )

    def masked(self, content: Any) -> Any:
        """What a server says, with `***` for the secrets in it: some repeat what they are sent."""
        if isinstance(content, str):
            login = base64.b64encode(":".join(self.login).encode()).decode()
            for secret in (self.key, login, *self.login[1:]):
                # A stand-in for servers without keys may be a letter, and stands in every word.
                content = content.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else content
            return content
        if isinstance(content, dict):
            return {self.masked(key): self.masked(value) for key, value in content.items()}
        return [self.masked(each) for each in content] if isinstance(content, list) else content


def _may_follow(url: str, target: str, status: int) -> bool:
    """Whether a redirect stays at the origin, and keeps the request as it is."""
    here, there = httpx2.URL(url), httpx2.URL(target)
    return here.origin == there.origin and status in (307, 308)


def _shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _refusal(status: int, headers: Mapping[str, str], reply: Any) -> Fault:
    """What an error status means; a content filter's refusal is one of the 400s."""
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    said = error.get("message", error) if isinstance(error, dict) else error
    says = f"({status}): {shorten(said, 400)}"
    if status in (401, 403):
        return Fault(f"the key is refused {says}", "Set OPENAI_API_KEY to a key that may use this model", 0)
    if status == 404:
        fix = "Correct the model's name, or OPENAI_BASE_URL, which mostly ends in /v1"
        return Fault(f"there is no such model or address {says}", fix, 0)
    if status == 429:
        fix = "Ask for less at the same time, see your quota, or wait"
        return Fault(f"it is busy or a quota is used up {says}", fix, wait=_wait(headers))
    if status in (408, 409) or status >= 500:
        return Fault(f"the server fails {says}", "See its log, or wait", wait=_wait(headers))
    if "content_filter" in str(error) or "content_policy" in str(error):
        return Fault(f"its content filter refuses this {says}", "Leave the row out, or ask another model", 0)
    return Fault(f"the request is refused {says}", "Change what it names", 0)


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
