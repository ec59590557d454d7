"""Starts rounds for `test_iterate_killed.py`: it loads everything once, and every start is a fork of it."""

import gc
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path


def serve() -> None:
    """Start the rounds once for each line of stdin: `{"folder": ..., "seconds": ..., "room": ...}`.

    Answers with the exit status, negative where the start was killed after so many seconds, and what was
    written to stderr.
    """
    from preftune.api import iterate
    from preftune.cli import main
    from preftune.measuring.comparison import NO_PAGES
    from preftune.online import outcome, rounds  # noqa: F401  what a start would load

    # Drawing pages takes most of the time, and they hold seconds, so that no two are the same.
    iterate.PAGES = NO_PAGES
    # What is loaded is looked through in no collection of a fork, of which there are a dozen.
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        errors = Path(asked["folder"]) / "errors.txt"
        child = os.fork()
        if child == 0:
            os.chdir(asked["folder"])
            with errors.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if asked["room"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (asked["room"], asked["room"]))
            sys.argv = ["preftune", "iterate", "rounds.yaml"]
            try:
                main()
            except SystemExit as stopped:
                os._exit(int(stopped.code or 0))
            os._exit(0)
        answer = {"status": _wait(child, asked["seconds"]), "errors": errors.read_text()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(child: int, seconds: float | None) -> int:
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    serve()
