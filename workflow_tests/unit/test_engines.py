"""OpenVINO's engine against PyTorch: the same networks, without a line of PyTorch's."""

import subprocess
import sys
from itertools import count, islice, pairwise
from textwrap import dedent

import numpy as np
import pytest
import torch

from panorgan.config.registry import ATTENTION_UNET, NETWORKS, SMALL_UNET
from panorgan.inference.engines import as_float32
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


OLD_PATH = "dynamic_network_architectures.architectures.residual_unet."
BLOCK = "dynamic_network_architectures.building_blocks.residual."
FLAT_FIRST = ([[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]])
DEEP_2D = ([[3, 3]] * 7, [[1, 1]] + [[2, 2]] * 6)
DEEP_3D = ([[1, 3, 3]] + [[3, 3, 3]] * 4, [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]])
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
    "teacher": (ours(ATTENTION_UNET, SEVEN, *DEEP_2D), (64, 128)),
    "teacher, odd sizes": (ours(ATTENTION_UNET, SEVEN, *DEEP_2D), (67, 101)),
    "teacher, 3D": (ours(ATTENTION_UNET, SEVEN[:5], *DEEP_3D), (8, 48, 32)),
    "teacher, 3D, odd sizes": (ours(ATTENTION_UNET, SEVEN[:5], *DEEP_3D), (3, 37, 21)),
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
    "residual encoder, by an old path": (
        stock("ResidualEncoderUNet") | {"network_class_name": f"{OLD_PATH}ResidualEncoderUNet"},
        (8, 16, 24),
    ),
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
        assert scores.dtype == (np.uint16 if engine.precision == "bf16" else np.float32)
        found.append(as_float32(scores).copy())
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


STUDENT, SIZE = CASES["student"]


@pytest.fixture(scope="module")
def student():
    return network_of(STUDENT)


