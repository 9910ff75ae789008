"""The tensors of a network, told from its plan alone. Importing this imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from panorgan.config.registry import NETWORKS_BY_PATH, Network
from panorgan.nnunet.models.stock import UNETS, is_stock

Shapes = dict[str, tuple[int, ...]]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names of tensors that are not trained."""


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of a network's trained values."""
    return sum(
        prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in BUFFERS
    )


def tensor_shapes(architecture: Mapping[str, Any], channels: int, outputs: int) -> Shapes:
    """The shape of each parameter and buffer under its first name.

    Parameters
    ----------
    architecture
        Of a plan's configuration.
    channels, outputs
        Of the network.

    Raises
    ------
    LookupError, TypeError, ValueError
        If the network is neither panorgan's nor stock nnU-Net's, or its arguments do not describe
        one.
    """
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    if is_stock(name):
        return _Stock(name.rpartition(".")[2], arguments, channels, outputs).tensors
    if name not in NETWORKS_BY_PATH:
        known = ", ".join((*UNETS, *(path.rpartition(".")[2] for path in NETWORKS_BY_PATH)))
        raise ValueError(f"the network class {name} is unknown; known: {known}")
    return _ours(NETWORKS_BY_PATH[name], arguments, channels, outputs)


class _Tensors(Shapes):
    """Collects shapes by name."""

    def conv(
        self, name: str, inputs: int, outputs: int, kernel: Sequence[int] = (), bias: bool = True
    ) -> None:
        """A convolution or, without a kernel, a linear layer. A transposed one swaps its sides."""
        self[f"{name}.weight"] = (outputs, inputs, *kernel)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def transposed_conv(
        self, name: str, inputs: int, outputs: int, kernel: Sequence[int], bias: bool
    ) -> None:
        self[f"{name}.weight"] = (inputs, outputs, *kernel)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, channels: int, affine: bool = True, batch: bool = False) -> None:
        if affine:
            self[f"{name}.weight"] = self[f"{name}.bias"] = (channels,)
        if batch:
            self[f"{name}.running_mean"] = self[f"{name}.running_var"] = (channels,)
            self[f"{name}.num_batches_tracked"] = ()


# ---------------------------------------------------------------------------------------------
# panorgan's networks


def _ours(network: Network, arguments: Mapping[str, Any], channels: int, outputs: int) -> Shapes:
    tensors = _Tensors()
    features, kernels = arguments["features"], arguments["kernel_sizes"]
    strides, convs = arguments["strides"], arguments["convs_per_stage"]
    ones = (1,) * len(kernels[0])

    def blocks(name: str, inputs: int, outputs: int, kernel: Sequence[int]) -> None:
        for index in range(convs):
            tensors.conv(f"{name}.{index}.conv", inputs if index == 0 else outputs, outputs, kernel)
            tensors.norm(f"{name}.{index}.norm", outputs)

    below = channels
    for stage, (size, kernel) in enumerate(zip(features, kernels, strict=True)):
        blocks(f"encoder.stages.{stage}", below, size, kernel)
        below = size
    levels = range(len(features) - 2, -1, -1)
    decoder = network.decoder_kinds(len(levels))
    for index, level in enumerate(levels):
        name, skip, kernel = f"decoder.stages.{index}", features[level], kernels[level + 1]
        plain = decoder[index] == "plain"
        tensors.transposed_conv(  # a plain stage's has no bias, as in nnU-Net 1
            f"{name}.upsample", features[level + 1], skip, strides[level + 1], bias=not plain
        )
        if plain:
            blocks(f"{name}.convs", 2 * skip, skip, kernel)
        else:
            _attention(tensors, name, decoder[index], features[level + 1], skip, kernel)
    for index, level in enumerate(levels):
        tensors.conv(f"decoder.heads.{index}", features[level], outputs, ones, bias=False)
    return tensors


