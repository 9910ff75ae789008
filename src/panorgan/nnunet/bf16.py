"""Whether this processor's bf16 convolutions can be trusted with a network.

oneDNN, which PyTorch calls on a CPU, has kernels that are wrong for a few shapes alone: with AMX,
where the last axis of the output is one voxel and its stride above one (pytorch/pytorch#169688);
with AVX512-BF16 and torch 2.11 and 2.13, in the gradient of 3x3x3 kernels on two slices, which adds
memory that nobody wrote. Such a network would learn, or label, nonsense without a word.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from panorgan.networks.fast import channels_last as memory_format

TOLERANCE = 0.05
"""Largest relative error; rounding to bf16 makes up to 0.006, a wrong kernel about 1."""

ROWS = 16
"""Voxels, along all axes but the last, of what is tried without gradients: what was wrong there
depends on the last. What was wrong of gradients depends on all, and on the threads."""

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def usable_precision(
    network: nn.Module,
    shape: Sequence[int],
    precision: str,
    *,
    gradients: bool = False,
    channels_last: bool = False,
) -> str:
    """The precision to compute a network in on its device: fp32, with a line, if bf16 is wrong.

    Parameters
    ----------
    network
        On the device where it will run.
    shape
        Of its inputs: (batch, channels, *patch).
    precision
        A resolved one, to be computed with as many threads as torch has now.
    gradients
        Whether the backward pass is to be used too.
    channels_last
        Whether images and weights will lie so.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    if precision != "bf16" or not on_cpu:
        return precision
    for convolution, given in _convolutions(network, shape, None if gradients else ROWS):
        error = _largest_error(convolution, given, gradients, channels_last)
        if not error <= TOLERANCE:
            size = " x ".join(map(str, given[2:]))
            print(
                f"computing in fp32: in bf16 {convolution} of {size} voxels is wrong here "
                f"(relative error {error:.2g}, torch {torch.__version__})"
            )
            return "fp32"
    return precision


def _convolutions(
    network: nn.Module, shape: Sequence[int], rows: int | None
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
            network.eval()(torch.empty(*shape))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    seen = set()
    for module, given in shapes.items():
        if rows:
            given = (*given[:2], *(min(size, rows) for size in given[2:-1]), given[-1])
        kind = str(module), given
        if kind not in seen:
            seen.add(kind)
            yield module, given


def _largest_error(
    convolution: nn.Module, shape: Sequence[int], gradients: bool, channels_last: bool = False
) -> float:
    """Of output and, where asked, gradients in bf16, relative to the norm in fp32."""
    random = torch.Generator().manual_seed(0)
    exact = deepcopy(convolution).bfloat16().float()  # the same rounded weights
    half = deepcopy(convolution).bfloat16()
    image = torch.randn(shape, generator=random).bfloat16()
    layout = memory_format(len(shape) - 2) if channels_last else torch.contiguous_format
    found = []
    for module, given in ((half, image), (exact, image.float())):
        with torch.set_grad_enabled(gradients), _filled_memory():
            module.to(memory_format=layout)
            given = given.clone(memory_format=layout).requires_grad_(gradients)
            output = module(given)
            tensors = [output.detach()]
            if gradients:
                weights = torch.randn(output.shape, generator=random.manual_seed(1))
                output.backward(weights.bfloat16().to(output.dtype))
                tensors += [given.grad, module.weight.grad]
        found.append([tensor.float() for tensor in tensors])
    errors = [(a - b).norm() / b.norm().clamp_min(1e-30) for a, b in zip(*found, strict=True)]
    return float(torch.stack(errors).max())  # NaN if one is


@contextmanager
def _filled_memory() -> Iterator[None]:
    """New memory is full of large numbers, not of zeros as it often is by chance.

    So a kernel that reads what it has not written shows itself. Only glibc can do this.
    """
    perturb = -6  # M_PERTURB: bytes of new memory are the complement of this one
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(perturb, 0x80)
    try:
        yield
    finally:
        if mallopt:
            mallopt(perturb, 0)
