"""Histograms that add up to exact statistics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from panorgan.cases.intensities import (
    add_histograms,
    class_histograms,
    histogram,
    load_histograms,
    save_histograms,
    statistics,
)

IMAGES = arrays(np.int16, (3, 4, 5), elements=st.integers(-1024, 3071))
LABELS = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3))


@given(st.lists(st.tuples(IMAGES, LABELS), min_size=1, max_size=3))
def test_statistics_are_those_of_all_voxels_together(cases):
    foreground = np.concatenate([image[label > 0] for image, label in cases])
    histograms = [class_histograms(image, label) for image, label in cases]
    total = add_histograms(h for by_class in histograms for h in by_class.values())
    if foreground.size == 0:
        with pytest.raises(ValueError, match="no voxel"):
            statistics(total)
        return
    found = statistics(total)
    voxels = foreground.astype(np.float64)
    assert found["mean"] == pytest.approx(voxels.mean(), abs=1e-9)
    assert found["std"] == pytest.approx(voxels.std(), abs=1e-6)
    assert found["min"] == voxels.min()
    assert found["max"] == voxels.max()
    expected = np.percentile(voxels, [0.5, 50, 99.5])
    measured = [found["percentile_00_5"], found["median"], found["percentile_99_5"]]
    assert measured == pytest.approx(expected.tolist(), abs=1e-9)


@given(IMAGES)
def test_the_histogram_of_an_image_counts_each_voxel(image):
    lowest, counts = histogram(image)
    values, expected = np.unique(image, return_counts=True)
    assert counts.sum() == image.size
    assert (lowest, lowest + len(counts) - 1) == (values[0], values[-1])
    assert counts[values - lowest].tolist() == expected.tolist()


def test_a_histogram_rounds():
    lowest, counts = histogram(np.array([[[-1.4, -0.6, 0.2, 2.0]]], np.float32))
    assert (lowest, counts.tolist()) == (-1, [2, 1, 0, 1])


def test_counts_by_hand():
    image = np.array([[[10, 12, 12, -5]]], np.int16)
    label = np.array([[[1, 1, 2, 0]]], np.uint8)
    histograms = class_histograms(image, label)
    assert histograms.keys() == {1, 2}
    low, counts = histograms[1]
    assert (low, counts.tolist()) == (10, [1, 0, 1])


def test_file_round_trip_is_exact_and_repeatable(tmp_path):
    histograms = {1: (-3, np.array([1, 0, 2])), 14: (100, np.array([5]))}
    save_histograms(tmp_path / "a.npz", histograms)
    save_histograms(tmp_path / "b.npz", histograms)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = load_histograms(tmp_path / "a.npz")
    assert {value: (low, counts.tolist()) for value, (low, counts) in loaded.items()} == {
        1: (-3, [1, 0, 2]),
        14: (100, [5]),
    }
