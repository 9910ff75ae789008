"""The sliding window: nnU-Net's tiles, weights and sums, a few slices at a time."""

import weakref
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import (
    compute_gaussian,
    compute_steps_for_sliding_window,
)

from panorgan.inference.window import Window, tile_starts, tile_weights

axis = st.tuples(st.integers(1, 40), st.integers(1, 24))


class ByFormula:
    """An engine whose scores follow from voxel and place in the tile, so that none are alike."""

    name, precision, device = "formula", "fp32", "cpu"

    def __init__(self, outputs=3, bits=False):
        self.outputs, self.bits, self.tiles = outputs, bits, []

    def of_tile(self, tile):
        image = tile[0]
        place = np.arange(image.size, dtype=np.float32).reshape(image.shape) / image.size
        return np.stack([image * (c + 1) + place * c**2 for c in range(self.outputs)], -1)

    def scores(self, tiles):
        for tile in tiles:
            self.tiles.append(tile.copy())
            found = np.ascontiguousarray(self.of_tile(tile), np.float32)
            yield (found.view(np.uint32) >> 16).astype(np.uint16) if self.bits else found


def all_at_once(engine, image, patch, step):
    """nnU-Net's way: pad, add all tiles up in one array, divide."""
    flat = len(patch) == 2
    patch = (1, *patch) if flat else patch
    size = [max(pair) for pair in zip(image.shape, patch, strict=True)]
    before = [(a - b) // 2 for a, b in zip(size, image.shape, strict=True)]
    padded = np.zeros(size, np.float32)
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    padded[inside] = image
    weights = tile_weights(patch[1:] if flat else patch).reshape(patch).astype(np.float64)
    sums, totals = np.zeros((*size, engine.outputs)), np.zeros(size)
    starts = tile_starts(size, patch, step)
    if flat:
        starts[0] = range(size[0])
    for start in product(*starts):
        tile = tuple(slice(at, at + n) for at, n in zip(start, patch, strict=True))
        sums[tile] += engine.of_tile(padded[tile][None]) * weights[..., None]
        totals[tile] += weights
    return (sums / totals[..., None])[inside]


def found_by(engine, image, patch, step, **options):
    window = Window(image.shape, patch, engine.outputs, step, **options)
    read = lambda start, stop: image[start:stop]  # noqa: E731
    return np.stack([scores.copy() for scores in window.scores([engine], read)]), window


@given(st.lists(axis, min_size=1, max_size=3), st.sampled_from([0.25, 0.5, 0.75, 1.0, 1 / 3]))
def test_tiles_lie_where_nnunets_do(axes, step):
    size, patch = [max(pair) for pair in axes], [pair[1] for pair in axes]
    assert tile_starts(size, patch, step) == compute_steps_for_sliding_window(size, patch, step)


@pytest.mark.parametrize("patch", [(32, 128, 192), (56, 80), (1, 5, 2), (16, 48, 64), (200, 8)])
def test_weights_are_nnunets(patch):
    expected = compute_gaussian(
        patch, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
    )
    np.testing.assert_allclose(tile_weights(patch), expected.numpy(), rtol=1e-6)
    assert tile_weights(patch).min() > 0


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.integers(1, 8)] * 3),
    st.sampled_from([0.3, 0.5, 1.0]),
    st.booleans(),
)
def test_slices_are_those_of_all_at_once(size, patch, step, flat):
    image = np.random.default_rng(0).normal(0, 1, size).astype(np.float32)
    engine, patch = ByFormula(), patch[1:] if flat else patch
    found, window = found_by(engine, image, patch, step)
    expected = all_at_once(engine, image, patch, step)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len(engine.tiles) == window.tiles


def test_scores_may_be_the_bits_of_bfloat16():
    image = np.random.default_rng(0).normal(0, 1, (9, 10, 11)).astype(np.float32)
    exact, _ = found_by(ByFormula(), image, (4, 6, 6), 0.5)
    rounded, _ = found_by(ByFormula(bits=True), image, (4, 6, 6), 0.5)
    assert 0 < np.abs(rounded - exact).max() < 2**-7 * np.abs(exact).max()


def test_the_mean_of_several_networks_is_taken():
    image = np.random.default_rng(0).normal(0, 1, (5, 7, 9)).astype(np.float32)

    class Doubled(ByFormula):
        def of_tile(self, tile):
            return 2 * super().of_tile(tile)

    window = Window(image.shape, (4, 4, 4), 3, 0.5)
    read = lambda start, stop: image[start:stop]  # noqa: E731
    both = [scores.copy() for scores in window.scores([ByFormula(), Doubled()], read)]
    one, _ = found_by(ByFormula(), image, (4, 4, 4), 0.5)
    np.testing.assert_allclose(np.stack(both), 1.5 * one, rtol=1e-5, atol=1e-5)


def test_probabilities_are_averaged_where_the_plan_says_so():
    image = np.random.default_rng(0).normal(0, 3, (6, 7, 9)).astype(np.float32)
    found, _ = found_by(ByFormula(), image, (4, 4, 4), 0.5, softmax=True)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    whole, _ = found_by(ByFormula(), image, image.shape, 0.5, softmax=True)
    logits = ByFormula().of_tile(image[None])
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(whole, expected / expected.sum(-1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("networks", [1, 2])
def test_tiles_go_when_all_networks_have_had_them(networks):
    image = np.zeros((40, 12, 12), np.float32)
    window, alive, most = Window(image.shape, (4, 8, 8), 3, 0.5), [], 0

    class Watched(ByFormula):
        def scores(self, tiles):
            for tile in tiles:
                alive.append(weakref.ref(tile))
                yield np.zeros((*tile.shape[1:], 3), np.float32)

    engines = [Watched() for _ in range(networks)]
    for _ in window.scores(engines, lambda start, stop: image[start:stop]):
        most = max(most, sum(tile() is not None for tile in alive))
    assert len(alive) == networks * window.tiles > 60
    assert most <= 2 * networks


def test_what_a_band_takes_does_not_grow_with_the_number_of_slices():
    assert Window((64, 40, 40), (8, 16, 16), 3, 0.5).bytes == (
        Window((4096, 40, 40), (8, 16, 16), 3, 0.5).bytes
    )
