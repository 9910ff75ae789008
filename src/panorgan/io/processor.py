"""What this machine's processor can do, and how much of it this process may use."""

import math
import os
from functools import cache
from pathlib import Path

from panorgan.io.cgroups import control_groups, text_of

SPIN_COUNT = 2000
"""How often a thread of OpenMP that has nothing to do looks for work before it sleeps."""


def limit_spinning() -> None:
    """Let threads that wait give way to other processes soon, unless the environment says when.

    As it comes they spin for milliseconds: as fast on an idle machine, but where two processes
    share the cores each of them takes several times as long. OpenMP reads this once, when torch
    loads it: to be called before.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


@cache
def has_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the processor multiplies bf16 matrices itself."""
    try:
        flags = Path(cpuinfo).read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def usable_cores(root: Path = Path("/")) -> int:
    """CPUs that this process may run on, or as many as its cgroup's share of time is worth.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    with_limits = _quotas(root)
    return max(1, min([cores, *map(math.ceil, with_limits)]))


def _quotas(root: Path) -> list[float]:
    """CPUs that the cgroups above this process allow, of versions 1 and 2."""
    found = []
    for version, folder in control_groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(text_of(folder / name) for name in names).split()
        if len(numbers) == 2 and numbers[0].isdigit() and int(numbers[1]):
            found.append(int(numbers[0]) / int(numbers[1]))
    return found
