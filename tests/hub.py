"""A hub on loopback that speaks the routes by which huggingface_hub uploads a folder."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

TOKEN = "hf_of_the_test"
LARGE = (".safetensors", ".bin", ".pt", ".pth")
"""Files that go by LFS; all others stand in the commit itself."""


class Hub(ThreadingHTTPServer):
    """One user's hub.

    Attributes:
        files: content by path, by revision, by repository.
        private: whether a repository was made private, by its name.
        commits: repository, revision and message of each, in order of arrival.
        asked: method and path of every request.
        tokens: what came as authorization.
        faults: by a part of a path, the status that its requests get; 0 drops the connection.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, object] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.faults: dict[str, int] = {}
        self.large: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was dropped is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        for part, status in self.server.faults.items():
            if part in path:
                return self._fail(status)
        if path.startswith("/lfs/"):
            # As on the hub, where the address itself is the permission.
            self.server.large[path.removeprefix("/lfs/")] = body
            return self._send(200, {})
        self.server.tokens.add(self.headers["Authorization"])
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._fail(401)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "whoami-v2"]:
            return self._send(200, {"name": "me", "type": "user", "orgs": []})
        if parts[:2] == ["api", "validate-yaml"]:
            return self._send(200, {"warnings": [], "errors": []})
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:], body)
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        return self._send(404, {"error": f"no route {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if name in self.server.files:
            return self._send(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
        self.server.files[name] = {"main": {}}
        self.server.private[name] = asked.get("visibility")
        return self._send(200, {"url": f"{self.server.address}/{name}"})

    def _model(self, name: str, route: list[str], body: bytes) -> None:
        if name not in self.server.files:
            return self._send(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        branches = self.server.files[name]
        if route[:1] == ["branch"]:
            branches.setdefault(route[1], dict(branches["main"]))
            return self._send(200, {})
        if route[:1] == ["preupload"]:
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in files}
            answer = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            return self._send(200, {"files": answer})
        assert route[0] == "commit", route
        branch = branches[route[1]]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append((name, route[1], value["summary"]))
            elif line["key"] == "file":
                branch[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line
                branch[value["path"]] = self.server.large[value["oid"]]
        number = len(self.server.commits)
        address = f"{self.server.address}/{name}/commit/{number:040x}"
        return self._send(200, {"commitUrl": address, "commitOid": f"{number:040x}"})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {
                "oid": each["oid"],
                "size": each["size"],
                "actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}},
            }
            for each in asked["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _file(self, name: str, revision: str, path: str) -> None:
        content = self.server.files.get(name, {}).get(revision, {}).get(path)
        if content is None:
            return self._send(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        return self._answer(200, content, headers)

    def _fail(self, status: int) -> None:
        if status == 0:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self._send(status, {"error": f"refused, {self.headers['Authorization']}"})

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._answer(
            status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def loopback_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub and make huggingface_hub use it, by LFS, with the test's token."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # hf_xet speaks to a service of its own.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    huggingface_hub.utils.close_session()
    yield server
    huggingface_hub.utils.close_session()
    server.shutdown()
    server.server_close()
    thread.join()
