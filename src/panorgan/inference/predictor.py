"""Label maps from CTs with a trained network, the way that needs the least memory and time.

The image is brought to the network's grid, the network's scores are summed, and labels go back to
the image's grid, a few slices after the other: neither the image nor the scores ever exist whole on
the network's grid.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from panorgan.config.registry import AUTO, SMOOTH, TORCH
from panorgan.fusing.components import Row, component_rows, find_components
from panorgan.inference.engines import Engine
from panorgan.inference.engines.choice import CUDA, Way, choose, start_engine
from panorgan.inference.export import Export
from panorgan.inference.gpu_memory import GpuMemory
from panorgan.inference.window import Window
from panorgan.io.processor import usable_cores
from panorgan.io.resources import check_memory, peak_memory
from panorgan.io.volumes import Volume, to_canonical
from panorgan.nnunet.models.files import read_model
from panorgan.nnunet.plans import SOFTMAX, configuration_of, output_count
from panorgan.nnunet.preprocess import Bands, image_bands, network_grid, target_spacing
from panorgan.nnunet.resampling import separation, slice_axis
from panorgan.problems import Problems, Stop

FREE_IT = "free it, or run on the CPU: CUDA_VISIBLE_DEVICES= (empty)"


class Predictor:
    """A trained network, ready to label CTs.

    Parameters
    ----------
    model_folder
        As `panorgan.nnunet.models.files.read_model` reads it.
    device
        auto, cpu or cuda.
    precision
        auto, fp32, bf16 or fp16.
    engine
        auto, openvino or torch; see `panorgan.inference.engines.choice.choose`.
    export
        smooth or nearest; see `panorgan.inference.export`.
    tile_step
        Step of the sliding window in patch sizes.
    threads
        CPU threads of the network; None: as many as this process may use.
    folds
        Which folds of a model of nnU-Net are averaged; None: all.

    Attributes
    ----------
    model : panorgan.nnunet.models.files.ModelFiles
        Without its tensors.
    way : panorgan.inference.engines.choice.Way
        How it is computed; `precision` is fp32 instead of bf16 where the processor does the latter
        wrongly.
    last_report : dict
        Of the last prediction: device, seconds by phase (preprocess_s, network_s, export_s,
        total_s), peak_ram_mb of the process so far, peak_gpu_mb (0 on a CPU), gpu_area_mb_s and
        challenge_area_mb_s as `panorgan.inference.gpu_memory` has them.

    Raises
    ------
    Problems
        If the model folder is damaged, or engine, device or precision cannot be had here.
    """

    def __init__(
        self,
        model_folder: str | Path,
        device: str = AUTO,
        precision: str = AUTO,
        *,
        engine: str = AUTO,
        export: str = SMOOTH,
        tile_step: float = 0.5,
        threads: int | None = None,
        folds: Sequence[str] | None = None,
    ):
        way = choose(engine, device, precision)
        model = read_model(model_folder, folds)
        threads = threads or usable_cores()

        def start(way: Way) -> list[Engine]:
            with _memory_problems(way, model_folder):
                return [
                    start_engine(way, model.plan, tensors, threads) for tensors in model.tensors
                ]

        try:
            self.engines = start(way)
        except Problems:
            # A network that only torch knows.
            if engine != AUTO or way.engine == TORCH or find_spec(TORCH) is None:
                raise
            way = choose(TORCH, device, precision)
            self.engines = start(way)
        self.way = replace(way, precision=self.engines[0].precision)
        # The engines have the weights now.
        self.model = replace(model, tensors=())
        self.export, self.tile_step, self.threads = export, tile_step, threads
        self.last_report: dict[str, Any] = {}

    @overload
    def predict(self, volume: Volume, *, tick: Callable[[float], None] = ...) -> np.ndarray: ...

    @overload
    def predict(
        self,
        volume: Volume,
        probabilities: Literal[True],
        tick: Callable[[float], None] = ...,
    ) -> tuple[np.ndarray, list[Row]]: ...

    def predict(
        self,
        volume: Volume,
        probabilities: bool = False,
        tick: Callable[[float], None] = lambda share: None,
    ) -> np.ndarray | tuple[np.ndarray, list[Row]]:
        """Label a CT.

        Parameters
        ----------
        probabilities
            Whether to tell what the label map's pieces are and how probable the network finds them.
        tick
            Gets how much of the network's work is done, from 0 to 1, now and then.

        Returns
        -------
        (z, y, x) uint8 array
            On exactly the image's grid in its stored order; values as in the model's
            ``dataset.json``.
        list, only with `probabilities`
            Its pieces as `panorgan.fusing.components.component_rows` describes them; the
            probability is that of the piece's class (soft-max over the outputs, to 3 digits).

        Raises
        ------
        Problems
            If memory does not suffice or the network gives no numbers. A `Stop` if the GPU fails:
            from then on this process gets nothing else from it.
        """
        clock = _Clock()
        plan = self.model.plan
        grid = network_grid(volume.grid, plan)
        labels = np.zeros(volume.array.shape, np.uint8)
        highest = np.zeros(labels.shape, np.float16) if probabilities else None
        with GpuMemory(self.way.device == CUDA) as gpu, _memory_problems(self.way):
            bands = image_bands(volume, plan)
            clock.start(bands)
            box = bands.properties["bbox_used_for_cropping"]
            inside = tuple(slice(*bounds) for bounds in box)

            def in_network_order(array: np.ndarray) -> np.ndarray:
                return to_canonical(array, grid).transpose(plan["transpose_forward"])[inside]

            target = in_network_order(labels)
            places = None if highest is None else in_network_order(highest)
            if not self._on_device(bands, target, places, clock, tick):
                self._by_slices(bands, target, places, clock, tick)
        rows = None
        if highest is not None:
            pieces = find_components(labels)
            names = dict(enumerate(plan["panorgan"]["classes"], 1))
            rows = component_rows(pieces, volume.array, volume.grid, names, highest[pieces.indices])
        self.last_report = self._report(clock, gpu)
        return labels if rows is None else (labels, rows)

    def _by_slices(
        self,
        bands: Bands,
        target: np.ndarray,
        probabilities: np.ndarray | None,
        clock: "_Clock",
        tick: Callable[[float], None],
    ) -> None:
        """Fill the labels, and where wanted their probabilities, a slice at a time."""
        window = Window(bands.size, **self._window)
        check_memory(
            window.bytes + self._held_by_engines + target.size,
            "its prediction",
            "take fewer threads, check the image's spacing",
        )
        export = Export(
            *(bands.size, target.shape), **self._export(bands), softmax=self._window["softmax"]
        )
        ticked = _counter(tick, window.tiles * len(self.engines))
        scores = clock.network(window.scores(self.engines, clock.preprocess(bands.read), ticked))
        slices = export.slices(scores, probabilities is not None)
        for number, (found, probable) in enumerate(slices):
            target[number] = found
            if probabilities is not None:
                probabilities[number] = probable

    def _on_device(
        self,
        bands: Bands,
        target: np.ndarray,
        probabilities: np.ndarray | None,
        clock: "_Clock",
        tick: Callable[[float], None],
    ) -> bool:
        """The same with sums and export on the GPU; whether there is one that could hold them."""
        if self.way.device != CUDA:
            return False
        from torch import OutOfMemoryError

        from panorgan.inference.on_device import label_on_device

        tiles = Window(bands.size, **self._window).tiles * len(self.engines)
        try:
            with clock.all_for_network():
                label_on_device(
                    *(self.engines, clock.preprocess(bands.read), bands.size),
                    *(target, probabilities),
                    **self._window,
                    **self._export(bands),
                    tick=_counter(tick, tiles),
                )
        except OutOfMemoryError:
            return False
        return True

    @property
    def _held_by_engines(self) -> int:
        """Bytes of main memory that the engines take while they compute, about.

        Of each tile, in the network's precision, what it gives and as much as four tensors of the
        highest resolution: two that are joined, and the same again.
        """
        if self.way.device == CUDA:
            return 0
        configuration = configuration_of(self.model.plan)[1]
        arguments = configuration["architecture"]["arch_kwargs"]
        features = arguments.get("features", arguments.get("features_per_stage"))
        width = 4 if self.way.precision == "fp32" else 2
        voxel = width * (4 * int(np.ravel(features)[0]) + self._window["outputs"])
        tiles = len(self.engines) * (1 if self.way.engine == TORCH else self.threads)
        return tiles * math.prod(configuration["patch_size"]) * voxel

    @property
    def _window(self) -> dict[str, Any]:
        """What a window takes beside the size."""
        return {
            "patch_size": configuration_of(self.model.plan)[1]["patch_size"],
            "outputs": output_count(self.model.plan),
            "tile_step": self.tile_step,
            "softmax": self.model.plan["panorgan"].get("tile_average") == SOFTMAX,
        }

    def _export(self, bands: Bands) -> dict[str, Any]:
        """What an export takes beside the sizes."""
        return {"smooth": self.export == SMOOTH, "apart": self._apart(bands)}

    def _apart(self, bands: Bands) -> int | None:
        """The axis across which scores come from the nearest slice, as nnU-Net decides it."""
        configuration = configuration_of(self.model.plan)[1]
        order = self.model.plan["transpose_forward"]
        spacing = [bands.properties["spacing"][axis] for axis in order]
        return slice_axis(
            target_spacing(spacing, configuration),
            spacing,
            **separation(configuration["resampling_fn_probabilities_kwargs"]),
        )

    def _report(self, clock: "_Clock", gpu: GpuMemory) -> dict[str, Any]:
        return {
            "device": self.engines[0].device,
            **clock.seconds(),
            "peak_ram_mb": round(peak_memory() / 2**20),
            **gpu.figures(),
        }


def _counter(tick: Callable[[float], None], tiles: int) -> Callable[[], None]:
    """Called after each tile, it tells the share of them that are done."""
    done = count(1)
    return lambda: tick(next(done) / tiles)


class _Clock:
    """Seconds of the phases, which run into each other."""

    def __init__(self):
        self._began = time.perf_counter()
        self._spent = {"preprocess": 0.0, "network": 0.0}

    def start(self, bands: Bands) -> None:
        """What was done until now was preprocessing."""
        self._spent["preprocess"] += time.perf_counter() - self._began

    def preprocess(self, read: Callable[[int, int], np.ndarray]) -> Callable:
        def timed(start: int, stop: int) -> np.ndarray:
            began = time.perf_counter()
            found = read(start, stop)
            spent = time.perf_counter() - began
            self._spent["preprocess"] += spent
            self._spent["network"] -= spent  # it is asked for from there
            return found

        return timed

    def network(self, scores: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            began = time.perf_counter()
            found = next(scores, None)
            self._spent["network"] += time.perf_counter() - began
            if found is None:
                return
            yield found

    @contextmanager
    def all_for_network(self) -> Iterator[None]:
        """A block whose time is the network's, but for what `preprocess` takes of it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent["network"] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        total = time.perf_counter() - self._began
        export = total - math.fsum(self._spent.values())
        found = {**self._spent, "export": export, "total": total}
        return {f"{phase}_s": round(seconds, 3) for phase, seconds in found.items()}


@contextmanager
def _memory_problems(way: Way, model: str | Path = "") -> Iterator[None]:
    """Memory that does not suffice, and a GPU that fails, in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if way.engine != TORCH:
            if isinstance(error, MemoryError):
                cure = "give it more memory, or take fewer threads"
                raise Problems.one("the computer's memory does not suffice", cure) from None
            raise
        from panorgan.nnunet.devices import memory_problem

        if problem := memory_problem(error):
            print(error)
            if model:
                raise Stop.one(problem.cause, FREE_IT, file=model) from None
            raise Problems.one(problem.cause, FREE_IT) from None
        if "CUDA error" in str(error):
            print(error)
            cause = f"the GPU has failed: {str(error).splitlines()[0]}"
            raise Stop.one(cause, "run the same command again") from None
        raise
