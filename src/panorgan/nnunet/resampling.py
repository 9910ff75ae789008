"""nnU-Net's resampling, slice by slice: the same values in a fraction of the time and memory.

``resample_data_or_seg_to_shape`` calls ``skimage.transform.resize``, which calls
``scipy.ndimage.zoom``, on float64 copies and once for each label. Here an image is filtered along
one axis after the other (cubic splines are separable) in float32, and a label's vote is taken
from the corners around each point. Every sum has one order, so results do not depend on the
processor or on threads.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types
from scipy import ndimage

from panorgan.io.compiled import kernel

ROWS = 64
"""Rows that are filtered along x together: many for vector registers, few for the cache."""

NEGLIGIBLE = 1e-8
"""A cubic spline's weights fall by 3.7 a voxel; smaller ones are left out."""

OUTSIDE = 2
"""What `mark_outside` writes."""

PLANE = types.Array(types.float32, 2, "C")
LABELS = types.Array(types.int16, 2, "C")
INDICES = types.Array(types.int64, 1, "C", readonly=True)
TAPS = types.Array(types.float32, 2, "C", readonly=True)
CORNERS = types.Array(types.float64, 2, "C", readonly=True)
VOXELS = types.Array(types.uint8, 3, "C")


class ImageBands:
    """An image on another grid, computed a band of slices at a time.

    Cubic splines in plane; across slices the nearest slice or cubic splines too. A slice's values
    do not depend on the bands in which it is asked for. Bands that overlap, each beginning and
    ending after the one before, compute each slice once.

    Parameters
    ----------
    read
        Gives slice i, (y, x) float32, C-contiguous.
    size, new_size
        (z, y, x) before and after; the outer edges of the volume stay where they are.
    separate
        Take the nearest slice instead of interpolating along z.
    limits
        Lowest and highest value of the whole image. As in skimage, splines do not leave the range
        of what they interpolate: a slice (`separate`) or the image.
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        size: Sequence[int],
        new_size: Sequence[int],
        *,
        separate: bool,
        limits: tuple[float, float],
    ):
        self.size = tuple(new_size)
        self._limits = limits
        self._read = read
        plane = tuple(new_size[1:])
        self._planes = _Kept(self._resample_planes, plane)
        if separate:
            self._chosen = nearest(size[0], new_size[0])
            self._bands = _Kept(self._copy_nearest, plane)
            return
        if size[0] == new_size[0]:
            self._bands = self._planes
            return
        self._first, self._taps = spline_taps(size[0], new_size[0])
        self._bands = _Kept(self._mix_planes, plane)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Slices `start` to `stop`: (z, y, x) float32, within 1e-5 of the largest value of what
        nnU-Net computes in float64. The array is this object's: it is not to be written to.
        """
        band = self._bands(start, stop)
        if stop == self.size[0]:  # none follows
            self._bands.forget()
            self._planes.forget()
        return band

    def _copy_nearest(self, start: int, out: np.ndarray) -> None:
        for number, chosen in enumerate(self._chosen[start : start + len(out)]):
            if number and chosen == self._chosen[start + number - 1]:
                out[number] = out[number - 1]
                continue
            plane = self._read(chosen)
            _resample_plane(plane, out[number])
            np.clip(out[number], plane.min(), plane.max(), out=out[number])

    def _resample_planes(self, start: int, out: np.ndarray) -> None:
        for number in range(len(out)):
            _resample_plane(self._read(start + number), out[number])
        if self._bands is self._planes:
            np.clip(out, *self._limits, out=out)

    def _mix_planes(self, start: int, out: np.ndarray) -> None:
        first, taps = self._first[start : start + len(out)], self._taps[start : start + len(out)]
        planes = self._planes(first[0], first[-1] + taps.shape[1])
        rows = planes.reshape(len(planes), -1)
        filter_rows(rows, first - first[0], taps, out.reshape(len(out), -1))
        np.clip(out, *self._limits, out=out)


class _Kept:
    """Bands of slices; what the last one holds of the next is not computed again.

    `compute` gets a slice's number and an array for it and the following ones.
    """

    def __init__(self, compute: Callable[[int, np.ndarray], None], plane: tuple[int, int]):
        self._compute = compute
        self._plane = plane
        self.forget()

    def forget(self) -> None:
        self._start, self._last = 0, np.empty((0, *self._plane), np.float32)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        end = self._start + len(self._last)
        if (start, stop) == (self._start, end):
            return self._last
        band = np.empty((stop - start, *self._plane), np.float32)
        known = 0
        if self._start <= start < end <= stop:
            known = end - start
            band[:known] = self._last[start - self._start :]
        self.forget()  # what follows takes memory, too
        if known < len(band):
            self._compute(start + known, band[known:])
        self._start, self._last = start, band
        return band


