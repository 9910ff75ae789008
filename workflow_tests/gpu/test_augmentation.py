"""Changes of whole batches, one by one, against batchgenerators and the changes of one patch.

The batches are where `--device` says; what they are compared with is computed on the CPU.
"""

import numpy as np
import pytest
import torch
from batchgenerators.augmentations import color_augmentations, noise_augmentations
from batchgenerators.augmentations.resample_augmentations import (
    augment_linear_downsampling_scipy,
)
from batchgenerators.augmentations.spatial_transformations import augment_spatial
from batchgenerators.augmentations.utils import (
    create_zero_centered_coordinate_mesh,
    elastic_deform_coordinates,
)
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import kstest

from panorgan.config.settings import Augmentation
from panorgan.nnunet.training.augmentation import (
    OUTSIDE,
    LowResolution,
    Spatial,
    initial_patch_size,
    validation_transforms,
)
from panorgan.nnunet.training.device_augmentation import (
    BatchAugmentation,
    Hits,
    along,
    cardinal_spline,
    cubic,
    most_of,
    smoothing,
)

pytestmark = pytest.mark.gpu
DEFAULT = Augmentation(mirror_axes=[0, 1]).model_dump()
PATCHES = [(24, 20), (4, 24, 20), (12, 14, 16)]
"""2D, flat 3D (changed slice by slice) and 3D."""


def batch(size, samples=3, channels=2) -> tuple[torch.Tensor, torch.Tensor]:
    """Rough images of a CT's range and labels of some voxels' width, some of it outside."""
    random = np.random.default_rng(0)
    data = random.normal(size=(samples, channels, *size))
    data = data + 3 * gaussian_filter(data, (0, 0, *(2 for _ in size)))
    labels = gaussian_filter(random.normal(size=(samples, 1, *size)), (0, 0, *(1.5 for _ in size)))
    labels = np.digitize(labels, np.quantile(labels, [0.2, 0.4, 0.6, 0.8])) + OUTSIDE
    return torch.from_numpy(data).float(), torch.from_numpy(labels.astype(np.int16))


class There:
    """Changes of batches on a device; what goes in and comes out is on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device

    def noise(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def send(self, *volumes: torch.Tensor) -> list[torch.Tensor]:
        return [volume.to(self.device) for volume in volumes]

    def targets(self, patch, given, hits, scales=None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The batch after these changes, and its labels in each resolution."""
        changes = augmentation(patch, scales)
        data, targets = changes.apply(*self.send(*given), hits, self.noise())
        return data.cpu(), [target.cpu() for target in targets]

    def applied(self, patch, given, **drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch after changes with these parameters: name=(rows, values)."""
        hits = {
            name: Hits(np.array(rows, np.int64), np.float32(values))
            for name, (rows, values) in drawn.items()
        }
        data, targets = self.targets(patch, given, hits)
        return data, targets[0]

    def points(self, patch, moves, volume, noise=None) -> torch.Tensor:
        """Where moved patches come from."""
        noise = noise or self.noise()
        return augmentation(patch)._points(np.float32(moves), *self.send(volume), noise).cpu()


@pytest.fixture
def there(device) -> There:
    return There(device)


def augmentation(patch, scales=None) -> BatchAugmentation:
    return BatchAugmentation(patch, DEFAULT, scales or [[1.0] * len(patch)])


def of_cpu(name: str, image: torch.Tensor, value: float, in_plane: bool) -> torch.Tensor:
    """One channel after the CPU's change with this parameter."""
    image = image[None].clone()
    every = {"apply_to_channel": torch.tensor([0])}
    if name == "blur":
        blur = GaussianBlurTransform((0.5, 1.0), synchronize_axes=True, benchmark=False)
        sigmas = [[value] * (image.ndim - 1)]
        changed = blur._apply_to_image(image, apply_to_channel=torch.tensor([True]), sigmas=sigmas)
    elif name == "brightness":
        changed = image * value
    elif name == "contrast":
        contrast = ContrastTransform((0.75, 1.25), True, False)
        changed = contrast._apply_to_image(image, multipliers=torch.tensor([value]), **every)
    elif name == "low_resolution":
        changed = LowResolution([0.5, 1.0], in_plane)._apply_to_image(image, {0: value})
    else:
        gamma = GammaTransform((0.7, 1.5), 0, False, 1, 1)
        changed = gamma._apply_to_image(
            image,
            retain_stats=torch.tensor([True]),
            invert_image=torch.tensor([name == "gamma_inverted"]),
            gamma=torch.tensor([value]),
            **every,
        )
    return changed[0]


def of_batchgenerators(name, image, value, in_plane, monkeypatch) -> np.ndarray:
    """One channel after batchgenerators' change, its draws being this parameter."""
    monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0, size=None: value)
    monkeypatch.setattr(np.random, "random", lambda size=None: 0.0 if value < 1 else 1.0)
    image = image.numpy()[None].astype(np.float64)
    color = color_augmentations
    if name == "blur":
        changed = noise_augmentations.augment_gaussian_blur(image, (value, value), p_per_channel=1)
    elif name == "brightness":
        changed = color.augment_brightness_multiplicative(image, (0.75, 1.25))
    elif name == "contrast":
        changed = color.augment_contrast(image, (0.75, 1.25), p_per_channel=2)
    elif name == "low_resolution":
        changed = augment_linear_downsampling_scipy(
            image,
            (0.5, 1),
            p_per_channel=2,
            order_downsample=0,
            order_upsample=3,
            ignore_axes=(0,) if in_plane else None,
        )
    else:
        inverted = name == "gamma_inverted"
        changed = color.augment_gamma(
            image, (0.7, 1.5), inverted, per_channel=True, retain_stats=True
        )
    return changed[0]


