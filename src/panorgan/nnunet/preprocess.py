"""From a CT to what a network sees. Training and prediction call the same function."""

import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from panorgan.io.resources import check_memory
from panorgan.io.volumes import Grid, Volume, canonical_spacing, to_canonical
from panorgan.nnunet.plans import RESAMPLING, STORED, configuration_of, make_dataset_json
from panorgan.nnunet.resampling import OUTSIDE, mark_outside, resample_image, resample_label


@dataclass(frozen=True)
class Preprocessed:
    """A case on the network's grid.

    Attributes
    ----------
    data : (1, z, y, x) float32 array
        Normalised intensities, axes in the plan's orientation.
    seg : (1, z, y, x) int16 array or None
        Label; -1 outside of the image's nonzero region (no background that was looked at).
    properties : dict
        nnU-Net's: shapes before and after cropping, bounding box, spacing; with a label also
        `class_locations`, for each class int16 (n, 4) indices (0, z, y, x) of some of its voxels.
    patch_size : tuple of int
        The plan's; files are laid out for reading patches of this size.
    """

    data: np.ndarray
    seg: np.ndarray | None
    properties: dict[str, Any]
    patch_size: tuple[int, ...]


def network_grid(grid: Grid, plan: Mapping[str, Any]) -> Grid:
    """The grid whose canonical order is the order in which the plan's network sees the voxels.

    Networks of others see them as they are stored: then it is a grid without an orientation.
    """
    if plan["panorgan"]["orientation"] == STORED:
        return replace(grid, affine=np.diag([*grid.spacing[::-1], 1.0]))
    return grid


def preprocess_image(
    volume: Volume, plan: Mapping[str, Any], label: np.ndarray | None = None
) -> Preprocessed:
    """Reorient, crop to the nonzero region, normalise and resample, as nnU-Net does.

    A plan like panorgan's own (CT normalisation or none, cubic splines for the image and linear
    ones for the label, the nearest slice where slices are far apart) is followed slice by slice:
    labels are then nnU-Net's, and intensities within 1e-5 of the largest. Any other is left to
    nnU-Net itself.

    Parameters
    ----------
    volume
        The CT as stored.
    plan
        As `panorgan.nnunet.plans.make_plan` makes it. With a 2D plan all slices are kept, at
        their distance.
    label
        (z, y, x) in the image's stored order; the value after the last class is ignored: it is
        resampled as a class is, and is no foreground.
    """
    if plan["panorgan"].get("normalise_last"):
        return _normalised_last(volume, plan, label)
    name, configuration = configuration_of(plan)
    grid = network_grid(volume.grid, plan)
    image = to_canonical(volume.array, grid)
    seg = None if label is None else to_canonical(label, grid)
    properties: dict[str, Any] = {"spacing": list(canonical_spacing(grid))}
    if _is_usual(configuration):
        data, seg = _by_slices(image, seg, properties, plan, configuration)
    else:
        data, seg = _by_nnunet(image, seg, properties, plan, name)
    if seg is not None:
        classes = range(1, len(plan["panorgan"]["classes"]) + 1)
        properties["class_locations"] = sample_locations(seg, classes)
    return Preprocessed(data, seg, properties, tuple(configuration["patch_size"]))


def _is_usual(configuration: Mapping[str, Any]) -> bool:
    """Whether a plan asks for nnU-Net's usual resampling and treats each voxel's HU by itself."""
    usual = {"resampling_fn_data": (False, 3, 0), "resampling_fn_seg": (True, 1, 0)}
    arguments = ("is_seg", "order", "order_z")
    (scheme,) = configuration["normalization_schemes"]
    return scheme in ("CTNormalization", "NoNormalization") and all(
        configuration[function] == RESAMPLING
        and tuple(configuration[f"{function}_kwargs"].get(name) for name in arguments) == values
        for function, values in usual.items()
    )


