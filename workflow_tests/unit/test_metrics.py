"""DSC, NSD and HD95: worked out by hand and against the surface-distance package."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import surface_distance.lookup_tables as package_tables
import surface_distance.metrics as package
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from score_rows import frame, score_row

from panorgan.config.labels import load_labels
from panorgan.scoring import metrics, scores, surface
from panorgan.scoring.metrics import PROFILES, score_case

LABELS = load_labels()
LIVER, AORTA, TUMOUR = 1, 5, 14
UNIT = (1.0, 1.0, 1.0)
OFFICIAL = ("flare23-2023", "flare23-2024")


@pytest.fixture(autouse=True)
def _quiet_package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package's use of scipy
        yield


def volume(shape, *parts):
    """A label map from (value, index) parts."""
    labels = np.zeros(shape, np.uint8)
    for value, index in parts:
        labels[index] = value
    return labels


def score(prediction, reference, value, spacing=UNIT, profile="corrected"):
    """dsc, nsd, status of one class."""
    [row] = score_case(prediction, reference, spacing, [LABELS.by_value(value)], profile)
    return row["dsc"], row["nsd"], row["status"]


def exact(prediction, reference, tolerance, spacing):
    """Unrounded DSC and NSD of two masks."""
    box = np.array([0, prediction.shape[0], 0, prediction.shape[1], 0, prediction.shape[2]])
    words = surface.as_words(prediction), surface.as_words(reference)
    found = surface.compare(*words, 1, box, tolerance, spacing)
    return found.dsc, found.nsd


def hd95(prediction, reference, spacing):
    box = np.array([0, prediction.shape[0], 0, prediction.shape[1], 0, prediction.shape[2]])
    words = surface.as_words(prediction), surface.as_words(reference)
    return surface.compare(*words, 1, box, 1.0, spacing).hd95_mm


def package_hd95(prediction, reference, spacing, share=95.0):
    pred, ref = (np.ascontiguousarray(mask.T.astype(bool)) for mask in (prediction, reference))
    distances = package.compute_surface_distances(ref, pred, spacing[::-1])
    return package.compute_robust_hausdorff(distances, share)


def package_scores(prediction, reference, tolerance, spacing):
    """The same from the surface-distance package, in the official script's x, y, z order."""
    pred, ref = (np.ascontiguousarray(mask.T.astype(bool)) for mask in (prediction, reference))
    dsc = package.compute_dice_coefficient(ref, pred)
    if not (pred.any() and ref.any()):
        return dsc, 0.0  # the package's infinite distances need NumPy 1
    distances = package.compute_surface_distances(ref, pred, spacing[::-1])
    return dsc, package.compute_surface_dice_at_tolerance(distances, tolerance)


def package_case(prediction, reference, spacing, profile):
    """dsc and nsd of all classes, the official rules written once more around the package."""
    scores = []
    for label in LABELS.labels:
        pred, ref = prediction == label.value, reference == label.value
        if pred.any() and ref.any():
            if label.crop_slices:
                slices = np.flatnonzero(ref.any(axis=(1, 2)))
                first, last = slices[0], slices[-1]
                end = last if profile in OFFICIAL and last > first else last + 1
                pred, ref = pred[first:end], ref[first:end]
            dsc, nsd = package_scores(pred, ref, label.tolerance_mm, spacing)
            floor = {"flare23-2023": 0.1, "flare23-2024": 0.2, "corrected": 0}[profile]
            scores.append((np.round(dsc, 4), np.round(nsd, 4) if dsc >= floor else 0))
        else:
            scores.append((float(pred.any() == ref.any()),) * 2)
    return scores


def float32(*spacing):
    """A spacing as a header holds it."""
    return tuple(float(np.float32(step)) for step in spacing)


# --- surface elements ------------------------------------------------------------------------


def test_areas_equal_the_packages_table():
    spacing = (2.5, 0.7, 0.9)
    theirs = package_tables.create_table_neighbour_code_to_surface_area(spacing)
    kernel = package_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    ours = surface.areas_of(spacing)
    for code in range(256):
        corners = np.flatnonzero(kernel.ravel() & code)
        assert ours[sum(1 << int(corner) for corner in corners)] == pytest.approx(
            theirs[code], rel=1e-14
        )


