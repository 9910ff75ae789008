"""Preprocessing: nnU-Net's own result, whatever the stored orientation, in files read in parts."""

from copy import deepcopy
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from panorgan.io.volumes import (
    Volume,
    canonical_spacing,
    new_volume,
    to_canonical,
    write_image,
    write_label,
)
from panorgan.nnunet.case_file import load, save
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan
from panorgan.nnunet.preprocess import preprocess_image, sample_locations
from panorgan.problems import Stop

INTENSITY = {
    "mean": 50.0,
    "std": 100.0,
    "median": 50.0,
    "min": -1000.0,
    "max": 1000.0,
    "percentile_00_5": -300.0,
    "percentile_99_5": 300.0,
}
CLASSES = ["liver", "spleen", "tumour"]


def plan_for(spacing, patch_size) -> dict:
    """A plan with a small network, for a target spacing and patch of two or three axes."""
    dim = len(patch_size)
    network = {
        "name": "attention_unet" if dim == 2 else "small_unet",
        "features": [4, 8, 8],
        "kernel_sizes": [[3] * dim] * 3,
        "strides": [[1] * dim] + [[2] * dim] * 2,
        "convs_per_stage": 1,
    }
    recipe = {
        "spacing_mm": list(spacing),
        "patch_size": list(patch_size),
        "batch_size": 3,
        "network": network,
        "training": {"batch_dice": False},
    }
    return make_plan(recipe, CLASSES, INTENSITY, (20, 20, 20), (3.0, 2.0, 2.0))


PLANS = {
    "3d isotropic": plan_for((2.5, 2.0, 2.0), (8, 8, 8)),
    "3d anisotropic": plan_for((5.0, 1.5, 1.5), (8, 16, 16)),
    "2d": plan_for((1.5, 1.5), (16, 16)),
}


def random_volume(seed=0, shape=(12, 17, 14), spacing=(4.0, 1.2, 1.6)) -> tuple[Volume, np.ndarray]:
    """A RAS volume without structure, and a label of its grid."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-400, 400, shape).astype(np.int16)
    return new_volume(image, spacing), rng.integers(0, 4, shape).astype(np.uint8)


def stored_as(volume: Volume, axes: str) -> Volume:
    """The same image in world space, with its axes stored in another order and direction."""
    image = nib.Nifti1Image(volume.array.transpose(2, 1, 0), volume.grid.affine)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(change)
    array = np.ascontiguousarray(np.asanyarray(turned.dataobj).transpose(2, 1, 0))
    spacing = tuple(float(mm) for mm in nib.affines.voxel_sizes(turned.affine)[::-1])
    return new_volume(array, spacing, turned.affine)


def all_orientations() -> list[str]:
    """The 48 ways to store an image's axes."""
    return ["".join(axes) for pairs in permutations(("LR", "PA", "IS")) for axes in product(*pairs)]


def test_where_no_resampling_is_needed_only_the_intensities_change():
    volume, label = random_volume(spacing=(2.5, 2.0, 2.0))
    done = preprocess_image(volume, PLANS["3d isotropic"], label)
    expected = (np.clip(volume.array, -300, 300).astype(np.float32) - 50) / 100
    assert done.data.dtype == np.float32
    np.testing.assert_array_equal(done.data[0], expected)
    assert done.seg.dtype == np.int16
    np.testing.assert_array_equal(done.seg[0], label)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("spacing", [(4.0, 1.2, 1.6), (1.3, 0.9, 0.9), (1.0, 5.0, 1.1)])
def test_shapes_are_nnunets(plan, spacing):
    volume, label = random_volume(spacing=spacing)
    done = preprocess_image(volume, plan, label)
    target = configuration_of(plan)[1]["spacing"]
    target = [spacing[0], *target] if len(target) == 2 else target
    expected = tuple(compute_new_shape(volume.array.shape, spacing, target))
    assert done.data.shape == done.seg.shape == (1, *expected)


def changed(plan, key=None, **values) -> dict:
    """A plan with other values in its configuration, or in a dictionary of it."""
    plan = deepcopy(plan)
    configuration = configuration_of(plan)[1]
    (configuration[key] if key else configuration).update(values)
    return plan


