"""What is drawn for whole batches: as often and as much as batchgenerators draws it."""

import numpy as np
import pytest
from batchgenerators.augmentations import color_augmentations
from scipy.stats import ks_2samp, kstest, uniform

from panorgan.config.settings import Augmentation
from panorgan.nnunet.devices import resolve_augmentation
from panorgan.nnunet.training.device_augmentation import Hits, draw

DEFAULT = Augmentation(mirror_axes=[0, 1]).model_dump()
SAMPLES = 4000


@pytest.fixture(scope="module")
def drawn() -> dict[str, Hits]:
    return draw(np.random.default_rng(0), SAMPLES, 1, DEFAULT)


class TestDraws:
    """How often and how much, compared with what batchgenerators itself draws."""

    @pytest.mark.parametrize(
        ("name", "share"),
        [
            ("noise", 0.1),
            ("blur", 0.2 * 0.5),
            ("brightness", 0.15),
            ("contrast", 0.15),
            ("low_resolution", 0.25 * 0.5),
            ("gamma_inverted", 0.1),
            ("gamma", 0.3),
            ("mirror_0", 0.5),
            ("mirror_1", 0.5),
            ("spatial", 1 - 0.8**3),
        ],
    )
    def test_how_often(self, drawn, name, share):
        tolerance = 4 * np.sqrt(share * (1 - share) / SAMPLES)
        assert len(drawn[name].rows) / SAMPLES == pytest.approx(share, abs=tolerance)

    def test_changes_are_independent(self, drawn):
        hit = np.zeros((len(drawn), SAMPLES))
        for changes, parameters in zip(hit, drawn.values(), strict=True):
            changes[parameters.rows] = 1
        assert abs(np.corrcoef(hit) - np.eye(len(drawn))).max() < 0.07
        neighbours = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in hit]
        assert max(map(abs, neighbours)) < 0.07

    @pytest.mark.parametrize("name", ["brightness", "contrast", "gamma"])
    def test_factors_are_batchgenerators(self, drawn, name):
        """Read off what it makes of an image of one to three voxels."""

        def factor() -> float:
            color, narrow = color_augmentations, (0.75, 1.25)
            if name == "brightness":
                return color.augment_brightness_multiplicative(np.ones((1, 1)), narrow)[0, 0]
            if name == "contrast":
                image = np.array([[-1.0, 1.0]])
                return color.augment_contrast(image, narrow, preserve_range=False)[0, 1]
            image = np.array([[0.0, 0.5, 1.0]])
            return -np.log2(color.augment_gamma(image, (0.7, 1.5), per_channel=True)[0, 1])

        np.random.seed(0)
        given = [factor() for _ in range(3000)]
        assert ks_2samp(drawn[name].values, given).pvalue > 0.01

    @pytest.mark.parametrize(
        ("name", "low", "high"),
        [("noise", 0, 0.1), ("blur", 0.5, 1), ("low_resolution", 0.5, 1)],
    )
    def test_even_draws(self, drawn, name, low, high):
        assert kstest(drawn[name].values, uniform(low, high - low).cdf).pvalue > 0.01

    def test_moves(self, drawn):
        alpha, sigma, angle, factor = drawn["spatial"].values.T
        assert np.mean(alpha > 0) == pytest.approx(0.2 / 0.488, abs=0.04)
        assert kstest(alpha[alpha > 0], uniform(0, 200).cdf).pvalue > 0.01
        assert kstest(sigma[alpha > 0], uniform(9, 4).cdf).pvalue > 0.01
        assert np.mean(angle != 0) == pytest.approx(0.2 / 0.488, abs=0.04)
        assert kstest(angle[angle != 0], uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01
        factor = factor[factor != 1]
        assert len(factor) / len(alpha) == pytest.approx(0.2 / 0.488, abs=0.04)
        assert np.mean(factor < 1) == pytest.approx(0.5, abs=0.06)
        assert kstest(factor[factor < 1], uniform(0.7, 0.3).cdf).pvalue > 0.01
        assert kstest(factor[factor > 1], uniform(1, 0.4).cdf).pvalue > 0.01

    def test_channels_are_drawn_apart(self):
        found = draw(np.random.default_rng(0), SAMPLES, 2, DEFAULT)
        blurred = np.zeros(2 * SAMPLES)
        blurred[found["blur"].rows] = 1
        both = blurred.reshape(-1, 2).all(axis=1).mean()
        assert both == pytest.approx(0.2 * 0.25, abs=0.015)
        bright = found["brightness"]
        assert (bright.rows.reshape(-1, 2) == bright.rows[::2, None] + [0, 1]).all()
        assert abs(np.corrcoef(bright.values.reshape(-1, 2).T)[0, 1]) < 0.15


def test_where():
    """The loaders, as long as no figure shows that something else is faster."""
    assert resolve_augmentation("auto") == "workers"
    for name in ("device", "workers"):
        assert resolve_augmentation(name) == name
