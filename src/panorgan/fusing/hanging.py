"""Which voxels of a label map hang together by faces, edges or corners.

The map is taken row by row: runs of one value touch those of the four rows before that are
neighbours of theirs, and what touches has one number in the end.
"""

import numpy as np
from numba import types

from panorgan.io.compiled import kernel

LABEL = types.Array(types.uint8, 3, "C")
NUMBERS = types.Array(types.int32, 1, "C")
COUNTS = types.Array(types.int64, 1, "C")
TRIPLES = types.Array(types.int64, 2, "C")


@kernel(types.Tuple((NUMBERS, COUNTS, COUNTS, TRIPLES, TRIPLES, TRIPLES))(LABEL))
def number_pieces(label):
    """Number the pieces of every value but 0 from 1, in the order of their first voxels.

    Parameters
    ----------
    label : (z, y, x) uint8
        In C order.

    Returns
    -------
    numbers : (n,) int32
        The piece of each voxel that is not 0, in C order.
    firsts : (k,) int64
        For each piece the place of its first voxel in `numbers`.
    voxels : (k,) int64
        How many it has.
    lowest, highest : (k, 3) int64
        Least and largest z, y and x of them.
    sums : (k, 3) int64
        All of their z, y and x added up.
    """
    depth, height, width = label.shape
    runs = voxels_in_all = 0
    for z in range(depth):
        for y in range(height):
            before = 0
            for x in range(width):
                value = label[z, y, x]
                if value:
                    voxels_in_all += 1
                    runs += value != before
                before = value

    # Runs by number: their ends, and a run of the same piece with a lower number, or their own.
    starts, stops = np.empty(runs, np.int64), np.empty(runs, np.int64)
    values, lower = np.empty(runs, np.uint8), np.arange(runs)
    row_starts = np.zeros(depth * height + 1, np.int64)
    run = 0
    for z in range(depth):
        for y in range(height):
            row = z * height + y
            before = 0
            for x in range(width):
                value = label[z, y, x]
                if value != before:
                    if before:
                        stops[run - 1] = x
                    if value:
                        starts[run], values[run] = x, value
                        run += 1
                before = value
            if before:
                stops[run - 1] = width
            row_starts[row + 1] = run
            for neighbour in range(4):
                if neighbour == 0:
                    dz, dy = 0, -1
                else:
                    dz, dy = -1, neighbour - 2
                if z + dz < 0 or not 0 <= y + dy < height:
                    continue
                other = (z + dz) * height + y + dy
                a, a_end = row_starts[row], row_starts[row + 1]
                b, b_end = row_starts[other], row_starts[other + 1]
                while a < a_end and b < b_end:
                    if starts[a] <= stops[b] and starts[b] <= stops[a]:
                        first, second = a, b
                        # Where both end at once, each touches the other's next one by a corner.
                        for _ in range(2):
                            if values[first] == values[second]:
                                while lower[first] != first:
                                    lower[first] = lower[lower[first]]
                                    first = lower[first]
                                while lower[second] != second:
                                    lower[second] = lower[lower[second]]
                                    second = lower[second]
                                lower[max(first, second)] = min(first, second)
                            if stops[a] != stops[b] or a + 1 == a_end or starts[a + 1] != stops[b]:
                                break
                            first, second = a + 1, b
                    if stops[a] < stops[b]:
                        a += 1
                    else:
                        b += 1

    pieces = 0
    piece_of = np.empty(runs, np.int64)
    for run in range(runs):
        if lower[run] == run:
            piece_of[run] = pieces
            pieces += 1
        else:
            piece_of[run] = piece_of[lower[run]]
    numbers = np.empty(voxels_in_all, np.int32)
    firsts, voxels = np.full(pieces, -1, np.int64), np.zeros(pieces, np.int64)
    lowest, highest = np.empty((pieces, 3), np.int64), np.full((pieces, 3), -1, np.int64)
    sums = np.zeros((pieces, 3), np.int64)
    place = 0
    for row in range(depth * height):
        z, y = divmod(row, height)
        for run in range(row_starts[row], row_starts[row + 1]):
            piece, start, stop = piece_of[run], starts[run], stops[run]
            length = stop - start
            numbers[place : place + length] = piece + 1
            if voxels[piece] == 0:
                firsts[piece] = place
                lowest[piece, 0], lowest[piece, 1], lowest[piece, 2] = z, y, start
            lowest[piece, 1] = min(lowest[piece, 1], y)
            lowest[piece, 2] = min(lowest[piece, 2], start)
            highest[piece, 0] = z
            highest[piece, 1] = max(highest[piece, 1], y)
            highest[piece, 2] = max(highest[piece, 2], stop - 1)
            voxels[piece] += length
            sums[piece, 0] += z * length
            sums[piece, 1] += y * length
            sums[piece, 2] += (start + stop - 1) * length // 2
            place += length
    return numbers, firsts, voxels, lowest, highest, sums
