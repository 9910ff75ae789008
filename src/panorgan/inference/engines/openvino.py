"""A network computed by OpenVINO on the CPU."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from typing import Any

import numpy as np

from panorgan.inference.engines import as_float32
from panorgan.inference.engines.graph import build_graph
from panorgan.inference.engines.runtime import ov
from panorgan.io.allocation import return_memory
from panorgan.problems import Problems

TYPES = {"fp32": (ov.Type.f32, np.float32), "bf16": (ov.Type.bf16, np.uint16)}
"""OpenVINO's and numpy's types of a precision's logits."""

TOLERANCE = 0.2
"""Largest relative error of bf16's logits. Trained networks have 0.005 and random ones up to 0.07,
with PyTorch as here; a wrong kernel makes about 1."""

VERSION = ov.__version__.partition("-")[0]


class OpenVINOEngine:
    """An `Engine` whose graph is built from a plan; each thread computes a tile of its own.

    In fp32 it is exact. Where the last axis shrinks to one voxel bf16 is tried first, for there
    kernels of oneDNN have been wrong (see `panorgan.nnunet.bf16`): if it is, all is computed in
    fp32, with a line that says so.

    Parameters
    ----------
    architecture, tensors, channels, outputs, patch_size
        As `graph.build_graph` takes them; the tensors must not change afterwards.
    precision
        fp32 or bf16.
    threads
        So many tiles are computed at once, if the process may use as many cores.

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
        if precision not in TYPES:
            raise ValueError(f"OpenVINO computes in {' or '.join(TYPES)} here, not in {precision}")
        return_memory()  # before threads start
        network = architecture, tensors, channels, outputs
        compiled = _compiled(*network, patch_size, precision, threads)
        if precision == "bf16" and (tile := _doubtful_tile(architecture, patch_size)):
            error = _error_of_bf16(*network, tile)
            if not error <= TOLERANCE:
                print(
                    f"computing in fp32: in bf16 this network is wrong here "
                    f"(relative error {error:.2g}, OpenVINO {VERSION})"
                )
                precision = "fp32"
                compiled = _compiled(*network, patch_size, precision, threads)
        self.precision = precision
        # One more than are computed at once, as the caller holds the result of one.
        count = compiled.get_property("NUM_STREAMS") + 1
        given, made = (channels, *patch_size), (*patch_size, outputs)
        self._requests = [_Request(compiled, given, made, precision) for _ in range(count)]
        self._compiled = compiled

    def scores(self, tiles: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """As `Engine.scores` says; one such iterator at a time.

        Raises
        ------
        Problems
            If OpenVINO fails.
        """
        free, running = deque(self._requests), deque[_Request]()
        try:
            for tile in tiles:
                request = free.popleft()
                request.start(tile)
                running.append(request)
                if not free:
                    request = running.popleft()
                    yield request.logits()
                    free.append(request)
            while running:
                logits = running.popleft().logits()
                if not running:  # what each stream holds is much, and not needed any more
                    self._compiled.release_memory()
                yield logits
        finally:  # also where the caller stops half-way
            for request in running:
                request.stop()


class _Request:
    """Room for one tile and its logits, and the computation of these."""

    def __init__(self, compiled, given: tuple[int, ...], made: tuple[int, ...], precision: str):
        kind, dtype = TYPES[precision]
        self._tile, self._logits = np.empty((1, *given), np.float32), np.empty((1, *made), dtype)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(self._tile, shared_memory=True))
        self._request.set_output_tensor(ov.Tensor(self._logits, self._logits.shape, kind))

    def start(self, tile: np.ndarray) -> None:
        if tile.shape != self._tile.shape[1:]:
            raise ValueError(f"a tile of {tile.shape} is not one of {self._tile.shape[1:]}")
        self._tile[0] = tile
        self._request.start_async()

    def logits(self) -> np.ndarray:
        try:
            self._request.wait()
        except RuntimeError as error:
            cure = "free memory, or choose the engine torch"
            raise Problems.one(f"OpenVINO {VERSION} has failed: {_said(error)}", cure) from None
        return self._logits[0]

    def stop(self) -> None:
        self._request.cancel()
        with suppress(RuntimeError):  # that it was cancelled
            self._request.wait()


@cache
def _core():
    """The only one of this process.

    Each brings the stack on which signals are handled, and takes it away when it goes: after the
    first of two has gone and then the second, the next signal would end the process.
    """
    return ov.Core()


def _compiled(architecture, tensors, channels, outputs, patch_size, precision: str, threads: int):
    graph = build_graph(architecture, tensors, channels, outputs, patch_size, precision)
    kind, _ = TYPES[precision]
    properties = {
        "INFERENCE_PRECISION_HINT": kind,
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # pinned ones wait for their core if it is busy
    }
    try:
        compiled = _core().compile_model(graph, "CPU", properties)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
    except RuntimeError as error:
        raise ValueError(f"OpenVINO {VERSION} cannot compile it: {_said(error)}") from None
    if chosen != kind:
        raise ValueError(f"OpenVINO {VERSION} does not compute in {precision} on this processor")
    return compiled


def _error_of_bf16(architecture, tensors, channels, outputs, patch_size) -> float:
    """Of the logits of noise, relative to fp32's."""
    noise = np.random.default_rng(0).standard_normal((channels, *patch_size), np.float32)
    found = []
    for precision in ("fp32", "bf16"):
        compiled = _compiled(
            architecture, tensors, channels, outputs, patch_size, precision, threads=1
        )
        request = _Request(compiled, noise.shape, (*patch_size, outputs), precision)
        request.start(noise)
        found.append(as_float32(request.logits()))
    exact, rounded = found
    return float(np.linalg.norm(rounded - exact) / max(np.linalg.norm(exact), 1e-30))


def _doubtful_tile(
    architecture: Mapping[str, Any], patch_size: Sequence[int]
) -> tuple[int, ...] | None:
    """The smallest tile with the patch's last axis, if that shrinks to one voxel, else None."""
    arguments = architecture["arch_kwargs"]
    strides = arguments["strides"]
    if isinstance(strides, int):
        strides = [strides] * arguments["n_stages"]
    factors = [
        prod(stride if isinstance(stride, int) else stride[axis] for stride in strides)
        for axis in range(len(patch_size))
    ]
    if patch_size[-1] > factors[-1]:
        return None
    return (*map(min, patch_size[:-1], factors), patch_size[-1])


def _said(error: RuntimeError) -> str:
    """The last line of what OpenVINO says, which tells what was wrong; those before say where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
