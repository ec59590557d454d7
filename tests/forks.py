"""Processes that cost no imports: forks of one that has loaded everything once.

Run as a program it is that process. A test starts forks of it through `Forks`; a start of Python that
loads torch and transformers takes several seconds of a core.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 300.0
"""Seconds that a fork may take."""


@dataclass(frozen=True)
class Done:
    """How a start ended.

    Attributes:
        status: exit status of the first process that failed, or 0; negative is a signal.
        output: what they wrote to stdout.
        errors: what they wrote to stderr.
    """

    status: int
    output: str
    errors: str


class Started:
    """Running processes, each of which knows its rank, as those of torchrun do."""

    def __init__(self, server: "Forks", processes: Sequence[int], folder: Path) -> None:
        self._server, self._processes, self._folder = server, processes, folder

    def running(self) -> bool:
        """Whether one still runs."""
        return any(status is None for status in self._statuses())

    def kill(self) -> None:
        """SIGKILL to those that run; one that has ended stays as it ended."""
        for process, status in zip(self._processes, self._statuses(), strict=True):
            if status is None:
                os.kill(process, signal.SIGKILL)

    def wait(self) -> Done:
        """Their end; where one fails, the others are killed."""
        latest = time.monotonic() + LIMIT
        while None in (statuses := self._statuses()):
            if any(statuses) or time.monotonic() > latest:
                self.kill()
            time.sleep(0.01)
        failed = [status for status in statuses if status not in (0, -signal.SIGKILL, None)]
        status = (*failed, *filter(None, statuses), 0)[0]
        said = [(self._folder / name).read_text(encoding="utf-8") for name in ("output", "errors")]
        return Done(status, *said)

    def _statuses(self) -> list[int | None]:
        return [self._server.ask({"process": process}) for process in self._processes]


class Forks:
    """The process that has loaded everything."""

    def __init__(self) -> None:
        # A process that forks must not have threads.
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quiet,
        )
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        self._count = 0

    def start(
        self,
        words: Sequence[str],
        *,
        processes: int = 1,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        setup: str = "",
    ) -> Started:
        """Start processes.

        Args:
            words: `preftune` and its arguments, or a script's path and its arguments.
            processes: how many, which find each other as those of torchrun do.
            folder: working directory.
            environment: variables to set.
            setup: code to run before.
        """
        self._count += 1
        texts = Path(self._folder.name) / str(self._count)
        texts.mkdir()
        # A test may have changed the environment since the server started.
        variables = [{**os.environ, **(environment or {}), **ranks} for ranks in _ranks(processes)]
        own = {"words": list(words), "folder": str(folder or Path.cwd()), "setup": setup, "texts": str(texts)}
        return Started(self, [self.ask({**own, "environment": each}) for each in variables], texts)

    def run(self, words: Sequence[str], **named: Any) -> Done:
        """`start`, and wait for the end."""
        return self.start(words, **named).wait()

    def ask(self, request: dict[str, Any]) -> Any:
        """One request to the process and its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._server.kill()
        self._server.communicate()
        self._folder.cleanup()


def _ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun tells its processes; nothing to a single one."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = str(processes)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": count}
    shared["LOCAL_WORLD_SIZE"] = count
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


# --- in the process that forks ---


def serve() -> None:
    """Answer each line of stdin: a start with its process, a process with its exit status or null."""
    # Not the tests' folder, whose packages have the names of others.
    del sys.path[0]
    from preftune.api import inspect, iterate, sample, score, sweep, train, trainer  # noqa: F401
    from preftune.cli import main  # noqa: F401
    from preftune.online import outcome, rounds  # noqa: F401
    from preftune.training import run  # noqa: F401

    # No collection of a fork looks through what is loaded.
    gc.freeze()
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        process = request.get("process")
        if process is None:
            answer: int | None = os.fork()
            if answer == 0:
                _become(request)
        else:
            if process not in ended:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    ended[process] = os.waitstatus_to_exitcode(status)
            answer = ended.get(process)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _become(request: dict[str, Any]) -> None:
    """Turn this fork into what was asked for; it does not return."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "output"), (2, "errors")):
        path = Path(request["texts"]) / name
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    status = 0
    try:
        exec(request["setup"], {})
        sys.argv = request["words"]
        if sys.argv[0] == "preftune":
            from preftune.cli import main

            main()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
