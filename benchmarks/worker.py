"""A contestant in a process of its own: commands come in on stdin, figures go out on stdout, as JSON lines.

The parent runs `worker.py SPECIFICATION`; the process ends when its stdin is closed, and so with the parent.
"""

import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

SECONDS_TO_END = 5
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_mb(field: str) -> float | None:
    """A field of /proc/self/status, in MB; None where there is no such file."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Let the peak of resident memory start again from what is resident now."""
    if REFERENCES.exists():
        REFERENCES.write_text("5", encoding="ascii")


def release_memory() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def main() -> None:
    """Build the contestant, then answer one command after another."""
    # Libraries print to stdout; figures get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    commands = _commands()

    specification = json.loads(sys.argv[1])
    model, groups, lora, task, name = (
        specification[key] for key in ("model", "groups", "lora", "task", "contestant")
    )

    from contestants import CONTESTANTS, Setting
    from workloads import read_groups

    contestant = CONTESTANTS[task][name](Setting(model, read_groups(Path(groups)), lora))
    _answer(answers, {"items": contestant.items, "exact_loss": contestant.exact_loss})
    last = None
    for command in commands:
        if command["at_a_time"] != last:
            release_memory()  # or what larger micro-batches left behind would count as this one's
            last = command["at_a_time"]
        _answer(answers, _obey(contestant, **command))


def _commands() -> Iterator[dict[str, Any]]:
    """Commands in order; the process ends soon after the last one, even in the middle of a step."""
    waiting: SimpleQueue[str | None] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            waiting.put(line)
        waiting.put(None)
        time.sleep(SECONDS_TO_END)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    return (json.loads(line) for line in iter(waiting.get, None) if line)


def _obey(contestant: Any, do: str, at_a_time: int) -> dict[str, Any]:
    """`warm_up`, `step` or `profile`."""
    if do == "profile":
        from floor import profile

        return {"profile": profile(lambda: contestant.step(at_a_time))}
    forget_peak()
    measured = contestant.step(at_a_time, first_only=do == "warm_up")
    peak = memory_mb("VmHWM")
    return {**asdict(measured), "peak_memory_mb": peak, "idle_memory_mb": memory_mb("VmRSS")}


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
