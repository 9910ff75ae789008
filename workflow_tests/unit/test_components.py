"""Pieces of label maps: against hand-made volumes and a naive search, in any orientation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from panorgan.components import Piece, apply_decisions, find_components


@st.composite
def label_maps(draw: st.DrawFn, values: int = 3, largest: int = 7) -> np.ndarray:
    """A small map of random values, dense or sparse."""
    shape = draw(st.tuples(*[st.integers(1, largest)] * 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = random.integers(1, values + 1, shape).astype(np.uint8)
    label[random.random(shape) > draw(st.sampled_from([0.1, 0.3, 0.6]))] = 0
    return label


def naive_pieces(label: np.ndarray) -> tuple[list[Piece], np.ndarray]:
    """The same by scipy, one value after the other."""
    rows, ids = [], np.zeros(label.shape, np.int32)
    for value in sorted({*label.reshape(-1).tolist()} - {0}):
        found, count = ndimage.label(label == value, np.ones((3, 3, 3)))
        masks = [found == number for number in range(1, count + 1)]
        masks.sort(key=lambda mask: (-mask.sum(), np.flatnonzero(mask)[0]))
        for component, mask in enumerate(masks, 1):
            where = np.argwhere(mask)
            box = (*where.min(0).tolist(), *(where.max(0) + 1).tolist())
            ids[mask] = len(rows) + 1
            rows.append(Piece(value, component, int(mask.sum()), box, tuple(where.mean(0))))
    return rows, ids


@given(label_maps())
def test_pieces_are_those_of_a_naive_search(label):
    rows, ids = naive_pieces(label)
    pieces = find_components(label)
    assert [row[:4] for row in pieces.rows] == [row[:4] for row in rows]
    for found, expected in zip(pieces.rows, rows, strict=True):
        assert found.centroid == pytest.approx(expected.centroid)
    assert pieces.ids.dtype == np.int32
    np.testing.assert_array_equal(pieces.ids, ids)


def test_numbers_go_by_size_then_by_the_first_voxel():
    label = np.zeros((3, 3, 9), np.uint8)
    label[2, 2, 0] = label[0, 0, 4] = 2  # of one voxel each: the one stored first is the first
    label[1, 1, 7:9] = 2
    label[0, 2, 0] = 1
    pieces = find_components(label)
    assert [row[:4] for row in pieces.rows] == [
        (1, 1, 1, (0, 2, 0, 1, 3, 1)),
        (2, 1, 2, (1, 1, 7, 2, 2, 9)),
        (2, 2, 1, (0, 0, 4, 1, 1, 5)),
        (2, 3, 1, (2, 2, 0, 3, 3, 1)),
    ]


def test_corners_connect_and_other_values_do_not():
    label = np.zeros((3, 3, 3), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = 1
    label[2, 2, 2] = 2
    assert [row[:3] for row in find_components(label).rows] == [(1, 1, 2), (2, 1, 1)]


@pytest.mark.parametrize("order", ["C", "F", "flipped"])
def test_the_layout_in_memory_does_not_matter(order):
    label = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    other = label[::-1].copy()[::-1] if order == "flipped" else np.array(label, order=order)
    assert find_components(other).rows == find_components(label).rows
    np.testing.assert_array_equal(apply_decisions(other, {(1, 1): "clean"}, 15)[label == 2], 2)


def test_nothing_has_no_pieces():
    pieces = find_components(np.zeros((2, 3, 4), np.uint8))
    assert pieces.rows == []
    np.testing.assert_array_equal(pieces.ids, np.zeros((2, 3, 4)))


@given(label_maps(), st.data())
@settings(max_examples=50)
def test_decisions_change_exactly_their_pieces(label, data):
    rows, ids = naive_pieces(label)
    names = [row[:2] for row in rows]
    choice = st.sampled_from(["keep", "clean", "ignore"])
    actions = data.draw(st.dictionaries(st.sampled_from(names), choice)) if names else {}
    expected = label.copy()
    for number, name in enumerate(names, 1):
        if actions.get(name) == "clean":
            expected[ids == number] = 0
        elif actions.get(name) == "ignore":
            expected[ids == number] = 15
    before = label.copy()
    decided = apply_decisions(label, actions, 15)
    assert decided.dtype == np.uint8
    np.testing.assert_array_equal(decided, expected)
    np.testing.assert_array_equal(label, before)
    assert not np.shares_memory(decided, label)


@pytest.mark.parametrize("actions", [{(1, 2): "clean"}, {(2, 1): "keep"}, {(1, 1): "drop"}])
def test_a_decision_on_no_piece_or_of_no_kind_is_an_error(actions):
    label = np.zeros((1, 1, 3), np.uint8)
    label[0, 0, 0] = 1
    with pytest.raises(KeyError):
        apply_decisions(label, actions, 15)
