"""What both networks share: nnU-Net's encoder, the plain decoder stage, the frame around them."""

from collections.abc import Sequence

import torch
from torch import nn

from panorgan.networks.blocks import OPS, conv_blocks, crop_to


class Encoder(nn.Module):
    """Stages of convolutions, each beginning with a strided one.

    `forward` returns the output of every stage, full resolution first. At size n a stride of s
    gives ceil(n / s).
    """

    def __init__(
        self,
        dim: int,
        input_channels: int,
        features: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        convs_per_stage: int,
    ):
        super().__init__()
        self.stages = nn.ModuleList()
        below = input_channels
        for channels, kernel, stride in zip(features, kernel_sizes, strides, strict=True):
            self.stages.append(
                conv_blocks(dim, below, channels, kernel, convs_per_stage, tuple(stride))
            )
            below = channels

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class PlainStage(nn.Module):
    """nnU-Net's decoder stage: transposed convolution, concatenation with the skip, convolutions.

    As in nnU-Net 1 the transposed convolution has no bias (nnU-Net 2 gives it one).
    """

    def __init__(
        self,
        dim: int,
        below_channels: int,
        skip_channels: int,
        stride: Sequence[int],
        kernel: Sequence[int],
        convs: int,
    ):
        super().__init__()
        self.upsample = OPS[dim].transposed_conv(
            below_channels, skip_channels, tuple(stride), tuple(stride), bias=False
        )
        self.convs = conv_blocks(dim, 2 * skip_channels, skip_channels, kernel, convs)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.convs(torch.cat((crop_to(self.upsample(below), skip), skip), dim=1))


class Decoder(nn.Module):
    """Decoder stages from the deepest up, each with a 1x1 segmentation head without bias.

    Attributes
    ----------
    deep_supervision : bool
        Settable at any time. On: `forward` returns the logits of every stage, highest resolution
        first. Off: the logits at full resolution only; the other heads are not computed.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], deep_supervision):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.deep_supervision = deep_supervision

    def forward(self, encoded: list[torch.Tensor]) -> list[torch.Tensor] | torch.Tensor:
        *skips, x = encoded
        outputs = []
        for stage, head, skip in zip(self.stages, self.heads, reversed(skips), strict=True):
            x = stage(x, skip)
            if self.deep_supervision:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else self.heads[-1](x)


def _initialise(module: nn.Module) -> None:
    """nnU-Net's start: Kaiming normal for convolutions, biases 0; other layers as PyTorch's."""
    if isinstance(
        module, tuple(c for ops in OPS.values() for c in (ops.conv, ops.transposed_conv))
    ):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UNet(nn.Module):
    """A U-Net as nnU-Net 2's trainer expects it; a subclass says what its decoder stages are.

    Parameters
    ----------
    input_channels, num_classes : int
        Channels of the input and of the logits.
    features : sequence of int
        Channels of each encoder stage, full resolution first; the last is the bottleneck.
    kernel_sizes, strides : sequence of sequences of int
        Of each encoder stage, (y, x) or (z, y, x); their length is the network's dimension.
        Kernels are odd; the first stage's strides are 1. A decoder stage has the kernel of one
        level deeper, as in nnU-Net 1 (nnU-Net 2 takes that of its own level).
    convs_per_stage : int
        Convolutions in an encoder or plain decoder stage.
    deep_supervision : bool
        Initial value of `decoder.deep_supervision`.

    Raises
    ------
    ValueError
        If these do not describe a network.

    Notes
    -----
    `forward` takes (batch, input_channels, *size) of any size that leaves more than one voxel at
    the bottleneck, and returns logits of exactly that size first. Under deep supervision those of
    level i have size ceil(size / product of the strides down to i), which for sizes divisible by
    the strides is what nnU-Net downsamples its targets to.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        features: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        convs_per_stage: int = 2,
        deep_supervision: bool = True,
    ):
        super().__init__()
        dim = _dimension(features, kernel_sizes, strides, convs_per_stage)
        self.encoder = Encoder(
            dim, input_channels, features, kernel_sizes, strides, convs_per_stage
        )
        levels = range(len(features) - 2, -1, -1)
        stages = [
            self.decoder_stage(
                index,
                len(levels),
                dim=dim,
                below_channels=features[level + 1],
                skip_channels=features[level],
                stride=strides[level + 1],
                kernel=kernel_sizes[level + 1],
                convs=convs_per_stage,
            )
            for index, level in enumerate(levels)
        ]
        heads = [OPS[dim].conv(features[level], num_classes, 1, bias=False) for level in levels]
        self.decoder = Decoder(stages, heads, deep_supervision)
        self.apply(_initialise)

    @staticmethod
    def decoder_stage(index: int, count: int, **shape) -> nn.Module:
        """The decoder stage number `index` of `count`, counted from the deepest.

        It is called with (features from below, skip) and returns as many channels as the skip has,
        at the skip's size; `shape` are the arguments of `PlainStage`.
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
        return self.decoder(self.encoder(x))


def _dimension(features, kernel_sizes, strides, convs_per_stage) -> int:
    """The dimension that kernels and strides agree on; ValueError if the topology is not sound."""
    if not len(features) == len(kernel_sizes) == len(strides):
        raise ValueError(
            f"features, kernel_sizes and strides need one entry a stage, but have "
            f"{len(features)}, {len(kernel_sizes)} and {len(strides)}"
        )
    if len(features) < 2:
        raise ValueError("a U-Net needs at least two stages")
    if convs_per_stage < 1:
        raise ValueError(f"convs_per_stage must be at least 1, not {convs_per_stage}")
    dimensions = {len(entry) for entry in (*kernel_sizes, *strides)}
    if dimensions not in ({2}, {3}):
        raise ValueError("each entry of kernel_sizes and strides needs two or three values, alike")
    if any(size % 2 == 0 for kernel in kernel_sizes for size in kernel):
        raise ValueError(f"kernel_sizes must be odd: {kernel_sizes}")
    if any(stride != 1 for stride in strides[0]):
        raise ValueError(f"the first stage's strides must be 1, not {strides[0]}")
    return dimensions.pop()
