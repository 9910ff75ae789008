"""From volumes to the manifest: mended copies, suspects, corrections and names without a case."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from strategies import affine_of

from panorgan.cases.manifest import read_manifest, write_manifest
from panorgan.cases.selection import needs_tumour, reason_against, wants_organs
from panorgan.cases.table import Case, write_cases
from panorgan.config.labels import config_folder, load_labels
from panorgan.io.tables import read_table
from panorgan.io.volumes import new_volume, read_image, read_label, write_image, write_label
from panorgan.problems import Problems
from panorgan.report.preflight import what_is_doubtful
from panorgan.run.store import ShardOutput
from panorgan.stages.cases import check_cases, index_cases
from panorgan.stages.teacher import select_tumour_cases

LABELS = load_labels()
LABELS_FILE = str(config_folder() / "labels.yaml")
SHAPE = (6, 20, 60)
SPACING = (5.0, 2.0, 6.0)
SHARDS = {"labelled": 1, "unlabelled": 1, "validation": 1, "test": 1}
CENTRES = {1: 45, 2: 45, 3: 10, 13: 10}


def body() -> np.ndarray:
    """HU of a body across the middle of the image."""
    array = np.full(SHAPE, -1000, np.int16)
    array[:, 5:15, 6:54] = 40
    return array + np.random.default_rng(0).integers(0, 9, SHAPE, np.int16)


def label_map(*values: int, shift: int = 0) -> np.ndarray:
    """A 2 x 2 x 2 block of each value, on the side of the body where its organ lies.

    All are moved by `shift` voxels along y: cases have labels of their own.
    """
    array = np.zeros(SHAPE, np.uint8)
    for value in values:
        x = CENTRES.get(value, 30)
        array[(value % 3) * 2 : (value % 3) * 2 + 2, value % 13 + 2 : value % 13 + 4, x : x + 2] = (
            value
        )
    return np.roll(array, shift, axis=1)


class Project:
    """A few cases in one shard a split, and the manifest made of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cases: list[Case] = []
        # Blocks are too small for organs: only some tests look at sizes.
        text = Path(LABELS_FILE).read_text()
        self.labels_file = str(folder / "classes.yaml")
        Path(self.labels_file).write_text(re.sub(r", volume_ml: \[.*?\]", "", text))

    def add(self, name, *values, source="s", axes="LPS", flip=False, shear=0.0, organs=(), **more):
        affine = affine_of(axes, SPACING)
        rng = np.random.default_rng(len(self.cases))
        image = body() + rng.integers(0, 5, SHAPE, np.int16)
        # Arrays above are RAS: a stored axis that runs to the left turns them round.
        label, pseudo = (label_map(*of, shift=len(self.cases)) for of in (values, organs))
        volumes = {"image": image, "label": label, "organs": pseudo}
        files = {}
        for kind, array in volumes.items():
            array = array[:, :, ::-1] if axes[0] == "L" else array
            if kind != "image" and flip:
                array = array[:, :, ::-1]
            like = new_volume(array, SPACING, affine)
            files[kind] = str(self.folder / f"{name}-{kind}.nii.gz")
            (write_image if kind == "image" else write_label)(files[kind], array, like)
            if shear:
                lean(files[kind], shear)
        files["organs"] = files["organs"] if organs else ""
        case = Case(
            name, files["image"], files["label"], source=source, **{"split": "train"} | more
        )
        self.cases.append(case if not organs else Case(**vars(case) | {"organs": files["organs"]}))

    def index(self, max_repair_mm=0.5):
        """Index all cases as one shard."""
        table = self.folder / "cases.tsv"
        write_cases(table, self.cases)
        self.out = ShardOutput(
            self.folder / "store", self.folder / "index.tsv", self.folder / "index",
            {"problems": self.folder / "index.problems.tsv"},
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("panorgan.stages.cases.shard_of", lambda case, counts: "all")
            index_cases(
                str(table), "all", {}, self.out,
                labels_file=self.labels_file, max_repair_mm=max_repair_mm,
            )  # fmt: skip

    def collect(self, **more):
        settings = {"min_ml": 0.0, "speck_ml": 0.05, "bad_cases": "stop"} | more
        check_cases(
            str(self.folder / "cases.tsv"),
            [str(self.out.table)],
            [str(self.out.details["problems"])],
            [str(self.out.folder)],
            shards=SHARDS,
            labels_file=self.labels_file,
            sources_file=str(self.folder / "sources.yaml"),
            class_table=str(self.folder / "labels.yaml"),
            **{name: str(self.folder / f"{name}.tsv") for name in TABLES},
            **settings,
        )
        return {e.case: e for e in read_manifest(self.folder / "manifest.tsv", LABELS)}

    def suspects(self):
        rows = read_table(self.folder / "suspects.tsv")
        return [(row["case"], Path(row["file"]).name, row["cause"]) for row in rows]


TABLES = ("manifest", "excluded", "suspects", "corrected", "repaired")


def lean(path: str, by: float) -> None:
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 2] += by * affine[:3, 0] / SPACING[2] * SPACING[0]
    header = image.header.copy()
    header.set_sform(affine, 1)
    header["qform_code"] = 0
    nib.Nifti1Image(np.asarray(image.dataobj), None, header).to_filename(path)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "sources.yaml").write_text(
        "sources:\n"
        "  kits: {annotated: [2, 13, tumour], tumour_scope: [right_kidney, left_kidney]}\n"
        "  liver: {annotated: [liver]}\n"
    )
    return Project(tmp_path)


