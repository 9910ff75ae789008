"""Layers with which a CPU computes batches of one faster; the same values but for rounding.

Where tensors lie channels-last, as oneDNN's convolutions in bfloat16 want them, PyTorch's instance
norm would copy each into the other layout and back. In float32 PyTorch leaves oneDNN's convolutions
aside if it finds a single image small, and takes others that are up to five times slower.
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


class _Norm(torch.autograd.Function):
    """Instance norm of a batch of one that lies channels-last, and stays so."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        mean, variance = mean_and_variance(x)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, inverse = ctx.saved_tensors
        layout = channels_last(x.ndim - 2)
        return *torch.ops.aten.native_batch_norm_backward(
            *(gradient.contiguous(memory_format=layout), x, weight, None, None, mean, inverse),
            *(True, ctx.eps, ctx.needs_input_grad[:3]),
        ), None


class _OneDNN(torch.autograd.Function):
    """Convolution by oneDNN whatever the image's size; its gradients too."""

    @staticmethod
    def forward(ctx, x, weight, bias, *settings):
        padding, stride, dilation, groups = settings
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else list(bias.shape)
        ctx.settings = stride, padding, dilation, False, [0] * len(padding), groups
        return torch.mkldnn_convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        found = torch.ops.aten.convolution_backward(
            # Which kernels are taken follows from the type of tensor.
            *(gradient.contiguous().to_mkldnn(), x.contiguous().to_mkldnn(), weight, ctx.bias),
            *(*ctx.settings, ctx.needs_input_grad[:3]),
        )
        dense = (t.to_dense() if t is not None and t.is_mkldnn else t for t in found)
        return *dense, None, None, None, None


def _is_alone(x: torch.Tensor) -> bool:
    """Whether it is a batch of one on the CPU; what is compiled is left to the compiler."""
    return len(x) == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling()


class _InstanceNorm:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (_is_alone(x) and x.is_contiguous(memory_format=channels_last(x.ndim - 2))):
            return super().forward(x)
        return _Norm.apply(x, self.weight, self.bias, self.eps)


class _InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


class _Convolution:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _is_alone(x) or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _OneDNN.apply(
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


def use_fast_layers(network: nn.Module) -> None:
    """Let a network compute batches of one faster on the CPU; all else stays as it is."""
    if torch.backends.mkldnn.is_available():
        for module in network.modules():
            module.__class__ = FAST.get(type(module), type(module))


def to_fast_form(network: nn.Module, dim: int, precision: str) -> None:
    """Change a network on the CPU in place; what it is given has to lie channels-last.

    Parameters
    ----------
    network
        In evaluation mode, for good.
    dim
        2 or 3.
    precision
        fp32, or bf16: then it is called within autocast, which finds little left to convert.
    """
    use_fast_layers(network)
    for module in network.modules():
        if precision == "bf16" and isinstance(module, WITH_WEIGHTS):
            module.bfloat16()
    network.to(memory_format=channels_last(dim))
