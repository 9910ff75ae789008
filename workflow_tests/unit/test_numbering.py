"""Labels with another data set's numbers are found, and no others."""

import numpy as np
import pytest

from panorgan.cases.numbering import ENCLOSED, GAP_MM, doubtful_numbers
from panorgan.cases.phantom import draw_patient, plans
from panorgan.cases.places import Place, class_places
from panorgan.cases.sides import body_midline, doubtful_sides
from panorgan.config.labels import Labels, load_labels
from panorgan.io.volumes import new_volume, read_image, read_label

LABELS = load_labels()
WITHOUT = Labels.model_validate(
    {
        **LABELS.model_dump(by_alias=True),
        "labels": [{**one.model_dump(), "volume_ml": None} for one in LABELS.labels],
    }
)
SIZES = {"liver": 1500, "right_kidney": 150, "spleen": 200, "left_kidney": 160, "right_adrenal": 4}


def place(gap=2.0, **more):
    return Place((0.0, 0.0, 0.0), gap, **more)


def judged(places, ml, labels=LABELS):
    """What is said of classes by name, whose `ml` are voxels of 1 ml."""
    places = {LABELS.by_name(name).value: found for name, found in places.items()}
    voxels = {LABELS.by_name(name).value: count for name, count in ml.items()}
    return doubtful_numbers(places, voxels, 1.0, labels, labels.values)


def test_organs_of_a_usual_size_in_their_place_raise_no_alarm():
    assert judged({name: place() for name in SIZES}, SIZES) == []
    assert judged({}, {}) == []


@pytest.mark.parametrize(
    ("name", "ml", "said"),
    [
        ("liver", 399, "liver has 399 ml, less than any of at least 400 ml"),
        ("liver", 400, ""),
        ("liver", 6000, ""),
        ("liver", 6001, "liver has 6001 ml, more than any of up to 6000 ml"),
        ("right_kidney", 1500, "right_kidney has 1500 ml, more than any of up to 1000 ml"),
        ("right_kidney", 4.63, "right_kidney has 4.63 ml, less than any of at least 20 ml"),
        ("tumour", 5000, ""),
    ],
)
def test_sizes(name, ml, said):
    assert judged({name: place()}, {name: ml}) == [said] * bool(said)
    assert judged({name: place()}, {name: ml}, labels=WITHOUT) == []


def test_of_an_organ_that_is_cut_off_only_the_largest_size_counts():
    cut = {"liver": place(cut=True)}
    assert judged(cut, {"liver": 50}) == []
    assert len(judged(cut, {"liver": 7000})) == 1
    assert judged({"liver": place()}, {}) == []  # pseudo-labels are not counted


def test_a_class_in_two_parts():
    said = "is in two parts, 75 mm apart from left to right: two organs?"
    for name in ("liver", "right_kidney", "spleen"):
        assert judged({name: place(75)}, {}) == [f"{name} {said}"]
        assert judged({name: place(75)}, {}, WITHOUT) == [f"{name} {said}"]
    assert judged({"liver": place(GAP_MM - 1)}, {}) == []
    # Organs without a side may lie anywhere.
    assert judged({"stomach": place(75)}, {}) == []


def test_a_class_inside_another():
    inside = "right_kidney lies inside liver, which 90% of its surface touches: a tumour?"
    assert judged({"right_kidney": place(host=1, enclosed=0.9)}, {}) == [inside]
    assert len(judged({"right_kidney": place(host=1, enclosed=ENCLOSED)}, {})) == 1
    for name, host, share in (
        ("right_kidney", 1, 0.79),
        ("right_adrenal", 1, 0.9),  # lies in a fold at times
        ("gallbladder", 1, 0.9),
        ("tumour", 1, 1.0),
        ("right_kidney", 14, 0.9),  # in a large tumour
    ):
        assert judged({name: place(host=host, enclosed=share)}, {}) == []


