"""`judge:` asks a real OpenAI-compatible server on loopback."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from preftune.rewards.judge import parse_rating

CommandLine = Callable[..., tuple[int, str]]


class Endpoint(ThreadingHTTPServer):
    """Answers chat completions; what it says follows from what it is asked.

    Attributes:
        asked: bodies of the requests, in order of arrival.
        keys: what came as authorization.
        reply: the judge's reply to a message.
        busy: requests still to be refused with status 429.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.reply: Callable[[str], str] = by_length
        self.busy = 0


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, as OpenAI's API has it."""

    server: Endpoint

    def do_POST(self) -> None:
        """Reply to one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": "no such path"}})
        elif self.server.busy > 0:
            self.server.busy -= 1
            self._send(429, {"error": {"message": "busy"}}, {"Retry-After": "0"})
        else:
            self.server.asked.append(body)
            message = {"role": "assistant", "content": self.server.reply(body["messages"][-1]["content"])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            self._send(200, {**answer, "choices": [choice]})

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


def response_in(message: str) -> str:
    """The response that is to be rated."""
    return message.partition("<response>\n")[2].partition("\n</response>")[0]


def by_length(message: str) -> str:
    """A rating of one for each character."""
    return f"Clear, but short. Rating 9 would be too much.\n**Rating: {len(response_in(message))}**"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A running server that the environment names."""
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-test")
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pairs, one of them a chat."""
    chat = {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}],
        "chosen": [{"role": "assistant", "content": "Hello!"}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    rows = [{"prompt": "2+2?", "chosen": "4, surely", "rejected": "5"}, chat]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores(path: Path) -> list[tuple[float, float]]:
    """Chosen and rejected of each row."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["score_chosen"], row["score_rejected"]) for row in rows]


def test_ratings_become_scores(endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path) -> None:
    """Each response is asked about once, with its prompt and key; a busy server is asked again."""
    endpoint.busy = 2
    scored = tmp_path / "scored.jsonl"
    code, errors = preftune("score", str(data), "--prior", "judge:some-model", "--output", str(scored))
    assert code == 0, errors
    assert scores(scored) == [(9.0, 1.0), (6.0, 3.0)]
    assert endpoint.keys == {"Bearer of-the-test"}
    assert len(endpoint.asked) == 4
    assert {(body["model"], body["temperature"]) for body in endpoint.asked} == {("some-model", 0)}
    (greeting,) = (b["messages"][0]["content"] for b in endpoint.asked if "Hello!" in str(b["messages"]))
    assert "<prompt>\nsystem: Be kind.\n\nuser: Hello?\n</prompt>" in greeting
    assert response_in(greeting) == "Hello!"


def test_what_comes_again_is_asked_once(endpoint: Endpoint, preftune: CommandLine, tmp_path: Path) -> None:
    """A response that stands in two pairs of a prompt costs one call."""
    rows = [{"prompt": "2+2?", "chosen": "4, surely", "rejected": text} for text in ("5", "six")]
    data, scored = tmp_path / "data.jsonl", tmp_path / "scored.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, errors = preftune("score", str(data), "--prior", "judge:some-model", "--output", str(scored))
    assert code == 0, errors
    assert scores(scored) == [(9.0, 1.0), (9.0, 3.0)]
    assert len(endpoint.asked) == 3


def test_ratings_are_kept_when_the_judge_fails(
    endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """A judge without a rating stops the call with the row and its reply; the next call asks for the rest."""
    scored = tmp_path / "scored.jsonl"
    arguments = ["score", str(data), "--prior", "judge:m:workers=1,temperature=null", "--output", str(scored)]
    endpoint.reply = lambda message: by_length(message) if "Hello?" not in message else "I would rather not."
    code, errors = preftune(*arguments)
    assert code == 2
    assert "row 1, response 0" in errors
    assert "I would rather not." in errors
    assert not scored.exists()
    assert len(endpoint.asked) == 2 + 3
    assert "temperature" not in endpoint.asked[0]
    endpoint.asked.clear()
    endpoint.reply = by_length
    code, errors = preftune(*arguments)
    assert code == 0, errors
    assert len(endpoint.asked) == 2
    assert scores(scored) == [(9.0, 1.0), (6.0, 3.0)]


def test_ratings_under_way_are_kept(
    endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """Where one of several requests at the same time fails, the others' ratings are not asked for again."""
    scored = tmp_path / "scored.jsonl"
    arguments = ["score", str(data), "--prior", "judge:m:workers=4", "--output", str(scored)]
    failed, attempts = threading.Event(), []

    def reply(message: str) -> str:
        if "Hello!" not in message:
            assert failed.wait(timeout=60)
            return by_length(message)
        attempts.append(message)
        if len(attempts) == 3:
            failed.set()
        return "No."

    endpoint.reply = reply
    assert preftune(*arguments)[0] == 2
    endpoint.asked.clear()
    endpoint.reply = by_length
    assert preftune(*arguments)[0] == 0
    assert [response_in(body["messages"][0]["content"]) for body in endpoint.asked] == ["Hello!"]


def test_an_endpoint_that_refuses_is_named(
    endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the endpoint says is the message, also while other requests wait for their turn."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server_port}/v2")
    output = str(tmp_path / "scored.jsonl")
    code, errors = preftune("score", str(data), "--prior", "judge:m:workers=2", "--output", output)
    assert code == 2
    assert "judge:m failed" in errors
    assert "no such path" in errors


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 7", 7.0),
        ("rating: 10.", 10.0),
        ("A 9? No.\n**Rating:** 8/10", 8.0),
        ("Rating: 3\nOn reflection:\nRating: 4.5", 4.5),
        ("Rating: 11", None),
        ("Rating: 0", None),
        ("Seven of ten", None),
        ("", None),
    ],
)
def test_parse_rating(reply: str, rating: float | None) -> None:
    """The last rating counts; one outside of 1 to 10 is none."""
    assert parse_rating(reply) == rating
