"""The parent's side of a worker."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WORKER = Path(__file__).with_name("worker.py")
SECONDS_TO_END = 10


class WorkerError(Exception):
    """A worker died; the message carries the end of what it wrote to stderr."""


class Worker:
    """A contestant in its own process; it waits on its stdin whenever it has nothing to do."""

    def __init__(
        self, specification: dict[str, Any], scratch: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        self.name = specification["contestant"]
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            # Whatever libraries leave behind goes with the parent's folder.
            env=os.environ
            | {"TMPDIR": str(scratch), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", **(variables or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def ready(self) -> dict[str, Any]:
        """Wait until the contestant is built; its `items` and its `exact_loss`.

        Raises:
            WorkerError: the worker died.
        """
        return self._read()

    def do(self, command: str, at_a_time: int) -> dict[str, Any]:
        """Run a command and wait for its figures.

        Raises:
            WorkerError: the worker died.
        """
        try:
            self._stream("stdin").write(json.dumps({"do": command, "at_a_time": at_a_time}) + "\n")
            self._stream("stdin").flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._stream("stdout").readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stream(self, name: str) -> Any:
        return getattr(self._process, name)

    def _death(self) -> WorkerError:
        code = self._process.wait(SECONDS_TO_END)
        self._errors.seek(0)
        last = self._errors.read()[-3000:]
        return WorkerError(f"the worker of {self.name} ended with code {code}:\n{last}")
