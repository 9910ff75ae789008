"""The student: a plain U-Net as nnU-Net 1 builds it."""

from torch import nn

from panorgan.networks.unet import PlainStage, UNet


class SmallUNet(UNet):
    """nnU-Net's encoder and a decoder of plain stages.

    With one channel, 15 classes, features 16 to 256 over five stages and kernels 1x3x3, then 3x3x3
    (the FLARE23 recipe) it has 5,644,256 parameters.
    """

    @staticmethod
    def decoder_stage(index: int, count: int, **shape) -> nn.Module:
        return PlainStage(**shape)
