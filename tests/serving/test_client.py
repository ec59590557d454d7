"""The connection to an endpoint: no verb ever shows the key, and no request goes to another place."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..conftest import serving

CommandLine = Callable[..., tuple[int, str]]
KEY = "sk-never-to-be-seen-0123456789"


class Echo(ThreadingHTTPServer):
    """Answers every request with one status, and the key it was given in the body.

    Attributes:
        status: of every reply.
        asked: paths of the requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 401
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Repeats the authorization."""

    server: Echo

    def do_POST(self) -> None:
        """Reply to one request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        given = self.headers["Authorization"]
        content = f"<html>{given}</html>" if self.server.status == 200 else json.dumps({"error": given})
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/html" if self.server.status == 200 else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Echo]:
    """A running server that the environment names, with a key worth hiding."""
    server = Echo()
    with serving(server, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield server


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """One pair of texts."""
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("status", [400, 401, 200, 307])
@pytest.mark.parametrize("verb", ["score", "sample"])
def test_a_key_that_a_server_repeats_is_never_shown(
    verb: str, status: int, echo: Echo, pairs: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """A refusal, a page in place of JSON and a redirect are one message each, without the key."""
    echo.status = status
    output = str(tmp_path / "out.jsonl")
    words = {
        "score": ("score", str(pairs), "--prior", "judge:any", "--output", output),
        "sample": ("sample", "any", str(pairs), "--engine", "server", "--output", output, "--n", "1"),
    }
    code, errors = preftune(*words[verb])
    assert code == 2, errors
    assert "Traceback" not in errors
    assert KEY not in errors
    assert not any(KEY in file.read_text(encoding="utf-8") for file in tmp_path.glob("*"))
    assert "/elsewhere" not in echo.asked
