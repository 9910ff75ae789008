"""Each fault of a case's volumes is one line; sound cases give their facts."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from strategies import affine_of

from panorgan.cases.checks import (
    FoundCase,
    check_paths,
    find_flare_cases,
    find_repeats,
    inspect_case,
)
from panorgan.cases.table import Case, write_cases
from panorgan.config.labels import load_labels
from panorgan.io.volumes import new_volume, voxel_hash, write_image, write_label
from panorgan.problems import Problems

LABELS = load_labels()
SHAPE = (3, 4, 5)


def save_image(path: Path, seed: int = 0, axes: str = "LPS", **place) -> Path:
    """A CT of noise."""
    array = np.random.default_rng(seed).integers(-1000, 1000, SHAPE, np.int16)
    return save(path, array, axes, **place)


def save_label(path: Path, values=(1, 13, 14), axes: str = "LPS", first=0, **place) -> Path:
    """A label map with one voxel of each value, from the `first` voxel on."""
    array = np.zeros(SHAPE, np.uint8)
    array.flat[first : first + len(values)] = values
    return save(path, array, axes, **place)


def save(path, array, axes="LPS", spacing=(5.0, 0.8, 0.9), **place):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = new_volume(array, spacing, affine_of(axes, spacing, **place))
    (write_label if array.dtype == np.uint8 else write_image)(path, array, volume)
    return path


def check(*paths):
    """What `check_paths` counts, and its problems as (case, file's name, cause)."""
    checked, problems = check_paths(paths, LABELS)
    assert problems == sorted(problems)
    assert all(problem.cure and "\n" not in str(problem) for problem in problems)
    return checked, [(p.case, Path(p.file).name, p.cause) for p in problems]


def inspect(*paths):
    facts, problems = inspect_case("a", *paths, LABELS)
    assert (facts is None) == bool(problems)
    assert all(problem.case == "a" and problem.cure for problem in problems)
    return facts, [(Path(problem.file).name, problem.cause) for problem in problems]


@pytest.fixture
def flare(tmp_path):
    """FLARE's folders, nothing wrong in them."""
    root = tmp_path / "flare"
    for seed, (place, case) in enumerate(
        [("Tr2200", "a"), ("Tr2200", "b"), ("Tr1800", "u"), ("Val", "v"), ("Ts", "t")]
    ):
        save_image(root / f"images{place}" / f"{case}_0000.nii.gz", seed)
        if place != "Tr1800":
            save_label(root / f"labels{place}" / f"{case}.nii.gz", first=seed)
    return root


# ---------------------------------------------------------------------------------------------
# One case


def test_facts(tmp_path):
    image = save_image(tmp_path / "a_0000.nii.gz")
    label = save_label(tmp_path / "a.nii.gz", (1, 1, 14))
    organs = save_label(tmp_path / "o.nii.gz", (1, 13))
    facts, problems = inspect(image, label, organs)
    assert problems == []
    assert facts.label_values == {1: 2, 14: 1}
    assert facts.image.grid.orientation == "LPS"
    assert facts.organs.array.max() == 13
    assert facts.image_hash == voxel_hash(facts.image)
    assert facts.label_hash == voxel_hash(facts.label)
    assert facts.organs_hash == voxel_hash(facts.organs)

    facts, problems = inspect(image, None, None)
    assert problems == []
    assert (facts.label, facts.organs, facts.label_values) == (None, None, {})
    assert (facts.label_hash, facts.organs_hash) == ("", "")


def test_an_empty_label_is_sound(tmp_path):
    facts, _ = inspect(
        save_image(tmp_path / "a_0000.nii.gz"), save_label(tmp_path / "a.nii.gz", ()), None
    )
    assert facts.label_values == {}


def test_all_faults_of_a_case_at_once(tmp_path):
    image = save(tmp_path / "a_0000.nii.gz", np.full(SHAPE, -1024, np.int16))
    label = save_label(tmp_path / "a.nii.gz", (1, 200, 15, 15), origin=(0, 0, 7))
    organs = save_label(tmp_path / "o.nii.gz", (14,))
    save_label(tmp_path / "o.nii", ())
    assert inspect(image, label, organs)[1] == [
        ("o.nii.gz", "stands beside o.nii, and some programs read that one instead"),
        ("a.nii.gz", "holds values outside 0 to 14: 15 in 2 voxels, 200 in 1 voxel"),
        ("o.nii.gz", "holds values outside 0 to 13: 14 in 1 voxel"),
        ("a_0000.nii.gz", "is empty: every voxel is -1024"),
        (
            "a.nii.gz",
            "is not on the grid of its image: "
            "origin (0.00, 0.00, 0.00) against (0.00, 0.00, 7.00) mm (RAS)",
        ),
    ]


def test_numbers_that_do_not_look_like_hu(tmp_path):
    hu = np.where(np.indices((8, 16, 16))[2] < 8, -1000, 40).astype(np.int16)
    image = save(tmp_path / "a_0000.nii.gz", hu + np.int16(1024))
    cause = "its numbers do not look like HU: 50% lie above 500"
    facts, problems = inspect(image, None, None)
    assert facts.doubt[0] == cause
    assert facts.doubt[1].startswith("subtract 1024, or convert it again from its source")
    assert problems == []  # the workflow goes on, with a suspect
    assert check(tmp_path) == (1, [("a", "a_0000.nii.gz", cause)])
    save_label(tmp_path / "a.nii.gz")
    assert len(check(tmp_path)[1]) == 2  # beside another grid
    save(image, hu)
    assert inspect(image, None, None)[0].doubt is None


def test_a_broken_volume_does_not_hide_the_others(tmp_path):
    image = tmp_path / "a_0000.nii.gz"
    image.touch()
    label = save_label(tmp_path / "a.nii.gz", (99,))
    assert inspect(image, label, tmp_path / "o.nii.gz")[1] == [
        ("a_0000.nii.gz", "is empty"),
        ("o.nii.gz", "does not exist"),
        ("a.nii.gz", "holds values outside 0 to 14: 99 in 1 voxel"),
    ]


def test_many_strange_values_are_not_all_listed(tmp_path):
    label = save_label(tmp_path / "a.nii.gz", range(20, 30))
    ((_, cause),) = inspect(None, label, None)[1]
    assert cause.endswith("24 in 1 voxel and 5 more")


@pytest.mark.parametrize(
    ("place", "difference"),
    [
        ({"axes": "RPS"}, "direction LPS against RPS"),
        ({"spacing": (4.0, 0.8, 0.9)}, "spacing 0.9 x 0.8 x 5 against 0.9 x 0.8 x 4 mm"),
        ({"tilt": (0, 3, 0)}, "direction turned by 3 degrees"),
    ],
)
def test_label_on_another_grid(tmp_path, place, difference):
    image = save_image(tmp_path / "a_0000.nii.gz")
    label = save_label(tmp_path / "a.nii.gz", **place)
    assert inspect(image, label, None)[1] == [
        ("a.nii.gz", f"is not on the grid of its image: {difference}")
    ]


def shear(path: Path, by: float) -> Path:
    """Let the third stored axis of a volume lean along the first, in the sform alone."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 2] += by * affine[:3, 0] / 0.9 * 5
    header = image.header.copy()
    header.set_sform(affine, 1)
    header["qform_code"] = 0
    nib.Nifti1Image(np.asarray(image.dataobj), None, header).to_filename(path)
    return path


def test_headers_are_mended_within_the_bound(tmp_path):
    image = shear(save_image(tmp_path / "a_0000.nii.gz"), 0.01)
    label = shear(save_label(tmp_path / "a.nii.gz"), 0.01)
    _, problems = inspect(image, label, None)
    assert [cause.partition(" by ")[0] for _, cause in problems] == ["its axes are sheared"] * 2
    facts, problems = inspect_case("a", image, label, None, LABELS, 0.1)
    assert problems == []
    assert list(facts.repairs) == ["image", "label"]
    cause, shift = facts.repairs["label"]
    assert "sheared by 0.01" in cause
    # Three slices lean by 0.01: 5 mm up each, half of it taken from either axis.
    assert shift == pytest.approx(np.hypot(5 * 0.005, 1.8 * 0.005), rel=0.1)
    facts, problems = inspect_case("a", image, label, None, LABELS, shift / 2)
    assert facts is None
    assert f"move a corner by {shift:.3g} mm, more than manifest.max_repair_mm" in str(problems[0])


def test_a_mended_label_must_lie_on_its_image(tmp_path):
    image = save_image(tmp_path / "a_0000.nii.gz")
    label = shear(save_label(tmp_path / "a.nii.gz"), 0.1)
    _, (problem,) = inspect_case("a", image, label, None, LABELS, 5.0)
    assert "is not on the grid of its image" in problem.cause


def test_check_says_that_the_workflow_mends(flare):
    shear(flare / "imagesTr2200/a_0000.nii.gz", 0.01)
    shear(flare / "labelsTr2200/a.nii.gz", 0.01)
    shear(flare / "imagesTr1800/u_0000.nii.gz", 0.9)
    checked, problems = check_paths([flare], LABELS)
    assert checked == 9
    texts = {Path(problem.file).name: str(problem) for problem in problems}
    assert set(texts) == {"a_0000.nii.gz", "a.nii.gz", "u_0000.nii.gz"}
    assert "the workflow mends this in a copy, which moves a corner by 0.0" in texts["a.nii.gz"]
    assert "more than manifest.max_repair_mm (0.5)" in texts["u_0000.nii.gz"]


def test_repeats():
    splits = dict(a="train", b="validation", c="train", d="train", e="test", f="validation", g="")
    cases = {name: FoundCase(name, split, "") for name, split in splits.items()}
    found = find_repeats(zip("1122334", cases.values(), strict=True))
    assert [(case.name, other.name) for case, other in found] == [
        ("a", "b"),
        ("d", "c"),
        ("f", "e"),
    ]


# ---------------------------------------------------------------------------------------------
# FLARE's folders


def test_cases_of_flare_folders(flare):
    save_image(flare / "imagesTr2200" / "no_channel.nii")
    save_label(flare / "labelsVal" / "lonely.nii.gz")
    save_label(flare / "organsTr" / "a.nii.gz")
    (flare / "imagesTs" / "readme.txt").touch()
    (flare / "imagesTs" / "._t_0000.nii.gz").touch()
    found = {
        case.name: (case.split, case.source, *(f.name for f in case.files))
        for case in find_flare_cases(flare)[0]
    }
    assert found == {
        "a": ("train", "Tr2200", "a_0000.nii.gz", "a.nii.gz"),
        "b": ("train", "Tr2200", "b_0000.nii.gz", "b.nii.gz"),
        "lonely": ("validation", "Val", "lonely.nii.gz"),
        "no_channel": ("train", "Tr2200", "no_channel.nii"),
        "t": ("test", "Ts", "t_0000.nii.gz", "t.nii.gz"),
        "u": ("train", "Tr1800", "u_0000.nii.gz"),
        "v": ("validation", "Val", "v_0000.nii.gz", "v.nii.gz"),
    }
    assert list(found) == sorted(found)


def test_plain_folders(tmp_path):
    save_image(tmp_path / "kits" / "images" / "a_0000.nii.gz")
    save_label(tmp_path / "kits" / "labels" / "a.nii.gz")
    ((case,), left_out) = find_flare_cases(tmp_path / "kits")
    assert left_out == []
    assert (case.name, case.split, case.source) == ("a", "train", "kits")
    assert case.image == tmp_path / "kits/images/a_0000.nii.gz"
    assert case.label == tmp_path / "kits/labels/a.nii.gz"


def test_folders_may_be_links(flare, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in ("imagesTr2200", "labelsTr2200"):
        (tmp_path / "linked" / name).symlink_to(flare / name)
    (tmp_path / "linked" / "labelsTr2200" / "circle").symlink_to(tmp_path / "linked")
    assert [case.name for case in find_flare_cases(tmp_path / "linked")[0]] == ["a", "b"]
    assert check(tmp_path / "linked") == (4, [])


@pytest.mark.parametrize("folder", ["nothing", ".", "imagesTr"])
def test_folders_without_cases(tmp_path, folder):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(Problems):
        find_flare_cases(tmp_path / folder)


def test_two_images_of_one_case(flare):
    save_image(flare / "imagesTs" / "t.nii.gz", 9)
    with pytest.raises(Problems, match=r"is a second image of the case, beside t\.nii\.gz"):
        find_flare_cases(flare)
    assert check(flare)[1] == [
        ("t", "t_0000.nii.gz", "is a second image of the case, beside t.nii.gz")
    ]


def test_what_a_data_set_holds_beside_its_cases(flare):
    """What could be a case is named, with its reason; hidden files and texts are no matter."""
    (flare / "imagesTr2200/._x_0000.nii.gz").touch()
    (flare / "labelsVal/readme.txt").touch()
    assert find_flare_cases(flare)[1] == []
    (flare / "imagesTr2200/x_0000.mha").touch()
    save_label(flare / "labelsTr2200/old/a.nii.gz")
    save_image(flare / "imagesTest/y_0000.nii.gz")
    cases, left_out = find_flare_cases(flare)
    assert [case.name for case in cases] == ["a", "b", "t", "u", "v"]
    assert [(os.path.relpath(problem.file, flare), problem.cause) for problem in left_out] == [
        (
            "imagesTest",
            "is left out: what follows images or labels is Tr…, Val…, Ts… or nothing",
        ),
        ("imagesTr2200/x_0000.mha", "is left out: only .nii.gz and .nii are read"),
        (
            "labelsTr2200/old",
            "is left out: it is a folder, and what lies in folders is not taken",
        ),
    ]


def test_a_volume_that_is_there_twice(flare):
    save_label(flare / "labelsTs/t.nii")
    cause = "stands beside t.nii, and some programs read that one instead"
    with pytest.raises(Problems, match=cause):
        find_flare_cases(flare)
    assert check(flare) == (9, [("t", "t.nii.gz", cause)])


# ---------------------------------------------------------------------------------------------
# Paths


def test_a_sound_folder(flare):
    assert check(flare) == (9, [])
    assert check(flare / "imagesTr2200", flare / "labelsTr2200") == (4, [])
    assert check(flare / "labelsTr2200") == (2, [])
    assert check(flare.parent) == (9, [])


def test_a_file_is_checked_once(flare, monkeypatch):
    monkeypatch.chdir(flare)
    assert check(flare, Path("imagesTs/t_0000.nii.gz"), Path("./imagesTs")) == (9, [])


def test_faults_in_a_folder(flare):
    (flare / "imagesTr2200" / "b_0000.nii.gz").unlink()
    save_label(flare / "labelsTs" / "t.nii.gz", origin=(1, 0, 0))
    shutil.copy(flare / "imagesTr2200" / "a_0000.nii.gz", flare / "imagesVal" / "v_0000.nii.gz")
    save_image(flare / "imagesTr1800" / "w_0000.nii.gz", seed=2, axes="RPI")
    checked, problems = check(flare)
    assert checked == 9
    assert problems == [
        (
            "a",
            "a_0000.nii.gz",
            f"is the same image as {flare}/imagesVal/v_0000.nii.gz, a validation case",
        ),
        ("b", "b.nii.gz", "no image for this label"),
        (
            "t",
            "t.nii.gz",
            "is not on the grid of its image: "
            "origin (0.00, 0.00, 0.00) against (1.00, 0.00, 0.00) mm (RAS)",
        ),
    ]
    save_image(flare / "imagesTr1800" / "x_0000.nii.gz", seed=2, origin=(1, 2, 3))
    causes = [cause for case, _, cause in check(flare)[1] if case == "x"]
    assert causes == [f"is the same image as {flare}/imagesTr1800/u_0000.nii.gz"]


def test_labels_whose_images_are_all_missing(flare):
    shutil.rmtree(flare / "imagesTs")
    assert check(flare) == (8, [("t", "t.nii.gz", "no image for this label")])
    assert check(flare / "labelsTs") == (1, [])


def test_another_folder(tmp_path):
    save_image(tmp_path / "x" / "a_0000.nii.gz")
    save_label(tmp_path / "x" / "a.nii.gz", axes="RPS")
    save_label(tmp_path / "y" / "b.nii", (1, 2))
    assert check(tmp_path) == (
        3,
        [("a", "a.nii.gz", "is not on the grid of its image: direction LPS against RPS")],
    )
    save_label(tmp_path / "x" / "c.nii.gz")
    assert ("c", "c.nii.gz", "no image for this label") in check(tmp_path)[1]


def test_both_spellings_of_one_volume(tmp_path):
    save_image(tmp_path / "a_0000.nii.gz", 1)
    save_image(tmp_path / "a_0000.nii", 2)
    cause = "stands beside a_0000.nii, and some programs read that one instead"
    assert check(tmp_path) == (1, [("a", "a_0000.nii.gz", cause)])
    cause = cause.replace("a_0000.nii", "a_0000.nii.gz")
    assert check(tmp_path / "a_0000.nii") == (1, [("a", "a_0000.nii", cause)])


def test_lone_files_are_what_their_names_say(tmp_path):
    image = save_image(tmp_path / "a_0000.nii.gz")
    assert check(image) == (1, [])
    in_images = shutil.copy(image, tmp_path / "c.nii.gz")
    assert check(in_images)[1][0][2].startswith("holds the value ")
    assert "CASE_0000" in check_paths([in_images], LABELS)[1][0].cure
    assert check(save_image(tmp_path / "imagesX" / "c.nii.gz")) == (1, [])
    assert check(save_label(tmp_path / "labelsX" / "c_0000.nii.gz")) == (1, [])


@pytest.mark.parametrize(
    "name",
    ["nothing.nii.gz", "nothing", "a\0b", "a\nb.nii", "x" * 300, "nothing.tsv", "x" * 300 + ".nii"],
)
def test_paths_that_lead_nowhere(tmp_path, name):
    assert len(check(tmp_path / name)[1]) == 1


def test_odd_files_and_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty") == (0, [("", "empty", "holds no .nii.gz or .nii file")])
    (tmp_path / "a.txt").write_text("a text")
    assert check(tmp_path / "a.txt") == (1, [("a.txt", "a.txt", "is no NIfTI file")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "dir.nii.gz").mkdir()
    (tmp_path / "full" / "a.nii.gz").symlink_to("nowhere")
    os.mkfifo(tmp_path / "full" / "b.nii")
    (tmp_path / "full" / "c_0000.nii.gz").write_bytes(b"\x1f\x8b")
    assert check(tmp_path / "full")[1] == [
        ("a", "a.nii.gz", "does not exist"),
        ("a", "a.nii.gz", "no image for this label"),
        ("b", "b.nii", "is no regular file"),
        ("b", "b.nii", "no image for this label"),
        ("c", "c_0000.nii.gz", "is truncated: its gzip data have no end"),
    ]


def test_a_folder_that_may_not_be_read(flare, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "imagesTs":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert ("", "imagesTs", "cannot be read: Permission denied") in check(flare)[1]
    with pytest.raises(Problems, match="imagesTs: cannot be read: Permission denied"):
        find_flare_cases(flare)


def test_what_is_not_checked_is_a_problem(flare):
    (flare / "imagesTr2200" / "x_0000.NII.GZ").touch()
    (flare / "imagesTr2200" / "y_0000.NII.GZ").touch()
    more = "is left out: its ending has capital letters (the first of 2 such entries of its folder)"
    assert check(flare) == (9, [("", "x_0000.NII.GZ", more)])


def test_images_and_labels_in_folders_below(tmp_path):
    save_image(tmp_path / "imagesTr/part2/a_0000.nii.gz")
    save_label(tmp_path / "labelsTr/part2/a.nii.gz", axes="RPS")
    cause = "is not on the grid of its image: direction LPS against RPS"
    assert check(tmp_path) == (2, [("a", "a.nii.gz", cause)])


def test_a_label_of_two_images(flare):
    shutil.copy(flare / "labelsTr2200/a.nii.gz", flare / "labelsVal/v.nii.gz")
    assert check(flare)[1] == [
        ("a", "a.nii.gz", "is the label of v too, which is another image"),
        ("v", "v.nii.gz", "is the label of a too, which is another image"),
    ]
    # Empty ones may be alike.
    save_label(flare / "labelsTr2200/a.nii.gz", ())
    save_label(flare / "labelsVal/v.nii.gz", ())
    assert check(flare) == (9, [])


def test_a_label_that_two_lines_name(flare, tmp_path):
    images = {name: str(flare / f"imagesTr2200/{name}_0000.nii.gz") for name in "ab"}
    labels = {name: str(flare / f"labelsTr2200/{name}.nii.gz") for name in "ab"}
    shared = {
        "label": str(save_label(tmp_path / "empty.nii.gz", ())),
        "organs": str(save_label(tmp_path / "organs.nii.gz", (1, 2))),
    }
    for kind, file in shared.items():
        cases = [
            replace(Case(name, images[name], labels[name], "train", "s"), **{kind: file})
            for name in images
        ]
        write_cases(tmp_path / "cases.tsv", cases)
        assert check(tmp_path / "cases.tsv")[1] == [
            (one, Path(file).name, f"is the label of {other} too, which is another image")
            for one, other in ("ab", "ba")
        ]


def test_a_case_table(flare, tmp_path):
    cases = [
        Case("a", str(flare / "imagesTr2200/a_0000.nii.gz"), "", "train", "s"),
        Case(
            "b",
            str(flare / "imagesTr2200/a_0000.nii.gz"),
            str(flare / "labelsTr2200/b.nii.gz"),
            "validation",
            "s",
            organs=str(flare / "labelsTr2200/a.nii.gz"),
        ),
    ]
    write_cases(tmp_path / "cases.tsv", cases)
    checked, problems = check(tmp_path / "cases.tsv")
    assert checked == 4
    assert problems == [("b", "a.nii.gz", "holds values outside 0 to 13: 14 in 1 voxel")]
    save_label(flare / "labelsTr2200/a.nii.gz", (1,))
    assert check(tmp_path / "cases.tsv")[1][0][:2] == ("a", "a_0000.nii.gz")
    (tmp_path / "cases.tsv").write_text("case\timage\n")
    assert check(tmp_path / "cases.tsv") == (0, [("", "cases.tsv", "has no cases")])


def test_one_patient_in_two_splits(flare, tmp_path):
    images = {name: str(flare / f"imagesTr2200/{name}_0000.nii.gz") for name in "ab"}
    cases = [
        Case("a", images["a"], "", "train", "s", patient="p1"),
        Case("b", images["b"], "", "test", "s", patient="p1"),
    ]
    write_cases(tmp_path / "cases.tsv", cases)
    assert ("a", "a_0000.nii.gz", "same patient as b, which is a test case") in check(
        tmp_path / "cases.tsv"
    )[1]
    write_cases(tmp_path / "cases.tsv", [replace(case, patient=case.case) for case in cases])
    assert not any("patient" in cause for _, _, cause in check(tmp_path / "cases.tsv")[1])


@pytest.mark.real_data
def test_real_volumes(real_data):
    assert check(real_data / "images", real_data / "labels") == (3, [])
    assert check(real_data / "labels_only") == (8, [])
    checked, problems = check(real_data / "geometry")
    assert checked == 14
    assert [
        (case, cause.partition(" by ")[0]) for case, _, cause in problems if "shear" in case
    ] == [
        ("shear_sform", "its axes are sheared"),
        ("shear_sform", "its axes are sheared"),
    ]
    same = {case for case, _, cause in problems if cause.startswith("is the same image as ")}
    assert same == {"crop_LPS", "crop_RAS", "crop_oblique12x7z"}
