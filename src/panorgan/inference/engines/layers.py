"""Layers of a network as nodes of OpenVINO's graph, by the names of their tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from panorgan.inference.engines.runtime import ops, ov

EPSILON = 1e-5
"""What PyTorch's norms add to a variance unless told otherwise."""

Arguments = Mapping[str, Any]
"""A plan's ``arch_kwargs``."""

Node = Any
"""A node of a graph: OpenVINO's Python functions give and take all kinds of them."""


def constant(values: Any, dtype: type = np.int64) -> Node:
    # It keeps the array alive, and takes none that is read-only.
    return ops.constant(np.require(values, dtype, ["C", "W"]), shared_memory=True)


def shape_of(x: Node) -> tuple[int, ...]:
    output = x if isinstance(x, ov.Output) else x.output(0)
    return tuple(output.shape)


def size_of(x: Node) -> tuple[int, ...]:
    """Of the space."""
    return shape_of(x)[2:]


class Layers:
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
        return constant(values.reshape(1, -1, *self.each(1)), np.float32)

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
            x, constant(weight, np.float32), self.each(stride), padding, padding, self.each(1)
        )
        return self._bias(x, name) if bias else x

    def transposed_conv(self, x: Node, name: str, stride: Sequence[int], *, bias: bool) -> Node:
        """A transposed convolution whose kernel is its stride."""
        weight = self._weight(name, stride)
        x = ops.convolution_backprop_data(
            x,
            constant(weight, np.float32),
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
        for axis, size in reversed(list(zip(self.axes, size_of(x), strict=True))):
            if (self.axes[-1] - axis) % 2 == 0:
                x = ops.reduce_mean(x, constant([axis]), True)
            else:
                total = ops.reduce_sum(x, constant([axis]), True)
                x = ops.multiply(total, constant(1 / size, np.float32))
        return x

    def instance_norm(
        self, x: Node, name: str, epsilon: float = EPSILON, *, affine: bool = True
    ) -> Node:
        x = ops.subtract(x, self.mean(x))
        if self.exact:
            variance = self.mean(ops.multiply(x, x))
            deviation = ops.sqrt(ops.add(variance, constant(epsilon, np.float32)))
            one = constant(1, np.float32)
            scale = self.channelwise(self.tensor(f"{name}.weight")) if affine else one
            x = ops.multiply(x, ops.divide(scale, deviation))
            return self._bias(x, name) if affine else x
        # In bf16 this one rounds less often, and of what is centred the sums are less wrong.
        x = ops.mvn(x, constant(self.axes), True, epsilon, "inside_sqrt")
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
        return ops.prelu(x, constant([slope], np.float32))

    def linear(self, x: Node, name: str) -> Node:
        """Of (1, inputs)."""
        weight = constant(self.tensor(f"{name}.weight"), np.float32)
        bias = constant(self.tensor(f"{name}.bias")[None], np.float32)
        return ops.add(ops.matmul(x, weight, False, True), bias)

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        return ops.reshape(x, constant(shape), False)

    def crop_to(self, x: Node, size: tuple[int, ...]) -> Node:
        """Drop what is beyond a size, at each axis' end."""
        if size_of(x) == size:
            return x
        start, stop, step = (constant(values) for values in (self.each(0), size, self.each(1)))
        return ops.slice(x, start, stop, step, constant(self.axes))

    def resize(self, x: Node, size: tuple[int, ...]) -> Node:
        """Linear interpolation; the volumes' borders are at the same place."""
        if size_of(x) == size:
            return x
        return ops.interpolate(
            x,
            constant(size),
            "linear_onnx",
            "sizes",
            coordinate_transformation_mode="half_pixel",
            axes=constant(self.axes),
        )

    def halved(self, x: Node) -> Node:
        """Maxima of two voxels along each axis, of one where there is no second."""
        odd = [size % 2 for size in size_of(x)]
        two, one = self.each(2), self.each(1)
        return ops.max_pool(x, two, one, self.each(0), odd, two).output(0)
