"""An OpenAI-compatible server whose replies follow from the request alone, for both sides at once.

It plays a web proxy, so that both sides, and a side kept from another day, ask one address without a port.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ADDRESS = "http://endpoint.test/v1"


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Run the server; gives the environment that leads a client there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield {
        "OPENAI_BASE_URL": ADDRESS,
        "OPENAI_API_KEY": "of-the-comparison",
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
    }
    server.shutdown()
    server.server_close()
    thread.join()


def completion(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request: a number from its content, said in the form that the prompt asks for."""
    number = int(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(), 16)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if path.endswith("/chat/completions"):
        text = _said(str(body["messages"]), number)
        choice["message"] = {"role": "assistant", "content": text}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_log_probs(number)]}
    else:
        text = choice["text"] = _said("", number)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**head, "choices": [choice], "usage": usage}


def _said(asked: str, number: int) -> str:
    if "m or M" in asked:
        return "mM"[number % 2]
    if "[[A>B]]" in asked:
        return ("Better is [[A>B]]", "Equal: [[A=B]]", "Better is [[B>A]]")[number % 3]
    if "Grade it" in asked:
        return f"[[{number % 10 + 1}]]"
    if "Reply with one letter" in asked:
        return "ABC"[number % 3]
    if "Rating: N" in asked:
        return f"Clear, but short.\nRating: {number % 10 + 1}"
    return " ".join(("apple", "brick", "cloud", "drum")[number >> shift & 3] for shift in range(0, 16, 2))


def _log_probs(number: int) -> dict[str, Any]:
    weights = {"m": -0.1 - number % 7, "M": -0.1 - number % 5}
    top = [{"token": token, "logprob": weight, "bytes": None} for token, weight in weights.items()]
    return {**top[0], "top_logprobs": top}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(200, completion(self.path, body))

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self._send(200, {"version": "1"})
        else:
            self._send(404, {"error": {"message": "no such path"}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Keep the terminal for the comparison."""
