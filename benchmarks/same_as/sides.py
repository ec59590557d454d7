"""Two sides: a commit's source or the working tree's, and what each run leaves with it."""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from yaml import safe_dump

from same_as.runs import Run

PROJECT = Path(__file__).resolve().parents[2]
INPUTS = "inputs"
RECORD = "record.json"
SECONDS = 300
"""After so many a command counts as failed."""
ROOT = b"(folder)"
FIXED = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "160",
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")


@dataclass(frozen=True)
class Outcome:
    """How a run on one side ended.

    Attributes:
        folder: where its files are.
        root: the absolute folder that it ran in, which may stand in its files.
        failure: what went wrong, with the end of stderr; empty where nothing did.
        seconds: wall time of each command.
    """

    folder: Path
    root: str
    failure: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: as shown.
        source: the folder that holds the package.
        work: where its runs are done, each in a folder of its own.
        starter: of its commands.
        kept: where finished runs are kept for the next comparison; none for a side that may change.
    """

    name: str
    source: Path
    work: Path
    starter: "Starter"
    kept: Path | None = None


def commit_of(revision: str) -> str:
    """The full hash."""
    return _git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()


def export(commit: str, folder: Path) -> Path:
    """Write a commit's source; returns the folder that holds the package."""
    if not folder.exists():
        scratch = folder.with_suffix(f".{os.getpid()}")
        scratch.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", commit, "src"], cwd=PROJECT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(scratch)], input=archive, check=True)
        scratch.rename(folder)
    return folder / "src"


def digest_of(folder: Path) -> str:
    """Of all that a run's result hangs on besides the source: inputs, versions and the kind of CPU."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    machine = [platform.python_version(), platform.machine(), torch.backends.cpu.get_cpu_capability()]
    found.update("\n".join(versions + machine).encode())
    return found.hexdigest()[:16]


def run_of(side: Side, name: str, run: Run, inputs: Path, endpoint: Mapping[str, str]) -> Outcome:
    """Do a run, or find it kept."""
    key = hashlib.sha256(repr(run).encode()).hexdigest()[:16]
    if side.kept is not None and (found := _kept(side.kept / f"{name}-{key}")) is not None:
        return found
    folder = side.work / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder / INPUTS)
    for file, config in run.configs.items():
        (folder / file).write_text(safe_dump(config, sort_keys=False), encoding="utf-8")
    for file, text in run.files.items():
        (folder / file).write_text(text, encoding="utf-8")
    failure, seconds = _do(side, run, folder, endpoint)
    outcome = Outcome(folder, str(folder), failure, tuple(seconds))
    return outcome if side.kept is None or failure else _keep(outcome, side.kept / f"{name}-{key}")


def _do(side: Side, run: Run, folder: Path, endpoint: Mapping[str, str]) -> tuple[str, list[float]]:
    seconds: list[float] = []
    asked: dict[str, Any] = {
        "folder": str(folder),
        "path": [str(folder), str(side.source)],
        "limit": SECONDS,
    }
    for number, command in enumerate(run.commands, start=1):
        environment = _environment(side.source, folder, endpoint, command.processes)
        errors = folder.with_name(f"{folder.name}.stderr-{number}.txt")
        errors.unlink(missing_ok=True)
        answer = side.starter.do(
            asked
            | {"words": command.words, "processes": command.processes, "environment": environment}
            | {"printed": f"printed-{number}.txt", "errors": str(errors)}
        )
        seconds.append(answer["seconds"])
        if set(answer["statuses"]) != {command.status}:
            said = f"`{' '.join(command.words)}` ended with {answer['statuses']}"
            return f"{said}: ...{answer['errors']}", seconds
    return "", seconds


class Starter:
    """The process that starts a side's commands; made at the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def do(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One command, to its end."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("starter.py"))],
                env=_plain_environment() | FIXED,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


def _plain_environment() -> dict[str, str]:
    left_out = ("PYTHONPATH", "PREFTUNE_CACHE")
    return {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and key not in left_out
    }


def _environment(source: Path, folder: Path, endpoint: Mapping[str, str], processes: int) -> dict[str, str]:
    found = {
        **endpoint,
        "PYTHONPATH": f"{source}{os.pathsep}{folder}",
        "PREFTUNE_CACHE": str(folder / "preftune-cache"),
    }
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **size}
    return found


def _kept(folder: Path) -> Outcome | None:
    record = folder / RECORD
    if not record.exists():
        return None
    content = json.loads(record.read_text(encoding="utf-8"))
    return Outcome(folder / "files", content["root"], content["failure"], tuple(content["seconds"]))


def _keep(outcome: Outcome, folder: Path) -> Outcome:
    """Move a finished run into the cache, whole or not at all."""
    scratch = folder.with_suffix(f".{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.rmtree(outcome.folder / INPUTS)
    outcome.folder.rename(scratch / "files")
    record = {key: value for key, value in asdict(outcome).items() if key != "folder"}
    (scratch / RECORD).write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return Outcome(folder / "files", outcome.root, outcome.failure, outcome.seconds)


def files_of(outcome: Outcome) -> dict[str, bytes]:
    """Content of each file by its path, without the name of the folder that the run was in."""
    found = {}
    for path in sorted(outcome.folder.rglob("*")):
        name = path.relative_to(outcome.folder)
        if path.is_file() and name.parts[0] != INPUTS and "__pycache__" not in name.parts:
            content = path.read_bytes()
            found[name.as_posix()] = (
                content.replace(outcome.root.encode(), ROOT) if _is_text(path) else content
            )
    return found


def _is_text(path: Path) -> bool:
    return path.suffix in (".json", ".jsonl", ".yaml", ".html", ".txt", ".md", ".csv")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
