"""The demo model in the repository: small, of the demo as it is now, and good enough to try."""

import json

import demo_model
import numpy as np
import pytest
import torch
import yaml
from running import REPOSITORY
from safetensors import safe_open
from toys import write_model

from panorgan.cases.phantom import case_files, phantom_cases, write_case
from panorgan.cli import main
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.settings import Config, load_config, merge
from panorgan.inference.predictor import Predictor
from panorgan.io.volumes import new_volume, read_image, read_label
from panorgan.nnunet.models.model import load_model
from panorgan.scoring.metrics import score_case

FOLDER = REPOSITORY / "docs/demo_model"
CHANGES = yaml.safe_load((config_folder() / "demo.yaml").read_text())
DEMO = load_config(merge(Config().model_dump(), CHANGES))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """The files of the demo's case that lies beside the model."""
    cases = phantom_cases(tmp_path_factory.mktemp("phantom"))
    case = next(case for case in cases if case.case == demo_model.CASE)
    write_case(case, **DEMO.phantom.model_dump())
    return case_files(case)


def test_it_is_small():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    files = {"card.json", "dataset.json", "plans.json", "weights.safetensors", demo_model.IMAGE}
    assert sizes.keys() == files
    assert sum(sizes.values()) <= 1_000_000
    assert sizes[demo_model.IMAGE] <= 200_000


def test_it_is_the_student_of_the_demo_as_it_is():
    plan = json.loads((FOLDER / "plans.json").read_text())
    made_of, now = plan["panorgan"]["recipe"], DEMO.student.model_dump()
    for key in ("crop", "spacing_mm", "patch_size", "batch_size", "network"):
        assert made_of[key] == now[key], f"{key} has changed: run `make demo-model`"
    assert plan["panorgan"]["classes"] == list(load_labels().names)


def test_its_ct_is_the_phantoms(phantom):
    np.testing.assert_array_equal(
        read_image(FOLDER / demo_model.IMAGE).array,
        read_image(phantom["image"]).array,
        err_msg="the phantom has changed: run `make demo-model`",
    )


def test_its_card_says_how_it_was_made_and_that_it_is_of_no_use_for_patients(capsys):
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["made_by"] == demo_model.MADE_BY
    assert card["stored"] == "fp16"
    assert card["phantom"] is True
    assert main(["describe", str(FOLDER)]) == 0
    said = capsys.readouterr().out
    assert "trained on a phantom, not for clinical use" in said
    assert "make demo-model" in said


def test_what_the_readme_says_to_try_labels_the_organs(phantom, tmp_path, capsys):
    out = tmp_path / "labels"
    command = ["predict", "-i", str(FOLDER / demo_model.IMAGE), "-m", str(FOLDER), "-o", str(out)]
    assert main(command) == 0
    assert "trained on a phantom, not for clinical use" in capsys.readouterr().out
    truth, predicted = read_label(phantom["label"]), read_label(out / "phantom.nii.gz")
    assert not predicted.grid.difference(truth.grid)
    rows = score_case(predicted.array, truth.array, truth.grid.spacing, load_labels(), "corrected")
    assert np.mean([row["dsc"] for row in rows if row["name"] != "tumour"]) > 0.7


def test_air_around_the_ct_changes_no_label():
    predictor, volume = Predictor(FOLDER), read_image(FOLDER / demo_model.IMAGE)
    around = ((0, 0), (40, 40), (40, 40))
    wide = new_volume(
        np.pad(volume.array, around, constant_values=-1000),
        volume.grid.spacing,
        volume.grid.affine,
    )
    labels = predictor.predict(volume)
    np.testing.assert_array_equal(predictor.predict(wide), np.pad(labels, around))


def test_weights_of_two_bytes_are_computed_with_as_floats_of_four(tmp_path):
    write_model(tmp_path / "full")
    image = FOLDER / demo_model.IMAGE
    demo_model.write(tmp_path / "full", image, tmp_path / "half")
    with safe_open(tmp_path / "half/weights.safetensors", framework="np") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"float16"}  # noqa: SIM118
    full, half = (load_model(tmp_path / name) for name in ("full", "half"))
    assert half.card["checksum"] != full.card["checksum"]
    for one, other in zip(full.network.parameters(), half.network.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=2**-10, atol=2**-24)
    volume = read_image(image)
    labels = [
        Predictor(tmp_path / name, device="cpu", precision="fp32").predict(volume)
        for name in ("full", "half")
    ]
    assert (labels[0] == labels[1]).mean() > 0.99


def test_writing_it_again_replaces_what_was_there(tmp_path, capsys):
    write_model(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    for _ in range(2):
        demo_model.write(tmp_path / "model", FOLDER / demo_model.IMAGE, tmp_path / "out")
    assert not (tmp_path / "out/old").exists()
    assert "bytes" in capsys.readouterr().out
