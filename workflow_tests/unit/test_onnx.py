"""ONNX files: the same logits and labels as PyTorch's, at every size, and what a user must know."""

import json
from importlib import util

import numpy as np
import onnxruntime
import pytest
import torch
from test_networks import randomise
from test_preprocess import CLASSES, plan_for

from panorgan.cli import main
from panorgan.nnunet.model import load_model, network_of, save_model
from panorgan.nnunet.onnx import export_onnx
from panorgan.nnunet.plans import configuration_of, make_dataset_json
from panorgan.problems import Problems


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """These networks are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plan(name: str) -> dict:
    """A teacher with all of its attention, or a student."""
    dim, stages = (2, 4) if name == "teacher" else (3, 3)
    result = plan_for([1.5] * dim, [32] * dim)
    architecture = configuration_of(result)[1]["architecture"]
    architecture["network_class_name"] = (
        "panorgan.networks.AttentionUNet" if dim == 2 else "panorgan.networks.SmallUNet"
    )
    architecture["arch_kwargs"] |= {
        "features": [4, 6, 8, 8][:stages],
        "kernel_sizes": [[3, 3]] * 4 if dim == 2 else [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1]] + [[2, 2]] * 3 if dim == 2 else [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    }
    return result


def stock_plan() -> dict:
    """The plan of a plain U-Net of nnU-Net's."""
    stock = plan("student")
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """For each network its model folder and ONNX file."""
    root = tmp_path_factory.mktemp("onnx")
    for name in ("teacher", "student"):
        dataset_json = make_dataset_json(CLASSES, False)
        network = randomise(network_of(plan(name), dataset_json))
        save_model(root / name, network, plan(name), dataset_json, {"phantom": True})
        command = ["convert", str(root / name), "--to", "onnx", "-o", str(root / f"{name}.onnx")]
        assert main(command) == 0
    return root


SIZES = [
    ("teacher", (1, 1, 32, 32)),
    ("teacher", (3, 1, 47, 65)),
    ("teacher", (2, 1, 80, 33)),
    ("student", (1, 1, 8, 16, 16)),
    ("student", (2, 1, 7, 21, 18)),
]


@pytest.mark.parametrize(("name", "shape"), SIZES)
def test_onnxruntime_computes_what_torch_does(exported, name, shape):
    session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_model(exported / name).network(image).numpy()

    (found,) = session.run(None, {"image": image.numpy()})

    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_the_file_says_what_its_user_must_know(exported):
    session = onnxruntime.InferenceSession(exported / "teacher.onnx")
    facts = json.loads(session.get_modelmeta().custom_metadata_map["panorgan"])
    assert facts["classes"] == CLASSES
    assert facts["orientation"] == "RAS"
    assert facts["spacing_mm"] == [1.5, 1.5]
    assert facts["intensities"]["0"]["mean"] == 50.0
    assert facts["phantom"] is True
    assert facts["checksum"] == load_model(exported / "teacher").card["checksum"]
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert image.shape == ["batch", 1, "y", "x"]
    assert logits.shape == ["batch", 4, "y", "x"]


def test_a_stock_network_has_the_patch_size(tmp_path):
    """nnU-Net's own U-Net joins levels that fit only at sizes which its strides divide."""
    stock = stock_plan()
    dataset_json = make_dataset_json(CLASSES, False)
    save_model(tmp_path / "model", network_of(stock, dataset_json), stock, dataset_json, {})

    export_onnx(tmp_path / "model", tmp_path / "model.onnx")

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32, 32]


def test_without_the_packages_it_is_said_what_to_install(exported, tmp_path, monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(
        "panorgan.nnunet.onnx.find_spec", lambda name: None if name == "onnx" else found(name)
    )
    with pytest.raises(Problems, match=r"needs the packages onnx; .*pip install 'panorgan\[onnx"):
        export_onnx(exported / "teacher", tmp_path / "new.onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_wrong_is_left(exported, tmp_path, monkeypatch):
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    with pytest.raises(Problems, match="exists already"):
        export_onnx(exported / "teacher", there)
    assert there.read_text() == "mine"
    monkeypatch.setattr("panorgan.nnunet.onnx._write", lambda model, path, free: path.touch())
    monkeypatch.setattr("panorgan.nnunet.onnx._difference", lambda *_: float("nan"))
    with pytest.raises(Problems, match="differ from PyTorch's by nan"):
        export_onnx(exported / "student", tmp_path / "new.onnx")
    assert list(tmp_path.iterdir()) == [there]
