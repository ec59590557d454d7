"""An OpenAI-compatible server on loopback that answers as a test scripts it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Body = dict[str, Any]


Fault = str | Callable[[Any], None]


class ScriptedServer(ThreadingHTTPServer):
    """An OpenAI-compatible server whose faults are ordered in advance.

    Attributes:
        script: what happens to the next requests, in order of arrival; afterwards all is well. A function
            gets the handler, and replies by itself.
        always: what happens to every request that the script leaves, unless empty.
        asked: bodies of all requests.
        replied: bodies of those that got a whole reply.
        reply: the message to a request.
        log_probs: of the first token, by token; empty leaves them out, whatever is asked.
        usage: tokens of every prompt and reply; None does not say.
        delay: seconds before a reply.
        most: requests that were at work at the same time.
        times: when each request arrived.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Fault] = []
        self.always: Fault = ""
        self.asked: list[Body] = []
        self.replied: list[Body] = []
        self.reply: Callable[[Body], str] = lambda body: "fine"
        self.log_probs: Callable[[Body], dict[str, float]] = lambda body: {}
        self.usage: tuple[int, int] | None = (100, 10)
        self.delay = 0.0
        self.working = 0
        self.most = 0
        self.times: list[float] = []
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            fault = server.script.pop(0) if server.script else server.always
            server.asked.append(body)
            server.times.append(time.monotonic())
            server.working += 1
            server.most = max(server.most, server.working)
        try:
            time.sleep(server.delay)
            self._answer(fault, body)
        finally:
            with server.lock:
                server.working -= 1

    def _answer(self, fault: Fault, body: Body) -> None:
        if not isinstance(fault, str):
            fault(self)
        elif fault == "":
            content = json.dumps(self._completion(body)).encode()
            with self.server.lock:
                self.server.replied.append(body)
            self.send(200, content)
        elif fault == "hang":
            time.sleep(5)
        elif fault == "empty":
            self.send(200, b"")
        elif fault == "html":
            self.send(200, b"<html>busy</html>", "text/html")
        elif fault == "no choices":
            self.send(200, b'{"id": "1"}')
        elif fault == "parts":
            completion = self._completion(body)
            completion["choices"][0]["message"]["content"] = [{"type": "text", "text": "fine"}]
            self.send(200, json.dumps(completion).encode())
        elif fault == "dies":
            self.send(200, b'{"id": ', announced=1000)
            self.close_connection = True
        else:
            message = f"refused with {self.headers['Authorization']}" if fault == "401" else "not now"
            self.send(int(fault), json.dumps({"error": {"message": message}}).encode())

    def _completion(self, body: Body) -> Body:
        choice: Body = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": self.server.reply(body)},
        }
        weights = self.server.log_probs(body)
        if weights:
            top = [{"token": token, "logprob": weight, "bytes": None} for token, weight in weights.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        completion = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        completion["choices"] = [choice]
        if self.server.usage:
            prompt, reply = self.server.usage
            counted = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
            completion["usage"] = counted
        return completion

    def send(
        self,
        status: int,
        content: bytes,
        kind: str = "application/json",
        announced: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Reply; what is no reply is asked for again at once."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(announced or len(content)))
        for name, value in (headers or {"Retry-After-Ms": "1"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


def name_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Put an endpoint into the environment, and no proxy before it."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)


@contextmanager
def scripted_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A running server that the environment names."""
    running = ScriptedServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    name_endpoint(monkeypatch, f"http://127.0.0.1:{running.server_port}/v1")
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
