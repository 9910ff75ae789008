"""Memory of a GPU while a case is predicted, and the area under its curve over time."""

import threading
import time
from collections.abc import Callable
from typing import Any

INTERVAL_S = 0.1
"""How often memory is looked at: the challenge's."""


def _whole_gpu_mb() -> float:
    """Used memory of the whole GPU, whoever uses it, as nvidia-smi tells it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def _own_peak_mb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


class GpuMemory:
    """A context that watches the GPU's memory, if there is a GPU.

    Two areas are taken. The challenge's rule adds up what each look found times 0.1 s, as if looks
    took no time, of the whole GPU, and rounds. The correct one multiplies with the time that really
    went by between two looks (trapezoids), and leaves out what was used before it began.

    Parameters
    ----------
    there
        Whether there is a GPU; else all figures are 0.
    used_mb, peak_mb
        Tell what the whole GPU has in use, and what this process had at most.
    """

    def __init__(
        self,
        there: bool,
        used_mb: Callable[[], float] = _whole_gpu_mb,
        peak_mb: Callable[[], float] = _own_peak_mb,
    ):
        self._there, self._used, self._peak_of = there, used_mb, peak_mb
        self._looks: list[tuple[float, float]] = []
        self._peak = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "GpuMemory":
        if self._there:
            import torch

            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self._look()
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._there:
            self._end.set()
            self._thread.join()
            self._look()
            self._peak = self._peak_of()

    def _look(self) -> None:
        self._looks.append((time.perf_counter(), self._used()))

    def _watch(self) -> None:
        while not self._end.wait(INTERVAL_S):
            self._look()

    def figures(self) -> dict[str, int]:
        """peak_gpu_mb of this process, gpu_area_mb_s, challenge_area_mb_s."""
        idle = self._looks[0][1] if self._looks else 0.0
        area = sum(
            (after - before) * ((a - idle) + (b - idle)) / 2
            for (before, a), (after, b) in zip(self._looks, self._looks[1:], strict=False)
        )
        return {
            "peak_gpu_mb": round(self._peak),
            "gpu_area_mb_s": round(area),
            "challenge_area_mb_s": round(sum(mb for _, mb in self._looks) * INTERVAL_S),
        }
