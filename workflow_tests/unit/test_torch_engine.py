"""The network on tiles by PyTorch: the fast form computes what the plain network does."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from test_networks import randomise
from torch import nn
from toys import CLASSES, plan_of, student, teacher

from panorgan.inference.engines.torch import TorchEngine
from panorgan.networks.fast import channels_last, mean_and_variance, to_fast_form, use_fast_layers
from panorgan.nnunet.models.model import network_of, tensors_of
from panorgan.nnunet.models.stock import PACKAGE, plain_unet
from panorgan.nnunet.plans import configuration_of, make_dataset_json


def stock(recipe: dict, residual: bool) -> dict:
    """A plan of stock nnU-Net's network with a recipe's topology."""
    plan, _ = plan_of(recipe)
    own = recipe["network"]
    architecture = plain_unet(
        own["features"], own["kernel_sizes"], own["strides"], own["convs_per_stage"]
    )
    if residual:
        arguments = architecture["arch_kwargs"]
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
        architecture["network_class_name"] = f"{PACKAGE}architectures.unet.ResidualEncoderUNet"
    configuration_of(plan)[1]["architecture"] = architecture
    return plan


PLANS = {
    "student": lambda: plan_of(student())[0],
    "teacher": lambda: plan_of(teacher())[0],
    "stock 3D": lambda: stock(student(), residual=False),
    "stock 2D": lambda: stock(teacher(), residual=False),
    "residual 3D": lambda: stock(student(), residual=True),
}


def random_network(plan: dict) -> nn.Module:
    network = network_of(plan, make_dataset_json(CLASSES, ignore=False)).eval()
    return randomise(network)


def engine_of(plan: dict, precision: str = "fp32") -> TorchEngine:
    tensors = {name: t.numpy() for name, t in tensors_of(random_network(plan)).items()}
    return TorchEngine(plan, tensors, "cpu", precision, 1)


def tiles_of(plan: dict, count: int = 3) -> list[np.ndarray]:
    """Noise, but for a large part that is air."""
    random = np.random.default_rng(0)
    size = configuration_of(plan)[1]["patch_size"]
    tiles = [random.normal(size=(1, *size)).astype(np.float32) for _ in range(count)]
    for number, tile in enumerate(tiles):
        tile[..., : 4 * number] = -1.2
    return tiles


def expected_of(plan: dict, tiles: list[np.ndarray]) -> list[np.ndarray]:
    """What the plain network computes in float64, outputs last."""
    network = random_network(plan).double()
    with torch.no_grad():
        return [
            network(torch.from_numpy(tile)[None].double())[0].movedim(0, -1).numpy()
            for tile in tiles
        ]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def bf16(bits: np.ndarray) -> np.ndarray:
    """The values whose upper halves these are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("name", PLANS)
class TestScores:
    def test_fp32_is_exact(self, name):
        plan = PLANS[name]()
        tiles = tiles_of(plan)
        found = [scores.copy() for scores in engine_of(plan).scores(tiles)]
        for one, expected in zip(found, expected_of(plan, tiles), strict=True):
            assert (one.dtype, one.shape) == (np.float32, expected.shape)
            assert one.flags["C_CONTIGUOUS"]
            assert relative(one, expected) < 2e-6

    def test_bf16_is_as_good_as_rounded_weights(self, name):
        plan = PLANS[name]()
        tiles = tiles_of(plan)
        engine = engine_of(plan, "bf16")
        found = [scores.copy() for scores in engine.scores(tiles)]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network = random_network(plan)
            usual = [network(torch.from_numpy(t)[None])[0].float().movedim(0, -1) for t in tiles]
        assert engine.precision == "bf16"
        for one, other, expected in zip(found, usual, expected_of(plan, tiles), strict=True):
            assert (one.dtype, one.shape) == (np.uint16, expected.shape)
            assert one.flags["C_CONTIGUOUS"]
            assert relative(bf16(one), expected) < 1.3 * relative(other.numpy(), expected) < 0.1


def test_tiles_are_taken_as_they_are_needed():
    plan = PLANS["student"]()
    taken = []

    def lazily():
        for tile in tiles_of(plan):
            taken.append(1)
            yield tile

    scores = engine_of(plan).scores(lazily())
    next(scores)
    assert len(taken) == 1
    assert len(list(scores)) == 2


def test_threads_are_the_engines_own():
    plan = PLANS["student"]()
    tensors = {name: t.numpy() for name, t in tensors_of(random_network(plan)).items()}
    engine = TorchEngine(plan, tensors, "cpu", "fp32", 2)
    before = torch.get_num_threads()
    seen = []
    engine._network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    next(engine.scores(tiles_of(plan)))
    assert (seen, torch.get_num_threads()) == ([2], before)


@pytest.mark.parametrize("shape", [(1, 16, 32, 48, 64), (1, 12, 7, 11, 13), (1, 8, 256, 384)])
def test_air_does_not_spoil_the_norm(shape):
    """Four of five voxels are equal; a sum of them all in float32 would be wrong by 1 %."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    x[..., : shape[-1] * 4 // 5] = 0.0987
    exact = x.double()
    space = tuple(range(2, x.ndim))
    mean, variance = mean_and_variance(x.contiguous(memory_format=channels_last(len(space))))
    assert torch.allclose(mean.double(), exact.mean(space)[0], rtol=1e-5)
    assert torch.allclose(variance.double(), exact.var(space, correction=0)[0], rtol=1e-5)


def test_a_network_with_a_batch_norm_of_its_own_keeps_it():
    block = nn.Sequential(
        BasicBlockD(nn.Conv2d, 2, 4, 3, 1, True, nn.BatchNorm2d, {}, nonlin=nn.LeakyReLU)
    )
    randomise(block.eval())
    plain = deepcopy(block)
    to_fast_form(block, 2, "fp32")
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(block(x), plain(x), atol=1e-5)


def gradients_of(network: nn.Module, image: torch.Tensor, last: bool) -> list[torch.Tensor]:
    """Those of image and weights, of a loss in which each output voxel counts differently."""
    network.zero_grad()
    layout = channels_last(image.ndim - 2) if last else torch.contiguous_format
    image = image.clone(memory_format=layout).requires_grad_()
    output = network.to(memory_format=layout)(image)
    torch.manual_seed(0)
    (output * torch.randn(output.shape).to(output.dtype)).mean().backward()
    gradients = image.grad, *(parameter.grad for parameter in network.parameters())
    return [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("last", [False, True], ids=["usual layout", "channels last"])
@pytest.mark.parametrize("name", ["student", "stock 3D", "stock 2D", "residual 3D"])
def test_gradients_of_a_batch_of_one_are_exact(name, last):
    plan = PLANS[name]()
    network, exact = random_network(plan), random_network(plan).double()
    use_fast_layers(network)
    image = torch.from_numpy(tiles_of(plan)[1])[None]
    found = gradients_of(network, image, last)
    expected = gradients_of(exact, image.double(), False)
    for one, other in zip(found, expected, strict=True):
        # Biases before a norm have none but rounding.
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7


def test_batches_of_several_are_computed_as_before():
    plan = PLANS["student"]()
    network, plain = random_network(plan), random_network(plan)
    use_fast_layers(network)
    images = torch.from_numpy(np.stack(tiles_of(plan)))
    with torch.no_grad():
        assert torch.equal(network(images), plain(images))
