"""The phantom: a patient that is right in world space, drawn the same each time."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from panorgan.cases import phantom
from panorgan.cases.manifest import load_sources
from panorgan.cases.phantom import (
    FOLDERS,
    GROUPS,
    KIDNEYS,
    ORGAN_HU,
    POSES,
    VALUES,
    case_files,
    draw_patient,
    phantom_cases,
    plans,
    write_case,
)
from panorgan.cases.table import read_cases, write_cases
from panorgan.config.labels import Labels, config_folder, load_labels
from panorgan.io.volumes import read_image, read_label, to_canonical
from panorgan.nnunet.cropping import body_box
from panorgan.problems import Problems

TINY = {"seed": 0, "shape": (12, 24, 32), "spacing_mm": (14.0, 10.0, 10.0)}
DEMO = {"seed": 0, "shape": (28, 56, 80), "spacing_mm": (6.0, 4.0, 4.0)}
NAMES = list(plans())


@cache
def patient(name):
    return draw_patient(name, **DEMO)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The whole phantom on a coarse grid: cases by name."""
    folder = tmp_path_factory.mktemp("phantom")
    cases = {case.case: case for case in phantom_cases(folder)}
    for case in cases.values():
        write_case(case, **TINY)
    return cases


def voxels(case, kind):
    read = read_image if kind == "image" else read_label
    return read(case_files(case)[kind]).array


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_label_maps_follow_the_class_table(tmp_path):
    case = next(c for c in phantom_cases(tmp_path) if c.case == "liver_1")
    write_case(case, **TINY)
    before = {kind: voxels(case, kind) for kind in ("image", "label", "organs")}
    shipped = load_labels()
    table = shipped.model_dump(by_alias=True)
    for label, value in zip(table["labels"], [*range(2, 15), 1], strict=True):
        label["value"] = value
    table["labels"] = sorted(table["labels"], key=lambda label: label["value"])
    write_case(case, **TINY, labels=Labels.model_validate(table))
    assert (voxels(case, "image") == before["image"]).all()
    for kind in ("label", "organs"):
        values = np.where(before[kind] == 14, 1, before[kind] + 1)
        np.testing.assert_array_equal(voxels(case, kind), np.where(before[kind], values, 0))

    table["labels"][4]["name"] = "bladder"
    with pytest.raises(Problems, match="labels: lacks pancreas, which the phantom draws"):
        write_case(case, **TINY, labels=Labels.model_validate(table))


def test_table_is_the_committed_one(tmp_path):
    table = tmp_path / "config" / "demo_cases.tsv"
    write_cases(table, phantom_cases(tmp_path / "data" / "demo"))
    assert table.read_bytes() == (config_folder() / "demo_cases.tsv").read_bytes()


def test_table_can_be_read():
    cases = read_cases(config_folder() / "demo_cases.tsv", load_labels())
    assert sorted(case.case for case in cases) == sorted(NAMES)
    assert len(cases) == sum(group.cases for group in GROUPS)
    assert [case for case in cases if case.split == "train" and not case.organs] == []


def test_files_are_the_declared_ones(tiny):
    declared = {path for case in tiny.values() for path in case_files(case).values()}
    root = case_files(tiny["liver_1"])["image"].parents[1]
    assert {path for path in root.rglob("*") if path.is_file()} == declared
    assert set(case_files(tiny["unlabelled_1"])) == {"image", "organs", "truth"}
    assert set(case_files(tiny["validation_1"])) == {"image", "label"}
    assert Path("x/truthTr/liver_1.nii.gz") in case_files(phantom_cases("x")[0]).values()


def test_bytes_do_not_depend_on_order_or_folder(tiny, tmp_path):
    for case in reversed(phantom_cases(tmp_path)[::9]):
        write_case(case, **TINY)
        for kind, path in case_files(case).items():
            assert path.read_bytes() == case_files(tiny[case.case])[kind].read_bytes()


def test_another_seed_is_another_patient(tiny, tmp_path):
    case = phantom_cases(tmp_path)[0]
    write_case(case, **TINY | {"seed": 1})
    assert (
        case_files(case)["truth"].read_bytes() != case_files(tiny[case.case])["truth"].read_bytes()
    )


