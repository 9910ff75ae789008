"""Label maps of the device against the CPU's in fp32, by networks that were trained on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CLASSES, INTENSITY, student, teacher

from panorgan.config.labels import load_labels
from panorgan.config.settings import Augmentation, Optimizer
from panorgan.inference.predictor import Predictor
from panorgan.io.volumes import Volume, new_volume
from panorgan.nnunet.case_file import save
from panorgan.nnunet.plans import make_dataset_json, make_plan
from panorgan.nnunet.preprocess import preprocess_image
from panorgan.nnunet.training.train import train

pytestmark = pytest.mark.gpu

RECIPES = {"teacher": teacher, "student": student}
SPACING, PATCH = (6.0, 4.0, 4.0), [8, 32, 32]
HU = INTENSITY | {"mean": 60, "std": 40, "percentile_00_5": -100, "percentile_99_5": 240}
STILL = Augmentation(**{name: 0.0 for name in Augmentation.model_fields if name[:2] == "p_"})
SAME = {"fp32": 0.999, "bf16": 0.997, "fp16": 0.997}
"""Share of voxels with the CPU's label in fp32; on a GPU convolutions in fp32 round to TF32."""


def scan(seed: int, shape=(12, 40, 36), spacing=SPACING) -> tuple[Volume, np.ndarray]:
    """A block and a smaller one in it, some 80 HU brighter each, in noise; (z, y, x) in mm."""
    random = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    z, y, x = (int(random.integers(n // 4)) for n in shape)
    for value, part in ((1, 2), (2, 4)):
        half = [n // part for n in shape]
        label[z : z + half[0], y : y + half[1], x : x + half[2]] = value
    image = 20 + 80 * label + random.normal(0, 15, shape)
    return new_volume(image.round().astype(np.int16), spacing), label


@pytest.fixture(scope="module")
def models(device, tmp_path_factory) -> dict[str, Path]:
    """Both networks, trained until they find the blocks."""
    made = {}
    for name, make in RECIPES.items():
        folder = tmp_path_factory.mktemp(name)
        recipe = make(
            epochs=5,
            iterations=30,
            validation_iterations=0,
            optimizer=Optimizer(name="adamw", learning_rate=0.01, warmup_iterations=10),
            augmentation=STILL,
        )
        recipe["network"]["features"] = [8, 16, 16]
        recipe["patch_size"] = PATCH[-len(recipe["patch_size"]) :]
        recipe["batch_size"] = 2
        plan = make_plan(recipe, CLASSES, HU, (12, 40, 36), SPACING)
        (folder / "data").mkdir()
        for seed in range(4):
            volume, label = scan(seed)
            save(folder / "data", f"case-{seed}", preprocess_image(volume, plan, label))
        made[name] = train(
            plan,
            make_dataset_json(CLASSES, ignore=False),
            {f"case-{seed}": folder / "data" for seed in range(4)},
            {},
            folder / "state",
            seed=0,
            card={},
            labels=load_labels(),
            device=device.type,
        )
    return made


@pytest.mark.parametrize("spacing", [SPACING, (5.0, 2.7, 3.1)])
@pytest.mark.parametrize("name", RECIPES)
def test_labels_are_the_cpus(name, spacing, precision, device, models, record_property):
    volume, truth = scan(9, (14, 60, 52), spacing)
    exact = Predictor(models[name], "cpu", "fp32", engine="torch")
    expected, pieces = exact.predict(volume, probabilities=True)
    # It has learnt something to be compared.
    assert (expected == truth).mean() > 0.95
    assert {*np.unique(expected)} == {0, 1, 2}

    predictor = Predictor(models[name], device.type, precision)
    found, rows = predictor.predict(volume, probabilities=True)
    assert found.dtype == np.uint8
    assert found.shape == volume.array.shape
    share = float((found == expected).mean())
    record_property(f"{precision}: voxels with the CPU's label, ≥ {SAME[precision]}", share)
    assert share >= SAME[precision]
    again = predictor.predict(volume)
    assert (again == found).mean() >= (0.9999 if device.type == "cuda" else 1)
    largest, other = (max(part, key=lambda row: float(row["ml"])) for part in (rows, pieces))
    assert float(largest["mean_probability"]) == pytest.approx(
        float(other["mean_probability"]), abs=0.02
    )
    report = predictor.last_report
    assert (report["peak_gpu_mb"] > 0) == (device.type == "cuda")
    assert report["total_s"] > 0


@pytest.mark.needs_cuda
def test_sums_that_do_not_fit_are_on_the_cpu(device, models, monkeypatch):
    """The network stays on the GPU; what it says of each tile is added up in main memory."""
    by_slices = []
    original = Predictor._by_slices

    def noted(self, *arguments):
        by_slices.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(Predictor, "_by_slices", noted)
    predictor = Predictor(models["student"], device.type, "fp32", tile_step=1.0)
    volume, _ = scan(3, (8, 600, 600))  # 35 MB of sums
    torch.cuda.empty_cache()
    predictor.predict(scan(3)[0])  # what a tile takes is now held
    limit = torch.cuda.memory_reserved() + 4 * 2**20
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        found = predictor.predict(volume)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(by_slices) == 1
    assert (found == predictor.predict(volume)).mean() >= SAME["fp32"]
    assert len(by_slices) == 1
