"""nnU-Net's sliding window, band by band: scores of a few slices exist at a time."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product

import numba
import numpy as np
from numba import types
from scipy.ndimage import gaussian_filter

from panorgan.inference.engines import Engine, as_float32
from panorgan.io.compiled import kernel

PEAK = 10.0
"""Weight of a tile's centre. Of no effect but on rounding; nnU-Net's."""

SUMS = types.Array(types.float32, 4, "C")
FLOATS = types.Array(types.float32, 4, "C", readonly=True)
BITS = types.Array(types.uint16, 4, "C", readonly=True)
WEIGHTS = types.Array(types.float32, 3, "C", readonly=True)


def tile_starts(
    size: Sequence[int], patch_size: Sequence[int], tile_step: float
) -> list[list[int]]:
    """Where tiles begin on each axis: nnU-Net's ``compute_steps_for_sliding_window``."""
    starts = []
    for length, patch in zip(size, patch_size, strict=True):
        count = math.ceil((length - patch) / (patch * tile_step)) + 1
        step = (length - patch) / max(1, count - 1)
        starts.append([int(np.round(step * number)) for number in range(count)])
    return starts


@lru_cache(maxsize=2)
def tile_weights(patch_size: tuple[int, ...]) -> np.ndarray:
    """Float32 weights of a tile's voxels, highest in the middle: nnU-Net's ``compute_gaussian``.

    The array is shared: it is not to be written to.
    """
    centre = np.zeros(patch_size)
    centre[tuple(size // 2 for size in patch_size)] = 1
    weights = gaussian_filter(centre, [size / 8 for size in patch_size], mode="constant")
    weights = (weights * (PEAK / weights.max())).astype(np.float32)
    return np.where(weights == 0, weights[weights > 0].min(), weights)


class Window:
    """A sliding window over an image of one size.

    Parameters
    ----------
    size
        (z, y, x) of the image on the network's grid.
    patch_size
        Of a tile, (z, y, x), or (y, x): then each slice is a band of its own.
    outputs
        Of the network.
    tile_step
        Largest step between tiles, in patch sizes.
    softmax
        Average probabilities over tiles, as nnU-Net 1, instead of logits.

    Attributes
    ----------
    tiles : int
        How many there are.
    bytes : int
        What sums and input of a band take.
    """

    def __init__(
        self,
        size: Sequence[int],
        patch_size: Sequence[int],
        outputs: int,
        tile_step: float,
        softmax: bool = False,
    ):
        self._flat = len(patch_size) == 2
        self._patch = (1, *patch_size) if self._flat else tuple(patch_size)
        self._size = tuple(size)
        self._outputs, self._softmax = outputs, softmax
        # As nnU-Net pads what is smaller than a tile.
        self._before = [
            max(0, patch - length) // 2 for length, patch in zip(size, self._patch, strict=True)
        ]
        self._padded = tuple(map(max, size, self._patch))
        self._starts = tile_starts(self._padded, self._patch, tile_step)
        if self._flat:
            self._starts[0] = list(range(size[0]))
        self._weights = tile_weights(tuple(patch_size)).reshape(self._patch)
        self._last_total: tuple[list[int], np.ndarray] = [], np.empty(0)
        self.tiles = math.prod(map(len, self._starts))
        voxels = self._patch[0] * math.prod(self._padded[1:])
        self.bytes = 4 * voxels * (outputs + 2)

    def scores(
        self,
        engines: Sequence[Engine],
        read: Callable[[int, int], np.ndarray],
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """Scores of one slice after the other.

        Parameters
        ----------
        engines
            Networks of the same plan; the mean of their scores is taken.
        read
            Gives slices `start` to `stop` of the image, as `panorgan.nnunet.preprocess.Bands`.
        tick
            Called after each tile of each network.

        Yields
        ------
        (y, x, outputs) float32 array
            Means of logits, or of probabilities. It is valid until the next one.
        """
        depth, *plane = self._patch[0], *self._padded[1:]
        # A slice's place is its number modulo the depth: what is done makes room for what comes.
        sums = np.zeros((depth, *plane, self._outputs), np.float32)
        inside = tuple(
            slice(before, before + length)
            for before, length in zip(self._before[1:], self._size[1:], strict=True)
        )
        first = self._before[0]
        # One stream of tiles over all bands: an engine never waits for the end of one.
        streams = [
            engine.scores(tiles)
            for engine, tiles in zip(engines, _shared(self._tiles(read), len(engines)), strict=True)
        ]
        for number, start in enumerate(self._starts[0]):
            for y, x in product(*self._starts[1:]):
                for stream in streams:
                    self._add(next(stream), start, y, x, sums)
                    tick()
            last = number + 1 == len(self._starts[0])
            done = self._padded[0] if last else self._starts[0][number + 1]
            for z in range(start, done):
                place = z % depth
                if first <= z < first + self._size[0]:
                    sums[place] /= (self._total(z) * len(engines))[..., None]
                    yield np.ascontiguousarray(sums[place][inside])
                sums[place] = 0

    def _total(self, z: int) -> np.ndarray:
        """(y, x) weights of all tiles of a slice."""
        depth, height, width = self._patch
        within = [z - start for start in self._starts[0] if start <= z < start + depth]
        if within == self._last_total[0]:
            return self._last_total[1]
        total = np.zeros(self._padded[1:], np.float32)
        for place in within:
            for y, x in product(*self._starts[1:]):
                total[y : y + height, x : x + width] += self._weights[place]
        self._last_total = within, total
        return total

    def _band(self, read: Callable[[int, int], np.ndarray], start: int) -> np.ndarray:
        """(z, y, x) of a band, padded with 0, what is the mean after normalisation."""
        depth, before, length = self._patch[0], self._before[0], self._size[0]
        inner = max(0, start - before), min(length, start - before + depth)
        found = read(*inner)
        if found.shape == (depth, *self._padded[1:]):
            return found
        band = np.zeros((depth, *self._padded[1:]), np.float32)
        (y, x), (height, width) = self._before[1:], self._size[1:]
        z = inner[0] + before - start
        band[z : z + len(found), y : y + height, x : x + width] = found
        return band

    def _tiles(self, read: Callable[[int, int], np.ndarray]) -> Iterator[np.ndarray]:
        """All tiles, band after band."""
        _, height, width = self._patch
        for start in self._starts[0]:
            band = self._band(read, start)
            for y, x in product(*self._starts[1:]):
                tile = band[:, y : y + height, x : x + width]
                # (channels, y, x) with the slice as the one channel, or (channels, z, y, x)
                yield np.ascontiguousarray(tile if self._flat else tile[None])
            del band, tile  # before the next is made

    def _add(
        self,
        found: np.ndarray,
        start: int,
        y: int,
        x: int,
        sums: np.ndarray,
    ) -> None:
        found = found.reshape(*self._patch, self._outputs)
        if self._softmax:
            found = _softmax(found)
        add = add_floats if found.dtype == np.float32 else add_bits
        add(found, self._weights, start, y, x, sums)


def _shared(tiles: Iterator[np.ndarray], count: int) -> list[Iterator[np.ndarray]]:
    """So many iterators over the same tiles, which keep what one of them has not had yet.

    `itertools.tee` would keep up to 56 more: 180 MB.
    """
    waiting = [deque[np.ndarray]() for _ in range(count)]

    def each(own: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if not own:
                if (tile := next(tiles, None)) is None:
                    return
                for other in waiting:
                    other.append(tile)
                del tile
            yield own.popleft()

    return [each(own) for own in waiting]


def _softmax(found: np.ndarray) -> np.ndarray:
    found = as_float32(found)
    found = np.exp(found - found.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


@numba.njit
def _add_row(values, weights, spread, sums):
    """Add the weighted scores of a row of voxels; `spread` has room for a weight a score."""
    width = len(weights)
    outputs = len(values) // width
    for j in range(width):
        for c in range(outputs):
            spread[j * outputs + c] = weights[j]
    for n in range(len(values)):
        sums[n] += spread[n] * values[n]


@kernel(types.void(FLOATS, WEIGHTS, *[types.int64] * 3, SUMS))
def add_floats(found, weights, start, y, x, sums):
    """Add a tile's weighted scores where the tile lies; slices modulo the depth."""
    depth, height, width, outputs = found.shape
    spread = np.empty(width * outputs, np.float32)
    for k in range(depth):
        place = (start + k) % depth
        for i in range(height):
            row = sums[place, y + i].reshape(-1)[x * outputs : (x + width) * outputs]
            _add_row(found[k, i].reshape(-1), weights[k, i], spread, row)


@kernel(types.void(BITS, WEIGHTS, *[types.int64] * 3, SUMS))
def add_bits(found, weights, start, y, x, sums):
    """`add_floats` of bfloat16, whose bits are the upper half of a float32's."""
    depth, height, width, outputs = found.shape
    spread = np.empty(width * outputs, np.float32)
    bits = np.empty(width * outputs, np.uint32)
    for k in range(depth):
        place = (start + k) % depth
        for i in range(height):
            half = found[k, i].reshape(-1)
            for n in range(len(half)):
                bits[n] = np.uint32(half[n]) << np.uint32(16)
            row = sums[place, y + i].reshape(-1)[x * outputs : (x + width) * outputs]
            _add_row(bits.view(np.float32), weights[k, i], spread, row)
