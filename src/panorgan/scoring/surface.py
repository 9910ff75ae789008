"""Voxels, surface elements and their distances, counted for one class of two label maps.

The surface of a mask is what DeepMind's surface-distance calls it: every corner between voxels
looks at its 2x2x2 neighbours, whose pattern is a code of 8 bits; all codes but "none" and "all
eight" are surface elements, with the area of the marching-cubes triangles of that code. Whatever
lies beyond the array is outside of the mask.

Masks and surfaces are rows of bits here, 64 corners in a word. For DSC and NSD the kernels only
count, in integers: how many elements there are of each code, and of how many the other surface is
near; areas come last. For HD95 the distances count: the near ones are looked for offset by offset,
64 corners at once, and only where those are not enough by a distance transform of every slice. One
thread; importing this module loads or compiles the kernels.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations, product

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from panorgan.io.compiled import kernel

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
BITS = types.Array(types.uint64, 4, "C")

HD_SHARE = 0.95
"""Share of a surface's area that the Hausdorff distance looks at: HD95."""
NEAR_MM, MOST_OFFSETS = 10.0, 2048
"""Up to this distance, and not among more offsets, many elements are looked for at once."""


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


@intrinsic
def _ones_in(context, word):
    """Number of bits set in a word."""
    return types.int64(types.uint64), lambda ctx, builder, sig, args: builder.ctpop(args[0])


@intrinsic
def _trailing_zeros(context, word):
    """The place of the lowest bit that is set."""
    return types.int64(types.uint64), lambda ctx, builder, sig, args: builder.cttz(
        args[0], ir.Constant(ir.IntType(1), 0)
    )


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


# Patterns of the 2x2x2 neighbours (bits of a code, see `count_elements`) and their marching-cubes
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
    types.Tuple((BITS, BITS))(
        WORDS, WORDS, types.int64, types.Array(types.int64, 1, "C", readonly=True)
    )
)
def outline(prediction, reference, value, box):
    """The masks of one class in two label maps, and their surfaces.

    Parameters
    ----------
    prediction, reference
        From `as_words`, of one shape.
    value
        The class.
    box
        int64 z0, z1, y0, y1, x0, x1, half-open, at least as large as the class in y and x; slices
        outside do not count.

    Returns
    -------
    masks
        uint64 (2, z + 2, y + 2, w + 1): bits of the voxels of the prediction and the reference,
        with an empty slice and row on either side and an empty word before each row.
    surfaces
        uint64 (2, z + 1, y + 1, w): bits of the corners that are surface elements.
    """
    z0, y0 = box[0], box[2]
    depth, height = box[1] - z0, box[3] - y0
    i0, i1 = box[4] >> 3, (box[5] + 7) >> 3
    width = ((i1 - i0) >> 3) + 1  # words in a row; the last corner may need one more
    pattern = np.uint64(value) * ONES
    masks = np.zeros((2, depth + 2, height + 2, width + 1), np.uint64)
    for z in range(depth):
        for y in range(height):
            for i in range(i0, i1):
                w, shift = 1 + ((i - i0) >> 3), np.uint64(8 * ((i - i0) & 7))
                bits = _bits_of(prediction[z0 + z, y0 + y, i], pattern)
                masks[0, z + 1, y + 1, w] |= bits << shift
                bits = _bits_of(reference[z0 + z, y0 + y, i], pattern)
                masks[1, z + 1, y + 1, w] |= bits << shift

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
    return masks, surfaces


@kernel(types.Array(types.int64, 1, "C")(BITS))
def count_voxels(masks):
    """Voxels of `outline`'s masks, int64 (3,): in the prediction, in the reference, in both."""
    voxels = np.zeros(3, np.int64)
    for z in range(1, masks.shape[1] - 1):
        for y in range(1, masks.shape[2] - 1):
            for w in range(1, masks.shape[3]):
                voxels[0] += _ones_in(masks[0, z, y, w])
                voxels[1] += _ones_in(masks[1, z, y, w])
                voxels[2] += _ones_in(masks[0, z, y, w] & masks[1, z, y, w])
    return voxels