def test_area_of_one_voxel_and_of_a_box():
    def area(mask, spacing):
        words = surface.as_words(mask)
        box = np.array([0, mask.shape[0], 0, mask.shape[1], 0, mask.shape[2]])
        reach = surface.reach_of(1, spacing, mask.shape)
        elements = surface.count_elements(*surface.outline(words, words, 1, box), reach)
        assert (elements[:, 0] == elements[:, 1]).all()  # equal surfaces: all within reach
        assert (elements[0] == elements[1]).all()
        return elements[0, 0] @ surface.areas_of(spacing)

    # Eight corners cut off a voxel, each a triangle between three edge midpoints: √3/8.
    assert area(np.ones((1, 1, 1), np.uint8), UNIT) == pytest.approx(np.sqrt(3))
    # A box of 3x4x5: per face the corners inside it count whole (2·(2·3 + 2·4 + 3·4) = 52), per
    # edge those inside it √2/2 (4·(2 + 3 + 4) = 36), and the eight box corners √3/8.
    assert area(np.ones((3, 4, 5), np.uint8), UNIT) == pytest.approx(
        52 + 36 * np.sqrt(2) / 2 + np.sqrt(3)
    )


def test_extents_count_voxels_and_boxes():
    labels = volume((4, 5, 19), (3, np.s_[1:3, 2:4, 7:18]), (200, np.s_[3, 4, 18]))
    table = surface.extents(surface.as_words(labels))
    assert table[3].tolist() == [44, 1, 3, 2, 4, 7, 18]
    assert table[200].tolist() == [1, 3, 4, 4, 5, 18, 19]
    assert surface.values_in(labels) == {3, 200}


def test_reach_lists_whole_rows_nearest_first():
    # Tolerance 2 at 2 mm slices and 1 mm pixels: 2 = 2 is still within, √(1 + 1) too.
    reach = surface.reach_of(2.0, (2.0, 1.0, 1.0), (9, 9, 9)).tolist()
    assert reach[0] == [0, 0, 2]
    assert sorted(reach) == [[-1, 0, 0], [0, -2, 0], [0, -1, 1], [0, 0, 2], [0, 1, 1], [0, 2, 0],
                             [1, 0, 0]]  # fmt: skip


# --- by hand ---------------------------------------------------------------------------------


def shifted_boxes():
    """Two boxes of 4x4x4 voxels, one voxel apart along x: 48 of 64 voxels in common."""
    reference = volume((8, 8, 9), (LIVER, np.s_[2:6, 2:6, 2:6]))
    return np.roll(reference, 1, axis=2), reference


def test_boxes_shifted_by_one_voxel_by_hand():
    prediction, reference = shifted_boxes()
    spacing = (2.0, 2.0, 2.0)
    # Below one voxel's 2 mm only corners on both surfaces are near. In voxel faces: each surface
    # has 54 whole corners on faces (6·9), 36 on edges (12·3, √2/2 each), 8 box corners (√3/8).
    # Common are the planes x = 1 to 4 of the 5x5 ring: for either box three planes with 12 face
    # and 4 edge corners and its end plane with 12 edge and 4 box corners.
    near = 3 * (12 + 4 * np.sqrt(2) / 2) + 12 * np.sqrt(2) / 2 + 4 * np.sqrt(3) / 8
    total = 54 + 36 * np.sqrt(2) / 2 + 8 * np.sqrt(3) / 8
    assert exact(prediction, reference, 1.9, spacing) == pytest.approx((0.75, near / total))
    # At exactly the distance between the end planes everything is near.
    assert exact(prediction, reference, 2.0, spacing) == (0.75, 1.0)
    assert exact(prediction, reference, np.nextafter(2.0, 0), spacing)[1] < 0.7


def test_equal_masks_score_one():
    _, reference = shifted_boxes()
    assert score(reference, reference, LIVER) == (1.0, 1.0, "scored")


def test_mask_that_fills_the_volume():
    full = np.full((3, 4, 5), LIVER, np.uint8)
    assert score(full, full, LIVER) == (1.0, 1.0, "scored")


@pytest.mark.parametrize("profile", PROFILES)
def test_empty_masks(profile):
    empty = np.zeros((4, 4, 4), np.uint8)
    for value in (LIVER, AORTA, TUMOUR):
        there = volume((4, 4, 4), (value, np.s_[1:3, 1:3, 1:3]))
        assert score(empty, empty, value, profile=profile) == (1.0, 1.0, "both_empty")
        assert score(empty, there, value, profile=profile) == (0.0, 0.0, "missed")
        assert score(there, empty, value, profile=profile) == (0.0, 0.0, "false_positive")


def test_neighbouring_voxels_have_no_dsc_but_a_near_surface():
    prediction = volume((3, 3, 3), (TUMOUR, np.s_[1, 1, 1]))
    reference = volume((3, 3, 3), (TUMOUR, np.s_[1, 1, 2]))
    assert score(prediction, reference, TUMOUR) == (0.0, 1.0, "scored")
    for profile in OFFICIAL:
        assert score(prediction, reference, TUMOUR, profile=profile) == (0.0, 0.0, "scored")


