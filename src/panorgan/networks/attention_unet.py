"""The teacher: nnU-Net's encoder, a decoder with attention in the manner of CA-Net.

CA-Net: Gu et al., "Comprehensive attention convolutional neural networks for explainable medical
image segmentation", IEEE TMI 2020.
"""

from collections.abc import Sequence

import torch
from torch import nn

from panorgan.config.registry import ATTENTION_UNET, NETWORKS
from panorgan.networks.blocks import OPS, ChannelAttention, DualGate, NonLocal, crop_to
from panorgan.networks.unet import PlainStage, UNet


class AttentionStage(nn.Module):
    """A decoder stage that ends in channel attention.

    Parameters
    ----------
    kind : {"non_local", "gated", "ungated"}
        non_local: the concatenated features pass a non-local block, and half of the stage's
        output channels are dropped out in training; gated: the skip passes two additive gates,
        which the features from below steer; ungated: neither.
    dim, below_channels, skip_channels, stride, kernel
        As in `PlainStage`.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        below_channels: int,
        skip_channels: int,
        stride: Sequence[int],
        kernel: Sequence[int],
    ):
        super().__init__()
        ops = OPS[dim]
        self.upsample = ops.transposed_conv(
            below_channels, skip_channels, tuple(stride), tuple(stride)
        )
        self.gate = DualGate(dim, skip_channels, below_channels) if kind == "gated" else None
        self.channel_attention = ChannelAttention(dim, 2 * skip_channels, skip_channels, kernel)
        self.non_local: nn.Module = nn.Identity()
        self.dropout: nn.Module = nn.Identity()
        if kind == "non_local":
            self.non_local = NonLocal(dim, 2 * skip_channels)
            self.dropout = ops.dropout(0.5)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:
            skip = self.gate(skip, below)
        x = torch.cat((skip, crop_to(self.upsample(below), skip)), dim=1)
        return self.dropout(self.channel_attention(self.non_local(x)))


class AttentionUNet(UNet):
    """nnU-Net's encoder and a decoder whose stages are of the registry's kinds.

    With one channel, two classes, features 32, 64, 128, 256, 480, 480, 480, 480 and 3x3 kernels
    (the FLARE23 recipe) it has 62,939,014 parameters. Batch norm makes its training depend on the
    batch: statistics are those of the batch in training, running ones in evaluation.
    """

    @staticmethod
    def decoder_stage(index: int, count: int, *, convs: int, **shape) -> nn.Module:
        kind = NETWORKS[ATTENTION_UNET].decoder_kinds(count)[index]
        if kind == "plain":
            return PlainStage(convs=convs, **shape)
        return AttentionStage(kind, **shape)
