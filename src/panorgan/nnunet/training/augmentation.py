"""Random changes of the training patches, with the values that the plan states.

The distributions are those of nnU-Net 1.7 (batchgenerators), which the method was trained with.
Where batchgeneratorsv2 has the same transform it is used; `Spatial` and `LowResolution` are ours,
because there elastic deformation has other units and interpolation is linear. Two habits of
batchgenerators are kept: factors (scaling, brightness, contrast, gamma) are below 1 in half of
the draws whatever the range, and what is called the noise's variance is its standard deviation.

All transforms take ``image`` (channel, *patch) float32 and ``segmentation`` (1, *patch) integers,
where -1 marks what lies outside the volume, and draw from the global generators of numpy and torch.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from math import pi
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter1d
from scipy.sparse import csr_array
from torch.nn.functional import grid_sample, interpolate

OUTSIDE = -1
"""Label of what a patch has beyond the volume's border."""


def acts_in_plane(patch_size: Sequence[int]) -> bool:
    """Whether a 3D patch is so flat that it is changed slice by slice ("dummy 2D")."""
    return len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISO_THRESHOLD


def initial_patch_size(patch_size: Sequence[int], augmentation: Mapping[str, Any]) -> list[int]:
    """Size of the patch to be cut out, so that a rotated one is filled except for its corners.

    nnU-Net's rule: the box around the patch turned by the largest angle (at most 90 degrees),
    enlarged by 1/0.85. Without spatial changes it is the patch itself.
    """
    if not has_spatial(augmentation):
        return list(patch_size)
    angle = augmentation["rotation_degrees"] / 180 * pi if augmentation["p_rotation"] else 0.0
    if acts_in_plane(patch_size):
        plane = get_patch_size(patch_size[1:], angle, 0, 0, (0.85, 1.25))
        return [patch_size[0], *map(int, plane)]
    return [int(size) for size in get_patch_size(patch_size, angle, 0, 0, (0.85, 1.25))]


def training_transforms(
    patch_size: Sequence[int],
    augmentation: Mapping[str, Any],
    scales: Sequence[Sequence[float]],
) -> BasicTransform:
    """All changes of a training patch, in nnU-Net's order; those of probability 0 are left out.

    Parameters
    ----------
    patch_size
        (y, x) or (z, y, x); patches come in at `initial_patch_size` and leave at this size.
    augmentation
        The recipe's section `training.augmentation`.
    scales
        Sizes of the deep-supervision targets relative to the patch, full resolution first.
    """
    a = augmentation
    whole_channel = {"synchronize_channels": False, "p_per_channel": 1}
    brightness, contrast, gamma = (
        partial(draw_factor, *a[key]) for key in ("brightness", "contrast", "gamma")
    )
    # The blur must not choose its implementation by timing: that choice changes the last bits.
    blur = GaussianBlurTransform(
        tuple(a["blur_sigma"]), synchronize_axes=True, p_per_channel=0.5, benchmark=False
    )
    sometimes = [
        (a["p_noise"], GaussianNoiseTransform(tuple(a["noise_variance"]), 1, True)),
        (a["p_blur"], blur),
        (a["p_brightness"], MultiplicativeBrightnessTransform(brightness, **whole_channel)),
        (a["p_contrast"], ContrastTransform(contrast, preserve_range=True, **whole_channel)),
        (a["p_low_resolution"], LowResolution(a["low_resolution"], acts_in_plane(patch_size))),
        (a["p_gamma_inverted"], GammaTransform(gamma, 1, p_retain_stats=1, **whole_channel)),
        (a["p_gamma"], GammaTransform(gamma, 0, p_retain_stats=1, **whole_channel)),
    ]
    transforms: list[BasicTransform] = [Spatial(patch_size, a)] if has_spatial(a) else []
    transforms += [RandomTransform(transform, p) for p, transform in sometimes if p > 0]
    if a["mirror_axes"]:
        transforms.append(MirrorTransform(tuple(a["mirror_axes"])))
    return ComposeTransforms([*transforms, *_targets(scales)])


def validation_transforms(scales: Sequence[Sequence[float]]) -> BasicTransform:
    """What a validation patch needs: nothing random, targets for deep supervision."""
    return ComposeTransforms(_targets(scales))


