"""From scores on the network's grid to labels on the image's, a slice at a time.

``smooth`` interpolates every output's scores and takes the highest, as nnU-Net does; ``nearest``
takes the label of the nearest voxel of the network's grid, as the fastest mode of the FLARE23
method does. Both are one computation: the second has weights of 0 and 1.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numba import types

from panorgan.io.compiled import kernel
from panorgan.nnunet.resampling import nearest, positions
from panorgan.problems import Problems

NO_NUMBERS = (
    "the network's scores are not all numbers",
    "copy the model again, or take precision fp32",
)

Along = tuple[np.ndarray, np.ndarray]
"""For each new voxel of an axis the lower one of the two between which it lies, and the upper
one's weight."""

SCORES = types.Array(types.float32, 3, "C", readonly=True)
LABELS = types.Array(types.uint8, 2, "C")
INDICES = types.Array(types.int64, 1, "C", readonly=True)
FRACTIONS = types.Array(types.float32, 1, "C", readonly=True)


def along(old: int, new: int, *, linear: bool) -> Along:
    """Between which of `old` voxels each of `new` ones lies, the outermost repeated outside."""
    if not linear:
        return np.array(nearest(old, new)), np.zeros(new, np.float32)
    place = positions(old, new).clip(0, old - 1)
    lower = np.minimum(np.floor(place).astype(np.int64), max(0, old - 2))
    return lower, (place - lower).astype(np.float32)