def in_air(patch_size):
    """A tile of air with something in a corner, as at the edge of a CT."""
    tile = np.full((CHANNELS, *patch_size), -2.43, np.float32)
    corner = tuple(slice(size // 4) for size in patch_size)
    tile[(slice(None), *corner)] += tile_of(patch_size)[(slice(None), *corner)]
    return tile


def test_much_constant_air_is_as_exact_as_anything():
    """OpenVINO's own norm is off by a hundredth here: it adds half a million equal voxels up."""
    patch_size = (24, 112, 112)
    architecture = ours(SMALL_UNET, [4, 8], *(part[:2] for part in FLAT_FIRST))
    network, tile = network_of(architecture), in_air(patch_size)
    expected = exactly(network, tile)
    (found,) = computed(engine_of(architecture, network, patch_size), tile)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    (rounded,) = computed(engine_of(architecture, network, patch_size, "bf16"), tile)
    assert np.linalg.norm(rounded - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_come_in_the_order_of_the_tiles_and_are_the_same_for_any_threads(
    student, precision
):
    tiles = [tile_of(SIZE, seed) * (1 + seed) for seed in range(7)]
    alone, together, again = (
        computed(engine_of(STUDENT, student, SIZE, precision, threads), *tiles)
        for threads in (1, 2, 2)
    )
    assert not any(np.array_equal(*pair) for pair in pairwise(alone))
    for found in (together, again):
        assert all(map(np.array_equal, alone, found))


def test_an_engine_is_used_again_after_it_was_left_half_way(student):
    engine = engine_of(STUDENT, student, SIZE, threads=2)
    expected = computed(engine, tile_of(SIZE))
    for scores in engine.scores(tile_of(SIZE, seed) for seed in range(5)):
        assert scores.shape == (*SIZE, OUTPUTS)
        break
    assert np.array_equal(computed(engine, tile_of(SIZE)), expected)
    assert computed(engine) == []


def test_tiles_are_taken_a_few_ahead_and_copied(student):
    engine, taken, buffer = engine_of(STUDENT, student, SIZE, threads=2), [], tile_of(SIZE)

    def tiles():
        for number in count(1):
            taken.append(number)
            buffer[:] = tile_of(SIZE) * number  # the caller's array is used anew
            yield buffer

    expected = computed(engine, *(tile_of(SIZE) * number for number in (1, 2, 3)))
    found = [scores.copy() for scores in islice(engine.scores(tiles()), 3)]
    assert all(map(np.array_equal, found, expected))
    assert len(taken) <= 6


def test_a_tile_of_another_size_is_refused(student):
    engine = engine_of(STUDENT, student, SIZE)
    with pytest.raises(
        ValueError, match=r"a tile of \(2, 8, 32, 47\) is not one of \(2, 8, 32, 48\)"
    ):
        computed(engine, tile_of((8, 32, 47)))


def test_second_names_and_heads_of_lower_resolutions_do_not_matter():
    for name in ("plain", "residual encoder", "student"):
        architecture, patch_size = CASES[name]
        network, tile = network_of(architecture), tile_of(patch_size)
        once = arrays(network)
        every = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
        last = "decoder.seg_layers.0.", "decoder.heads.0."
        fewest = {key: array for key, array in once.items() if not key.startswith(last)}
        found = [
            computed(
                OpenVINOEngine(architecture, tensors, CHANNELS, OUTPUTS, patch_size, "fp32", 1),
                tile,
            )
            for tensors in (once, every, fewest)
        ]
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])


def changed(architecture, **others):
    return architecture | {"arch_kwargs": architecture["arch_kwargs"] | others}


PLAIN, PLAIN_SIZE = CASES["plain"]
RESIDUAL, _ = CASES["residual encoder"]


@pytest.mark.parametrize(
    ("architecture", "patch_size", "precision", "said"),
    [
        (PLAIN | {"network_class_name": "x.Mine"}, SIZE, "fp32", "class x.Mine has no graph here"),
        (PLAIN, PLAIN_SIZE, "fp16", "computes in fp32 or bf16 here, not in fp16"),
        (PLAIN, (8, 16, 23), "fp32", "the patch's 23 voxels are no multiple of 4"),
        (PLAIN, (16, 24), "fp32", "the plan has Conv3d for a patch of 2 axes"),
        (changed(PLAIN, n_stages=4), PLAIN_SIZE, "fp32", "for 4 stages"),
        (changed(PLAIN, extra=1), PLAIN_SIZE, "fp32", "argument extra is not known here"),
        (
            changed(PLAIN, nonlin="torch.nn.GELU"),
            PLAIN_SIZE,
            "fp32",
            "activation GELU is not",
        ),
        (changed(PLAIN, norm_op="torch.nn.GroupNorm"), PLAIN_SIZE, "fp32", "norm GroupNorm is not"),
        (changed(PLAIN, kernel_sizes=[[2] * 3] * 3), PLAIN_SIZE, "fp32", "has even kernels"),
        (changed(PLAIN, strides=[[1, 1]] * 3), PLAIN_SIZE, "fp32", r"\[1, 1\] for 3 axes"),
        (
            changed(PLAIN, norm_op_kwargs={"affine": True, "track_running_stats": True}),
            PLAIN_SIZE,
            "fp32",
            "InstanceNorm keeps its statistics otherwise than usual",
        ),
        (changed(RESIDUAL, block="x.Block"), PLAIN_SIZE, "fp32", "block Block is not known here"),
    ],
)
def test_what_it_cannot_compute_it_refuses(architecture, patch_size, precision, said):
    base = RESIDUAL if "n_blocks_per_stage" in architecture["arch_kwargs"] else PLAIN
    with pytest.raises(ValueError, match=said):
        OpenVINOEngine(
            architecture, arrays(network_of(base)), CHANNELS, OUTPUTS, patch_size, precision, 1
        )


@pytest.mark.parametrize(
    ("change", "architecture", "said"),
    [
        (lambda t: t.pop("encoder.stages.1.1.conv.bias"), STUDENT, "have no encoder.stages.1.1.co"),
        (
            lambda t: t.update({"encoder.stages.1.2.conv.bias": t["decoder.heads.0.weight"]}),
            STUDENT,
            "has no encoder.stages.1.2.conv.bias, but the weights have",
        ),
        (
            lambda t: None,
            changed(STUDENT, kernel_sizes=[[3, 3, 3]] * 3),
            r"encoder.stages.0.0.conv has a kernel of \[1, 3, 3\], in the plan \[3, 3, 3\]",
        ),
        (
            lambda t: t.update({"decoder.heads.1.weight": t["decoder.heads.1.weight"][:3]}),
            STUDENT,
            "gives 3 outputs, not 5",
        ),
        (
            lambda t: t.update({"decoder.heads.1.weight": t["decoder.heads.0.weight"]}),
            STUDENT,
            "the weights do not fit the plan's panorgan.networks.SmallUNet",
        ),
        (
            lambda t: None,
            STUDENT | {"arch_kwargs": {}},
            "the plan's arguments do not describe a panorgan.networks.SmallUNet .KeyError: 'stri",
        ),
    ],
)
def test_weights_of_another_network_are_refused(student, change, architecture, said):
    tensors = arrays(student)
    change(tensors)
    with pytest.raises(ValueError, match=said):
        OpenVINOEngine(architecture, tensors, CHANNELS, OUTPUTS, SIZE, "fp32", 1)


def test_what_bf16_cannot_compute_is_computed_in_fp32_if_it_is_tried(capsys):
    """Here large equal values, rounded in bf16, would have to cancel each other.

    It is tried where the last axis shrinks to one voxel: there bf16 has been wrong elsewhere.
    """
    architecture = stock(
        "PlainConvUNet",
        2,
        None,
        n_stages=2,
        features_per_stage=[6, 8],
        kernel_sizes=1,
        strides=[[1, 1], [2, 2]],
        n_conv_per_stage=1,
        n_conv_per_stage_decoder=1,
    )
    network = network_of(architecture)
    with torch.no_grad():
        network.encoder.stages[0][0].convs[0].conv.bias += 1e4
        for weight in (
            network.encoder.stages[1][0].convs[0].conv.weight,
            network.decoder.stages[0].convs[0].conv.weight[:, 6:],
        ):
            weight -= weight.mean(1, keepdim=True)
    engine = engine_of(architecture, network, (16, 2), "bf16")
    assert engine.precision == "fp32"
    said = capsys.readouterr().out
    assert "computing in fp32: in bf16 this network is wrong here (relative error " in said
    tile = tile_of((16, 2))
    expected = exactly(network, tile)
    (found,) = computed(engine, tile)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert engine_of(architecture, network, (16, 4), "bf16").precision == "bf16"


def test_openvino_is_alone_and_silent(tmp_path):
    """No PyTorch, no nnU-Net, nothing sent, no file written, and other users of it lose nothing.

    Signals are handled after engines have gone, too: OpenVINO's own handling of their stack has
    ended processes that had made two.
    """
    code = dedent("""
        import gc
        import signal
        import sys
        import numpy as np
        from panorgan.inference.engines.openvino import OpenVINOEngine

        tensors = {"decoder.heads.0.weight": np.ones((2, 3, 1, 1), np.float32)}
        for name, inputs in (("encoder.stages.0", 1), ("encoder.stages.1", 3),
                             ("decoder.stages.0.convs", 6)):
            tensors[name + ".0.conv.weight"] = np.ones((3, inputs, 3, 3), np.float32)
            for key in ("conv.bias", "norm.weight", "norm.bias"):
                tensors[f"{name}.0.{key}"] = np.ones(3, np.float32)
        tensors["decoder.stages.0.upsample.weight"] = np.ones((3, 3, 2, 2), np.float32)
        for array in tensors.values():
            array.flags.writeable = False  # as those of a mapped file are
        arguments = {"features": [3, 3], "kernel_sizes": [[3, 3]] * 2,
                     "strides": [[1, 1], [2, 2]], "convs_per_stage": 1}
        architecture = {"network_class_name": "panorgan.networks.SmallUNet",
                        "arch_kwargs": arguments}
        def engine():
            return OpenVINOEngine(architecture, tensors, 1, 2, (8, 8), "fp32", 1)

        first, second, tiles = engine(), engine(), [np.ones((1, 8, 8), np.float32)]
        assert [s.shape for s in first.scores(tiles)] == [(8, 8, 2)]
        del first
        gc.collect()
        del second
        gc.collect()
        received = []
        signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
        signal.raise_signal(signal.SIGUSR1)
        assert received
        unwanted = "torch nnunetv2 openvino_telemetry openvino.tools.ovc".split()
        assert not {*unwanted} & {*sys.modules}, {*unwanted} & {*sys.modules}
    """)
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert list(tmp_path.iterdir()) == []
