"""A network computed by OpenVINO on the CPU."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from panorgan.inference.engines.graph import build_graph
from panorgan.inference.engines.runtime import ov
from panorgan.problems import Problems

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names of precisions."""

VERSION = ov.__version__.partition("-")[0]


def fast_precision() -> str:
    """bf16 where this processor computes in it, else fp32."""
    # Its own choice, but for speed; it lists bf16 among what it can do where that is emulated, too.
    own_choice = ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return "bf16" if own_choice == ov.Type.bf16 else "fp32"


class OpenVINOEngine:
    """An `Engine` with a graph built from a plan; each thread computes a tile of its own.

    Parameters
    ----------
    architecture, tensors, channels, outputs, patch_size
        As `graph.build_graph` takes them. The tensors must not be changed afterwards.
    precision
        fp32 or bf16.
    threads
        So many tiles are computed at once.

    Raises
    ------
    ValueError
        If OpenVINO cannot compute this network, or not in this precision on this processor.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self,
        architecture: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        channels: int,
        outputs: int,
        patch_size: Sequence[int],
        precision: str,
        threads: int,
    ):
        if precision not in HINTS:
            raise ValueError(f"OpenVINO computes in {' or '.join(HINTS)} here, not in {precision}")
        self.precision = precision
        self._type, kind = (
            (ov.Type.bf16, np.uint16) if precision == "bf16" else (ov.Type.f32, np.float32)
        )
        model = build_graph(architecture, tensors, channels, outputs, patch_size, precision)
        properties = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # pinned ones wait for their core if it is busy
        }
        try:
            compiled = ov.Core().compile_model(model, "CPU", properties)
            chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
        except RuntimeError as error:
            raise ValueError(f"OpenVINO {VERSION} cannot compile it: {_said(error)}") from None
        if chosen != self._type:
            raise ValueError(f"OpenVINO {VERSION} does not compute in {precision} here")
        # One more than is computed at once, as the caller holds the result of one.
        self._requests = [
            _Request(compiled, (channels, *patch_size), (*patch_size, outputs), kind, self._type)
            for _ in range(threads + 1)
        ]

    def scores(self, tiles: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """As `Engine.scores` says.

        Raises
        ------
        Problems
            If OpenVINO fails.
        """
        free, running = deque(self._requests), deque()
        try:
            for tile in tiles:
                request = free.popleft()
                request.start(tile)
                running.append(request)
                if not free:
                    request = running.popleft()
                    yield request.result()
                    free.append(request)
            while running:
                request = running.popleft()
                yield request.result()
        except RuntimeError as error:
            cure = "free memory, or choose the engine torch"
            raise Problems.one(f"OpenVINO {VERSION} has failed: {_said(error)}", cure) from None
        finally:
            # Also where the caller stops half-way.
            for request in running:
                request.stop()


class _Request:
    """Place for one tile and its logits."""

    def __init__(self, compiled, given: tuple[int, ...], made: tuple[int, ...], kind, type_):
        self._tile = np.zeros((1, *given), np.float32)
        self._logits = np.zeros((1, *made), kind)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(self._tile, shared_memory=True))
        self._request.set_output_tensor(ov.Tensor(self._logits, self._logits.shape, type_))

    def start(self, tile: np.ndarray) -> None:
        np.copyto(self._tile[0], tile)
        self._request.start_async()

    def result(self) -> np.ndarray:
        self._request.wait()
        return self._logits[0]

    def stop(self) -> None:
        self._request.cancel()
        with suppress(RuntimeError):  # so it says that it was cancelled
            self._request.wait()


def _said(error: RuntimeError) -> str:
    """The last line of what OpenVINO says, which tells what was wrong; those before say where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
