"""Memory that was freed stays in the process for the next allocation, unless the user has tuned glibc."""

import platform

import pytest
from conftest import PYTHON, call

from mnist_dist.core.memory import keep_freed_memory

MEASURE = """
import resource, torch
from mnist_dist.core import ExactAccelerator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

ExactAccelerator(cpu=True)
found = []
for _ in range(6):
    before = faults()
    torch.ones(50_000_000)
    found.append(faults() - before)
print(min(found))
"""
pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="core/memory.py does nothing where `platform.libc_ver()` does not name glibc",
)


def test_memory_is_not_mapped_again_that_was_just_freed():
    """200 MB are 48,828 pages, or 98 with huge ones, each of which would cost a fault."""
    done = call(PYTHON, "-c", MEASURE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20


@pytest.mark.parametrize(
    "name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"]
)
def test_what_the_user_has_tuned_stays(name, monkeypatch):
    monkeypatch.setenv(name, "1048576")
    assert not keep_freed_memory()
