"""Prediction: the exact grid in every orientation, nnU-Net's sliding window, model folders."""

import gzip
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fault_rows import fault_rows
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from test_preprocess import CLASSES, PLANS, all_orientations, plan_for, random_volume, stored_as
from torch import nn

from panorgan.cli import main
from panorgan.fusing.components import component_rows, find_components
from panorgan.inference import predictor as predicting
from panorgan.inference.engines.torch import TorchEngine
from panorgan.inference.files import predict_files
from panorgan.inference.gpu_memory import GpuMemory
from panorgan.inference.on_device import label_on_device
from panorgan.inference.predictor import Predictor
from panorgan.inference.window import Window
from panorgan.io import gpus, resources
from panorgan.io.volumes import (
    from_canonical,
    geometry_hash,
    new_volume,
    read_image,
    read_label,
    voxel_hash,
    write_image,
)
from panorgan.nnunet import devices
from panorgan.nnunet.case_file import load, save
from panorgan.nnunet.models.model import load_model, network_of, save_model, tensor_checksum
from panorgan.nnunet.plans import configuration_of, make_dataset_json
from panorgan.nnunet.preprocess import network_grid, preprocess_image
from panorgan.problems import Problems, Stop

CPU = torch.device("cpu")
HU = np.array([-250, -50, 100, 250])
"""What `ByIntensity` takes for the middle of background and of each class."""


class ByIntensity:
    """An engine that knows a voxel's class from its intensity alone; it keeps what it was fed."""

    name, precision, device = "by intensity", "fp32", "cpu"

    def __init__(self):
        self.fed: list[np.ndarray] = []

    def scores(self, tiles):
        for tile in tiles:
            self.fed.append(tile.copy())
            yield self.of(tile)

    @staticmethod
    def of(tile):
        return -((tile[0, ..., None] - ((HU - 50) / 100).astype(np.float32)) ** 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model folder for each plan, with random weights."""
    root = tmp_path_factory.mktemp("models")
    for name, plan in PLANS.items():
        torch.manual_seed(0)
        dataset_json = make_dataset_json(CLASSES, False)
        network = network_of(plan, dataset_json)
        save_model(root / name, network, plan, dataset_json, {"seed": 0})
    return root


def predictor_by_intensity(models, name: str, export: str = "nearest") -> Predictor:
    predictor = Predictor(models / name, "cpu", "fp32", engine="torch", export=export)
    predictor.engines = [ByIntensity()]
    return predictor


def blocks(shape=(12, 18, 20), spacing=(4.0, 2.0, 1.5), size=6):
    """A volume of blocks of class intensities, and their classes."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 4, [-(-n // size) for n in shape])
    classes = coarse.repeat(size, 0).repeat(size, 1).repeat(size, 2)
    classes = classes[tuple(map(slice, shape))].astype(np.uint8)
    return new_volume(HU[classes].astype(np.int16), spacing), classes


@pytest.mark.parametrize("export", ["smooth", "nearest"])
@pytest.mark.parametrize("name", PLANS)
def test_the_label_is_on_the_exact_grid_in_every_orientation(models, name, export):
    predictor = predictor_by_intensity(models, name, export)
    volume, classes = blocks()
    expected = predictor.predict(volume)
    assert (expected == classes).mean() > 0.8  # but for the blocks' borders
    for axes in all_orientations():
        turned = stored_as(volume, axes)
        prediction = predictor.predict(turned)
        assert prediction.dtype == np.uint8
        assert prediction.shape == turned.array.shape
        turned_label = stored_as(new_volume(expected, volume.grid.spacing), axes).array
        np.testing.assert_array_equal(prediction, turned_label, err_msg=axes)


@pytest.mark.parametrize(
    ("name", "spacing"), [("3d isotropic", (2.5, 2, 2)), ("2d", (4, 1.5, 1.5))]
)
@pytest.mark.parametrize("shape", [(20, 23, 21), (3, 19, 5), (1, 1, 1), (9, 16, 16)])
def test_without_resampling_every_voxel_is_right(models, name, spacing, shape):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, shape).astype(np.uint8)
    volume = new_volume((HU[classes] + rng.integers(-70, 70, shape)).astype(np.int16), spacing)
    volume.array[volume.array == 0] = 1
    for export in ("smooth", "nearest"):
        found = predictor_by_intensity(models, name, export).predict(volume)
        np.testing.assert_array_equal(found, classes)


