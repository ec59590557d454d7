"""Starts commands as forks of a process that has loaded the libraries once: loading is most of a small run.

The package itself loads in the fork, from the folder that the command names.
"""

import multiprocessing
import os
import runpy
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 900
"""After so many a command is killed."""
LIBRARIES = [
    *("accelerate", "datasets", "jinja2.sandbox", "jaxtyping", "matplotlib.figure", "openai.resources.chat"),
    *("matplotlib.backends.backend_svg", "peft", "pydantic", "pyphen", "rich.progress", "safetensors.torch"),
    *("scipy.optimize", "scipy.stats", "sklearn.linear_model", "torch.distributed.fsdp", "typer", "yaml"),
    *("torch.distributed.tensor", "torch.nn.attention.flex_attention", "vaderSentiment.vaderSentiment"),
    *("transformers.trainer", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.models.mixtral.modeling_mixtral"),
    "transformers.models.auto.tokenization_auto",
]

_FORKS = multiprocessing.get_context("forkserver")
_LOCK = threading.Lock()
"""Both sides' threads start and reap, which multiprocessing does for one thread alone."""


def preload() -> None:
    """Let the first command load the libraries for all that follow."""
    # What is killed leaves names of locks behind, of which multiprocessing would tell at the end.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    _FORKS.set_forkserver_preload(LIBRARIES)


def run(
    words: Sequence[str],
    processes: int,
    folder: Path,
    environment: Mapping[str, str],
    streams: tuple[Path, Path],
) -> list[int]:
    """Run a command; once one process fails or time is up, all are ended.

    Args:
        words: what follows the interpreter's name.
        processes: how many do it together, told so as `torchrun` tells them.
        folder: where it runs.
        environment: is added to this process's; its PYTHONPATH is where modules are found first.
        streams: files for stdout and stderr.

    Returns:
        Each process's exit status, negative where a signal ended it.
    """
    until = time.monotonic() + SECONDS
    with _LOCK:
        ranks = [
            _FORKS.Process(target=_work, args=(words, rank, processes, folder, environment, streams))
            for rank in range(processes)
        ]
        for rank in ranks:
            rank.start()
    waiting = ranks
    while waiting:
        wait([rank.sentinel for rank in waiting], max(0.0, until - time.monotonic()))
        with _LOCK:
            waiting = [rank for rank in waiting if rank.exitcode is None]
            failed = any(rank.exitcode for rank in ranks)
        if failed or time.monotonic() > until:
            for rank in waiting:
                rank.kill()
    return [rank.exitcode or 0 for rank in ranks]


def _work(
    words: Sequence[str],
    rank: int,
    processes: int,
    folder: Path,
    environment: Mapping[str, str],
    streams: tuple[Path, Path],
) -> None:
    os.chdir(folder)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.update(environment)
    if processes > 1:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    own = ("", str(PROJECT), str(PROJECT / "benchmarks"))
    first = environment["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [*first, *(path for path in sys.path if path not in own)]
    sys.argv = [*words] if words[0] != "-m" else [*words[1:]]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
