"""From scores to labels on the image's grid: what nnU-Net's interpolation gives, slice by slice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg
from skimage.transform import resize

from panorgan.inference.export import Export
from panorgan.nnunet.resampling import nearest
from panorgan.problems import Problems

sizes = st.tuples(*[st.integers(1, 14)] * 3)


def labels_of(scores, new_size, **options):
    """(z, y, x) labels and, where wanted, probabilities of (z, y, x, outputs) scores."""
    wanted = options.pop("probabilities", False)
    export = Export(scores.shape[:3], new_size, **{"smooth": True, **options})
    spent = np.empty(scores.shape[1:], np.float32)

    def one_after_the_other():
        for found in scores:
            spent[...] = found  # valid until the next one only
            yield spent

    labels, found = zip(*export.slices(one_after_the_other(), wanted), strict=True)
    return (np.stack(labels), np.stack(found)) if wanted else np.stack(labels)


def random_scores(size, outputs, seed=0):
    """Smooth enough for corners that agree and for ones that do not."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (*[-(-n // 3) for n in size], outputs))
    blocks = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(map(slice, size))]
    return (blocks + rng.normal(0, 0.3, blocks.shape)).astype(np.float32)


def is_highest(labels, interpolated):
    """Whether each label's score is the highest, up to rounding."""
    chosen = np.take_along_axis(interpolated, labels[..., None].astype(int), -1)[..., 0]
    return np.abs(chosen - interpolated.max(-1)).max() < 1e-5


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.integers(2, 6), st.integers(0, 9))
def test_smooth_takes_the_highest_of_trilinearly_interpolated_scores(size, new, outputs, seed):
    scores = random_scores(size, outputs, seed)
    expected = np.stack(
        [
            resize(scores[..., c].astype(float), new, 1, mode="edge", anti_aliasing=False)
            for c in range(outputs)
        ],
        -1,
    )
    assert is_highest(labels_of(scores, new), expected)


@settings(max_examples=100, deadline=None)
@given(sizes, sizes, st.integers(0, 2))
def test_across_slices_far_apart_the_nearest_is_taken_as_nnunet_does(size, new, apart):
    scores = random_scores(size, 4)
    expected = resample_data_or_seg(
        np.moveaxis(scores, -1, 0), new, False, apart, 1, True, order_z=0
    )
    assert is_highest(labels_of(scores, new, apart=apart), np.moveaxis(expected, 0, -1))


@settings(max_examples=100, deadline=None)
@given(sizes, sizes)
def test_nearest_takes_the_label_of_the_nearest_voxel(size, new):
    scores = random_scores(size, 4)
    index = np.ix_(*(nearest(a, b) for a, b in zip(size, new, strict=True)))
    np.testing.assert_array_equal(labels_of(scores, new, smooth=False), scores.argmax(-1)[index])


@pytest.mark.parametrize("smooth", [True, False])
def test_without_resampling_it_is_the_arg_max_and_the_first_of_equal_ones(smooth):
    scores = random_scores((4, 5, 6), 5)
    scores[0] = 1.0
    labels = labels_of(scores, (4, 5, 6), smooth=smooth)
    np.testing.assert_array_equal(labels, scores.argmax(-1))
    assert not labels[0].any()


@pytest.mark.parametrize("smooth", [True, False])
def test_probabilities_are_the_soft_max_of_what_was_chosen(smooth):
    size, new = (4, 5, 6), (7, 9, 11)
    scores = random_scores(size, 4)
    labels, found = labels_of(scores, new, smooth=smooth, probabilities=True)
    if smooth:
        there = [
            resize(scores[..., c].astype(float), new, 1, mode="edge", anti_aliasing=False)
            for c in range(4)
        ]
        there = np.stack(there, -1)
    else:
        there = scores[np.ix_(*(nearest(a, b) for a, b in zip(size, new, strict=True)))]
    shares = np.exp(there) / np.exp(there).sum(-1, keepdims=True)
    expected = np.take_along_axis(shares, labels[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(found, np.where(labels > 0, expected, 0), atol=1e-5)


def test_of_probabilities_the_interpolated_one_is_told():
    scores = np.full((2, 2, 2, 2), 0.25, np.float32)
    scores[..., 1] = 0.75
    labels, found = labels_of(scores, (3, 3, 3), softmax=True, probabilities=True)
    assert (labels == 1).all()
    assert (found == 0.75).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", [0, 2])
def test_scores_that_are_no_numbers_end_the_case(wrong, output):
    scores = random_scores((3, 4, 5), 3)
    scores[1, 2, 3, output] = wrong
    with pytest.raises(Problems, match="the network's scores are not all numbers; copy the model"):
        labels_of(scores, (3, 8, 9))