def said_of(label, grid, midline=None):
    """What is said of a label map, of its sides too."""
    places = class_places(label, grid)
    values, counts = np.unique(label, return_counts=True)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    centres = {value: found.centre for value, found in places.items()}
    return [
        *doubtful_sides(centres, midline, LABELS, LABELS.values),
        *doubtful_numbers(places, voxels, grid.voxel_ml, LABELS, LABELS.values),
    ]


@pytest.fixture(scope="module")
def patients():
    """One case of each group of the phantom: its true labels, grid and midline."""
    found = []
    for name in plans():
        if name.endswith("_1"):
            drawn = draw_patient(name, seed=0, shape=(28, 56, 80), spacing_mm=(6.0, 4.0, 4.0))
            spacing = tuple(np.linalg.norm(drawn.affine[:3, :3], axis=0)[::-1].tolist())
            grid = new_volume(drawn.truth, spacing, drawn.affine).grid
            found.append((drawn.truth, grid, body_midline(drawn.image, grid)))
    return found


def test_the_phantom_raises_no_alarm(patients):
    for label, grid, midline in patients:
        assert midline is not None
        assert said_of(label, grid, midline) == []


@pytest.mark.parametrize(
    ("values", "suspected"),
    [
        # of AbdomenCT-1K: 1 liver, 2 both kidneys, 3 spleen, 4 pancreas
        ({1: 1, 2: 2, 13: 2, 3: 3, 4: 4}, {"right_kidney"}),
        # of KiTS: 1 both kidneys, 2 tumour
        ({2: 1, 13: 1, 14: 2}, {"liver"}),
        # of the spleens of MSD: 1 spleen
        ({3: 1}, {"liver"}),
        # of its pancreases: 1 pancreas, 2 tumour
        ({4: 1}, {"liver"}),
        # of BTCV and AMOS: 1 spleen, 2 right kidney, 3 left kidney, 4 gallbladder, 6 liver
        ({3: 1, 2: 2, 13: 3, 9: 4, 1: 6}, {"liver", "ivc"}),
        # of WORD: 1 liver, 2 spleen, 3 left kidney, 4 right kidney
        ({1: 1, 3: 2, 13: 3, 2: 4}, {"right_kidney"}),
        # of TotalSegmentator: 1 spleen, 2 right kidney, 3 left kidney, 4 gallbladder, 5 liver
        ({3: 1, 2: 2, 13: 3, 9: 4, 1: 5}, {"liver"}),
    ],
)
def test_numbers_of_other_data_sets(patients, values, suspected):
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    for label, grid, midline in patients:
        doubts = " ".join(said_of(table[label], grid, midline))
        assert all(name in doubts for name in suspected), doubts


def test_a_liver_tumour_as_a_kidney(patients):
    """As in LiTS: 1 liver, 2 tumour."""
    label, grid, midline = patients[0]
    liver = (label == 1).astype(np.uint8)
    z, y, x = (int(np.median(along)) for along in np.nonzero(liver))
    liver[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4] = 2
    doubts = said_of(liver, grid, midline)
    assert any(doubt.startswith("right_kidney lies inside liver, which ") for doubt in doubts)


@pytest.mark.real_data
def test_real_labels_raise_no_alarm(real_data):
    pairs = {"labels/TSexample": "images/TSexample_0000"}
    pairs |= {
        f"geometry/crop_{name}": f"geometry/crop_{name}_0000"
        for name in ("RAS", "LPS", "IPL", "oblique12x7z", "thick6mm")
    }
    for label, image in pairs.items():
        label, image = (read_label(real_data / f"{label}.nii.gz"), read_image(
            real_data / f"{image}.nii.gz"))  # fmt: skip
        assert said_of(label.array, label.grid, body_midline(image.array, image.grid)) == []


@pytest.mark.real_data
@pytest.mark.parametrize("case", ["00061", "00062", "00113", "00152"])
def test_real_kidneys_with_their_own_numbers(real_data, case):
    label = read_label(real_data / f"labels_only/kits19_case_{case}_flare.nii.gz")
    assert said_of(label.array, label.grid) == []
    label = read_label(real_data / f"labels_only/kits19_case_{case}_orig.nii.gz")
    assert "liver is in two parts" in " ".join(said_of(label.array, label.grid))
