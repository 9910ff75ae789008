"""Label maps from CTs with a trained network, the way that needs the least memory and time.

The arg-max is taken on the network's grid and only labels are brought back to the image's: no
probabilities of full size ever exist. Where they are asked for, the highest one of each voxel stays
on the network's grid, and the voxels of the image's that are no background look theirs up there.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import (
    compute_gaussian,
    compute_steps_for_sliding_window,
)
from torch.nn.functional import interpolate

from panorgan.cases.folders import case_of, cases_in, reason_against
from panorgan.cases.hounsfield import is_empty, not_hounsfield
from panorgan.config.labels import REPORT
from panorgan.fusing.components import Row, component_rows, find_components
from panorgan.inference.describe import ON_A_PHANTOM
from panorgan.io.failures import Failures
from panorgan.io.resources import check_memory
from panorgan.io.stamps import stamp
from panorgan.io.volumes import (
    Grid,
    Volume,
    VolumeError,
    from_canonical,
    geometry_hash,
    read_image,
    voxel_hash,
    write_label,
)
from panorgan.io.writing import making_folder, write_text
from panorgan.nnunet.bf16 import usable_precision
from panorgan.nnunet.devices import autocast, memory_problem, pick_device, resolve_precision
from panorgan.nnunet.models.model import load_model
from panorgan.nnunet.plans import SOFTMAX, configuration_of
from panorgan.nnunet.preprocess import Preprocessed, network_grid, preprocess_image
from panorgan.problems import Problem, Problems, Stop

FREE_IT = "free it, or run on the CPU: CUDA_VISIBLE_DEVICES= (empty)"

NEAREST = {"mode": "nearest-exact"}
"""How labels are resampled."""


def sliding_window_logits(
    network: Callable[[torch.Tensor], torch.Tensor],
    data: torch.Tensor,
    patch_size: Sequence[int],
    tile_step: float,
) -> torch.Tensor:
    """Logits averaged over overlapping tiles with Gaussian weights; nnU-Net's tiles and weights.

    Parameters
    ----------
    network
        Takes (batch, channels, *patch_size), gives (batch, outputs, *patch_size).
    data
        (batch, channels, *size) on the network's device; padded with 0 where it is smaller than
        the patch.
    patch_size
        Size of a tile, (y, x) or (z, y, x).
    tile_step
        Largest step between tiles, in patch sizes.

    Returns
    -------
    torch.Tensor
        (batch, outputs, *size) float32.
    """
    data, inside = pad_nd_image(data, tuple(patch_size), return_slicer=True)
    size = tuple(data.shape[2:])
    weights = compute_gaussian(
        tuple(patch_size), value_scaling_factor=10, dtype=torch.float32, device=data.device
    )
    total = data.new_zeros(size)
    logits = None
    for start in product(*compute_steps_for_sliding_window(size, patch_size, tile_step)):
        tile = tuple(slice(at, at + step) for at, step in zip(start, patch_size, strict=True))
        predicted = network(data[(..., *tile)].contiguous()).float()
        if logits is None:
            logits = data.new_zeros((len(data), predicted.shape[1], *size))
        logits[(..., *tile)] += predicted * weights
        total[tile] += weights
    logits /= total
    return logits[(slice(None), slice(None), *inside[2:])]


class Predictor:
    """A trained network, ready to label CTs.

    Parameters
    ----------
    model_folder
        As `panorgan.nnunet.models.model` reads it.
    device
        auto, cpu or cuda, or a torch device.
    precision
        auto, fp32, bf16 or fp16.
    tile_step
        Step of the sliding window in patch sizes.
    threads
        CPU threads of the network; None leaves torch's number.

    Attributes
    ----------
    precision : str
        What it computes in: fp32 instead of bf16 where the processor does the latter wrongly.
    last_report : dict
        Of the last prediction: device, seconds by phase (preprocess_s, network_s, export_s,
        total_s), peak_ram_mb of the process so far, peak_gpu_mb (0 on a CPU).

    Raises
    ------
    Problems
        If the model folder is damaged, or device or precision cannot be had here.
    """

    def __init__(
        self,
        model_folder: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        tile_step: float = 0.5,
        threads: int | None = None,
    ):
        self.device = pick_device(device)
        self.model = load_model(model_folder)
        try:
            self.model.network.to(self.device)
        except RuntimeError as error:
            if not (problem := memory_problem(error)):
                raise
            raise Stop.one(problem.cause, FREE_IT, file=model_folder) from None
        with _threads(threads):
            self.precision = usable_precision(
                self.model.network, self._batch_shape(), resolve_precision(precision, self.device)
            )
        self.tile_step = tile_step
        self.threads = threads
        self.last_report: dict[str, Any] = {}

    def _batch_shape(self) -> tuple[int, ...]:
        """Shape of what the network is given at once; a 3D network gets one patch after another."""
        configuration = configuration_of(self.model.plan)[1]
        patch_size = configuration["patch_size"]
        batch = configuration["batch_size"] if len(patch_size) == 2 else 1
        return (batch, len(self.model.dataset_json["channel_names"]), *patch_size)

    @overload
    def predict(self, volume: Volume) -> np.ndarray: ...

    @overload
    def predict(
        self, volume: Volume, probabilities: Literal[True]
    ) -> tuple[np.ndarray, list[Row]]: ...

    def predict(
        self, volume: Volume, probabilities: bool = False
    ) -> np.ndarray | tuple[np.ndarray, list[Row]]:
        """Label a CT.

        Parameters
        ----------
        probabilities
            Whether to tell what the label map's pieces are and how probable the network finds them.

        Returns
        -------
        (z, y, x) uint8 array
            On exactly the image's grid in its stored order; values as in the model's
            ``dataset.json``.
        list, only with `probabilities`
            Its pieces as `panorgan.fusing.components.component_rows` describes them; the
            probability is that of the piece's class (soft-max over the outputs, to 3 digits).
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [time.perf_counter()]
        preprocessed = preprocess_image(volume, self.model.plan)
        times.append(time.perf_counter())
        with _threads(self.threads):
            try:
                labels, highest = self._label(
                    torch.from_numpy(preprocessed.data), probabilities=probabilities
                )
            except (RuntimeError, MemoryError) as error:
                if problem := memory_problem(error):
                    print(error)
                    raise Problems.one(problem.cause, FREE_IT) from None
                if "CUDA error" in str(error):
                    # From here on this process gets nothing else from the GPU.
                    print(error)
                    cause = f"the GPU has failed: {str(error).splitlines()[0]}"
                    raise Stop.one(cause, "run the same command again") from None
                raise
        times.append(time.perf_counter())
        grid = network_grid(volume.grid, self.model.plan)
        prediction = from_canonical(self._on_image_grid(labels, preprocessed), grid)
        rows = None
        if highest is not None:
            pieces = find_components(prediction)
            found = self._at_places(highest.numpy(), pieces.indices, preprocessed, grid)
            names = dict(enumerate(self.model.plan["panorgan"]["classes"], 1))
            rows = component_rows(pieces, volume.array, volume.grid, names, found)
        times.append(time.perf_counter())
        self.last_report = self._report(times)
        return prediction if rows is None else (prediction, rows)

    @torch.inference_mode()
    def _label(
        self, data: torch.Tensor, probabilities: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(z, y, x) uint8 labels of (1, z, y, x) data, on the network's grid, and their float16
        probabilities where asked.

        A 2D network gets as many slices at once as a batch of its training had, a 3D network the
        volume as a batch of one.
        """
        configuration = configuration_of(self.model.plan)[1]
        patch_size = configuration["patch_size"]
        two_dimensional = len(patch_size) == 2
        if two_dimensional:
            batches = data.transpose(0, 1).split(configuration["batch_size"])
        else:
            batches = (data[None],)
        with autocast(self.device, self.precision):
            found = [self._arg_max(batch, patch_size, probabilities) for batch in batches]
        labels, highest = (
            None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True)
        )
        if two_dimensional:
            return labels, highest
        return labels[0], None if highest is None else highest[0]

    def _arg_max(
        self, batch: torch.Tensor, patch_size: Sequence[int], probabilities: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Labels of a batch and, where asked, their probabilities, on the CPU.

        Sums that the GPU cannot hold are there too.
        """

        def summed_on(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
            scores = sliding_window_logits(
                self._scores, batch.to(device), patch_size, self.tile_step
            )
            labels = scores.argmax(1)
            highest = None
            if probabilities:
                highest = self._highest(scores, labels).to("cpu", torch.float16)
            return labels.to("cpu", torch.uint8), highest

        if self.device.type != "cpu":
            with suppress(torch.OutOfMemoryError):
                return summed_on(self.device)
        outputs = 1 + len(self.model.plan["panorgan"]["classes"])
        # For each voxel a sum for each output, that of the weights, and the index of the highest.
        bytes_of_a_voxel = 4 * outputs + 4 + 8
        check_memory(
            bytes_of_a_voxel * batch[:, 0].numel(),
            f"the sum of the tiles' scores for {outputs} outputs",
            "check the image's spacing",
        )
        return summed_on(torch.device("cpu"))

    def _highest(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Soft-max of the labels' outputs, one output after the other: no second array of all."""
        highest = scores.gather(1, labels[:, None])[:, 0]
        if self.model.plan["panorgan"].get("tile_average") == SOFTMAX:
            return highest
        total = torch.zeros_like(highest)
        for output in range(scores.shape[1]):
            total += (scores[:, output] - highest).exp_()
        return total.reciprocal_()

    def _scores(self, tile: torch.Tensor) -> torch.Tensor:
        """What is averaged over tiles: logits, or probabilities, as nnU-Net 1 did."""
        logits = self.model.network(tile.to(self.device)).to(tile.device)
        if self.model.plan["panorgan"].get("tile_average") == SOFTMAX:
            return logits.softmax(1, dtype=torch.float32)
        return logits

    def _on_image_grid(self, labels: torch.Tensor, preprocessed: Preprocessed) -> np.ndarray:
        """Labels resampled to the nearest voxel and put back where the image was cropped."""
        properties = preprocessed.properties
        size = tuple(properties["shape_after_cropping_and_before_resampling"])
        resampled = interpolate(labels[None, None], size, **NEAREST)[0, 0]
        whole = np.zeros(properties["shape_before_cropping"], np.uint8)
        whole[tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])] = resampled
        return whole.transpose(self.model.plan["transpose_backward"])

    def _at_places(
        self,
        values: np.ndarray,
        places: tuple[np.ndarray, ...],
        preprocessed: Preprocessed,
        grid: Grid,
    ) -> np.ndarray:
        """Values on the network's grid that `_on_image_grid` would take for some of its voxels.

        For each axis, its indices are resampled and turned as the labels are; the arrays of full
        size are views of a line each.
        """
        properties = preprocessed.properties
        crop = properties["bbox_used_for_cropping"]
        whole = properties["shape_before_cropping"]
        found = []
        for axis, (start, stop) in enumerate(crop):
            line = np.zeros(whole[axis], np.intp)
            line[start:stop] = _nearest(values.shape[axis], stop - start)
            shape = [1, 1, 1]
            shape[axis] = whole[axis]
            spread = np.broadcast_to(line.reshape(shape), whole)
            turned = from_canonical(spread.transpose(self.model.plan["transpose_backward"]), grid)
            found.append(turned[places])
        return values[tuple(found)]

    def _report(self, times: Sequence[float]) -> dict[str, Any]:
        phases = ("preprocess_s", "network_s", "export_s")
        seconds = {
            phase: round(end - start, 3)
            for phase, start, end in zip(phases, times, times[1:], strict=False)
        }
        device, gpu = "cpu", 0.0
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
            gpu = torch.cuda.max_memory_allocated(self.device) / 2**20
        ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "device": device,
            **seconds,
            "total_s": round(times[-1] - times[0], 3),
            "peak_ram_mb": round(ram),
            "peak_gpu_mb": round(gpu),
        }


