"""Building blocks of the networks; each takes the dimension, 2 or 3, and works in both.

Tensors are (batch, channels, y, x) or (batch, channels, z, y, x).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Ops:
    """The layer classes of one dimension."""

    conv: type[nn.Module]
    transposed_conv: type[nn.Module]
    instance_norm: type[nn.Module]
    batch_norm: type[nn.Module]
    max_pool: type[nn.Module]
    dropout: type[nn.Module]
    interpolation: str


OPS = {
    2: Ops(
        conv=nn.Conv2d,
        transposed_conv=nn.ConvTranspose2d,
        instance_norm=nn.InstanceNorm2d,
        batch_norm=nn.BatchNorm2d,
        max_pool=nn.MaxPool2d,
        dropout=nn.Dropout2d,
        interpolation="bilinear",
    ),
    3: Ops(
        conv=nn.Conv3d,
        transposed_conv=nn.ConvTranspose3d,
        instance_norm=nn.InstanceNorm3d,
        batch_norm=nn.BatchNorm3d,
        max_pool=nn.MaxPool3d,
        dropout=nn.Dropout3d,
        interpolation="trilinear",
    ),
}


def same_padding(kernel: Sequence[int]) -> tuple[int, ...]:
    """Padding with which a convolution of odd kernel and stride s gives ceil(size / s)."""
    return tuple(size // 2 for size in kernel)


def crop_to(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Drop what `x` has beyond the spatial size of `reference`, at each axis' end.

    A level of odd size n is halved to ceil(n / 2), and doubling that gives one voxel too many.
    Strided and transposed convolutions both put voxel 0 first, so the surplus is at the end.
    """
    return x[(..., *(slice(size) for size in reference.shape[2:]))]


class ConvBlock(nn.Module):
    """Convolution (with bias), instance norm, leaky ReLU: nnU-Net's unit."""

    def __init__(
        self, dim: int, in_channels: int, out_channels: int, kernel: Sequence[int], stride
    ):
        super().__init__()
        ops = OPS[dim]
        self.conv = ops.conv(
            in_channels, out_channels, tuple(kernel), stride, padding=same_padding(kernel)
        )
        self.norm = ops.instance_norm(out_channels, eps=1e-5, affine=True)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.conv(x)))


def conv_blocks(
    dim: int, in_channels: int, out_channels: int, kernel: Sequence[int], count: int, stride=1
) -> nn.Sequential:
    """`count` blocks one after the other; the first has the stride and changes the channels."""
    first = ConvBlock(dim, in_channels, out_channels, kernel, stride)
    others = (ConvBlock(dim, out_channels, out_channels, kernel, 1) for _ in range(count - 1))
    return nn.Sequential(first, *others)


class NonLocal(nn.Module):
    """Every position attends to all positions, embedded Gaussian (Wang et al., CVPR 2018).

    y_i = sum_j softmax_j(theta(x)_i . phi(x)_j) g(x)_j, then x + BN(W y), where phi and g are
    max-pooled by 2. The batch norm's scale and shift start at zero, so that the block starts as
    the identity. Needs memory for positions² / 2^dim weights a sample.

    The products and the soft-max are float32 under autocast too: they are not scaled by the number
    of channels, and their exponentials leave bfloat16 with two or three digits.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        ops = OPS[dim]
        inner = max(1, channels // 4)
        self.theta = ops.conv(channels, inner, 1)
        self.phi = ops.conv(channels, inner, 1)
        self.g = ops.conv(channels, inner, 1)
        self.out = ops.conv(inner, channels, 1)
        self.norm = ops.batch_norm(channels)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)
        self.pool = ops.max_pool(2, ceil_mode=True)  # odd sizes lose no position, size 1 stays

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.theta(x).flatten(2)
        key = self.pool(self.phi(x)).flatten(2)
        value = self.pool(self.g(x)).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            weights = torch.softmax(query.float().transpose(1, 2) @ key.float(), dim=-1)
            mixed = value.float() @ weights.transpose(1, 2)
        mixed = mixed.to(value.dtype).unflatten(2, x.shape[2:])
        return x + self.norm(self.out(mixed))


class AdditiveGate(nn.Module):
    """Weighs each position of a skip connection by what the coarser stage has found there.

    BN(W(skip * sigmoid(psi(relu(theta(skip) + resize(phi(gating))))))), after Oktay et al., 2018;
    as many inner channels as the skip has.
    """

    def __init__(self, dim: int, skip_channels: int, gating_channels: int):
        super().__init__()
        ops = OPS[dim]
        self.theta = ops.conv(skip_channels, skip_channels, 1)
        self.phi = ops.conv(gating_channels, skip_channels, 1)
        self.psi = ops.conv(skip_channels, 1, 1)
        self.out = ops.conv(skip_channels, skip_channels, 1)
        self.norm = ops.batch_norm(skip_channels)
        self.interpolation = ops.interpolation

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        gating = F.interpolate(
            self.phi(gating), skip.shape[2:], mode=self.interpolation, align_corners=False
        )
        weights = torch.sigmoid(self.psi(F.relu(self.theta(skip) + gating)))
        return self.norm(self.out(skip * weights))


class DualGate(nn.Module):
    """Two parallel additive gates, combined by a 1x1 convolution, batch norm and ReLU (CA-Net)."""

    def __init__(self, dim: int, skip_channels: int, gating_channels: int):
        super().__init__()
        ops = OPS[dim]
        self.gates = nn.ModuleList(
            AdditiveGate(dim, skip_channels, gating_channels) for _ in range(2)
        )
        self.combine = ops.conv(2 * skip_channels, skip_channels, 1)
        self.norm = ops.batch_norm(skip_channels)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        gated = torch.cat([gate(skip, gating) for gate in self.gates], dim=1)
        return F.relu(self.norm(self.combine(gated)))


class ChannelAttention(nn.Module):
    """Convolutions whose channels are weighed by their global average and maximum (CA-Net).

    With features f = BN(conv(relu(BN(conv(x))))) of 2 * out_channels channels and one MLP for both:
    relu(BN(conv(relu(f * (mlp(mean f) + mlp(max f)) + BN(conv1x1(x)))))), out_channels channels.
    """

    def __init__(self, dim: int, in_channels: int, out_channels: int, kernel: Sequence[int]):
        super().__init__()
        ops = OPS[dim]
        wide, hidden = 2 * out_channels, max(1, out_channels // 2)

        def conv(inputs: int, outputs: int) -> nn.Module:
            padding = same_padding(kernel)
            return ops.conv(inputs, outputs, tuple(kernel), padding=padding, bias=False)

        self.expand = nn.Sequential(
            conv(in_channels, out_channels),
            ops.batch_norm(out_channels),
            nn.ReLU(inplace=True),
            conv(out_channels, wide),
            ops.batch_norm(wide),
        )
        self.mlp = nn.Sequential(
            nn.Linear(wide, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, wide), nn.Sigmoid()
        )
        self.residual = nn.Sequential(
            ops.conv(in_channels, wide, 1, bias=False), ops.batch_norm(wide)
        )
        self.reduce = nn.Sequential(
            conv(wide, out_channels), ops.batch_norm(out_channels), nn.ReLU(inplace=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.expand(x)
        space = tuple(range(2, x.ndim))
        weights = self.mlp(features.mean(space)) + self.mlp(features.amax(space))
        weights = weights[(..., *(None for _ in space))]
        return self.reduce(F.relu(features * weights + self.residual(x), inplace=True))