FOREIGN = {
    "transposed": PLANS["3d anisotropic"] | {"transpose_forward": [2, 0, 1]},
    "slices along x": plan_for((1.5, 1.5, 6.0), (16, 16, 8)),
    "never by slices": changed(
        PLANS["3d anisotropic"], "resampling_fn_data_kwargs", force_separate_z=False
    ),
    "linear": changed(PLANS["3d anisotropic"], "resampling_fn_data_kwargs", order=1),
    "linear across": changed(PLANS["3d anisotropic"], "resampling_fn_seg_kwargs", order_z=1),
    "as they are": changed(PLANS["3d isotropic"], normalization_schemes=["NoNormalization"]),
    "z-score": changed(PLANS["3d isotropic"], normalization_schemes=["ZScoreNormalization"]),
}


@pytest.mark.parametrize("name", [*PLANS, *FOREIGN])
def test_it_equals_nnunets_own_preprocessing_of_the_files(name, tmp_path):
    plan = (PLANS | FOREIGN)[name]
    volume, label = random_volume()
    volume.array[:2] = 0  # a margin that is cropped
    volume.array[4:10, 4:12, :6] = label[4:10, 4:12, :6] = 0  # a notch that is not
    turned = stored_as(volume, "PIL")
    turned_label = stored_as(new_volume(label, volume.grid.spacing), "PIL").array
    write_image(tmp_path / "c_0000.nii.gz", turned.array, turned)
    write_label(tmp_path / "c.nii.gz", turned_label, turned)
    manager = PlansManager(plan)
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(tmp_path / "c_0000.nii.gz")],
        str(tmp_path / "c.nii.gz"),
        manager,
        manager.get_configuration(configuration_of(plan)[0]),
        make_dataset_json(CLASSES, False),
    )
    done = preprocess_image(turned, plan, turned_label)
    # nnU-Net interpolates in float64, panorgan in float32.
    np.testing.assert_allclose(done.data, data, rtol=0, atol=1e-5 * max(1, data.max() / 10))
    np.testing.assert_array_equal(done.seg, seg)
    assert (done.seg == -1).any()
    locations = done.properties["class_locations"]
    assert list(locations) == list(properties["class_locations"]) == [1, 2, 3]
    for value, found in properties["class_locations"].items():
        np.testing.assert_array_equal(locations[value], found)
    for key in sorted(properties.keys() - {"class_locations", "sitk_stuff"}):
        np.testing.assert_array_equal(done.properties[key], properties[key])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_stored_orientation_does_not_matter(plan):
    volume, label = random_volume(shape=(6, 9, 7))
    expected = preprocess_image(volume, plan, label)
    for axes in all_orientations():
        turned = stored_as(volume, axes)
        turned_label = stored_as(new_volume(label, volume.grid.spacing), axes).array
        done = preprocess_image(turned, plan, turned_label)
        np.testing.assert_array_equal(done.data, expected.data, err_msg=axes)
        np.testing.assert_array_equal(done.seg, expected.seg, err_msg=axes)


def test_a_label_changes_nothing_in_the_image_and_no_input_is_changed():
    volume, label = random_volume()
    before = volume.array.copy(), label.copy(), np.random.get_state()[1].copy()
    with_label = preprocess_image(volume, PLANS["3d anisotropic"], label)
    without = preprocess_image(volume, PLANS["3d anisotropic"])
    np.testing.assert_array_equal(with_label.data, without.data)
    assert without.seg is None
    assert "class_locations" not in without.properties
    after = volume.array, label, np.random.get_state()[1]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_class_locations_point_at_voxels_of_their_class():
    volume, label = random_volume()
    label[label == 2] = 0
    done = preprocess_image(volume, PLANS["2d"], label)
    locations = done.properties["class_locations"]
    assert len(locations[2]) == 0
    for value in (1, 3):
        assert len(locations[value])
        assert (done.seg[tuple(locations[value].T)] == value).all()