def test_voxels_too_far_apart():
    prediction = volume((3, 3, 30), (TUMOUR, np.s_[1, 1, 1]))
    reference = volume((3, 3, 30), (TUMOUR, np.s_[1, 1, 20]))
    assert score(prediction, reference, TUMOUR) == (0.0, 0.0, "scored")


@pytest.mark.parametrize(
    ("common", "scored_by"),
    [
        (1, {"flare23-2023", "corrected"}),  # DSC 2·1/20 = 0.1: not below 0.1
        (2, {"flare23-2023", "flare23-2024", "corrected"}),  # DSC 2·2/20 = 0.2: not below 0.2
        (0, {"corrected"}),
    ],
)
def test_floor_of_each_profile(common, scored_by):
    reference = volume((1, 1, 20), (LIVER, np.s_[0, 0, :10]))
    prediction = volume((1, 1, 20), (LIVER, np.s_[0, 0, 10 - common : 20 - common]))
    for profile in PROFILES:
        dsc, nsd, _ = score(prediction, reference, LIVER, profile=profile)
        assert dsc == common / 10
        assert (nsd > 0) == (profile in scored_by)


def test_cropped_class_loses_the_references_last_slice():
    # Reference on slices 2 to 5, prediction on 0 to 4 with the same 2x2 voxels in each.
    reference = volume((9, 4, 4), (AORTA, np.s_[2:6, 1:3, 1:3]))
    prediction = volume((9, 4, 4), (AORTA, np.s_[0:5, 1:3, 1:3]))
    for profile in OFFICIAL:  # slices 2 to 4: no difference left
        assert score(prediction, reference, AORTA, profile=profile) == (1.0, 1.0, "scored")
    # Slices 2 to 5: 12 predicted, 16 in the reference, 12 common: 24/28. Its end is 1 slice off,
    # nearer than the aorta's 2 mm, and farther with slices of 3 mm.
    assert score(prediction, reference, AORTA) == (0.8571, 1.0, "scored")
    assert score(prediction, reference, AORTA, (3, 1, 1))[1] < 1
    # A class that is not cropped counts all: 20 predicted, 16 in the reference, 12 common.
    prediction[prediction > 0] = reference[reference > 0] = LIVER
    assert score(prediction, reference, LIVER, profile=OFFICIAL[0])[0] == 0.6667


def test_crop_is_along_the_first_axis_only():
    reference = volume((4, 9, 4), (AORTA, np.s_[1:3, 2:6, 1:3]))
    prediction = volume((4, 9, 4), (AORTA, np.s_[1:3, 0:9, 1:3]))
    assert score(prediction, reference, AORTA)[0] == round(2 * 4 / (4 + 9), 4)


@pytest.mark.parametrize("profile", PROFILES)
def test_cropped_class_on_a_single_slice_keeps_it(profile):
    reference = volume((5, 6, 6), (AORTA, np.s_[2, 1:5, 1:5]))
    prediction = volume((5, 6, 6), (AORTA, np.s_[1:4, 1:5, 1:4]))
    # On slice 2: 16 and 12 voxels, 12 common.
    assert score(prediction, reference, AORTA, profile=profile) == (0.8571, 1.0, "scored")


@pytest.mark.parametrize("profile", PROFILES)
def test_prediction_outside_the_references_slices_is_no_empty_prediction(profile):
    reference = volume((9, 4, 4), (AORTA, np.s_[0:3, 1:3, 1:3]))
    prediction = volume((9, 4, 4), (AORTA, np.s_[7:9, 1:3, 1:3]))
    assert score(prediction, reference, AORTA, profile=profile) == (0.0, 0.0, "scored")


def test_values_are_cast_to_int8():
    whole = volume((2, 3, 4), (13, np.s_[0, 1:, 1:]))
    scaled = np.where(whole == 13, 13.9986, 0)
    assert score(scaled, whole, 13) == (1.0, 1.0, "scored")
    assert score(scaled, whole, 14) == (1.0, 1.0, "both_empty")
    assert score(whole.astype(np.int16), whole.astype(np.int64), 13) == (1.0, 1.0, "scored")


def test_rounding_is_numpys():
    # 2·2469/40000 = 0.12345; as the official script to the even 0.1234, Python says 0.1235.
    labels = np.zeros(40000, np.uint8)
    reference, prediction = labels.copy(), labels.copy()
    reference[:20000] = prediction[20000 - 2469 : 40000 - 2469] = LIVER
    prediction, reference = prediction.reshape(1, 200, 200), reference.reshape(1, 200, 200)
    assert round(0.12345, 4) == 0.1235
    assert score(prediction, reference, LIVER)[0] == 0.1234


