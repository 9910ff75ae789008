"""Large blocks come from memory that the process has kept, and go back in the end."""

import subprocess
import sys

import pytest
from conftest import cannot_run

MEASURE = """
import resource
from pathlib import Path
import numpy as np
from panorgan.io.allocation import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**24)  # 128 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

usual = faults()
with kept_memory():
    faults()
    kept, held = faults(), resident_mb()
print(usual, kept, held, resident_mb(), faults())
"""


@pytest.fixture(scope="module")
def measured():
    """In a process of its own: pytest's memory would be in the way."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    usual, *found = map(float, done.stdout.split())
    if usual < 1000:
        cannot_run("memory costs nothing here")
    return usual, *found


def test_what_is_kept_is_there_at_once(measured):
    usual, kept, *_ = measured
    assert kept < usual / 50


def test_afterwards_all_is_as_before(measured):
    usual, _, held, left, again = measured
    assert left < held - 100
    assert again > usual / 2


RETURNED = """
import sys
from pathlib import Path
import numpy as np
from panorgan.io.allocation import return_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "returned":
    return_memory()
np.ones(2**21)  # 16 MB that are freed: from now on glibc takes as much for small
before = resident_mb()
blocks = [np.ones(2**20) for _ in range(20)]
end = bytearray(100_000)  # lies above them
blocks.clear()
print(resident_mb() - before)
"""


@pytest.mark.parametrize(("how", "some_stays"), [("usual", True), ("returned", False)])
def test_what_is_freed_of_large_blocks_is_returned(how, some_stays):
    done = subprocess.run(
        [sys.executable, "-c", RETURNED, how], capture_output=True, text=True, check=True
    )
    left = float(done.stdout)
    if some_stays and left < 100:
        cannot_run("this machine's C library returns it anyway")
    assert (left > 100) == some_stays
