"""nnU-Net 2's normalisations of intensities, voxel by voxel: a slice at a time gives the same."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

CT, Z_SCORE, TO_01, NONE = (
    f"{name}Normalization" for name in ("CT", "ZScore", "RescaleTo01", "No")
)
SCHEMES = (CT, Z_SCORE, TO_01, NONE)

SMALLEST = 1e-8
"""What nnU-Net divides by at least."""


def normalisation(
    plan: Mapping[str, Any], scheme: str, image: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that normalises voxels of an image in place and returns them.

    Parameters
    ----------
    plan
        Its ``foreground_intensity_properties_per_channel`` are what CT normalisation takes.
    scheme
        One of `SCHEMES`, without a mask.
    image
        (z, y, x): what is looked at for minimum and maximum, or mean and standard deviation. These
        two are summed in float64, nnU-Net's in float32.
    """
    clip = None
    shift, scale = 0.0, 1.0
    if scheme == CT:
        facts = plan["foreground_intensity_properties_per_channel"]["0"]
        clip = facts["percentile_00_5"], facts["percentile_99_5"]
        shift, scale = facts["mean"], facts["std"]
    elif scheme == Z_SCORE:
        shift = sum(plane.sum(dtype=np.float64) for plane in image) / image.size
        scale = np.sqrt(sum(np.square(plane - shift).sum() for plane in image) / image.size)
    elif scheme == TO_01:
        shift, scale = float(image.min()), float(image.max()) - float(image.min())

    def normalise(voxels: np.ndarray) -> np.ndarray:
        if scheme == NONE:
            return voxels
        if clip is not None:
            np.clip(voxels, *clip, out=voxels)
        voxels -= np.float32(shift)
        voxels /= np.float32(max(scale, SMALLEST))
        return voxels

    return normalise