def test_kidneys_without_tumour_and_livers(project):
    project.add("k1", 2, 13, source="kits")
    project.add("k2", 2, 13, 14, source="kits", axes="RAS")
    project.add("l1", 1, source="liver")
    project.index()
    entries = project.collect()
    tumours = {name: (entry.states[14], entry.scope) for name, entry in entries.items()}
    kidneys = (2, 13)
    assert tumours["k1"] == ("absent", kidneys)
    assert tumours["k2"] == ("annotated", kidneys)
    assert tumours["l1"] == ("unknown", None)
    assert all(needs_tumour(entry, LABELS) for entry in entries.values())
    assert all(wants_organs(entry, LABELS) for entry in entries.values())
    assert project.suspects() == []
    rows = {row["case"]: row for row in read_table(project.folder / "manifest.tsv")}
    assert rows["k1"]["tumour_scope"] == "right_kidney,left_kidney"
    assert rows["l1"]["tumour_scope"] == ""
    assert read_table(project.folder / "corrected.tsv") == []


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_suspects_name_their_case_and_file(project, axes):
    project.add("fine", 1, 2, 3, 13, axes=axes, organs=(1, 2, 3, 13))
    project.add("flipped", 1, 2, 3, 13, axes=axes, flip=True, organs=(2, 13))
    project.add("lone", 3, axes=axes, flip=True)
    project.add("one", 2, source="kits", axes=axes)
    project.index()
    project.collect(speck_ml=0.6)
    found = project.suspects()
    specks = [row for row in found if "speck" in row[2]]
    # A block of 8 voxels of 0.06 ml.
    assert specks[0] == ("fine", "fine-label.nii.gz", "only 0.480 ml of liver: a speck?")
    assert len(specks) == 4 + 4 + 1 + 1
    mirrored = [row for row in found if row not in specks]
    assert [(case, file) for case, file, _ in mirrored] == [
        ("flipped", "flipped-label.nii.gz"),
        ("flipped", "flipped-organs.nii.gz"),
        ("lone", "lone-label.nii.gz"),
        ("one", "one-label.nii.gz"),
    ]
    assert mirrored[0][2].startswith("the label seems to be mirrored: right_kidney, left_kidney, ")
    assert mirrored[1][2].startswith("right_kidney lies ")
    assert mirrored[2][2].startswith("spleen lies ")
    assert mirrored[3][2] == "left_kidney: annotated in kits, but missing in this case"


def test_a_ct_of_other_numbers_is_a_suspect(project):
    project.add("fine", 1, 2)
    project.add("raw", 1, 2)
    path = project.cases[1].image
    image = read_image(path)
    write_image(path, image.array + np.int16(1024), image)
    project.index()
    assert set(project.collect()) == {"fine", "raw"}
    cause = "its numbers do not look like HU: 40% lie above 500; subtract 1024, or convert it again"
    (found,) = project.suspects()
    assert found[:2] == ("raw", "raw-image.nii.gz")
    assert found[2].startswith(cause)


