"""The benchmarks' own files, from their homes: pinned to a commit, checked by sha256."""

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

HOME = "https://raw.githubusercontent.com"
"""Serves `REPOSITORY/COMMIT/PATH` of every public repository there."""

ALL = "all"
TIMEOUT = 60
CHUNK = 1 << 16
PART = ".part"

APACHE = "Apache-2.0"
ALPACA_DATA = "CC BY-NC 4.0"


@dataclass(frozen=True)
class Source:
    """One file of a benchmark.

    Attributes:
        file: where it is written, under the benchmark's folder.
        path: in the repository.
        sha256: of its content.
        bytes: its size.
        licence: of its content.
    """

    file: str
    path: str
    sha256: str
    bytes: int
    licence: str = APACHE


@dataclass(frozen=True)
class Home:
    """A repository at one commit, and the files taken from it."""

    repository: str
    commit: str
    sources: tuple[Source, ...]


HOMES = {
    "alpaca_eval": Home(
        "tatsu-lab/alpaca_eval",
        "cd543a149df89434d8a54582c0151c0b945c3d20",
        (
            Source(
                "baseline_gpt4_1106_preview.json",
                "results/gpt4_1106_preview/model_outputs.json",
                "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
                1_899_765,
                ALPACA_DATA,
            ),
            Source(
                "alpaca_eval_clf.txt",
                "src/alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
                "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
                1_398,
            ),
            Source(
                "leaderboard.csv",
                "src/alpaca_eval/leaderboards/data_AlpacaEval_2/"
                "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
                "fe32bf85c2f7429038faa4c9a884d1d131726454ff84a4b810a91c1c7a2aa0e9",
                28_339,
            ),
        ),
    ),
    "arena_hard": Home(
        "lmarena/arena-hard-auto",
        "196f6b826783b3da7310e361a805fa36f0be83f3",
        (
            Source(
                "v0.1/question.jsonl",
                "data/arena-hard-v0.1/question.jsonl",
                "2650242d2883f22b2abd498f273b6a7e02253cce533f5c91a858e1d44aa3002f",
                272_075,
            ),
            Source(
                "v0.1/gpt-4-0314.jsonl",
                "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl",
                "0f6abc84de4600fde987d9db70f838f4ecdbd27a2f1f4058c12aa322a6f791b2",
                1_270_631,
            ),
            Source(
                "v0.1/arena-hard-v0.1.yaml",
                "config/arena-hard-v0.1.yaml",
                "87ac45a188421218349697b5eda95cc77f6e60b6f61495d67d8cfebba3210528",
                428,
            ),
            Source(
                "v2.0/question.jsonl",
                "data/arena-hard-v2.0/question.jsonl",
                "a75cef6623db6b27aec810497b059f0659705d7ff48dcbccc5bd5b130728ac73",
                947_596,
            ),
            Source(
                "v2.0/o3-mini-2025-01-31.jsonl",
                "data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl",
                "c23a7c255eead99f7f86ad48aa1d8ccdb5b3334f2097e0e1e09184df87265e03",
                4_184_593,
            ),
            Source(
                "v2.0/arena-hard-v2.0.yaml",
                "config/arena-hard-v2.0.yaml",
                "ee68e5c6ac98a79720bf11014fc3f7fc3c3e5899153b3b08efe3db0e174215a0",
                543,
            ),
            Source(
                "judge_utils.py",
                "utils/judge_utils.py",
                "cbb093f4fc27408d8447e946392f26f98538b1e3950f574aca91a0f7595167b4",
                3_957,
            ),
        ),
    ),
    "mt_bench": Home(
        "lm-sys/FastChat",
        "0e6d3e4beaab66f4d3f93db72541a4abab8af28d",
        (
            Source(
                "question.jsonl",
                "fastchat/llm_judge/data/mt_bench/question.jsonl",
                "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
                48_929,
            ),
            Source(
                "reference_gpt-4.jsonl",
                "fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl",
                "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
                51_109,
            ),
            Source(
                "judge_prompts.jsonl",
                "fastchat/llm_judge/data/judge_prompts.jsonl",
                "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
                10_449,
            ),
        ),
    ),
}
"""By benchmark. Sizes and checksums are those of the files at the commit."""


@dataclass(frozen=True)
class Fetched:
    """A file that is there now.

    Attributes:
        path: where.
        source: what it is.
        downloaded: whether it was asked for; else it was there already.
    """

    path: Path
    source: Source
    downloaded: bool


def fetch(
    benchmark: str,
    output: Path,
    mirror: str = HOME,
    announce: Callable[[Path, Source], None] = lambda path, source: None,
) -> list[Fetched]:
    """Have a benchmark's files in a folder, each checked.

    A file that is there and right is not asked for. What an earlier call left unfinished goes on where it
    stopped, if the server can; a file appears under its name only when it is whole and right.

    Args:
        benchmark: a name of HOMES, or "all".
        output: folder; each benchmark gets one of its name in it.
        mirror: base URL under which `REPOSITORY/COMMIT/PATH` is served.
        announce: called before a file is asked for.

    Raises:
        InputError: there is no such benchmark, the server fails, or a file is not the one that is expected.
    """
    if benchmark not in (*HOMES, ALL):
        raise InputError(f"{benchmark!r} cannot be fetched: choose one of {', '.join(HOMES)}, or {ALL}")
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise InputError(f"--mirror {mirror}: it must start with https:// or http://")
    names = tuple(HOMES) if benchmark == ALL else (benchmark,)
    return [
        _have(output / name / source.file, source, url_of(HOMES[name], source, mirror), announce)
        for name in names
        for source in HOMES[name].sources
    ]


def url_of(home: Home, source: Source, mirror: str = HOME) -> str:
    """Where a file is asked for."""
    return f"{mirror.rstrip('/')}/{home.repository}/{home.commit}/{quote(source.path)}"


def _have(path: Path, source: Source, url: str, announce: Callable[[Path, Source], None]) -> Fetched:
    if path.exists():
        if _sha256(path) != source.sha256:
            raise InputError(
                f"{path} is not the published file (sha256 {_sha256(path)}, expected {source.sha256}): move "
                "it away, or choose another --output"
            )
        return Fetched(path, source, downloaded=False)
    announce(path, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        _download(url, part, source.bytes)
    except HTTPError as error:
        raise InputError(f"{url}: the server says {error.code} {error.reason}; check --mirror") from None
    except (OSError, HTTPException) as error:
        raise InputError(f"{url}: {error or type(error).__name__}; the same call goes on from here") from None
    found, size = _sha256(part), part.stat().st_size
    if size < source.bytes:
        raise InputError(
            f"{url}: it ended after {size} of {source.bytes} bytes; the same call goes on from here"
        )
    if found != source.sha256:
        part.unlink()
        raise InputError(
            f"{url} is not the published file (its sha256 is {found}, expected {source.sha256}): nothing was "
            "kept; check --mirror, or what stands between this machine and it"
        )
    os.replace(part, path)
    return Fetched(path, source, downloaded=True)


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
        found.setdefault(one.source.licence, []).append(one.path)
    return found
