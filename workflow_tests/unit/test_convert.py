"""Conversion: nnU-Net 1's and 2's own code gives the same outputs, and no pickle runs anything."""

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cannot_run
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_networks import STUDENT, randomise
from test_preprocess import CLASSES, plan_for, random_volume, stored_as
from toys import Runs

from panorgan.cli import main
from panorgan.config.labels import load_labels
from panorgan.inference.predictor import Predictor
from panorgan.inference.window import Window
from panorgan.io.volumes import Volume, from_canonical, read_image, read_label, write_image
from panorgan.nnunet.models.convert import convert
from panorgan.nnunet.models.model import load_model, network_of, save_model, tensor_checksum
from panorgan.nnunet.models.pickles import load_pickle, load_tensors
from panorgan.nnunet.models.stock import stock_network
from panorgan.nnunet.plans import configuration_of, make_dataset_json
from panorgan.nnunet.preprocess import image_bands, preprocess_image
from panorgan.problems import Problems

HERE = Path(__file__).parent
REQUIREMENTS = HERE.parents[1] / "envs" / "nnunet1.txt"
NAMES = load_labels().names

# The torchvision wheel does not load beside a CPU torch unless these two operators exist, and
# nnU-Net's search of trainers imports it.
WITH_TORCHVISION = """
import torch
try:
    import torchvision
except RuntimeError:
    operators = torch.library.Library("torchvision", "FRAGMENT")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
"""


# ---------------------------------------------------------------------------------------------
# nnU-Net 1, in an environment of its own that sees this one's packages


@pytest.fixture(scope="session")
def nnunet1_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with nnunet 1.7.1; made once, then kept by pytest."""
    folder = request.config.cache.mkdir("nnunet1")
    packages = sysconfig.get_paths()["purelib"]
    wanted = f"{sys.version}\n{packages}\n{REQUIREMENTS.read_text()}"
    python, stamp = folder / "bin" / "python", folder / "made-of.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    venv.create(folder, clear=True, symlinks=True)
    own = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    Path(own, "shared.pth").write_text(packages)
    command = [python, "-m", "pip", "install", "--quiet", "--retries=1"]
    command += ["--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-r", REQUIREMENTS], capture_output=True, text=True, env=_environment()
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        cannot_run(f"nnU-Net 1 cannot be installed: {reason}")
    stamp.write_text(wanted)
    return python


def _environment() -> dict[str, str]:
    """Without the packages that this process may have been told to see first."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="session")
