"""How label maps agree."""

from typing import Any

import numpy as np

LARGE = 1000
"""Voxels of a class of which one more or less changes the DSC by less than 0.0005."""


def agreement(found: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Of two label maps of one grid.

    Returns
    -------
    dict
        The share of equal voxels, and of those where either is no background (None: there are
        none); the lowest DSC of a class, its value, and its voxels in `other` (None: no class); the
        lowest DSC of a class of at least `LARGE` voxels.
    """
    equal, inside = found == other, (found > 0) | (other > 0)
    sizes = [np.bincount(labels.ravel(), minlength=256) for labels in (found, other)]
    common = np.bincount(other[equal].ravel(), minlength=256)
    dsc = {
        int(value): 2 * common[value] / (sizes[0][value] + sizes[1][value])
        for value in np.flatnonzero(sizes[0] + sizes[1])
        if value
    }
    lowest = min(dsc, key=dsc.get, default=None)
    large = [float(dsc[value]) for value in dsc if sizes[1][value] >= LARGE]
    return {
        "equal": float(equal.mean()),
        "equal_inside": float(equal[inside].mean()) if inside.any() else None,
        "lowest_dsc": None if lowest is None else float(dsc[lowest]),
        "class": lowest,
        "voxels": None if lowest is None else int(sizes[1][lowest]),
        "lowest_dsc_of_large": min(large, default=None),
    }
