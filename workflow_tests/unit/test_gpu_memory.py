"""The area under the curve of a GPU's memory: by the challenge's rule and by a correct one."""

import time

import pytest

from panorgan.inference import gpu_memory
from panorgan.inference.gpu_memory import GpuMemory


def test_without_a_gpu_all_is_0():
    with GpuMemory(False) as memory:
        pass
    assert set(memory.figures().values()) == {0}


def test_areas_of_a_known_curve(monkeypatch):
    """1,000 MB before it began, then 3,000: what was there before does not count for ours."""
    monkeypatch.setattr(gpu_memory, "INTERVAL_S", 0.05)
    looks = []

    def used():
        looks.append(1000.0 if not looks else 3000.0)
        return looks[-1]

    with GpuMemory(True, used, lambda: 1500.0) as memory:
        start = time.perf_counter()
        time.sleep(0.5)
        seconds = time.perf_counter() - start
    found = memory.figures()
    assert found["peak_gpu_mb"] == 1500
    # Of the first interval half counts: memory is taken to rise evenly between two looks.
    assert found["gpu_area_mb_s"] == pytest.approx(2000 * (seconds - 0.025), rel=0.15)
    assert found["challenge_area_mb_s"] == round(sum(looks) * 0.05)
    assert len(looks) > 4
