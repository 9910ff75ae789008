"""``panorgan evaluate``: folders of label maps scored, their tables, and what is said of them."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from panorgan.config.labels import load_labels
from panorgan.io.formats import DASH, MISSING
from panorgan.io.frames import records
from panorgan.io.volumes import new_volume, write_image, write_label
from panorgan.problems import Problems
from panorgan.scoring.evaluation import evaluate_folders, summary_lines
from panorgan.scoring.frames import SCORES
from panorgan.scoring.metrics import DECIMALS
from panorgan.scoring.scores import read_lesions, read_scores, summarise, write_scores

LABELS = load_labels()
LIVER, TUMOUR = 1, 14


def shifted_boxes():
    """Two livers of 4x4x4 voxels, one voxel apart along x: 48 of 64 voxels in common."""
    reference = np.zeros((8, 8, 9), np.uint8)
    reference[2:6, 2:6, 2:6] = LIVER
    return np.roll(reference, 1, axis=2), reference


@pytest.fixture
def folders(tmp_path):
    """Two cases with a liver of 4x4x4 voxels, predicted one voxel off in the second."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    prediction, reference = shifted_boxes()
    for case, array in (("a", reference), ("b", prediction)):
        for folder, labels in ((predictions, array), (references, reference)):
            save(folder / f"{case}.nii.gz", labels)
    return predictions, references


def save(path, labels, spacing=(2.0, 2.0, 2.0)):
    write_label(path, labels, new_volume(labels, spacing))


def causes(*arguments):
    with pytest.raises(Problems) as error:
        evaluate_folders(*arguments, LABELS, "corrected")
    return [(problem.case, problem.cause) for problem in error.value.problems]


def test_folders_are_scored(folders):
    found = evaluate_folders(*folders, LABELS, "flare23-2024")
    rows, summary = records(found.scores), found.summary
    assert found.notes == []
    assert [row["case"] for row in rows] == ["a"] * 14 + ["b"] * 14
    assert [row["dsc"] for row in rows if row["value"] == LIVER] == [1.0, 0.75]
    assert rows[0]["ref_ml"] == 0.512  # 64 voxels of 8 mm³
    assert summary["profile"] == "flare23-2024"
    assert summary["classes"]["liver"]["dsc"] == 0.875
    spleen = summary["classes"]["spleen"]
    assert (spleen["dsc"], spleen["nsd"], spleen["cases"]) == (1.0, 1.0, 2)


def test_missing_and_extra_predictions_are_problems(folders):
    predictions, references = folders
    (predictions / "b.nii.gz").rename(predictions / "c.nii.gz")
    (predictions / "._a.nii.gz").touch()  # what a Mac leaves behind is no case
    assert causes(*folders) == [
        ("b", "no such prediction"),
        ("c", f"no reference in {references}"),
    ]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("c.NII.GZ", "is left out: its ending has capital letters"),
        ("c.seg.nrrd", "is left out: only .nii.gz and .nii are read"),
        ("more/c.nii.gz", "is left out: it is a folder, and what lies in folders is not taken"),
        ("a.nii", "is of the same case as a.nii"),
    ],
)
def test_what_is_not_scored_is_a_problem(folders, side, name, cause):
    """Where both folders hold it, nobody would miss the case."""
    place = folders[side] / name
    place.parent.mkdir(exist_ok=True)
    place.touch()
    assert cause in [cause for _, cause in causes(*folders)]


def test_volumes_that_are_not_compressed_are_scored(folders):
    _, reference = shifted_boxes()
    for folder in folders:
        (folder / "a.nii.gz").unlink()
        save(folder / "a.nii", reference)
        (folder / "notes.txt").touch()
    found = evaluate_folders(*folders, LABELS, "corrected")
    assert found.scores["case"].unique().tolist() == ["a", "b"]


def test_other_grids_values_and_broken_files_are_problems(folders):
    predictions, references = folders
    prediction, reference = shifted_boxes()
    save(predictions / "a.nii.gz", reference, spacing=(2.0, 2.0, 2.5))
    prediction[0, 0, :2] = 15, 77
    save(predictions / "b.nii.gz", prediction)
    (predictions / "c.nii.gz").write_bytes(b"no volume")
    save(references / "c.nii.gz", reference)
    (a, grid), (b, values), (c, _) = causes(*folders)
    assert (a, b, c) == ("a", "b", "c")
    assert grid.startswith("not on the grid of its reference")
    assert values == "label values that are no class: 15, 77"