INTENSITY = [
    ("blur", (0.5, 0.76, 1.0)),
    ("brightness", (0.75, 1.2)),
    ("contrast", (0.75, 1.25)),
    ("low_resolution", (0.5, 0.63, 0.9)),
    ("gamma", (0.7, 1.5)),
    ("gamma_inverted", (0.7, 1.5)),
]


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize(("name", "values"), INTENSITY)
class TestIntensity:
    def test_is_the_cpus(self, there, name, values, patch):
        given = batch(patch)
        rows = [1, 2, 5][: len(values)]
        data, labels = there.applied(patch, given, **{name: (rows, values)})
        for row, (before, after) in enumerate(
            zip(given[0].flatten(0, 1), data.flatten(0, 1), strict=True)
        ):
            if row in rows:
                expected = of_cpu(name, before, values[rows.index(row)], patch == PATCHES[1])
                assert after.numpy() == pytest.approx(expected.numpy(), abs=2e-5)
                assert not torch.allclose(after, before, atol=0.01)
            else:
                assert torch.equal(after, before)
        assert torch.equal(labels, given[1].clamp_min(0))

    def test_is_batchgenerators(self, there, name, values, patch, monkeypatch):
        given = batch(patch, 1, 1)
        for value in values:
            data, _ = there.applied(patch, given, **{name: ([0], [value])})
            with monkeypatch.context() as patched:
                expected = of_batchgenerators(
                    name, given[0][0, 0], value, patch == PATCHES[1], patched
                )
            found = data[0, 0].numpy()
            if name == "blur":  # another border, and a filter cut at 3 instead of 4 sigma
                inner = tuple(slice(4, -4) if n > 8 else slice(1, -1) for n in patch)
                rough = 0.12 if len(patch) == 3 and patch[0] < 8 else 0.02
                assert np.std(found[inner] - expected[inner]) < rough * expected.std()
            else:
                assert found == pytest.approx(expected, abs=2e-4)


