"""The graph of a network from its plan and its weights, for OpenVINO.

No PyTorch is needed: each network is written down here as its modules compute it in evaluation
mode, with the names of its state dict. Of the segmentation heads the last one alone is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from panorgan.config.registry import NETWORKS_BY_PATH, Network
from panorgan.inference.engines.layers import Arguments, Layers, Node, constant, shape_of, size_of
from panorgan.inference.engines.runtime import ops, ov
from panorgan.inference.engines.stock import STOCK
from panorgan.nnunet.models.stock import is_stock


def build_graph(
    architecture: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    channels: int,
    outputs: int,
    patch_size: Sequence[int],
    precision: str,
) -> ov.Model:
    """A network's graph on one tile.

    Parameters
    ----------
    architecture
        As the plan's configuration has it: ``network_class_name`` and ``arch_kwargs``.
    tensors
        The network's state dict; of what has several names in it the first is needed. The graph
        uses their memory as it is.
    channels, outputs
        Of the input and of the logits.
    patch_size
        (y, x) or (z, y, x).
    precision
        fp32 or bf16: what the graph will be computed in.

    Returns
    -------
    openvino.Model
        From (1, channels, *patch) float32 to (1, *patch, outputs) of that precision.

    Raises
    ------
    ValueError
        If the network is one that cannot be built here, or the weights are not its own.
    """
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    build = _builder(name)
    net = Layers(tensors, len(patch_size), exact=precision == "fp32")
    image = ops.parameter([1, channels, *patch_size], np.float32)
    try:
        logits = build(net, arguments, image)
        logits = ops.transpose(logits, constant([0, *net.axes, 1]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"the weights do not fit the plan's {name} ({reason})") from None
    except (KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"the plan's arguments do not describe a {name} ({reason})") from None
    if (shape := shape_of(logits)) != (1, *patch_size, outputs):
        raise ValueError(f"the plan's {name} gives {shape[-1]} outputs, not {outputs}")
    if unused := sorted(filter(_is_used, tensors.keys() - net.used)):
        raise ValueError(f"the plan's {name} has no {unused[0]}, but the weights have")
    if precision == "bf16":
        logits = ops.convert(logits, ov.Type.bf16)
    return ov.Model([logits], [image], name)


def _builder(name: str) -> Callable[[Layers, Arguments, Node], Node]:
    if is_stock(name):
        return STOCK[name.rpartition(".")[2]]
    if name not in NETWORKS_BY_PATH:
        raise ValueError(f"the network class {name} has no graph here")
    return partial(_unet, NETWORKS_BY_PATH[name])


def _is_used(name: str) -> bool:
    """Whether a tensor has an influence on the logits, as far as its name tells.

    Not those of a lower resolution (whose heads are not computed), second names, counts.
    """
    twice = name.startswith("decoder.encoder.") or ".all_modules." in name
    head = name.startswith(("decoder.heads.", "decoder.seg_layers."))
    return not (twice or head or name.endswith(".num_batches_tracked"))


def _unet(network: Network, net: Layers, arguments: Arguments, image: Node) -> Node:
    strides, kernels = arguments["strides"], arguments["kernel_sizes"]
    convs = arguments.get("convs_per_stage", 2)
    skips, x = [], image
    for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        x = _conv_blocks(net, x, f"encoder.stages.{level}", convs, kernel, stride)
        skips.append(x)
    levels = range(len(strides) - 2, -1, -1)
    stages = network.decoder_kinds(len(levels))
    for index, (level, stage) in enumerate(zip(levels, stages, strict=True)):
        name, skip = f"decoder.stages.{index}", skips[level]
        kernel, stride = kernels[level + 1], strides[level + 1]
        plain = stage == "plain"
        up = net.transposed_conv(x, f"{name}.upsample", stride, bias=not plain)
        up = net.crop_to(up, size_of(skip))
        if plain:
            x = _conv_blocks(net, ops.concat([up, skip], 1), f"{name}.convs", convs, kernel)
            continue
        if stage == "gated":
            skip = _dual_gate(net, skip, x, f"{name}.gate")
        x = ops.concat([skip, up], 1)
        if stage == "non_local":
            x = _non_local(net, x, f"{name}.non_local")
        x = _channel_attention(net, x, f"{name}.channel_attention", kernel)
    return net.conv(x, f"decoder.heads.{len(levels) - 1}", bias=False)


def _conv_blocks(net: Layers, x: Node, name: str, count: int, kernel, stride=1) -> Node:
    for index in range(count):
        block = f"{name}.{index}"
        x = net.conv(x, f"{block}.conv", kernel, stride if index == 0 else 1)
        x = net.leaky_relu(net.instance_norm(x, f"{block}.norm"))
    return x


def _non_local(net: Layers, x: Node, name: str) -> Node:
    """In bf16 the products and the soft-max are bf16, too: OpenVINO leaves no choice.

    With ordinary weights the result was 0.6 to 1.0 % off the exact one; that of PyTorch, whose
    soft-max is float32 but whose queries and keys are rounded as here, 0.4 to 0.7 %.
    """

    def positions(features: Node) -> Node:
        """(1, channels, positions)"""
        return net.reshape(features, (1, shape_of(features)[1], -1))

    query = positions(net.conv(x, f"{name}.theta"))
    key = positions(net.halved(net.conv(x, f"{name}.phi")))
    value = positions(net.halved(net.conv(x, f"{name}.g")))
    weights = ops.softmax(ops.matmul(query, key, True, False), -1)
    mixed = ops.matmul(value, weights, False, True)
    mixed = net.reshape(mixed, (1, shape_of(mixed)[1], *size_of(x)))
    return ops.add(x, net.batch_norm(net.conv(mixed, f"{name}.out"), f"{name}.norm"))


def _dual_gate(net: Layers, skip: Node, gating: Node, name: str) -> Node:
    gated = [_additive_gate(net, skip, gating, f"{name}.gates.{index}") for index in range(2)]
    combined = net.conv(ops.concat(gated, 1), f"{name}.combine")
    return ops.relu(net.batch_norm(combined, f"{name}.norm"))


def _additive_gate(net: Layers, skip: Node, gating: Node, name: str) -> Node:
    resized = net.resize(net.conv(gating, f"{name}.phi"), size_of(skip))
    both = ops.relu(ops.add(net.conv(skip, f"{name}.theta"), resized))
    weights = ops.sigmoid(net.conv(both, f"{name}.psi"))
    weighed = net.conv(ops.multiply(skip, weights), f"{name}.out")
    return net.batch_norm(weighed, f"{name}.norm")


def _channel_attention(net: Layers, x: Node, name: str, kernel) -> Node:
    def conv_norm(x: Node, part: str, first: int, kernel) -> Node:
        x = net.conv(x, f"{name}.{part}.{first}", kernel, bias=False)
        return net.batch_norm(x, f"{name}.{part}.{first + 1}")

    def weights(pooled: Node) -> Node:
        hidden = ops.relu(net.linear(net.reshape(pooled, (1, -1)), f"{name}.mlp.0"))
        return ops.sigmoid(net.linear(hidden, f"{name}.mlp.2"))

    features = conv_norm(ops.relu(conv_norm(x, "expand", 0, kernel)), "expand", 3, kernel)
    highest = ops.reduce_max(features, constant(net.axes), True)
    both = ops.add(weights(net.mean(features)), weights(highest))
    weighed = ops.multiply(features, net.reshape(both, (1, -1, *net.each(1))))
    weighed = ops.relu(ops.add(weighed, conv_norm(x, "residual", 0, 1)))
    return ops.relu(conv_norm(weighed, "reduce", 0, kernel))