def _resample_plane(plane: np.ndarray, out: np.ndarray) -> None:
    """Cubic splines along both axes of a (y, x) float32 array, into another."""
    if plane.shape[0] != out.shape[0]:
        filtered = np.empty((out.shape[0], plane.shape[1]), np.float32)
        filter_rows(plane, *spline_taps(plane.shape[0], out.shape[0]), filtered)
        plane = filtered
    if plane.shape[1] != out.shape[1]:
        filter_columns(plane, *spline_taps(plane.shape[1], out.shape[1]), out)
    else:
        out[...] = plane


def resample_label(
    read: Callable[[int], np.ndarray],
    size: Sequence[int],
    new_size: Sequence[int],
    *,
    separate: bool,
) -> np.ndarray:
    """The label whose linearly interpolated mask is largest; across slices also the nearest slice.

    Of equal masks the nearest voxel's label wins if it is among them, else the lowest value: the
    rule of batchgenerators' ``resize_segmentation``, in its arithmetic.

    Parameters
    ----------
    read
        Gives slice i, (y, x) int16, C-contiguous.
    size, new_size, separate
        As for `ImageBands`.

    Returns
    -------
    (z, y, x) int16 array
    """
    result = np.empty(new_size, np.int16)
    along_y, along_x = (corners(old, new) for old, new in zip(size[1:], new_size[1:], strict=True))
    if separate:
        chosen = np.array(nearest(size[0], new_size[0]))
        along_z = chosen, np.tile([1.0, 0.0], (len(chosen), 1)), np.zeros_like(chosen)
    else:
        along_z = corners(size[0], new_size[0])
    kept: dict[int, np.ndarray] = {}
    for number, (lower, weights, near) in enumerate(zip(*along_z, strict=True)):
        pair = max(lower, 0), min(lower + (weights[1] > 0), size[0] - 1)
        kept = {i: kept[i] if i in kept else read(i) for i in pair}
        vote(kept[pair[0]], kept[pair[1]], weights, near, *along_y, *along_x, result[number])
    return result


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


def separation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether slices are resampled one by one, with nnU-Net's defaults."""
    return {
        "force": arguments.get("force_separate_z", False),
        "threshold": arguments.get("separate_z_anisotropy_threshold", 3),
    }


def positions(old: int, new: int) -> np.ndarray:
    """Where `new` voxels that fill the same extent have their centres, in `old` voxels."""
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def nearest(old: int, new: int) -> list[int]:
    """Nearest of `old` voxels for each of `new` ones."""
    return np.floor(positions(old, new) + 0.5).astype(int).clip(0, old - 1).tolist()