class TestNoise:
    def test_of_each_sample(self, there):
        given = batch((64, 64), 3, 2)
        data, _ = there.applied((64, 64), given, noise=([0, 2], [0.1, 0.5]))
        change = (data - given[0]).numpy()
        assert not change[1].any()
        for sample, deviation in ((0, 0.1), (2, 0.5)):
            assert change[sample].std() == pytest.approx(deviation, rel=0.05)
            assert kstest(change[sample].ravel() / deviation, "norm").pvalue > 1e-3
        together = np.corrcoef(change[[0, 0, 2, 2], [0, 1, 0, 1]].reshape(4, -1))
        assert abs(together - np.eye(4)).max() < 0.06


MOVES = [
    (0.0, 1.0, 0.0, 1.3),
    (0.0, 1.0, 0.9, 1.0),
    (0.0, 1.0, -2.5, 0.75),
    (60.0, 4.0, 0.0, 1.0),
    (200.0, 6.0, 2.0, 1.2),
]


class TestSpatial:
    @pytest.mark.parametrize("patch", PATCHES)
    @pytest.mark.parametrize("move", MOVES)
    def test_is_the_cpus(self, there, patch, move):
        """The CPU's interpolation at the points where the batch looks."""
        size = initial_patch_size(patch, DEFAULT)
        given = batch(size)
        data, labels = there.applied(patch, given, spatial=([0, 2], [move, move]))
        points = there.points(patch, [move, move], given[0])
        middle = torch.tensor(size[-points.shape[1] :]) / 2 - 0.5
        points -= middle.view(-1, *(1 for _ in range(points.shape[1])))
        spatial = Spatial(patch, DEFAULT)
        for row, sample in enumerate((0, 2)):
            own = points[row].numpy()
            expected = spatial._apply_to_image(given[0][sample], points=own)
            assert data[sample].numpy() == pytest.approx(expected.numpy(), abs=2e-3)
            expected = spatial._apply_to_segmentation(given[1][sample], points=own)
            differs = labels[sample] != expected.clamp_min(0)
            assert differs.float().mean() < 2e-3
        untouched = spatial._apply_to_image(given[0][1], points=None)
        assert torch.equal(data[1], untouched)

    @pytest.mark.parametrize(("angle", "factor"), [(0.7, 1.0), (0.0, 0.8), (-2.0, 1.3)])
    def test_is_batchgenerators(self, there, angle, factor, monkeypatch):
        monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0, size=None: low)
        monkeypatch.setattr(np.random, "random", lambda size=None: 0.0)
        patch = (40, 36)
        size = initial_patch_size(patch, DEFAULT)
        data, labels = batch(size, 1, 1)
        found = there.applied(patch, (data, labels), spatial=([0], [[0, 1, angle, factor]]))
        expected = augment_spatial(
            data.double().numpy(),
            labels.double().numpy(),
            patch,
            do_elastic_deform=False,
            angle_x=(-angle, -angle),  # it turns the other way, and as often
            scale=(factor, factor),
            border_mode_data="constant",
            order_data=3,
            border_cval_seg=-1,
            order_seg=1,
            random_crop=False,
        )
        points = there.points(patch, [[0, 1, angle, factor]], data)
        inside = ((points > 1) & (points < size[0] - 2)).all(1)[0].numpy()
        assert inside.mean() > 0.7
        assert found[0][0, 0].numpy()[inside] == pytest.approx(expected[0][0, 0][inside], abs=1e-3)
        agree = found[1][0, 0].numpy() == expected[1][0, 0].clip(0)
        assert agree[inside].mean() > 0.999

    def test_elastic_deformation_is_batchgenerators(self, there):
        patch, found, expected = (48, 64), [], []
        fields = 80
        generator = there.noise()
        volume = torch.zeros(1, 1, *patch)
        still = there.points(patch, [[0, 1, 0, 1]], volume, generator)
        np.random.seed(0)
        for _ in range(fields):
            points = there.points(patch, [[200, 9, 0, 1]], volume, generator)
            found.append((points - still)[0].numpy())
            mesh = create_zero_centered_coordinate_mesh(patch)
            expected.append(elastic_deform_coordinates(mesh, 200.0, 9.0) - mesh)
        assert np.std(found) == pytest.approx(np.std(expected), rel=0.1)
        for axis in (-1, -2):
            steps = [np.std(np.diff(field, axis=axis)) for field in (found, expected)]
            assert steps[0] == pytest.approx(steps[1], rel=0.1)
        between = np.corrcoef([field[0].ravel() for field in found])
        assert abs(between[np.triu_indices(fields, 1)]).mean() < 0.35  # no field comes twice

    def test_each_row_has_its_own_move(self, there):
        patch = (24, 20)
        given = batch(initial_patch_size(patch, DEFAULT))
        together, _ = there.applied(patch, given, spatial=([0, 1], [MOVES[0], MOVES[2]]))
        for row, move in ((0, MOVES[0]), (1, MOVES[2])):
            alone, _ = there.applied(patch, given, spatial=([row], [move]))
            assert torch.allclose(together[row], alone[row], atol=2e-4)

    @pytest.mark.parametrize("sigma", [1.0, 4.0, 9.3])
    def test_smoothing_is_scipys(self, there, sigma):
        field = np.random.default_rng(0).uniform(-1, 1, (1, 7, 30))
        matrix = smoothing(np.array([sigma]), 30, there.device)
        found = along(matrix, *there.send(torch.from_numpy(field).float()), 2)[0].cpu()
        expected = gaussian_filter(field[0], (0, sigma), mode="constant")
        assert found.numpy() == pytest.approx(expected, abs=1e-6)

    def test_cubic_is_scipys(self, there):
        random = np.random.default_rng(0)
        slices = random.normal(size=(1, 3, 9, 13))
        points = random.uniform(0, 1, (1, 2, 20, 25)) * np.reshape([8, 12], (1, 2, 1, 1))
        found = cubic(*there.send(torch.tensor(slices).float(), torch.tensor(points).float())).cpu()
        for one, values in zip(slices[0], found[0].numpy(), strict=True):
            expected = map_coordinates(one, points[0], order=3, mode="mirror")
            assert values == pytest.approx(expected, abs=1e-4)
        edge = torch.tensor([[-0.6, -0.4, 8.4, 8.6, 4, 4, 4], [4, 4, 4, 4, -0.6, 12.4, 12.6]])
        seen = cubic(*there.send(torch.ones(1, 1, 9, 13), edge.view(1, 2, 1, 7)))[0, 0, 0]
        assert seen.tolist() == pytest.approx([0, 1, 1, 0, 0, 1, 0], abs=1e-5)

    def test_cardinal_spline(self, there):
        at_samples = cardinal_spline(torch.arange(-5.0, 6.0, device=there.device))
        assert at_samples.tolist() == pytest.approx([0] * 5 + [1] + [0] * 5, abs=1e-6)
        one = np.eye(41)[20]
        places = np.linspace(16.1, 24.3, 50)
        found = cardinal_spline(torch.from_numpy(places).to(there.device) - 20).cpu()
        assert found.numpy() == pytest.approx(map_coordinates(one, [places], order=3), abs=1e-6)

    def test_most_of(self, there):
        """By hand: shares add up over corners of the same label; ties go to the lowest."""
        labels = torch.tensor([[5, 7], [7, 2]], dtype=torch.int16).view(1, 1, 2, 2)
        points = torch.tensor([[0.4, 0.4], [0.5, 0.5], [0.0, 0.5], [0.9, 0.95], [-0.5, 0.0]]).T
        found = most_of(*there.send(labels, points.reshape(1, 2, 5, 1)))
        assert found.dtype == torch.int16
        # 0.36 of 5, 0.48 of 7; then 7 again; a tie of 5 and 7; mostly 2; a tie with the outside.
        assert found.ravel().tolist() == [7, 7, 5, 2, OUTSIDE]
        far = torch.full((1, 2, 1, 1), 1e4)
        assert most_of(*there.send(labels, far)).item() == OUTSIDE
        assert most_of(*there.send(labels, -far)).item() == OUTSIDE


