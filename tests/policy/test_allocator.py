"""Memory that tensors give back is there for the next ones."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from preftune.policy.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def touch():
    torch.ones(100 * 2**20, dtype=torch.uint8)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(choice: str) -> int:
    """Of five tensors of 100 MB, one after another, behind a first one."""
    finished = subprocess.run(
        [sys.executable, "-c", FAULTS, choice], capture_output=True, text=True, check=True
    )
    return int(finished.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_kept_memory_costs_no_page_faults() -> None:
    """Tensors in kept memory cost less than a hundredth of the faults of freshly mapped ones."""
    assert page_faults("keep") * 100 < page_faults("return")