def test_ignored_voxels_stay_and_are_no_foreground():
    volume, label = random_volume(spacing=(2.5, 2.0, 2.0))
    label[:, :8] = 4
    done = preprocess_image(volume, PLANS["3d isotropic"], label)
    np.testing.assert_array_equal(done.seg[0], label)
    assert list(done.properties["class_locations"]) == [1, 2, 3]


@pytest.mark.parametrize("voxels", [0, 1, 9_999, 10_001, 1_200_000])
def test_the_sample_of_places_is_nnunets(voxels):
    seg = np.zeros((1, 30, 250, 250), np.int16)
    seg[:, :, ::3] = -1
    inside = np.flatnonzero(seg == 0)
    seg.reshape(-1)[np.random.default_rng(0).choice(inside, voxels, replace=False)] = 2
    seg[0, 3, 0, :50] = 1
    expected = DefaultPreprocessor._sample_foreground_locations(seg, [1, 2, 3])
    found = sample_locations(seg, [1, 2, 3])
    for value in (1, 2, 3):
        np.testing.assert_array_equal(found[value], np.reshape(expected[value], (-1, 4)))


def test_float_images_and_images_of_nothing_pass():
    volume, label = random_volume()
    real = new_volume(volume.array.astype(np.float32) + 0.25, volume.grid.spacing)
    assert np.isfinite(preprocess_image(real, PLANS["2d"]).data).all()
    nothing = new_volume(np.zeros_like(volume.array), volume.grid.spacing)
    done = preprocess_image(nothing, PLANS["2d"], label)
    assert done.data.shape == done.seg.shape


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_was_saved_is_read_and_equal_cases_are_equal_bytes(plan, tmp_path):
    volume, label = random_volume(shape=(20, 40, 50))
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        done = preprocess_image(volume, plan, label)
        save(folder, "case_1", done)
        (file,) = folder.iterdir()
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    data, seg, _, properties = load(folder, "case_1")
    np.testing.assert_array_equal(data[:], done.data)
    np.testing.assert_array_equal(seg[:], done.seg)
    assert data.dtype == np.float32
    assert seg.dtype == np.int16
    places, expected = properties["class_locations"], done.properties["class_locations"]
    assert [*places] == [*expected]
    for value, found in places.items():
        np.testing.assert_array_equal(found, expected[value])


def test_files_of_earlier_versions_are_read(tmp_path):
    """They were nnU-Net's, three a case."""
    volume, label = random_volume(shape=(20, 40, 50))
    done = preprocess_image(volume, PLANS["2d"], label)
    blocks, chunks = comp_blosc2_params(done.data.shape, done.patch_size, 4)
    nnUNetDatasetBlosc2.save_case(
        done.data, done.seg, done.properties, str(tmp_path / "c"), chunks=chunks, blocks=blocks
    )
    data, seg, _, properties = load(tmp_path, "c")
    np.testing.assert_array_equal(data[:], done.data)
    np.testing.assert_array_equal(seg[:], done.seg)
    assert properties["class_locations"].keys() == done.properties["class_locations"].keys()


def test_a_2d_network_decompresses_only_the_slices_that_it_takes(tmp_path):
    volume, label = random_volume(shape=(20, 40, 50))
    save(tmp_path, "c", preprocess_image(volume, PLANS["2d"], label))
    for array in load(tmp_path, "c")[:2]:
        assert array.chunks[1] == array.blocks[1] == 1


def test_the_helper_turns_images():
    volume, _ = random_volume()
    turned = stored_as(volume, "PIL")
    assert turned.array.shape != volume.array.shape
    np.testing.assert_array_equal(to_canonical(turned.array, turned.grid), volume.array)
    assert canonical_spacing(turned.grid) == pytest.approx(volume.grid.spacing)


def test_a_full_disk_is_told_from_other_errors(small_disk):
    disk = small_disk(4)
    volume, label = random_volume(shape=(8, 40, 40))
    done = preprocess_image(volume, PLANS["2d"], label)
    with pytest.raises(Stop, match="no space left on the disk"):
        save(disk, "c", done)
    assert not list(disk.iterdir())
