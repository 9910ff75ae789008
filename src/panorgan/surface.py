"""Voxels, surface elements and their distances, counted for one class of two label maps.

The surface of a mask is what DeepMind's surface-distance calls it: every corner between voxels
looks at its 2x2x2 neighbours, whose pattern is a code of 8 bits; all codes but "none" and "all
eight" are surface elements, with the area of the marching-cubes triangles of that code. Whatever
lies beyond the array is outside of the mask.

Masks and surfaces are rows of bits here, 64 corners in a word, and the kernels only count, in
integers: how many elements there are of each code, and of how many the other surface is near.
Areas come last. One thread; importing this module loads or compiles the kernels.
"""

from functools import cache
from itertools import permutations, product

import numba
import numpy as np
from numba import types

from panorgan.compiled import kernel

ONES = np.uint64(0x0101010101010101)
LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
GATHER = np.uint64(0x0102040810204080)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
ZERO, ONE, SEVEN = np.uint64(0), np.uint64(1), np.uint64(7)
LAST, BYTE = np.uint64(63), np.uint64(0xFF)

# Accepts every contiguous array, read-only and unaligned ones too, without a second version.
WORDS = types.Array(types.uint64, 3, "C", readonly=True, aligned=False)
COUNTS = types.Array(types.int64, 2, "C")
ELEMENTS = types.Array(types.int64, 3, "C")


def as_words(labels: np.ndarray) -> np.ndarray:
    """A label map (z, y, x) as uint64 words of 8 voxels along x, without a copy where possible.

    Values are cast to uint8; rows whose length is no multiple of 8 get zeros at their end.
    """
    labels = np.ascontiguousarray(labels, np.uint8)
    missing = -labels.shape[2] % 8
    if missing:
        labels = np.pad(labels, ((0, 0), (0, 0), (0, missing)))
    return labels.view("<u8")


@numba.njit
def _add_run(table, value, z, y, start, end):
    row = table[value]
    row[0] += end - start
    row[1] = min(row[1], z)
    row[2] = max(row[2], z + 1)
    row[3] = min(row[3], y)
    row[4] = max(row[4], y + 1)
    row[5] = min(row[5], start)
    row[6] = max(row[6], end)


@kernel(COUNTS(WORDS))
def extents(words):
    """Number of voxels and box of every value of a label map.

    Parameters
    ----------
    words
        From `as_words`.

    Returns
    -------
    int64 (256, 7)
        For each value: voxels, then the half-open box z0, z1, y0, y1, x0, x1. The background's
        row is not filled; a value without voxels has no valid box.
    """
    depth, height, width = words.shape
    table = np.zeros((256, 7), np.int64)
    for axis in (1, 3, 5):
        table[:, axis] = 1 << 62
    for z in range(depth):
        for y in range(height):
            value, start, uniform = 0, 0, ZERO
            for i in range(width):
                word = words[z, y, i]
                if word == uniform:
                    continue
                for j in range(8):
                    here = np.int64((word >> np.uint64(8 * j)) & BYTE)
                    if here == value:
                        continue
                    if value:
                        _add_run(table, value, z, y, start, 8 * i + j)
                    value, start = here, 8 * i + j
                uniform = np.uint64(value) * ONES
            if value:
                _add_run(table, value, z, y, start, 8 * width)
    return table


def values_in(labels: np.ndarray) -> set[int]:
    """Which values besides 0 a label map (uint8) has; much faster than `np.unique`."""
    return set(np.flatnonzero(extents(as_words(labels))[:, 0]).tolist())


@numba.njit
def _ones_in(word):
    """Number of bits set in a word."""
    word -= (word >> ONE) & np.uint64(0x5555555555555555)
    low = np.uint64(0x3333333333333333)
    word = (word & low) + ((word >> np.uint64(2)) & low)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * ONES) >> np.uint64(56))


@numba.njit
def _bits_of(word, pattern):
    """Eight bits: which of a word's bytes equal the pattern's."""
    if word == ZERO:
        return ZERO
    differing = word ^ pattern
    nonzero = ((differing & LOW_BITS) + LOW_BITS) | differing
    return (((~nonzero >> SEVEN) & ONES) * GATHER) >> np.uint64(56)


@numba.njit
def _shifted(row, w):
    """A row's word moved by one voxel, so that bit k holds voxel k - 1."""
    return (row[w] << ONE) | (row[w - 1] >> LAST)


