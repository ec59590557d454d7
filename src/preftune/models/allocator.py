"""What becomes of memory that tensors give back."""

import ctypes
import gc
import logging

import torch

logger = logging.getLogger(__name__)

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROW_BY = 64 * 2**20


def keep_freed_memory() -> None:
    """Have the process keep what it frees for its next tensors, instead of returning it to the system.

    By default glibc maps every large tensor anew, and the system clears each page at its first touch; a
    training step that allocates the same gigabytes again and again spends a good part of its time there
    (figures in docs/performance.md). The peak hardly changes; between peaks the process holds more.
    Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        logger.debug("no mallopt: freed memory goes back to the system")
        return
    for parameter, value in {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _GROW_BY}.items():
        mallopt(parameter, value)


def free_memory() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
