"""Starts commands as forks of a process that has loaded the libraries once: loading is most of a small run.

Reads a line of JSON a command on stdin, and answers with a line: its exit statuses and the end of its stderr.
The package itself loads in the fork, from the folder that the command names.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

LIBRARIES = (
    "accelerate",
    "datasets",
    "jinja2.sandbox",
    "jaxtyping",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "openai.resources.chat",
    "peft",
    "pydantic",
    "pyphen",
    "rich.progress",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.linear_model",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.attention.flex_attention",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.models.auto.tokenization_auto",
    "transformers.trainer",
    "typer",
    "vaderSentiment.vaderSentiment",
    "yaml",
)
TAIL = 1500
"""Characters of stderr that are passed on."""


def serve() -> None:
    """Do one command after the other until stdin ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.monotonic()
        errors = Path(asked["errors"])
        children = [_start(asked, rank) for rank in range(asked["processes"])]
        statuses = _wait(children, began + asked["limit"])
        answer = {
            "statuses": statuses,
            "errors": errors.read_text(encoding="utf-8", errors="replace")[-TAIL:],
            "seconds": round(time.monotonic() - began, 1),
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _start(asked: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(asked["folder"])
        for stream, name in ((1, asked["printed"]), (2, asked["errors"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["environment"])
        if asked["processes"] > 1:
            # What torchrun tells each process.
            os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
        sys.path[:1] = asked["path"]
        status = _run(asked["words"])
    except BaseException:  # whatever ends a fork must end it here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(words: list[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    return 0


def _wait(children: list[int], until: float) -> list[int]:
    """Exit statuses, negative where a signal ended a process; once one fails or time is up, all are ended."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses and (found := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > until or any(statuses.values()):
            for child in children:
                if child not in statuses:
                    os.kill(child, signal.SIGKILL)
                    statuses[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.02)
    return [statuses[child] for child in children]


if __name__ == "__main__":
    serve()