@numba.njit
def _is_near(surface, z, y, x, reach):
    """Is an element of a surface within reach of corner (z, y, x)?"""
    depth, height, width = surface.shape
    for r in range(len(reach)):
        other_z, other_y = z + reach[r, 0], y + reach[r, 1]
        if other_z < 0 or other_z >= depth or other_y < 0 or other_y >= height:
            continue
        row = surface[other_z, other_y]
        low = max(x - reach[r, 2], 0)
        high = min(x + reach[r, 2], 64 * width - 1)
        first, last = low >> 6, high >> 6
        from_low = ALL << np.uint64(low & 63)
        to_high = ALL >> np.uint64(63 - (high & 63))
        if first == last:
            if row[first] & from_low & to_high:
                return True
            continue
        if row[first] & from_low or row[last] & to_high:
            return True
        for w in range(first + 1, last):
            if row[w]:
                return True
    return False


# Patterns of the 2x2x2 neighbours (bits of a code, see `compare`) and their marching-cubes
# triangles as area vectors along z, y and x in eighths of a voxel's faces, signs left out. All
# other codes are mirror images, rotations or complements of these; facts from the tables of
# DeepMind's surface-distance.
PATTERNS = (
    (0b10000000, ((1, 1, 1),)),
    (0b11000000, ((2, 2, 0), (2, 2, 0))),
    (0b01100000, ((1, 1, 1), (1, 1, 1))),
    (0b11100000, ((4, 0, 0), (2, 2, 2), (1, 1, 1))),
    (0b11110000, ((4, 0, 0), (4, 0, 0))),
    (0b01101000, ((1, 1, 1), (1, 1, 1), (1, 1, 1))),
    (0b11101000, ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1))),
    (0b00011000, ((1, 1, 1), (1, 1, 1))),
    (0b10011000, ((0, 2, 2), (0, 2, 2), (1, 1, 1))),
    (0b11011000, ((3, 3, 3), (2, 0, 2), (0, 2, 2), (1, 1, 1))),
    (0b01111000, ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1))),
    (0b00111100, ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))),
    (0b10010110, ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))),
)


@cache
def _triangles() -> np.ndarray:
    """Area vectors of the triangles of all codes: int64 (256, 4, 3), unused ones zero."""
    table = np.zeros((256, 4, 3), np.int64)
    corners = list(product((0, 1), repeat=3))
    for axes, flips in product(permutations(range(3)), corners):
        turned = [[corner[axes[i]] ^ flips[i] for i in range(3)] for corner in corners]
        moved = [4 * z + 2 * y + x for z, y, x in turned]
        for pattern, vectors in PATTERNS:
            code = sum(1 << moved[i] for i in range(8) if pattern >> i & 1)
            for same in (code, 255 - code):
                table[same, : len(vectors)] = np.array(vectors)[:, axes]
    return table


def areas_of(spacing: tuple[float, float, float]) -> np.ndarray:
    """Area of the surface elements of all codes in mm²: float64 (256,)."""
    z, y, x = spacing
    vectors = _triangles() / 8 * (y * x, z * x, z * y)
    return np.sqrt((vectors**2).sum(axis=2)).sum(axis=1)


