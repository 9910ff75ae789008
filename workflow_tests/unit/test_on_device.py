"""The way of a GPU, here on the CPU: the labels and probabilities that the usual way gives."""

import numpy as np
import pytest
import torch

from panorgan.inference.export import Export
from panorgan.inference.on_device import label_on_device
from panorgan.inference.window import Window
from panorgan.problems import Problems

OUTPUTS = 3


class Formula:
    """Bright, dark and grey, and more of it in one corner of a tile: no two are alike."""

    place, at_once = torch.device("cpu"), 2  # together, as a 2D network on a GPU

    def __init__(self, factor):
        self.factor = factor

    def logits(self, images):
        x, space = images[:, 0], images[0, 0].numel()
        corner = torch.arange(space).reshape(x.shape[1:]) / space
        return torch.stack([x * self.factor, 0.3 - x.abs() + corner, corner - x], 1)

    def scores(self, tiles):
        for tile in tiles:
            yield self.logits(torch.from_numpy(tile)[None])[0].movedim(0, -1).contiguous().numpy()


def image_of(size):
    random = np.random.default_rng(0)
    coarse = random.normal(0, 1, [-(-n // 4) for n in size])
    blocks = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(map(slice, size))]
    return (blocks + random.normal(0, 0.3, size)).astype(np.float32)


def usual(engines, image, new_size, patch_size, softmax, **options):
    window = Window(image.shape, patch_size, OUTPUTS, 0.5, softmax)
    export = Export(image.shape, new_size, softmax=softmax, **options)
    scores = window.scores(engines, lambda start, stop: image[start:stop])
    labels, shares = zip(*export.slices(scores, True), strict=True)
    return np.stack(labels), np.stack(shares), window.tiles


@pytest.mark.parametrize(
    ("size", "new_size"),
    [((9, 24, 40), (11, 31, 52)), ((3, 10, 16), (7, 8, 15)), ((1, 33, 17), (1, 33, 17))],
)
@pytest.mark.parametrize(
    "options",
    [
        {"smooth": True},
        {"smooth": True, "apart": 0},
        {"smooth": False},
        {"smooth": True, "softmax": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("patch_size", [(4, 16, 16), (16, 16)])
def test_labels_are_those_of_the_usual_way(patch_size, options, size, new_size):
    image, engines = image_of(size), [Formula(1.0), Formula(1.5)]
    given = {"softmax": False, **options}
    expected, expected_shares, tiles = usual(engines, image, new_size, patch_size, **given)
    labels, shares = np.full(new_size, 99, np.uint8), np.full(new_size, -1, np.float32)
    ticks = []
    label_on_device(
        *(engines, lambda start, stop: image[start:stop], image.shape, labels, shares),
        **given,
        patch_size=patch_size,
        outputs=OUTPUTS,
        tile_step=0.5,
        tick=lambda: ticks.append(1),
    )
    same = labels == expected
    assert same.mean() > 0.999
    assert len(np.unique(labels)) == OUTPUTS
    np.testing.assert_allclose(shares[same], expected_shares[same], atol=1e-4)
    assert len(ticks) == tiles * len(engines)


class Broken:
    place, at_once = torch.device("cpu"), 1

    def __init__(self, error=None):
        self.error = error

    def logits(self, images):
        if self.error:
            raise self.error
        return torch.full((1, OUTPUTS, *images.shape[2:]), torch.nan)


def broken(engine):
    label_on_device(
        *([engine], lambda start, stop: np.zeros((stop - start, 8, 8), np.float32), (4, 8, 8)),
        np.zeros((4, 8, 8), np.uint8),
        patch_size=(4, 8, 8),
        outputs=OUTPUTS,
        tile_step=0.5,
        smooth=True,
    )


def test_scores_that_are_no_numbers_are_said():
    with pytest.raises(Problems, match="scores are not all numbers; copy the model again, or"):
        broken(Broken())


def test_a_full_gpu_is_the_callers_to_handle():
    with pytest.raises(torch.OutOfMemoryError):
        broken(Broken(torch.OutOfMemoryError("CUDA out of memory")))
