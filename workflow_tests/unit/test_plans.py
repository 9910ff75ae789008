"""Plans: nnU-Net loads them, the networks have the known sizes, frozen ones are checked."""

import json
import subprocess
import sys

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from panorgan.config.labels import load_labels
from panorgan.config.settings import Config
from panorgan.networks import count_parameters
from panorgan.nnunet.models.model import network_of
from panorgan.nnunet.plans import check_plan, configuration_of, make_dataset_json, make_plan
from panorgan.problems import Problems

INTENSITY = {
    "mean": 79.4,
    "std": 142.0 + 1e-9,
    "median": 95.0,
    "min": -1024.0,
    "max": 3071.0,
    "percentile_00_5": -972.0,
    "percentile_99_5": 294.0,
}
CLASSES = {"teacher": ["tumour"], "student": list(load_labels().names)}


def full_plan(role: str) -> dict:
    """The plan of the FLARE23 recipe at the challenge's median geometry."""
    recipe = getattr(Config(), role).model_dump()
    return make_plan(recipe, CLASSES[role], INTENSITY, (114, 512, 512), (2.5, 0.78, 0.78))


@pytest.mark.parametrize(
    ("role", "name", "parameters"),
    [("teacher", "2d", 62_939_014), ("student", "3d_fullres", 5_644_256)],
)
def test_nnunet_builds_the_recipes_networks(role, name, parameters):
    plan = json.loads(json.dumps(full_plan(role)))
    manager = PlansManager(plan)
    configuration = manager.get_configuration(name)
    heads = manager.get_label_manager(make_dataset_json(CLASSES[role], False))
    with torch.device("meta"):
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            1,
            heads.num_segmentation_heads,
            deep_supervision=True,
        )
        ours = network_of(plan, make_dataset_json(CLASSES[role], True))
    assert count_parameters(network) == count_parameters(ours) == parameters
    assert network.decoder.deep_supervision
    assert not ours.decoder.deep_supervision
    strides = getattr(Config(), role).network.strides
    assert configuration.pool_op_kernel_sizes == strides


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_nnunet_finds_all_that_a_plan_names(role):
    manager = PlansManager(full_plan(role))
    (name,) = manager.available_configurations
    configuration = manager.get_configuration(name)
    assert configuration.preprocessor_class.__name__ == "DefaultPreprocessor"
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIOWithReorient"
    assert configuration.resampling_fn_data.keywords == {
        "is_seg": False,
        "order": 3,
        "order_z": 0,
        "force_separate_z": None,
        "separate_z_anisotropy_threshold": 3,
    }
    assert configuration.resampling_fn_seg.keywords["order"] == 1
    assert configuration.resampling_fn_seg.keywords["is_seg"]
    assert configuration.batch_dice is (role == "teacher")


def test_the_plan_states_statistics_and_medians():
    student, teacher = full_plan("student"), full_plan("teacher")
    stated = student["foreground_intensity_properties_per_channel"]["0"]
    assert stated == INTENSITY | {"std": 142.0}
    assert configuration_of(student)[1]["median_image_size_in_voxels"] == [71.0, 333.0, 333.0]
    assert configuration_of(teacher)[1]["median_image_size_in_voxels"] == [489.0, 489.0]
    assert student["panorgan"]["orientation"] == "RAS"
    assert student["panorgan"]["classes"] == CLASSES["student"]


@pytest.mark.parametrize("ignore", [False, True])
def test_the_dataset_json_suits_nnunet(ignore):
    dataset_json = make_dataset_json(["liver", "tumour"], ignore)
    manager = PlansManager(full_plan("student")).get_label_manager(dataset_json)
    assert manager.num_segmentation_heads == 3
    assert manager.ignore_label == (3 if ignore else None)


def test_a_written_plan_passes_the_check(tmp_path):
    for role in ("teacher", "student"):
        path = tmp_path / "plans.json"
        path.write_text(json.dumps(full_plan(role), indent=1))
        assert check_plan(path) == full_plan(role)


def test_a_plan_made_before_there_was_a_choice_of_crops_is_one_of_nonzero(tmp_path):
    plan = full_plan("student")
    path = tmp_path / "plans.json"
    del plan["panorgan"]["recipe"]["crop"]
    path.write_text(json.dumps(plan))
    assert check_plan(path) == full_plan("student")


def set_patch(plan):
    configuration_of(plan)[1]["patch_size"] = [64, 64, 64]


def set_transpose(plan):
    plan["transpose_forward"] = [2, 0, 1]


def set_batch(plan):
    plan["panorgan"]["recipe"]["batch_size"] = "two"


def drop_our_part(plan):
    del plan["panorgan"]


def add_configuration(plan):
    plan["configurations"]["2d"] = {}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (set_patch, "configurations.3d_fullres.patch_size is [64, 64, 64], not [32, 128, 192]"),
        (set_transpose, "transpose_forward is [2, 0, 1], not [0, 1, 2]"),
        (set_batch, "batch_size"),
        (drop_our_part, "is no plan of panorgan (KeyError: 'panorgan')"),
        (add_configuration, "configurations.2d is unknown"),
    ],
)
def test_a_plan_that_does_not_fit_its_recipe_is_refused(tmp_path, change, cause):
    plan = full_plan("student")
    change(plan)
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(Problems) as caught:
        check_plan(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert cause in line


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[]", b"7"])
def test_an_unreadable_plan_is_one_line(tmp_path, content):
    path = tmp_path / "plans.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problems) as caught:
        check_plan(path)
    assert len(str(caught.value).splitlines()) == 1


def test_planning_imports_no_network_library():
    code = (
        "import sys, panorgan.nnunet.plans;"
        "sys.exit(bool({'torch', 'nnunetv2', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
