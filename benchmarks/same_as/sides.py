"""Two sides: a commit's source or the working tree's, and what each run leaves with it."""

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from yaml import safe_dump

from same_as.runs import Run
from same_as.starter import PROJECT, run

INPUTS = "inputs"
TEXTS = (".json", ".jsonl", ".yaml", ".html", ".txt", ".md", ".csv")
TAIL = 1500
"""Characters of stderr that are shown."""
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
        failure: what went wrong, with the end of stderr; empty where nothing did.
        seconds: wall time.
    """

    folder: Path
    failure: str
    seconds: float

    def files(self) -> dict[str, bytes]:
        """Content of each file by its path, without the run's own folder and the time on progress bars."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and name.parts[0] != INPUTS and "__pycache__" not in name.parts:
                content = path.read_bytes()
                if path.suffix in TEXTS:
                    content = content.replace(str(self.folder).encode(), b"(folder)")
                if name.name.startswith("printed-"):
                    content = re.sub(rb"\d+:\d\d:\d\d", b"(time)", content)
                found[name.as_posix()] = content
        return found


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: as shown.
        source: the folder that holds the package.
        folder: where its runs are done, each in a folder of its own.
        inputs: are copied into each of them.
        is_kept: whether a run that is finished there is taken as it is.
    """

    name: str
    source: Path
    folder: Path
    inputs: Path
    is_kept: bool = False

    def outcome(self, name: str, wanted: Run, endpoint: Mapping[str, str]) -> Outcome:
        """Do a run, or find it finished."""
        own = self.folder / f"{name}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]}"
        record = own.with_suffix(".json")
        if self.is_kept and record.exists():
            return Outcome(own, "", json.loads(record.read_text(encoding="utf-8")))
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(self.inputs, own / INPUTS)
        for file, config in wanted.configs.items():
            (own / file).write_text(safe_dump(config, sort_keys=False), encoding="utf-8")
        for file, text in wanted.files.items():
            (own / file).write_text(text, encoding="utf-8")
        began = time.monotonic()
        failure = self._do(wanted, own, endpoint)
        seconds = time.monotonic() - began
        if self.is_kept and not failure:
            record.write_text(json.dumps(seconds), encoding="utf-8")
        return Outcome(own, failure, seconds)

    def _do(self, wanted: Run, own: Path, endpoint: Mapping[str, str]) -> str:
        for number, command in enumerate(wanted.commands, start=1):
            errors = own.with_name(f"{own.name}.stderr-{number}.txt")
            errors.unlink(missing_ok=True)
            environment = {
                **endpoint,
                **_group(command.processes),
                "PYTHONPATH": f"{own}{os.pathsep}{self.source}",
                "PREFTUNE_CACHE": str(own / "preftune-cache"),
            }
            streams = (own / f"printed-{number}.txt", errors)
            statuses = run(command.words, command.processes, own, environment, streams)
            if set(statuses) != {command.status}:
                end = errors.read_text(encoding="utf-8", errors="replace")[-TAIL:]
                return f"`{' '.join(command.words)}` ended with {statuses}: ...{end}"
        return ""


def _group(processes: int) -> dict[str, str]:
    """What `torchrun` tells all processes; nothing to a single one."""
    if processes == 1:
        return {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    size = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **size}


def clean_environment() -> None:
    """Leave nothing in the environment that changes what a run does."""
    for key in [*os.environ]:
        if key.lower().endswith("_proxy") or key in ("PYTHONPATH", "PREFTUNE_CACHE"):
            del os.environ[key]
    os.environ.update(FIXED)


def digest_of(inputs: Path) -> str:
    """Of all that a run's result hangs on besides the source: inputs, versions and the kind of CPU."""
    found = hashlib.sha256()
    for path in sorted(path for path in inputs.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(inputs)} {path.stat().st_size}\n".encode() + path.read_bytes())
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    machine = [platform.python_version(), platform.machine(), torch.backends.cpu.get_cpu_capability()]
    found.update("\n".join(versions + machine).encode())
    return found.hexdigest()[:16]


def commit_of(revision: str) -> str:
    """The full hash."""
    return _git("rev-parse", "--verify", f"{revision}^{{commit}}").stdout.decode().strip()


def has_commit(base: str, commit: str) -> bool:
    """Whether a commit is the base or one before it."""
    return _git("merge-base", "--is-ancestor", commit, base, allowed=(0, 1)).returncode == 0


def export(commit: str, folder: Path) -> Path:
    """Write a commit's source; returns the folder that holds the package."""
    folder.mkdir()
    archive = _git("archive", commit, "src").stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder / "src"


def _git(*words: str, allowed: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, check=False)
    if done.returncode not in allowed:
        sys.exit(f"git {' '.join(words)}: {done.stderr.decode().strip()}")
    return done