class Export:
    """Labels on the image's grid.

    Parameters
    ----------
    size, new_size
        (z, y, x) on the network's grid and on that of the (cropped) image.
    smooth
        Interpolate scores; else nearest voxels.
    apart
        The axis across which slices lie so far apart that the nearest one is taken; or None.
    softmax
        Whether scores are probabilities already.
    """

    def __init__(
        self,
        size: Sequence[int],
        new_size: Sequence[int],
        *,
        smooth: bool,
        apart: int | None = None,
        softmax: bool = False,
    ):
        self._along = [
            along(old, new, linear=smooth and axis != apart)
            for axis, (old, new) in enumerate(zip(size, new_size, strict=True))
        ]
        self._plane = tuple(new_size[1:])
        self._softmax = softmax

    def slices(
        self, scores: Iterator[np.ndarray], probabilities: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Labels of one slice of the image after the other.

        Parameters
        ----------
        scores
            Gives (y, x, outputs) float32 of one slice of the network's grid after the other, valid
            until the next.
        probabilities
            Whether to tell how probable the labels are.

        Yields
        ------
        (y, x) uint8 array
        (y, x) float32 array or None
            The soft-max of the label's output, 0 where the label is background.
        """
        kept: dict[int, np.ndarray] = {}
        reached = -1
        made_of: tuple[int, float] | None = None
        for lower, weight in zip(*self._along[0], strict=True):
            wanted = [lower, lower + 1] if weight else [lower]
            kept = {number: kept[number] for number in kept if number >= lower}
            while reached < wanted[-1]:
                reached += 1
                found = next(scores)
                if reached >= lower:
                    kept[reached] = self._copied(found)
            if made_of != (lower, weight):
                upper = kept[lower + 1] if weight else None
                made = self._labelled(kept[lower], upper, weight, probabilities)
                made_of = lower, weight
            yield made
        for _ in scores:
            pass  # slices beyond the last that counts

    @staticmethod
    def _copied(scores: np.ndarray) -> np.ndarray:
        return scores.copy()

    def _labelled(
        self, lower: np.ndarray, upper: np.ndarray | None, weight: float, probabilities: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of a slice between two, or on one, and where wanted their probabilities.

        Raises
        ------
        Problems
            If scores are not all numbers.
        """
        mixed = lower if upper is None else mix(lower, upper, weight)
        winners = np.empty(mixed.shape[:2], np.uint8)
        if not highest(mixed, winners):
            raise Problems.one(*NO_NUMBERS)
        in_plane = *self._along[1], *self._along[2]
        labels = np.empty(self._plane, np.uint8)
        interpolate(mixed, winners, *in_plane, labels)
        if not probabilities:
            return labels, None
        found = np.zeros(self._plane, np.float32)
        if labels.any():
            share(mixed, *in_plane, labels, self._softmax, found)
        return labels, found


PLANE = types.Array(types.float32, 3, "C")


@kernel(PLANE(SCORES, SCORES, types.float32))
def mix(lower, upper, weight):
    """(1 - weight) * lower + weight * upper."""
    out = np.empty(lower.shape, np.float32)
    first, second, third = lower.reshape(-1), upper.reshape(-1), out.reshape(-1)
    for n in range(len(third)):
        third[n] = first[n] + weight * (second[n] - first[n])
    return out


@kernel(types.boolean(SCORES, LABELS))
def highest(scores, out):
    """The output of the highest score, the first of equal ones; whether all scores are numbers."""
    height, width, outputs = scores.shape
    finite = True
    for i in range(height):
        for j in range(width):
            best, winner = scores[i, j, 0], 0
            total = best
            for c in range(1, outputs):
                total += scores[i, j, c]
                if scores[i, j, c] > best:
                    best, winner = scores[i, j, c], c
            out[i, j] = winner
            finite &= np.isfinite(total)
    return finite


@kernel(types.void(SCORES, LABELS, INDICES, FRACTIONS, INDICES, FRACTIONS, LABELS))
def interpolate(scores, winners, ys, y_weights, xs, x_weights, out):
    """The output whose bilinearly interpolated score is highest.

    Where the corners that count have one winner it is that: no other can overtake it between them.
    """
    outputs = scores.shape[2]
    last_y, last_x = scores.shape[0] - 1, scores.shape[1] - 1
    for i in range(out.shape[0]):
        y, v = ys[i], y_weights[i]
        y1 = min(y + 1, last_y) if v > 0 else y
        for j in range(out.shape[1]):
            x, u = xs[j], x_weights[j]
            x1 = min(x + 1, last_x) if u > 0 else x
            label = winners[y, x]
            if label == winners[y, x1] and label == winners[y1, x] and label == winners[y1, x1]:
                out[i, j] = label
                continue
            a, b = (np.float32(1) - v) * (np.float32(1) - u), (np.float32(1) - v) * u
            c, d = v * (np.float32(1) - u), v * u
            best, winner = np.float32(-np.inf), 0
            for k in range(outputs):
                value = (
                    a * scores[y, x, k]
                    + b * scores[y, x1, k]
                    + c * scores[y1, x, k]
                    + d * scores[y1, x1, k]
                )
                if value > best:
                    best, winner = value, k
            out[i, j] = winner


@kernel(
    types.void(
        *(SCORES, INDICES, FRACTIONS, INDICES, FRACTIONS, LABELS),
        *(types.boolean, types.Array(types.float32, 2, "C")),
    )
)
def share(scores, ys, y_weights, xs, x_weights, labels, softmax, out):
    """The soft-max of each label's output at its interpolated scores; of probabilities, theirs."""
    outputs = scores.shape[2]
    last_y, last_x = scores.shape[0] - 1, scores.shape[1] - 1
    values = np.empty(outputs, np.float32)
    for i in range(out.shape[0]):
        y, v = ys[i], y_weights[i]
        y1 = min(y + 1, last_y) if v > 0 else y
        for j in range(out.shape[1]):
            label = labels[i, j]
            if label == 0:
                continue
            x, u = xs[j], x_weights[j]
            x1 = min(x + 1, last_x) if u > 0 else x
            for k in range(outputs):
                above = scores[y, x, k] + u * (scores[y, x1, k] - scores[y, x, k])
                below = scores[y1, x, k] + u * (scores[y1, x1, k] - scores[y1, x, k])
                values[k] = above + v * (below - above)
            if softmax:
                out[i, j] = values[label]
                continue
            total = np.float32(0)
            for k in range(outputs):
                total += np.exp(values[k] - values[label])
            out[i, j] = np.float32(1) / total
