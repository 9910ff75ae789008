"""Organs on the wrong side are found, in every orientation, and no others."""

from re import findall

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ORIENTATIONS, affine_of

from panorgan.cases.places import class_places
from panorgan.cases.sides import MARGIN_MM, body_midline, doubtful_sides
from panorgan.config.labels import load_labels
from panorgan.io.volumes import from_canonical, new_volume, read_image, read_label

LABELS = load_labels()
SPACING = (4.0, 2.0, 3.0)  # stored (z, y, x)
PLACES = {1: 60, 2: 70, 13: -70, 3: -100, 7: 30, 8: -35, 9: 50, 5: -10}
CENTRES = {value: (float(x), 0.0, 0.0) for value, x in PLACES.items()}


def judged(centres, midline=0.0, of=LABELS.values):
    return doubtful_sides(centres, midline, LABELS, of)


def class_centres(label, grid):
    return {value: place.centre for value, place in class_places(label, grid).items()}


def mirrored(centres, *values):
    return {v: ((-x if v in values else x), y, z) for v, (x, y, z) in centres.items()}


def body(axes, first=20, last=80, cut=slice(None), tilt=(0, 0, 0)):
    """An elliptic body between two columns of 100 along R, 1 mm each, with a thin wide table."""
    r, a = np.meshgrid(np.arange(100), np.arange(40), indexing="xy")
    inside = ((r - (first + last) / 2) / ((last - first) / 2)) ** 2 + ((a - 20) / 12) ** 2 <= 1
    canonical = np.full((6, 40, 100), -1000, np.int16)
    canonical[:, inside] = 40
    canonical[:, 2, 5:95] = 100
    canonical = canonical[:, :, cut]
    affine = affine_of(axes, (1, 1, 1), tilt=tilt)
    grid = new_volume(np.zeros((1, 1, 1), np.uint8), (1, 1, 1), affine).grid
    return new_volume(from_canonical(canonical, grid), (1, 1, 1), affine)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_midline_in_every_orientation(axes):
    volume = body(axes)
    # Origin 0 is the first stored voxel: the leftmost column, or the rightmost one.
    expected = 50 if "R" in axes else 50 - 99
    assert body_midline(volume.array, volume.grid) == pytest.approx(expected, abs=1.5)


def test_midline_of_a_tilted_scan():
    volume = body("RAS", tilt=(0, 0, 15))
    x, y = 50, 20
    expected = (volume.grid.affine @ [x, y, 2.5, 1])[0]
    assert body_midline(volume.array, volume.grid) == pytest.approx(expected, abs=1.5)


def test_midline_is_unknown_where_the_body_is_cut():
    assert body_midline(*pair(body("LPS", cut=slice(40, 100)))) is None
    assert body_midline(*pair(body("LPS", cut=slice(0, 60)))) is None
    # A little of both sides may be missing.
    assert body_midline(*pair(body("RAS", cut=slice(23, 78)))) == pytest.approx(50 - 23, abs=1.5)


def test_air_has_no_midline():
    assert body_midline(*pair(new_volume(np.full((2, 3, 4), -1000, np.int16), SPACING))) is None


def pair(volume):
    return volume.array, volume.grid


def test_organs_in_their_place_raise_no_alarm():
    assert judged(CENTRES) == []
    assert judged(CENTRES, None) == []
    assert judged({}) == []


@pytest.mark.parametrize(
    "names", [("right_kidney", "left_kidney"), ("right_adrenal", "left_adrenal")]
)
@pytest.mark.parametrize("midline", [0.0, None])
def test_swapped_partners(names, midline):
    values = [LABELS.by_name(name).value for name in names]
    (text,) = judged(mirrored(CENTRES, *values), midline)
    apart = abs(CENTRES[values[0]][0]) + abs(CENTRES[values[1]][0])
    assert text.startswith(f"{names[0]} lies {apart:.0f} mm to the left of {names[1]}: ")


