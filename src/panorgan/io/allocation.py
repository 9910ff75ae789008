"""Memory that is asked for and freed again and again, in large blocks."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's numbers of what `mallopt` sets.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
USUAL_MMAPS = 65536
LARGEST_THRESHOLD = 32 * 2**20
"""To which glibc raises its thresholds by itself once large blocks have been freed."""
RETURNED = 4 * 2**20
"""Bytes of the blocks that `return_memory` is about."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """What is freed stays with the process until the block ends.

    Otherwise each large block is taken anew from Linux, which fills it with zeros page by page: a
    sixth of the time of a network on a CPU. Only glibc can do this.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, USUAL_MMAPS)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)
        libc.malloc_trim(0)


def return_memory() -> None:
    """From now on what is freed of large blocks goes back to Linux at once.

    glibc keeps more and more: each that is freed raises what it takes for large, and what lies
    below something that is still used stays. Threads that start from now on share one place for
    what is small, instead of each keeping some for itself.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, RETURNED)
        libc.mallopt(ARENA_MAX, 1)
