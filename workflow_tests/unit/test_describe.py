"""`panorgan describe`: facts of recipes and models, told without data."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snakemake.utils import update_config
from test_preprocess import plan_for
from toys import plan_of, teacher

from panorgan.cli import main
from panorgan.config.settings import Config, load_config, merge, read_config_file
from panorgan.inference.describe import as_json
from panorgan.nnunet.models.model import network_of, save_model
from panorgan.nnunet.plans import configuration_of, make_dataset_json

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def describe(capsys):
    """Runs the command; the facts, or what it said on standard error."""

    def run(*arguments: object) -> dict | str:
        code = main(["describe", *map(str, arguments)])
        out, error = capsys.readouterr()
        assert (code, bool(out)) == ((1, False) if error else (0, True))
        return error or json.loads(out)

    return run


class TestRecipe:
    def test_teacher(self, describe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # no checkout
        facts = describe("--recipe", "teacher")
        memory = facts.pop("training_gpu_memory")
        assert facts == {
            "recipe": "teacher",
            "class": "panorgan.networks.AttentionUNet",
            "parameters": 62_939_014,
            "inputs": 1,
            "outputs": 2,
            "features": [32, 64, 128, 256, 480, 480, 480, 480],
            "kernel_sizes": [[3, 3]] * 8,
            "strides": [[1, 1]] + [[2, 2]] * 7,
            "axes": "yx",
            "crop": "nonzero",
            "spacing_mm": [0.8164, 0.8164],
            "patch_size": [512, 512],
            "batch_size": 4,
            "deep_supervision_sizes": [[512 // 2**level] * 2 for level in range(7)],
        }
        assert memory["precision"] == "bf16"
        assert memory["parameters_mb"] == round(62_939_014 * 4 / 2**20)
        assert memory["needed_mb"] == pytest.approx(
            memory["peak_mb"] + memory["allowance_mb"], abs=1
        )

    def test_student_with_a_config(self, describe):
        facts = describe("--recipe", "student", "--config", CONFIG / "demo.yaml")
        assert facts["outputs"] == 15
        assert facts["axes"] == "zyx"
        assert facts["patch_size"] == [16, 48, 64]
        assert facts["deep_supervision_sizes"] == [[16, 48, 64], [16, 24, 32], [8, 12, 16]]

    def test_precision_and_labels_are_the_configs(self, describe, tmp_path):
        labels = yaml.safe_load((CONFIG / "labels.yaml").read_text())
        *others, _, tumour = labels["labels"]
        labels |= {"labels": [*others, tumour | {"value": 13}], "ignore": 14}
        (tmp_path / "labels.yaml").write_text(yaml.safe_dump(labels))
        mine = tmp_path / "mine.json"
        changes = {"training": {"precision": "fp32"}}
        mine.write_text(json.dumps({"labels": str(tmp_path / "labels.yaml"), "student": changes}))
        facts = describe("--recipe", "student", "--config", mine)
        assert facts["outputs"] == 14
        assert facts["training_gpu_memory"]["precision"] == "fp32"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("teacher: {batchsize: 2}", "teacher.batchsize: unknown key; did you mean"),
            ("teacher: [", "no valid YAML"),
            ("- a", "has no keys at its top"),
            ("labels: nowhere.yaml", "nowhere.yaml: No such file"),
        ],
    )
    def test_a_wrong_config_is_a_line(self, describe, tmp_path, text, said):
        (tmp_path / "mine.yaml").write_text(text)
        error = describe("--recipe", "teacher", "--config", tmp_path / "mine.yaml")
        assert said in error
        assert error.count("\n") == 1

    def test_a_missing_config_is_a_line(self, describe, tmp_path):
        said = describe("--recipe", "teacher", "--config", tmp_path / "none.yaml")
        assert said == f"{tmp_path / 'none.yaml'}: No such file or directory; check the path\n"


def stock_plan() -> dict:
    """The plan of a plain U-Net of nnU-Net's."""
    stock = plan_for([1.5] * 3, [32] * 3)
    configuration_of(stock)[1]["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [2, 3, 4],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
    return stock


class TestModel:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        folder = tmp_path / "model"
        plan, dataset_json = plan_of(teacher())
        card = {"seed": 3, "cases": 2, "cases_hash": "ab", "epochs": 5, "hours": 0.5}
        save_model(
            folder, network_of(plan, dataset_json), plan, dataset_json, card | {"phantom": True}
        )
        return folder

    def test_card(self, describe, folder):
        facts = describe(folder)
        written = json.loads((folder / "card.json").read_text())
        card = facts["card"]
        assert facts["notice"] == "trained on a phantom, not for clinical use"
        assert facts["parameters"] == written["parameters"]
        assert facts["training_gpu_memory"]["precision"] == "fp32"
        assert card["labels"] == {"0": "background", "1": "liver", "2": "tumour"}
        assert card["orientation"] == "RAS"
        same = ("seed", "cases", "cases_hash", "epochs", "hours", "checksum", "versions")
        assert [card[key] for key in same] == [written[key] for key in same]

    def test_of_others(self, describe, tmp_path):
        """A converted model has no training here, and no phantom is spoken of."""
        plan, dataset_json = stock_plan(), make_dataset_json(["liver", "spleen", "tumour"], False)
        plan["panorgan"].pop("recipe")
        save_model(tmp_path / "m", network_of(plan, dataset_json), plan, dataset_json, {})
        facts = describe(tmp_path / "m")
        assert facts["features"] == [2, 3, 4]
        assert not {"notice", "training_gpu_memory"} & {*facts}

    def test_wrong_folders_are_a_line(self, describe, folder, tmp_path):
        assert "no such model folder" in describe(tmp_path / "none")
        assert f"is no model folder; is it {folder}?" in describe(tmp_path)
        assert "no such model folder" in describe(folder / "card.json")

    def test_a_config_is_for_a_recipe(self, folder, capsys):
        assert main(["describe", str(folder), "--config", "x.yaml"]) == 2
        assert "--config is for a recipe" in capsys.readouterr().err

    def test_damage_is_a_line(self, describe, folder):
        weights = bytearray((folder / "weights.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(weights)
        assert "not those that the model's card describes" in describe(folder)


@pytest.mark.parametrize("arguments", [[], ["x", "--recipe", "teacher"], ["--recipe", "x"]])
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(["describe", *arguments])
    assert error.value.code == 2


VALUES = st.recursive(
    st.none() | st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.sampled_from("abc"), VALUES)


@given(CONFIGS, CONFIGS)
def test_configs_are_merged_as_snakemake_does(base, changes):
    expected = json.loads(json.dumps(base))
    update_config(expected, changes)
    before = json.dumps(base)
    assert merge(base, changes) == expected
    assert json.dumps(base) == before


def test_shipped_configs_are_read_and_valid():
    for name in ("config", "demo", "teacher_3d"):
        load_config(merge(Config().model_dump(), read_config_file(CONFIG / f"{name}.yaml")))


@given(VALUES)
def test_json_says_the_same(value):
    assert json.loads(as_json(value)) == value


def test_json_has_a_line_a_key():
    assert (
        as_json({"a": [[1], [2]], "b": {"c": 1}})
        == '{\n "a": [[1], [2]],\n "b": {\n  "c": 1\n }\n}'
    )