def test_folders_that_hold_nothing(tmp_path, folders):
    assert causes(tmp_path / "nowhere", folders[1]) == [("", "is no folder")]
    (tmp_path / "empty").mkdir()
    assert causes(folders[0], tmp_path / "empty") == [("", "holds no .nii.gz or .nii file")]


def test_scores_are_written_and_read_back(tmp_path, folders):
    found = evaluate_folders(*folders, LABELS, "corrected")
    out = tmp_path / "new" / "scores"
    found.write(out)
    lines = (out / "cases.csv").read_text().splitlines()
    assert lines[0] == (
        "case,value,name,status,dsc,nsd,hd95_mm,ref_ml,pred_ml,dsc_flare23-2023,nsd_flare23-2023,"
        "dsc_flare23-2024,nsd_flare23-2024,dsc_corrected,nsd_corrected"
    )
    assert lines[1] == "a,1,liver,scored,1.0000,1.0000,0.0000,0.512,0.512" + 6 * ",1.0000"
    pd.testing.assert_frame_equal(read_scores(out / "cases.csv"), found.scores)
    assert json.loads((out / "summary.json").read_text()) == found.summary
    assert read_lesions(out / "lesions.csv").empty
    assert sorted(path.name for path in out.iterdir()) == [
        "cases.csv",
        "lesions.csv",
        "summary.json",
    ]
    again = summarise(
        read_scores(out / "cases.csv"), LABELS, "corrected", lesions=found.summary["lesions"]
    )
    assert again == found.summary


def test_unknown_scores_are_empty_fields(tmp_path, folders):
    found = evaluate_folders(*folders, LABELS, "corrected", annotated="liver,2")
    assert {*found.scores.loc[found.scores["value"] > 2, "status"]} == {"not_scored"}
    assert found.summary["classes"]["spleen"]["cases"] == 0
    assert found.summary["organs"]["classes"] == 2
    assert found.summary["lesions"] is None
    write_scores(found.scores, found.summary, tmp_path)
    line = (tmp_path / "cases.csv").read_text().splitlines()[3]
    assert line == "a,3,spleen,not_scored,,,,,0.000,,,,,,"
    pd.testing.assert_frame_equal(read_scores(tmp_path / "cases.csv"), found.scores)


def test_unreadable_scores(tmp_path):
    with pytest.raises(Problems, match="No such file"):
        read_scores(tmp_path / "cases.csv")
    line = "a,x,liver,scored" + ",1" * len(DECIMALS)
    for text in ("case,value\na,1\n", ",".join(SCORES.columns) + f"\n{line}\n"):
        (tmp_path / "cases.csv").write_text(text)
        with pytest.raises(Problems, match="no table of scores"):
            read_scores(tmp_path / "cases.csv")


def test_only_known_classes_are_scored_and_the_list_is_checked(folders):
    for annotated, cause in (
        ("livr", "--annotated: 'livr' is no class; did you mean 'liver'?"),
        ("none", "--annotated names no class: nothing to score"),
    ):
        with pytest.raises(Problems) as error:
            evaluate_folders(*folders, LABELS, "corrected", annotated=annotated)
        assert [problem.cause for problem in error.value.problems] == [cause]


def test_a_case_table_says_what_is_known_of_each_case(tmp_path, folders):
    table = tmp_path / "cases.tsv"
    rows = [
        ("a", folders[1] / "a.nii.gz", "liver"),
        ("b", folders[1] / "b.nii.gz", "liver,tumour"),
    ]
    lines = [f"{case}\tct.nii.gz\t{label}\ttrain\tmine\t{known}" for case, label, known in rows]
    head = "case\timage\tlabel\tsplit\tsource\tannotated"
    table.write_text("\n".join([head, *lines]) + "\n")
    found = evaluate_folders(*folders, LABELS, "corrected", annotated=str(table))
    known = found.scores[found.scores["status"] != "not_scored"]
    assert known.groupby("case")["name"].agg(list).to_dict() == {
        "a": ["liver"],
        "b": ["liver", "tumour"],
    }
    assert found.summary["lesions"]["cases"] == 1
    table.write_text("\n".join([head, lines[0]]) + "\n")
    with pytest.raises(Problems, match=r"b: .*has no line in"):
        evaluate_folders(*folders, LABELS, "corrected", annotated=str(table))


