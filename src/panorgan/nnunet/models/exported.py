"""The small network as a plain one of stock nnU-Net 2, and back. Importing this imports no torch.

The plain network has the same outputs: biases that ours lacks are zero, and each level's kernel is
large enough for the encoder's and the decoder's there, with zeros around the smaller one.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from panorgan.config.registry import NETWORKS, SMALL_UNET
from panorgan.nnunet.models.shapes import tensor_shapes
from panorgan.nnunet.models.stock import plain_unet
from panorgan.nnunet.plans import configuration_of

Tensors = Mapping[str, np.ndarray]


def plain_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan of the small network with its plain equal; its own is kept beside."""
    name, configuration = configuration_of(plan)
    own = configuration["architecture"]
    arguments = own["arch_kwargs"]
    kernels = arguments["kernel_sizes"]
    # The decoder of a level has the encoder's kernel of the level below it.
    below = [*kernels[1:], kernels[-1]]
    plain = plain_unet(
        arguments["features"],
        [list(map(max, *pair)) for pair in zip(kernels, below, strict=True)],
        arguments["strides"],
        arguments["convs_per_stage"],
    )
    return {
        **plan,
        "configurations": {name: configuration | {"architecture": plain}},
        "panorgan": {**plan["panorgan"], "architecture": own},
    }


def plain_tensors(
    tensors: Tensors, architecture: Mapping[str, Any], channels: int, outputs: int
) -> dict[str, np.ndarray]:
    """The weights of the plain equal, which `architecture` is: zeros in all that ours lacks."""
    shapes = tensor_shapes(architecture, channels, outputs)
    plain = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        _centre(plain[_plain_name(name)], tensor.shape)[...] = tensor
    return plain


def from_plain(
    plan: Mapping[str, Any], tensors: Tensors, channels: int, outputs: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Plan and weights of the small network that a plain one is the equal of; None if of none."""
    beside = plan.get("panorgan")
    own_architecture = beside.get("architecture") if isinstance(beside, dict) else None
    if not own_architecture or own_architecture["network_class_name"] != NETWORKS[SMALL_UNET].path:
        return None
    own = deepcopy(dict(plan))
    architecture = configuration_of(own)[1]["architecture"]
    configuration_of(own)[1]["architecture"] = own["panorgan"].pop("architecture")
    found = {
        name: _centre(tensors[_plain_name(name)], shape).copy()
        for name, shape in tensor_shapes(own_architecture, channels, outputs).items()
    }
    again = plain_tensors(found, architecture, channels, outputs)
    if again.keys() != tensors.keys() or any(
        not np.array_equal(tensor, tensors[name]) for name, tensor in again.items()
    ):
        return None
    return own, found


def _plain_name(name: str) -> str:
    """The name in ``PlainConvUNet`` of a tensor of `SmallUNet`."""
    name = re.sub(r"^(encoder\.stages\.\d+)\.(\d+)\.", r"\1.0.convs.\2.", name)
    name = re.sub(r"^decoder\.stages\.(\d+)\.upsample\.", r"decoder.transpconvs.\1.", name)
    return re.sub(r"^decoder\.heads\.", "decoder.seg_layers.", name)


def _centre(weight: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The view of this shape in the middle of a larger array."""
    margins = [(size - inner) // 2 for size, inner in zip(weight.shape, shape, strict=True)]
    return weight[tuple(slice(at, at + size) for at, size in zip(margins, shape, strict=True))]
