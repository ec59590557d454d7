"""The connection to an OpenAI-compatible endpoint: its key, its retries, and errors without the key."""

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from preftune.data.rules import shorten
from preftune.errors import InputError

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI = "https://api.openai.com/v1"
SHORTEST_KEY = 8
RETRIES = 6
"""Of one request, each after a longer wait, where the endpoint is busy or fails."""


def require_key(who: str) -> None:
    """Check that the environment has a key.

    Raises:
        InputError: it has none.
    """
    if not os.environ.get("OPENAI_API_KEY"):
        raise InputError(
            f"{who} needs OPENAI_API_KEY in the environment (any text for a server without keys) and "
            "OPENAI_BASE_URL for another endpoint than OpenAI's, such as http://localhost:8000/v1: set them"
        )


def connect() -> "OpenAI":
    """A client for the endpoint in the environment. It follows no redirect."""
    from openai import DefaultHttpxClient, OpenAI

    return OpenAI(max_retries=RETRIES, http_client=DefaultHttpxClient(follow_redirects=False))


def first_choice(create: Any, who: str, kept: str, **asked: Any) -> tuple[Any, Any]:
    """Send one request.

    Args:
        create: the method of openai's client that sends it.
        who: begins an error.
        kept: what of the work so far is kept, as in "Ratings so far are kept".
        asked: its parameters.

    Returns:
        The first choice, and the usage or None.

    Raises:
        InputError: the endpoint failed, or what it sent is no completion.
    """
    from openai import OpenAIError

    try:
        completion = create(**asked)
    # What announces itself as JSON and is none.
    except (OpenAIError, ValueError) as error:
        why = without_key(str(error)).rstrip(".")
        raise InputError(f"{who}: {why}. {kept}: start again once it is settled") from None
    if not getattr(completion, "choices", None):
        shown = shorten(without_key(str(completion)), 200)
        raise InputError(
            f"{who}: it sent no completion: {shown}. {kept}: see that OPENAI_BASE_URL is its API"
        )
    return completion.choices[0], completion.usage


def address() -> str:
    """The endpoint's address, without a name and password that may stand in it."""
    parts = urlsplit(os.environ.get("OPENAI_BASE_URL") or OPENAI)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def without_key(text: str) -> str:
    """A text of the endpoint's; some servers repeat the key they were given."""
    key = os.environ["OPENAI_API_KEY"]
    # A stand-in for servers without keys may be a letter, and stands in every word.
    return text.replace(key, "OPENAI_API_KEY") if len(key) >= SHORTEST_KEY else text
