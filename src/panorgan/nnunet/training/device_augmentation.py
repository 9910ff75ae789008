"""The random changes of `augmentation`, on whole batches where the network is.

Distributions, order and borders are the same, numbers differ in rounding. Each sample draws for
itself whether a change hits it and how much; only those hit are computed. What is drawn is known on
the CPU, so nothing waits for the device; only fields of noise are drawn there. All of it follows
from the batch's key.

Filters along an axis are products with a matrix, since patches are small: it takes any border rule,
and each sample its own filter in one operation.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from math import pi, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate, pad

from panorgan.nnunet.training.augmentation import OUTSIDE, acts_in_plane, draw_factor

POLE = sqrt(3) - 2
"""Of the recursive filter that turns samples into coefficients of cubic B-splines."""

REACH = 14
"""Samples farther away weigh less than 1e-7 in a cubic spline."""


class Hits(NamedTuple):
    """Which rows of a batch a change hits, and its parameters there.

    Attributes
    ----------
    rows : (n,) int64 array
        Samples, or for changes of single channels sample * channels + channel.
    values : (n, ...) float32 array
    """

    rows: np.ndarray
    values: np.ndarray


def draw(
    random: np.random.Generator, samples: int, channels: int, augmentation: Mapping[str, Any]
) -> dict[str, Hits]:
    """Draw all parameters of a batch.

    Returns
    -------
    dict
        By the change's name. The values of ``spatial`` are columns: elastic alpha (0: none) and
        sigma, angle in radians (0: none), factor (1: none); of ``mirror_AXIS`` there are none.
    """
    a = augmentation

    def hits(p: float, p_channel: float, parameter: Callable[[], float]) -> Hits:
        hit = (random.random((samples, 1)) < p) & (random.random((samples, channels)) < p_channel)
        rows = np.flatnonzero(hit)
        return Hits(rows, np.array([parameter() for _ in rows], np.float32))

    def within(name: str) -> Callable[[], float]:
        return lambda: random.uniform(*a[name])

    def factor(name: str) -> Callable[[], float]:
        return lambda: draw_factor(*a[name], random=random)

    moves = np.tile(np.float32([0, 1, 0, 1]), (samples, 1))
    for move in moves:
        if random.uniform() < a["p_elastic"]:
            move[:2] = random.uniform(*a["elastic_alpha"]), random.uniform(*a["elastic_sigma"])
        if random.uniform() < a["p_rotation"]:
            move[2] = random.uniform(-1, 1) * a["rotation_degrees"] / 180 * pi
        if random.uniform() < a["p_scaling"]:
            move[3] = draw_factor(*a["scaling"], random=random)
    moved = np.flatnonzero((moves != np.float32([0, 1, 0, 1])).any(axis=1))
    noisy = np.flatnonzero(random.random(samples) < a["p_noise"])
    return {
        "spatial": Hits(moved, moves[moved]),
        "noise": Hits(noisy, random.uniform(*a["noise_variance"], len(noisy)).astype(np.float32)),
        "blur": hits(a["p_blur"], 0.5, within("blur_sigma")),
        "brightness": hits(a["p_brightness"], 1, factor("brightness")),
        "contrast": hits(a["p_contrast"], 1, factor("contrast")),
        "low_resolution": hits(a["p_low_resolution"], 0.5, within("low_resolution")),
        "gamma_inverted": hits(a["p_gamma_inverted"], 1, factor("gamma")),
        "gamma": hits(a["p_gamma"], 1, factor("gamma")),
    } | {
        f"mirror_{axis}": Hits(np.flatnonzero(random.random(samples) < 0.5), np.empty(0))
        for axis in a["mirror_axes"]
    }


class BatchAugmentation:
    """All changes of training batches.

    Parameters
    ----------
    patch_size, augmentation, scales
        As for `panorgan.nnunet.training.augmentation.training_transforms`.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        augmentation: Mapping[str, Any],
        scales: Sequence[Sequence[float]],
    ):
        self.patch_size = tuple(patch_size)
        self.augmentation = augmentation
        self.scales = scales
        self.in_plane = acts_in_plane(patch_size)

    def __call__(
        self, data: torch.Tensor, segmentation: torch.Tensor, key: Sequence[int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Change a batch.

        Parameters
        ----------
        data
            (batch, channels, *size) float32, of `initial_patch_size`; stays as it is.
        segmentation
            (batch, 1, *size) integers on the same device, `OUTSIDE` beyond the volume's border.
        key
            Integers that name the batch.

        Returns
        -------
        data : (batch, channels, *patch_size) float32 tensor
        targets : list of (batch, 1, *size) tensors
            For each of the scales; `OUTSIDE` has become 0.
        """
        random = np.random.default_rng([part % 2**32 for part in key])
        noise = torch.Generator(data.device).manual_seed(int(random.integers(2**62)))
        drawn = draw(random, *data.shape[:2], self.augmentation)
        return self.apply(data, segmentation, drawn, noise)

    @torch.no_grad()
    def apply(
        self,
        data: torch.Tensor,
        segmentation: torch.Tensor,
        drawn: Mapping[str, Hits],
        noise: torch.Generator,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Change a batch as `draw` says, fields of noise coming from a generator of its device."""

        def change(name: str, volume: torch.Tensor, function: Callable[..., torch.Tensor]) -> None:
            if name in drawn and len(drawn[name].rows):
                rows, values = (_send(part, volume.device) for part in drawn[name])
                volume.index_copy_(0, rows, function(volume[rows], values))

        given = data, segmentation
        data, segmentation = (_cut(volume, self.patch_size) for volume in given)
        if "spatial" in drawn and len(drawn["spatial"].rows):
            rows = _send(drawn["spatial"].rows, data.device)
            points = self._points(drawn["spatial"].values, given[0], noise)
            data.index_copy_(0, rows, self._moved(given[0][rows], points, self._sample))
            segmentation.index_copy_(0, rows, self._moved(given[1][rows], points, most_of))
        change("noise", data, lambda volume, sd: add_noise(volume, sd, noise))
        images = data.flatten(0, 1)
        change("blur", images, blur)
        change("brightness", images, lambda volume, factor: volume * _like(factor, volume))
        change("contrast", images, change_contrast)
        first = 1 if self.in_plane else 0
        change("low_resolution", images, lambda volume, zoom: lower_resolution(volume, zoom, first))
        change("gamma_inverted", images, lambda volume, gamma: -change_gamma(-volume, gamma))
        change("gamma", images, change_gamma)
        for axis in range(len(self.patch_size)):
            for volume in (data, segmentation):
                change(f"mirror_{axis}", volume, lambda part, _, axis=axis: part.flip(axis + 2))
        return data, deep_supervision_targets(segmentation, self.scales)

    def _points(
        self, moves: np.ndarray, volume: torch.Tensor, noise: torch.Generator
    ) -> torch.Tensor:
        """Where in a volume the patches' voxels come from: (rows, axes, *size) in voxels."""
        device, size = volume.device, self.patch_size[self.in_plane :]
        centred = [torch.arange(n, device=device) - (n - 1) / 2 for n in size]
        points = torch.stack(torch.meshgrid(*centred, indexing="ij"))
        points = points.expand(len(moves), *points.shape).contiguous()
        alpha, sigma, angle, factor = moves.T
        if len(elastic := np.flatnonzero(alpha)):
            field = torch.empty(len(elastic), *points.shape[1:], device=device)
            field.uniform_(-1, 1, generator=noise)
            for axis, n in enumerate(size, start=2):
                field = along(smoothing(sigma[elastic], n, device), field, axis)
            field *= _like(_send(alpha[elastic], device), field)
            points.index_add_(0, _send(elastic, device), field)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        plane = points[:, -2:].flatten(2)
        plane = _send(np.moveaxis(turn, -1, 0), device) @ plane
        points[:, -2:] = plane.view_as(points[:, -2:])
        points *= _like(_send(factor, device), points)
        for axis, n in enumerate(volume.shape[-len(size) :]):
            points[:, axis] += (n - 1) / 2
        return points

    def _sample(self, slices: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return (cubic if points.shape[1] == 2 else linear)(slices, points)

    def _moved(
        self, volume: torch.Tensor, points: torch.Tensor, sample: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        slices = volume.flatten(1, -points.shape[1] - 1)
        return sample(slices, points).view(*volume.shape[:2], *self.patch_size)


def _send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device, without waiting for it. Floats become float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.is_floating_point():
        tensor = tensor.float()
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _like(values: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    """A value for each row, with as many axes as a volume."""
    return values.view(-1, *(1 for _ in volume.shape[1:]))


def _cut(volume: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A copy of the middle."""
    for axis, n in enumerate(size, start=2):
        volume = volume.narrow(axis, (volume.shape[axis] - n) // 2, n)
    return volume.clone(memory_format=torch.contiguous_format)


def along(matrix: torch.Tensor, volume: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiply an axis of a volume by a matrix: (n, m), or (rows, n, m) with one for each row."""
    moved = volume.movedim(axis, -1)
    result = moved.flatten(1, -2) @ matrix.mT
    return result.unflatten(1, moved.shape[1:-1]).movedim(-1, axis)


def smoothing(sigma: np.ndarray, n: int, device: torch.device) -> torch.Tensor:
    """(rows, n, n) Gaussian filters, zeros outside, cut where `scipy.ndimage` does."""
    radius = np.floor(4 * sigma + 0.5)
    distance = np.arange(-radius.max(initial=0), radius.max(initial=0) + 1)
    weights = np.exp(-((distance / sigma[:, None]) ** 2) / 2)
    total = (weights * (abs(distance) <= radius[:, None])).sum(axis=1)
    sigma, radius, total = (_send(part, device)[:, None, None] for part in (sigma, radius, total))
    place = torch.arange(n, device=device)
    distance = (place[:, None] - place).abs()
    return torch.exp(-((distance / sigma) ** 2) / 2) * (distance <= radius) / total


@cache
def spline_prefilter(n: int, device: torch.device) -> torch.Tensor:
    """(n, n) matrix that turns samples into coefficients of cubic B-splines.

    The inverse of taking samples, with coefficients mirrored at the outermost samples.
    """
    samples = np.diag(np.full(n, 4 / 6)) + np.diag(np.full(n - 1, 1 / 6), 1)
    samples += np.diag(np.full(n - 1, 1 / 6), -1)
    samples[0, 1] *= 2
    samples[-1, -2] *= 2
    return _send(np.linalg.inv(samples), device)


def cubic(slices: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Cubic splines through slices, 0 where more than half a voxel outside.

    The 16 coefficients around a point are read by 4 linear interpolations between their weights'
    centres of mass (Ruijters and Thévenaz, The Computer Journal 55(1), 2012).

    Parameters
    ----------
    slices
        (rows, slices, y, x) float32, mirrored at their outermost voxels' centres.
    points
        (rows, 2, *size) positions (y, x) in voxels.

    Returns
    -------
    (rows, slices, *size) float32 tensor
    """
    size = slices.shape[2:]
    for axis, n in enumerate(size, start=2):
        slices = along(spline_prefilter(n, slices.device), slices, axis)
    pairs, inside = [], torch.ones_like(points[:, 0], dtype=torch.bool)
    for position, n in zip(points.unbind(1), size, strict=True):
        inside &= (position >= -0.5) & (position <= n - 0.5)
        before = position.floor()
        part = position - before
        second, third, fourth = (b_spline(d) for d in (part, 1 - part, 2 - part))
        right = third + fourth
        centres = before - 1 + second / (1 - right), before + 1 + fourth / right
        centres = (centre * (2 / max(1, n - 1)) - 1 for centre in centres)
        pairs.append(tuple(zip(centres, (1 - right, right), strict=True)))
    result = torch.zeros((), device=slices.device)
    for (y, weight_y), (x, weight_x) in product(*pairs):
        grid = torch.stack((x, y), dim=-1)
        read = grid_sample(slices, grid, padding_mode="reflection", align_corners=True)
        result = torch.addcmul(result, read, (weight_y * weight_x * inside)[:, None])
    return result


def b_spline(distance: torch.Tensor) -> torch.Tensor:
    """Weight of a cubic B-spline's coefficient at a distance in voxels."""
    d = distance.abs()
    return torch.where(d < 1, 2 / 3 - d**2 * (1 - d / 2), (2 - d).clamp_min(0) ** 3 / 6)


def linear(volume: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Linear interpolation, 0 outside.

    Parameters
    ----------
    volume
        (rows, channels, z, y, x) float32.
    points
        (rows, 3, *size) positions (z, y, x) in voxels.
    """
    scale = [2 / n for n in volume.shape[2:]]
    grid = [(p + 0.5) * s - 1 for p, s in zip(points.unbind(1), scale, strict=True)]
    return grid_sample(volume, torch.stack(grid[::-1], dim=-1), align_corners=False)


def most_of(labels: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The label with the largest linearly interpolated share of a point, in a tie the lowest.

    Parameters
    ----------
    labels
        (rows, slices, *size) integers; what lies beyond counts as `OUTSIDE`, the lowest.
    points
        (rows, axes, *size) positions in voxels; rows and axes as those of the labels.

    Returns
    -------
    (rows, slices, *size) tensor of labels' type
    """
    axes = points.shape[1]
    size = [n + 2 for n in labels.shape[2:]]
    flat = pad(labels, (1, 1) * axes, value=OUTSIDE).flatten(2)
    before = points.floor()
    part = (points - before).flatten(2)
    before = before.flatten(2).long() + 1
    corners = []
    for corner in product((0, 1), repeat=axes):
        index, weight = torch.zeros_like(before[:, 0]), torch.ones_like(part[:, 0])
        for axis, upper in enumerate(corner):
            index = index * size[axis] + (before[:, axis] + upper).clamp(0, size[axis] - 1)
            weight = weight * (part[:, axis] if upper else 1 - part[:, axis])
        label = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
        corners.append((label, weight[:, None]))
    shares = [weight for _, weight in corners]
    for i, j in combinations(range(len(corners)), 2):
        same = corners[i][0] == corners[j][0]
        shares[i] = shares[i] + same * corners[j][1]
        shares[j] = shares[j] + same * corners[i][1]
    best, result = shares[0], corners[0][0]
    for share, (label, _) in zip(shares[1:], corners[1:], strict=True):
        better = (share > best) | ((share == best) & (label < result))
        best, result = torch.where(better, share, best), torch.where(better, label, result)
    return result.view(*labels.shape[:2], *points.shape[2:])


def add_noise(
    volume: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Add Gaussian noise of a standard deviation for each row."""
    noise = torch.empty_like(volume).normal_(generator=generator)
    return torch.addcmul(volume, noise, _like(deviation, volume))


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian filters (rows,) of (rows, *size), mirrored at the outermost voxels' centres.

    Cut at 3 sigma (to the nearest odd number of weights), as batchgeneratorsv2 does.
    """
    sigma = sigma[:, None, None]
    radius = (3 * sigma + 0.25).floor()

    def weight(distance: torch.Tensor) -> torch.Tensor:
        return torch.exp(-((distance / sigma) ** 2) / 2) * (distance.abs() <= radius)

    for axis, n in enumerate(images.shape[1:], start=1):
        place = torch.arange(n, device=images.device)
        to, source = place[:, None], place
        matrix = weight(source - to)
        matrix += weight(-source - to) * (source > 0)
        matrix += weight(2 * (n - 1) - source - to) * (source < n - 1)
        images = along(matrix / matrix.sum(-1, keepdim=True), images, axis)
    return images


def change_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch (rows, *size) about their means by factors (rows,), within their ranges."""
    axes = tuple(range(1, images.ndim))
    mean = images.mean(axes, keepdim=True)
    lowest, highest = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    return ((images - mean) * _like(factor, images) + mean).clamp(lowest, highest)


def lower_resolution(images: torch.Tensor, zoom: torch.Tensor, first: int) -> torch.Tensor:
    """Down by nearest neighbours and up again by cubic splines, within the coarse image's range.

    Parameters
    ----------
    images
        (rows, *size) float32.
    zoom
        (rows,) factors.
    first
        How many of the first axes keep their resolution.
    """
    taken = torch.ones(1, dtype=torch.bool, device=images.device)
    result = images
    for axis, n in list(enumerate(images.shape[1:], start=1))[first:]:
        coarse = (n * zoom).round().clamp_min(1)[:, None]
        place = torch.arange(n, device=images.device)
        # Beyond the ends the outermost samples go on.
        sample = torch.arange(-REACH, n + REACH, device=images.device)
        centre = (place + 0.5) * coarse / n - 0.5
        upwards = cardinal_spline(centre[:, :, None] - sample)
        source = torch.minimum(sample.clamp_min(0), coarse - 1)
        source = ((source + 0.5) * (n / coarse)).floor().clamp_max(n - 1)
        downwards = source[:, :, None] == place
        result = along(upwards @ downwards.float(), result, axis)
        along_axis = [1] * images.ndim
        along_axis[0], along_axis[axis] = len(images), n
        taken = taken & downwards.any(1).view(along_axis)
    axes = tuple(range(1, images.ndim))
    lowest = images.masked_fill(~taken, torch.inf).amin(axes, keepdim=True)
    highest = images.masked_fill(~taken, -torch.inf).amax(axes, keepdim=True)
    return result.clamp(lowest, highest)


def cardinal_spline(distance: torch.Tensor) -> torch.Tensor:
    """Weight of a sample at a distance in the cubic spline through an endless row of samples."""
    whole = distance.abs().floor()
    part = distance.abs() - whole

    def filtered(steps: torch.Tensor) -> torch.Tensor:
        sign = 1 - 2 * (steps % 2)
        return sqrt(3) * sign * (-POLE) ** steps

    return (
        filtered((whole - 1).abs()) * b_spline(1 + part)
        + filtered(whole) * b_spline(part)
        + filtered(whole + 1) * b_spline(1 - part)
        + filtered(whole + 2) * b_spline(2 - part)
    )


def change_gamma(images: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Powers (rows,) of (rows, *size) between their extremes, then their old mean and deviation."""
    axes = tuple(range(1, images.ndim))
    deviation, mean = torch.std_mean(images, axes, keepdim=True)
    lowest, highest = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    span = highest - lowest
    result = ((images - lowest) / span.clamp_min(1e-7)) ** _like(gamma, images) * span
    new_deviation, new_mean = torch.std_mean(result, axes, keepdim=True)
    return (result - new_mean) * (deviation / new_deviation.clamp_min(1e-7)) + mean


def deep_supervision_targets(
    segmentation: torch.Tensor, scales: Sequence[Sequence[float]]
) -> list[torch.Tensor]:
    """Labels of each resolution by nearest neighbours, `OUTSIDE` being background.

    Parameters
    ----------
    segmentation
        (batch, 1, *size) integers.
    scales
        Sizes relative to the segmentation's.
    """
    labels = segmentation.clamp_min(0)
    full = labels.float()
    targets = []
    for scale in scales:
        size = [round(n * part) for n, part in zip(labels.shape[2:], scale, strict=True)]
        same = list(labels.shape[2:]) == size
        small = labels if same else interpolate(full, size, mode="nearest-exact").to(labels)
        targets.append(small)
    return targets
