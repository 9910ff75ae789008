"""Whether this processor's bf16 convolutions can be trusted with a network.

oneDNN, which PyTorch calls on a CPU, has had kernels that are wrong for a few shapes alone: on
processors with AMX, where the last axis of the output is one voxel and its stride above one
(pytorch/pytorch#169688). Such a network would train on, or label, nonsense without a word.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

TOLERANCE = 0.05
"""Largest relative error; rounding to bf16 makes up to 0.006, a wrong kernel about 1."""

ROWS = 16
"""Voxels of a tried input along all axes but the last, on which depends what has gone wrong."""

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def usable_precision(
    network: nn.Module, patch_size: Sequence[int], precision: str, *, gradients: bool = False
) -> str:
    """The precision to compute a network in on its device: fp32, with a line, if bf16 is wrong.

    Parameters
    ----------
    network
        With one input channel or more, on the device where it will run.
    patch_size
        Size of its inputs, (y, x) or (z, y, x).
    precision
        A resolved one.
    gradients
        Whether the backward pass is to be used too.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    if precision != "bf16" or not on_cpu:
        return precision
    for convolution, shape in _convolutions(network, patch_size):
        if (error := _largest_error(convolution, shape, gradients)) > TOLERANCE:
            size = " x ".join(map(str, shape[2:]))
            print(
                f"computing in fp32: in bf16 {convolution} of {size} voxels is wrong here "
                f"(relative error {error:.2g}, torch {torch.__version__})"
            )
            return "fp32"
    return precision


def _convolutions(
    network: nn.Module, patch_size: Sequence[int]
) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Each convolution of a network that differs from those before, and its input's shape."""
    own = [module for module in network.modules() if isinstance(module, CONVOLUTIONS)]
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        shapes[module] = tuple(given[0].shape)

    hooks = [module.register_forward_hook(note) for module in own]
    training = network.training
    try:
        # Shapes alone: nothing is computed.
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            network.eval()(torch.empty(1, own[0].in_channels, *patch_size))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    seen = set()
    for module, shape in shapes.items():
        shape = (*shape[:2], *(min(size, ROWS) for size in shape[2:-1]), shape[-1])
        kind = str(module), shape
        if kind not in seen:
            seen.add(kind)
            yield module, shape


def _largest_error(convolution: nn.Module, shape: Sequence[int], gradients: bool) -> float:
    """Of output and, where asked, gradients in bf16, relative to the norm in fp32."""
    random = torch.Generator().manual_seed(0)
    exact = deepcopy(convolution).bfloat16().float()  # the same rounded weights
    half = deepcopy(convolution).bfloat16()
    image = torch.randn(shape, generator=random).bfloat16()
    found = []
    for module, given in ((half, image), (exact, image.float())):
        with torch.set_grad_enabled(gradients):
            given = given.clone().requires_grad_(gradients)
            output = module(given)
            tensors = [output.detach()]
            if gradients:
                weights = torch.randn(output.shape, generator=random.manual_seed(1))
                output.backward(weights.bfloat16().to(output.dtype))
                tensors += [given.grad, module.weight.grad]
        found.append([tensor.float() for tensor in tensors])
    return max(
        float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(*found, strict=True)
    )
