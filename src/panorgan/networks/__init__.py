"""The networks, built by name from plain values. Importing this imports torch."""

from pkgutil import resolve_name

from torch import nn

from panorgan.config.registry import NETWORKS
from panorgan.networks.attention_unet import AttentionUNet
from panorgan.networks.small_unet import SmallUNet
from panorgan.networks.unet import UNet

__all__ = ["AttentionUNet", "SmallUNet", "UNet", "build_network", "count_parameters"]


def build_network(name: str, input_channels: int, num_classes: int, **kwargs) -> UNet:
    """Build a network; `kwargs` are those of `UNet`.

    The weights come from torch's global generator: `torch.manual_seed` before makes them
    repeatable.

    Raises
    ------
    ValueError
        If no network has this name or the arguments do not describe one.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network is called {name!r}; known: {', '.join(NETWORKS)}")
    return resolve_name(NETWORKS[name].path)(input_channels, num_classes, **kwargs)


def count_parameters(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