def _by_nnunet(
    image: np.ndarray,
    label: np.ndarray | None,
    properties: dict[str, Any],
    plan: Mapping[str, Any],
    name: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """nnU-Net's own preprocessing, without its sample of places."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(dict(plan))
    data, seg, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        image[None],
        None if label is None else label[None].astype(np.int16),
        properties,
        plans,
        plans.get_configuration(name),
        make_dataset_json([], ignore=False),
    )
    data = np.ascontiguousarray(data, np.float32)
    return data, None if label is None else np.ascontiguousarray(seg, np.int16)


def _by_slices(
    image: np.ndarray,
    label: np.ndarray | None,
    properties: dict[str, Any],
    plan: Mapping[str, Any],
    configuration: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray | None]:
    """What ``DefaultPreprocessor.run_case_npy`` does, and no more than a slice in between."""
    order = plan["transpose_forward"]
    spacing = [properties["spacing"][axis] for axis in order]
    image = image.transpose(order)
    box = nonzero_box(image)
    inside = tuple(slice(*bounds) for bounds in box)
    properties["shape_before_cropping"] = image.shape
    properties["bbox_used_for_cropping"] = box
    image = image[inside]
    properties["shape_after_cropping_and_before_resampling"] = image.shape
    target = configuration["spacing"]
    target = [*spacing[: len(spacing) - len(target)], *target]
    new_size = resampled_size(image.shape, spacing, target)
    bytes_of_a_voxel = 4 if label is None else 4 + 2
    check_memory(
        math.prod(new_size) * bytes_of_a_voxel,
        f"on the network's grid ({' x '.join(map(str, new_size))} voxels, z first) it",
        "check its spacing",
    )
    normalise = _normalisation(plan, configuration)
    limits = normalise(np.array([image.min(), image.max()], np.float32))

    axis = slice_axis(spacing, target, **_separation(configuration["resampling_fn_data_kwargs"]))
    slices = _slices(image, axis)
    data = resample_image(
        lambda number: normalise(np.array(slices[number], np.float32, order="C")),
        slices.shape,
        _first(new_size, axis),
        separate=axis is not None,
        limits=(limits[0], limits[1]),
    )
    data = np.ascontiguousarray(np.moveaxis(data, 0, axis or 0))[None]
    if label is None:
        return data, None

    axis = slice_axis(spacing, target, **_separation(configuration["resampling_fn_seg_kwargs"]))
    zeros = np.ascontiguousarray(_slices(image, axis) == 0).view(np.uint8)
    outside = zeros if mark_outside(zeros) else None
    labels = _slices(label.transpose(order)[inside], axis)

    def read_label(number: int) -> np.ndarray:
        values = np.array(labels[number], np.int16, order="C")
        if outside is not None:
            values[(outside[number] == OUTSIDE) & (values == 0)] = -1
        return values

    seg = resample_label(
        read_label, labels.shape, _first(new_size, axis), separate=axis is not None
    )
    return data, np.ascontiguousarray(np.moveaxis(seg, 0, axis or 0))[None]


def _separation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether slices are resampled one by one, with nnU-Net's defaults."""
    return {
        "force": arguments.get("force_separate_z", False),
        "threshold": arguments.get("separate_z_anisotropy_threshold", 3),
    }


def _first(values: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """The value of an axis before the others."""
    axis = axis or 0
    return (values[axis], *values[:axis], *values[axis + 1 :])


def _slices(array: np.ndarray, axis: int | None) -> np.ndarray:
    """The array with its slices along an axis first, laid out for reading one after the other."""
    array = np.moveaxis(array, axis or 0, 0)
    if abs(array.strides[2]) != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def nonzero_box(image: np.ndarray) -> list[list[int]]:
    """Half-open bounds on each axis of the voxels that are not 0; the whole image if all are."""
    nonzero = image != 0
    box = []
    for axis, size in enumerate(image.shape):
        found = np.flatnonzero(nonzero.any(tuple({0, 1, 2} - {axis})))
        box.append([int(found[0]), int(found[-1]) + 1] if len(found) else [0, size])
    return box


def resampled_size(
    size: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Size at another spacing: nnU-Net's ``compute_new_shape``."""
    return tuple(
        round(old / new * count) for old, new, count in zip(spacing, target, size, strict=True)
    )


def slice_axis(
    spacing: Sequence[float], target: Sequence[float], *, force: bool | None, threshold: float
) -> int | None:
    """The axis across which slices lie so far apart that they are resampled one by one, or None.

    nnU-Net's ``determine_do_sep_z_and_axis``: the coarse axis of the first of both spacings whose
    largest is over `threshold` times its smallest; with `force`, of the image's.
    """
    chosen = spacing if force else None
    if force is None:
        chosen = next((mm for mm in (spacing, target) if max(mm) / min(mm) > threshold), None)
    coarse = [axis for axis, mm in enumerate(chosen or ()) if max(chosen) / mm == 1]
    return coarse[0] if len(coarse) == 1 else None


def sample_locations(seg: np.ndarray, classes: Iterable[int]) -> dict[int, np.ndarray]:
    """Some voxels of each class for the training's choice of patches, those that nnU-Net takes.

    Parameters
    ----------
    seg
        (1, z, y, x) int16.
    classes
        Values of the classes.

    Returns
    -------
    dict
        For each class int16 (n, 4) indices: 1 % of its voxels, but at least 10,000 if it has them.
    """
    random = np.random.RandomState(1234)
    places = np.flatnonzero(seg > 0)
    values = seg.reshape(-1)[places]
    locations = {}
    for value in classes:
        found = places[values == value]
        if len(found):
            count = max(min(10000, len(found)), math.ceil(len(found) * 0.01))
            found = found[random.choice(len(found), count, replace=False)]
        locations[value] = np.stack(np.unravel_index(found, seg.shape), 1).astype(np.int16)
    return locations


def _normalisation(
    plan: Mapping[str, Any], configuration: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """nnU-Net's normalisation of an image; it may overwrite its argument."""
    (scheme,) = configuration["normalization_schemes"]
    intensities = plan["foreground_intensity_properties_per_channel"]["0"]
    return getattr(default_normalization_schemes, scheme)(False, intensities).run


def _normalised_last(
    volume: Volume, plan: Mapping[str, Any], label: np.ndarray | None
) -> Preprocessed:
    """Resample first, then normalise, as nnU-Net 1 did; nnU-Net 2 does it the other way round."""
    name, configuration = configuration_of(plan)
    raw_plan = {
        **plan,
        "configurations": {name: {**configuration, "normalization_schemes": ["NoNormalization"]}},
        "panorgan": {**plan["panorgan"], "normalise_last": False},
    }
    raw = preprocess_image(volume, raw_plan, label)
    return replace(raw, data=_normalisation(plan, configuration)(raw.data[0])[None])


def save(folder: str | Path, case: str, preprocessed: Preprocessed) -> None:
    """Write a labelled case as ``nnUNetDatasetBlosc2`` reads it; equal cases give equal bytes.

    The files are ``CASE.b2nd``, ``CASE_seg.b2nd`` and ``CASE.pkl``.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as name:
        temporary = Path(name)
        arrays = {f"{case}.b2nd": preprocessed.data, f"{case}_seg.b2nd": preprocessed.seg}
        for file, array in arrays.items():
            blocks, chunks = comp_blosc2_params(
                array.shape, preprocessed.patch_size, array.itemsize
            )
            # One thread: several would store a chunk's blocks in the order in which they finish.
            # nnU-Net's level 5 takes four times as long and saves 4 %; both read equally fast.
            compression = {
                "codec": blosc2.Codec.LZ4HC,
                "clevel": 1,
                "filters": [blosc2.Filter.SHUFFLE],
                "nthreads": 1,
            }
            # Compressed in memory: of a full disk blosc2 says only that something went wrong.
            packed = blosc2.asarray(
                array, chunks=chunks, blocks=blocks, cparams=compression, contiguous=True
            )
            (temporary / file).write_bytes(packed.to_cframe())
        (temporary / f"{case}.pkl").write_bytes(pickle.dumps(preprocessed.properties))
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