@numba.njit
def _around(masks, m, z, y, w):
    """The words of a mask that hold the eight neighbours of a word's corners, in a code's order."""
    a, b = masks[m, z, y], masks[m, z, y + 1]
    c, d = masks[m, z + 1, y], masks[m, z + 1, y + 1]
    return (
        _shifted(a, w + 1),
        a[w + 1],
        _shifted(b, w + 1),
        b[w + 1],
        _shifted(c, w + 1),
        c[w + 1],
        _shifted(d, w + 1),
        d[w + 1],
    )


@numba.njit
def _code(around, k):
    """The code of corner k of a word; see `count_elements`."""
    return np.int64(
        ((around[0] >> k) & ONE)
        | (((around[1] >> k) & ONE) << np.uint64(1))
        | (((around[2] >> k) & ONE) << np.uint64(2))
        | (((around[3] >> k) & ONE) << np.uint64(3))
        | (((around[4] >> k) & ONE) << np.uint64(4))
        | (((around[5] >> k) & ONE) << np.uint64(5))
        | (((around[6] >> k) & ONE) << np.uint64(6))
        | (((around[7] >> k) & ONE) << np.uint64(7))
    )


@kernel(ELEMENTS(BITS, BITS, COUNTS))
def count_elements(masks, surfaces, reach):
    """Count surface elements by code.

    Parameters
    ----------
    masks, surfaces
        From `outline`.
    reach
        From `reach_of`.

    Returns
    -------
    int64 (2, 2, 256)
        Of the prediction's and the reference's surface, all elements and those that are within
        reach of the other surface, by code. Bit 4·dz + 2·dy + dx of a code is set if voxel
        (z - 1 + dz, y - 1 + dy, x - 1 + dx) belongs to the class.
    """
    elements = np.zeros((2, 2, 256), np.int64)
    for m in range(2):
        for z in range(surfaces.shape[1]):
            for y in range(surfaces.shape[2]):
                for w in range(surfaces.shape[3]):
                    left = surfaces[m, z, y, w]
                    if left == ZERO:
                        continue
                    common = surfaces[1 - m, z, y, w]
                    around = _around(masks, m, z, y, w)
                    while left:
                        k = _trailing_zeros(left)
                        lowest = ONE << np.uint64(k)
                        left ^= lowest
                        code = _code(around, np.uint64(k))
                        elements[m, 0, code] += 1
                        if common & lowest or _is_near(surfaces[1 - m], z, y, 64 * w + k, reach):
                            elements[m, 1, code] += 1
    return elements


@numba.njit
def _squares_along_row(row, step, squares):
    """Squared distances in mm along a row of bits, with one at least, from each corner to it."""
    last = -1
    for x in range(len(squares)):
        if (row[x >> 6] >> np.uint64(x & 63)) & ONE:
            last = x
        squares[x] = np.inf if last < 0 else ((x - last) * step) ** 2
    last = -1
    for x in range(len(squares) - 1, -1, -1):
        if (row[x >> 6] >> np.uint64(x & 63)) & ONE:
            last = x
        if last >= 0:
            squares[x] = min(squares[x], ((last - x) * step) ** 2)


@numba.njit
def _squares_in_slice(surface, step_y, step_x, along, rows, hull, starts, squares):
    """Squared distances in mm (x, y) in one slice to its elements; False if it has none.

    Along y the lowest of some parabolas: Felzenszwalb and Huttenlocher, Distance Transforms of
    Sampled Functions, Theory of Computing 8, 2012. The arrays after the steps are work space.
    """
    count = 0
    for y in range(surface.shape[0]):
        if surface[y].any():
            _squares_along_row(surface[y], step_x, along[count])
            rows[count] = y * step_y
            count += 1
    if count == 0:
        return False
    for x in range(squares.shape[0]):
        top = 0
        hull[0], starts[0], starts[1] = 0, -np.inf, np.inf
        for q in range(1, count):
            while True:
                h = hull[top]
                start = ((along[q, x] + rows[q] ** 2) - (along[h, x] + rows[h] ** 2)) / (
                    2 * (rows[q] - rows[h])
                )
                if start > starts[top]:
                    break
                top -= 1
            top += 1
            hull[top], starts[top], starts[top + 1] = q, start, np.inf
        top = 0
        for y in range(squares.shape[1]):
            place = y * step_y
            while starts[top + 1] < place:
                top += 1
            squares[x, y] = (place - rows[hull[top]]) ** 2 + along[hull[top], x]
    return True


