"""An OpenAI-compatible server on loopback whose replies follow from the request alone."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 18731
"""The same on both sides and in every call: addresses stand in results."""
VERDICTS = ("[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).digest()[0]
        content = json.dumps(_completion(body, number)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def _completion(body: dict[str, Any], number: int) -> dict[str, Any]:
    """A verdict and a rating, each as good as any."""
    text = f"My verdict is {VERDICTS[number % 4]}.\nRating: {1 + number % 10}"
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


@contextmanager
def serving() -> Iterator[str]:
    """The server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", PORT), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{PORT}/v1"
    finally:
        server.shutdown()
        server.server_close()
