"""Networks of stock nnU-Net 2, built from a plan that anybody may have written.

A plan names classes by path, and nnU-Net imports and calls whatever it names. Here only the U-Nets
of dynamic_network_architectures and the layers of torch.nn are known. Importing this imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PACKAGE = "dynamic_network_architectures."
UNETS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
BLOCKS = ("BasicBlockD", "BottleneckD")


def is_stock(class_name: str) -> bool:
    """Whether a plan's network class is one of stock nnU-Net 2 that `stock_network` builds."""
    return class_name.startswith(PACKAGE) and class_name.rpartition(".")[2] in UNETS


def stock_network(
    architecture: Mapping[str, Any], input_channels: int, num_classes: int
) -> nn.Module:
    """The network that a plan's ``architecture`` describes, without deep supervision.

    Raises
    ------
    ValueError, TypeError, KeyError
        If the plan names a class that is not known here, or arguments that the class has not.
    """
    name = architecture["network_class_name"]
    if not is_stock(name):
        raise ValueError(f"the network class {name} is unknown; known: {', '.join(UNETS)}")
    arguments = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        if arguments[key] is not None:
            arguments[key] = _layer(arguments[key])
    arguments["deep_supervision"] = False
    from dynamic_network_architectures.architectures import unet

    cls = getattr(unet, name.rpartition(".")[2])
    return cls(input_channels=input_channels, num_classes=num_classes, **arguments)


def plain_unet(
    features: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    convs: int,
) -> dict[str, Any]:
    """A plan's ``architecture`` of nnU-Net's plain U-Net with its usual arguments.

    Parameters
    ----------
    features, kernel_sizes, strides
        Of each encoder stage.
    convs
        Convolutions in a stage.
    """
    stages = len(features)
    return {
        "network_class_name": f"{PACKAGE}architectures.unet.PlainConvUNet",
        **unet_arguments(
            features,
            kernel_sizes,
            strides,
            {"n_conv_per_stage": [convs] * stages},
            [convs] * (stages - 1),
            dim=len(kernel_sizes[0]),
        ),
    }


def unet_arguments(
    features: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    encoder: Mapping[str, Sequence[int]],
    decoder: Sequence[int],
    *,
    dim: int,
) -> dict[str, Any]:
    """The arguments of a U-Net's class in a plan's ``architecture`` as nnU-Net usually has them.

    Parameters
    ----------
    features, kernel_sizes, strides
        Of each encoder stage.
    encoder
        The number of convolutions or blocks of each encoder stage under its argument's name.
    decoder
        Convolutions of each decoder stage.
    """
    return {
        "arch_kwargs": {
            "n_stages": len(features),
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            **encoder,
            "n_conv_per_stage_decoder": decoder,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _layer(path: str) -> type[nn.Module]:
    package, _, name = path.rpartition(".")
    if package.startswith(PACKAGE) and name in BLOCKS:
        from dynamic_network_architectures.building_blocks import residual

        return getattr(residual, name)
    from torch import nn

    layer = getattr(nn, name, None) if package.split(".")[:2] == ["torch", "nn"] else None
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"{path} is no layer of torch.nn")
    return layer