def test_numbers_that_are_not_whole_are_cast_as_the_official_script_does(folders):
    predictions, references = folders
    _, reference = shifted_boxes()
    save(references / "a.nii.gz", np.where(reference, 13, 0).astype(np.uint8))
    scaled = np.where(reference, 13.9986, 0).astype(np.float32)
    write_image(predictions / "a.nii.gz", scaled, new_volume(scaled, (2.0, 2.0, 2.0)))
    found = evaluate_folders(*folders, LABELS, "flare23-2023")
    assert found.scores.loc[12, ["name", "dsc"]].tolist() == ["left_kidney", 1.0]
    [note] = found.notes
    assert note.startswith(f"a: {predictions / 'a.nii.gz'}: 64 voxels hold no whole number")
    assert "13.9986" in note
    assert "cast to 13" in note
    [(case, cause)] = causes(*folders)
    assert case == "a"
    assert "13.9986" in cause


@pytest.mark.parametrize(("value", "cause"), [(np.nan, "holds NaN"), (1e9, "the value 1e+09")])
@pytest.mark.parametrize("profile", ["flare23-2023", "corrected"])
def test_numbers_that_are_no_labels_are_not_told_about_hu(folders, value, cause, profile):
    predictions, _ = folders
    broken = np.where(shifted_boxes()[1], value, 0.0).astype(np.float32)
    write_image(predictions / "a.nii.gz", broken, new_volume(broken, (2.0, 2.0, 2.0)))
    with pytest.raises(Problems) as caught:
        evaluate_folders(*folders, LABELS, profile)
    (problem,) = caught.value.problems
    assert cause in problem.cause
    assert "class" in problem.cure or "label map" in problem.cure
    assert "HU" not in str(problem)


def test_problems_are_those_of_all_cases(folders):
    for folder in folders:
        (folder / "a.nii.gz").write_bytes(b"no volume")
    (folders[0] / "b.nii.gz").write_bytes(b"no volume")
    assert [case for case, _ in causes(*folders)] == ["a", "a", "b"]


def test_lesions_are_summed_up_and_said(folders):
    predictions, references = folders
    for case, predicted in (("a", [2]), ("b", [6])):
        array = np.zeros((8, 8, 9), np.uint8)
        array[2, 2, 2] = TUMOUR
        save(references / f"{case}.nii.gz", array)
        array = np.zeros((8, 8, 9), np.uint8)
        array[2, 2, predicted] = TUMOUR
        save(predictions / f"{case}.nii.gz", array)
    found = evaluate_folders(*folders, LABELS, "corrected")
    lesions = found.summary["lesions"]
    assert (lesions["found"], lesions["reference"]) == (1, 2)
    assert (lesions["true"], lesions["prediction"]) == (1, 2)
    text = "\n".join(summary_lines(found.summary, LABELS))
    assert "lesions: 1 of 2 found (50 %), 1 of 2 predicted are false" in text
    assert "found by diameter: below 10 mm 1 of 2" in text


def test_summary_is_a_table_of_even_columns(folders):
    found = evaluate_folders(*folders, LABELS, "flare23-2024")
    lines = summary_lines(found.summary, LABELS)
    assert max(map(len, lines)) <= 100
    liver = next(line for line in lines if line.startswith("Liver"))
    assert liver.split()[1:3] == ["87.50", f"({MISSING})"]
    assert any(line.startswith("flare23-2023") for line in lines)
    assert len({len(line) for line in lines[1:14]}) == 1


def fill(folders, arrays, predicted=None):
    """Both folders with these references; predictions one voxel off, but where they are given."""
    for folder in folders:
        for path in folder.iterdir():
            path.unlink()
    for case, array in arrays.items():
        save(folders[1] / f"{case}.nii.gz", array)
        found = (predicted or {}).get(case, np.roll(array, 1, axis=2))
        save(folders[0] / f"{case}.nii.gz", found)


def said(folders, annotated="liver,gallbladder"):
    found = evaluate_folders(*folders, LABELS, "corrected", annotated)
    return found.notes, "\n".join(summary_lines(found.summary, LABELS)).replace("\n", " ")