@pytest.mark.parametrize("name", PLANS)
def test_an_image_voxel_gets_the_label_of_the_network_voxel_that_holds_its_middle(models, name):
    volume, _ = random_volume(shape=(8, 24, 16))  # no middle lies on a border
    data = preprocess_image(volume, PLANS[name]).data[0]
    labels = np.abs(data[..., None] - (HU - 50) / 100).argmin(-1)
    nearest = [
        np.floor((np.arange(size) + 0.5) * coarse / size).astype(int)
        for size, coarse in zip(volume.array.shape, data.shape, strict=True)
    ]
    prediction = predictor_by_intensity(models, name).predict(volume)
    np.testing.assert_array_equal(prediction, labels[np.ix_(*nearest)])


@pytest.mark.parametrize("name", PLANS)
def test_where_the_image_is_cropped_there_is_background(models, name):
    volume, classes = blocks(shape=(6, 12, 12), spacing=(5.0, 2.0, 2.0))
    padding = ((1, 2), (3, 4), (5, 6))
    padded = new_volume(np.pad(volume.array, padding), (5.0, 2.0, 2.0))
    predictor = predictor_by_intensity(models, name)
    expected = np.pad(predictor.predict(volume), padding)
    np.testing.assert_array_equal(predictor.predict(padded), expected)
    assert (expected == np.pad(classes, padding)).mean() > 0.9