@pytest.mark.parametrize(
    ("value", "x", "wrong"),
    [(1, -19.9, False), (1, -20.0, True), (3, 19.9, False), (3, 20.0, True), (5, 90.0, False)],
)
def test_single_organs_must_be_clearly_beyond_the_midline(value, x, wrong):
    assert MARGIN_MM == 20
    centres = CENTRES | {value: (x + 500, 0.0, 0.0)}
    centres = {v: c if v == value else (c[0] + 500, 0.0, 0.0) for v, c in centres.items()}
    found = judged(centres, 500.0)
    assert bool(found) == wrong
    if wrong:
        assert LABELS.by_value(value).name in found[0]
        assert ("on the left" if value == 1 else "on the right") in found[0]
    assert judged(centres, None) == []


def test_a_partner_alone_is_judged_by_the_midline():
    assert judged({2: (70.0, 0.0, 0.0)}) == []
    assert "right_kidney lies 70 mm beyond" in judged({2: (-70.0, 0.0, 0.0)})[0]


def test_everything_on_the_wrong_side_is_a_mirrored_label():
    (text,) = judged(mirrored(CENTRES, *LABELS.values))
    assert text.startswith("the label seems to be mirrored: ")
    (text,) = judged(mirrored(CENTRES, *LABELS.values), None)
    assert text == (
        "the label seems to be mirrored: right_kidney, left_kidney, right_adrenal, left_adrenal "
        "lie on the wrong side"
    )
    assert len(judged(mirrored(CENTRES, 1, 2, 13))) == 2  # spleen and others are sound


def test_only_the_classes_that_are_asked_for_count():
    assert judged(mirrored(CENTRES, 2, 13), of=[1, 3]) == []


@given(
    wrong=st.sets(st.sampled_from([1, 3, 9])),
    swapped=st.sets(st.sampled_from([(2, 13), (7, 8)])),
    shift=st.floats(-300, 300),
)
def test_exactly_the_wrong_ones_are_named(wrong, swapped, shift):
    values = {*wrong, *(value for both in swapped for value in both)}
    moved = {value: (x + shift, y, z) for value, (x, y, z) in mirrored(CENTRES, *values).items()}
    words = findall(r"\w+", " ".join(judged(moved, shift)))
    assert {label.value for label in LABELS.labels if label.name in words} == values


# ---------------------------------------------------------------------------------------------
# Real CTs


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("image", "label"),
    [("images/TSexample_0000", "labels/TSexample")]
    + [
        (f"geometry/crop_{name}_0000", f"geometry/crop_{name}")
        for name in ("RAS", "LPS", "IPL", "oblique12x7z", "thick6mm")
    ],
)
def test_real_ct(real_data, image, label):
    image = read_image(real_data / f"{image}.nii.gz")
    label = read_label(real_data / f"{label}.nii.gz")
    midline = body_midline(image.array, image.grid)
    assert midline is not None
    centres = class_centres(label.array, label.grid)
    assert judged(centres, midline) == []
    # Each organ alone is in its place too, and found if its label is flipped.
    axis = 2 - int(np.flatnonzero(label.grid.axes[:, 0] == 0)[0])
    flipped = class_centres(np.flip(label.array, axis), label.grid)
    assert "mirrored: right_kidney" in judged(flipped, midline)[0]
    for value in centres:
        assert judged(centres, midline, [value]) == []
        assert len(judged(flipped, midline, [value])) == bool(LABELS.by_value(value).side)


@pytest.mark.real_data
@pytest.mark.parametrize("case", ["00061", "00062", "00113", "00152"])
def test_real_kidneys(real_data, case):
    label = read_label(real_data / f"labels_only/kits19_case_{case}_flare.nii.gz")
    centres = class_centres(label.array, label.grid)
    assert judged(centres, None) == []
    swapped = centres | {2: centres[13], 13: centres[2]}
    assert "right_kidney lies" in judged(swapped, None)[0]


@pytest.mark.real_data
def test_real_chest_has_a_midline(real_data):
    image = read_image(real_data / "images/LIDC0314_chest_upperabd_z275_0000.nii.gz")
    assert body_midline(image.array, image.grid) is not None