@pytest.mark.parametrize("hostile", ["spacing", "value", "places"])
def test_impossible_volumes_are_bad_cases(project, hostile):
    project.add("a", 1, 2)
    project.add("b", 1, 2)
    path = project.cases[0].image
    image = nib.load(path)
    hu, header = np.asarray(image.dataobj), image.header.copy()
    if hostile == "spacing":
        header.set_xyzt_units("meter")
    elif hostile == "value":
        hu = hu.astype(np.float32)
        hu[0, 0, 0] = 1e9
        header.set_data_dtype(np.float32)
    else:
        header.set_sform(np.diag([-1, 1, 1, 1]) @ image.affine, 1)
    nib.Nifti1Image(hu, None, header).to_filename(path)
    project.index()
    assert set(project.collect(bad_cases="exclude")) == {"b"}
    cause = {
        "spacing": "has voxels of 6000 x 2000 x 5000 mm and a field of view of",
        "value": "holds 1e+09 in 1 voxel, and no CT goes beyond 65,535 HU",
        "places": "its sform and its qform disagree: voxels up to ",
    }
    causes = {row["cause"] for row in read_table(project.folder / "excluded.tsv")}
    assert any(found.startswith(cause[hostile]) for found in causes)


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_sheared_headers_are_mended_in_copies(project, capsys, axes):
    project.add("a", 1, 14, axes=axes, shear=0.002, organs=(1, 3))
    project.add("b", 1, 14, axes=axes)
    before = {path: path.read_bytes() for path in project.folder.glob("a-*")}
    project.index()
    entries = project.collect()
    assert {path: path.read_bytes() for path in before} == before
    assert entries["b"].facts["repaired"] == ""
    shifts = dict(pair.split(":") for pair in entries["a"].facts["repaired"].split())
    assert list(shifts) == ["image", "label", "organs"]
    # The image's half width leans towards the slices' axis by half of the shear, and vice versa.
    expected = np.hypot(29.5 * 6 * 0.001, 2.5 * 5 * 0.001)
    assert float(shifts["image"]) == pytest.approx(expected, rel=0.02)
    log = capsys.readouterr().out
    moves = f"mended in a copy, which moves a corner by {shifts['image']} mm"
    assert f"a-image.nii.gz: its axes are sheared by 0.002, more than 0.0003; {moves}" in log
    folder = project.folder / "index"
    for kind in ("image", "label", "organs"):
        copy = folder / f"a_{kind}.nii.gz"
        assert getattr(entries["a"], kind) == str(copy)
        stored = nib.load(getattr(project.cases[0], kind)).dataobj
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(copy)).T, stored)
        assert nib.load(copy).get_data_dtype() == (np.int16 if kind == "image" else np.uint8)
    # The rest of the workflow reads them strictly, like any other file.
    entry = entries["a"]
    assert entry.read_image().array.dtype == np.int16
    entry.frame()
    np.testing.assert_array_equal(
        entry.read_label().array.T, nib.load(folder / "a_label.nii.gz").dataobj
    )
    entry.read_organs()
    # A second run takes all from the store.
    project.index()
    assert "2 reused" in capsys.readouterr().out


@pytest.mark.real_data
def test_real_kidneys_with_their_own_numbers(real_data, project):
    """1 kidney, 2 tumour: in the class table a liver and a right kidney."""
    project.labels_file = LABELS_FILE
    for number, case in enumerate(("00061", "00062", "00113", "00152")):
        path = real_data / f"labels_only/kits19_case_{case}_orig.nii.gz"
        label = read_label(path)
        image = str(project.folder / f"image{number}.nii.gz")
        noise = np.zeros(label.array.shape, np.int16)
        noise[0, 0, number] = 1
        write_image(image, noise, label)
        project.cases.append(Case(case, image, str(path), "train", "kits", annotated="1,2"))
    project.index()
    entries = project.collect()
    suspects = read_table(project.folder / "suspects.tsv")
    assert {row["case"] for row in suspects} == set(entries)
    numbers, labels = what_is_doubtful(entries.values(), suspects)
    assert numbers.startswith("images seem to hold no HU in 4 of 4 cases of kits (first 00061: ")
    assert labels.startswith(
        "labels seem to be mirrored, or numbered otherwise than the class table in 4 of 4 cases of "
        "kits (first 00061: liver is in two parts, 93 mm apart from left to right: two organs?"
    )