@pytest.mark.parametrize(
    "plan",
    [
        plan_for((1.5, 1.5), (32, 32)),
        plan_for((5.0, 1.5, 1.5), (32, 32, 32)),
        plan_for((2.0, 1.5, 1.5), (32, 32, 32)),
    ],
    ids=["2d", "3d by slices", "3d"],
)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLP", "PIR"])
def test_training_reads_bit_for_bit_what_prediction_feeds(plan, axes, tmp_path):
    volume, label = random_volume(shape=(9, 21, 20))
    volume.array[:, :3] = volume.array[4:, 10:12] = 0
    turned = stored_as(volume, axes)
    turned_label = stored_as(new_volume(label, volume.grid.spacing), axes).array
    save(tmp_path, "c", preprocess_image(turned, plan, turned_label))
    stored = load(tmp_path, "c")[0][0]

    dataset_json = make_dataset_json(CLASSES, False)
    save_model(tmp_path / "model", network_of(plan, dataset_json), plan, dataset_json, {})
    predictor = Predictor(tmp_path / "model", device="cpu", precision="fp32")
    predictor.engines = [ByIntensity()]
    predictor.predict(turned)
    fed = np.stack(predictor.engines[0].fed)
    patch_size = configuration_of(plan)[1]["patch_size"]
    assert fed.shape[2:] == tuple(patch_size)
    padded = fed[:, 0] if len(patch_size) == 2 else fed[0, 0]  # one tile holds all
    margins = [size - inside for size, inside in zip(padded.shape, stored.shape, strict=True)]
    whole = np.pad(stored, [(margin // 2, margin - margin // 2) for margin in margins])
    np.testing.assert_array_equal(padded, whole)


def nnunets_logits(monkeypatch, network, data, patch_size, outputs, tile_step):
    """What nnU-Net's own predictor gives, in float32 instead of its float16."""
    monkeypatch.setattr(torch, "half", torch.float32)
    full = partial(compute_gaussian, dtype=torch.float32)
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", full)
    stock = predict_from_raw_data.nnUNetPredictor(
        tile_step_size=tile_step, use_mirroring=False, device=CPU, allow_tqdm=False
    )
    stock.network = network
    stock.configuration_manager = SimpleNamespace(patch_size=list(patch_size))
    stock.label_manager = SimpleNamespace(num_segmentation_heads=outputs)
    return stock.predict_sliding_window_return_logits(data)


@pytest.mark.parametrize("tile_step", [0.5, 0.7])
@pytest.mark.parametrize("shape", [(13, 21, 35), (5, 9, 17), (7, 40, 11)])
@pytest.mark.parametrize("patch_size", [(16, 16), (8, 16, 12)])
def test_the_sliding_window_is_nnunets(monkeypatch, patch_size, shape, tile_step):
    plan = plan_for([1.0] * len(patch_size), patch_size)
    torch.manual_seed(0)
    network = network_of(plan, make_dataset_json(CLASSES, False)).eval()
    data = torch.randn(1, *shape)
    engine = TorchEngine(plan, arrays_of(network), "cpu", "fp32", threads=1)
    window = Window(shape, patch_size, 4, tile_step)
    slices = window.scores([engine], lambda start, stop: data[0, start:stop].numpy())
    ours = torch.from_numpy(np.stack([found.copy() for found in slices])).movedim(-1, 0)
    stock = nnunets_logits(monkeypatch, network, data, patch_size, 4, tile_step)
    assert ours.shape == stock.shape == (4, *shape)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


def arrays_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", PLANS)
def test_a_prediction_is_repeatable_reported_and_leaves_no_trace(models, name):
    volume, _ = blocks(shape=(5, 8, 9))
    before = volume.array.copy()
    predictor = Predictor(models / name, device="cpu", precision="fp32")
    first = predictor.predict(volume)
    np.testing.assert_array_equal(predictor.predict(volume), first)
    np.testing.assert_array_equal(volume.array, before)
    assert first.max() <= len(CLASSES)
    report = predictor.last_report
    assert report["device"] == "cpu"
    assert report["peak_ram_mb"] > 10
    assert report["peak_gpu_mb"] == 0
    phases = report["preprocess_s"] + report["network_s"] + report["export_s"]
    assert report["total_s"] == pytest.approx(phases, abs=0.01)


def test_bf16_gives_nearly_the_same_labels(models):
    volume, _ = blocks()
    exact = Predictor(models / "2d", device="cpu", precision="fp32").predict(volume)
    for engine in ("openvino", "torch"):
        predictor = Predictor(models / "2d", device="cpu", precision="bf16", engine=engine)
        assert predictor.way.precision == "bf16"
        assert (predictor.predict(volume) == exact).mean() > 0.9


# ---------------------------------------------------------------------------------------------
# Model folders


def test_a_model_comes_back_as_it_was_saved(models):
    model = load_model(models / "2d")
    torch.manual_seed(0)
    network = network_of(PLANS["2d"], make_dataset_json(CLASSES, False))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor, atol=0, rtol=0)
    assert not model.network.training
    assert model.plan == PLANS["2d"]
    assert model.card["checksum"] == tensor_checksum(network.state_dict())
    assert model.card["classes"] == CLASSES
    assert model.card["orientation"] == "RAS"
    assert model.card["spacing_mm"] == [1.5, 1.5]
    assert model.card["seed"] == 0
    assert set(model.card["versions"]) == {"panorgan", "nnunetv2", "torch"}


def test_equal_models_are_equal_files(models, tmp_path):
    model = load_model(models / "3d isotropic")
    save_model(tmp_path / "again", model.network, model.plan, model.dataset_json, {"seed": 0})
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (models / "3d isotropic" / path.name).read_bytes()


def test_the_checksum_sees_name_type_shape_and_values_but_not_the_order():
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(3)
    reference = tensor_checksum({"a": a, "b": b})
    assert tensor_checksum({"b": b, "a": a}) == reference
    assert tensor_checksum({"a": a.t().contiguous().t(), "b": b}) == reference
    others = [
        {"c": a, "b": b},
        {"a": a.to(torch.float64), "b": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a + 1, "b": b},
        {"a": a},
    ]
    assert reference not in [tensor_checksum(other) for other in others]


def remove_folder(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def remove_weights(folder):
    (folder / "weights.safetensors").unlink()


def truncate_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def break_the_card(folder):
    path = folder / "card.json"
    path.write_text(path.read_text()[:-20])


def change_the_plan(folder):
    path = folder / "plans.json"
    plan = json.loads(path.read_text())
    configuration_of(plan)[1]["architecture"]["arch_kwargs"]["features"] = [4, 8, 16]
    path.write_text(json.dumps(plan))


def name_another_network(folder):
    path = folder / "plans.json"
    path.write_text(path.read_text().replace("panorgan.networks.AttentionUNet", "os.system"))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (remove_folder, "there is no such model folder"),
        (remove_weights, "weights.safetensors is missing"),
        (truncate_weights, "the weights cannot be read"),
        (flip_a_bit, "the weights are not those that the model's card describes"),
        (break_the_card, "card.json: cannot be read"),
        (change_the_plan, "plans.json does not describe the network"),
        (name_another_network, "plans.json does not describe the network"),
    ],
)
def test_a_damaged_model_folder_is_one_clear_line(models, tmp_path, damage, cause):
    folder = tmp_path / "model"
    model = load_model(models / "2d")
    save_model(folder, model.network, model.plan, model.dataset_json, {})
    damage(folder)
    with pytest.raises(Problems) as caught:
        Predictor(folder)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(folder))
    assert cause in line


