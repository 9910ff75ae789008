"""Where classes lie: hand-computed blocks, the same in every orientation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ORIENTATIONS, affine_of, volumes

from panorgan.cases.places import Place, class_places, parse_places, places_text
from panorgan.io.volumes import from_canonical, new_volume

MM = st.floats(-900, 900)


def stored_as(canonical, axes, tilt=(0, 0, 0)):
    """A label map of voxels of 1 mm, whose centre is 0, stored with other axes."""
    affine = affine_of(axes, (1, 1, 1), tilt=tilt)
    label = from_canonical(canonical, new_volume(canonical, (1, 1, 1), affine).grid)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(label.shape[::-1]) - 1) / 2)
    return label, new_volume(label, (1, 1, 1), affine).grid


def scene():
    """A slab of 30 columns that ends at the top, a cube of 3 in it, and two blocks with a gap."""
    label = np.zeros((9, 11, 40), np.uint8)  # (z, y, x) in RAS: the last column is at the right
    label[2:, 1:10, 5:35] = 1
    label[4:7, 4:7, 10:13] = 2
    label[0:1, 1:3, 37:39] = label[0:1, 1:3, 2:4] = 3
    return label


@given(volumes(np.uint8))
def test_centres_are_means_of_voxel_positions(volume):
    places = class_places(volume.array, volume.grid)
    assert set(places) == set(np.unique(volume.array)) - {0}
    for value, place in places.items():
        z, y, x = np.argwhere(volume.array == value).T
        expected = volume.grid.affine @ np.array([x, y, z, np.ones(len(x))])
        np.testing.assert_allclose(place.centre, expected[:3].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_gaps_ends_and_neighbours(axes):
    slab, cube, blocks = class_places(*stored_as(scene(), axes)).values()
    # Each column holds a thirtieth of the slab, fewer where the cube is.
    assert slab.gap == pytest.approx(0.345, abs=0.005)
    assert cube.gap == pytest.approx(0.03)
    assert blocks.gap == pytest.approx(33 + 0.02, abs=0.03)
    assert (slab.cut, cube.cut, blocks.cut) == (True, False, True)
    assert (cube.host, cube.enclosed) == (1, 1.0)
    assert (blocks.host, blocks.enclosed) == (0, 0.0)
    # The faces of the slab: its sides, its bottom, and the cube's; its top is the scan's end.
    around = 2 * 7 * (9 + 30) + 9 * 30
    assert (slab.host, slab.enclosed) == (2, pytest.approx(54 / (54 + around)))


def test_the_gap_of_a_tilted_scan():
    *_, blocks = class_places(*stored_as(scene(), "LPS", tilt=(0, 0, 20))).values()
    assert blocks.gap == pytest.approx(33 * np.cos(np.radians(20)), abs=0.1)


@pytest.mark.parametrize(("splinter", "is_gap"), [(9, False), (12, True)])
def test_a_splinter_makes_no_gap(splinter, is_gap):
    label = np.zeros((1, 1, 200), np.uint8)
    label[..., :100] = label[..., 150 : 150 + splinter] = 1
    (place,) = class_places(*stored_as(label, "RAS")).values()
    assert (place.gap > 50) == is_gap


@given(
    st.dictionaries(
        st.integers(1, 255),
        st.builds(
            Place, st.tuples(MM, MM, MM), MM, st.booleans(), st.integers(0, 255), st.floats(0, 1)
        ),
    )
)  # fmt: skip
def test_round_trip(places):
    found = parse_places(places_text(places))
    assert set(found) == set(places)
    for value, place in places.items():
        given, got = ((*one.centre, one.gap) for one in (place, found[value]))
        assert got == pytest.approx(given, abs=0.051)
        assert (found[value].cut, found[value].host) == (place.cut, place.host)
        assert found[value].enclosed == pytest.approx(place.enclosed, abs=0.0051)