@pytest.mark.parametrize("name", NAMES[: len(POSES)])
def test_organs_lie_right_in_the_world(tiny, name):
    volume = read_label(case_files(tiny[name])["truth"])
    right, front, up = {}, {}, {}
    for organ in ORGAN_HU:
        voxel = np.argwhere(volume.array == VALUES[organ]).mean(axis=0)[::-1]
        world = volume.grid.affine[:3, :3] @ voxel + volume.grid.affine[:3, 3]
        right[organ], front[organ], up[organ] = world
    for organ in ("liver", "right_kidney", "right_adrenal", "gallbladder", "ivc"):
        assert right[organ] > right["aorta"] + 10
    for organ in ("spleen", "stomach", "left_kidney", "left_adrenal"):
        assert right[organ] < right["aorta"]
    assert front["stomach"] > front["spleen"]
    assert front["gallbladder"] > front["right_kidney"] + 30
    assert up["oesophagus"] > up["left_kidney"] + 30 > up["duodenum"]
    assert up["liver"] > up["duodenum"] + 30


def test_stored_orientations_and_spacings_differ(tiny):
    grids = {name: read_image(case_files(tiny[name])["image"]).grid for name in NAMES[: len(POSES)]}
    assert [grid.orientation for grid in grids.values()] == [axes for axes, _ in POSES]
    assert len({grid.spacing for grid in grids.values()}) == len(POSES)
    for (_, tilted), grid in zip(POSES, grids.values(), strict=True):
        directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
        angle = np.degrees(np.arccos(np.abs(directions).max(axis=0).min()))
        assert 3 < angle < 10 if tilted else angle < 0.1


def test_files_hold_the_drawn_patient(tiny):
    drawn = draw_patient("liver_4", **TINY)
    for kind, array in (("image", drawn.image), ("organs", drawn.pseudo_organs)):
        volume = (read_image if kind == "image" else read_label)(case_files(tiny["liver_4"])[kind])
        assert volume.grid.orientation == "LIP"
        np.testing.assert_array_equal(to_canonical(volume.array, volume.grid), array)


def test_labels_hold_what_their_source_annotates(tiny):
    sources = load_sources(config_folder() / "sources.yaml", load_labels())
    for name, plan in plans().items():
        files = case_files(tiny[name])
        if plan.group.split != "train":
            assert set(np.unique(voxels(tiny[name], "label"))) >= set(range(14))
        elif "label" in files:
            label, truth = voxels(tiny[name], "label"), voxels(tiny[name], "truth")
            values = {VALUES[organ] for organ in sources[plan.group.source].annotated}
            expected = values if plan.tumour else values - {VALUES["tumour"]}
            assert set(np.unique(label)) == {0} | expected
            healthy = truth != VALUES["tumour"]
            np.testing.assert_array_equal(
                label[healthy], (truth * np.isin(truth, list(values)))[healthy]
            )
            if VALUES["tumour"] in values:
                np.testing.assert_array_equal(label == VALUES["tumour"], ~healthy)


def test_tumours_are_where_planned(tiny):
    for name, plan in plans().items():
        truth = voxels(tiny[name], "truth" if plan.group.split == "train" else "label")
        assert (truth == VALUES["tumour"]).any() == plan.tumour


def test_where_tumours_are_not_annotated_they_carry_their_organ(tiny):
    label, truth = voxels(tiny["organs_1"], "label"), voxels(tiny["organs_1"], "truth")
    hosts = {VALUES[name] for name in ("liver", *KIDNEYS, "pancreas")}
    assert set(np.unique(label[truth == VALUES["tumour"]])) <= hosts


@pytest.mark.parametrize("name", NAMES[::6])
def test_attenuation_is_plausible(name):
    drawn = patient(name)
    assert drawn.image.dtype == np.int16
    means = {organ: np.median(drawn.image[drawn.truth == VALUES[organ]]) for organ in ORGAN_HU}
    for organ, value in ORGAN_HU.items():
        assert abs(means[organ] - value) < 60
    tumour = drawn.image[drawn.truth == VALUES["tumour"]]
    assert not tumour.size or np.median(tumour) < means["liver"] - 50
    assert np.median(drawn.image[:, -2:]) < -900
    assert (drawn.image > 250).sum() > 300


def body_of(name):
    """Bounds of the patient in the image."""
    spacing = np.linalg.norm(patient(name).affine[:3, :3], axis=0)[::-1]
    return body_box(patient(name).image, spacing)