@kernel(
    types.Tuple((types.Array(types.float64, 1, "C"), types.Array(types.float64, 1, "C")))(
        BITS,
        BITS,
        types.int64,
        types.Array(types.float64, 1, "C"),
        types.Array(types.float64, 1, "C"),
    )
)
def measure_elements(masks, surfaces, m, areas, spacing):
    """Areas and distances of the surface elements of one mask that the other does not share.

    Parameters
    ----------
    masks, surfaces
        From `outline`; the other surface has an element.
    m
        0: from the prediction to the reference; 1: the other way.
    areas
        From `areas_of`.
    spacing
        mm (z, y, x).

    Returns
    -------
    areas
        float64 (n + 1,) in mm²; the last is the sum of those that both surfaces share.
    distances
        float64 (n,) in mm to the nearest element of the other surface.
    """
    other = surfaces[1 - m]
    depth, height, width = other.shape
    count = 0
    for z in range(depth):
        for y in range(height):
            for w in range(width):
                count += _ones_in(surfaces[m, z, y, w] & ~other[z, y, w])
    found, places = np.zeros(count + 1), np.empty((count, 3), np.int32)
    at = 0
    for z in range(depth):
        for y in range(height):
            for w in range(width):
                left = surfaces[m, z, y, w]
                if left == ZERO:
                    continue
                around = _around(masks, m, z, y, w)
                while left:
                    k = np.uint64(_trailing_zeros(left))
                    left ^= ONE << k
                    area = areas[_code(around, k)]
                    if (other[z, y, w] >> k) & ONE:
                        found[count] += area
                        continue
                    found[at] = area
                    places[at, 0], places[at, 1], places[at, 2] = z, y, 64 * w + np.int64(k)
                    at += 1
    best = np.full(count, np.inf)
    along, squares = np.empty((height, 64 * width)), np.empty((64 * width, height))
    rows, hull, starts = np.empty(height), np.empty(height, np.int64), np.empty(height + 1)
    for z in range(depth):
        if _squares_in_slice(other[z], spacing[1], spacing[2], along, rows, hull, starts, squares):
            for i in range(count):
                from_z = ((places[i, 0] - z) * spacing[0]) ** 2
                if from_z < best[i]:
                    best[i] = min(best[i], squares[places[i, 2], places[i, 1]] + from_z)
    return found, np.sqrt(best)