def test_a_label_of_two_images_is_one_line_each(project):
    project.add("a", 1, 14)
    project.add("b", 1, 14)
    project.cases[1] = replace(project.cases[1], label=project.cases[0].label)
    project.add("c", 3, organs=(1, 3))
    project.index()
    with pytest.raises(Problems) as error:
        project.collect()
    label = project.cases[0].label
    cure = "pair each image with its own, or name one patient for both if it is right"
    assert str(error.value).splitlines() == [
        f"a: {label}: is the label of b too, which is another image; {cure}",
        f"b: {label}: is the label of a too, which is another image; {cure}",
    ]
    assert [*project.collect(bad_cases="exclude")] == ["c"]


def test_repair_has_a_bound(project):
    project.add("a", 1, shear=0.002)
    project.add("b", 1)
    for bound in (0.0, 0.1):
        project.index(bound)
        with pytest.raises(Problems, match=r"a: .*sheared by 0\.002"):
            project.collect()
        project.index(bound)
        assert list(project.collect(bad_cases="exclude")) == ["b"]
        excluded = read_table(project.folder / "excluded.tsv")
        assert {row["case"] for row in excluded} == {"a"}
        assert ("more than manifest.max_repair_mm (0.1)" in excluded[0]["cause"]) == (bound > 0)


def test_corrections_are_logged_with_before_and_after(project, capsys):
    project.add("a", 1, 14)
    project.add("b", 2, source="kits")
    project.index()
    path = project.folder / "mine.tsv"
    path.write_text(
        "case\tabsent\tunknown\ttumour_scope\tnote\n"
        "a\tspleen\ttumour\t\tremoved in 2019\n"
        "b\tleft_kidney\t\tall\t\n"
    )
    entries = project.collect(corrections=str(path))
    assert (entries["a"].states[3], entries["a"].states[14]) == ("absent", "unknown")
    assert (entries["b"].states[14], entries["b"].scope) == ("absent", None)
    assert project.suspects() == []
    rows = read_table(project.folder / "corrected.tsv")
    assert [(row["case"], row["what"], row["before"], row["after"]) for row in rows] == [
        ("a", "spleen", "unknown", "absent"),
        ("a", "tumour", "annotated", "unknown"),
        ("b", "left_kidney", "absent", "absent"),
        ("b", "tumour_scope", "right_kidney,left_kidney", "everywhere"),
    ]
    log = capsys.readouterr().out
    assert "corrected: a: spleen: unknown -> absent (removed in 2019)\n" in log


def test_names_that_are_no_case(project):
    project.add("liver_1", 1, 14)
    project.index()
    with pytest.raises(Problems) as error:
        project.collect(excluded_names=["liver_1", "liver_2"])
    assert str(error.value) == (
        "config: selection.exclude: 'liver_2' is no case of the case table; did you mean 'liver_1'?"
    )
    path = project.folder / "mine.tsv"
    path.write_text("case\tnote\nlive_1\t\n")
    with pytest.raises(Problems) as error:
        project.collect(corrections=str(path))
    assert str(error.value).startswith(f"live_1: {path}: ")
    assert "did you mean 'liver_1'?" in str(error.value)