def test_rows_volumes_and_unknown_classes():
    reference = volume((4, 4, 4), (LIVER, np.s_[0, 0, :3]), (TUMOUR, np.s_[1, 1, 1]))
    prediction = volume((4, 4, 4), (LIVER, np.s_[0, 0, :2]), (TUMOUR, np.s_[1, 1, 1]))
    classes = [LABELS.by_value(LIVER), LABELS.tumour]
    rows = score_case(prediction, reference, (5, 10, 10), classes, "corrected", unknown=[TUMOUR])
    liver, tumour = rows
    assert list(liver) == list(metrics.SCORES)
    assert (liver["value"], liver["name"], liver["status"]) == (1, "liver", "scored")
    assert (liver["ref_ml"], liver["pred_ml"]) == (1.5, 1.0)
    assert liver["dsc"] == liver["dsc_corrected"] == liver["dsc_flare23-2023"] == 0.8
    assert (tumour["status"], tumour["pred_ml"]) == ("not_scored", 0.5)
    others = set(metrics.DECIMALS) - {"pred_ml"}
    assert {key: tumour[key] for key in others} == dict.fromkeys(others)
    everything = score_case(prediction, reference, (5, 10, 10), LABELS, "corrected")
    assert [row["value"] for row in everything] == list(LABELS.values)


def test_other_shapes_and_profiles_are_refused():
    labels = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(ValueError, match="different shapes"):
        score_case(labels, labels[:, :, :3], UNIT, LABELS, "corrected")
    with pytest.raises(KeyError, match="flare22"):
        score_case(labels, labels, UNIT, LABELS, "flare22")


def test_every_profile_is_in_a_row_whichever_was_asked_for():
    # 10 of 2·60 voxels in common: DSC 1/6, between the floors; cropped, the last slice counts.
    reference = volume((6, 4, 12), (AORTA, np.s_[1:5, :, :5]), (LIVER, np.s_[1, :3, 6:11]))
    prediction = volume((6, 4, 12), (AORTA, np.s_[1:4, :, :5]), (LIVER, np.s_[1, 1:, 8:]))
    rows = {
        profile: score_case(prediction, reference, UNIT, LABELS, profile) for profile in PROFILES
    }
    for profile, own in rows.items():
        for line, other in zip(own, rows["corrected"], strict=True):
            assert line["dsc"] == line[f"dsc_{profile}"]
            assert line["nsd"] == line[f"nsd_{profile}"]
            columns = [f"{name}_{one}" for one in PROFILES for name in ("dsc", "nsd")]
            assert [line[key] for key in columns] == [other[key] for key in columns]
    aorta = rows["corrected"][AORTA - 1]
    assert aorta["dsc_flare23-2023"] == aorta["dsc_flare23-2024"] == 1.0
    assert aorta["dsc_corrected"] == pytest.approx(2 * 60 / 140, abs=1e-4)


def test_threads_change_nothing():
    prediction, reference = shifted_boxes()
    one = score_case(prediction, reference, UNIT, LABELS, "corrected")
    assert score_case(prediction, reference, UNIT, LABELS, "corrected", threads=2) == one


# --- HD95 -------------------------------------------------------------------------------------


def test_hd95_by_hand():
    # Two plates of one voxel's thickness, 10 mm apart: every element is as far from the other.
    first = volume((9, 20, 20), (1, np.s_[1, 2:18, 2:18]))
    second = np.roll(first, 5, axis=0)
    assert hd95(first, second, (2.0, 1.0, 1.0)) == 10.0
    assert hd95(first, first, (2.0, 1.0, 1.0)) == 0.0
    # A far voxel is less than 5 % of a plate's surface, but all of its own.
    with_speck = first.copy()
    with_speck[8, 0, 0] = 1
    assert hd95(with_speck, first, (2.0, 1.0, 1.0)) == 0.0
    speck = volume((9, 20, 20), (1, np.s_[8, 0, 0]))
    assert hd95(speck, first, (2.0, 1.0, 1.0)) > 14


def test_hd95_is_of_the_direction_that_is_worse():
    small = volume((1, 1, 60), (1, np.s_[0, 0, :2]))
    large = volume((1, 1, 60), (1, np.s_[0, 0, :50]))
    # From the small one nearly all of the large one is far; the other way nothing is.
    assert hd95(small, large, UNIT) == hd95(large, small, UNIT)
    assert hd95(small, large, UNIT) == package_hd95(small, large, UNIT)


