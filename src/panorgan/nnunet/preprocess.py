"""From a CT to what a network sees: whole for training, in bands of equal bits for prediction."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from panorgan.io.resources import check_memory
from panorgan.io.volumes import Grid, Volume, canonical_spacing, to_canonical
from panorgan.nnunet.cropping import crop_box, crop_key, crop_of
from panorgan.nnunet.normalisation import NONE, SCHEMES, TO_01, Z_SCORE, normalisation
from panorgan.nnunet.plans import RESAMPLING, STORED, configuration_of, make_dataset_json
from panorgan.nnunet.resampling import (
    OUTSIDE,
    ImageBands,
    mark_outside,
    resample_label,
    separation,
    slice_axis,
)
from panorgan.problems import Problems


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


@dataclass(frozen=True)
class Bands:
    """An image on the network's grid, computed as it is asked for.

    Attributes
    ----------
    read : function
        Gives slices `start` to `stop` of the normalised image, (z, y, x) float32, in the plan's
        axis order. The array is not to be written to. As for `ImageBands`, it is cheap to ask for
        bands that overlap, each beginning and ending after the one before.
    size : (z, y, x) int
    properties : dict
        As in `Preprocessed`.
    """

    read: Callable[[int, int], np.ndarray]
    size: tuple[int, int, int]
    properties: dict[str, Any]


def image_bands(volume: Volume, plan: Mapping[str, Any]) -> Bands:
    """What `preprocess_image` gives of an image, bit for bit, without ever holding it whole.

    It is held whole where the plan is not followed slice by slice, or where the slices that lie
    far apart are not the first axis' own.

    Raises
    ------
    Problems
        If the plan needs nnU-Net itself, which is not installed here, or if the image cannot be
        held in memory where it must.
    """
    name, configuration = configuration_of(plan)
    image = to_canonical(volume.array, network_grid(volume.grid, plan))
    properties = _properties(volume, plan)
    if _is_usual(configuration):
        return _by_slices(image, properties, plan, configuration)
    data, _ = _by_nnunet(image, None, properties, plan, name)
    return _whole(data[0], properties)


def preprocess_image(
    volume: Volume, plan: Mapping[str, Any], label: np.ndarray | None = None
) -> Preprocessed:
    """Reorient, crop, normalise and resample, as nnU-Net does.

    A plan like panorgan's own (usual normalisation, cubic splines for the image and linear ones
    for the label, the nearest slice where slices are far apart) is followed slice by slice: labels
    are then nnU-Net's, and intensities within 1e-5 of the largest. Any other is left to nnU-Net
    itself.

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
    name, configuration = configuration_of(plan)
    grid = network_grid(volume.grid, plan)
    image = to_canonical(volume.array, grid)
    seg = None if label is None else to_canonical(label, grid)
    properties = _properties(volume, plan)
    if _is_usual(configuration):
        bands = _by_slices(image, properties, plan, configuration)
        bytes_of_a_voxel = 4 if label is None else 4 + 2
        check_memory(
            math.prod(bands.size) * bytes_of_a_voxel,
            f"on the network's grid ({' x '.join(map(str, bands.size))} voxels, z first) it",
            "check its spacing",
        )
        data = bands.read(0, bands.size[0])[None]
        if seg is not None:
            seg = _label_by_slices(image, seg, bands, plan, configuration)
    else:
        data, seg = _by_nnunet(image, seg, properties, plan, name)
    if seg is not None:
        classes = range(1, len(plan["panorgan"]["classes"]) + 1)
        properties["class_locations"] = sample_locations(seg, classes)
    return Preprocessed(data, seg, properties, tuple(configuration["patch_size"]))


def _properties(volume: Volume, plan: Mapping[str, Any]) -> dict[str, Any]:
    return {"spacing": list(canonical_spacing(network_grid(volume.grid, plan)))}


def _whole(data: np.ndarray, properties: dict[str, Any]) -> Bands:
    return Bands(lambda start, stop: data[start:stop], data.shape, properties)


def _is_usual(configuration: Mapping[str, Any]) -> bool:
    """Whether a plan asks for nnU-Net's usual resampling and normalises without a mask."""
    usual = {"resampling_fn_data": (False, 3, 0), "resampling_fn_seg": (True, 1, 0)}
    arguments = ("is_seg", "order", "order_z")
    (scheme,) = configuration["normalization_schemes"]
    unmasked = not any(configuration["use_mask_for_norm"]) or scheme != Z_SCORE
    return (
        scheme in SCHEMES
        and unmasked
        and all(
            configuration[function] == RESAMPLING
            and tuple(configuration[f"{function}_kwargs"].get(name) for name in arguments) == values
            for function, values in usual.items()
        )
    )


