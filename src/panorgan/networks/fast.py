"""The form of a network in which a CPU computes it fastest; the same values but for rounding.

Tensors lie channels-last, as oneDNN's convolutions want them: PyTorch's instance norm would copy
each into the other layout and back. oneDNN computes the convolutions of single images in float32
too, where PyTorch would take other ones if it finds the image small, which are up to five times
slower.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

COLUMNS = 8192
"""So many sums run side by side at most, each over few voxels. A sum over all voxels in float32,
as PyTorch's batch norm takes it channels-last, is wrong by up to 1 % where most voxels are equal,
as they are in air."""


def channels_last(dim: int) -> torch.memory_format:
    """The memory format of tensors with 2 or 3 axes of space."""
    return torch.channels_last if dim == 2 else torch.channels_last_3d


def mean_and_variance(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each channel of a batch of one that lies channels-last, over all voxels; float32."""
    channels = x.shape[1]
    voxels = x.numel() // channels
    side_by_side = max(
        count for count in range(1, max(1, COLUMNS // channels) + 1) if voxels % count == 0
    )
    rows = x.movedim(1, -1).view(-1, side_by_side * channels)
    parts = torch.batch_norm_update_stats(rows, None, None, 0.0)
    means, variances = (part.view(-1, channels).double() for part in parts)
    variance = variances.mean(0) + means.var(0, correction=0)
    return means.mean(0).float(), variance.float()


class _InstanceNorm:
    """Instance norm that leaves an image channels-last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alone = len(x) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled()
        if not (alone and x.is_contiguous(memory_format=channels_last(x.ndim - 2))):
            return super().forward(x)
        found = mean_and_variance(x)
        return F.batch_norm(x, *found, self.weight, self.bias, training=False, eps=self.eps)


class _InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


class _Convolution:
    """Convolution that is oneDNN's whatever the image's size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = len(x) == 1 and x.dtype == torch.float32 and x.device.type == "cpu"
        if not single or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            return super().forward(x)
        return torch.mkldnn_convolution(
            *(x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        )


class _Conv2d(_Convolution, nn.Conv2d):
    pass


class _Conv3d(_Convolution, nn.Conv3d):
    pass


FAST: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm2d: _InstanceNorm2d,
    nn.InstanceNorm3d: _InstanceNorm3d,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
}
WITH_WEIGHTS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
"""Layers whose weights are bfloat16 where a network computes in it; norms keep theirs."""


def to_fast_form(network: nn.Module, dim: int, precision: str) -> None:
    """Change a network on the CPU in place; what it is given has to lie channels-last.

    Parameters
    ----------
    network
        In evaluation mode.
    dim
        2 or 3.
    precision
        fp32, or bf16: then it is called within autocast, which finds little left to convert.
    """
    for module in network.modules():
        if torch.backends.mkldnn.is_available() or not isinstance(module, WITH_WEIGHTS):
            module.__class__ = FAST.get(type(module), type(module))
        if precision == "bf16" and isinstance(module, WITH_WEIGHTS):
            module.bfloat16()
    network.to(memory_format=channels_last(dim))