def test_hd95_only_where_both_are():
    there = volume((4, 4, 4), (LIVER, np.s_[1:3, 1:3, 1:3]))
    none = np.zeros_like(there)
    for pair in ((there, none), (none, there), (none, none)):
        assert all(line["hd95_mm"] is None for line in score_case(*pair, UNIT, LABELS, "corrected"))
    # In the slices that count the prediction is empty.
    prediction = volume((6, 4, 4), (AORTA, np.s_[0, 1:3, 1:3]))
    reference = volume((6, 4, 4), (AORTA, np.s_[3:5, 1:3, 1:3]))
    assert (
        score_case(prediction, reference, UNIT, LABELS, "corrected")[AORTA - 1]["hd95_mm"] is None
    )


# --- against the surface-distance package ----------------------------------------------------

STEPS = st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.78125, 1.0, 1.2, 1.25, 2.0, 2.5, 3.0, 5.0])
TOLERANCES = st.sampled_from([0.5, 1.0, 2.0, 2.5, 3.0, 5.0, 7.0])
SHAPES = st.tuples(*(st.integers(1, size) for size in (6, 8, 20)))


@st.composite
def mask_pairs(draw):
    shape = draw(SHAPES)
    masks = arrays.arrays(np.uint8, shape, elements=st.integers(0, 1), fill=st.just(0))
    pair = draw(masks), draw(masks)
    for mask in pair:  # a block, as random voxels alone have no inside
        corner = [draw(st.integers(0, size - 1)) for size in shape]
        lengths = [draw(st.integers(1, size)) for size in shape]
        mask[tuple(slice(a, a + n) for a, n in zip(corner, lengths, strict=True))] = 1
    return pair


@settings(max_examples=120)
@given(mask_pairs(), st.tuples(STEPS, STEPS, STEPS), TOLERANCES)
def test_parity_with_the_package(pair, steps, tolerance):
    spacing = float32(*steps)
    theirs = package_scores(*pair, tolerance, spacing)
    assert exact(*pair, tolerance, spacing) == pytest.approx(theirs, abs=1e-9)


@settings(max_examples=120)
@given(mask_pairs(), st.tuples(STEPS, STEPS, STEPS))
def test_hd95_parity_with_the_package(pair, steps):
    spacing = float32(*steps)
    # Where the share falls on the end of a distance, the order of a sum decides in the package.
    theirs = [package_hd95(*pair, spacing, 95.0 + shift) for shift in (-1e-7, 0.0, 1e-7)]
    assert any(hd95(*pair, spacing) == pytest.approx(one, abs=1e-9) for one in theirs)


def test_hd95_of_far_and_scattered_masks():
    rng = np.random.default_rng(5)
    for shape, share in (((2, 3, 700), 0.002), ((9, 60, 130), 0.0005), ((12, 30, 64), 0.2)):
        pair = [(rng.random(shape) < share).astype(np.uint8) for _ in range(2)]
        spacing = float32(2.5, 0.8, 0.7)
        assert hd95(*pair, spacing) == pytest.approx(package_hd95(*pair, spacing), abs=1e-9)


@settings(max_examples=40)
@given(mask_pairs(), st.tuples(STEPS, STEPS, STEPS), TOLERANCES, st.permutations(range(3)))
def test_symmetries(pair, steps, tolerance, axes):
    pred, ref = pair
    expected = pytest.approx(exact(pred, ref, tolerance, steps), abs=1e-9)
    assert exact(ref, pred, tolerance, steps) == expected
    assert exact(np.flip(pred, axes[0]), np.flip(ref, axes[0]), tolerance, steps) == expected
    assert exact(pred, ref, 4 * tolerance, tuple(4 * step for step in steps)) == expected
    padded = [np.pad(mask, ((2, 0), (1, 3), (axes[0], 9))) for mask in pair]
    assert exact(*padded, tolerance, steps) == expected


