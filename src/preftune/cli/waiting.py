"""How the threads of a matrix product wait for one another.

By default a thread that has done its share spins. Alone on the machine that is quick; beside other programs
it holds the core that the awaited thread needs, and a training step takes many times as long (figures in
docs/performance.md).
"""

import os

_SPINS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}
"""For GNU's OpenMP, which torch brings on Linux, and LLVM's, which it brings on macOS."""
_OWN_CHOICE = ("OMP_WAIT_POLICY", *_SPINS)


def let_threads_sleep() -> None:
    """Have threads sleep soon after they began to wait, in this process and those it starts.

    OpenMP reads its variables when torch loads, so this comes before. What the user has set stays.
    """
    if not any(name in os.environ for name in _OWN_CHOICE):
        os.environ |= _SPINS
