"""Downloads of the benchmarks' own files, each checked by sha256."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from preftune.errors import InputError
from preftune.evaluation.published import PublishedFile, Repository
from preftune.evaluation.table import REPOSITORIES

HOME = "https://raw.githubusercontent.com"
"""Serves `REPOSITORY/COMMIT/PATH` of every public repository there."""

ALL = "all"
TIMEOUT = 60
CHUNK = 1 << 16
PART = ".part"


@dataclass(frozen=True)
class Fetched:
    """A file that is there now.

    Attributes:
        path: where.
        file: what it is.
        downloaded: whether it was asked for; else it was there already.
    """

    path: Path
    file: PublishedFile
    downloaded: bool


Announce = Callable[[Path, PublishedFile], None]
"""Is told of a file, and where it will be, before it is asked for."""


def fetch(
    benchmark: str,
    output: Path,
    mirror: str = HOME,
    announce: Announce = lambda path, file: None,
) -> list[Fetched]:
    """Have a benchmark's files in a folder, each checked.

    An existing, correct file is not downloaded. An unfinished download of an earlier call resumes where it
    stopped, if the server can; a file appears under its name only when it is whole and right.

    Args:
        benchmark: a name of REPOSITORIES, or "all".
        output: folder; each benchmark gets one of its name in it.
        mirror: base URL under which `REPOSITORY/COMMIT/PATH` is served.
        announce: called before a file is asked for.

    Raises:
        InputError: there is no such benchmark, the server fails, or a file is not the one that is expected.
    """
    if benchmark not in (*REPOSITORIES, ALL):
        raise InputError(
            f"{benchmark!r} cannot be fetched: choose one of {', '.join(REPOSITORIES)}, or {ALL}"
        )
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise InputError(f"--mirror {mirror}: it must start with https:// or http://")
    names = tuple(REPOSITORIES) if benchmark == ALL else (benchmark,)
    return [
        _have(output / name / file.name, file, url_of(REPOSITORIES[name], file, mirror), announce)
        for name in names
        for file in REPOSITORIES[name].files
    ]


def url_of(repository: Repository, file: PublishedFile, mirror: str = HOME) -> str:
    """Where a file is asked for."""
    return f"{mirror.rstrip('/')}/{repository.name}/{repository.commit}/{quote(file.path)}"


def _have(path: Path, file: PublishedFile, url: str, announce: Announce) -> Fetched:
    if path.exists():
        if _sha256(path) != file.sha256:
            raise InputError(
                f"{path} is not the published file (sha256 {_sha256(path)}, expected {file.sha256}): move "
                "it away, or choose another --output"
            )
        return Fetched(path, file, downloaded=False)
    announce(path, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        _download(url, part, file.bytes)
    except HTTPError as error:
        raise InputError(f"{url}: the server says {error.code} {error.reason}; check --mirror") from None
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{url}: {error or type(error).__name__}; run the same command again to resume"
        ) from None
    found, size = _sha256(part), part.stat().st_size
    if size < file.bytes:
        raise InputError(
            f"{url} ended after {size} of {file.bytes} bytes; run the same command again to resume"
        )
    if found != file.sha256:
        part.unlink()
        raise InputError(
            f"{url} is not the published file (its sha256 is {found}, expected {file.sha256}): nothing was "
            "kept; check --mirror, and any proxy between this machine and it"
        )
    os.replace(part, path)
    return Fetched(path, file, downloaded=True)


def _download(url: str, part: Path, expected: int) -> None:
    """Write what is missing of a file, and at most one chunk more than is expected."""
    size = part.stat().st_size if part.exists() else 0
    if size == expected:
        return
    if size > expected:
        part.unlink()
        size = 0
    request = Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    with (
        urlopen(request, timeout=TIMEOUT) as response,
        part.open("ab" if _continues(response, size) else "wb") as file,
    ):
        while file.tell() <= expected and (chunk := response.read1(CHUNK)):
            file.write(chunk)


def _continues(response: HTTPResponse, size: int) -> bool:
    """Whether the server sends the rest from `size` on; others send the whole file again."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {size}-")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def licences(fetched: Sequence[Fetched]) -> dict[str, list[Path]]:
    """The files by licence."""
    found: dict[str, list[Path]] = {}
    for one in fetched:
        found.setdefault(one.file.licence, []).append(one.path)
    return found