@settings(max_examples=40)
@given(mask_pairs(), st.tuples(STEPS, STEPS, STEPS), TOLERANCES, st.permutations(range(3)))
def test_turned_axes(pair, steps, tolerance, axes):
    spacing = float32(*steps)  # so that the order of the squares cannot decide a tie
    turned = [mask.transpose(axes) for mask in pair]
    assert exact(*turned, tolerance, tuple(spacing[axis] for axis in axes)) == pytest.approx(
        exact(*pair, tolerance, spacing), abs=1e-9
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_random_label_maps_by_the_official_rules(profile):
    rng = np.random.default_rng(sorted(PROFILES).index(profile))
    # Three profiles of twelve cases of 14 classes: 504 labels.
    for spacing in 3 * ((2.5, 0.78, 0.78), (1.0, 1.0, 1.0), (5.0, 0.9, 0.7), (0.7, 1.5, 1.5)):
        spacing = float32(*spacing)
        shape = rng.integers((5, 12, 17), (12, 24, 41))
        # Blocks of classes, some absent; the prediction is moved, with salt noise in some places.
        coarse = rng.integers(0, 15, (3, 4, 5)) * (rng.random((3, 4, 5)) < 0.7)
        index = [np.arange(n) * c // n for n, c in zip(shape, coarse.shape, strict=True)]
        reference = coarse[np.ix_(*index)].astype(np.uint8)
        prediction = np.roll(reference, rng.integers(0, 3, 3), (0, 1, 2))
        noisy = rng.random(shape) < 0.03
        prediction[noisy] = rng.integers(0, 13, noisy.sum())
        rows = score_case(prediction, reference, spacing, LABELS, profile)
        expected = package_case(prediction, reference, spacing, profile)
        assert [(row["dsc"], row["nsd"]) for row in rows] == expected


def test_salt_noise():
    rng = np.random.default_rng(3)
    reference = volume((20, 48, 50), (LIVER, np.s_[4:15, 10:40, 5:44]))
    prediction = reference.copy()
    noisy = rng.random(reference.shape) < 0.02
    prediction[noisy] = rng.integers(0, 15, noisy.sum())
    spacing = float32(2.5, 0.8, 0.8)
    rows = score_case(prediction, reference, spacing, LABELS, "flare23-2024")
    expected = package_case(prediction, reference, spacing, "flare23-2024")
    assert [(row["dsc"], row["nsd"]) for row in rows] == expected


def test_reach_longer_than_a_word_of_64_corners():
    rng = np.random.default_rng(4)
    pair = [(rng.random((2, 3, 3000)) < 0.0005).astype(np.uint8) for _ in range(2)]
    for tolerance in (2.0, 5.0):
        spacing = float32(3, 3, 0.05)  # 5 mm are 100 voxels
        ours = exact(*pair, tolerance, spacing)
        assert ours == pytest.approx(package_scores(*pair, tolerance, spacing), abs=1e-9)
        assert 0.05 < ours[1] < 1


# --- the kernels -----------------------------------------------------------------------------


def test_any_memory_layout_gives_the_same_and_compiles_nothing_new():
    prediction, reference = shifted_boxes()
    expected = score(prediction, reference, LIVER)
    frozen = prediction.copy()
    frozen.setflags(write=False)
    shape = (8, 8, 16)
    unaligned = np.zeros(np.prod(shape) + 1, np.uint8)[1:].reshape(shape)
    unaligned[:, :, :9] = prediction
    reference_too = np.zeros(shape, np.uint8)
    reference_too[:, :, :9] = reference
    assert score(frozen, reference, LIVER) == expected
    assert score(np.asfortranarray(prediction), reference, LIVER) == expected
    assert score(unaligned, reference_too, LIVER) == expected
    kernels = (
        surface.extents,
        surface.outline,
        surface.count_voxels,
        surface.count_elements,
        surface.measure_elements,
        surface.near_areas,
    )
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)


def test_importing_the_module_loads_no_numba():
    code = "import sys, panorgan.scoring.metrics; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- summary ---------------------------------------------------------------------------------


def row(case, value, dsc, nsd, status="scored", ref_ml=1.0, pred_ml=1.0):
    volumes = {"ref_ml": ref_ml, "pred_ml": pred_ml}
    return score_row(case, LABELS.by_value(value).name, dsc, nsd, status, **volumes)


def summarise(rows, *how, **more):
    return scores.summarise(frame(rows), *how, **more)


def without_intervals(entry):
    return {key: value for key, value in entry.items() if not key.endswith("_interval")}


def means(entry):
    return {key: entry[key] for key in ("value", "dsc", "nsd", "cases")}


def test_summary_by_hand():
    rows = [
        row("a", 1, 0.9, 0.8),
        row("b", 1, 0.8, 0.7),
        row("a", 2, 0.5, 0.4),
        row("b", 2, None, None, "not_scored", ref_ml=None),
        row("a", 14, 0.6, 0.5),
        row("b", 14, 0.0, 0.0, "false_positive", ref_ml=0.0, pred_ml=2.5),
        row("c", 14, 1.0, 1.0, "both_empty", ref_ml=0.0, pred_ml=0.0),
        row("d", 14, 0.0, 0.0, "missed", pred_ml=0.0),
        row("e", 14, 0.0, 0.0, "false_positive", ref_ml=0.0, pred_ml=0.25),
        row("f", 14, None, None, "not_scored", ref_ml=None, pred_ml=9.0),
    ]
    summary = summarise(rows, LABELS, "corrected")
    assert summary["profile"] == "corrected"
    assert summary["cases"] == 6
    assert means(summary["classes"]["liver"]) == {"value": 1, "dsc": 0.85, "nsd": 0.75, "cases": 2}
    assert means(summary["classes"]["right_kidney"]) == {
        "value": 2,
        "dsc": 0.5,
        "nsd": 0.4,
        "cases": 1,
    }
    assert means(summary["classes"]["spleen"]) == {"value": 3, "dsc": None, "nsd": None, "cases": 0}
    assert list(summary["classes"]) == list(LABELS.names)
    # (0.85 + 0.5)/2 = 0.675 and (0.75 + 0.4)/2; the tumour: 1.6/5 and 1.5/5.
    assert without_intervals(summary["organs"]) == {"dsc": 0.675, "nsd": 0.575, "classes": 2}
    tumour = without_intervals(summary["tumour"])
    tumour["positive"] = without_intervals(tumour["positive"])
    assert tumour == {
        "dsc": 0.32,
        "nsd": 0.3,
        "cases": 5,
        "positive": {"dsc": 0.3, "nsd": 0.25, "cases": 2},
        "tumour_free": {"cases": 3, "false_positives": 2, "false_positive_ml": 2.75},
    }
    # (0.85 + 0.5 + 0.32)/3 and (0.75 + 0.4 + 0.3)/3.
    assert without_intervals(summary["all"]) == {"dsc": 0.5567, "nsd": 0.4833, "classes": 3}
    for profile in PROFILES:  # the rows have the same scores by all
        for key in ("organs", "tumour", "all"):
            own = summary["profiles"][profile][key]
            assert own == {score: summary[key][score] for score in ("dsc", "nsd")}
    assert summary["lesions"] is None
    json.dumps(summary)


def test_volume_errors_and_hd95_by_hand():
    rows = [
        row("a", 1, 0.9, 0.8, ref_ml=100.0, pred_ml=110.0) | {"hd95_mm": 2.0},
        row("b", 1, 0.8, 0.7, ref_ml=100.0, pred_ml=70.0) | {"hd95_mm": 9.0},
        row("c", 1, 0.0, 0.0, "missed", ref_ml=30.0, pred_ml=0.0),
        row("d", 1, None, None, "not_scored", ref_ml=None, pred_ml=500.0),
    ]
    liver = summarise(rows, LABELS, "corrected")["classes"]["liver"]
    # (10 - 30 - 30)/3 and (10 + 30 + 30)/3.
    assert (liver["ml_error"], liver["ml_abs_error"]) == (-16.6667, 23.3333)
    assert (liver["hd95_mm"], liver["hd95_cases"], liver["one_sided"]) == (5.5, 2, 1)


def test_profiles_are_averaged_apart():
    rows = [row("a", 1, 0.15, 0.5) | {"nsd_flare23-2024": 0.0}]
    summary = summarise(rows, LABELS, "flare23-2023")
    assert summary["organs"]["nsd"] == 0.5
    assert summary["profiles"]["flare23-2024"]["organs"] == {"dsc": 0.15, "nsd": 0.0}


def test_intervals_are_over_cases():
    alike = [row(case, 1, 0.7, 0.6) for case in "abcdef"]
    liver = summarise(alike, LABELS, "corrected")["classes"]["liver"]
    assert (liver["dsc_interval"], liver["nsd_interval"]) == ([0.7, 0.7], [0.6, 0.6])
    # Of 0 and 1 in equal parts in 100 cases: a mean of 0.5 with a deviation of 0.05.
    apart = [row(f"{i:03}", value, float(i % 2), 0.5) for i in range(100) for value in (1, 2)]
    summary = summarise(apart, LABELS, "corrected", samples=4000)
    for entry in (summary["classes"]["liver"], summary["organs"], summary["all"]):
        # Both classes fail in the same cases: their mean is no surer than one of them.
        assert entry["dsc_interval"] == pytest.approx([0.402, 0.598], abs=0.011)
    assert summary["classes"]["spleen"]["dsc_interval"] is None
    assert summary["samples"] == 4000


@pytest.mark.parametrize(("cases", "some"), [(4, False), (5, True)])
def test_intervals_need_five_cases_of_each_class(cases, some):
    rows = [row(f"c{i}", 1, i / 10, 0.5) for i in range(9)]
    rows += [row(f"c{i}", 2, i / 10, 0.5) for i in range(cases)]
    rows += [row(f"c{i}", 14, i / 10, 0.5) for i in range(cases)]
    rows += [row(f"c{i}", 14, 1, 1, "both_empty", ref_ml=0) for i in range(cases, 9)]
    summary = summarise(rows, LABELS, "corrected")
    assert summary["classes"]["liver"]["dsc_interval"] is not None
    assert summary["tumour"]["dsc_interval"] is not None
    for few in (summary["classes"]["right_kidney"], summary["tumour"]["positive"]):
        assert (few["dsc_interval"] is not None) is some
    for mean in (summary["organs"], summary["all"]):
        assert (mean["nsd_interval"] is not None) is some


def test_means_without_the_classes_that_no_reference_has_by_hand():
    rows = [
        row("a", 1, 0.9, 0.8),
        row("b", 1, 0.0, 0.0, "missed", pred_ml=0.0),  # in a reference all the same
        row("a", 9, 1, 1, "both_empty", ref_ml=0, pred_ml=0),
        row("b", 9, 0, 0, "false_positive", ref_ml=0),
        row("a", 10, None, None, "not_scored", ref_ml=None),
        *(row(case, 14, 1, 1, "both_empty", ref_ml=0, pred_ml=0) for case in "ab"),
    ]
    summary = summarise(rows, LABELS, "corrected")
    assert summary["organs"]["dsc"] == 0.475  # of 0.45 and 0.5
    assert summary["all"]["dsc"] == 0.65
    found = summary["with_reference"]
    assert found["absent"] == ["gallbladder", "tumour"]
    for part in ("organs", "all"):
        assert without_intervals(found[part]) == {"dsc": 0.45, "nsd": 0.4, "classes": 1}
    only = [one for one in rows if one["value"] == 14]
    nothing = summarise(only, LABELS, "corrected")["with_reference"]
    assert without_intervals(nothing["all"]) == {"dsc": None, "nsd": None, "classes": 0}


def test_where_each_class_has_a_reference_the_means_are_the_same():
    rows = [row(case, value, 0.5, 0.6) for case in "abcdef" for value in (1, 9, 14)]
    summary = summarise(rows, LABELS, "corrected")
    parts = {part: summary[part] for part in ("organs", "all")}
    assert summary["with_reference"] == {"absent": [], **parts}


def test_equal_predictions_are_counted():
    same = {"hd95_mm": 0.0}
    rows = [
        row("all", 1, 1, 1) | same,
        row("all", 2, 1, 1, "both_empty", ref_ml=0, pred_ml=0),
        row("all", 3, None, None, "not_scored", ref_ml=None),
        row("one_off", 1, 1, 1) | same,
        row("one_off", 2, 0.99, 1) | same,
        row("larger", 1, 1, 1, pred_ml=1.001) | same,  # by less than the rounding of DSC
        row("missed", 1, 1, 1) | same,
        row("missed", 2, 0, 0, "missed", pred_ml=0),
        row("empty", 1, 1, 1, "both_empty", ref_ml=0, pred_ml=0),
    ]
    assert summarise(rows, LABELS, "flare23-2023")["equal_cases"] == 1
    assert summarise([], LABELS, "corrected")["equal_cases"] == 0


def test_summary_without_cases():
    summary = summarise([], LABELS, "corrected")
    nothing = {"dsc": None, "nsd": None}
    nothing |= {"dsc_interval": None, "nsd_interval": None}
    assert summary["organs"] == summary["all"] == {**nothing, "classes": 0}
    assert summary["tumour"]["positive"] == {**nothing, "cases": 0}


def test_means_are_rounded_one_after_the_other():
    # Class means 0.0000333 -> 0 twice and 0.0001; their mean 0.0000333 -> 0, while the mean of the
    # unrounded ones, 0.0000556, would be 0.0001.
    rows = [row("a", value, 0.0001, 1) for value in (1, 2, 3)]
    rows += [row(case, value, 0.0, 1) for case in "bc" for value in (1, 2)]
    assert summarise(rows, LABELS, "corrected")["organs"]["dsc"] == 0.0


def test_summary_does_not_depend_on_the_rows_order():
    rng = np.random.default_rng(0)
    rows = [row(f"case{i}", 1, *np.round(rng.random(2), 4)) for i in range(50)]
    summary = summarise(rows, LABELS, "corrected")
    for _ in range(20):
        rng.shuffle(rows)
        assert summarise(rows, LABELS, "corrected") == summary
