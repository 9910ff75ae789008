"""The workflow on real CT: from FLARE-style folders to scores, geometry compared on the way."""

import json
import shutil
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from running import TINY, Project

from panorgan.cases.manifest import read_manifest
from panorgan.cases.phantom import store_as
from panorgan.cases.table import read_cases, write_cases
from panorgan.cli import main
from panorgan.config.labels import load_labels
from panorgan.fusing.fusion import fuse_stage1, fuse_stage2
from panorgan.inference.predictor import Predictor
from panorgan.io.tables import read_table
from panorgan.io.volumes import (
    Volume,
    canonical_spacing,
    from_canonical,
    new_volume,
    read_image,
    read_label,
    to_canonical,
    write_image,
    write_label,
)

pytestmark = [pytest.mark.workflow, pytest.mark.real_data]
LABELS = load_labels()
LIVER, TUMOUR = 1, 14


def with_lesion(image: Volume, label: Volume, radius_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A sphere of 40 HU less, painted into the middle of the liver, and its label."""
    shape, spacing = image.array.shape, np.array(image.grid.spacing)
    inside = np.argwhere(label.array == LIVER)
    centre = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))]
    offsets = (np.indices(shape).T - centre) * spacing
    lesion = ((offsets**2).sum(-1) <= radius_mm**2).T & (label.array == LIVER)
    assert lesion.sum() > 20
    painted, marked = image.array.copy(), label.array.copy()
    painted[lesion] -= 40
    marked[lesion] = TUMOUR
    return painted, marked


def keep(label: np.ndarray, *values: int) -> np.ndarray:
    return np.where(np.isin(label, values), label, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def flare_folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real CTs in FLARE's folders: flipped, coronal, oblique, thick, large; some with a lesion."""
    folder = tmp_path_factory.mktemp("flare")
    for name in (
        *("imagesTr2200", "labelsTr2200", "imagesTr1800", "imagesVal", "labelsVal", "imagesTs"),
        *("organs", "truth"),
    ):
        (folder / name).mkdir()
    geometry = real_data / "geometry"

    def add(case, source, images, labels, hidden, radius=None):
        image = read_image(source.with_name(source.name + "_0000.nii.gz"))
        label = read_label(label_of(source))
        pixels, truth = image.array, label.array
        if radius:
            pixels, truth = with_lesion(image, label, radius)
        write_image(folder / images / f"{case}_0000.nii.gz", pixels, image)
        write_label(folder / "truth" / f"{case}.nii.gz", truth, label)
        values = [value for value in np.unique(truth) if value not in hidden]
        write_label(folder / labels / f"{case}.nii.gz", keep(truth, *values), label)
        if images != "imagesVal":
            organs = np.where(truth == TUMOUR, LIVER, truth).astype(np.uint8)
            write_label(folder / "organs" / f"{case}.nii.gz", organs, label)

    def label_of(source):
        if source.parent.name == "images":
            return real_data / "labels" / f"{source.name}.nii.gz"
        return source.with_name(source.name + ".nii.gz")

    train = ("imagesTr2200", "labelsTr2200")
    add("flipped", geometry / "crop_LPS", *train, hidden=[2, 3, 4, 13], radius=24)
    add("coronal", geometry / "crop_IPL", *train, hidden=[1, 3, 5, 6])
    add("oblique", geometry / "crop_oblique12x7z", *train, hidden=[4, 9, 11, 12])
    add("thick", geometry / "crop_thick6mm", *train, hidden=[5, 6, 7, 8], radius=30)
    validation = ("imagesVal", "labelsVal")
    add("whole", real_data / "images/TSexample", *validation, hidden=[], radius=24)
    shutil.copy(
        real_data / "images/LIDC0314_chest_upperabd_z275_0000.nii.gz",
        folder / "imagesTr1800/chest_0000.nii.gz",
    )
    shutil.copy(geometry / "scl_inter_uint16_0000.nii.gz", folder / "imagesTs/scaled_0000.nii.gz")
    return folder


@pytest.fixture(scope="module")
def finished(flare_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow run over these folders, with the table that `panorgan init` wrote."""
    table = flare_folder / "cases.tsv"
    organs = str(flare_folder / "organs")
    assert main(["init", str(flare_folder), "-o", str(table), "--organs", organs]) == 0
    # With and without a lesion the crop is another image, and has the same organs.
    cases = [
        replace(case, patient="crop") if case.case in ("flipped", "coronal", "oblique") else case
        for case in read_cases(table, LABELS)
    ]
    write_cases(table, cases)
    grids = {
        "teacher": TINY["teacher"] | {"spacing_mm": [4.0, 4.0], "patch_size": [64, 64]},
        "student": TINY["student"] | {"spacing_mm": [6.0, 4.0, 4.0], "patch_size": [16, 48, 48]},
    }
    config = {key: value for key, value in TINY.items() if key != "phantom"}
    project = Project(
        tmp_path_factory.mktemp("real"), config | grids | {"cases": str(table), "run": "real"}
    )
    project.run()
    return project


def test_every_label_is_on_exactly_its_images_grid(finished):
    entries = {e.case: e for e in read_manifest(finished.results / "cases/manifest.tsv", LABELS)}
    compared = set()
    for path in finished.results.rglob("*.nii.gz"):
        if ".store" in path.parts:
            continue
        case = path.name.removesuffix(".nii.gz").removesuffix("_source")
        image, label = sitk.ReadImage(entries[case].image), sitk.ReadImage(str(path))
        for fact in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(label, fact)() == getattr(image, fact)(), path
        compared.add(case)
    assert compared == set(entries)


def test_orientations_were_recognised(finished):
    entries = read_manifest(finished.results / "cases/manifest.tsv", LABELS)
    found = {entry.case: entry.facts["orientation"] for entry in entries}
    assert found == {
        "chest": "LPS",
        "coronal": "IPL",
        "flipped": "LPS",
        "oblique": "RAS",
        "scaled": "RAS",
        "thick": "RAS",
        "whole": "RAS",
    }


def test_hidden_organs_come_back_from_the_pseudo_labels(finished, flare_folder):
    """Annotated voxels stay, the rest is filled; where no tumour was guessed, that is the truth."""
    entries = read_manifest(finished.results / "cases/manifest.tsv", LABELS, split="train")
    for entry in entries:
        if not entry.label:
            continue
        folder = finished.results / "round-1/fusion/stage2" / entry.shard
        fused = read_label(folder / f"{entry.case}.nii.gz").array
        truth = read_label(flare_folder / "truth" / f"{entry.case}.nii.gz").array
        guessed = (fused == TUMOUR) & (truth != TUMOUR)
        assert np.array_equal(fused[~guessed], truth[~guessed]), entry.case
        if entry.states[TUMOUR] == "annotated":
            assert not guessed.any()


def test_the_teacher_learnt_from_the_painted_lesions(finished):
    tables = (finished.results / "teacher/labels").glob("*labelled-??.tsv")
    rows = [row for table in tables for row in read_table(table)]
    assert {row["case"]: row["reason"] for row in rows} == {
        "flipped": "",
        "thick": "",
        "coronal": "tumour is not annotated",
        "oblique": "tumour is not annotated",
        "chest": "tumour is not annotated",
    }


def test_scores_and_report_exist(finished):
    folder = finished.results / "round-1/scores/stage2/seed-0"
    summary = json.loads((folder / "validation/summary.json").read_text())
    assert summary["cases"] == 1
    assert json.loads((folder / "test/summary.json").read_text())["cases"] == 0
    assert (finished.results / "report.html").stat().st_size > 10_000


def orientations() -> list[str]:
    """All 48 ways to store a volume's axes."""
    pairs = ("RL", "AP", "SI")
    return ["".join(letters) for order in permutations(pairs) for letters in product(*order)]


def test_all_48_orientations_give_the_same_label_in_world_space(tiny, real_data):
    image = read_image(real_data / "geometry/crop_RAS_0000.nii.gz")
    truth = read_label(real_data / "geometry/crop_RAS.nii.gz")
    pixels = np.ascontiguousarray(to_canonical(image.array, image.grid)[20:44, 20:56, 30:70])
    organs = np.ascontiguousarray(to_canonical(truth.array, truth.grid)[20:44, 20:56, 30:70])
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    teacher = Predictor(tiny.results / "teacher/seed-0/model", precision="fp32", threads=1)
    student = Predictor(
        tiny.results / "round-1/student/stage2/seed-0/model", precision="fp32", threads=1
    )
    states = dict.fromkeys(LABELS.values, "unknown") | {LIVER: "annotated"}
    results = []
    for axes in orientations():
        stored, stored_affine = store_as(pixels, affine, axes)
        volume = new_volume(np.ascontiguousarray(stored), (3.0, 3.0, 3.0), stored_affine)
        assert volume.grid.orientation == axes
        assert canonical_spacing(volume.grid) == (3.0, 3.0, 3.0)
        label, _ = store_as(organs, affine, axes)
        tumour = teacher.predict(volume)
        stage1 = fuse_stage1(keep(label, LIVER), tumour, states, LABELS)
        stage2 = fuse_stage2(stage1.label, stage1.source, label, states, LABELS)
        everything = (tumour, stage2.label, stage2.source, student.predict(volume))
        results.append([to_canonical(array, volume.grid) for array in everything])
        assert np.array_equal(from_canonical(results[-1][0], volume.grid), tumour)
    assert len(results) == 48
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert np.array_equal(expected, found)
    assert len(np.unique(results[0][3])) > 1