def _attention(
    tensors: _Tensors, name: str, kind: str, below: int, skip: int, kernel: Sequence[int]
) -> None:
    """What `AttentionStage` has after its transposed convolution."""
    ones = (1,) * len(kernel)
    if kind == "gated":
        for gate in (f"{name}.gate.gates.{index}" for index in range(2)):
            tensors.conv(f"{gate}.theta", skip, skip, ones)
            tensors.conv(f"{gate}.phi", below, skip, ones)
            tensors.conv(f"{gate}.psi", skip, 1, ones)
            tensors.conv(f"{gate}.out", skip, skip, ones)
            tensors.norm(f"{gate}.norm", skip, batch=True)
        tensors.conv(f"{name}.gate.combine", 2 * skip, skip, ones)
        tensors.norm(f"{name}.gate.norm", skip, batch=True)
    wide, hidden = 2 * skip, max(1, skip // 2)
    channel = f"{name}.channel_attention"
    for part, inputs, outputs, size in (
        ("expand.0", wide, skip, kernel),
        ("expand.3", skip, wide, kernel),
        ("residual.0", wide, wide, ones),
        ("reduce.0", wide, skip, kernel),
    ):
        sequence, _, index = part.rpartition(".")
        tensors.conv(f"{channel}.{part}", inputs, outputs, size, bias=False)
        tensors.norm(f"{channel}.{sequence}.{int(index) + 1}", outputs, batch=True)
    tensors.conv(f"{channel}.mlp.0", wide, hidden)
    tensors.conv(f"{channel}.mlp.2", hidden, wide)
    if kind == "non_local":
        inner = max(1, wide // 4)
        for part in ("theta", "phi", "g"):
            tensors.conv(f"{name}.non_local.{part}", wide, inner, ones)
        tensors.conv(f"{name}.non_local.out", inner, wide, ones)
        tensors.norm(f"{name}.non_local.norm", wide, batch=True)


# ---------------------------------------------------------------------------------------------
# nnU-Net's networks


class _Stock:
    """A U-Net of nnU-Net's from its arguments; `tensors` are its tensors."""

    def __init__(self, kind: str, arguments: Mapping[str, Any], channels: int, outputs: int):
        self.tensors = _Tensors()
        self.arguments = arguments
        self.stages = arguments["n_stages"]
        self.dim = _dimension(arguments)
        self.ones = (1,) * self.dim
        self.bias = arguments.get("conv_bias", False)
        self.bottlenecks = [None] * self.stages
        if str(arguments.get("block")).endswith(".BottleneckD"):
            self.bottlenecks = self.each("bottleneck_channels")
        self.norm = _norm(arguments)
        self.features = self.each("features_per_stage")
        self.kernels = self.sizes("kernel_sizes")
        self.strides = self.sizes("strides")
        self.encoder(kind, channels)
        self.decoder(kind, outputs)

    def each(self, key: str, count: int | None = None) -> list[Any]:
        """An argument of each stage; a plan may give one for all."""
        value, count = self.arguments[key], count or self.stages
        values = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(values) != count:
            raise ValueError(f"{key} has {len(values)} entries, not {count}")
        return values

    def sizes(self, key: str) -> list[tuple[int, ...]]:
        """An argument of each stage and axis."""
        return [(n,) * self.dim if isinstance(n, int) else tuple(n) for n in self.each(key)]

    def encoder(self, kind: str, inputs: int) -> None:
        plain = kind == "PlainConvUNet"
        if not plain:
            stem = self.arguments.get("stem_channels") or self.features[0]
            self.convolutions("encoder.stem", inputs, stem, self.kernels[0], 1)
            inputs = stem
        counts = self.each("n_conv_per_stage" if plain else "n_blocks_per_stage")
        for stage, (count, outputs, kernel) in enumerate(
            zip(counts, self.features, self.kernels, strict=True)
        ):
            name = f"encoder.stages.{stage}"
            if plain:
                self.convolutions(f"{name}.0", inputs, outputs, kernel, count)
            else:
                shape = (inputs, outputs, kernel, self.strides[stage])
                self.residuals(name, *shape, count, self.bottlenecks[stage])
            inputs = outputs

    def decoder(self, kind: str, outputs: int) -> None:
        counts = self.each("n_conv_per_stage_decoder", self.stages - 1)
        for index, count in enumerate(counts):
            level = self.stages - 2 - index
            skip, kernel = self.features[level], self.kernels[level]
            name, below = f"decoder.stages.{index}", self.features[level + 1]
            self.tensors.transposed_conv(
                f"decoder.transpconvs.{index}", below, skip, self.strides[level + 1], self.bias
            )
            if kind == "ResidualUNet":
                self.residuals(name, 2 * skip, skip, kernel, self.ones, count, None)
            else:
                self.convolutions(name, 2 * skip, skip, kernel, count)
            self.tensors.conv(f"decoder.seg_layers.{index}", skip, outputs, self.ones)

    def convolutions(
        self, name: str, inputs: int, outputs: int, kernel: Sequence[int], count: int
    ) -> None:
        for index in range(count):
            self.unit(f"{name}.convs.{index}", outputs if index else inputs, outputs, kernel)

    def residuals(
        self,
        name: str,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        count: int,
        inner: int | None,
    ) -> None:
        """Blocks of which the first is strided and changes the channels, by a skip of its own."""
        for index in range(count):
            block, first = f"{name}.blocks.{index}", outputs if index else inputs
            if inner:
                self.unit(f"{block}.conv1", first, inner, self.ones)
                self.unit(f"{block}.conv2", inner, inner, kernel)
                self.unit(f"{block}.conv3", inner, outputs, self.ones)
            else:
                self.unit(f"{block}.conv1", first, outputs, kernel)
                self.unit(f"{block}.conv2", outputs, outputs, kernel)
        if inputs != outputs:
            behind_pooling = int(any(step != 1 for step in stride))
            skip = f"{name}.blocks.0.skip.{behind_pooling}"
            self.unit(skip, inputs, outputs, self.ones, bias=False)

    def unit(
        self, name: str, inputs: int, outputs: int, kernel: Sequence[int], bias: bool | None = None
    ) -> None:
        """A convolution and its norm."""
        self.tensors.conv(
            f"{name}.conv", inputs, outputs, kernel, self.bias if bias is None else bias
        )
        self.norm(self.tensors, f"{name}.norm", outputs)


def _dimension(arguments: Mapping[str, Any]) -> int:
    """Of a plan's convolutions; ValueError if a layer that it names is none of torch.nn."""
    for key in ("conv_op", "norm_op", "dropout_op", "nonlin"):
        path = arguments.get(key)
        if path is not None and str(path).split(".")[:2] != ["torch", "nn"]:
            raise ValueError(f"{path} is no layer of torch.nn")
    dimensions = {"Conv2d": 2, "Conv3d": 3}
    name = str(arguments["conv_op"]).rpartition(".")[2]
    if name not in dimensions:
        raise ValueError(f"its convolutions are {name}")
    return dimensions[name]


def _norm(arguments: Mapping[str, Any]) -> Callable[[_Tensors, str, int], None]:
    """Adds the tensors of a norm."""
    path, given = arguments.get("norm_op"), arguments.get("norm_op_kwargs") or {}
    if path is None:
        return lambda tensors, name, channels: None
    name = str(path).rpartition(".")[2]
    if name.startswith("InstanceNorm"):
        return partial(_Tensors.norm, affine=given.get("affine", False))
    if name.startswith("BatchNorm"):
        return partial(_Tensors.norm, affine=given.get("affine", True), batch=True)
    raise ValueError(f"its norms are {name}")
