"""Limits for code that comes with data: the time it runs, and the memory it takes."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SECONDS_BETWEEN_LOOKS = 0.25
STATM = "/proc/self/statm"
"""What a process on Linux has in memory, in pages; the sixth number is that of its data."""


class TookTooLong(Exception):  # noqa: N818  # raised into what runs; callers see what they make of it
    """The code ran longer than it may."""


@dataclass
class _Running:
    """Code under limits in a thread."""

    thread: int
    ends: float


class _Watch:
    """A thread that stops code which runs longer than it may; one for each process, and none until needed."""

    process: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()
    running: ClassVar[list[_Running]] = []

    @classmethod
    def begin(cls, seconds: float) -> _Running:
        """Watch this thread."""
        if cls.process != os.getpid():
            cls.process, cls.lock, cls.running = os.getpid(), threading.Lock(), []
            threading.Thread(target=cls._look, name="limits", daemon=True).start()
        running = _Running(threading.get_ident(), time.monotonic() + seconds)
        with cls.lock:
            cls.running.append(running)
        return running

    @classmethod
    def end(cls, running: _Running) -> None:
        """No longer watch it; nothing is raised in its thread from now on."""
        with cls.lock:
            if running in cls.running:
                cls.running.remove(running)
            else:
                # It was stopped, and may have ended by itself just before.
                _raise_in(running.thread, None)

    @classmethod
    def _look(cls) -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = time.monotonic()
            with cls.lock:
                for running in [each for each in cls.running if each.ends < now]:
                    cls.running.remove(running)
                    _raise_in(running.thread, TookTooLong)


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    """Raise an error in another thread, between two of its instructions; None takes one back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error else None
    )


class _Memory:
    """The limit on a process's data while code under limits runs in any of its threads."""

    lock: ClassVar[threading.Lock] = threading.Lock()
    users: ClassVar[int] = 0
    before: ClassVar[tuple[int, int]] = (0, 0)
    statm: ClassVar[tuple[int, int]] = (0, 0)

    @classmethod
    def begin(cls, more: int) -> None:
        """Allow the process that many bytes more than it has."""
        with cls.lock:
            cls.users += 1
            if cls.users > 1:
                return
            cls.before = resource.getrlimit(resource.RLIMIT_DATA)
            soft, hard = cls.before
            own = [limit for limit in (cls._data() + more, soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min(own), hard))

    @classmethod
    def _data(cls) -> int:
        """Bytes of the process's data; the file stays open, since this is asked for every conversation."""
        if cls.statm[0] != os.getpid():
            cls.statm = (os.getpid(), os.open(STATM, os.O_RDONLY | os.O_CLOEXEC))
        return int(os.pread(cls.statm[1], 256, 0).split()[5]) * resource.getpagesize()

    @classmethod
    def end(cls) -> None:
        """Lift the limit once nobody needs it."""
        with cls.lock:
            cls.users -= 1
            if not cls.users:
                resource.setrlimit(resource.RLIMIT_DATA, cls.before)


@contextmanager
def limited(seconds: float, memory: int) -> Iterator[None]:
    """Stop what runs too long or takes too much memory.

    Memory is limited where the system can do that (Linux), for all threads of the process together.

    Args:
        seconds: longest time, checked four times a second.
        memory: bytes that the process may take on top of what it has.

    Raises:
        TookTooLong: it ran longer.
        MemoryError: it took more.
    """
    limits_memory = resource is not None and os.path.exists(STATM)
    if limits_memory:
        _Memory.begin(memory)
    try:
        running = _Watch.begin(seconds)
        try:
            yield
        finally:
            _Watch.end(running)
    finally:
        if limits_memory:
            _Memory.end()
