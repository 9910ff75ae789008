"""The graph of a network from its plan and its weights, for OpenVINO.

No PyTorch is needed: each network is written down here as its module computes it in evaluation
mode, with the names of its state dict.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from panorgan.config.registry import NETWORKS, SMALL_UNET
from panorgan.inference.engines.runtime import ops, ov

STOCK = "dynamic_network_architectures."
"""Where plans of stock nnU-Net 2 say that networks and blocks are."""

EPSILON = 1e-5
"""What PyTorch's norms add to a variance unless told otherwise."""

Tensors = Mapping[str, np.ndarray]
Node = Any
"""A node of the graph, or an output of one; OpenVINO's functions take both."""


def build_graph(
    architecture: Mapping[str, Any],
    tensors: Tensors,
    channels: int,
    outputs: int,
    patch_size: Sequence[int],
    logits_type: ov.Type = ov.Type.f32,
) -> ov.Model:
    """A network's graph on one tile.

    Parameters
    ----------
    architecture
        As the plan's configuration has it: ``network_class_name`` and ``arch_kwargs``.
    tensors
        The network's state dict; names that it has twice need to be there once. The graph may use
        their memory as it is.
    channels, outputs
        Of the input and of the logits.
    patch_size
        (y, x) or (z, y, x).
    logits_type
        Of the logits that it gives.

    Returns
    -------
    openvino.Model
        From (1, channels, *patch) float32 to (1, *patch, outputs).

    Raises
    ------
    ValueError
        If the network is one that cannot be built here, or the weights are not its own.
    """
    name = architecture["network_class_name"]
    arguments = architecture["arch_kwargs"]
    builders: dict[str, Callable[[_Network, Mapping[str, Any], Node], Node]] = {
        NETWORKS[SMALL_UNET].path: _small_unet,
    }
    if name not in builders:
        raise ValueError(f"the network {name} is not known to OpenVINO's engine")
    network = _Network(tensors, len(patch_size))
    image = ops.parameter([1, channels, *patch_size], np.float32, name="tile")
    logits = builders[name](network, arguments, image)
    dim = len(patch_size)
    last = ops.transpose(logits, _constant(np.array([0, *range(2, dim + 2), 1])))
    if list(last.output(0).shape) != [1, *patch_size, outputs]:
        raise ValueError(
            f"the network gives {list(last.output(0).shape)}, not {[1, *patch_size, outputs]}"
        )
    if logits_type != ov.Type.f32:
        last = ops.convert(last, logits_type)
    return ov.Model([last], [image], name)


def _constant(array: np.ndarray) -> Node:
    return ops.constant(np.ascontiguousarray(array), shared_memory=True)


class _Network:
    """Layers of a network by the names of their tensors."""

    def __init__(self, tensors: Tensors, dim: int):
        self.tensors = tensors
        self.dim = dim

    def has(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self.tensors[name], np.float32)
        except KeyError:
            raise ValueError(f"the weights have no {name}") from None

    def channelwise(self, values: np.ndarray) -> Node:
        """A constant of one value a channel."""
        return _constant(values.reshape(1, -1, *(1,) * self.dim))

    def conv(self, x: Node, name: str, stride: Sequence[int] | None = None) -> Node:
        """A convolution that keeps the size, up to its stride, with its bias if it has one."""
        weight = self.tensor(f"{name}.weight")
        padding = [(size - 1) // 2 for size in weight.shape[2:]]
        ones = [1] * self.dim
        x = ops.convolution(x, _constant(weight), stride or ones, padding, padding, ones)
        return self.bias(x, name)

    def transposed_conv(self, x: Node, name: str, stride: Sequence[int]) -> Node:
        """A transposed convolution whose kernel is its stride."""
        weight = self.tensor(f"{name}.weight")
        nothing, ones = [0] * self.dim, [1] * self.dim
        x = ops.convolution_backprop_data(
            x,
            _constant(weight),
            strides=list(stride),
            pads_begin=nothing,
            pads_end=nothing,
            dilations=ones,
        )
        return self.bias(x, name)

    def bias(self, x: Node, name: str) -> Node:
        if not self.has(f"{name}.bias"):
            return x
        return ops.add(x, self.channelwise(self.tensor(f"{name}.bias")))

    def instance_norm(self, x: Node, name: str, epsilon: float = EPSILON) -> Node:
        axes = _constant(np.arange(2, self.dim + 2))
        x = ops.mvn(x, axes, True, epsilon, "inside_sqrt")
        if not self.has(f"{name}.weight"):
            return x
        x = ops.multiply(x, self.channelwise(self.tensor(f"{name}.weight")))
        return self.bias(x, name)

    def leaky_relu(self, x: Node, slope: float = 0.01) -> Node:
        return ops.prelu(x, _constant(np.array([slope], np.float32)))

    def crop_to(self, x: Node, reference: Node) -> Node:
        """Drop what is beyond the size of another, at each axis' end."""
        have, want = _size(x), _size(reference)
        if have == want:
            return x
        axes = np.arange(2, self.dim + 2)
        return ops.slice(
            x,
            _constant(np.zeros(self.dim, np.int64)),
            _constant(np.array(want)),
            _constant(np.ones(self.dim, np.int64)),
            _constant(axes),
        )


def _size(x: Node) -> list[int]:
    return list(x.output(0).shape)[2:]


def _conv_blocks(net: _Network, x: Node, name: str, count: int, stride=None) -> Node:
    for index in range(count):
        block = f"{name}.{index}"
        x = net.conv(x, f"{block}.conv", stride if index == 0 else None)
        x = net.leaky_relu(net.instance_norm(x, f"{block}.norm"))
    return x


def _small_unet(net: _Network, arguments: Mapping[str, Any], image: Node) -> Node:
    convs, strides = arguments.get("convs_per_stage", 2), arguments["strides"]
    skips, x = [], image
    for index, stride in enumerate(strides):
        x = _conv_blocks(net, x, f"encoder.stages.{index}", convs, stride)
        skips.append(x)
    for index, level in enumerate(range(len(strides) - 2, -1, -1)):
        stage = f"decoder.stages.{index}"
        x = net.transposed_conv(x, f"{stage}.upsample", strides[level + 1])
        x = ops.concat([net.crop_to(x, skips[level]), skips[level]], 1)
        x = _conv_blocks(net, x, f"{stage}.convs", convs)
    return net.conv(x, f"decoder.heads.{len(strides) - 2}")