def test_negatives_teach_an_empty_label(project):
    project.add("free", 1, annotated="liver,tumour")
    project.add("scoped", 2, 13, source="kits")
    project.add("sick", 1, 14)
    project.add("liver", 1, source="liver")
    project.add("known", 1, 14, split="validation")
    project.add("half", 2, 13, source="kits", split="validation")
    project.index()
    project.collect()
    picked = {}
    entries = read_manifest(project.folder / "manifest.tsv", LABELS)
    for split in ("train", "validation"):
        part = project.folder / f"{split}.tsv"
        write_manifest(part, [entry for entry in entries if entry.split == split], LABELS)
        for negatives in (False, True):
            out = ShardOutput(
                project.folder / "s", project.folder / "s.tsv", project.folder / "selected"
            )
            select_tumour_cases(
                str(part), out, labels_file=LABELS_FILE,
                min_tumour_ml=0.1, exclude=[], negatives=negatives,
            )  # fmt: skip
            picked[split, negatives] = {row["case"]: row for row in read_table(out.table)}
            if split == "train" and negatives:
                assert not read_label(out.folder / "free.nii.gz").array.any()
                assert read_label(out.folder / "sick.nii.gz").array.sum() == 8
    without, with_them = picked["train", False], picked["train", True]
    assert {case for case, row in without.items() if row["status"] == "ok"} == {"sick"}
    assert {case for case, row in with_them.items() if row["status"] == "ok"} == {"sick", "free"}
    assert with_them["free"]["tumour_ml"] == "0.000"
    assert with_them["sick"]["tumour_ml"] == "0.480"
    assert with_them["liver"]["reason"] == "tumour is not annotated"
    assert "elsewhere nobody looked" in with_them["scoped"]["reason"]
    validation = picked["validation", True]
    assert validation["known"]["status"] == "ok"
    assert validation["half"]["reason"] == "tumour is not annotated everywhere"


@pytest.mark.real_data
def test_real_cts(real_data, project):
    place = real_data / "geometry"
    for name in ("crop_LPS", "crop_oblique12x7z", "shear_sform"):
        files = [str(place / f"{name}{ending}.nii.gz") for ending in ("_0000", "")]
        project.cases.append(Case(name, *files, "train", name))
    lps = read_label(place / "crop_LPS.nii.gz")
    flipped = project.folder / "flipped.nii.gz"
    write_label(flipped, lps.array[:, :, ::-1], lps)
    files = [str(place / "crop_thick6mm_0000.nii.gz"), str(place / "crop_thick6mm.nii.gz")]
    project.cases.append(Case("thick", *files, "train", "thick"))
    project.cases.append(
        Case("zz", str(place / "crop_LPS_0000.nii.gz"), str(flipped), "train", "x")
    )
    project.index()
    entries = project.collect(bad_cases="exclude")
    assert set(entries) == {"crop_LPS", "crop_oblique12x7z", "thick", "zz"}
    excluded = read_table(project.folder / "excluded.tsv")
    assert len(excluded) == 2
    assert all("move a corner by 3.92 mm" in row["cause"] for row in excluded)
    # The oblique crop has the voxels of the plain one; beside that only the flipped label is odd.
    wrong = [row for row in project.suspects() if "same image" not in row[2]]
    assert [(case, file) for case, file, _ in wrong] == [("zz", "flipped.nii.gz")]
    assert wrong[0][2].startswith("the label seems to be mirrored: right_kidney, left_kidney, ")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("case", "ml"),
    [
        ("00061", (313.26, 282.52, 110.99)),
        ("00062", (247.54, 241.10, 4.63)),
        ("00113", (211.25, 219.64, 150.76)),
        ("00152", (194.18, 193.85, 9.49)),
    ],
)
def test_real_tumours_are_selected_by_their_volume(real_data, project, case, ml):
    project.labels_file = LABELS_FILE
    path = real_data / f"labels_only/kits19_case_{case}_flare.nii.gz"
    label = read_label(path)
    image = str(project.folder / "image.nii.gz")
    noise = np.full(label.array.shape, -1000, np.int16)
    noise[..., ::2] = 40
    write_image(image, noise, label)
    project.cases.append(Case("k", image, str(path), "train", "kits"))
    project.index()
    entry = project.collect()["k"]
    assert project.suspects() == []
    assert [entry.volume_ml(value) for value in (2, 13, 14)] == pytest.approx(ml, abs=0.006)
    assert reason_against(entry, LABELS, ml[2] - 0.006, ()) == ""
    assert "is below selection.min_tumour_ml" in reason_against(entry, LABELS, ml[2] + 0.006, ())
