"""A label map whose sums of scores and export are where the network is: on a GPU."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch

from panorgan.inference.engines.torch import TorchEngine
from panorgan.inference.export import NO_NUMBERS, Along, Export
from panorgan.inference.window import Window
from panorgan.problems import Problems


def label_on_device(
    engines: Sequence[TorchEngine],
    read: Callable[[int, int], np.ndarray],
    size: Sequence[int],
    target: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    patch_size: Sequence[int],
    outputs: int,
    tile_step: float,
    smooth: bool,
    apart: int | None = None,
    softmax: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Label an image: what `Window` and `Export` do, but for rounding.

    Parameters
    ----------
    engines
        All on one device.
    read, tick
        As `Window.scores` takes them.
    size, patch_size, outputs, tile_step, softmax
        As `Window` takes them.
    target
        (z, y, x) uint8 on the grid of the (cropped) image, is filled with the labels.
    probabilities
        Of the same size, is filled with those of the labels; 0 where they are background.
    smooth, apart
        As `Export` takes them.

    Raises
    ------
    torch.OutOfMemoryError
        If the device cannot hold the scores; it is then as empty as before.
    Problems
        If the scores are not all numbers.
    """
    window = _DeviceWindow(size, patch_size, outputs, tile_step, softmax)
    export = _DeviceExport(size, target.shape, smooth=smooth, apart=apart, softmax=softmax)
    try:
        scores = window.scores(engines, read, tick)
        for number, (labels, shares) in enumerate(export.slices(scores, probabilities is not None)):
            target[number] = labels.cpu().numpy()
            if probabilities is not None and shares is not None:
                probabilities[number] = shares.cpu().numpy()
    except torch.OutOfMemoryError:
        del scores
        torch.cuda.empty_cache()
        raise


class _DeviceWindow(Window):
    """`Window` with its sums on the networks' device."""

    def scores(
        self,
        engines: Sequence[TorchEngine],
        read: Callable[[int, int], np.ndarray],
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[torch.Tensor]:
        """(outputs, y, x) float32 of one slice after the other, each valid until the next."""
        place = engines[0].place
        # A 2D network gets slices together.
        together = engines[0].at_once if self._flat else 1
        depth = together if self._flat else self._patch[0]
        plane = self._padded[1:]
        # A slice's place is its number modulo the depth, as in `Window`.
        sums = torch.zeros((self._outputs, depth, *plane), device=place)
        weights = torch.from_numpy(self._weights).to(place).expand(depth, -1, -1)
        (top, left), (height, width) = self._before[1:], self._size[1:]
        inside = (..., slice(top, top + height), slice(left, left + width))
        first, starts = self._before[0], self._starts[0]
        for number in range(0, len(starts), together):
            group = starts[number : number + together]
            band = torch.cat(
                [torch.tensor(self._band(read, start), device=place) for start in group]
            )
            for y, x in product(*self._starts[1:]):
                tile = (..., slice(y, y + self._patch[1]), slice(x, x + self._patch[2]))
                images = band[tile][:, None] if self._flat else band[tile][None, None]
                for engine in engines:
                    found = engine.logits(images.contiguous()).float()
                    found = found.softmax(1) if self._softmax else found
                    found = found.movedim(0, 1) if self._flat else found[0]
                    for own, there in _places(group[0], len(band), depth):
                        sums[:, there][tile] += found[:, own] * weights[own]
                    for _ in group:
                        tick()
            last = number + together >= len(starts)
            done = self._padded[0] if last else starts[number + together]
            for z in range(group[0], done):
                if first <= z < first + self._size[0]:
                    sums[:, z % depth] /= torch.from_numpy(self._total(z) * len(engines)).to(place)
                    yield sums[:, z % depth][inside]
                sums[:, z % depth] = 0


def _places(start: int, count: int, depth: int) -> Iterator[tuple[slice, slice]]:
    """Of a band's slices those that lie side by side modulo the depth, and where."""
    place = start % depth
    before = min(count, depth - place)
    yield slice(0, before), slice(place, place + before)
    if before < count:
        yield slice(before, count), slice(0, count - before)


class _DeviceExport(Export):
    """`Export` on the device of the scores."""

    @staticmethod
    def _copied(scores: torch.Tensor) -> torch.Tensor:
        return scores.clone()

    def _labelled(
        self,
        lower: torch.Tensor,
        upper: torch.Tensor | None,
        weight: float,
        probabilities: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        scores = lower if upper is None else torch.lerp(lower, upper, float(weight))
        if not scores.isfinite().all():
            raise Problems.one(*NO_NUMBERS)
        for axis in (1, 2):
            scores = _resampled(scores, axis, self._along[axis])
        best, labels = scores.max(0)
        labels = labels.to(torch.uint8)
        if not probabilities:
            return labels, None
        if not self._softmax:
            best = (scores - best).exp_().sum(0).reciprocal_()
        return labels, best * (labels > 0)


def _resampled(scores: torch.Tensor, axis: int, along: Along) -> torch.Tensor:
    """Scores at other places of an axis, each between two voxels."""
    lower, weights = (torch.from_numpy(part).to(scores.device) for part in along)
    found = scores.index_select(axis, lower)
    if not weights.any():
        return found
    upper = scores.index_select(axis, (lower + 1).clamp(max=scores.shape[axis] - 1))
    return found.lerp_(upper, weights if axis == 2 else weights[:, None])
