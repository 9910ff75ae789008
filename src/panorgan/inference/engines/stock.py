"""Graphs of stock nnU-Net 2's networks, the U-Nets of dynamic_network_architectures."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from panorgan.inference.engines.layers import EPSILON, Arguments, Layers, Node, shape_of, size_of
from panorgan.inference.engines.runtime import ops


class _Stock:
    """What the arguments of a stock network say of all its stages."""

    COMMON = (
        *("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "conv_bias"),
        *("norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin"),
        *("nonlin_kwargs", "n_conv_per_stage_decoder", "deep_supervision"),
    )

    def __init__(self, net: Layers, arguments: Arguments, image: Node, own: set[str]):
        if unknown := sorted(arguments.keys() - {*self.COMMON} - own):
            raise ValueError(f"the plan's argument {unknown[0]} is not known here")
        self.net = net
        self.count = arguments["n_stages"]
        if (conv := _class_name(arguments["conv_op"])) != f"Conv{net.dim}d":
            raise ValueError(f"the plan has {conv} for a patch of {net.dim} axes")
        self.kernels = [net.each(size) for size in self.per_stage(arguments["kernel_sizes"])]
        self.strides = [net.each(stride) for stride in self.per_stage(arguments["strides"])]
        self.features = self.per_stage(arguments["features_per_stage"])
        for axis, size in enumerate(size_of(image)):
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
        projected = shape_of(x)[1] != features
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


def _plain_conv_unet(net: Layers, arguments: Arguments, image: Node) -> Node:
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


def _residual_encoder_unet(net: Layers, arguments: Arguments, image: Node) -> Node:
    stock = _Stock(net, arguments, image, RESIDUAL)
    skips = _residual_encoder(stock, arguments, image)
    counts = stock.per_stage(arguments["n_conv_per_stage_decoder"], stock.count - 1)[::-1]

    def stage(x: Node, name: str, level: int) -> Node:
        for index in range(counts[level]):
            x = stock.block(x, f"{name}.convs.{index}", stock.kernels[level])
        return x

    return stock.decoder(skips, stage)


def _residual_unet(net: Layers, arguments: Arguments, image: Node) -> Node:
    stock = _Stock(net, arguments, image, RESIDUAL)
    skips = _residual_encoder(stock, arguments, image)
    counts = stock.per_stage(arguments["n_conv_per_stage_decoder"], stock.count - 1)[::-1]

    def stage(x: Node, name: str, level: int) -> Node:
        features, kernel = stock.features[level], stock.kernels[level]
        return stock.residual_blocks(x, name, counts[level], "BasicBlockD", features, kernel, 1)

    return stock.decoder(skips, stage)


def _class_name(path: str) -> str:
    return path.rpartition(".")[2]


def _norm(net: Layers, arguments: Arguments) -> Callable[[Node, str], Node]:
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


def _activation(net: Layers, arguments: Arguments) -> Callable[[Node], Node]:
    if arguments.get("nonlin") is None:
        return lambda x: x
    kind = _class_name(arguments["nonlin"])
    if kind == "ReLU":
        return ops.relu
    if kind == "LeakyReLU":
        options = arguments.get("nonlin_kwargs") or {}
        return partial(net.leaky_relu, slope=options.get("negative_slope", 0.01))
    raise ValueError(f"the plan's activation {kind} is not known here")


STOCK: dict[str, Callable[[Layers, Arguments, Node], Node]] = {
    "PlainConvUNet": _plain_conv_unet,
    "ResidualEncoderUNet": _residual_encoder_unet,
    "ResidualUNet": _residual_unet,
}
"""Graphs by the name of a class that `panorgan.nnunet.models.stock.is_stock` knows."""