def _by_nnunet(
    image: np.ndarray,
    label: np.ndarray | None,
    properties: dict[str, Any],
    plan: Mapping[str, Any],
    name: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """nnU-Net's own preprocessing, without its sample of places."""
    if crop_key(plan):
        cause = f"its plan crops to the {crop_of(plan)}, but resamples as only nnU-Net itself does"
        raise Problems.one(cause, "set `crop: nonzero` in its recipe and train it again")
    if find_spec("nnunetv2") is None:
        cause = (
            "its plan resamples or normalises as only nnU-Net itself does, which is not installed"
        )
        raise Problems.one(cause, "pip install 'panorgan[train]'")
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw = dict(plan)
    last = plan["panorgan"].get("normalise_last")
    if last:
        scheme = configuration_of(plan)[1]["normalization_schemes"][0]
        raw["configurations"] = {
            name: {**configuration_of(plan)[1], "normalization_schemes": [NONE]}
        }
    plans = PlansManager(raw)
    data, seg, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        image[None],
        None if label is None else label[None].astype(np.int16),
        properties,
        plans,
        plans.get_configuration(name),
        make_dataset_json([], ignore=False),
    )
    data = np.ascontiguousarray(data, np.float32)
    if last:
        data = normalisation(plan, scheme, data[0])(data)
    return data, None if label is None else np.ascontiguousarray(seg, np.int16)


def _by_slices(
    image: np.ndarray,
    properties: dict[str, Any],
    plan: Mapping[str, Any],
    configuration: Mapping[str, Any],
) -> Bands:
    """What ``DefaultPreprocessor.run_case_npy`` does with an image, a band of slices at a time."""
    order = plan["transpose_forward"]
    spacing = [properties["spacing"][axis] for axis in order]
    image = image.transpose(order)
    box = crop_box(image, spacing, crop_of(plan))
    properties["shape_before_cropping"] = image.shape
    properties["bbox_used_for_cropping"] = box
    image = image[tuple(slice(*bounds) for bounds in box)]
    properties["shape_after_cropping_and_before_resampling"] = image.shape
    target = target_spacing(spacing, configuration)
    new_size = resampled_size(image.shape, spacing, target)
    axis = slice_axis(spacing, target, **separation(configuration["resampling_fn_data_kwargs"]))
    slices = _slices(image, axis)
    (scheme,) = configuration["normalization_schemes"]
    last = plan["panorgan"].get("normalise_last")  # as nnU-Net 1 did
    normalise = normalisation(plan, NONE if last else scheme, image)
    limits = normalise(np.array([image.min(), image.max()], np.float32))
    bands = ImageBands(
        lambda number: normalise(np.array(slices[number], np.float32, order="C")),
        slices.shape,
        _first(new_size, axis),
        separate=axis is not None,
        limits=(limits[0], limits[1]),
    )
    if (last and scheme in (Z_SCORE, TO_01)) or axis:
        check_memory(4 * math.prod(new_size), "on the network's grid it", "check its spacing")
        data = np.ascontiguousarray(np.moveaxis(bands(0, bands.size[0]), 0, axis or 0))
        if last:
            data = normalisation(plan, scheme, data)(data)
        return _whole(data, properties)
    if last:
        after = normalisation(plan, scheme, image)
        return Bands(lambda *bounds: after(bands(*bounds).copy()), new_size, properties)
    return Bands(bands, new_size, properties)


def _label_by_slices(
    image: np.ndarray,
    label: np.ndarray,
    bands: Bands,
    plan: Mapping[str, Any],
    configuration: Mapping[str, Any],
) -> np.ndarray:
    """(1, z, y, x) int16: what ``run_case_npy`` makes of the label of an image with such bands."""
    order = plan["transpose_forward"]
    spacing = [bands.properties["spacing"][axis] for axis in order]
    inside = tuple(slice(*bounds) for bounds in bands.properties["bbox_used_for_cropping"])
    target = target_spacing(spacing, configuration)
    axis = slice_axis(spacing, target, **separation(configuration["resampling_fn_seg_kwargs"]))
    zeros = np.ascontiguousarray(_slices(image.transpose(order)[inside], axis) == 0).view(np.uint8)
    outside = zeros if mark_outside(zeros) else None
    labels = _slices(label.transpose(order)[inside], axis)

    def read_label(number: int) -> np.ndarray:
        values = np.array(labels[number], np.int16, order="C")
        if outside is not None:
            values[(outside[number] == OUTSIDE) & (values == 0)] = -1
        return values

    seg = resample_label(
        read_label, labels.shape, _first(bands.size, axis), separate=axis is not None
    )
    return np.ascontiguousarray(np.moveaxis(seg, 0, axis or 0))[None]


def target_spacing(spacing: Sequence[float], configuration: Mapping[str, Any]) -> list[float]:
    """The network's spacing on all axes: a 2D one keeps the slices as they are."""
    target = configuration["spacing"]
    return [*spacing[: len(spacing) - len(target)], *target]


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


def resampled_size(
    size: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Size at another spacing: nnU-Net's ``compute_new_shape``."""
    return tuple(
        round(old / new * count) for old, new, count in zip(spacing, target, size, strict=True)
    )


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
