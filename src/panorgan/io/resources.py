"""What a run needs of disk and memory, worked out before it starts, and what the machine has.

Plain arithmetic: nothing here imports torch. A training's memory needs the network itself and is in
`panorgan.nnunet.training.memory`.
"""

import math
import os
import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panorgan.io.cgroups import control_groups, text_of
from panorgan.problems import Problems

PREPROCESSED_BYTES = 4 + 2
"""Of a voxel of preprocessed data without compression: float32 image, int16 label."""

PREPROCESSED_SHARE = 0.5
"""What compression leaves of it: 0.36 to 0.47 for real CTs (docs/benchmarks.md), rounded up."""

LABEL_MAP_SHARE = 0.02
"""What gzip leaves of a label map of uint8: 0.002 to 0.018 for real ones, rounded up."""

PREPROCESSING_BYTES = (6, 16)
"""While a case is preprocessed, of a voxel of the image: the CT, which may be float32, and its
label; of a voxel of the network's grid: image, label, and where foreground is, if that is a third.
"""

PROCESS_BYTES = 300e6
"""Of a process that has imported what preprocessing needs."""

KEPT_CHECKPOINTS = 2 + 1
"""Two that are kept and one that is being written."""


def grid_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Size of a case on a network's grid.

    Parameters
    ----------
    shape, spacing
        Voxels and mm (z, y, x) of the canonical image.
    target
        The network's spacing in mm, (z, y, x) or (y, x): a 2D network keeps the slices as they
        are.
    """
    kept = len(shape) - len(target)
    axes = zip(shape[kept:], spacing[kept:], target, strict=True)
    return (*shape[:kept], *(round(count * old / new) for count, old, new in axes))


def preprocessed_bytes(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> int:
    """Bytes of a preprocessed case before compression; arguments as those of `grid_shape`."""
    return math.prod(grid_shape(shape, spacing, target)) * PREPROCESSED_BYTES


def preprocessing_memory(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> float:
    """Bytes of main memory to preprocess a case; arguments as those of `grid_shape`."""
    of_image, of_grid = PREPROCESSING_BYTES
    grid = math.prod(grid_shape(shape, spacing, target))
    return PROCESS_BYTES + of_image * math.prod(shape) + of_grid * grid


def model_bytes(count: int) -> int:
    """Bytes of a model of so many parameters."""
    return 4 * count


def checkpoints_bytes(count: int, optimizer: Mapping[str, Any]) -> int:
    """Bytes that the checkpoints of a training take at most.

    Parameters
    ----------
    count
        The network's parameters.
    optimizer
        The recipe's section `training.optimizer`.
    """
    states = 2 if optimizer["name"] == "adamw" else int(optimizer["momentum"] > 0)
    return KEPT_CHECKPOINTS * (1 + states) * model_bytes(count)


def free_disk(path: Path) -> int:
    """Bytes that can be written where a path is or will be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def held_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, each once whatever its names; 0 if there is no folder."""
    files = {}
    for root, _, names in os.walk(folder):
        for name in names:
            facts = os.lstat(os.path.join(root, name))
            files[facts.st_ino] = facts.st_size
    return sum(files.values())


def check_disk(
    needed: float, where: Path, what: str, free: Callable[[Path], float] = free_disk
) -> None:
    """Refuse to begin what the disk cannot hold.

    Parameters
    ----------
    needed
        Bytes still to be written.
    where
        A path on that disk.
    what
        What is to be written, for the message.
    free
        Tells a path's free bytes.

    Raises
    ------
    Problems
        If there is less.
    """
    there = free(where)
    if there < needed:
        cause = f"{what}: about {gb(needed)} are still to be written, {gb(there)} are free"
        cure = f"free {gb(needed - there)} there, or let results be a link to a larger disk"
        raise Problems.one(cause, cure, file=where)


def check_memory(needed: float, what: str, cure: str) -> None:
    """Refuse to begin what main memory cannot hold.

    Parameters
    ----------
    needed
        Bytes, the least that it can do with.
    what
        What needs them, for the message.
    cure
        What to do beside giving it more memory.

    Raises
    ------
    Problems
        If less is free.
    """
    if needed > (there := available_memory()):
        cause = f"{what} needs at least {gb(needed)} of memory, {gb(there)} are free"
        raise Problems.one(cause, f"{cure}, or use a machine with more (mem_mb of a job)")


def gb(count: float) -> str:
    """A number of bytes in GB, for messages."""
    return f"{count / 1e9:,.1f} GB"


def available_memory(root: Path = Path("/")) -> float:
    """Bytes of main memory that this process can still get: the machine's, or less.

    A cgroup may give it less, and so may a limit of its address space (``ulimit -v``).

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    float
        Infinity where nothing is known. Reads cgroups of version 1 and 2, and those above; what a
        cgroup caches of files counts as free.
    """
    available = math.inf
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for version, folder in control_groups("memory", root):
        if version == 2:
            limit, usage, cached = "memory.max", "memory.current", "inactive_file"
        else:
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        text = text_of(folder / limit).strip()
        if text.isdigit():
            used = int(text_of(folder / usage) or 0)
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            available = min(available, int(text) - used + int(stat.get(cached, 0)))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        available = min(available, limit - _of_this_process("VmSize:", root))
    return available


def peak_memory() -> float:
    """The most bytes of main memory that this process has held at once.

    Not what `resource.getrusage` says: a process inherits that from the one that started it.
    """
    found = _of_this_process("VmHWM:")
    return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _of_this_process(key: str, root: Path = Path("/")) -> int:
    """Bytes of a line of its status; 0 where there is none."""
    lines = (line for line in _lines(root / "proc/self/status") if line.startswith(key))
    return next((int(line.split()[1]) * 1024 for line in lines), 0)


def _lines(path: Path) -> list[str]:
    return text_of(path).splitlines()