class TestOrder:
    @pytest.mark.parametrize("patch", PATCHES)
    def test_all_changes_in_the_cpus_order(self, there, patch):
        given = batch(initial_patch_size(patch, DEFAULT), 2, 1)
        move = (0.0, 1.0, 0.9, 1.2)
        values = {name: parameters[-1] for name, parameters in INTENSITY}
        drawn = {name: ([1], [value]) for name, value in values.items()}
        data, labels = there.applied(
            patch, given, spatial=([1], [move]), mirror_1=([1], np.empty(0)), **drawn
        )
        moved, moved_labels = there.applied(patch, given, spatial=([1], [move]))
        expected = moved[1, 0]
        for name in values:
            if name not in ("gamma", "gamma_inverted"):
                expected = of_cpu(name, expected, values[name], patch == PATCHES[1])
        for name in ("gamma_inverted", "gamma"):
            expected = of_cpu(name, expected, values[name], False)
        assert data[1, 0].numpy() == pytest.approx(expected.flip(1).numpy(), abs=1e-4)
        assert torch.equal(labels[1, 0], moved_labels[1, 0].flip(1))

    def test_mirroring(self, there):
        given = batch((6, 8))
        for axis in (0, 1):
            data, labels = there.applied((6, 8), given, **{f"mirror_{axis}": ([0, 2], np.empty(0))})
            for found, before in ((data, given[0]), (labels, given[1].clamp_min(0))):
                assert torch.equal(found[[0, 2]], before[[0, 2]].flip(axis + 2))
                assert torch.equal(found[1], before[1])

    @pytest.mark.parametrize("patch", [(17, 20), (4, 24, 20)])
    def test_targets_are_the_cpus(self, there, patch):
        scales = [[1.0] * len(patch), [0.5] * len(patch), [0.25] * len(patch)]
        scales = [
            [-(-n * s // 1) / n for n, s in zip(patch, scale, strict=True)] for scale in scales
        ]
        given = batch(patch)
        _, targets = there.targets(patch, given, {}, scales)
        for sample in range(3):
            expected = validation_transforms(scales)(
                image=given[0][sample].clone(), segmentation=given[1][sample].clone()
            )["segmentation"]
            for target, one in zip(targets, expected, strict=True):
                assert target.dtype == torch.int16
                assert torch.equal(target[sample], one)


class TestRepeatable:
    def everything(self, patch):
        a = DEFAULT | {name: 0.6 for name in DEFAULT if name.startswith("p_")}
        return BatchAugmentation(patch, a, [[1.0] * len(patch), [0.5] * len(patch)])

    @pytest.mark.parametrize("patch", [(24, 20), (4, 24, 20), (12, 16, 16)])
    def test_follows_from_the_key(self, there, patch):
        changes = self.everything(patch)
        given = there.send(*batch(initial_patch_size(patch, DEFAULT), 4, 1))
        before = [volume.clone() for volume in given]
        torch.manual_seed(0)
        np.random.seed(0)
        first = [changes(*given, (7, 0, number)) for number in range(3)]
        np.random.seed(1)
        torch.manual_seed(1)
        again = self.everything(patch)(*given, (7, 0, 2))
        assert torch.equal(again[0], first[2][0])
        assert all(map(torch.equal, again[1], first[2][1]))
        assert not torch.equal(first[0][0], first[1][0])
        other = changes(*given, (8, 0, 2))
        assert not torch.equal(other[0], again[0])
        assert all(map(torch.equal, given, before))
        assert again[0].shape == (4, 1, *patch)
        assert again[0].isfinite().all()
        assert again[1][0].min() >= 0

    def test_leaves_global_random_numbers_alone(self, there):
        given = there.send(*batch(initial_patch_size((24, 20), DEFAULT), 4, 1))
        torch.manual_seed(0)
        np.random.seed(0)
        expected = torch.rand(1), np.random.rand()
        torch.manual_seed(0)
        np.random.seed(0)
        self.everything((24, 20))(*given, (0, 0, 0))
        assert (torch.rand(1), np.random.rand()) == expected
