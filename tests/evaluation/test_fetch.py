"""Fetching the benchmarks' files, from a server on loopback that stands in for their home."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from preftune.errors import InputError
from preftune.evaluation import fetching
from preftune.evaluation.fetching import fetch, url_of
from preftune.evaluation.published import PublishedFile, Repository
from preftune.evaluation.table import REPOSITORIES

CommandLine = Callable[..., tuple[int, str]]
FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "evaluation"
CONTENT = {
    "data/question 1.jsonl": b'{"question": 1}\n' * 20_000,
    "prompts/judge.txt": b"Which is better?",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Mirror(ThreadingHTTPServer):
    """Serves files by path, whole or from an offset.

    Attributes:
        files: content by path.
        asked: path and Range header of every request.
        breaks_after: bytes of a body after which the connection is closed; None sends all.
        knows_ranges: whether it continues where it is asked to, or sends all again.
        endless: whether a body goes on for as long as somebody listens.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[tuple[str, str | None]] = []
        self.breaks_after: int | None = None
        self.knows_ranges = True
        self.endless = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        """A file, the rest of one, or 404."""
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.knows_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if not self.server.endless:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.breaks_after])
        while self.server.endless:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server that has the two files of a benchmark, the only one in the table."""
    repository = Repository(
        "people/bench",
        COMMIT,
        tuple(
            PublishedFile(Path(path).name, path, hashlib.sha256(content).hexdigest(), len(content))
            for path, content in CONTENT.items()
        ),
    )
    monkeypatch.setattr(fetching, "REPOSITORIES", {"mt_bench": repository})
    files = {
        f"/people/bench/{COMMIT}/data/question%201.jsonl": CONTENT["data/question 1.jsonl"],
        f"/people/bench/{COMMIT}/prompts/judge.txt": CONTENT["prompts/judge.txt"],
    }
    server = Mirror(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_downloaded_once(preftune: CommandLine, mirror: Mirror, tmp_path: Path) -> None:
    """The command asks for each file at its pinned commit; a second call checks them and asks for nothing."""
    arguments = ["evaluate", "fetch", "all", "--output", str(tmp_path), "--mirror", mirror.url + "/"]
    assert preftune(*arguments)[0] == 0
    assert [path for path, _ in mirror.asked] == list(mirror.files)
    for path, content in CONTENT.items():
        assert (tmp_path / "mt_bench" / Path(path).name).read_bytes() == content
    assert preftune(*arguments)[0] == 0
    assert len(mirror.asked) == len(CONTENT)
    assert {path.name for path in (tmp_path / "mt_bench").iterdir()} == {"question 1.jsonl", "judge.txt"}


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on(mirror: Mirror, tmp_path: Path, knows_ranges: bool) -> None:
    """After a connection broke at 1000 bytes no file is there; the next call asks for the rest, and gets it.

    A server without ranges sends the whole file again, and that is not appended to what was there.
    """
    mirror.breaks_after, mirror.knows_ranges = 1000, knows_ranges
    with pytest.raises(InputError, match="1000 of 320000 bytes; run the same command again"):
        fetch("mt_bench", tmp_path, mirror.url)
    assert not (tmp_path / "mt_bench" / "question 1.jsonl").exists()
    mirror.breaks_after = None
    fetched = fetch("mt_bench", tmp_path, mirror.url)
    assert mirror.asked[1][1] == "bytes=1000-"
    assert fetched[0].path.read_bytes() == CONTENT["data/question 1.jsonl"]
    assert [path.name for path in (tmp_path / "mt_bench").glob("*.part")] == []


def test_another_content_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    """A file of the right size and another content is named with both checksums, and nothing of it stays."""
    path = next(iter(mirror.files))
    mirror.files[path] = mirror.files[path].replace(b"1", b"2", 1)
    with pytest.raises(InputError, match="is not the published file") as stopped:
        fetch("mt_bench", tmp_path, mirror.url)
    for content in (mirror.files[path], CONTENT["data/question 1.jsonl"]):
        assert hashlib.sha256(content).hexdigest() in str(stopped.value)
    assert list((tmp_path / "mt_bench").iterdir()) == []


def test_a_longer_file_does_not_fill_the_disk(mirror: Mirror, tmp_path: Path) -> None:
    """A file without an end is hung up on soon after the size that is known, and refused."""
    mirror.endless = True
    with pytest.raises(InputError, match="is not the published file"):
        fetch("mt_bench", tmp_path, mirror.url)


def test_a_file_of_the_user_is_not_written_over(mirror: Mirror, tmp_path: Path) -> None:
    """Another file under the same name stays as it is, and is named."""
    own = tmp_path / "mt_bench" / "question 1.jsonl"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        fetch("mt_bench", tmp_path, mirror.url)
    assert own.read_text() == "mine"
    assert mirror.asked == []


def test_what_the_server_lacks_is_said(mirror: Mirror, tmp_path: Path) -> None:
    """A missing file, no server, no web address and no benchmark each stop with a message."""
    mirror.files.clear()
    with pytest.raises(InputError, match=r"data/question%201\.jsonl: the server says 404"):
        fetch("mt_bench", tmp_path, mirror.url)
    with pytest.raises(InputError, match="refused"):
        fetch("mt_bench", tmp_path, "http://127.0.0.1:9")
    with pytest.raises(InputError, match="must start with https"):
        fetch("mt_bench", tmp_path, "file:///etc")
    with pytest.raises(InputError, match="choose one of mt_bench, or all"):
        fetch("mmlu", tmp_path, mirror.url)


def test_the_table_names_real_files_once() -> None:
    """Every entry has a full commit and checksum, its own place and its own address."""
    entries = [(name, one, file) for name, one in REPOSITORIES.items() for file in one.files]
    for _, repository, file in entries:
        assert len(bytes.fromhex(repository.commit)) == 20
        assert len(bytes.fromhex(file.sha256)) == 32
    assert len({(name, file.name) for name, _, file in entries}) == len(entries)
    assert len({url_of(repository, file) for _, repository, file in entries}) == len(entries)
    assert url_of(REPOSITORIES["mt_bench"], REPOSITORIES["mt_bench"].files[0]) == (
        "https://raw.githubusercontent.com/lm-sys/FastChat/0e6d3e4beaab66f4d3f93db72541a4abab8af28d/"
        "fastchat/llm_judge/data/mt_bench/question.jsonl"
    )


@pytest.mark.skipif(not FIXTURES.exists(), reason="the published files are not on this machine")
def test_checksums_are_those_of_the_published_files() -> None:
    """Eight of the files are at hand here, and the table has their checksums and sizes."""
    lines = (FIXTURES / "SHA256SUMS").read_text().splitlines()
    published = {digest: FIXTURES / name for digest, name in (line.split(maxsplit=1) for line in lines)}
    known = [file for one in REPOSITORIES.values() for file in one.files if file.sha256 in published]
    assert len(known) == 8
    for file in known:
        content = published[file.sha256].read_bytes()
        assert len(content) == file.bytes
        assert hashlib.sha256(content).hexdigest() == file.sha256
    questions = json.loads(published[REPOSITORIES["mt_bench"].files[0].sha256].read_text().split("\n")[0])
    assert questions["question_id"] == 81