def test_a_class_in_no_reference_is_not_in_the_mean_beside(folders):
    notes, text = said(folders)
    assert notes == []
    # Of liver and gallbladder, the liver 75 in one and 100 in the other case.
    assert re.search(r"Mean of the organs +93.75", text)
    assert re.search(r"Organs in a reference +87.50", text)
    assert (
        "In no reference: Gallbladder; such a class counts 100 where it is not predicted, else 0; "
        "without it the means are: organs DSC 87.50, NSD 100.00; all classes DSC 87.50, NSD 100.00."
    ) in text
    assert "Known in no case, so in no mean: 12 of 14 classes." in text


def test_where_each_class_has_a_reference_nothing_stands_beside(folders):
    _, text = said(folders, "liver")
    assert "n a reference" not in text
    assert "In no reference" not in text


def test_a_tumour_free_split_has_means_without_tumours(folders):
    _, text = said(folders, "liver,tumour")
    assert re.search(r"Mean of all classes +93.75", text)
    assert re.search(r"Classes in a reference +87.50", text)
    assert "Organs in a reference" not in text
    assert "without it the means are: all classes DSC 87.50, NSD 100.00." in text


@pytest.mark.parametrize(("cases", "some"), [(4, False), (5, True)])
def test_fewer_than_five_cases_have_no_interval(folders, cases, some):
    _, liver = shifted_boxes()
    fill(folders, {f"c{at}": liver for at in range(cases)}, {"c0": liver})
    _, text = said(folders, "liver")
    reason = f"({MISSING}): no interval from fewer than 5 cases, nor of a mean with such a class."
    assert (reason in text) is not some
    assert (re.search(rf"Liver +\d+\.\d\d +\([\d.]+{DASH}[\d.]+\)", text) is not None) is some


def test_hd95_leaves_out_what_one_side_lacks_and_it_says_so(folders):
    _, liver = shifted_boxes()
    fill(folders, {case: liver for case in "abc"}, {"b": np.zeros_like(liver)})
    _, text = said(folders, "liver")
    assert "HD95 leaves out cases with the class on one side only: Liver 1 of 3." in text


def test_predictions_that_are_equal_to_their_references_are_remarked_on(folders):
    empty, (prediction, reference) = np.zeros((8, 8, 9), np.uint8), shifted_boxes()
    _, text = said(folders)
    remark = "redictions that are equal to their references: {} of {}. Are they copies? Then these"
    assert f"P{remark.format(1, 2)}" in text
    # Labels that are known may be copied into others.
    fill(
        folders, {"a": reference}, {"a": np.where(prediction, 3, 0) * (reference == 0) + reference}
    )
    assert f"WARNING: p{remark.format(1, 1)}" in said(folders, "liver")[1]
    assert "are equal" not in said(folders, "liver,spleen")[1]
    # Both empty is no copy; the same voxels in another file are one.
    fill(folders, {"a": empty, "b": reference}, {"b": prediction})
    assert "are equal" not in said(folders)[1]


@pytest.mark.parametrize("link", ["same folder", "link to the folder", "hard links", "links"])
def test_the_references_given_as_predictions_are_remarked_on(tmp_path, folders, link):
    _, references = folders
    predictions = tmp_path / "linked"
    if link == "same folder":
        predictions = references
    elif link == "link to the folder":
        predictions.symlink_to(references)
    else:
        predictions.mkdir()
        for path in references.iterdir():
            place = predictions / path.name
            place.hardlink_to(path) if link == "hard links" else place.symlink_to(path)
    notes, text = said((predictions, references))
    assert notes == [
        "WARNING: predictions that are the very files of their references: 2 of 2; was the folder "
        "of references given twice?"
    ]
    assert "WARNING: predictions that are equal to their references: 2 of 2." in text


@pytest.mark.parametrize("profile", ["flare23-2024", "corrected"])
@pytest.mark.parametrize("side", [0, 1], ids=["prediction", "reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_no_class(folders, profile, side, value):
    _, reference = shifted_boxes()
    broken = reference.astype(np.float32)
    broken[0, 0, :2] = value
    path = folders[side] / "b.nii.gz"
    write_image(path, broken, new_volume(broken, (2.0, 2.0, 2.0)))
    with pytest.raises(Problems) as error:
        evaluate_folders(*folders, LABELS, profile)
    assert str(error.value) == (
        f"b: {path}: holds NaN or infinity in 2 voxels; write a class or 0 in every voxel"
    )
