"""Cropping: never a voxel of the patient lost, and air around makes no difference."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_preprocess import plan_for
from toys import plan_of, student

from panorgan.cases.phantom import draw_patient
from panorgan.inference.predictor import Predictor
from panorgan.io.volumes import (
    Volume,
    canonical_spacing,
    from_canonical,
    new_volume,
    read_image,
    read_label,
    to_canonical,
)
from panorgan.nnunet.cropping import BODY_HU, body_box, crop_box, crop_of, nonzero_box
from panorgan.nnunet.models.convert import convert
from panorgan.nnunet.models.model import network_of, save_model
from panorgan.nnunet.plans import configuration_of
from panorgan.nnunet.preprocess import preprocess_image
from panorgan.problems import Problems
from panorgan.stages.training import _frozen_plan, _preprocessing_of

SPACING = (3.0, 2.0, 2.0)
AROUND = ((0, 0), (40, 23), (37, 40))
"""Voxels of air put around an image; not in z, as a CT's first slice shows the patient too."""


def body(shape=(8, 150, 200), radii=(60, 85), centre=None, hu=40) -> np.ndarray:
    """An elliptic cylinder in air, radii in voxels: (z, y, x) int16."""
    y, x = np.indices(shape[1:])
    centre = centre or (shape[1] / 2, shape[2] / 2)
    inside = np.hypot((y - centre[0]) / radii[0], (x - centre[1]) / radii[1]) < 1
    return np.broadcast_to(np.where(inside, hu, -1000), shape).astype(np.int16)


def cut(image, box) -> np.ndarray:
    return image[tuple(slice(*bounds) for bounds in box)]


def padded(volume: Volume, hu: float) -> Volume:
    """A volume with air around the patient; where in the world it lies does not matter."""
    image = np.pad(to_canonical(volume.array, volume.grid), AROUND, constant_values=hu)
    return new_volume(image, canonical_spacing(volume.grid))


def phantom(name="validation_1") -> Volume:
    drawn = draw_patient(name, seed=0, shape=(14, 40, 56), spacing_mm=(12, 6, 6))
    spacing = np.linalg.norm(drawn.affine[:3, :3], axis=0)[::-1]
    return new_volume(drawn.image, tuple(spacing.tolist()))


def body_plan() -> tuple[dict, dict]:
    """A toy that crops to the body, its patch large enough for few tiles."""
    return plan_of(student() | {"crop": "body", "patch_size": [16, 48, 64]})


def test_what_is_left_is_the_body_without_air_and_table():
    image = body(centre=(70, 100))
    image[:, 148:150, 5:195] = -150  # a table, 4 mm thick, 36 mm behind the back
    z, y, x = body_box(image, SPACING)
    assert z == [0, 8]
    assert y[0] == 11  # the first voxel of the body
    assert 130 <= y[1] <= 130 + 10  # the last, and 20 mm at most
    assert 16 - 10 <= x[0] <= 16 < 185 <= x[1] <= 185 + 10


def test_a_table_that_touches_the_body_is_kept_rather_than_a_voxel_lost():
    image = body(centre=(70, 100))
    image[:, 128:140] = 30
    z, y, x = body_box(image, SPACING)
    assert (z, y, x) == ([0, 8], [11, 140], [0, 200])


@pytest.mark.parametrize("spacing", [(1, 0.7, 0.7), (5, 0.9, 0.9), (3, 2, 2), (2, 5, 5)])
@pytest.mark.parametrize("shape", [(1, 150, 200), (3, 150, 200), (40, 150, 200)])
def test_no_voxel_of_a_body_is_cut_off_however_large_voxels_are_and_however_few(shape, spacing):
    image = body(shape, radii=(40, 55), centre=(93, 121))
    image = image + np.random.default_rng(0).normal(0, 25, shape).astype(np.int16)
    left = cut(image, body_box(image, spacing))
    assert (left > BODY_HU).sum() == (image > BODY_HU).sum()


def test_arms_and_legs_that_are_apart_are_kept():
    legs = np.maximum(body(radii=(30, 30), centre=(75, 50)), body(radii=(30, 30), centre=(75, 150)))
    assert body_box(legs, SPACING)[2] == [21, 180]
    arm = np.maximum(body(radii=(50, 60)), body(radii=(15, 15), centre=(75, 180)))
    assert body_box(arm, SPACING)[2] == [41, 195]


def test_lungs_gas_and_noise_are_no_end_of_the_body():
    image = body()
    image[:, 40:110, 30:170] = -850
    assert body_box(image, SPACING) == body_box(body(), SPACING)
    noisy = (image + np.random.default_rng(0).normal(0, 120, image.shape)).astype(np.int16)
    assert (cut(body(), body_box(noisy, SPACING)) > 0).sum() == (body() > 0).sum()


@pytest.mark.parametrize("air", [-1000, -1024, -3024, 0])
def test_air_around_changes_nothing(air):
    image = body()
    image[:, 140:143, 5:195] = -100
    before = cut(image, body_box(image, SPACING))
    around = np.pad(image, AROUND, constant_values=air)
    np.testing.assert_array_equal(cut(around, body_box(around, SPACING)), before)


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 50, 50), -1000, np.int16),
        np.zeros((4, 50, 50), np.int16),
        body((4, 80, 80), radii=(8, 8)),
        np.random.default_rng(0).choice((40, -1000), (4, 60, 60), p=(0.2, 0.8)).astype(np.int16),
    ],
    ids=["air", "nothing", "too small", "dust"],
)
def test_where_there_is_no_body_all_is_kept(image):
    assert body_box(image, SPACING) is None
    assert crop_box(image, SPACING, "body") == [[0, size] for size in image.shape]


