"""Memory that tensors give back is there for the next ones."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from preftune.models.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def touch():
    torch.ones(100 * 2**20, dtype=torch.uint8)
touch()
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(choice: str) -> int:
    """Of five tensors of 100 MB, one after another, behind two others."""
    finished = subprocess.run(
        [sys.executable, "-c", FAULTS, choice], capture_output=True, text=True, check=True
    )
    return int(finished.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_kept_memory_costs_no_page_faults() -> None:
    """Tensors in kept memory cost less than a third of the faults of freshly mapped ones."""
    assert page_faults("keep") * 3 < page_faults("return")