def nnunet1(nnunet1_python, tmp_path_factory) -> Path:
    """Models, outputs and predictions of nnU-Net 1, as nnunet1_models.py describes them."""
    folder = tmp_path_factory.mktemp("nnunet1")
    done = subprocess.run(
        [nnunet1_python, HERE / "nnunet1_models.py", folder],
        capture_output=True,
        text=True,
        env=_environment() | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


VERSION_1 = {
    "2d": list(NAMES[:13]),
    "3d isotropic": list(NAMES),
    "3d anisotropic": ["class_1", "class_2", "class_3"],
    "3d of two resolutions": ["class_1", "class_2", "class_3"],  # and fewer stages than planned
}


@pytest.fixture(scope="session")
def converted1(nnunet1, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    for name in VERSION_1:
        convert(nnunet1 / name / "model", folder / name)
    return folder


@pytest.mark.parametrize("name", VERSION_1)
def test_a_network_of_nnunet_1_gives_the_same_bits(nnunet1, converted1, name):
    expected = load_tensors(nnunet1 / name / "outputs.pt")
    model = load_model(converted1 / name)
    model.network.decoder.deep_supervision = True
    with torch.no_grad():
        outputs = model.network(expected["input"])
    assert len(outputs) >= 3
    for ours, theirs in zip(outputs, expected["outputs"], strict=True):
        assert torch.equal(ours, theirs)
    assert model.card["classes"] == VERSION_1[name]
    assert model.card["orientation"] == "stored"
    trainer = "ShallowTrainer" if name == "3d of two resolutions" else "nnUNetTrainerV2"
    assert model.card["converted_from"]["trainer"] == trainer
    assert model.card["epochs"] == 2


def on_the_networks_grid(predictor: Predictor, volume: Volume) -> np.ndarray:
    """Labels before they are brought to the image's grid."""
    bands = image_bands(volume, predictor.model.plan)
    window = Window(bands.size, **predictor._window)
    scores = window.scores(predictor.engines, bands.read)
    return np.stack([slice_.argmax(-1) for slice_ in scores])


@pytest.mark.parametrize("name", ["2d", "3d isotropic", "3d anisotropic"])
@pytest.mark.parametrize("case", ["plain", "resampled"])
def test_a_ct_is_seen_and_labelled_as_by_nnunet_1(nnunet1, converted1, name, case):
    """The CT is flipped, cropped, and transposed in the anisotropic model."""
    theirs = np.load(nnunet1 / name / f"{case}.npz")
    predictor = Predictor(converted1 / name, device="cpu", precision="fp32")
    volume = read_image(nnunet1 / name / f"{case}_0000.nii.gz")
    assert volume.grid.orientation != "RAS"
    seen = preprocess_image(volume, predictor.model.plan).data
    np.testing.assert_allclose(seen, theirs["data"], atol=1e-5, rtol=0)
    if case == "resampled":
        labels = on_the_networks_grid(predictor, volume)
        expected = theirs["labels"]
    else:
        labels = predictor.predict(volume)
        expected = np.zeros_like(labels)
        expected[:, 4:] = theirs["labels"].transpose(predictor.model.plan["transpose_backward"])
    assert (labels == expected).mean() > 0.9999


@pytest.mark.parametrize("name", ["2d", "3d isotropic", "3d anisotropic"])
def test_averaged_logits_would_give_other_labels(nnunet1, converted1, name):
    theirs = np.load(nnunet1 / name / "plain.npz")
    predictor = Predictor(converted1 / name, device="cpu", precision="fp32")
    predictor.model.plan["panorgan"]["tile_average"] = "logits"
    labels = on_the_networks_grid(predictor, read_image(nnunet1 / name / "plain_0000.nii.gz"))
    assert (labels != theirs["labels"]).mean() > 0.0003


def test_the_plan_of_the_trained_resolution_is_carried_over(converted1, nnunet1):
    source = pickle.loads((nnunet1 / "3d of two resolutions/model/plans.pkl").read_bytes())
    plan = load_model(converted1 / "3d of two resolutions").plan
    name, configuration = configuration_of(plan)
    assert name == "3d_fullres"
    assert configuration["spacing"] == source["plans_per_stage"][1]["current_spacing"].tolist()
    assert configuration["spacing"] != source["plans_per_stage"][0]["current_spacing"].tolist()
    assert len(source["plans_per_stage"][1]["pool_op_kernel_sizes"]) == 5
    assert len(configuration["architecture"]["arch_kwargs"]["strides"]) == 5
    assert configuration["normalization_schemes"] == ["CTNormalization"]
    intensity = source["dataset_properties"]["intensityproperties"][0]
    carried = plan["foreground_intensity_properties_per_channel"]["0"]
    assert carried["std"] == intensity["sd"]
    assert carried["percentile_99_5"] == intensity["percentile_99_5"]
    anisotropic = load_model(converted1 / "3d anisotropic").plan
    assert anisotropic["transpose_forward"] == [1, 0, 2]
    assert configuration_of(anisotropic)[1]["spacing"] == [4.0, 1.0, 1.2]


def test_convert_says_what_it_made(nnunet1, tmp_path, capsys):
    source, out = nnunet1 / "3d anisotropic" / "model", tmp_path / "out"
    command = ["convert", str(source / "all"), "-o", str(out), "--classes", "liver, spleen ,colon"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "axes stored" in said
    assert "1 liver, 2 spleen, 3 colon" in said
    assert load_model(out).dataset_json["labels"]["colon"] == 3
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", VERSION_1)
def test_a_model_of_nnunet_1_goes_on_to_nnunet_2(nnunet1, tmp_path, name):
    source = nnunet1 / name
    line, *notes = convert(source / "model", tmp_path / "out", to="nnunet")
    assert "averages logits" in notes[-1]
    folder = Path(line.partition(":")[0])
    assert json.loads((folder / "plans.json").read_text())["image_reader_writer"] == "SimpleITKIO"
    expected = load_tensors(source / "outputs.pt")
    with torch.no_grad():
        output = stock_of(folder)(expected["input"])
    torch.testing.assert_close(output, expected["outputs"][0], atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------------------------
# A small model of nnU-Net 1, written by hand, and what is wrong with others


def version_1_state(features=(2, 3, 4)) -> OrderedDict:
    """Tensors of a plain 3D U-Net of three stages and four outputs under nnU-Net 1's names."""
    state = OrderedDict()

    def block(name, inputs, outputs):
        state[f"{name}.conv.weight"] = torch.randn(outputs, inputs, 3, 3, 3)
        for part in ("conv.bias", "instnorm.weight", "instnorm.bias"):
            state[f"{name}.{part}"] = torch.randn(outputs)

    inputs = 1
    for stage, outputs in enumerate(features[:-1]):
        block(f"conv_blocks_context.{stage}.blocks.0", inputs, outputs)
        block(f"conv_blocks_context.{stage}.blocks.1", outputs, outputs)
        inputs = outputs
    block("conv_blocks_context.2.0.blocks.0", inputs, features[-1])
    block("conv_blocks_context.2.1.blocks.0", features[-1], features[-1])
    for stage, (below, skip) in enumerate([(features[2], features[1]), features[1::-1]]):
        block(f"conv_blocks_localization.{stage}.0.blocks.0", 2 * skip, skip)
        block(f"conv_blocks_localization.{stage}.1.blocks.0", skip, skip)
        state[f"tu.{stage}.weight"] = torch.randn(below, skip, 2, 2, 2)
        state[f"seg_outputs.{stage}.weight"] = torch.randn(4, skip, 1, 1, 1)
    return state


def version_1_plans() -> dict:
    stage = {
        "batch_size": 2,
        "patch_size": np.array([8, 8, 8]),
        "median_patient_size_in_voxels": np.array([9, 9, 9]),
        "current_spacing": np.array([2.0, 1.0, 1.0]),
        "original_spacing": np.array([2.0, 1.0, 1.0]),
        "pool_op_kernel_sizes": [[2, 2, 2], [2, 2, 2]],
    }
    intensity = {"mean": 1.0, "sd": 2.0, "percentile_00_5": -3.0, "percentile_99_5": 4.0}
    return {
        "plans_per_stage": OrderedDict([(0, stage)]),
        "num_modalities": 1,
        "all_classes": [1, 2, 3],
        "normalization_schemes": OrderedDict([(0, "CT")]),
        "use_mask_for_norm": OrderedDict([(0, False)]),
        "dataset_properties": {"intensityproperties": OrderedDict([(0, intensity)])},
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
    }


def write_version_1(folder: Path, *, fold="fold_0", state=None, plans=None, name="nnUNetTrainerV2"):
    plans = plans or version_1_plans()
    checkpoint = folder / fold / "model_final_checkpoint.model"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    (folder / "plans.pkl").write_bytes(pickle.dumps(plans))
    info = OrderedDict(init=("plans", 0, "out", "data", True, 0), name=name, plans=plans)
    checkpoint.with_name(f"{checkpoint.name}.pkl").write_bytes(pickle.dumps(info))
    torch.save(
        {"state_dict": state or version_1_state(), "epoch": 1, "plot_stuff": ([0.1],)}, checkpoint
    )
    return checkpoint


def with_plans(**change):
    return {"plans": version_1_plans() | change}


def state_with(name, tensor):
    return {"state": version_1_state() | {name: tensor}}


REFUSED_1 = {
    "two channels": (with_plans(num_modalities=2), "one|not one"),
    "values with a gap": (with_plans(all_classes=[1, 2, 5]), "label values 1, 2, 5"),
    "unknown normalisation": (with_plans(normalization_schemes={0: "CT2"}), "normalises by CT2"),
    "masked normalisation": (with_plans(use_mask_for_norm={0: True}), "inside of the nonzero"),
    "unknown preprocessing": (with_plans(preprocessor_name="Mine"), "preprocessed by Mine"),
    "a cascade": ({"name": "nnUNetTrainerV2CascadeFullRes"}, "CascadeFullRes"),
    "another activation": ({"name": "nnUNetTrainerV2_ReLU"}, "nnUNetTrainerV2_ReLU"),
    "regions": ({"name": "nnUNetTrainerV2BraTSRegions"}, "BraTSRegions"),
    "a residual encoder": (
        state_with("encoder.stages.0.blocks.0.conv1.conv.weight", torch.zeros(1)),
        "encoder.stages.0.blocks.0.conv1",
    ),
    "biased heads": (state_with("seg_outputs.0.bias", torch.ones(4)), "decoder.heads.0.bias"),
    "batch norm": (
        state_with("conv_blocks_context.0.blocks.0.instnorm.running_mean", torch.ones(2)),
        "running_mean",
    ),
    "large kernels": (
        state_with("conv_blocks_context.0.blocks.0.conv.weight", torch.ones(2, 1, 5, 5, 5)),
        "kernels of size",
    ),
    "the plan of another": (
        with_plans(
            plans_per_stage={
                0: version_1_plans()["plans_per_stage"][0]
                | {"pool_op_kernel_sizes": [[1, 2, 2], [2, 2, 2]]}
            }
        ),
        "its weights pool by",
    ),
}


@pytest.mark.parametrize("case", REFUSED_1)
def test_what_is_no_plain_network_of_nnunet_1_is_refused(tmp_path, case):
    change, message = REFUSED_1[case]
    write_version_1(tmp_path / "model", **change)
    assert_refused(tmp_path / "model", message)


def assert_refused(source: Path, message: str, **options) -> None:
    """One clear line, and nothing left."""
    out = source.parent / "refused"
    with pytest.raises(Problems, match=message) as caught:
        convert(source, out, **options)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert not list(source.parent.glob("*refused*"))


def test_the_fold_is_all_or_the_only_one_or_named(tmp_path):
    model = tmp_path / "model"
    write_version_1(model)
    convert(model, tmp_path / "only")
    write_version_1(model, fold="fold_3")
    assert_refused(model, "several folds.*--fold 0 or 3")
    assert_refused(model, "no fold 1.*--fold 0 or 3", fold="1")
    convert(model, tmp_path / "named", fold="3")
    convert(model / "fold_3", tmp_path / "its folder")
    write_version_1(model, fold="all")
    convert(model, tmp_path / "all")
    folds = {
        name: load_model(tmp_path / name).card["converted_from"]["fold"]
        for name in ("only", "named", "its folder", "all")
    }
    assert folds == {"only": "0", "named": "3", "its folder": "3", "all": "all"}
    named, other = (load_model(tmp_path / name).card["checksum"] for name in ("named", "only"))
    assert named == load_model(tmp_path / "its folder").card["checksum"] != other


def test_names_must_fit_the_classes(tmp_path):
    write_version_1(tmp_path / "model")
    assert_refused(tmp_path / "model", "has 3 classes, not 2", classes=["a", "b"])
    assert_refused(tmp_path / "model", "'a' is empty, reserved or", classes=["a", "b", "a"])
    assert_refused(tmp_path / "model", "'background' is", classes=["background", "b", "a"])


def test_damaged_or_incomplete_folders_are_one_line(tmp_path):
    model = tmp_path / "model"
    assert_refused(model, "no such model folder")
    model.mkdir()
    assert_refused(model, "holds no model")
    checkpoint = write_version_1(model)
    for path in (checkpoint, checkpoint.with_name(f"{checkpoint.name}.pkl"), model / "plans.pkl"):
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], whole[:-1], b"not what it was"):
            path.write_bytes(content)
            assert_refused(model, f"{path.name}: cannot be read")
        path.unlink()
        assert_refused(model, "holds no model" if path.name == "plans.pkl" else "No such|no fold")
        path.write_bytes(whole)
    (model / "plans.pkl").write_bytes(pickle.dumps({"num_modalities": 1}))
    assert_refused(model, "is damaged, or no model of nnU-Net")
    write_version_1(tmp_path / "several" / "a")
    write_version_1(tmp_path / "several" / "b")
    assert_refused(tmp_path / "several", "several models: a, b")


# ---------------------------------------------------------------------------------------------
# Pickles


@pytest.mark.parametrize("place", ["plans.pkl", "model", "model.pkl"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, place, protocol):
    model, trace = tmp_path / "model", tmp_path / "trace"
    checkpoint = write_version_1(model)
    bad = {"x": Runs(os.system, f"touch {trace}")}
    path = {
        "plans.pkl": model / "plans.pkl",
        "model": checkpoint,
        "model.pkl": checkpoint.with_name(f"{checkpoint.name}.pkl"),
    }[place]
    if place == "model":
        torch.save(bad, path)
    else:
        path.write_bytes(pickle.dumps(bad, protocol))
    assert_refused(model, "system, which no model needs")
    assert not trace.exists()
    # The same bytes do run where anything is admitted: the test would see it.
    (pickle.loads(path.read_bytes()) if place != "model" else torch.load(path, weights_only=False))
    assert trace.exists()


@pytest.mark.parametrize(
    "bad",
    [
        Runs(eval, "1"),
        Runs(getattr, 1, "real"),
        Runs(np.load, "x"),
        Runs(__import__, "os"),
        Path("x"),
        np.random.default_rng,
        subprocess.Popen,
    ],
)
def test_only_harmless_names_are_followed(tmp_path, bad):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([bad], protocol))
        with pytest.raises(Problems, match="which no model needs"):
            load_pickle(tmp_path / "a.pkl")


def test_what_plans_hold_is_read_whatever_the_protocol(tmp_path):
    content = OrderedDict(
        array=np.arange(6.0).reshape(2, 3),
        numbers=[np.float64(0.1), np.float32(0.1), np.int64(3), np.bool_(True)],
        plain=(1, 2.5, "x", None, {"a": {1, 2}}, b"\xff\x00", bytearray(b"x"), 1j),
    )
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(content, protocol)
        for core in (b"numpy._core", b"numpy.core"):
            if protocol < 4:  # later ones count the name's bytes
                data = data.replace(b"numpy._core", core)
            (tmp_path / "a.pkl").write_bytes(data)
            read = load_pickle(tmp_path / "a.pkl")
            np.testing.assert_array_equal(read["array"], content["array"])
            assert read["numbers"] == content["numbers"]
            assert [type(n) for n in read["numbers"]] == [type(n) for n in content["numbers"]]
            assert read["plain"] == content["plain"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_checkpoints_of_older_versions_are_read(tmp_path, core, zipped):
    """Those of NumPy 1 name its core otherwise, those of torch before 1.6 are no archives."""
    content = {
        "state_dict": OrderedDict(a=torch.arange(3.0)),
        "plot_stuff": ([np.float64(0.5), np.float32(0.25)], [np.int64(3)]),
        "array": np.arange(4.0),
    }
    path = tmp_path / "a.model"
    torch.save(content, tmp_path / "new", _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(path, "w") as old:
            for name in new.namelist():
                old.writestr(name, new.read(name).replace(b"numpy._core", core))
    else:
        path.write_bytes((tmp_path / "new").read_bytes().replace(b"numpy._core", core))
    assert core in path.read_bytes()
    read = load_tensors(path)
    assert torch.equal(read["state_dict"]["a"], content["state_dict"]["a"])
    assert read["plot_stuff"] == content["plot_stuff"]
    np.testing.assert_array_equal(read["array"], content["array"])


# ---------------------------------------------------------------------------------------------
# nnU-Net 2


def stock_of(folder: Path, fold: str = "all") -> torch.nn.Module:
    """The network of a trained-model folder of nnU-Net 2, built by nnU-Net 2."""
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    checkpoint = torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
    configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])
    dataset_json = json.loads((folder / "dataset.json").read_text())
    outputs = plans.get_label_manager(dataset_json).num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(
        plans, configuration, 1, outputs, enable_deep_supervision=False
    )
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


def student_plan(spacing=(5.0, 1.5, 1.5)) -> dict:
    plan = plan_for(spacing, (8, 16, 16))
    configuration_of(plan)[1]["architecture"]["arch_kwargs"] = {
        "features": [4, 6, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "convs_per_stage": 2,
    }
    return plan


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A model folder of a small student with random weights."""
    folder = tmp_path_factory.mktemp("student") / "model"
    dataset_json = make_dataset_json(CLASSES, False)
    network = randomise(network_of(student_plan(), dataset_json))
    card = {"seed": 3, "epochs": 7, "phantom": True}
    save_model(folder, network, student_plan(), dataset_json, card)
    return folder


def exported(model: Path, out: Path) -> Path:
    line, *_ = convert(model, out, to="nnunet")
    return Path(line.partition(": ")[0])


@pytest.fixture(scope="module")
def exported_student(student, tmp_path_factory) -> Path:
    return exported(student, tmp_path_factory.mktemp("exported") / "results")


def test_an_exported_student_has_the_same_outputs(student, exported_student):
    assert exported_student.parts[-2:] == (
        "Dataset001_panorgan",
        "nnUNetTrainer__panorgan__3d_fullres",
    )
    stock, ours = stock_of(exported_student), load_model(student).network
    assert type(stock).__name__ == "PlainConvUNet"
    stock.decoder.deep_supervision = ours.decoder.deep_supervision = True
    x = torch.randn(2, 1, 16, 32, 48)
    with torch.no_grad():
        for a, b in zip(ours(x), stock(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_exported_student_comes_back_byte_for_byte(student, exported_student, tmp_path):
    convert(exported_student, tmp_path / "back")
    for path in student.iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()
    # The folder above serves too, and without the card the weights are the same.
    (exported_student / "card.json").rename(tmp_path / "card.json")
    convert(exported_student.parents[1], tmp_path / "again")
    (tmp_path / "card.json").rename(exported_student / "card.json")
    assert load_model(tmp_path / "again").card["checksum"] == load_model(student).card["checksum"]


def test_the_full_student_is_a_plain_network_of_3x3x3_kernels(tmp_path):
    plan = plan_for((4.0, 1.2, 1.2), (32, 128, 192))
    configuration_of(plan)[1]["architecture"]["arch_kwargs"] = {**STUDENT, "convs_per_stage": 2}
    dataset_json = make_dataset_json(list(NAMES), False)
    save_model(tmp_path / "ours", network_of(plan, dataset_json), plan, dataset_json, {})
    folder = exported(tmp_path / "ours", tmp_path / "results")
    plans = json.loads((folder / "plans.json").read_text())
    arguments = configuration_of(plans)[1]["architecture"]["arch_kwargs"]
    assert arguments["kernel_sizes"] == [[3, 3, 3]] * 5
    convert(folder, tmp_path / "back")
    checksums = [load_model(tmp_path / name).card["checksum"] for name in ("ours", "back")]
    assert checksums[0] == checksums[1]
    assert load_model(tmp_path / "back").card["parameters"] == 5_644_256


def test_an_exported_student_that_was_trained_on_stays_plain(exported_student, tmp_path):
    folder = tmp_path / "results" / "model"
    (folder / "fold_all").mkdir(parents=True)
    for name in ("plans.json", "dataset.json", "card.json"):
        (folder / name).write_bytes((exported_student / name).read_bytes())
    checkpoint = torch.load(exported_student / "fold_all/checkpoint_final.pth", weights_only=False)
    checkpoint["network_weights"]["decoder.transpconvs.0.bias"] += 0.5
    torch.save(checkpoint, folder / "fold_all" / "checkpoint_final.pth")
    convert(folder, tmp_path / "back")
    model = load_model(tmp_path / "back")
    assert type(model.network).__name__ == "PlainConvUNet"
    assert "seed" not in model.card
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.network(x), stock_of(folder)(x))


def flipped_case(folder: Path, spacing) -> Path:
    """An anisotropic CT stored along L, A, I."""
    volume, _ = random_volume(shape=(21, 40, 33), spacing=spacing)
    volume = stored_as(volume, "LAI")
    folder.mkdir()
    write_image(folder / "case_0000.nii.gz", volume.array, volume)
    return folder / "case_0000.nii.gz"


def test_nnunets_own_command_runs_an_exported_student(student, exported_student, tmp_path):
    image = flipped_case(tmp_path / "images", (5.0, 1.5, 1.5))
    command = ["-i", image.parent, "-o", tmp_path / "labels", "-d", "1", "-p", "panorgan"]
    command += ["-c", "3d_fullres", "-f", "all", "-device", "cpu", "-npp", "0", "-nps", "0"]
    folders = {
        "nnUNet_results": exported_student.parents[1],
        "nnUNet_raw": tmp_path,
        "nnUNet_preprocessed": tmp_path,
        "OMP_NUM_THREADS": "1",
    }
    program = (
        f"{WITH_TORCHVISION}\ntorch.half = torch.float32\n"  # its sums are float16 otherwise
        "from nnunetv2.inference.predict_from_raw_data import predict_entry_point\n"
        "predict_entry_point()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {name: str(value) for name, value in folders.items()},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, volume = read_label(tmp_path / "labels" / "case.nii.gz"), read_image(image)
    ours = Predictor(student, device="cpu", precision="fp32").predict(volume)
    assert volume.grid.difference(theirs.grid) == ""
    assert len(np.unique(ours)) == 4
    np.testing.assert_array_equal(ours, theirs.array)


# Models of anybody


def foreign_plan(network: str, reader: str, dim: int = 3) -> dict:
    """A plan as nnU-Net's planner writes it, with one configuration inheriting from another."""
    plan = plan_for((2.5, 2.0, 2.0)[-dim:], (8, 16, 16)[-dim:])
    del plan["panorgan"]
    name, configuration = configuration_of(plan)
    blocks = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    configuration["architecture"] = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": [[3] * dim] * 3,
            "strides": [[1] * dim] + [[2] * dim] * 2,
            blocks: [2, 2, 2],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    plan["configurations"]["other"] = {"inherits_from": name, "batch_size": 5}
    return plan | {
        "image_reader_writer": reader,
        "dataset_name": "Dataset042_CT",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [1, 0, 2] if dim == 3 else [0, 1, 2],
        "transpose_backward": [1, 0, 2] if dim == 3 else [0, 1, 2],
    }


LABELS = {"background": 0, "Liver": 1, "Left kidney": 2, "tumour": 3}


def write_version_2(folder: Path, plan: dict, labels=LABELS, fold="all") -> Path:
    """A trained-model folder of nnU-Net 2, its checkpoint written by nnU-Net's trainer."""
    dataset_json = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    checkpoint = folder / f"fold_{fold}" / "checkpoint_final.pth"
    checkpoint.parent.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    trainer = nnUNetTrainer(
        plan | {"continue_training": False}, "other", fold, dataset_json, torch.device("cpu")
    )
    configuration = PlansManager(plan).get_configuration("other")
    trainer.network = randomise(
        nnUNetTrainer.build_network_architecture(
            trainer.plans_manager,
            configuration,
            1,
            trainer.label_manager.num_segmentation_heads,
            enable_deep_supervision=True,
        )
    )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.logger.log("train_losses", np.float32(0.5), 0)
    trainer.logger.log("ema_fg_dice", np.float64(0.5), 0)
    trainer._best_ema = np.float64(0.5)
    trainer.current_epoch = 8
    trainer.save_checkpoint(str(checkpoint))
    return folder


@pytest.fixture(autouse=True)
def _nnunets_folders(monkeypatch, tmp_path):
    """nnU-Net's trainer makes its output folder."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnunets"))


FOREIGN = {
    "plain, as stored": ("PlainConvUNet", "SimpleITKIO", 3, LABELS),
    "residual encoder, reoriented": ("ResidualEncoderUNet", "NibabelIOWithReorient", 3, LABELS),
    "residual, 2D": ("ResidualUNet", "SimpleITKIOWithReorient", 2, LABELS | {"ignore": 4}),
}


def predicted_by_nnunet(folder: Path, image: Path, folds=("all",)) -> np.ndarray:
    """Labels of a trained-model folder by nnU-Net's own code."""
    stock = nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False, verbose=False
    )
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    states = [stock_of(folder, fold).state_dict() for fold in folds]
    stock.manual_initialization(
        stock_of(folder, folds[0]),
        plans,
        plans.get_configuration("other"),
        states,
        json.loads((folder / "dataset.json").read_text()),
        "nnUNetTrainer",
        None,
    )
    (labels,) = stock.predict_from_files_sequential([[str(image)]], None)
    return labels


@pytest.mark.parametrize("name", FOREIGN)
def test_anybodys_model_predicts_as_in_nnunet(monkeypatch, tmp_path, name):
    network, reader, dim, labels = FOREIGN[name]
    folder = write_version_2(tmp_path / "theirs", foreign_plan(network, reader, dim), labels)
    lines = convert(folder, tmp_path / "ours")
    assert len(lines) == 1
    assert "1 Liver, 2 Left kidney, 3 tumour" in lines[0]
    model = load_model(tmp_path / "ours")
    assert type(model.network).__name__ == network
    assert model.card["orientation"] == ("RAS" if "Reorient" in reader else "stored")
    assert model.card["epochs"] == 9
    assert configuration_of(model.plan)[1]["batch_size"] == 5

    # In stored order the second axis comes first for the network: its spacing is there 2.5 mm.
    spacing = (2.0, 2.5, 2.0) if dim == 3 else (3.0, 2.0, 2.0)
    image = flipped_case(tmp_path / "images", spacing)
    monkeypatch.setattr(torch, "half", torch.float32)  # its sums are float16 otherwise
    theirs, volume = predicted_by_nnunet(folder, image), read_image(image)
    for source in (folder, tmp_path / "ours"):
        ours = Predictor(source, device="cpu", precision="fp32").predict(volume)
        assert len(np.unique(ours)) > 1
        np.testing.assert_array_equal(ours, _stored(theirs, volume, reader))


def test_folds_are_averaged_as_in_nnunet(monkeypatch, tmp_path):
    plan = foreign_plan("PlainConvUNet", "SimpleITKIO")
    folder = tmp_path / "theirs"
    for fold in ("0", "1", "2"):
        write_version_2(folder, plan, fold=fold)
    image = flipped_case(tmp_path / "images", (3.0, 2.5, 2.0))  # resampled
    monkeypatch.setattr(torch, "half", torch.float32)
    volume = read_image(image)
    for folds in (("0", "1", "2"), ("1",)):
        theirs = predicted_by_nnunet(folder, image, folds)
        chosen = None if len(folds) == 3 else folds
        ours = Predictor(folder, device="cpu", precision="fp32", folds=chosen).predict(volume)
        assert (ours == theirs).mean() > 0.9999


def _stored(labels: np.ndarray, volume, reader: str) -> np.ndarray:
    """nnU-Net's labels, which are in its reader's order, in the stored one."""
    return from_canonical(labels, volume.grid) if "Reorient" in reader else labels


def test_a_plan_from_before_networks_were_named_in_it_is_the_same(tmp_path):
    plan = foreign_plan("PlainConvUNet", "SimpleITKIO")
    folder = write_version_2(tmp_path / "new", plan)
    convert(folder, tmp_path / "from new")
    _, configuration = next(iter(plan["configurations"].items()))
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
        "num_pool_per_axis": [2, 2, 2],
    }
    (folder / "plans.json").write_text(json.dumps(plan))
    convert(folder, tmp_path / "from old")
    cards = [load_model(tmp_path / name).card for name in ("from new", "from old")]
    assert cards[0] == cards[1]


def test_anybodys_model_goes_back_to_nnunet_as_it_was(tmp_path):
    plan = foreign_plan("ResidualEncoderUNet", "SimpleITKIO")
    folder = write_version_2(tmp_path / "theirs", plan, fold="0")
    convert(folder, tmp_path / "ours", classes=["liver", "left_kidney", "tumour"])
    assert load_model(tmp_path / "ours").card["classes"] == ["liver", "left_kidney", "tumour"]
    back = exported(tmp_path / "ours", tmp_path / "results")
    assert back.parts[-2:] == ("Dataset042_CT", "nnUNetTrainer__nnUNetPlans__other")
    before, after = (
        torch.load(path / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for path in (folder / "fold_0", back / "fold_all")
    )
    assert tensor_checksum(before) == tensor_checksum(after)


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


REFUSED_2 = {
    "regions": ("dataset", lambda d: d["labels"].update(tumour=[2, 3]), "labels are regions"),
    "a gap": ("dataset", lambda d: d["labels"].update(tumour=4), "label values are 0, 1, 2, 4"),
    "two channels": ("dataset", lambda d: d["channel_names"].update({"1": "PET"}), "takes 2"),
    "a picture": ("plans", lambda p: p.update(image_reader_writer="NaturalImage2DIO"), "reads"),
    "a cascade": (
        "plans",
        lambda p: p["configurations"]["other"].update(previous_stage="3d_lowres"),
        "cascade",
    ),
    "unknown normalisation": (
        "plans",
        lambda p: p["configurations"]["other"].update(normalization_schemes=["Mine"]),
        "normalises by Mine",
    ),
    "unknown resampling": (
        "plans",
        lambda p: p["configurations"]["3d_fullres"].update(resampling_fn_data="Mine"),
        "resamples by Mine",
    ),
    "unknown preprocessing": (
        "plans",
        lambda p: p["configurations"]["other"].update(preprocessor_name="Mine"),
        "preprocessed by Mine",
    ),
    "another network": (
        "plans",
        lambda p: _architecture(p).update(network_class_name="os.path.join"),
        "known here",
    ),
    "a network of other weights": (
        "plans",
        lambda p: _architecture(p)["arch_kwargs"].update(features_per_stage=[4, 4, 8]),
        "known here",
    ),
    "a function for a layer": (
        "plans",
        lambda p: _architecture(p)["arch_kwargs"].update(nonlin="os.system"),
        "os.system is no layer",
    ),
    "an unknown configuration": ("plans", lambda p: p["configurations"].pop("other"), "damaged"),
    "no labels": ("dataset", lambda d: d.pop("labels"), "damaged"),
}


def _architecture(plan: dict) -> dict:
    return plan["configurations"]["3d_fullres"]["architecture"]


@pytest.mark.parametrize("case", REFUSED_2)
def test_what_we_cannot_run_of_nnunet_2_is_refused(tmp_path, case):
    file, change, message = REFUSED_2[case]
    folder = write_version_2(tmp_path / "theirs", foreign_plan("PlainConvUNet", "SimpleITKIO"))
    change_json(folder / f"{file}.json", change)
    assert_refused(folder, message)


def test_a_malicious_or_damaged_checkpoint_of_nnunet_2_is_refused(tmp_path):
    folder = write_version_2(tmp_path / "theirs", foreign_plan("PlainConvUNet", "SimpleITKIO"))
    path = folder / "fold_all" / "checkpoint_final.pth"
    whole = path.read_bytes()
    content = torch.load(path, weights_only=False)
    torch.save(content | {"x": Runs(os.system, f"touch {tmp_path / 'trace'}")}, path)
    assert_refused(folder, "system, which no model needs")
    assert not (tmp_path / "trace").exists()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(folder, "checkpoint_final.pth: cannot be read")
    path.unlink()
    assert_refused(folder, "no fold of it has a checkpoint_final.pth")


def test_a_plan_names_only_known_layers():
    plan = foreign_plan("PlainConvUNet", "SimpleITKIO")
    architecture = _architecture(plan)
    for path in ("os.system", "torch.hub.load", "torch.nn.functional.relu", "torch.nn.init"):
        architecture["arch_kwargs"]["nonlin"] = path
        with pytest.raises(ValueError, match=f"{path} is no layer"):
            stock_network(architecture, 1, 2)


def test_the_teacher_has_no_stock_equal(tmp_path):
    plan, dataset_json = plan_for((1.5, 1.5), (16, 16)), make_dataset_json(CLASSES, False)
    save_model(tmp_path / "teacher", network_of(plan, dataset_json), plan, dataset_json, {})
    assert_refused(tmp_path / "teacher", "no network that equals AttentionUNet", to="nnunet")


def test_ours_has_no_folds_and_needs_no_conversion(student, tmp_path):
    for options, message in (
        ({}, "is a model of panorgan already"),
        ({"to": "nnunet", "fold": "0"}, "leave out --fold"),
        ({"to": "nnunet", "classes": ["a"]}, "leave out --fold"),
    ):
        with pytest.raises(Problems, match=message):
            convert(student, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