def test_real_patients_are_whole(real_data):
    for name in ("images/TSexample", "geometry/crop_IPL", "geometry/crop_thick6mm"):
        volume = read_image(real_data / f"{name}_0000.nii.gz")
        label = read_label(real_data / f"{name.replace('images', 'labels')}.nii.gz")
        image = to_canonical(volume.array, volume.grid)
        box = body_box(image, canonical_spacing(volume.grid))
        found = cut(to_canonical(label.array, label.grid), box)
        assert (found > 0).sum() == (label.array > 0).sum() > 0
    chest = read_image(real_data / "images/LIDC0314_chest_upperabd_z275_0000.nii.gz")
    image = to_canonical(chest.array, chest.grid)
    z, y, x = body_box(image, canonical_spacing(chest.grid))
    assert (z, x) == ([0, 275], [0, 128])
    assert 5 <= y[0] <= 20  # its table lies there


def test_it_takes_little_memory():
    image = np.ascontiguousarray(body((100, 300, 400), radii=(120, 170)))
    tracemalloc.start()
    body_box(image, (2.5, 0.8, 0.8))
    nonzero_box(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 8


def test_the_plan_decides():
    volume = padded(phantom(), -1000)
    nonzero, cropped = plan_of(student())[0], body_plan()[0]
    whole = preprocess_image(volume, nonzero).properties
    assert whole["bbox_used_for_cropping"] == [[0, size] for size in volume.array.shape]
    found = preprocess_image(volume, cropped).properties["bbox_used_for_cropping"]
    assert found == body_box(volume.array, volume.grid.spacing)
    assert found[1][0] >= 40
    assert found[2][0] >= 37


def test_plans_of_others_and_of_before_crop_as_nnunet_does():
    plan = plan_of(student())[0]
    del plan["panorgan"]["recipe"]["crop"]
    assert crop_of(plan) == "nonzero"
    assert crop_of({"panorgan": {"orientation": "stored", "classes": []}}) == "nonzero"


def test_training_and_prediction_see_the_same():
    volume = padded(phantom(), -1000)
    label = (volume.array > 60).astype(np.uint8)
    plan = body_plan()[0]
    with_label, without = preprocess_image(volume, plan, label), preprocess_image(volume, plan)
    np.testing.assert_array_equal(with_label.data, without.data)
    tight = preprocess_image(phantom(), plan)
    np.testing.assert_array_equal(tight.data, without.data)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that crops to the body, its weights random."""
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    plan, dataset_json = body_plan()
    save_model(folder, network_of(plan, dataset_json), plan, dataset_json, {"seed": 0})
    return folder


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model, device="cpu", precision="fp32")


@pytest.mark.parametrize("air", [-1000, -1024, -3024])
@pytest.mark.parametrize("name", ["validation_1", "validation_4"])
def test_labels_do_not_change_when_the_image_is_padded_with_air(predictor, name, air):
    """What a model with `crop: body` guarantees, to the voxel, whatever its weights."""
    volume = phantom(name)
    labels = predictor.predict(volume)
    assert len(np.unique(labels)) > 1
    around = predictor.predict(padded(volume, air))
    np.testing.assert_array_equal(around, np.pad(labels, AROUND))


def test_labels_lie_right_in_every_stored_order(predictor):
    volume = padded(phantom(), -1000)
    expected = predictor.predict(volume)
    for signs in ((-1, 1, 1), (1, -1, -1)):
        turned = np.diag([*np.multiply(signs, volume.grid.spacing[::-1]), 1.0])
        grid = replace(volume.grid, affine=turned)
        stored = new_volume(from_canonical(volume.array, grid), grid.spacing, turned)
        np.testing.assert_array_equal(
            predictor.predict(stored), from_canonical(expected, grid), err_msg=str(signs)
        )


def test_a_key_changes_with_the_crop_and_older_results_stay():
    nonzero, cropped = plan_of(student())[0], body_plan()[0]
    assert _preprocessing_of(cropped) == _preprocessing_of(nonzero) | {"crop": "body"}
    assert "crop" not in _preprocessing_of(nonzero)


def test_a_given_plan_that_crops_otherwise_than_the_config_is_refused():
    plan, recipe = plan_of(student())[0], student() | {"crop": "body"}
    with pytest.raises(Problems, match=r"^plans.json: its crop is nonzero, not body; use the plan"):
        _frozen_plan(plan, recipe, plan["panorgan"]["classes"], "plans.json")


def test_who_exports_such_a_model_is_told_that_nnunet_does_not_crop_so(model, tmp_path):
    *_, note = convert(model, tmp_path / "out", to="nnunet")
    assert note.strip() == (
        "nnU-Net 2 does not crop to the body, as this model's training did: where there is much "
        "air around a patient its labels will differ"
    )


def test_a_plan_that_crops_and_is_no_usual_one_is_refused():
    plan = plan_for((2.5, 2.0, 2.0), (8, 8, 8))
    plan["panorgan"]["recipe"]["crop"] = "body"
    configuration_of(plan)[1]["resampling_fn_data_kwargs"]["order"] = 1
    with pytest.raises(Problems) as caught:
        preprocess_image(phantom(), plan)
    assert str(caught.value) == (
        "its plan crops to the body, but resamples as only nnU-Net itself does; set `crop: "
        "nonzero` in its recipe and train it again"
    )


def test_it_imports_no_network_library():
    code = (
        "import sys, panorgan.nnunet.cropping;"
        "sys.exit(bool({'torch', 'nnunetv2', 'blosc2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
