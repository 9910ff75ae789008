"""Label maps from CTs with a trained network, the way that needs the least memory and time.

The image is brought to the network's grid, the network's scores are summed, and labels go back to
the image's grid, a few slices after the other: neither the image nor the scores ever exist whole on
the network's grid.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from panorgan.io.resources import check_memory
from panorgan.io.volumes import Volume, to_canonical
from panorgan.nnunet.models.files import read_model
from panorgan.nnunet.plans import SOFTMAX, configuration_of
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
        self.model = read_model(model_folder, folds)
        threads = threads or usable_cores()
        plan = self.model.plan
        with _memory_problems(way, model_folder):
            self.engines: list[Engine] = [
                start_engine(way, plan, tensors, threads) for tensors in self.model.tensors
            ]
        self.way = Way(way.engine, way.version, way.device, self.engines[0].precision)
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
            if self._on_device(bands, target, clock, tick, probabilities):
                pass
            else:
                places = None if highest is None else in_network_order(highest)
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
        window = self._window(bands)
        outputs = 1 + len(self.model.plan["panorgan"]["classes"])
        check_memory(
            window.bytes,
            f"the sum of the tiles' scores for {outputs} outputs",
            "check the image's spacing",
        )
        all_tiles = window.tiles * len(self.engines)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            tick(done / all_tiles)

        export = Export(
            bands.size,
            target.shape,
            smooth=self.export == SMOOTH,
            apart=self._apart(bands),
            softmax=self._softmax,
        )
        scores = clock.network(window.scores(self.engines, clock.preprocess(bands.read), count))
        slices = export.slices(scores, probabilities is not None)
        for number, (found, probable) in enumerate(slices):
            target[number] = found
            if probabilities is not None:
                probabilities[number] = probable

    def _on_device(
        self,
        bands: Bands,
        target: np.ndarray,
        clock: "_Clock",
        tick: Callable[[float], None],
        probabilities: bool,
    ) -> bool:
        """Fill the labels with all sums on the GPU; whether it could hold them."""
        return False

    @property
    def _softmax(self) -> bool:
        return self.model.plan["panorgan"].get("tile_average") == SOFTMAX

    def _window(self, bands: Bands) -> Window:
        return Window(
            bands.size,
            configuration_of(self.model.plan)[1]["patch_size"],
            1 + len(self.model.plan["panorgan"]["classes"]),
            self.tile_step,
            self._softmax,
        )

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
        ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "device": self.engines[0].device,
            **clock.seconds(),
            "peak_ram_mb": round(ram),
            **gpu.figures(),
        }


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
