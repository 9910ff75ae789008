"""Hypothesis strategies for volumes: any orientation, spacing, tilt and content."""

from itertools import permutations, product

import numpy as np
from hypothesis import strategies as st

from panorgan.io.volumes import Volume, new_volume

ORIENTATIONS = [
    "".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)
]
"""All 48 ways to store a volume's axes."""


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Turns about x, then y, then z, as a matrix (3, 3)."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        turned = turn @ turned
    return turned


def affine_of(
    axes: str,
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float] = (0, 0, 0),
    tilt: tuple[float, float, float] = (0, 0, 0),
) -> np.ndarray:
    """From indices (x, y, z) to RAS mm, for stored axes that point to `axes`, then tilted.

    `spacing` is (z, y, x) mm; `origin` is where the first voxel lies, RAS mm.
    """
    affine = np.eye(4)
    for column, letter in enumerate(axes):
        row = next(row for row, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[:3, column] = 0
        affine[row, column] = spacing[2 - column] * (1 if letter in "RAS" else -1)
    affine[:3, :3] = rotation(tilt) @ affine[:3, :3]
    affine[:3, 3] = origin
    return affine


@st.composite
def affines(draw: st.DrawFn) -> tuple[tuple[float, float, float], np.ndarray]:
    """A spacing (z, y, x) and an affine with it: any orientation, up to 20 degrees tilted."""
    spacing = draw(st.tuples(*[st.floats(0.5, 8)] * 3))
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    tilt = draw(st.just((0.0, 0.0, 0.0)) | st.tuples(*[st.floats(-20, 20)] * 3))
    return spacing, affine_of(draw(st.sampled_from(ORIENTATIONS)), spacing, origin, tilt)


@st.composite
def volumes(draw: st.DrawFn, dtype: type = np.int16) -> Volume:
    """A small volume of random voxels in the type's range (HU from -1024 for floats)."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if np.issubdtype(dtype, np.floating):
        array = random.uniform(-1024, 3071, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        array = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return new_volume(array, *draw(affines()))
