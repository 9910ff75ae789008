"""Resampling slice by slice: nnU-Net's labels, its intensities, its decisions."""

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg,
)
from scipy.ndimage import binary_fill_holes

from panorgan.nnunet.preprocess import resampled_size
from panorgan.nnunet.resampling import (
    OUTSIDE,
    ImageBands,
    mark_outside,
    resample_label,
    slice_axis,
)

sizes = st.tuples(*[st.integers(1, 24)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0])] * 3)


def labels_of(array, new_size, *, separate=False):
    return resample_label(lambda z: array[z], array.shape, new_size, separate=separate)


def bands_of(array, new_size, *, separate=False):
    limits = array.min(), array.max()
    return ImageBands(lambda z: array[z], array.shape, new_size, separate=separate, limits=limits)


def image_of(array, new_size, *, separate=False):
    return bands_of(array, new_size, separate=separate)(0, new_size[0])


@settings(max_examples=3000)
@given(sizes, sizes, st.booleans(), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_it_is_nnunets(size, new_size, separate, seed, classes):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, size).astype(np.float32)
    label = rng.integers(-1, classes, size).astype(np.int16)
    axis = 0 if separate else None
    expected = resample_data_or_seg(image[None], new_size, False, axis, 3, separate)
    assert np.abs(image_of(image, new_size, separate=separate) - expected[0]).max() < 1e-5
    expected = resample_data_or_seg(label[None], new_size, True, axis, 1, separate)
    found = labels_of(label, new_size, separate=separate)
    np.testing.assert_array_equal(found, expected[0])


@settings(max_examples=200)
@given(sizes, sizes, st.booleans(), st.integers(1, 12), st.integers(1, 12))
def test_a_band_holds_the_bits_of_the_whole(size, new_size, separate, depth, step):
    image = np.random.default_rng(0).normal(0, 1, size).astype(np.float32)
    whole = image_of(image, new_size, separate=separate)
    bands = bands_of(image, new_size, separate=separate)
    for start in [*range(0, new_size[0], step), 0]:
        stop = min(start + depth, new_size[0])
        np.testing.assert_array_equal(bands(start, stop), whole[start:stop])


def test_bands_that_overlap_read_each_slice_once():
    image, read = np.zeros((60, 8, 8), np.float32), []

    def slice_of(z):
        read.append(z)
        return image[z]

    bands = ImageBands(slice_of, image.shape, (40, 9, 9), separate=False, limits=(0, 0))
    for start in range(0, 33, 4):
        bands(start, start + 8)
    assert sorted(read) == list(range(60))


@pytest.mark.parametrize("separate", [False, True])
def test_a_band_is_let_go_once_the_next_is_there_and_the_last_at_once(separate):
    """Its memory is needed for what follows."""
    image = np.zeros((60, 8, 8), np.float32)
    bands = bands_of(image, (40, 9, 9), separate=separate)
    first = weakref.ref(bands(0, 20))
    assert first() is not None
    last = weakref.ref(bands(10, 40))
    assert first() is last() is None


@settings(max_examples=30)
@given(sizes, st.integers(0, 2**32 - 1), st.booleans())
def test_ties_of_halved_and_doubled_grids_are_nnunets(half, seed, doubled):
    """Half of all points lie exactly between voxels here."""
    label = np.random.default_rng(seed).integers(0, 3, [2 * n for n in half]).astype(np.int16)
    new_size = [4 * n if doubled else n for n in half]
    expected = resample_data_or_seg(label[None], new_size, True, None, 1, False)[0]
    np.testing.assert_array_equal(labels_of(label, new_size), expected)


def test_of_equal_shares_the_nearest_wins_or_else_the_lowest():
    pair = np.array([[[2, 1]]], np.int16)  # the point between both counts to the second
    assert labels_of(pair, (1, 1, 1)) == 1
    assert labels_of(pair[..., ::-1].copy(), (1, 1, 1)) == 2
    cube = np.array([3, 1, 1, 1, 2, 2, 2, 3], np.int16).reshape(2, 2, 2)
    assert labels_of(cube, (1, 1, 1)) == 1  # 3/8 each for 1 and 2; nearest is 3 with 2/8


def test_a_label_needs_no_majority():
    square = np.array([[[7, 4], [4, 9]]], np.int16)
    assert labels_of(square, (1, 1, 1)) == 4


def test_slices_far_apart_are_taken_as_they_are():
    label = np.arange(4, dtype=np.int16)[:, None, None] * np.ones((1, 2, 2), np.int16)
    assert labels_of(label, (2, 2, 2), separate=True)[:, 0, 0].tolist() == [1, 3]
    assert labels_of(label, (6, 2, 2), separate=True)[:, 0, 0].tolist() == [0, 1, 1, 2, 3, 3]
    image = label.astype(np.float32)
    np.testing.assert_array_equal(image_of(image, (2, 2, 2), separate=True), image[[1, 3]])


def test_a_constant_stays_and_a_ramp_keeps_its_slope():
    constant = np.full((6, 7, 8), 0.3, np.float32)
    assert (image_of(constant, (4, 9, 5)) == np.float32(0.3)).all()
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32), (1, 60, 60)).copy()
    found = image_of(ramp, (1, 60, 40))[0, :, 10:30]
    expected = (np.arange(40)[10:30] + 0.5) * 1.5 - 0.5
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-4)


def test_splines_do_not_leave_the_range_of_a_slice_or_of_the_image():
    image = np.zeros((2, 9, 9), np.float32)
    image[0, 4, 4] = 1
    image[1] = -1
    assert image_of(image, (2, 23, 23), separate=True)[0].min() == 0
    assert image_of(image, (2, 23, 23))[0].min() < 0


@given(spacings, spacings, sizes, st.sampled_from([None, False, True]), st.sampled_from([1.5, 3]))
def test_shapes_and_slices_are_decided_as_nnunet_does(spacing, target, size, force, threshold):
    assert resampled_size(size, spacing, target) == tuple(compute_new_shape(size, spacing, target))
    separate, axis = determine_do_sep_z_and_axis(force, spacing, target, threshold)
    expected = axis if separate else None
    assert slice_axis(spacing, target, force=force, threshold=threshold) == expected


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 12, 5), (7, 1, 1), (1, 1, 1), (2, 2, 60)])
def test_outside_is_what_filled_holes_leave(shape, share):
    for seed in range(10):
        nonzero = np.random.default_rng(seed).random(shape) > share
        voxels = (~nonzero).astype(np.uint8)
        count = mark_outside(voxels)
        np.testing.assert_array_equal(voxels == OUTSIDE, ~binary_fill_holes(nonzero))
        assert count == (voxels == OUTSIDE).sum()


def test_a_large_outside_is_found_whole():
    voxels = np.ones((20, 60, 70), np.uint8)
    voxels[5:15, 20:40, 20:40] = 0
    voxels[9:11, 25:30, 25:30] = 1
    assert mark_outside(voxels) == 20 * 60 * 70 - 10 * 20 * 20
    assert (voxels[9:11, 25:30, 25:30] == 1).all()
