"""Tumours one by one: what is found, what is false, sizes and places."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from panorgan.config.labels import load_labels
from panorgan.io.frames import records
from panorgan.io.volumes import new_volume
from panorgan.problems import Problems
from panorgan.scoring.frames import LESIONS, SCORES
from panorgan.scoring.lesions import find_lesions
from panorgan.scoring.metrics import score_case
from panorgan.scoring.scores import read_lesions, summarise_lesions

LABELS = load_labels()
TUMOUR = LABELS.tumour.value
SPACING = (5.0, 2.0, 2.0)  # 0.02 ml a voxel


def tumours(shape, *places):
    array = np.zeros(shape, np.uint8)
    for place in places:
        array[place] = TUMOUR
    return array


def lesions(prediction, reference, **how):
    grid = new_volume(reference, SPACING).grid
    return find_lesions(prediction, reference, grid, TUMOUR, **how)


def hits(rows, side):
    return [row["hit"] for row in rows if row["side"] == side]


def test_found_missed_true_and_false():
    shape = (6, 20, 40)
    found, missed, false = np.s_[1:3, 2:7, 2:7], np.s_[4, 10:13, 10:13], np.s_[1:3, 15:18, 30:34]
    reference = tumours(shape, found, missed)
    prediction = tumours(shape, np.s_[1:3, 4:9, 2:7], false)
    rows = lesions(prediction, reference)
    assert [(row["side"], row["lesion"], row["hit"]) for row in rows] == [
        ("reference", 1, True),
        ("reference", 2, False),
        ("prediction", 1, True),
        ("prediction", 2, False),
    ]
    assert [row["ml"] for row in rows] == [1.0, 0.18, 1.0, 0.48]
    assert [row["overlap"] for row in rows] == [0.6, 0.0, 0.6, 0.0]
    # A sphere of 1 ml: the cube root of 6000/π.
    assert rows[0]["diameter_mm"] == 12.41
    assert rows[0]["centre_zyx"] in ("1 4 4", "2 4 4")
    assert rows[1]["centre_zyx"] == "4 11 11"


def test_a_lesions_overlap_decides_and_at_the_bound_it_counts():
    reference = tumours((1, 1, 20), np.s_[0, 0, :10])
    for predicted, overlap, hit in ((1, 0.1, True), (1, 0.11, False), (5, 0.5, True)):
        prediction = tumours((1, 1, 20), np.s_[0, 0, 10 - predicted : 10])
        assert hits(lesions(prediction, reference, overlap=overlap), "reference") == [hit]
        assert hits(lesions(prediction, reference, overlap=overlap), "prediction") == [True]


def test_a_prediction_that_covers_two_finds_both_and_one_far_too_large_is_false():
    reference = tumours((1, 1, 60), np.s_[0, 0, 10:13], np.s_[0, 0, 15:18])
    rows = lesions(tumours((1, 1, 60), np.s_[0, 0, 10:18]), reference)
    assert (hits(rows, "reference"), hits(rows, "prediction")) == ([True, True], [True])
    # 6 of 61 voxels, less than a tenth; but whatever it covers is found.
    wide = tumours((1, 1, 61), np.s_[0, 0, :])
    rows = lesions(wide, np.pad(reference, ((0, 0), (0, 0), (0, 1))))
    assert (hits(rows, "reference"), hits(rows, "prediction")) == ([True, True], [False])


def test_pieces_touch_by_corners_and_other_classes_are_nothing():
    reference = tumours((2, 2, 2), np.s_[0, 0, 0], np.s_[1, 1, 1])
    reference[0, 1, 1] = 3
    assert len(lesions(np.zeros_like(reference), reference)) == 1
    assert lesions(np.full_like(reference, 3), np.full_like(reference, 5)) == []


def test_centre_is_in_the_lesion_and_in_the_patients_space():
    # A ring: its centroid is in its hole.
    ring = tumours((1, 9, 9), np.s_[0, 1:8, 1:8])
    ring[0, 3:6, 3:6] = 0
    [row] = lesions(np.zeros_like(ring), ring)
    z, y, x = map(int, row["centre_zyx"].split())
    assert ring[z, y, x] == TUMOUR
    grid = new_volume(ring, SPACING).grid
    place = grid.affine[:3, :3] @ (4, 4, 0) + grid.origin
    assert [float(mm) for mm in row["centre_mm"].split()] == pytest.approx(place, abs=0.01)


MASKS = st.tuples(*(st.integers(1, size) for size in (4, 6, 9))).flatmap(
    lambda shape: st.tuples(
        *[arrays.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False))] * 2
    )
)


@settings(max_examples=80)
@given(MASKS, st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_against_a_plain_loop(masks, overlap):
    prediction, reference = (mask.astype(np.uint8) * TUMOUR for mask in masks)
    expected = []
    for own, other in ((masks[1], masks[0]), (masks[0], masks[1])):
        ids, count = ndimage.label(own, np.ones((3, 3, 3)))
        for number in range(1, count + 1):
            piece = ids == number
            share = (piece & other).sum() / piece.sum()
            expected.append((piece.sum() * 0.02, share, bool(share >= overlap)))
    rows = lesions(prediction, reference, overlap=overlap)
    found = [(row["ml"], row["overlap"], row["hit"]) for row in rows]
    assert sorted(found) == sorted(map(rounded, expected))
    assert [row["ml"] for row in rows if row["side"] == "reference"] == sorted(
        (row["ml"] for row in rows if row["side"] == "reference"), reverse=True
    )
    # The two sides change places.
    swapped = lesions(reference, prediction, overlap=overlap)
    assert hits(swapped, "prediction") == hits(rows, "reference")


def rounded(row):
    ml, share, hit = row
    return round(ml, 3), round(share, 4), hit


def summary_of(cases, **how):
    rows, scores = [], []
    for case, (prediction, reference) in cases.items():
        rows += [{"case": case, **row} for row in lesions(prediction, reference)]
        found = score_case(prediction, reference, SPACING, [LABELS.tumour], "corrected")
        scores += [{"case": case, **row} for row in found]
    return summarise_lesions(LESIONS.frame(rows), SCORES.frame(scores), TUMOUR, **how)


def test_summary_by_hand():
    shape = (6, 20, 40)
    empty = np.zeros(shape, np.uint8)
    small, large, false = np.s_[5, 0, 0], np.s_[1:3, 2:7, 2:7], np.s_[1:3, 15:18, 30:34]
    summary = summary_of(
        {
            "a": (tumours(shape, large, false), tumours(shape, small, large)),
            "b": (empty, tumours(shape, small)),
            "free": (tumours(shape, false, small), empty),
            "clean": (empty, empty),
        },
        sizes_mm=[5, 20],
        samples=50,
    )
    assert (summary["cases"], summary["overlap"]) == (4, 0.1)
    assert (summary["reference"], summary["found"], summary["sensitivity"]) == (3, 1, 0.3333)
    assert (summary["prediction"], summary["true"], summary["precision"]) == (4, 1, 0.25)
    assert summary["false_per_case"] == 0.75
    assert summary["tumour_free"] == {"cases": 2, "false": 2, "false_per_case": 1.0}
    # 0.02 ml have 3.4 mm, 0.48 ml 9.7 mm, 1 ml 12.4 mm.
    assert [
        (size["title"], size["reference"], size["found"], size["prediction"], size["true"])
        for size in summary["sizes"]
    ] == [
        ("below 5 mm", 2, 0, 1, 0),
        ("5 to 20 mm", 1, 1, 3, 1),
        ("20 mm and more", 0, 0, 0, 0),
    ]
    assert summary["sizes"][2]["sensitivity"] is None
    assert summary["sensitivity_interval"] is summary["precision_interval"] is None


def test_a_rate_has_an_interval_if_five_cases_have_such_a_lesion():
    """Of ten cases four have a tumour in the reference and six a predicted one, three true."""
    shape, place = (6, 20, 40), np.s_[1:3, 2:7, 2:7]
    with_one, empty = tumours(shape, place), np.zeros(shape, np.uint8)
    pairs = [(with_one, with_one)] * 3 + [(empty, with_one)] + [(with_one, empty)] * 3
    pairs += [(empty, empty)] * 3
    summary = summary_of({f"c{at}": pair for at, pair in enumerate(pairs)}, samples=200)
    assert (summary["sensitivity"], summary["sensitivity_interval"]) == (0.75, None)
    low, high = summary["precision_interval"]
    assert 0 <= low < summary["precision"] == 0.5 < high <= 1


def test_a_tumour_of_one_voxel_is_one():
    # Its volume is rounded to 0.000 ml.
    tiny = tumours((3, 3, 3), np.s_[1, 1, 1])
    grid = new_volume(tiny, (0.5, 0.5, 0.5)).grid
    rows = [{"case": "a", **row} for row in find_lesions(np.zeros_like(tiny), tiny, grid, TUMOUR)]
    scores = score_case(np.zeros_like(tiny), tiny, (0.5,) * 3, [LABELS.tumour], "corrected")
    summary = summarise_lesions(
        LESIONS.frame(rows), SCORES.frame([{"case": "a", **scores[0]}]), TUMOUR
    )
    assert (summary["reference"], summary["tumour_free"]["cases"]) == (1, 0)
    assert summary["tumour_free"]["false_per_case"] is None


def test_no_known_truth_no_summary():
    assert summarise_lesions(LESIONS.frame(), SCORES.frame(), TUMOUR) is None
    unknown = {"case": "a", "value": TUMOUR, "status": "not_scored"}
    assert summarise_lesions(LESIONS.frame(), SCORES.frame([unknown]), TUMOUR) is None


def test_cases_without_any_lesion_have_no_rates():
    empty = np.zeros((2, 2, 2), np.uint8)
    summary = summary_of({"a": (empty, empty)})
    assert summary["sensitivity"] is summary["precision_interval"] is None
    assert summary["false_per_case"] == 0.0


def test_rows_are_written_and_read_back(tmp_path):
    reference = tumours((6, 20, 40), np.s_[1:3, 2:7, 2:7], np.s_[4, 10:13, 10:13])
    rows = [{"case": "a", **row} for row in lesions(np.roll(reference, 2, 1), reference)]
    LESIONS.write(tmp_path / "lesions.csv", LESIONS.frame(rows))
    assert (tmp_path / "lesions.csv").read_text().splitlines()[0] == ",".join(LESIONS.columns)
    assert records(read_lesions(tmp_path / "lesions.csv")) == rows
    (tmp_path / "other.csv").write_text("case,side\na,left\n")
    with pytest.raises(Problems, match="no table of lesions"):
        read_lesions(tmp_path / "other.csv")
