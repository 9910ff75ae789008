"""The typed config: what is refused, and in which words."""

import re
from datetime import date
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


def test_patches_need_not_be_divisible_but_as_large_as_the_strides():
    load_config({"teacher": {"patch_size": [501, 333]}})
    load_config({"teacher": {"patch_size": [128, 129]}})
    text = refused(teacher={"patch_size": [128, 100]})
    assert text == (
        "config: teacher: patch_size [128, 100]: the strides of axis 1 need 128 voxels or more; "
        "enlarge patch_size, or lower network.strides"
    )
    text = refused(teacher={"patch_size": [128, 128]})
    assert "teacher: patch_size [128, 128] is down to one voxel after the strides; " in text


def test_what_swaps_left_and_right_is_not_mirrored():
    training = load_config({}).student.training.model_dump()
    for axis in (0, 1):
        load_config({"student": {"training": mirrored(training, axis)}})
    text = refused(student={"training": mirrored(training, 2)})
    assert "mirror_axes: axis 2 swaps left and right" in text
    training = load_config({}).teacher.training.model_dump()
    assert "the patch has no axis 2" in refused(teacher={"training": mirrored(training, 2)})


def test_nothing_is_named_twice():
    for section, key, named in (
        ("student", "variants", ["stage2", "stage2"]),
        ("student", "seeds", [0, 1, 0]),
        ("ablation", "arms", ["stage1", "stage1"]),
        ("ablation", "seeds", [1, 1]),
    ):
        line = refused(**{section: {key: named}})
        assert line == f"config: {section}.{key}: names one twice: {named}; remove it"


def test_the_first_stage_keeps_the_size():
    network = load_config({}).student.network.model_dump()
    strides = [[1, 2, 2], *network["strides"][1:]]
    assert "keeps the size" in refused(student={"network": network | {"strides": strides}})


def mirrored(training: dict, axis: int) -> dict:
    return training | {"augmentation": training["augmentation"] | {"mirror_axes": [axis]}}


NETWORK = load_config({}).student.network.model_dump()
KERNELS, STRIDES = NETWORK["kernel_sizes"], NETWORK["strides"]
FACTORS = ["scaling", "brightness", "contrast", "gamma", "low_resolution"]
FACTORS += ["elastic_sigma", "blur_sigma"]
RANGES = [*FACTORS, "elastic_alpha", "noise_variance"]
DOWNWARDS = "runs downwards; write the smaller number first"
NAME = "use up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
BRACES = (
    "name or link a path without it: Snakemake, or the shell that submits jobs, would expand it"
)


