"""OpenVINO's engine against PyTorch: the same networks, without a line of PyTorch's."""

import numpy as np
import pytest
import torch

from panorgan.config.registry import ATTENTION_UNET, NETWORKS, SMALL_UNET
from panorgan.inference.engines.openvino import OpenVINOEngine
from panorgan.networks import build_network
from panorgan.nnunet.models.model import tensors_of
from panorgan.nnunet.models.stock import stock_network

CHANNELS, OUTPUTS = 2, 5


def ours(name, features, kernel_sizes, strides, **others):
    arguments = {"features": features, "kernel_sizes": kernel_sizes, "strides": strides, **others}
    return {"network_class_name": NETWORKS[name].path, "arch_kwargs": arguments}


def stock(name, dim=3, norm="InstanceNorm", nonlin="LeakyReLU", **others):
    arguments = {
        "n_stages": 3,
        "features_per_stage": [6, 8, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]] if dim == 3 else 3,
        "strides": [[1] * dim, [1, 2, 2][-dim:], [2] * dim],
        "n_conv_per_stage_decoder": [2, 1],
        "conv_bias": True,
        "norm_op": norm and f"torch.nn.modules.{norm.lower()}.{norm}{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nonlin and f"torch.nn.{nonlin}",
        "nonlin_kwargs": {"inplace": True},
    }
    counts = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments | {counts: [1, 2, 2]} | others,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]
        + [key for key in ("block",) if key in others],
    }


BLOCK = "dynamic_network_architectures.building_blocks.residual."
FLAT_FIRST = ([[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]])
DEEP_2D = ([[3, 3]] * 7, [[1, 1]] + [[2, 2]] * 6)
DEEP_3D = ([[1, 3, 3]] + [[3, 3, 3]] * 6, [[1, 1, 1]] + [[1, 2, 2]] * 3 + [[2, 2, 2]] * 3)
SEVEN = [4, 6, 8, 10, 12, 14, 16]

CASES = {
    "student": (ours(SMALL_UNET, [8, 16, 32], *FLAT_FIRST), (8, 32, 48)),
    "student, odd sizes": (ours(SMALL_UNET, [8, 16, 32], *FLAT_FIRST), (7, 29, 31)),
    "student, two slices": (ours(SMALL_UNET, [8, 16, 32], *FLAT_FIRST), (2, 16, 18)),
    "student, odd channels": (
        ours(SMALL_UNET, [3, 7, 17], *FLAT_FIRST, convs_per_stage=1),
        (5, 33, 20),
    ),
    "student, last axis of one voxel": (
        ours(SMALL_UNET, [8, 16, 32], *FLAT_FIRST),
        (16, 32, 3),
    ),
    "student, 2D": (ours(SMALL_UNET, [8, 16], [[3, 3]] * 2, [[1, 1], [2, 2]]), (33, 31)),
    "teacher": (ours(ATTENTION_UNET, SEVEN, *DEEP_2D), (128, 192)),
    "teacher, odd sizes": (ours(ATTENTION_UNET, SEVEN, *DEEP_2D), (131, 201)),
    "teacher, 3D": (ours(ATTENTION_UNET, SEVEN, *DEEP_3D), (16, 128, 128)),
    "teacher, 3D, odd sizes": (ours(ATTENTION_UNET, SEVEN, *DEEP_3D), (11, 97, 65)),
    "plain": (stock("PlainConvUNet"), (8, 16, 24)),
    "plain, 2D, batch norm, ReLU": (
        stock(
            "PlainConvUNet",
            2,
            "BatchNorm",
            "ReLU",
            conv_bias=False,
            norm_op_kwargs={"eps": 1e-3},
            n_conv_per_stage=2,
            n_conv_per_stage_decoder=2,
        ),
        (32, 40),
    ),
    "plain, no norm, slope": (
        stock("PlainConvUNet", norm=None, nonlin_kwargs={"negative_slope": 0.2}),
        (4, 12, 20),
    ),
    "plain, norm last, not affine, dropout": (
        stock(
            "PlainConvUNet",
            2,
            norm_op_kwargs=None,
            nonlin_first=True,
            dropout_op="torch.nn.Dropout2d",
            dropout_op_kwargs={"p": 0.5},
        ),
        (32, 40),
    ),
    "residual encoder": (stock("ResidualEncoderUNet"), (8, 16, 24)),
    "residual encoder, 2D": (stock("ResidualEncoderUNet", 2, conv_bias=False), (24, 20)),
    "residual encoder, bottlenecks": (
        stock(
            "ResidualEncoderUNet",
            block=f"{BLOCK}BottleneckD",
            bottleneck_channels=[3, 4, 5],
            stem_channels=4,
            features_per_stage=[6, 16, 16],
        ),
        (8, 16, 24),
    ),
    "residual": (stock("ResidualUNet"), (8, 16, 24)),
    "residual, batch norm": (
        stock("ResidualUNet", 2, "BatchNorm", block=f"{BLOCK}BasicBlockD"),
        (24, 20),
    ),
}


def network_of(architecture):
    """With weights, statistics and all else at random."""
    torch.manual_seed(0)
    if architecture["network_class_name"].startswith("panorgan"):
        (name,) = (
            name
            for name, network in NETWORKS.items()
            if network.path == architecture["network_class_name"]
        )
        kwargs = {"deep_supervision": False, **architecture["arch_kwargs"]}
        network = build_network(name, CHANNELS, OUTPUTS, **kwargs)
    else:
        network = stock_network(architecture, CHANNELS, OUTPUTS)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.ndim == 1:
            torch.nn.init.normal_(tensor, 0.2, 0.4)
    return network.eval()


def arrays(network):
    return {name: tensor.numpy() for name, tensor in tensors_of(network).items()}


def tile_of(patch_size, seed=0):
    return np.random.default_rng(seed).standard_normal((CHANNELS, *patch_size), np.float32)


@torch.inference_mode()
def exactly(network, tile):
    """(*patch, outputs) float64."""
    return network.double()(torch.from_numpy(tile)[None].double())[0].movedim(0, -1).numpy()


def engine_of(architecture, network, patch_size, precision="fp32", threads=1):
    return OpenVINOEngine(
        architecture, arrays(network), CHANNELS, OUTPUTS, patch_size, precision, threads
    )


def computed(engine, *tiles):
    """Copies of the engine's logits, as float32."""
    found = []
    for scores in engine.scores(tiles):
        assert scores.flags.c_contiguous
        if scores.dtype == np.uint16:
            scores = (scores.astype(np.uint32) << 16).view(np.float32)
        found.append(scores.copy())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_network_gives_what_pytorch_computes(name):
    architecture, patch_size = CASES[name]
    network, tile = network_of(architecture), tile_of(patch_size)
    (found,) = computed(engine_of(architecture, network, patch_size), tile)
    expected = exactly(network, tile)
    assert found.shape == (*patch_size, OUTPUTS)
    assert expected.std() > 1e-3
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_bf16_rounds_and_does_nothing_else(name):
    architecture, patch_size = CASES[name]
    network, tile = network_of(architecture), tile_of(patch_size)
    (found,) = computed(engine_of(architecture, network, patch_size, "bf16"), tile)
    expected = exactly(network, tile)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
