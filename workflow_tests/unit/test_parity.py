"""Labels are those of stock nnU-Net 2 with the same weights, whatever its model is like."""

import numpy as np
import parity
import pytest
from _stock import MARGINS, PLACE
from test_preprocess import stored_as

from panorgan.inference.predictor import Predictor
from panorgan.io.volumes import Volume, new_volume, read_label, write_image

CLASSES = ["block", "core"]
SMALL = {
    "features": (4, 8, 8),
    "patch_size": (8, 24, 24),
    "anisotropic": {"patch_size": (4, 32, 32)},
    "axes transposed": {"patch_size": (24, 8, 24)},
}
"""Sizes of the networks here: for all, and for those whose patch has other proportions."""


def scan(seed: int, shape=(12, 40, 36), spacing=(6.0, 4.0, 4.0)) -> tuple[Volume, np.ndarray]:
    """A block and a brighter one in it, in noise, with a margin that is exactly 0."""
    random = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    z, y, x = (int(random.integers(max(1, n // 4))) for n in shape)
    for value, part in ((1, 2), (2, 4)):
        half = [max(1, n // part) for n in shape]
        label[z : z + half[0], y : y + half[1], x : x + half[2]] = value
    image = (20 + 60 * label + random.normal(0, 15, shape)).round()
    image[:, :3] = 0
    label[:, :3] = 0
    return new_volume(image.astype(np.int16), spacing), label


IMAGES = {
    "resampled, stored the other way round": stored_as(
        scan(7, (14, 52, 44), (5, 2.7, 3.1))[0], "LPI"
    ),
    "slices far apart": stored_as(scan(8, (6, 30, 34), (17.0, 4.1, 3.7))[0], "LPS"),
    "one slice": scan(9, (1, 40, 30), (5.0, 3.0, 4.0))[0],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Gives one of the benchmark's models, trained until it finds the blocks."""
    cases = [scan(seed) for seed in range(3)]
    made = {}

    def model(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("models") / "model"
            sizes = {key: SMALL[key] for key in ("features", "patch_size")} | SMALL.get(name, {})
            made[name] = parity.write_foreign(folder, name, CLASSES, cases, 40, **sizes)
        return made[name]

    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, volume in IMAGES.items():
        write_image(folder / f"{name}_0000.nii.gz", volume.array, volume)
    return folder


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", parity.FOREIGN)
def test_labels_are_those_of_stock_nnunet(name, image, models, images, tmp_path):
    """With sums in float32, that is: float16, in which it adds up tiles, changes some labels."""
    path, model = images / f"{image}_0000.nii.gz", models(name)
    labels = {}
    for number, way in enumerate((parity.STOCK, parity.EXACT, "openvino fp32", "torch fp32")):
        (tmp_path / str(number)).mkdir()
        file = parity.labeller(way, model, threads=1)(path, tmp_path / str(number))
        labels[way] = read_label(file).array
    for way in ("openvino fp32", "torch fp32"):
        found = parity.compare(labels[way], labels[parity.STOCK], labels[parity.EXACT])
        assert found["exact"]["equal"] >= 0.9999
        assert found["differ"] == found["within"]["0.001"]
        assert found["stock"]["equal"] >= 0.99
    assert len(np.unique(labels[way])) > 1


def test_folds_are_averaged(models, images):
    """Else the test above would prove nothing of several."""
    model = models("three folds")
    path = images / "slices far apart_0000.nii.gz"
    volume = parity.read_image(path)
    each = [
        Predictor(model, "cpu", "fp32", folds=folds, threads=1).predict(volume)
        for folds in (["0"], ["1"], ["2"], None)
    ]
    assert len({labels.tobytes() for labels in each}) == 4


def test_agreement_is_counted_as_it_is_said():
    """10 voxels, of which the last two differ, one of them at a narrow margin."""
    stock = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 0], np.uint8)
    found = np.array([0, 0, 0, 0, 1, 1, 1, 2, 1, 2], np.uint8)
    exact = stock + PLACE * np.array([3, 0, 0, 0, 0, 0, 0, 0, 2, 0], np.uint8)
    result = parity.compare(found, stock, exact)
    assert result["stock"] == result["exact"]
    assert result["stock"]["equal"] == 0.8
    assert result["stock"]["equal_inside"] == pytest.approx(4 / 6)
    assert result["stock"]["lowest_dsc"] == 0.5
    assert (result["stock"]["class"], result["stock"]["voxels"]) == (2, 2)
    assert result["differ"] == 2
    assert result["within"] == dict(zip(map(str, MARGINS), (1, 1, 0), strict=True))
    empty = parity.compare(stock * 0, stock * 0, stock * 0)
    assert empty["stock"]["equal"] == 1
    assert empty["stock"]["lowest_dsc"] is None
    said = parity.table("a model", {"an image": {"stock": result | {"s": 1, "mb": 2}, "x": {}}})
    assert "| an image | stock | 80.0000 | 66.6667 | 0.50000 (2, 2) | – | 2 (1 / 1 / 0) |" in said
    assert "| an image | x | failed |" in said
    worst = {
        "one": {"stock": result | {"s": 1, "mb": 2}},
        "two": {"stock": empty | {"s": 2, "mb": 1}},
    }
    said = parity.summary({"a model": worst})
    assert "| a model | stock | 80.0000 | 66.6667 | 0.50000 | – | 2 | 3 | 2 |" in said
