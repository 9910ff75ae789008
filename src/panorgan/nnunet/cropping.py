"""Which part of a CT a network sees: a decision of its plan, so of training and prediction alike.

Normalisations within a network look at the whole of a tile. One that never saw air around a patient
errs where there is some, and how much there is says only how a scan was reconstructed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from panorgan.config.registry import BODY, NONZERO

Box = list[list[int]]
"""Half-open bounds on each axis."""

BODY_HU = -300
"""Fat has more; air, lung, foam and blankets have less."""
COARSE_MM = 4.0
"""About the distance of the voxels that are looked at."""
MARGIN_MM = 10.0
"""Kept around the body beyond the accuracy of that look."""
SMALLEST_SHARE = 0.05
"""Of the largest piece: a leg or an arm has more, else it is no body."""
SMALLEST_MM = 50.0
"""In plane; what is smaller is no body."""
ACROSS = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


def crop_of(plan: Mapping[str, Any]) -> str:
    """How a plan crops; plans of others, and those made before this was a choice: nonzero."""
    return plan["panorgan"].get("recipe", {}).get("crop", NONZERO)


def crop_key(plan: Mapping[str, Any]) -> dict[str, str]:
    """What a key says of it: nothing where it is nnU-Net's, so that older results stay."""
    crop = crop_of(plan)
    return {} if crop == NONZERO else {"crop": crop}


def crop_box(image: np.ndarray, spacing: Sequence[float], crop: str) -> Box:
    """What is left of a CT: half-open bounds on each axis.

    Parameters
    ----------
    image
        (z, y, x) HU in canonical order.
    spacing
        In mm, of its axes.
    crop
        One of `panorgan.config.registry.CROPS`.
    """
    return (body_box(image, spacing) if crop == BODY else None) or nonzero_box(image)


def nonzero_box(image: np.ndarray) -> Box:
    """Bounds of the voxels that are not 0; the whole image if all are."""
    return _extent(image, lambda values: values != 0) or [[0, size] for size in image.shape]


def body_box(image: np.ndarray, spacing: Sequence[float]) -> Box | None:
    """Bounds of the patient, without the air and mostly without the table; None: there is none.

    Air, or 0, put around an image changes nothing: the look starts at the outermost voxels that are
    neither. A table is thin and falls apart from the body where the mask is eroded in plane; one
    that does not is kept. Arms and legs that are apart from the trunk are kept too.
    """
    from scipy import ndimage  # takes as long to load as all that a key needs

    dense = _extent(image, _is_dense)
    if dense is None:
        return None
    part = image[tuple(slice(*bounds) for bounds in dense)]
    steps = [max(1, round(COARSE_MM / mm)) for mm in spacing]
    looked_at = _is_dense(part[tuple(slice(None, None, step) for step in steps)])
    pieces, _ = ndimage.label(ndimage.binary_erosion(looked_at, ACROSS))
    sizes = np.bincount(pieces.ravel())[1:]
    places = [
        place
        for place, size in zip(ndimage.find_objects(pieces), sizes, strict=True)
        if size >= SMALLEST_SHARE * sizes.max()
    ]
    if not places:
        return None
    box = []
    for axis, ((first, last), step, mm) in enumerate(zip(dense, steps, spacing, strict=True)):
        start = min(place[axis].start for place in places)
        stop = max(place[axis].stop for place in places)
        if axis and (stop - start) * step * mm < SMALLEST_MM:
            return None
        # Beside what is left lies a voxel that the erosion took, and up to a step of unseen ones.
        margin = math.ceil(MARGIN_MM / mm)
        start, stop = (start - 2) * step - margin, (stop + 1) * step + margin
        box.append([max(first, first + start), min(last, first + stop)])
    return box


def _is_dense(values: np.ndarray) -> np.ndarray:
    """Where there may be a body; what is exactly 0 is mostly a filling."""
    return (values > BODY_HU) & (values != 0)


def _extent(image: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> Box | None:
    """Bounds of the voxels where something holds, asked slice by slice; None if nowhere."""
    axis = int(np.argmax(np.abs(image.strides)))
    slices = np.moveaxis(image, axis, 0)
    any_across = np.zeros(slices.shape[1:], bool)
    any_along = np.zeros(len(slices), bool)
    for number, values in enumerate(slices):
        found = holds(values)
        any_along[number] = found.any()
        any_across |= found
    lines = [any_across.any(1), any_across.any(0)]
    lines.insert(axis, any_along)
    places = [np.flatnonzero(line) for line in lines]
    if not all(map(len, places)):
        return None
    return [[int(found[0]), int(found[-1]) + 1] for found in places]