@lru_cache(maxsize=4)  # the classes of a case share a spacing, cases do not
def _offsets(spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """All offsets between corners up to some distance, the nearest first, and their distances.

    Returns
    -------
    offsets
        int64 (n, 3): along z, y and x; the last is meant in both directions.
    distances
        float64 (n,) in mm.
    """
    most = min(NEAR_MM, 63 * spacing[2])  # in a row at most the next word is looked at
    sizes = [int(most / step) + 1 for step in spacing]
    z, y, x = np.mgrid[-sizes[0] : sizes[0] + 1, -sizes[1] : sizes[1] + 1, : sizes[2] + 1]
    distances = np.sqrt((x * spacing[2]) ** 2 + (y * spacing[1]) ** 2 + (z * spacing[0]) ** 2)
    inside = distances <= most
    order = np.argsort(distances[inside], kind="stable")[:MOST_OFFSETS]
    offsets = np.stack([axis[inside][order] for axis in (z, y, x)], axis=1)
    return np.ascontiguousarray(offsets, np.int64), distances[inside][order]


@kernel(
    types.Array(types.float64, 1, "C")(
        BITS, BITS, types.int64, types.Array(types.float64, 1, "C"), COUNTS, types.float64
    )
)
def near_areas(masks, surfaces, m, areas, offsets, most):
    """Area of a surface by the offset to the nearest element of the other one.

    Parameters
    ----------
    masks, surfaces, m, areas
        As for `measure_elements`.
    offsets
        From `_offsets`.
    most
        In mm²: if more than this is further away, the rest is not looked at.

    Returns
    -------
    float64 (n + 1,)
        In mm², for every offset; the last is what is further away.
    """
    sums = np.zeros(len(offsets) + 1)
    other = surfaces[1 - m]
    depth, height, width = other.shape
    for z in range(depth):
        for y in range(height):
            for w in range(width):
                left = surfaces[m, z, y, w]
                if left == ZERO:
                    continue
                around = _around(masks, m, z, y, w)
                for at in range(len(offsets)):
                    other_z, other_y = z + offsets[at, 0], y + offsets[at, 1]
                    if other_z < 0 or other_z >= depth or other_y < 0 or other_y >= height:
                        continue
                    here = other[other_z, other_y, w]
                    dx = np.uint64(offsets[at, 2])
                    if dx:
                        rest = np.uint64(64) - dx
                        here = (here << dx) | (here >> dx)
                        if w:
                            here |= other[other_z, other_y, w - 1] >> rest
                        if w + 1 < width:
                            here |= other[other_z, other_y, w + 1] << rest
                    here &= left
                    left ^= here
                    while here:
                        k = np.uint64(_trailing_zeros(here))
                        here ^= ONE << k
                        sums[at] += areas[_code(around, k)]
                    if left == ZERO:
                        break
                while left:
                    k = np.uint64(_trailing_zeros(left))
                    left ^= ONE << k
                    sums[-1] += areas[_code(around, k)]
                if sums[-1] > most:
                    return sums
    return sums


@dataclass(frozen=True)
class Comparison:
    """One class of two label maps, compared; see `compare`.

    Attributes
    ----------
    dsc
        Unrounded.
    nsd
        Unrounded.
    hd95_mm
        None where it was not asked for, or one of the surfaces is empty.
    """

    dsc: float
    nsd: float
    hd95_mm: float | None


def compare(
    prediction: np.ndarray,
    reference: np.ndarray,
    value: int,
    box: np.ndarray,
    tolerance: float,
    spacing: tuple[float, float, float],
    *,
    with_hd95: bool = True,
) -> Comparison:
    """DSC, NSD and HD95 of a class.

    HD95 is that of DeepMind's surface-distance: the larger of the two distances within which 95 %
    of a surface's area lies from the other surface.

    Parameters
    ----------
    prediction, reference, value, box
        See `outline`; one of the masks must not be empty in the box.
    tolerance, spacing
        In mm; spacing along z, y, x.
    with_hd95
        Whether to measure HD95, which takes longer than all else.
    """
    reach = reach_of(tolerance, spacing, box[1::2] - box[::2])
    areas = areas_of(spacing)
    masks, surfaces = outline(prediction, reference, value, box)
    voxels = count_voxels(masks)
    elements = count_elements(masks, surfaces, reach)
    totals, near = (elements @ areas).T
    hd95 = None
    if with_hd95 and voxels[0] and voxels[1]:
        hd95 = max(_hd95(masks, surfaces, m, areas, totals[m], spacing) for m in range(2))
    dsc = float(2 * voxels[2] / (voxels[0] + voxels[1]))
    return Comparison(dsc, float(near.sum() / totals.sum()), hd95)


def _hd95(
    masks: np.ndarray,
    surfaces: np.ndarray,
    m: int,
    areas: np.ndarray,
    total: float,
    spacing: tuple[float, float, float],
) -> float:
    """HD95 from one surface, of a total area, to the other; see `measure_elements`."""
    offsets, distances = _offsets(spacing)
    # Ties: so near to the share, sums in another order would decide.
    wanted = HD_SHARE * total * (1 - 1e-12)
    sums = near_areas(masks, surfaces, m, areas, offsets, total - wanted)
    reached = np.cumsum(sums[:-1])
    if reached[-1] < wanted:
        found, distances = measure_elements(masks, surfaces, m, areas, np.array(spacing))
        order = np.argsort(distances)
        distances = distances[order]
        reached = found[-1] + np.cumsum(found[:-1][order])
    return float(distances[min(np.searchsorted(reached, wanted), len(distances) - 1)])