# ---------------------------------------------------------------------------------------------
# Devices


def test_precision_on_a_cpu(monkeypatch):
    assert devices.resolve_precision("bf16", CPU) == "bf16"
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(devices, "has_bf16", lambda has=has: has)
        assert devices.resolve_precision("auto", CPU) == expected
        assert devices.resolve_precision(expected, CPU) == expected
    with pytest.raises(Problems, match="fp16 needs a GPU"):
        devices.resolve_precision("fp16", CPU)


def test_autocast_computes_in_the_precision():
    layer = nn.Linear(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with devices.autocast(CPU, precision):
            assert layer(torch.ones(1, 4)).dtype == dtype


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "gpu_files", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # by a scheduler; the driver has none
    assert devices.pick_device("auto") == CPU
    assert devices.pick_device(CPU) == CPU
    with pytest.raises(Problems, match="finds no GPU"):
        devices.pick_device("cuda")
    monkeypatch.setattr(gpus, "gpu_files", lambda: ["/dev/nvidia0"])
    with pytest.raises(Problems, match=r"there is a GPU \(0\), but PyTorch cannot use it"):
        devices.pick_device("auto")


@pytest.mark.parametrize(
    ("version", "refused"),
    [("2.8.0", False), ("2.9.0+cu128", True), ("2.9.1", True), ("2.11.0+cu130", False)],
)
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_torch_that_is_slow_is_refused(name, version, refused, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    if not refused:
        assert devices.pick_device(name)
        return
    with pytest.raises(Problems) as caught:
        devices.pick_device(name)
    (problem,) = caught.value.problems
    assert problem.cause.startswith(f"torch {version} is about four times slower at 3D convolution")
    assert problem.cure.startswith("install another")


@pytest.mark.parametrize("export", ["smooth", "nearest"])
@pytest.mark.parametrize("full", [False, True])
def test_sums_that_the_gpu_cannot_hold_are_on_the_cpu(models, monkeypatch, export, full):
    """The same code, on the CPU: labels do not tell where the sums were."""
    predictor = Predictor(
        models / "3d isotropic", "cpu", "fp32", engine="torch", export=export, threads=1
    )
    volume, _ = blocks(shape=(12, 18, 20))
    expected, rows = predictor.predict(volume, probabilities=True)
    predictor.way = replace(predictor.way, device="cuda")
    monkeypatch.setattr(predicting, "GpuMemory", lambda there: GpuMemory(False))
    calls = []

    def noted(*arguments, **options):
        calls.append(full)
        if full:
            raise torch.OutOfMemoryError
        label_on_device(*arguments, **options)

    monkeypatch.setattr("panorgan.inference.on_device.label_on_device", noted)
    ticks = []
    found, found_rows = predictor.predict(volume, probabilities=True, tick=ticks.append)
    assert calls == [full]
    assert ticks[-1] == 1
    assert (found == expected).mean() > 0.999
    assert len(found_rows) == len(rows)
    np.testing.assert_array_equal(predictor.predict(volume), found)


def test_a_network_that_openvino_does_not_know_is_computed_by_torch(models, monkeypatch):
    def unknown(*arguments):
        raise ValueError("the network is not known")

    monkeypatch.setattr("panorgan.inference.engines.openvino.build_graph", unknown)
    assert Predictor(models / "2d", "cpu").way.engine == "torch"
    with pytest.raises(Problems) as caught:
        Predictor(models / "2d", "cpu", engine="openvino")
    assert "openvino cannot compute its network (the network is not known); take engine torch" in (
        str(caught.value)
    )


def test_a_network_that_needs_too_much_memory_is_one_line(models, tmp_path):
    predictor = predictor_by_intensity(models, "3d isotropic")
    volume, _ = blocks()
    write_image(tmp_path / "a.nii.gz", volume.array, volume)

    def none_left(tiles):
        raise torch.OutOfMemoryError("CUDA out of memory")

    predictor.engines[0].scores = none_left
    with pytest.raises(Problems) as caught:
        predict_files(tmp_path / "a.nii.gz", tmp_path / "out", predictor)
    (problem,) = caught.value.problems
    assert problem.case == "a"
    assert problem.cause == "the GPU's memory does not suffice"


@pytest.mark.fault("case-grid-memory")
def test_an_image_that_memory_cannot_hold_on_the_networks_grid_is_said(monkeypatch):
    volume, _ = blocks()
    size = preprocess_image(volume, PLANS["3d isotropic"]).data[0].shape
    monkeypatch.setattr(resources, "available_memory", lambda: 4 * np.prod(size) - 1)
    with pytest.raises(Problems) as caught:
        preprocess_image(volume, PLANS["3d isotropic"])
    fault_rows()["case-grid-memory"].check(f"a: /a.nii.gz: {caught.value}")
    assert " x ".join(map(str, size)) in str(caught.value)


@pytest.mark.fault("case-sums-memory")
def test_a_network_that_needs_more_memory_than_there_is_is_not_begun(models, monkeypatch, tmp_path):
    volume, _ = blocks()
    write_image(tmp_path / "a.nii.gz", volume.array, volume)
    predictor = predictor_by_intensity(models, "3d isotropic")
    plan = predictor.model.plan
    size = preprocess_image(volume, plan).data[0].shape

    def line(free):
        monkeypatch.setattr(resources, "available_memory", lambda: free)
        with pytest.raises(Problems) as caught:
            predict_files(tmp_path / "a.nii.gz", tmp_path / "out", predictor)
        return str(caught.value).replace(str(tmp_path), "")

    patch_size = configuration_of(plan)[1]["patch_size"]
    of_a_tile = np.prod(patch_size) * 4 * (4 * 4 + 4)  # fp32: 4 tensors of 4 features, 4 outputs
    tiles = predictor.threads if predictor.way.engine == "openvino" else 1
    needed = Window(size, patch_size, 4, 0.5).bytes + tiles * of_a_tile + volume.array.size
    fault_rows()["case-sums-memory"].check(line(needed - 1))
    monkeypatch.setattr(resources, "available_memory", lambda: needed)
    predict_files(tmp_path / "a.nii.gz", tmp_path / "out", predictor)


@pytest.mark.parametrize(
    ("text", "row", "ends"),
    [
        ("CUDA error: device-side assert triggered\nmore", "gpu-failed", True),
        ("CUDA error: out of memory", "gpu-full-case", False),
    ],
)
@pytest.mark.fault("gpu-failed")
@pytest.mark.fault("gpu-full-case")
def test_a_gpu_that_has_failed_ends_the_batch(text, row, ends, models, tmp_path):
    volume, _ = blocks()
    for case in "ab":
        write_image(tmp_path / f"images/{case}.nii.gz", volume.array, volume)
    predictor = predictor_by_intensity(models, "3d isotropic")

    def fail(tiles):
        raise RuntimeError(text)

    predictor.engines[0].scores = fail
    with pytest.raises(Problems) as caught:
        predict_files(tmp_path / "images", tmp_path / "out", predictor)
    assert [problem.case for problem in caught.value.problems] == (["a"] if ends else ["a", "b"])
    fault_rows()[row].check(str(caught.value))
    assert isinstance(caught.value, Stop) == ends


@pytest.mark.fault("gpu-full-weights")
def test_a_gpu_without_room_for_the_weights_is_said_once(models, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predicting, "start_engine", full)
    with pytest.raises(Stop) as caught:
        Predictor(models / "3d isotropic", device="cpu", engine="torch")
    fault_rows()["gpu-full-weights"].check(str(caught.value))


class TestFiles:
    @pytest.fixture
    def images(self, tmp_path):
        folder = tmp_path / "in"
        folder.mkdir()
        volume, _ = blocks()
        write_image(folder / "a_0000.nii.gz", volume.array, volume)
        write_image(folder / "b.nii.gz", volume.array, volume)
        return folder

    def test_a_folder(self, images, tmp_path, models):
        predictor = predictor_by_intensity(models, "3d isotropic")
        lines = []
        report = predict_files(images, tmp_path / "out", predictor, lines.append)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["a.nii.gz", "b.nii.gz", "report.json"]
        image = read_image(images / "b.nii.gz")
        label = read_label(tmp_path / "out/b.nii.gz")
        assert not image.grid.difference(label.grid)
        assert np.array_equal(label.array, predictor.predict(image))
        assert json.loads((tmp_path / "out/report.json").read_text()) == report
        assert report["cases"].keys() == {"a", "b"}
        assert report["cases"]["a"]["total_s"] > 0
        assert len(lines) == 2

    def test_nothing_is_overwritten(self, images, tmp_path, models):
        predictor = predictor_by_intensity(models, "3d isotropic")
        there = tmp_path / "out/b.nii.gz"
        there.parent.mkdir()
        there.write_text("mine")
        with pytest.raises(Problems, match="exists already"):
            predict_files(images, tmp_path / "out", predictor)
        assert [path.name for path in there.parent.iterdir()] == ["b.nii.gz"]
        assert there.read_text() == "mine"

    def test_a_broken_image_hides_no_other(self, images, tmp_path, models):
        broken = images / "a_0000.nii.gz"
        broken.write_bytes(broken.read_bytes()[:-20])
        with pytest.raises(Problems) as caught:
            predict_files(images, tmp_path / "out", predictor_by_intensity(models, "3d isotropic"))
        (problem,) = caught.value.problems
        assert (problem.case, problem.file) == ("a", str(broken))
        assert (tmp_path / "out/b.nii.gz").exists()
        assert not (tmp_path / "out/a.nii.gz").exists()

    @pytest.mark.parametrize(
        ("spoil", "cause"),
        [
            (lambda hu: hu * 0 - 1024, "is empty: every voxel is -1024"),
            (lambda hu: hu + 1024, "its numbers do not look like HU: 100% lie above 500"),
            (lambda hu: (hu > 0) * 3, "they lie between 0 and 3, as in a label map"),
            (lambda hu: hu.astype(np.float32) + 1e9, "holds 1e+09 in 4,320 voxels"),
        ],
    )
    def test_what_is_no_ct_is_not_labelled_and_hides_no_other(
        self, images, tmp_path, models, spoil, cause
    ):
        image = read_image(images / "a_0000.nii.gz")
        array = spoil(image.array)
        array = array.astype(np.int16) if array.dtype != np.float32 else array
        write_image(images / "a_0000.nii.gz", array, image)
        predictor = predictor_by_intensity(models, "3d isotropic")
        with pytest.raises(Problems) as caught:
            predict_files(images, tmp_path / "out", predictor)
        (problem,) = caught.value.problems
        assert (problem.case, problem.file) == ("a", str(images / "a_0000.nii.gz"))
        assert cause in problem.cause
        assert problem.cure
        assert json.loads((tmp_path / "out/report.json").read_text())["cases"].keys() == {"b"}
        assert not (tmp_path / "out/a.nii.gz").exists()

    def test_a_model_of_other_scans_takes_any_numbers(self, images, tmp_path, models):
        image = read_image(images / "a_0000.nii.gz")
        write_image(images / "a_0000.nii.gz", image.array + np.int16(1024), image)
        predictor = predictor_by_intensity(models, "3d isotropic")
        configuration = configuration_of(predictor.model.plan)[1]
        configuration["normalization_schemes"] = ["NoNormalization"]
        assert len(predict_files(images, tmp_path / "out", predictor)["cases"]) == 2

    @pytest.mark.parametrize("name", ["nothing", "empty"])
    def test_nothing_to_do(self, name, tmp_path, models):
        (tmp_path / "empty").mkdir()
        with pytest.raises(Problems, match=r"no such file|no \.nii\.gz"):
            predict_files(
                tmp_path / name, tmp_path / "out", predictor_by_intensity(models, "3d isotropic")
            )
        assert not (tmp_path / "out").exists()

    @pytest.mark.fault("predict-otherwise")
    def test_it_goes_on_where_it_was(self, images, tmp_path, models):
        predictor = predictor_by_intensity(models, "3d isotropic")
        broken = images / "b.nii.gz"
        whole = broken.read_bytes()
        broken.write_bytes(whole[:-20])
        with pytest.raises(Problems):
            predict_files(images, tmp_path / "out", predictor)
        first = (tmp_path / "out/a.nii.gz").stat()
        broken.write_bytes(whole)
        lines = []
        report = predict_files(images, tmp_path / "out", predictor, lines.append)
        assert report["cases"].keys() == {"a", "b"}
        assert lines[0] == "a: labelled before"
        assert (tmp_path / "out/a.nii.gz").stat() == first
        other = predictor_by_intensity(models, "3d isotropic")
        other.tile_step = 0.25
        with pytest.raises(Problems) as caught:
            predict_files(images, tmp_path / "out", other)
        fault_rows()["predict-otherwise"].check(str(caught.value).replace(f"{tmp_path}/", ""))

    @pytest.mark.parametrize(
        ("name", "cause"),
        [
            ("c_0000.mha", "is left out: only .nii.gz and .nii are read"),
            pytest.param(
                "C_0000.NII.GZ",
                "is left out: its ending has capital letters",
                marks=pytest.mark.fault("left-out-by-predict"),
            ),
            ("more/c_0000.nii.gz", "is left out: it is a folder, and what lies in folders is not"),
            ("a_0001.nii.gz", "is left out: it is named like a second channel of a, and a CT has"),
            ("L" * 240 + ".nii.gz", "is left out: the case's name is longer than 150 characters"),
        ],
    )
    def test_what_gets_no_label_is_told_after_the_others_have_theirs(
        self, images, tmp_path, models, name, cause
    ):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
        (images / ".DS_Store").touch()
        (images / "readme.md").touch()
        with pytest.raises(Problems) as caught:
            predict_files(images, tmp_path / "out", predictor_by_intensity(models, "3d isotropic"))
        (problem,) = caught.value.problems
        assert problem.cause.startswith(cause)
        if name.startswith("C"):
            fault_rows()["left-out-by-predict"].check(str(problem))
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["a.nii.gz", "b.nii.gz", "report.json"]

    @pytest.mark.parametrize("name", ["a.NII.GZ", "L" * 240 + ".nii.gz", "a.mha"])
    def test_a_file_that_is_not_taken(self, tmp_path, models, name):
        (tmp_path / name).touch()
        with pytest.raises(Problems, match=r"capital letters|longer than 150|only \.nii\.gz"):
            predict_files(
                tmp_path / name, tmp_path / "out", predictor_by_intensity(models, "3d isotropic")
            )
        assert not (tmp_path / "out").exists()

    @pytest.mark.fault("predict-another-image")
    def test_another_image_of_the_same_name(self, images, tmp_path, models):
        """A label map is kept for its own image only, however that is stored."""
        predictor = predictor_by_intensity(models, "3d isotropic")
        place, out = images / "b.nii.gz", tmp_path / "out"
        report = predict_files(images, out, predictor)
        image = read_image(place)
        known = report["cases"]["b"]
        assert (known["image"], known["grid"]) == (voxel_hash(image), geometry_hash(image))

        def again():
            before = (out / "b.nii.gz").stat()
            lines = []
            try:
                predict_files(images, out, predictor, lines.append)
            except Problems as error:
                lines += map(str, error.problems)
            assert (out / "b.nii.gz").stat() == before
            return lines[1:]

        place.write_bytes(gzip.compress(gzip.decompress(place.read_bytes()), 9))
        assert again() == ["b: labelled before"]
        moved = replace(image, header=image.header.copy())
        moved.header["qoffset_x"] += 1
        moved.header["srow_x"][3] += 1
        refusal = (
            f"b: {place}: is another image than that of which {out}/b.nii.gz was made; name "
            "another folder with -o, or remove that label map"
        )
        fault_rows()["predict-another-image"].check(refusal.replace(f"{tmp_path}/", ""))
        for array, like in ((image.array + 1, image), (image.array, moved)):
            write_image(place, array.astype(np.int16), like)
            assert again() == [refusal]
        (out / "b.nii.gz").unlink()
        predict_files(images, out, predictor)
        assert not read_label(out / "b.nii.gz").grid.difference(read_image(place).grid)
        assert again() == ["b: labelled before"]

    def test_a_report_that_does_not_name_the_images(self, images, tmp_path, models):
        """As earlier versions wrote it."""
        predictor = predictor_by_intensity(models, "3d isotropic")
        path = tmp_path / "out/report.json"
        report = predict_files(images, path.parent, predictor)
        for known in report["cases"].values():
            for key in ("image", "grid", "file"):
                del known[key]
        path.write_text(json.dumps(report))
        lines = []
        predict_files(images, path.parent, predictor, lines.append)
        unknown = "labelled before; the report does not say from which image"
        assert lines == [f"a: {unknown}", f"b: {unknown}"]

    def test_labels_do_not_go_among_the_images(self, images, models):
        with pytest.raises(Problems, match="holds the images"):
            predict_files(images, images, predictor_by_intensity(models, "3d isotropic"))

    def test_two_files_of_a_case(self, images, tmp_path, models):
        (images / "b_0000.nii.gz").write_bytes((images / "b.nii.gz").read_bytes())
        with pytest.raises(Problems, match=r"same case as b\.nii\.gz"):
            predict_files(images, tmp_path / "out", predictor_by_intensity(models, "3d isotropic"))

    def test_command(self, images, tmp_path, models, capsys):
        arguments = ["predict", "-i", str(images / "b.nii.gz"), "-o", str(tmp_path / "out")]
        assert main([*arguments, "-m", str(models / "3d isotropic"), "--device", "cpu"]) == 0
        assert "1 label maps" in capsys.readouterr().out
        assert main([*arguments, "-m", str(tmp_path / "no")]) == 1
        assert "no such model folder" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Probabilities


def softmax_on_the_image_grid(predictor: Predictor, volume) -> np.ndarray:
    """(classes, z, y, x) probabilities, brought to the image's grid in full."""
    plan = predictor.model.plan
    done = preprocess_image(volume, plan)
    softmax = plan["panorgan"].get("tile_average") == "softmax"
    window = Window(
        *(done.data.shape[1:], configuration_of(plan)[1]["patch_size"], 4, predictor.tile_step),
        softmax,
    )
    read = lambda start, stop: done.data[0, start:stop]  # noqa: E731
    scores = np.stack([found.copy() for found in window.scores(predictor.engines, read)])
    scores = torch.from_numpy(scores).movedim(-1, 0)
    if not softmax:
        scores = scores.softmax(0)
    size = done.properties["shape_after_cropping_and_before_resampling"]
    box = tuple(slice(*bounds) for bounds in done.properties["bbox_used_for_cropping"])
    whole = np.zeros((len(scores), *done.properties["shape_before_cropping"]), np.float32)
    for found, one in zip(whole, scores, strict=True):
        wide = one
        for axis, new in enumerate(size):  # the network's voxel that holds each voxel's middle
            nearest = np.floor((np.arange(new) + 0.5) * wide.shape[axis] / new).astype(int)
            wide = wide.index_select(axis, torch.from_numpy(nearest))
        found[box] = wide.numpy()
    back = [one.transpose(plan["transpose_backward"]) for one in whole]
    return np.stack([from_canonical(one, network_grid(volume.grid, plan)) for one in back])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLP", "PIR"])
@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_probabilities_are_those_of_the_whole_softmax(models, name, axes, average):
    volume, _ = random_volume(shape=(8, 24, 16))
    volume.array[:, :3] = volume.array[6:] = 0  # to be cropped
    predictor = predictor_by_intensity(models, name)
    if average == "softmax":
        panorgan = predictor.model.plan["panorgan"] | {"tile_average": "softmax"}
        predictor.model.plan["panorgan"] = panorgan
    turned = stored_as(volume, axes)
    labels, rows = predictor.predict(turned, probabilities=True)
    np.testing.assert_array_equal(labels, predictor.predict(turned))
    softmax = softmax_on_the_image_grid(predictor, turned)
    pieces = find_components(labels)
    assert len(pieces.rows) > 3
    assert len(rows) == len(pieces.rows)
    for number, (row, piece) in enumerate(zip(rows, pieces.rows, strict=True), 1):
        found = softmax[piece.value][pieces.ids == number]
        assert row["mean_probability"] == pytest.approx(found.mean(), abs=6e-4)
        assert row["max_probability"] == pytest.approx(found.max(), abs=6e-4)
        assert (row["value"], row["component"]) == (piece.value, piece.component)
        assert row["name"] == CLASSES[piece.value - 1]
    plain = component_rows(pieces, turned.array, turned.grid, dict(enumerate(CLASSES, 1)))
    same = [key for key in plain[0] if not key.endswith("_probability")]
    assert [[row[key] for key in same] for row in rows] == [
        [row[key] for key in same] for row in plain
    ]


def test_probabilities_follow_a_model_that_permutes_axes(models):
    volume, _ = random_volume(shape=(8, 24, 16))
    predictor = predictor_by_intensity(models, "3d isotropic")
    predictor.model.plan["transpose_forward"] = [1, 2, 0]
    predictor.model.plan["transpose_backward"] = [2, 0, 1]
    labels, rows = predictor.predict(volume, probabilities=True)
    softmax = softmax_on_the_image_grid(predictor, volume)
    pieces = find_components(labels)
    for number, (row, piece) in enumerate(zip(rows, pieces.rows, strict=True), 1):
        found = softmax[piece.value][pieces.ids == number]
        assert row["mean_probability"] == pytest.approx(found.mean(), abs=6e-4)


def test_of_an_image_without_pieces_there_are_no_rows(models):
    predictor = predictor_by_intensity(models, "2d")
    volume = new_volume(np.full((3, 8, 8), -300, np.int16), (4, 1.5, 1.5))
    labels, rows = predictor.predict(volume, probabilities=True)
    assert not labels.any()
    assert rows == []