def predict_files(
    images: str | Path,
    out: str | Path,
    predictor: Predictor,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Label a CT or all CTs of a folder: ``CASE_0000.nii.gz`` or ``CASE.nii.gz``.

    Parameters
    ----------
    images
        A file or a folder.
    out
        Folder of the label maps ``CASE.nii.gz`` and of ``report.json``; made if need be. Nothing
        in it is overwritten; images that an earlier call with the same model has labelled are left
        out.
    say
        Gets a line a case.

    Returns
    -------
    dict
        The report: the model's checksum and classes, and of every case seconds, memory, and which
        image it is: hashes of its voxels (`image`) and geometry (`grid`), and its file's stamp.

    Raises
    ------
    Problems
        If there is nothing to do or something would be overwritten; of every image that cannot be
        used, what else is in the folder, and label maps there that are another image's, after all
        others have been labelled. A `Stop`, such as a full disk, ends it at once; what is labelled
        stays.
    """
    out = Path(out)
    found, problems = _images(Path(images))
    if out.exists() and any(out.samefile(path.parent) for path in found.values()):
        raise Problems.one("holds the images", "name another folder with -o", file=out)
    card = predictor.model.card
    classes = predictor.model.plan["panorgan"]["classes"]
    report: dict[str, Any] = {
        "model": card.get("checksum"),
        "classes": {str(value): name for value, name in enumerate(classes, 1)},
        "precision": predictor.precision,
        "tile_step": predictor.tile_step,
    }
    if card.get("phantom"):
        report["note"] = ON_A_PHANTOM
        say(f"the model was {ON_A_PHANTOM}")
    report["cases"] = _done_before(out, report)
    for case in found:
        path = out / f"{case}.nii.gz"
        if path.exists() and case not in report["cases"]:
            cure = "name another folder with -o, or remove it"
            raise Problems.one("exists already", cure, file=path)
    configuration = configuration_of(predictor.model.plan)[1]
    wants_hu = configuration["normalization_schemes"] == ["CTNormalization"]
    failures = Failures()
    failures.problems += problems
    with making_folder(out):
        for case, path in found.items():
            target, seen = out / f"{case}.nii.gz", stamp(str(path))
            before = report["cases"].get(case) if target.exists() else None
            if before is not None and before.get("file", seen) == seen:
                unknown = "" if "file" in before else "; the report does not say from which image"
                say(f"{case}: labelled before{unknown}")
                continue
            with failures.of(case, path):
                volume = read_image(path)
                known = {"image": voxel_hash(volume), "grid": geometry_hash(volume)}
                if before is not None:
                    _check_image(known, before, target)
                    say(f"{case}: labelled before")
                    continue
                if wrong := is_empty(volume.array) or (wants_hu and not_hounsfield(volume.array)):
                    raise VolumeError(*wrong)
                write_label(target, predictor.predict(volume), volume)
                report["cases"][case] = predictor.last_report | known | {"file": seen}
                _write_report(out, report, target)
                say(f"{case}: {predictor.last_report['total_s']:.1f} s")
        failures.check()
    return report


def _write_report(out: Path, report: Mapping[str, Any], target: Path) -> None:
    """Write the report; a label map that it could not list is removed: it would be in the way."""
    try:
        write_text(out / REPORT, json.dumps(report, indent=1))
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _done_before(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Cases that an earlier call has labelled in the same way.

    Raises
    ------
    Problems
        If the folder is of another model or another way of prediction.
    """
    path = out / REPORT
    if not path.exists():
        return {}
    try:
        before = json.loads(path.read_text())
        same = all(before[key] == report[key] for key in ("model", "precision", "tile_step"))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        cause = "is of another model, precision or step"
        raise Problems.one(cause, "name another folder with -o", file=path)
    return before["cases"]


def _check_image(known: Mapping[str, str], before: Mapping[str, Any], label: Path) -> None:
    """Problems if a label map that is there is of another image, or of the same one elsewhere."""
    if any(before.get(key) != value for key, value in known.items()):
        cause = f"is another image than that of which {label} was made"
        raise Problems.one(cause, "name another folder with -o, or remove that label map")


def _images(path: Path) -> tuple[dict[str, Path], list[Problem]]:
    """The images of a path by case, sorted, and what of it gets no label."""
    if path.is_dir():
        found, problems = cases_in(path, labels=False)
        twice = {problem.case for problem in problems}
        found = {case: file for case, file in found.items() if case not in twice}
        if not found:
            raise Problems(problems)
        return found, problems
    if not path.is_file():
        raise Problems.one("there is no such file or folder", "check the path", file=path)
    if reason := reason_against(path.name):
        raise Problems.one(*reason, file=path)
    return {case_of(path.name): path}, []


def _nearest(size: int, new_size: int) -> np.ndarray:
    """For each voxel of an axis that is resampled, from which it is taken.

    The labels' own call on their own type, so that nothing can round otherwise: indices go as two
    bytes.
    """
    indices = torch.arange(size)
    high, low = (
        interpolate(byte.to(torch.uint8)[None, None, :, None, None], (new_size, 1, 1), **NEAREST)
        for byte in (indices // 256, indices % 256)
    )
    return (high.to(torch.int64) * 256 + low).reshape(-1).numpy()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's number of CPU threads for a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
