"""Exact intensity statistics from integer histograms that add up over cases."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from panorgan.io.writing import replacing

Histogram = tuple[int, np.ndarray]
"""Lowest HU and the int64 counts of that and every following HU."""


def histogram(image: np.ndarray) -> Histogram:
    """Histogram of all voxels of a CT; values between whole numbers are rounded.

    Parameters
    ----------
    image
        (z, y, x) int16, or float32 up to `MAX_HU`.
    """
    lowest = round(float(image.min()))
    counts = np.zeros(round(float(image.max())) - lowest + 1, np.int64)
    for plane in image:  # bincount makes 64-bit numbers of all that it gets
        shifted = np.rint(plane).astype(np.int32) - lowest
        counts += np.bincount(shifted.ravel(), minlength=len(counts))
    return lowest, counts


def class_histograms(image: np.ndarray, label: np.ndarray) -> dict[int, Histogram]:
    """HU histogram of every class in a label map.

    Parameters
    ----------
    image
        (z, y, x) HU; values between whole numbers are rounded.
    label
        (z, y, x) uint8 on the same grid; 0 is left out.
    """
    foreground = label > 0
    values = np.rint(image[foreground]).astype(np.int32)
    classes = label[foreground]
    histograms = {}
    for value in np.unique(classes):
        inside = values[classes == value]
        lowest = int(inside.min())
        histograms[int(value)] = (lowest, np.bincount(inside - lowest).astype(np.int64))
    return histograms


def add_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """The histogram of all voxels together; of none, an empty one."""
    parts = list(histograms)
    if not parts:
        return 0, np.zeros(0, np.int64)
    lowest = min(low for low, _ in parts)
    highest = max(low + len(counts) for low, counts in parts)
    total = np.zeros(highest - lowest, np.int64)
    for low, counts in parts:
        total[low - lowest : low - lowest + len(counts)] += counts
    return lowest, total


def statistics(histogram: Histogram) -> dict[str, float]:
    """Mean, sd, extremes and percentiles (linear between order statistics, as numpy's default).

    Raises
    ------
    ValueError
        If the histogram is empty.
    """
    lowest, counts = histogram
    total = int(counts.sum())
    if total == 0:
        raise ValueError("no voxel to take statistics of")
    values = lowest + np.arange(len(counts), dtype=np.float64)
    mean = float(values @ counts) / total
    variance = float(((values - mean) ** 2) @ counts) / total
    cumulative = np.cumsum(counts)

    def percentile(q: float) -> float:
        position = q / 100 * (total - 1)
        below = int(np.floor(position))
        pair = np.searchsorted(cumulative, [below, min(below + 1, total - 1)], side="right")
        low, high = values[pair]
        return float(low + (position - below) * (high - low))

    return {
        "mean": mean,
        "median": percentile(50),
        "std": variance**0.5,
        "min": float(values[np.flatnonzero(counts)[0]]),
        "max": float(values[np.flatnonzero(counts)[-1]]),
        "percentile_00_5": percentile(0.5),
        "percentile_99_5": percentile(99.5),
    }


def save_histograms(path: str | Path, histograms: Mapping[int, Histogram]) -> None:
    """Write the histograms of a case."""
    arrays = {f"{value}_{low}": counts for value, (low, counts) in sorted(histograms.items())}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_histograms(path: str | Path) -> dict[int, Histogram]:
    """Read what `save_histograms` wrote."""
    with np.load(path) as arrays:
        return {int(name.split("_")[0]): (int(name.split("_")[1]), arrays[name]) for name in arrays}
