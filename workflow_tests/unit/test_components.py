"""Pieces of label maps: against hand-made volumes and a naive search, in any orientation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_preprocess import all_orientations, stored_as

from panorgan.fusing.components import (
    COLUMNS,
    Piece,
    _surface,
    apply_decisions,
    component_rows,
    find_components,
    nearest_organs,
    overlaps_ml,
)
from panorgan.io.volumes import new_volume


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


# ---------------------------------------------------------------------------------------------
# What pieces are


NAMES = {1: "liver", 2: "spleen", 3: "tumour"}


def test_a_row_says_what_a_piece_is():
    label = np.zeros((4, 5, 6), np.uint8)
    label[1, 2, 1:3] = label[2, 3, 3] = 3
    image = np.zeros(label.shape, np.int16)
    image[1, 2, 1:3] = [10, 20]
    image[2, 3, 3] = 60
    affine = np.array([[-2, 0, 0, 5], [0, 3, 0, 7], [0, 0, 5, -11], [0, 0, 0, 1]], float)
    volume = new_volume(image, (5, 3, 2), affine)
    pieces = find_components(label)
    assert component_rows(pieces, image, volume.grid, NAMES) == [
        {
            "component": 1,
            "value": 3,
            "name": "tumour",
            "voxels": 3,
            "ml": 0.09,
            "mean_probability": "",
            "max_probability": "",
            "hu_mean": 30.0,
            "hu_sd": 21.6,  # root of (20^2 + 10^2 + 30^2) / 3
            "organ": "",
            "distance_mm": "",
            "centre_mm": "1.00 14.00 -4.33",  # of x 2, y 7/3, z 4/3
            "box_zyx": "1 2 1 3 4 4",
            "at_border": "no",
            "hit_ml": "",
        }
    ]
    assert tuple(component_rows(pieces, image, volume.grid, NAMES)[0]) == COLUMNS
    (row,) = component_rows(pieces, image, volume.grid, NAMES, np.array([0.5, 0.75, 1], np.float16))
    assert (row["mean_probability"], row["max_probability"]) == (0.75, 1.0)


@given(label_maps(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_numbers_are_those_of_each_piece_alone(label, seed):
    random = np.random.default_rng(seed)
    image = random.normal(40, 100, label.shape).astype(np.float32)
    probability = random.random(label.shape)
    mask = random.random(label.shape) < 0.4
    grid = new_volume(image, (5, 3, 2)).grid
    pieces = find_components(label)
    rows = component_rows(pieces, image, grid, NAMES, probability.reshape(-1)[pieces.places])
    hits = overlaps_ml(pieces, mask, grid)
    for number, (row, hit) in enumerate(zip(rows, hits, strict=True), 1):
        here = pieces.ids == number
        assert row["voxels"] == here.sum()
        assert row["ml"] == pytest.approx(here.sum() * 0.03)
        assert row["hu_mean"] == pytest.approx(image[here].mean(), abs=0.006)
        assert row["hu_sd"] == pytest.approx(image[here].std(), abs=0.006)
        assert row["mean_probability"] == pytest.approx(probability[here].mean(), abs=1e-4)
        assert row["max_probability"] == pytest.approx(probability[here].max(), abs=1e-4)
        assert hit == pytest.approx((here & mask).sum() * 0.03)


def test_sums_of_large_pieces_keep_their_accuracy():
    label = np.ones((10, 100, 100), np.uint8)
    image = np.full(label.shape, 1000, np.float32)
    image[::2] += 0.5
    (row,) = component_rows(find_components(label), image, new_volume(image, (1, 1, 1)).grid, NAMES)
    assert (row["hu_mean"], row["hu_sd"]) == (1000.25, 0.25)


@pytest.mark.parametrize(
    ("box", "expected"),
    [((1, 3, 0, 4, 0, 4), "no"), ((0, 1, 1, 2, 1, 2), "yes"), ((3, 4, 1, 2, 1, 2), "yes")],
)
@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAR", "AIR"])
def test_only_the_first_and_last_slice_from_feet_to_head_are_the_border(box, expected, axes):
    label = np.zeros((4, 4, 4), np.uint8)
    label[box[0] : box[1], box[2] : box[3], box[4] : box[5]] = 1
    turned = stored_as(new_volume(label, (5, 3, 2)), axes)
    (row,) = component_rows(
        find_components(turned.array), turned.array.astype(np.int16), turned.grid, NAMES
    )
    assert row["at_border"] == expected


# ---------------------------------------------------------------------------------------------
# Where pieces are


def naive_organs(pieces, organs, spacing) -> list[tuple[int, float]]:
    """Every voxel of a piece against every voxel of every organ."""
    found = []
    for number in range(1, len(pieces.rows) + 1):
        here = pieces.ids == number
        best = (0, np.inf)
        shares = {v: (organs[here] == v).sum() for v in np.unique(organs[here]).tolist() if v}
        if shares:
            best = (max(sorted(shares), key=shares.get), 0.0)
        else:
            for value in sorted({*organs.reshape(-1).tolist()} - {0}):
                steps = np.argwhere(here)[:, None] - np.argwhere(organs == value)[None]
                distance = np.sqrt(((steps * spacing) ** 2).sum(-1)).min()
                if (abs(steps).max(-1) == 1).any():
                    distance = 0
                if distance < best[1] - 1e-9:
                    best = (value, distance)
        found.append(best)
    return found


@given(
    label_maps(values=1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.7, 0.8), (1.0, 2.5, 1.5)]),
)
@settings(max_examples=200)
def test_organs_are_those_of_a_naive_search(label, seed, density, spacing):
    random = np.random.default_rng(seed)
    organs = random.integers(1, 14, label.shape).astype(np.uint8)
    organs[random.random(label.shape) >= density] = 0
    pieces = find_components(label)
    found = nearest_organs(pieces, organs, spacing)
    expected = naive_organs(pieces, organs, spacing)
    assert [value for value, _ in found] == [value for value, _ in expected]
    assert [mm for _, mm in found] == pytest.approx([mm for _, mm in expected], abs=1e-3)


@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.5, 0.8, 0.95, 1.0]),
)
def test_only_voxels_from_which_no_step_leads_outside_are_no_surface(shape, seed, density):
    organs = (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)
    organs[0, 0, 0] = 1  # not empty
    where = np.argwhere(organs)
    low, high = where.min(0), where.max(0)
    padded = np.pad(organs, 1)
    expected = [
        tuple(place)
        for place in where.tolist()
        if (place == low).any()
        or (place == high).any()
        or any(
            not padded[tuple(np.add(place, 1) + sign * step)]
            for step in np.eye(3, dtype=int)
            for sign in (-1, 1)
        )
    ]
    assert [tuple(place) for place in _surface(organs).tolist()] == expected


def around(place: tuple[int, int, int], organs: dict[tuple[int, int, int], int], spacing):
    """Organ and distance of a piece of one voxel among organs of one voxel each."""
    label, organ_map = np.zeros((2, 9, 9, 9), np.uint8)
    label[place] = 1
    for at, value in organs.items():
        organ_map[at] = value
    (found,) = nearest_organs(find_components(label), organ_map, spacing)
    return found


@pytest.mark.parametrize(
    ("organs", "expected"),
    [
        ({}, (0, np.inf)),
        ({(4, 4, 4): 5, (4, 4, 5): 1}, (5, 0)),  # in it, beside another
        ({(5, 5, 5): 3}, (3, 0)),  # a corner touches
        ({(4, 4, 6): 3}, (3, 2)),  # one voxel of 1 mm between
        ({(4, 6, 4): 3}, (3, 4)),  # 2 mm
        ({(6, 4, 4): 3}, (3, 10)),  # 5 mm
        ({(6, 4, 4): 3, (4, 4, 8): 7}, (7, 4)),  # by mm, not by voxels
        ({(5, 4, 4): 9, (4, 4, 6): 3}, (9, 0)),  # touching at 5 mm is nearer than 2 mm apart
        ({(4, 4, 6): 9, (4, 4, 2): 3}, (3, 2)),  # equally far: the lowest value
        ({(4, 4, 5): 9, (3, 4, 4): 3}, (3, 0)),
    ],
)
def test_the_nearest_organ_by_hand(organs, expected):
    assert around((4, 4, 4), organs, (5.0, 2.0, 1.0)) == expected


def test_most_overlap_wins_and_the_lowest_value_of_equals():
    label = np.ones((1, 1, 5), np.uint8)
    pieces = find_components(label)
    for values, expected in (([9, 9, 3, 3, 3], 3), ([9, 9, 3, 3, 0], 3), ([3, 9, 9, 0, 0], 9)):
        organs = np.array([[values]], np.uint8)
        assert nearest_organs(pieces, organs, (1, 1, 1)) == [(expected, 0.0)]


def test_the_same_image_stored_otherwise_gives_the_same_rows():
    random = np.random.default_rng(3)
    shape, spacing = (9, 11, 13), (4.0, 1.5, 0.8)
    label = (random.random(shape) < 0.05).astype(np.uint8) * 3
    organs = np.zeros(shape, np.uint8)
    organs[6:8, 2:4, 3:9] = 1
    organs[1:3, 7:9, 9:12] = 2
    image = random.integers(-100, 200, shape).astype(np.int16)

    def rows_of(axes: str) -> list[tuple]:
        turned, turned_organs, turned_image = (
            stored_as(new_volume(array, spacing), axes) for array in (label, organs, image)
        )
        grid = turned_image.grid
        pieces = find_components(turned.array)
        places = nearest_organs(pieces, turned_organs.array, grid.spacing)
        hits = overlaps_ml(pieces, turned_organs.array == 1, grid)
        return sorted(
            (*(str(row[c]) for c in COLUMNS if c not in ("component", "box_zyx")), place, hit)
            for row, place, hit in zip(
                component_rows(pieces, turned_image.array, grid, NAMES), places, hits, strict=True
            )
        )

    expected = rows_of("RAS")
    assert len({row[-2][0] for row in expected}) == 2
    assert len({row[-2][1] for row in expected}) > 5
    for axes in all_orientations():
        assert rows_of(axes) == expected, axes
