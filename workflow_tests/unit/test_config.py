"""The typed config: what is refused, and in which words."""

import re
from pathlib import Path

import pytest
import yaml

from panorgan.config.labels import load_labels
from panorgan.config.settings import default_yaml, load_config
from panorgan.problems import Problems

CONFIG = Path(__file__).parents[2] / "config"


def refused(**changes) -> str:
    with pytest.raises(Problems) as error:
        load_config(changes)
    return str(error.value)


def test_shipped_config_is_the_generated_one():
    assert (CONFIG / "config.yaml").read_text() == default_yaml()


def test_default_file_says_what_the_models_say():
    assert load_config(yaml.safe_load(default_yaml())) == load_config({})


def test_recipe_has_the_published_values():
    config = load_config({})
    assert config.teacher.spacing_mm == [0.8164, 0.8164]
    assert config.teacher.network.features == [32, 64, 128, 256, 480, 480, 480, 480]
    assert config.teacher.training.optimizer.learning_rate == 5e-4
    assert (config.teacher.training.epochs, config.student.training.epochs) == (1000, 1500)
    assert config.teacher.training.batch_dice
    assert not config.student.training.batch_dice
    assert config.student.patch_size == [32, 128, 192]
    assert config.student.training.augmentation.mirror_axes == []


def test_demo_changes_values_only():
    config = load_config({})
    demo = yaml.safe_load((CONFIG / "demo.yaml").read_text())

    def keys(section, defaults):
        for key, value in section.items():
            assert key in defaults, key
            if isinstance(value, dict) and isinstance(defaults[key], dict):
                keys(value, defaults[key])

    keys(demo, config.model_dump())


def test_unknown_key_names_path_and_nearest():
    line = refused(teacher={"trainning": {}})
    assert line == "config: teacher.trainning: unknown key; did you mean 'training'?"


def test_unknown_key_in_an_optional_section():
    assert "phantom.sed: unknown key; did you mean 'seed'?" in refused(phantom={"sed": 1})


def test_wrong_type_and_range():
    text = refused(student={"batch_size": "two"}, prediction={"tile_step": 3.0})
    assert "student.batch_size: 'two' is no good value" in text
    assert "prediction.tile_step: 3.0 is no good value" in text


def test_unknown_choice_names_the_nearest():
    assert "did you mean 'stop'?" in refused(bad_cases="stopp")


def test_patches_of_any_size_but_one_voxel():
    load_config({"teacher": {"patch_size": [501, 333]}})
    text = refused(teacher={"patch_size": [128, 100]})
    assert "teacher: patch_size [128, 100] is down to one voxel after the strides; " in text


def test_what_swaps_left_and_right_is_not_mirrored():
    training = load_config({}).student.training.model_dump()
    for axis in (0, 1):
        load_config({"student": {"training": mirrored(training, axis)}})
    text = refused(student={"training": mirrored(training, 2)})
    assert "mirror_axes: axis 2 swaps left and right" in text
    training = load_config({}).teacher.training.model_dump()
    assert "the patch has no axis 2" in refused(teacher={"training": mirrored(training, 2)})


def test_nothing_is_named_twice():
    assert "variants names one twice" in refused(student={"variants": ["stage2", "stage2"]})
    assert "seeds names one twice" in refused(student={"seeds": [0, 1, 0]})


def test_the_first_stage_keeps_the_size():
    network = load_config({}).student.network.model_dump()
    strides = [[1, 2, 2], *network["strides"][1:]]
    assert "keeps the size" in refused(student={"network": network | {"strides": strides}})


def mirrored(training: dict, axis: int) -> dict:
    return training | {"augmentation": training["augmentation"] | {"mirror_axes": [axis]}}


def test_lists_of_different_length():
    network = load_config({}).student.network.model_dump() | {"features": [16, 32, 64]}
    assert "differ in length" in refused(student={"network": network})


def test_kernels_are_odd():
    network = load_config({}).student.network.model_dump()
    kernels = [*network["kernel_sizes"][:-1], [3, 2, 3]]
    assert "must be odd" in refused(student={"network": network | {"kernel_sizes": kernels}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.reverse(), "values must be 1, 2, 3, … in this order"),
        (lambda rows: rows.pop(3), "values must be 1, 2, 3, … in this order"),
        (lambda rows: rows[1].update(value=1), "two classes have the same value"),
        (lambda rows: rows[1].update(name="liver"), "two classes have the same name"),
        (lambda rows: rows[1].update(title="Liver"), "two classes have the same title"),
        (lambda rows: rows[1].update(title=" "), "labels.1.title"),
        (lambda rows: rows[1].update(name="label"), "'label' cannot be a class's name"),
        (lambda rows: rows[1].update(name="background"), "'background' cannot be"),
    ],
)
def test_class_tables_that_mean_two_things(tmp_path, change, said):
    table = yaml.safe_load((CONFIG / "labels.yaml").read_text())
    change(table["labels"])
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(Problems, match=re.escape(said)):
        load_labels(path)