def _targets(scales: Sequence[Sequence[float]]) -> list[BasicTransform]:
    return [RemoveLabelTransform(OUTSIDE, 0), DownsampleSegForDSTransform(scales)]


def has_spatial(augmentation: Mapping[str, Any]) -> bool:
    """Whether anything moves voxels but mirroring."""
    return any(augmentation[p] > 0 for p in ("p_rotation", "p_scaling", "p_elastic"))


def draw_factor(low: float, high: float, random: Any = np.random, **_: Any) -> float:
    """A factor from a range: below and above 1 equally often, evenly on either side.

    `random` is what draws: numpy's global generator or one of its own.
    """
    if low < 1 < high:
        low, high = (low, 1) if random.uniform() < 0.5 else (1, high)
    return random.uniform(low, high)


class Spatial(BasicTransform):
    """Elastic deformation, rotation and scaling in one resampling, then the cut to the patch size.

    As batchgenerators' `augment_spatial`: the displacement of each axis is noise from -1 to 1,
    smoothed by a Gaussian of `elastic_sigma` voxels (zeros outside), times `elastic_alpha`;
    rotation is about the axis through the slices; one factor scales all axes. A flat 3D patch is
    changed in plane, every slice alike. Images are interpolated by cubic splines, in 3D linearly
    (there batchgenerators' splines cost a second a patch); a voxel's label is the one with the
    largest linearly interpolated share.

    Parameters
    ----------
    patch_size
        Size of what comes out: (y, x) or (z, y, x).
    augmentation
        The recipe's section `training.augmentation`.
    """

    def __init__(self, patch_size: Sequence[int], augmentation: Mapping[str, Any]):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.augmentation = augmentation
        self.in_plane = acts_in_plane(patch_size)
        self.size = self.patch_size[1:] if self.in_plane else self.patch_size
        axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in self.size]
        self.centred = np.stack(np.meshgrid(*axes, indexing="ij"))

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        a = self.augmentation
        points = None
        if np.random.uniform() < a["p_elastic"]:
            alpha = np.random.uniform(*a["elastic_alpha"])
            sigma = np.random.uniform(*a["elastic_sigma"])
            points = self.centred.copy()
            for axis in points:
                noise = np.random.uniform(-1, 1, self.size)
                axis += alpha * gaussian_filter(noise, sigma, mode="constant")
        if np.random.uniform() < a["p_rotation"]:
            points = self.centred.copy() if points is None else points
            angle = np.random.uniform(-1, 1) * a["rotation_degrees"] / 180 * pi
            turn = np.float32([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            points[-2:] = np.tensordot(turn, points[-2:], 1)
        if np.random.uniform() < a["p_scaling"]:
            points = self.centred.copy() if points is None else points
            points *= draw_factor(*a["scaling"])
        return {"points": points}

    def _apply_to_image(self, img: torch.Tensor, points: np.ndarray | None) -> torch.Tensor:
        if points is None:
            return self._cut(img)
        if len(self.size) == 3:
            return self._linear(img, self._grid(points, img.shape))
        slices = img.flatten(0, -3).numpy()
        for axis in (1, 2):
            slices = spline_filter1d(slices, 3, axis, output=np.float32, mode="mirror")
        size = slices.shape[1:]
        middle = (np.float32(size) - 1) / 2
        matrix = spline_matrix(points.reshape(2, -1) + middle[:, None], size)
        values = matrix @ slices.reshape(len(slices), -1).T
        values = np.ascontiguousarray(values.T).reshape(img.shape[0], *self.patch_size)
        return torch.from_numpy(values)

    def _apply_to_segmentation(
        self, segmentation: torch.Tensor, points: np.ndarray | None
    ) -> torch.Tensor:
        if points is None:
            return self._cut(segmentation)
        grid = self._grid(points, segmentation.shape)
        best = 1 - self._linear((segmentation != OUTSIDE).float(), grid)
        result = torch.full_like(best, OUTSIDE, dtype=segmentation.dtype)
        present = np.flatnonzero(np.bincount(segmentation.numpy().ravel() - OUTSIDE)) + OUTSIDE
        for value in present[present != OUTSIDE].tolist():
            share = self._linear((segmentation == value).float(), grid)
            result[share > best] = value
            best = torch.maximum(best, share)
        return result

    def _cut(self, volume: torch.Tensor) -> torch.Tensor:
        for axis, size in enumerate(self.patch_size, start=1):
            volume = volume.narrow(axis, (volume.shape[axis] - size) // 2, size)
        return volume.contiguous()

    def _grid(self, points: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
        """Points as grid_sample wants them: (…, x y z), the volume's outer edges at -1 and 1."""
        scale = np.float32(2) / np.float32(shape[-len(self.size) :])
        grid = np.moveaxis(points, 0, -1) * scale
        return torch.from_numpy(np.ascontiguousarray(grid[..., ::-1]))

    def _linear(self, volume: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Linear interpolation of (channel, *size), 0 outside; slices count as channels."""
        flat = volume.flatten(0, 1) if self.in_plane else volume
        flat = grid_sample(flat[None], grid[None], align_corners=False)[0]
        return flat.reshape(volume.shape[0], *self.patch_size)


def spline_matrix(points: np.ndarray, size: Sequence[int]) -> csr_array:
    """What makes cubic B-spline coefficients an image at some points.

    Parameters
    ----------
    points
        (2, n) positions in voxels.
    size
        Of the image (y, x), mirrored at its outermost voxels' centres as `scipy.ndimage` does.

    Returns
    -------
    (n, y * x) float32 sparse array
        Multiplied by flattened coefficients it gives the image at the points; 0 at those more
        than half a voxel outside.
    """
    limits = np.float32(size)[:, None] - 0.5
    inside = ((points >= -0.5) & (points <= limits)).all(axis=0)
    columns = np.zeros((points.shape[1], 1), np.int32)
    weights = inside.astype(np.float32)[:, None]
    for position, n in zip(points.astype(np.float32), size, strict=True):
        taps = np.floor(position)[:, None] + np.arange(-1, 3, dtype=np.float32)
        away = np.abs(position[:, None] - taps)
        weight = np.where(away < 1, 2 / 3 - away**2 * (1 - away / 2), (2 - away) ** 3 / 6)
        index = np.clip(n - 1 - np.abs(n - 1 - np.abs(taps)), 0, n - 1).astype(np.int32)
        columns = (columns[:, :, None] * n + index[:, None, :]).reshape(len(index), -1)
        weights = (weights[:, :, None] * weight[:, None, :]).reshape(len(index), -1)
    rows = np.arange(len(columns) + 1, dtype=np.int32) * columns.shape[1]
    shape = (len(columns), int(np.prod(size)))
    return csr_array((weights.ravel().astype(np.float32), columns.ravel(), rows), shape=shape)


class LowResolution(ImageOnlyTransform):
    """A coarser scan: down by nearest neighbours, up again cubically, in half of the channels.

    As batchgenerators' `augment_linear_downsampling_scipy` with nnU-Net 1's arguments.

    Parameters
    ----------
    zoom
        Range of the factor, the same for all axes.
    in_plane
        Whether the first axis keeps its resolution.
    """

    def __init__(self, zoom: Sequence[float], in_plane: bool):
        super().__init__()
        self.zoom = tuple(zoom)
        self.in_plane = in_plane

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        channels = np.flatnonzero(np.random.uniform(size=data["image"].shape[0]) < 0.5)
        return {"zooms": {int(c): np.random.uniform(*self.zoom) for c in channels}}

    def _apply_to_image(self, img: torch.Tensor, zooms: Mapping[int, float]) -> torch.Tensor:
        for channel, zoom in zooms.items():
            size = img.shape[1:]
            coarse = [max(1, round(n * zoom)) for n in size]
            if self.in_plane:
                coarse[0] = size[0]
            volume = interpolate(img[channel][None, None], coarse, mode="nearest-exact")[0, 0]
            lowest, highest = volume.aminmax()
            for axis, n in enumerate(size):
                matrix = _upsampling(volume.shape[axis], n)
                volume = torch.tensordot(matrix, volume, ([1], [axis])).movedim(0, axis)
            img[channel] = volume.clamp(lowest, highest)
        return img


@lru_cache(maxsize=512)
def _upsampling(coarse: int, fine: int) -> torch.Tensor:
    """(fine, coarse) matrix of the cubic spline through samples of a line, nearest beyond them."""
    centres = (np.arange(fine) + 0.5) * coarse / fine - 0.5
    columns = [map_coordinates(e, [centres], order=3, mode="nearest") for e in np.eye(coarse)]
    return torch.from_numpy(np.stack(columns, axis=1)).float()