def corners(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new voxel the old one below it, the weights of it and the next, and the nearer.

    Either may lie a voxel outside: then the outermost voxel counts twice. This and the way to
    the second weight is scipy's, for the same rounding where two labels have nearly equal shares.
    """
    place = positions(old, new)
    lower = np.floor(place).astype(np.int64)
    first = 1 - (place - lower)
    return lower, np.stack((first, 1 - first), axis=1), np.array(nearest(old, new)) - lower


@lru_cache(maxsize=64)
def spline_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Cubic spline interpolation of a row of voxels as a band matrix.

    Returns
    -------
    first : (new,) int64 array
        The first old voxel that counts for each new one.
    taps : (new, width) float32 array
        Weights of it and the following ones.
    """
    matrix = ndimage.zoom(
        np.eye(old), (new / old, 1), order=3, mode="nearest", grid_mode=True
    )  # the second axis is interpolated at its own points
    counts = np.abs(matrix) > NEGLIGIBLE
    first = counts.argmax(1)
    width = int((old - counts[:, ::-1].argmax(1) - first).max())
    first = np.minimum(first, old - width)
    taps = np.take_along_axis(matrix, first[:, None] + np.arange(width), axis=1)
    return first, np.ascontiguousarray(taps, np.float32)


@kernel(types.void(PLANE, INDICES, TAPS, PLANE))
def filter_rows(source, first, taps, out):
    """out[i] = sum over k of taps[i, k] * source[first[i] + k]."""
    width, block = out.shape[1], 2048
    for start in range(0, width, block):
        end = min(start + block, width)
        for i in range(out.shape[0]):
            row = out[i, start:end]
            row[:] = np.float32(0)
            for k in range(taps.shape[1]):
                weight, other = taps[i, k], source[first[i] + k, start:end]
                for j in range(end - start):
                    row[j] += weight * other[j]


@kernel(types.void(PLANE, INDICES, TAPS, PLANE))
def filter_columns(source, first, taps, out):
    """out[:, j] = sum over k of taps[j, k] * source[:, first[j] + k]."""
    height = source.shape[0]
    turned = np.zeros((source.shape[1], ROWS), np.float32)
    total = np.empty(ROWS, np.float32)
    for start in range(0, height, ROWS):
        rows = min(ROWS, height - start)
        for r in range(rows):
            for j in range(source.shape[1]):
                turned[j, r] = source[start + r, j]
        for j in range(out.shape[1]):
            total[:] = np.float32(0)
            for k in range(taps.shape[1]):
                weight, column = taps[j, k], turned[first[j] + k]
                for r in range(ROWS):
                    total[r] += weight * column[r]
            for r in range(rows):
                out[start + r, j] = total[r]


@kernel(
    types.void(
        *(LABELS, LABELS, types.Array(types.float64, 1, "C"), types.int64),
        *(INDICES, CORNERS, INDICES, INDICES, CORNERS, INDICES, LABELS),
    )
)
def vote(lower, upper, across, nearer, ys, y_weights, y_near, xs, x_weights, x_near, out):
    """The label with the largest share of the 4 or 8 voxels around each point of a slice."""
    found = np.empty(8, np.int64)
    weights = np.empty(8, np.float64)
    last_y, last_x = lower.shape[0] - 1, lower.shape[1] - 1
    planes = 2 if across[1] > 0 else 1
    for i in range(out.shape[0]):
        y, y1 = max(ys[i], 0), min(ys[i] + 1, last_y)
        for j in range(out.shape[1]):
            x, x1 = max(xs[j], 0), min(xs[j] + 1, last_x)
            label = lower[y, x]
            if label == lower[y, x1] == lower[y1, x] == lower[y1, x1] and (
                planes == 1 or label == upper[y, x] == upper[y, x1] == upper[y1, x] == upper[y1, x1]
            ):
                out[i, j] = label
                continue
            n = 0
            for dz in range(planes):
                plane = upper if dz else lower
                for dy in range(2):
                    for dx in range(2):
                        found[n] = plane[y1 if dy else y, x1 if dx else x]
                        weights[n] = across[dz] * y_weights[i, dy] * x_weights[j, dx]
                        n += 1
            near = found[4 * nearer + 2 * y_near[i] + x_near[j]]
            best, winner, near_share = -1.0, np.int64(0), -1.0
            for a in range(n):
                share = 0.0
                for b in range(n):
                    if found[b] == found[a]:
                        share += weights[b]
                if share > best or (share == best and found[a] < winner):
                    best, winner = share, found[a]
                if found[a] == near:
                    near_share = share
            out[i, j] = near if near_share == best else winner


@numba.njit
def _visit(voxels, z, y, x, stack, count):
    """Mark a zero voxel as outside and put it on the stack; the stack and its new length."""
    if voxels[z, y, x] != 1:
        return stack, count
    voxels[z, y, x] = OUTSIDE
    if count == len(stack):
        larger = np.empty(2 * count, np.int64)
        larger[:count] = stack
        stack = larger
    stack[count] = (z * voxels.shape[1] + y) * voxels.shape[2] + x
    return stack, count + 1


@kernel(types.int64(VOXELS))
def mark_outside(voxels):
    """Set to `OUTSIDE` what is 1 and reaches the volume's surface through face neighbours of 1.

    Returns how many there are. The ones that are left are what
    ``scipy.ndimage.binary_fill_holes`` fills between the zeros.
    """
    depth, height, width = voxels.shape
    stack, count = np.empty(1024, np.int64), 0
    for z in range(depth):
        for y in range(height):
            inner = 0 < z < depth - 1 and 0 < y < height - 1 and width > 1
            for x in range(0, width, width - 1 if inner else 1):
                stack, count = _visit(voxels, z, y, x, stack, count)
    marked = count
    while count:
        count -= 1
        before = count
        z, rest = divmod(stack[count], height * width)
        y, x = divmod(rest, width)
        if z > 0:
            stack, count = _visit(voxels, z - 1, y, x, stack, count)
        if z < depth - 1:
            stack, count = _visit(voxels, z + 1, y, x, stack, count)
        if y > 0:
            stack, count = _visit(voxels, z, y - 1, x, stack, count)
        if y < height - 1:
            stack, count = _visit(voxels, z, y + 1, x, stack, count)
        if x > 0:
            stack, count = _visit(voxels, z, y, x - 1, stack, count)
        if x < width - 1:
            stack, count = _visit(voxels, z, y, x + 1, stack, count)
        marked += count - before
    return marked