def changed(key: str, value: object) -> dict:
    """The defaults with another value at a place."""
    content = config = load_config({}).model_dump()
    *sections, last = key.split(".")
    for section in sections:
        content = content[section]
    assert last in content
    content[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gate.tumour.hu", [250.0, -50.0], f": [250.0, -50.0] {DOWNWARDS}"),
        (
            "gate.tumour.hu",
            [50.0, 50.0],
            ": [50.0, 50.0] would remove every piece; write two different numbers",
        ),
        (
            "gate.tumour.min_ml",
            float("nan"),
            ": nan is no good value; it should be a finite number",
        ),
        ("gate.quantile", 0.5, ": 0.5 is no good value; it should be less than 0.5"),
        (
            "student.spacing_mm",
            [float("inf"), 1.2, 1.2],
            ".0: inf is no good value; it should be a fi",
        ),
        (
            "student.spacing_mm",
            [0.0, 1.2, 1.2],
            ".0: 0.0 is no good value; it should be greater than",
        ),
        (
            "student.spacing_mm",
            [4000.0, 1.2, 1.2],
            ".0: 4000.0 is no good value; it should be less",
        ),
        ("student.spacing_mm", [1.2, 1.2], "spacing_mm needs 3 values, as patch_size has"),
        (
            "student.network.features",
            [16, 32, 64],
            "features, kernel_sizes and strides differ in len",
        ),
        (
            "student.network.kernel_sizes",
            [[2, 3, 3], *KERNELS[1:]],
            ".0.0: 2 is even; kernel sizes must be odd",
        ),
        (
            "student.network.kernel_sizes",
            [[3, 3], *KERNELS[1:]],
            "network.kernel_sizes: each entry needs 3 values, as patch_size has: [32, 128, 192]",
        ),
        (
            "student.network.strides",
            [[1, 2, 2], *STRIDES[1:]],
            ": the first stage keeps the size, so not [1, 2, 2]; write only 1",
        ),
        ("student.batch_size", 0, ": 0 is no good value; it should be greater than or equal to 1"),
        ("student.batch_size", 9999, "a batch has 7,863,533,568 voxels, more than any GPU holds; "),
        ("student.batch_size", 2.0, ": 2.0 is no integer; write 2"),
        ("student.batch_size", True, ": True is no good value; it should be a valid integer"),
        ("student.batch_size", None, ": has no value; set it"),
        ("student.seeds", [2**64], ".0: 18446744073709551616 is no good value; it should be less"),
        ("student.seeds", 0, ": 0 is no good value; it should be a valid list"),
        ("student.training", 3, ": 3 is no section; write its keys below it, one a line"),
        (
            "student.training.workers",
            10**6,
            ": 1000000 is no good value; it should be less than or",
        ),
        ("student.plan", "", ": is empty; write a path"),
        (
            "prediction.tile_step",
            1e-9,
            ": 1e-09 is no good value; it should be greater than or equal",
        ),
        (
            "evaluation.lesion_sizes_mm",
            [20.0, 10.0],
            ": [20.0, 10.0] does not ascend; write the small",
        ),
        (
            "shards.test",
            10**6,
            ": 1000000 is no good value; it should be less than or equal to 10000",
        ),
        ("folds", 10**6, ": 1000000 is no good value; it should be less than or equal to 100"),
        ("run", "..", f": '..' is no name of a run; {NAME}"),
        ("run", "{x}", f": '{{x}}' is no name of a run; {NAME}"),
        ("run", "x" * 101, f" is no name of a run; {NAME}"),
        ("run", 7, ": 7 is no text to YAML; put it in quotes"),
        ("run", date(2023, 4, 5), ": 2023-04-05 is no text to YAML; put it in quotes"),
        ("cases", "data/<logs>/cases.tsv", f": 'data/<logs>/cases.tsv' has '<' in it; {BRACES}"),
        ("sources", "$(id)/s.yaml", f": '$(id)/s.yaml' has '$' in it; {BRACES}"),
        ("labels", "`id`/l.yaml", f": '`id`/l.yaml' has '`' in it; {BRACES}"),
        ("student.plan", 'a"b.json', f": 'a\"b.json' has '\"' in it; {BRACES}"),
        ("cases", "data/{x}/cases.tsv", f": 'data/{{x}}/cases.tsv' has '{{' in it; {BRACES}"),
        ("labels", "", ": is empty; write a path"),
    ],
)
def test_values_that_no_recipe_can_mean(key, value, said):
    with pytest.raises(Problems) as error:
        load_config(changed(key, value))
    [line] = str(error.value).splitlines()
    section = key.rpartition(".")[0]
    assert line.startswith((f"config: {key}", f"config: {section}: ", "config: student: "))
    assert said in line


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.9, 0.7], f": [0.9, 0.7] {DOWNWARDS}"),
        ([-1.0, 1.0], ".0: -1.0 is no good value; it should be greater than "),
        ([0.5, float("inf")], ".1: inf is no good value; it should be a finite number"),
        ([0.5, float("nan")], ".1: nan is no good value; it should be a finite number"),
        ([0.5, "1e0"], ".1: '1e0' is text to YAML, no number; write 1.0e+0"),
        ([0.5], ": [0.5] is no good value; list should have at least 2 items"),
        ([0.5, 0.6, 0.7], ": [0.5, 0.6, 0.7] is no good value; list should have at most 2 items"),
    ],
)
@pytest.mark.parametrize("key", RANGES)
def test_ranges_of_augmentation(key, values, said):
    key = f"student.training.augmentation.{key}"
    with pytest.raises(Problems) as error:
        load_config(changed(key, values))
    assert f"config: {key}{said}" in str(error.value)


@pytest.mark.parametrize("key", FACTORS)
def test_factors_and_widths_are_above_0(key):
    key = f"teacher.training.augmentation.{key}"
    with pytest.raises(Problems) as error:
        load_config(changed(key, [0.0, 0.0]))
    assert f"config: {key}.0: 0.0 is no good value; it should be greater than 0" in str(error.value)
    load_config(changed(key, [0.9, 0.9]))


@pytest.mark.parametrize(
    ("text", "cure"),
    [("1e-3", "1.0e-3"), ("2.5E3", "2.5e+3"), ("-1e+2", "-1.0e+2"), ("'0.5'", "0.5")],
)
def test_a_number_that_yaml_takes_for_text_is_written_as_yaml_wants_it(text, cure):
    rate = "student.training.optimizer.learning_rate"
    value = yaml.safe_load(text)
    with pytest.raises(Problems) as error:
        load_config(changed(rate, value))
    assert str(error.value) == f"config: {rate}: {value!r} is text to YAML, no number; write {cure}"
    assert yaml.safe_load(cure) == float(value)


def test_a_whole_number_in_powers_of_ten():
    with pytest.raises(Problems, match="'1e3' is text to YAML, no number; write 1000"):
        load_config(changed("student.training.epochs", "1e3"))


def test_long_values_are_cut():
    assert len(refused(bad_cases=["x"] * 10_000)) < 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.reverse(), "values must be 1, 2, 3, … in this order"),
        (lambda rows: rows.pop(3), "values must be 1, 2, 3, … in this order"),
        (lambda rows: rows[1].update(value=1), "two classes have the same value"),
        (lambda rows: rows[1].update(name="liver"), "two classes have the same name"),
        (lambda rows: rows[1].update(title="Liver"), "two classes have the same title"),
        (lambda rows: rows[1].update(title=" "), "labels.1.title: is empty"),
        (lambda rows: rows[1].update(volume_ml=[9, 9]), "labels.1.volume_ml: 9 to 9 is no range"),
        (lambda rows: rows[1].update(volume_ml=[-1, 9]), "labels.1.volume_ml: -1 to 9 is no range"),
        (lambda rows: rows[1].update(volume_ml=[9]), "labels.1.volume_ml"),
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
