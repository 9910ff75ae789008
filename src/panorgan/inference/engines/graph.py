"""The graph of a network from its plan and its weights, for OpenVINO.

No PyTorch is needed: each network is written down here as its modules compute it in evaluation
mode, with the names of its state dict. Of the segmentation heads the last one alone is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from panorgan.config.registry import ATTENTION_UNET, NETWORKS, SMALL_UNET
from panorgan.inference.engines.runtime import ops, ov

STOCK = "dynamic_network_architectures.architectures.unet."
"""Where plans of stock nnU-Net 2 say that networks are."""

EPSILON = 1e-5
"""What PyTorch's norms add to a variance unless told otherwise."""

Arguments = Mapping[str, Any]
Node = Any
"""A node of a graph: OpenVINO's Python functions give and take all kinds of them."""


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
        The network's state dict; what has several names in it needs one of them. The graph uses
        their memory as it is.
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
    net = _Net(tensors, len(patch_size), exact=precision == "fp32")
    image = ops.parameter([1, channels, *patch_size], np.float32)
    try:
        logits = build(net, arguments, image)
        logits = ops.transpose(logits, _constant([0, *net.axes, 1]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"the weights do not fit the plan's {name} ({reason})") from None
    if (shape := _shape(logits)) != (1, *patch_size, outputs):
        raise ValueError(f"the plan's {name} gives {shape[-1]} outputs, not {outputs}")
    if unused := sorted(filter(_is_used, tensors.keys() - net.used)):
        raise ValueError(f"the plan's {name} has no {unused[0]}, but the weights have")
    if precision == "bf16":
        logits = ops.convert(logits, ov.Type.bf16)
    return ov.Model([logits], [image], name)


def _builder(name: str) -> Callable[["_Net", Arguments, Node], Node]:
    ours = {NETWORKS[kind].path: partial(_unet, kind) for kind in (SMALL_UNET, ATTENTION_UNET)}
    stock = {
        STOCK + "PlainConvUNet": _plain_conv_unet,
        STOCK + "ResidualEncoderUNet": _residual_encoder_unet,
        STOCK + "ResidualUNet": _residual_unet,
    }
    try:
        return (ours | stock)[name]
    except KeyError:
        raise ValueError(f"the network class {name} has no graph here") from None


def _is_used(name: str) -> bool:
    """Whether a tensor has an influence on the logits, as far as its name tells.

    Not those of a lower resolution (whose heads are not computed), second names, counts.
    """
    twice = name.startswith("decoder.encoder.") or ".all_modules." in name
    head = name.startswith(("decoder.heads.", "decoder.seg_layers."))
    return not (twice or head or name.endswith(".num_batches_tracked"))


def _constant(values: Any, dtype: type = np.int64) -> Node:
    return ops.constant(np.ascontiguousarray(values, dtype), shared_memory=True)


def _shape(x: Node) -> tuple[int, ...]:
    output = x if isinstance(x, ov.Output) else x.output(0)
    return tuple(output.shape)


def _size(x: Node) -> tuple[int, ...]:
    """Of the space."""
    return _shape(x)[2:]


class _Net:
    """Layers of a network by the names of their tensors."""

    def __init__(self, tensors: Mapping[str, np.ndarray], dim: int, exact: bool):
        self.tensors = tensors
        self.dim = dim
        self.exact = exact
        self.axes = tuple(range(2, dim + 2))
        self.used: set[str] = set()

    def tensor(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise ValueError(f"the weights have no {name}")
        self.used.add(name)
        return np.asarray(self.tensors[name], np.float32)

    def each(self, value: int | Sequence[int]) -> list[int]:
        """A value for each axis of the space."""
        values = [value] * self.dim if isinstance(value, int) else list(value)
        if len(values) != self.dim:
            raise ValueError(f"the plan has {values} for {self.dim} axes")
        return values

    def channelwise(self, values: np.ndarray) -> Node:
        """A constant of one value a channel."""
        return _constant(values.reshape(1, -1, *self.each(1)), np.float32)

    def conv(
        self,
        x: Node,
        name: str,
        kernel: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        *,
        bias: bool = True,
    ) -> Node:
        """A convolution that keeps the size, up to its stride."""
        weight = self._weight(name, kernel)
        padding = [(size - 1) // 2 for size in weight.shape[2:]]
        x = ops.convolution(
            x, _constant(weight, np.float32), self.each(stride), padding, padding, self.each(1)
        )
        return self._bias(x, name) if bias else x

    def transposed_conv(self, x: Node, name: str, stride: Sequence[int], *, bias: bool) -> Node:
        """A transposed convolution whose kernel is its stride."""
        weight = self._weight(name, stride)
        x = ops.convolution_backprop_data(
            x,
            _constant(weight, np.float32),
            strides=self.each(stride),
            pads_begin=self.each(0),
            pads_end=self.each(0),
            dilations=self.each(1),
        )
        return self._bias(x, name) if bias else x

    def _weight(self, name: str, kernel: int | Sequence[int]) -> np.ndarray:
        weight = self.tensor(f"{name}.weight")
        if list(weight.shape[2:]) != self.each(kernel):
            has = list(weight.shape[2:])
            raise ValueError(f"{name} has a kernel of {has}, in the plan {self.each(kernel)}")
        return weight

    def _bias(self, x: Node, name: str) -> Node:
        return ops.add(x, self.channelwise(self.tensor(f"{name}.bias")))

    def mean(self, x: Node) -> Node:
        """Mean over the space, an axis after the other.

        OpenVINO adds all voxels of a channel into one float32. With as many equal ones as air has
        each step rounds to the same side, and a sum of 800,000 is wrong by a hundredth. An axis is
        short enough. Sums between means keep OpenVINO from making one step of them.
        """
        for axis, size in reversed(list(zip(self.axes, _size(x), strict=True))):
            if (self.axes[-1] - axis) % 2 == 0:
                x = ops.reduce_mean(x, _constant([axis]), True)
            else:
                total = ops.reduce_sum(x, _constant([axis]), True)
                x = ops.multiply(total, _constant(1 / size, np.float32))
        return x

    def instance_norm(
        self, x: Node, name: str, epsilon: float = EPSILON, *, affine: bool = True
    ) -> Node:
        x = ops.subtract(x, self.mean(x))
        if self.exact:
            variance = self.mean(ops.multiply(x, x))
            deviation = ops.sqrt(ops.add(variance, _constant(epsilon, np.float32)))
            one = _constant(1, np.float32)
            scale = self.channelwise(self.tensor(f"{name}.weight")) if affine else one
            x = ops.multiply(x, ops.divide(scale, deviation))
            return self._bias(x, name) if affine else x
        # In bf16 this one rounds less often, and of what is centred the sums are less wrong.
        x = ops.mvn(x, _constant(self.axes), True, epsilon, "inside_sqrt")
        if not affine:
            return x
        return self._bias(ops.multiply(x, self.channelwise(self.tensor(f"{name}.weight"))), name)

    def batch_norm(
        self, x: Node, name: str, epsilon: float = EPSILON, *, affine: bool = True
    ) -> Node:
        """With the running statistics."""
        mean, variance = (
            self.tensor(f"{name}.running_{key}").astype(np.float64) for key in ("mean", "var")
        )
        scale = 1 / np.sqrt(variance + epsilon)
        shift = -mean * scale
        if affine:
            scale = scale * self.tensor(f"{name}.weight")
            shift = shift * self.tensor(f"{name}.weight") + self.tensor(f"{name}.bias")
        return ops.add(ops.multiply(x, self.channelwise(scale)), self.channelwise(shift))

    def leaky_relu(self, x: Node, slope: float = 0.01) -> Node:
        return ops.prelu(x, _constant([slope], np.float32))

    def linear(self, x: Node, name: str) -> Node:
        """Of (1, inputs)."""
        weight = _constant(self.tensor(f"{name}.weight"), np.float32)
        bias = _constant(self.tensor(f"{name}.bias")[None], np.float32)
        return ops.add(ops.matmul(x, weight, False, True), bias)

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        return ops.reshape(x, _constant(shape), False)

    def crop_to(self, x: Node, size: tuple[int, ...]) -> Node:
        """Drop what is beyond a size, at each axis' end."""
        if _size(x) == size:
            return x
        start, stop, step = (_constant(values) for values in (self.each(0), size, self.each(1)))
        return ops.slice(x, start, stop, step, _constant(self.axes))

    def resize(self, x: Node, size: tuple[int, ...]) -> Node:
        """Linear interpolation; the volumes' borders are at the same place."""
        if _size(x) == size:
            return x
        return ops.interpolate(
            x,
            _constant(size),
            "linear_onnx",
            "sizes",
            coordinate_transformation_mode="half_pixel",
            axes=_constant(self.axes),
        )

    def halved(self, x: Node) -> Node:
        """Maxima of two voxels along each axis, of one where there is no second."""
        odd = [size % 2 for size in _size(x)]
        two, one = self.each(2), self.each(1)
        return ops.max_pool(x, two, one, self.each(0), odd, two).output(0)


# Panorgan's networks, as `panorgan.networks` has them


def _unet(kind: str, net: _Net, arguments: Arguments, image: Node) -> Node:
    strides, kernels = arguments["strides"], arguments["kernel_sizes"]
    convs = arguments.get("convs_per_stage", 2)
    skips, x = [], image
    for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        x = _conv_blocks(net, x, f"encoder.stages.{level}", convs, kernel, stride)
        skips.append(x)
    levels = range(len(strides) - 2, -1, -1)
    stages = NETWORKS[kind].decoder_kinds(len(levels))
    for index, (level, stage) in enumerate(zip(levels, stages, strict=True)):
        name, skip = f"decoder.stages.{index}", skips[level]
        kernel, stride = kernels[level + 1], strides[level + 1]
        plain = stage == "plain"
        up = net.transposed_conv(x, f"{name}.upsample", stride, bias=not plain)
        up = net.crop_to(up, _size(skip))
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


def _conv_blocks(net: _Net, x: Node, name: str, count: int, kernel, stride=1) -> Node:
    for index in range(count):
        block = f"{name}.{index}"
        x = net.conv(x, f"{block}.conv", kernel, stride if index == 0 else 1)
        x = net.leaky_relu(net.instance_norm(x, f"{block}.norm"))
    return x


def _non_local(net: _Net, x: Node, name: str) -> Node:
    """In bf16 the products and the soft-max are bf16, too: OpenVINO leaves no choice.

    Measured with products up to 100, the result is as near to the exact one as PyTorch's with a
    soft-max in float32, since queries and keys are rounded in both.
    """

    def positions(features: Node) -> Node:
        """(1, channels, positions)"""
        return net.reshape(features, (1, _shape(features)[1], -1))

    query = positions(net.conv(x, f"{name}.theta"))
    key = positions(net.halved(net.conv(x, f"{name}.phi")))
    value = positions(net.halved(net.conv(x, f"{name}.g")))
    weights = ops.softmax(ops.matmul(query, key, True, False), -1)
    mixed = ops.matmul(value, weights, False, True)
    mixed = net.reshape(mixed, (1, _shape(mixed)[1], *_size(x)))
    return ops.add(x, net.batch_norm(net.conv(mixed, f"{name}.out"), f"{name}.norm"))


def _dual_gate(net: _Net, skip: Node, gating: Node, name: str) -> Node:
    gated = [_additive_gate(net, skip, gating, f"{name}.gates.{index}") for index in range(2)]
    combined = net.conv(ops.concat(gated, 1), f"{name}.combine")
    return ops.relu(net.batch_norm(combined, f"{name}.norm"))


def _additive_gate(net: _Net, skip: Node, gating: Node, name: str) -> Node:
    resized = net.resize(net.conv(gating, f"{name}.phi"), _size(skip))
    both = ops.relu(ops.add(net.conv(skip, f"{name}.theta"), resized))
    weights = ops.sigmoid(net.conv(both, f"{name}.psi"))
    weighed = net.conv(ops.multiply(skip, weights), f"{name}.out")
    return net.batch_norm(weighed, f"{name}.norm")


def _channel_attention(net: _Net, x: Node, name: str, kernel) -> Node:
    def conv_norm(x: Node, part: str, first: int, kernel) -> Node:
        x = net.conv(x, f"{name}.{part}.{first}", kernel, bias=False)
        return net.batch_norm(x, f"{name}.{part}.{first + 1}")

    def weights(pooled: Node) -> Node:
        hidden = ops.relu(net.linear(net.reshape(pooled, (1, -1)), f"{name}.mlp.0"))
        return ops.sigmoid(net.linear(hidden, f"{name}.mlp.2"))

    features = conv_norm(ops.relu(conv_norm(x, "expand", 0, kernel)), "expand", 3, kernel)
    highest = ops.reduce_max(features, _constant(net.axes), True)
    both = ops.add(weights(net.mean(features)), weights(highest))
    weighed = ops.multiply(features, net.reshape(both, (1, -1, *net.each(1))))
    weighed = ops.relu(ops.add(weighed, conv_norm(x, "residual", 0, 1)))
    return ops.relu(conv_norm(weighed, "reduce", 0, kernel))


# Stock nnU-Net 2's networks


class _Stock:
    """What the arguments of a stock network say of all its stages."""

    COMMON = (
        *("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "conv_bias"),
        *("norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin"),
        *("nonlin_kwargs", "n_conv_per_stage_decoder", "deep_supervision"),
    )

    def __init__(self, net: _Net, arguments: Arguments, image: Node, own: set[str]):
        if unknown := sorted(arguments.keys() - {*self.COMMON} - own):
            raise ValueError(f"the plan's argument {unknown[0]} is not known here")
        self.net = net
        self.count = arguments["n_stages"]
        if (conv := _class_name(arguments["conv_op"])) != f"Conv{net.dim}d":
            raise ValueError(f"the plan has {conv} for a patch of {net.dim} axes")
        self.kernels = [net.each(size) for size in self.per_stage(arguments["kernel_sizes"])]
        self.strides = [net.each(stride) for stride in self.per_stage(arguments["strides"])]
        self.features = self.per_stage(arguments["features_per_stage"])
        for axis, size in enumerate(_size(image)):
            if size % (factor := prod(stride[axis] for stride in self.strides)):
                raise ValueError(f"the patch's {size} voxels are no multiple of {factor}")
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError(f"the plan has even kernels: {self.kernels}")
        self.bias = arguments.get("conv_bias", False)
        self.norm = _norm(net, arguments)
        self.activation = _activation(net, arguments)

    def per_stage(self, value: Any, count: int | None = None) -> list[Any]:
        """A value for each stage."""
        count = count or self.count
        values = [value] * count if isinstance(value, int) else list(value)
        if len(values) != count:
            raise ValueError(f"the plan has {values} for {count} stages")
        return values

    def block(
        self,
        x: Node,
        name: str,
        kernel,
        stride=1,
        *,
        bias: bool | None = None,
        activation: bool = True,
        nonlin_first: bool = False,
    ) -> Node:
        """Convolution, norm, activation."""
        bias = self.bias if bias is None else bias
        x = self.net.conv(x, f"{name}.conv", kernel, stride, bias=bias)
        if nonlin_first:
            return self.norm(self.activation(x), f"{name}.norm")
        x = self.norm(x, f"{name}.norm")
        return self.activation(x) if activation else x

    def residual_blocks(
        self, x: Node, name: str, count: int, kind: str, features: int, kernel, stride
    ) -> Node:
        """Residual blocks as ResNet-D has them."""
        for index in range(count):
            stride = self.net.each(1 if index else stride)
            x = self._residual_block(x, f"{name}.blocks.{index}", kind, features, kernel, stride)
        return x

    def _residual_block(
        self, x: Node, name: str, kind: str, features: int, kernel, stride: list[int]
    ) -> Node:
        if kind == "BasicBlockD":
            y = self.block(x, f"{name}.conv1", kernel, stride)
            y = self.block(y, f"{name}.conv2", kernel, activation=False)
        else:
            y = self.block(x, f"{name}.conv1", 1)
            y = self.block(y, f"{name}.conv2", kernel, stride)
            y = self.block(y, f"{name}.conv3", 1, activation=False)
        strided = stride != self.net.each(1)
        projected = _shape(x)[1] != features
        if strided:
            nothing = self.net.each(0)
            x = ops.avg_pool(x, stride, nothing, nothing, stride, True)
        if projected:
            skip = f"{name}.skip.{int(strided)}"
            x = self.block(x, skip, 1, bias=False, activation=False)
        return self.activation(ops.add(y, x))

    def decoder(self, skips: list[Node], stage: Callable[[Node, str, int], Node]) -> Node:
        """`stage` takes (features, name of the stage, its level)."""
        x = skips[-1]
        for index, level in enumerate(range(self.count - 2, -1, -1)):
            stride = self.strides[level + 1]
            up = self.net.transposed_conv(x, f"decoder.transpconvs.{index}", stride, bias=self.bias)
            x = stage(ops.concat([up, skips[level]], 1), f"decoder.stages.{index}", level)
        return self.net.conv(x, f"decoder.seg_layers.{self.count - 2}")


def _plain_conv_unet(net: _Net, arguments: Arguments, image: Node) -> Node:
    stock = _Stock(net, arguments, image, {"n_conv_per_stage", "nonlin_first"})
    first = bool(arguments.get("nonlin_first")) and None not in (
        arguments.get("norm_op"),
        arguments.get("nonlin"),
    )

    def stage(x: Node, name: str, count: int, kernel, stride=1) -> Node:
        for index in range(count):
            stride = 1 if index else stride
            x = stock.block(x, f"{name}.convs.{index}", kernel, stride, nonlin_first=first)
        return x

    skips, x = [], image
    for level, count in enumerate(stock.per_stage(arguments["n_conv_per_stage"])):
        name = f"encoder.stages.{level}.0"
        x = stage(x, name, count, stock.kernels[level], stock.strides[level])
        skips.append(x)
    counts = stock.per_stage(arguments["n_conv_per_stage_decoder"], stock.count - 1)[::-1]
    return stock.decoder(
        skips, lambda x, name, level: stage(x, name, counts[level], stock.kernels[level])
    )


def _residual_encoder(stock: _Stock, arguments: Arguments, image: Node) -> list[Node]:
    kind = _class_name(arguments.get("block") or "BasicBlockD")
    if kind not in ("BasicBlockD", "BottleneckD"):
        raise ValueError(f"the plan's block {kind} is not known here")
    x = stock.block(image, "encoder.stem.convs.0", stock.kernels[0])
    skips = []
    for level, count in enumerate(stock.per_stage(arguments["n_blocks_per_stage"])):
        x = stock.residual_blocks(
            x,
            f"encoder.stages.{level}",
            count,
            kind,
            stock.features[level],
            stock.kernels[level],
            stock.strides[level],
        )
        skips.append(x)
    return skips


RESIDUAL = {"n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"}
"""Arguments of networks with a residual encoder."""


def _residual_encoder_unet(net: _Net, arguments: Arguments, image: Node) -> Node:
    stock = _Stock(net, arguments, image, RESIDUAL)
    skips = _residual_encoder(stock, arguments, image)
    counts = stock.per_stage(arguments["n_conv_per_stage_decoder"], stock.count - 1)[::-1]

    def stage(x: Node, name: str, level: int) -> Node:
        for index in range(counts[level]):
            x = stock.block(x, f"{name}.convs.{index}", stock.kernels[level])
        return x

    return stock.decoder(skips, stage)


def _residual_unet(net: _Net, arguments: Arguments, image: Node) -> Node:
    stock = _Stock(net, arguments, image, RESIDUAL)
    skips = _residual_encoder(stock, arguments, image)
    counts = stock.per_stage(arguments["n_conv_per_stage_decoder"], stock.count - 1)[::-1]

    def stage(x: Node, name: str, level: int) -> Node:
        features, kernel = stock.features[level], stock.kernels[level]
        return stock.residual_blocks(x, name, counts[level], "BasicBlockD", features, kernel, 1)

    return stock.decoder(skips, stage)


def _class_name(path: str) -> str:
    return path.rpartition(".")[2]


def _norm(net: _Net, arguments: Arguments) -> Callable[[Node, str], Node]:
    if arguments.get("norm_op") is None:
        return lambda x, name: x
    kind = _class_name(arguments["norm_op"]).removesuffix(f"{net.dim}d")
    options = dict(arguments.get("norm_op_kwargs") or {})
    batch = kind == "BatchNorm"
    if kind not in ("InstanceNorm", "BatchNorm"):
        raise ValueError(f"the plan's norm {kind} is not known here")
    if options.get("track_running_stats", batch) != batch:
        raise ValueError(f"the plan's {kind} keeps its statistics otherwise than usual")
    return partial(
        net.batch_norm if batch else net.instance_norm,
        epsilon=options.get("eps", EPSILON),
        affine=options.get("affine", batch),
    )


def _activation(net: _Net, arguments: Arguments) -> Callable[[Node], Node]:
    if arguments.get("nonlin") is None:
        return lambda x: x
    kind = _class_name(arguments["nonlin"])
    if kind == "ReLU":
        return ops.relu
    if kind == "LeakyReLU":
        options = arguments.get("nonlin_kwargs") or {}
        return partial(net.leaky_relu, slope=options.get("negative_slope", 0.01))
    raise ValueError(f"the plan's activation {kind} is not known here")