def reach_of(
    tolerance: float, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> np.ndarray:
    """Offsets between corners that are at most `tolerance` mm apart, as runs along x.

    The arithmetic is that of scipy's `distance_transform_edt` on an array in x, y, z order, which
    the official scripts use: float64, squares added in that order, then the root. Ties at the
    tolerance depend on it.

    Parameters
    ----------
    tolerance, spacing
        In mm; spacing along z, y, x.
    shape
        Of the box, in voxels: no offset is larger.

    Returns
    -------
    int64 (n, 3)
        Along z, along y, and the largest along x; the nearest first.
    """
    sizes = [min(shape[i], int(tolerance / spacing[i]) + 1) + 1 for i in range(3)]
    z, y, x = np.ogrid[: sizes[0], : sizes[1], : sizes[2]]
    squares = [(z * spacing[0]) ** 2, (y * spacing[1]) ** 2, (x * spacing[2]) ** 2]
    distance = np.sqrt(squares[2] + squares[1] + squares[0])
    widths = (distance <= tolerance).sum(axis=2) - 1
    rows = [
        (distance[z, y, 0], sign_z * z, sign_y * y, widths[z, y])
        for z, y in np.argwhere(widths >= 0)
        for sign_z in ((1, -1) if z else (1,))
        for sign_y in ((1, -1) if y else (1,))
    ]
    return np.array([row[1:] for row in sorted(rows)], np.int64)


@kernel(
    types.Tuple((types.Array(types.int64, 1, "C"), ELEMENTS))(
        WORDS, WORDS, types.int64, types.Array(types.int64, 1, "C"), COUNTS
    )
)
def compare(prediction, reference, value, box, reach):
    """Count voxels and surface elements of one class in two label maps.

    Parameters
    ----------
    prediction, reference
        From `as_words`, of one shape.
    value
        The class.
    box
        int64 z0, z1, y0, y1, x0, x1, half-open, at least as large as the class in y and x; slices
        outside do not count.
    reach
        From `reach_of`.

    Returns
    -------
    voxels
        int64 (3,): in the prediction, in the reference, in both.
    elements
        int64 (2, 2, 256): of the prediction's and the reference's surface, all elements and those
        that are within reach of the other surface, by code. Bit 4·dz + 2·dy + dx of a code is
        set if voxel (z - 1 + dz, y - 1 + dy, x - 1 + dx) belongs to the class.
    """
    z0, y0 = box[0], box[2]
    depth, height = box[1] - z0, box[3] - y0
    i0, i1 = box[4] >> 3, (box[5] + 7) >> 3
    width = ((i1 - i0) >> 3) + 1  # words in a row; the last corner may need one more
    pattern = np.uint64(value) * ONES
    # One empty slice and row on either side, one empty word before each row.
    masks = np.zeros((2, depth + 2, height + 2, width + 1), np.uint64)
    for z in range(depth):
        for y in range(height):
            for i in range(i0, i1):
                w, shift = 1 + ((i - i0) >> 3), np.uint64(8 * ((i - i0) & 7))
                bits = _bits_of(prediction[z0 + z, y0 + y, i], pattern)
                masks[0, z + 1, y + 1, w] |= bits << shift
                bits = _bits_of(reference[z0 + z, y0 + y, i], pattern)
                masks[1, z + 1, y + 1, w] |= bits << shift

    voxels = np.zeros(3, np.int64)
    for z in range(1, depth + 1):
        for y in range(1, height + 1):
            for w in range(1, width + 1):
                voxels[0] += _ones_in(masks[0, z, y, w])
                voxels[1] += _ones_in(masks[1, z, y, w])
                voxels[2] += _ones_in(masks[0, z, y, w] & masks[1, z, y, w])

    surfaces = np.zeros((2, depth + 1, height + 1, width), np.uint64)
    for m in range(2):
        for z in range(depth + 1):
            for y in range(height + 1):
                a, b = masks[m, z, y], masks[m, z, y + 1]
                c, d = masks[m, z + 1, y], masks[m, z + 1, y + 1]
                any_before, all_before = ZERO, ZERO
                for w in range(1, width + 1):
                    any_here = a[w] | b[w] | c[w] | d[w]
                    all_here = a[w] & b[w] & c[w] & d[w]
                    some = any_here | (any_here << ONE) | (any_before >> LAST)
                    full = all_here & ((all_here << ONE) | (all_before >> LAST))
                    surfaces[m, z, y, w - 1] = some & ~full
                    any_before, all_before = any_here, all_here

    elements = np.zeros((2, 2, 256), np.int64)
    for m in range(2):
        for z in range(depth + 1):
            for y in range(height + 1):
                a, b = masks[m, z, y], masks[m, z, y + 1]
                c, d = masks[m, z + 1, y], masks[m, z + 1, y + 1]
                for w in range(width):
                    left = surfaces[m, z, y, w]
                    if left == ZERO:
                        continue
                    common = surfaces[1 - m, z, y, w]
                    a0, a1 = _shifted(a, w + 1), a[w + 1]
                    b0, b1 = _shifted(b, w + 1), b[w + 1]
                    c0, c1 = _shifted(c, w + 1), c[w + 1]
                    d0, d1 = _shifted(d, w + 1), d[w + 1]
                    while left:
                        lowest = left & (~left + ONE)
                        k = np.uint64(_ones_in(lowest - ONE))
                        left ^= lowest
                        code = np.int64(
                            ((a0 >> k) & ONE)
                            | (((a1 >> k) & ONE) << np.uint64(1))
                            | (((b0 >> k) & ONE) << np.uint64(2))
                            | (((b1 >> k) & ONE) << np.uint64(3))
                            | (((c0 >> k) & ONE) << np.uint64(4))
                            | (((c1 >> k) & ONE) << np.uint64(5))
                            | (((d0 >> k) & ONE) << np.uint64(6))
                            | (((d1 >> k) & ONE) << np.uint64(7))
                        )
                        elements[m, 0, code] += 1
                        if common & lowest or _is_near(
                            surfaces[1 - m], z, y, 64 * w + np.int64(k), reach
                        ):
                            elements[m, 1, code] += 1
    return voxels, elements


def dsc_and_nsd(
    prediction: np.ndarray,
    reference: np.ndarray,
    value: int,
    box: np.ndarray,
    tolerance: float,
    spacing: tuple[float, float, float],
) -> tuple[float, float]:
    """Unrounded DSC and NSD of a class.

    Parameters
    ----------
    prediction, reference, value, box
        See `compare`; one of the masks must not be empty in the box.
    tolerance, spacing
        In mm; spacing along z, y, x.
    """
    reach = reach_of(tolerance, spacing, box[1::2] - box[::2])
    voxels, elements = compare(prediction, reference, value, box, reach)
    total, near = (elements @ areas_of(spacing)).sum(axis=0)
    return 2 * voxels[2] / (voxels[0] + voxels[1]), near / total