@pytest.mark.parametrize("split", FOLDERS)
def test_in_every_split_some_patients_have_air_around_and_some_have_not(split):
    shares = {True: [], False: []}
    for name, plan in plans().items():
        if plan.group.split == split:
            _, (front, back), (left, right) = body_of(name)
            _, rows, columns = patient(name).image.shape
            shares[plan.air].append((back - front) * (right - left) / (rows * columns))
    assert min(shares[False]) > 0.75
    assert max(shares[True]) < 0.6
    assert len(set(shares[True])) == len(shares[True])


def test_air_is_as_a_scanner_shows_it():
    _, (_, top), (_, right) = body_of("validation_2")
    air = patient("validation_2").image[:, top:, right:]
    assert air.size > 1000
    assert air.mean() == pytest.approx(-1000, abs=5)
    assert 5 < air.std() < 20


@pytest.mark.parametrize("name", ["liver_2", "validation_6"])  # straight and tilted
def test_air_around_changes_nothing_of_a_patient(name, monkeypatch):
    wide = patient(name)
    monkeypatch.setattr(phantom, "AIR_MM", np.zeros((3, 2)))
    tight = draw_patient(name, **DEMO)
    start = np.linalg.solve(wide.affine, tight.affine[:, 3])[2::-1].round().astype(int)
    inside = tuple(slice(at, at + size) for at, size in zip(start, tight.truth.shape, strict=True))
    np.testing.assert_allclose(wide.affine[:3, :3], tight.affine[:3, :3])
    for kind in ("truth", "organs", "pseudo_organs"):
        part = getattr(wide, kind)[inside]
        assert (part != getattr(tight, kind)).mean() < 1e-3
        assert (getattr(wide, kind) > 0).sum() == (part > 0).sum()


@pytest.mark.parametrize("name", NAMES)
def test_every_organ_is_there(name):
    sizes = np.bincount(patient(name).truth.ravel(), minlength=15)
    assert sizes[1:14].min() >= 20
    assert sizes[14] >= 50 if plans()[name].tumour else sizes[14] == 0


def test_volumes_are_those_of_a_small_adult():
    voxel_ml = [abs(np.linalg.det(patient(name).affine[:3, :3])) / 1000 for name in NAMES]

    def middle(organ):
        return np.median(
            [
                ml * (patient(name).organs == VALUES[organ]).sum()
                for name, ml in zip(NAMES, voxel_ml, strict=True)
            ]
        )

    assert 600 < middle("liver") < 1500
    assert 80 < middle("left_kidney") < 200
    assert 80 < middle("right_kidney") < 200
    assert 90 < middle("spleen") < 250
    assert 40 < middle("pancreas") < 110
    assert 4 < middle("left_adrenal") < 12


def test_the_grid_does_not_change_the_patient():
    coarse = draw_patient("organs_3", **TINY)

    def liver_ml(drawn):
        return (drawn.organs == VALUES["liver"]).sum() * abs(np.linalg.det(drawn.affine[:3, :3]))

    assert liver_ml(coarse) == pytest.approx(liver_ml(patient("organs_3")), rel=0.1)


def test_pseudo_labels_have_realistic_errors():
    scores = []
    for name in (case.case for case in phantom_cases("") if case.organs):
        drawn = patient(name)
        assert drawn.pseudo_organs.dtype == np.uint8
        assert drawn.pseudo_organs.max() <= 13
        scores += [dice(drawn.truth == v, drawn.pseudo_organs == v) for v in range(1, 14)]
    assert 0.75 < np.mean(scores) < 0.93
    assert min(scores) < 0.3


def test_unknown_case_is_a_problem(tmp_path):
    case = replace(phantom_cases(tmp_path)[0], case="liver_99")
    with pytest.raises(Problems, match="liver_99: is no case of the phantom"):
        write_case(case, **TINY)


def test_grid_without_room_for_an_organ_is_a_problem(tmp_path):
    with pytest.raises(Problems, match=r"liver_1: the phantom's grid .*adrenal"):
        write_case(phantom_cases(tmp_path)[0], seed=0, shape=(4, 8, 8), spacing_mm=(40, 30, 40))
    assert not list(tmp_path.rglob("*.nii.gz"))
