"""The networks: known sizes, shapes, gradients, attention against its equations."""

import json
import re
from math import ceil
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panorgan.config.registry import ATTENTION_UNET, NETWORKS
from panorgan.networks import AttentionUNet, SmallUNet, build_network, count_parameters
from panorgan.networks.attention_unet import AttentionStage
from panorgan.networks.blocks import AdditiveGate, ChannelAttention, DualGate, NonLocal, crop_to

CLASSES = [resolve_name(network.path) for network in NETWORKS.values()]
TEACHER = {
    "features": [32, 64, 128, 256, 480, 480, 480, 480],
    "kernel_sizes": [[3, 3]] * 8,
    "strides": [[1, 1]] + [[2, 2]] * 7,
}
STUDENT = {
    "features": [16, 32, 64, 128, 256],
    "kernel_sizes": [[1, 3, 3]] + [[3, 3, 3]] * 4,
    "strides": [[1, 1, 1], [1, 2, 2]] + [[2, 2, 2]] * 3,
}


def tiny(dim: int, stages: int, width: int = 4) -> dict:
    """A small topology that halves every axis at every level."""
    return {
        "features": [width * min(2**level, 4) for level in range(stages)],
        "kernel_sizes": [[3] * dim] * stages,
        "strides": [[1] * dim] + [[2] * dim] * (stages - 1),
    }


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values for all parameters and running statistics, so that no term is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            fan_in = max(1, p[0].numel()) if p.ndim > 1 else 4
            p.copy_(torch.randn(p.shape, generator=generator) * (2 / fan_in) ** 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module


# Sizes and topology


@pytest.mark.parametrize(
    ("name", "classes", "topology", "count"),
    [("attention_unet", 2, TEACHER, 62_939_014), ("small_unet", 15, STUDENT, 5_644_256)],
)
def test_parameters_of_the_full_recipe(name, classes, topology, count):
    with torch.device("meta"):
        net = build_network(name, 1, classes, **json.loads(json.dumps(topology)))
    assert count_parameters(net) == count


def test_full_recipe_channels_of_every_stage():
    with torch.device("meta"):
        net = AttentionUNet(1, 2, **TEACHER)
    attention = [stage.channel_attention for stage in net.decoder.stages[1:]]
    assert [(block.expand[0].in_channels, block.reduce[0].out_channels) for block in attention] == [
        (960, 480),
        (960, 480),
        (512, 256),
        (256, 128),
        (128, 64),
        (64, 32),
    ]
    gates = [stage.gate for stage in net.decoder.stages[1:] if stage.gate is not None]
    assert [(gate.gates[0].theta.in_channels, gate.gates[0].phi.in_channels) for gate in gates] == [
        (480, 480),
        (256, 480),
        (128, 256),
    ]
    assert net.decoder.stages[1].non_local.theta.out_channels == 240
    dropouts = [stage.dropout for stage in net.decoder.stages[1:]]
    assert [getattr(dropout, "p", 0) for dropout in dropouts] == [0.5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        (2, ["plain", "non_local"]),
        (3, ["plain", "non_local", "gated"]),
        (4, ["plain", "non_local", "gated", "gated"]),
        (5, ["plain", "non_local", "gated", "gated", "gated"]),
        (6, ["plain", "non_local", "gated", "gated", "gated", "ungated"]),
        (7, ["plain", "non_local", "gated", "gated", "gated", "ungated", "ungated"]),
        (8, ["plain", "non_local", "gated", "gated", "gated", "ungated", "ungated", "ungated"]),
    ],
)
def test_attention_at_other_depths(count, kinds):
    assert list(NETWORKS[ATTENTION_UNET].decoder_kinds(count)) == kinds
    with torch.device("meta"):
        stages = AttentionUNet(1, 2, **tiny(2, count + 1)).decoder.stages
    built = []
    for stage in stages:
        if not isinstance(stage, AttentionStage):
            built.append("plain")
        elif isinstance(stage.non_local, NonLocal):
            assert isinstance(stage.dropout, torch.nn.Dropout2d)
            built.append("non_local")
        else:
            built.append("ungated" if stage.gate is None else "gated")
    assert built == kinds


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": [4, 8]}, "one entry a stage"),
        ({"kernel_sizes": [[3, 3], [3, 3], [3, 3, 3]]}, "two or three values"),
        ({"kernel_sizes": [[3, 3], [2, 3], [3, 3]]}, "must be odd"),
        ({"strides": [[2, 2]] * 3}, "first stage's strides"),
        ({"convs_per_stage": 0}, "convs_per_stage"),
        ({"features": [4], "kernel_sizes": [[3, 3]], "strides": [[1, 1]]}, "at least two stages"),
    ],
)
def test_unsound_topologies_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, 1, 2, **(tiny(2, 3) | change))


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="no network is called 'unet'; known: attention_unet"):
        build_network("unet", 1, 2, **tiny(2, 3))


# Shapes


def assert_shapes(net, size, strides, classes):
    batch = 2
    with torch.no_grad():
        outputs = net(torch.randn(batch, 1, *size))
    assert len(outputs) == len(strides) - 1
    for level, output in enumerate(outputs):
        scale = np.prod(strides[: level + 1], axis=0)
        assert output.shape == (batch, classes, *np.ceil(size / scale))
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("stages", "size"),
    [(3, (16, 24)), (4, (37, 51)), (5, (33, 64)), (8, (255, 129)), (4, (9, 8, 23)), (5, (17,) * 3)],
)
def test_any_size_and_depth(cls, stages, size):
    topology = tiny(len(size), stages, width=2)
    assert_shapes(cls(1, 3, **topology).train(), size, topology["strides"], 3)


@settings(max_examples=15)
@given(size=st.tuples(*[st.integers(9, 40)] * 2))
def test_output_has_the_size_of_the_input(size):
    topology = tiny(2, 4, width=2)
    assert_shapes(AttentionUNet(1, 2, **topology).eval(), size, topology["strides"], 2)


@st.composite
def plans(draw) -> tuple[dict, tuple[int, ...]]:
    """Any topology from three stages on, and a size that leaves two voxels or more at its end."""
    dim, stages = draw(st.integers(2, 3)), draw(st.integers(3, 6))
    strides = [[1] * dim]
    strides += [[draw(st.sampled_from([1, 2])) for _ in range(dim)] for _ in range(stages - 1)]
    totals = np.prod(strides, axis=0)
    size = [draw(st.integers(1, 2 * int(total) + 3)) for total in totals]
    axis = draw(st.integers(0, dim - 1))
    size[axis] = int(totals[axis]) + draw(st.integers(1, 5))
    kernels = [[draw(st.sampled_from([1, 3])) for _ in range(dim)] for _ in range(stages)]
    features = [draw(st.integers(1, 4)) for _ in range(stages)]
    return {"features": features, "kernel_sizes": kernels, "strides": strides}, tuple(size)


@settings(max_examples=40)
@given(plans(), st.sampled_from(CLASSES))
def test_any_plan(plan, cls):
    topology, size = plan
    assert_shapes(cls(1, 3, **topology).train(), size, topology["strides"], 3)


def test_anisotropic_strides_and_kernels_in_3d():
    topology = STUDENT | {"features": [2, 4, 4, 4, 4]}
    for cls in CLASSES:
        assert_shapes(cls(1, 15, **topology).eval(), (16, 32, 48), topology["strides"], 15)
        assert_shapes(cls(1, 15, **topology).eval(), (9, 21, 35), topology["strides"], 15)


@pytest.mark.parametrize("name", NETWORKS)
def test_deep_supervision_is_switched_at_the_decoder(name):
    net = build_network(name, 1, 2, **tiny(2, 4), deep_supervision=False).eval()
    x = torch.randn(1, 1, 24, 16)
    with torch.no_grad():
        single = net(x)
        net.decoder.deep_supervision = True
        several = net(x)
        net.decoder.deep_supervision = False
        assert torch.equal(net(x), single)
    assert isinstance(single, torch.Tensor)
    assert isinstance(several, list)
    assert torch.equal(several[0], single)


def test_surplus_is_cropped_at_the_end():
    x = torch.arange(24).reshape(1, 1, 4, 6)
    assert torch.equal(crop_to(x, torch.empty(2, 5, 3, 6)), x[:, :, :3])
    assert torch.equal(crop_to(x, torch.empty(2, 5, 4, 5)), x[..., :5])


@pytest.mark.parametrize("cls", CLASSES)
def test_nnunet_builds_it_from_plans(cls):
    utilities = pytest.importorskip("nnunetv2.utilities.get_network_from_plans")
    topology = json.loads(json.dumps(tiny(2, 4)))
    net = utilities.get_network_from_plans(
        f"panorgan.networks.{cls.__name__}",
        topology,
        [],
        1,
        2,
        allow_init=True,
        deep_supervision=False,
    )
    assert type(net) is cls
    assert net.decoder.deep_supervision is False


# Weights and gradients


WITHOUT_INFLUENCE = re.compile(
    r"stages\.\d\.(convs\.)?\d\.conv\.bias"  # before an instance norm
    r"|gates\.\d\.(out|norm)\.bias|combine\.bias"  # before a batch norm, through 1x1 only
    r"|non_local\.(phi|g|out)\.bias"  # the same for all keys of a soft-max; before a batch norm
)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dim", [2, 3])
def test_gradient_reaches_every_parameter(name, dim):
    """All heads summed; in float64, so that a gradient of nothing but rounding shows as one."""
    net = randomise(build_network(name, 1, 2, **tiny(dim, 7 if dim == 2 else 5))).double().train()
    size = (128, 128) if dim == 2 else (32, 32, 32)
    torch.manual_seed(0)
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    sum(output.sigmoid().mean() for output in net(x)).backward()
    unmoved = set()
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
        if WITHOUT_INFLUENCE.search(label):
            unmoved.add(label)
            assert parameter.grad.abs().max() < 1e-7, label  # the soft-max is float32
        else:
            assert parameter.grad.abs().max() > 1e-6, label
    assert all(label.endswith("bias") for label in unmoved)


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights(name):
    def build(seed):
        torch.manual_seed(seed)
        return build_network(name, 1, 2, **tiny(2, 5))

    first, second, other = (build(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["decoder.heads.0.weight"], other["decoder.heads.0.weight"])

    for module in build(0).modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            assert module.bias is None or not module.bias.any()
            if module.weight.numel() > 1000:
                fan_in = module.weight[0].numel()
                std = module.weight.detach().std().item()
                assert std == pytest.approx((2 / 1.0001 / fan_in) ** 0.5, rel=0.15)
        if isinstance(module, NonLocal):
            assert not module.norm.weight.any()
            assert not module.norm.bias.any()


def test_dropout_only_in_training():
    net = randomise(AttentionUNet(1, 2, **tiny(2, 4)))
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        net.eval()
        assert torch.equal(net(x)[0], net(x)[0])
        net.train()
        assert not torch.equal(net(x)[0], net(x)[0])


def test_student_equals_stock_plain_unet_of_padded_kernels():
    """1x3x3 kernels with zeros around are 3x3x3 kernels; missing biases are zeros."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    features = [2, 3, 4, 5, 6]
    net = randomise(SmallUNet(1, 3, **(STUDENT | {"features": features})))
    stock = unet.PlainConvUNet(
        input_channels=1,
        n_stages=5,
        features_per_stage=features,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * 5,
        strides=STUDENT["strides"],
        n_conv_per_stage=[2] * 5,
        num_classes=3,
        n_conv_per_stage_decoder=[2] * 4,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )

    def copy_blocks(ours, theirs):
        for block, target in zip(ours, theirs, strict=True):
            weight = block.conv.weight
            if weight.shape[2] == 1:
                weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 1, 1))
            target.conv.weight.copy_(weight)
            target.conv.bias.copy_(block.conv.bias)
            target.norm.load_state_dict(block.norm.state_dict())

    x = torch.randn(1, 1, 16, 32, 48)
    with torch.no_grad():
        for ours, theirs in zip(net.encoder.stages, stock.encoder.stages, strict=True):
            copy_blocks(ours, theirs[0].convs)
        for index, stage in enumerate(net.decoder.stages):
            copy_blocks(stage.convs, stock.decoder.stages[index].convs)
            stock.decoder.transpconvs[index].weight.copy_(stage.upsample.weight)
            stock.decoder.transpconvs[index].bias.zero_()
            stock.decoder.seg_layers[index].weight.copy_(net.decoder.heads[index].weight)
            stock.decoder.seg_layers[index].bias.zero_()
        for ours, theirs in zip(net(x), stock(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# Attention against the equations, written out. Arrays are (channels, *space) in float64.


def array(tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def conv(x, layer):
    weight = array(layer.weight)
    kernel = weight.shape[2:]
    padded = np.pad(x, [(0, 0), *((size // 2, size // 2) for size in kernel)])
    out = np.zeros((len(weight), *x.shape[1:]))
    for offset in np.ndindex(*kernel):
        window = tuple(slice(o, o + n) for o, n in zip(offset, x.shape[1:], strict=True))
        taps = weight[(slice(None), slice(None), *offset)]
        out += np.tensordot(taps, padded[(slice(None), *window)], axes=1)
    if layer.bias is not None:
        out += column(array(layer.bias), out.ndim)
    return out


def norm(x, layer):
    """Batch norm with its running statistics."""
    mean, var, scale, shift = (
        column(array(v), x.ndim)
        for v in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (x - mean) / np.sqrt(var + layer.eps) * scale + shift


def column(vector, ndim):
    return vector.reshape(-1, *[1] * (ndim - 1))


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def resize(x, size):
    """Linear interpolation between voxel centres, held beyond the outermost ones."""
    for axis, n in enumerate(size, start=1):
        old = x.shape[axis]
        lines = []
        for position in range(n):
            at = min(max((position + 0.5) * old / n - 0.5, 0), old - 1)
            low = int(at)
            high = min(low + 1, old - 1)
            lines.append(
                np.take(x, low, axis) * (1 - (at - low)) + np.take(x, high, axis) * (at - low)
            )
        x = np.stack(lines, axis)
    return x


def pool_by_two(x):
    out = np.empty((len(x), *(ceil(n / 2) for n in x.shape[1:])))
    for index in np.ndindex(*out.shape[1:]):
        window = tuple(slice(2 * i, 2 * i + 2) for i in index)
        out[(slice(None), *index)] = x[(slice(None), *window)].reshape(len(x), -1).max(axis=1)
    return out


def plain_gate(block, skip, gating):
    steered = conv(skip, block.theta) + resize(conv(gating, block.phi), skip.shape[1:])
    weights = sigmoid(conv(relu(steered), block.psi))
    return norm(conv(skip * weights, block.out), block.norm)


def assert_equal(block, expected, *inputs):
    with torch.no_grad():
        outputs = block(*(torch.from_numpy(x).float() for x in inputs))
    for output, *sample in zip(outputs, *inputs, strict=True):
        np.testing.assert_allclose(array(output), expected(*sample), rtol=1e-4, atol=1e-4)


SPACES = [((7, 10), (4, 5)), ((5, 4, 6), (3, 2, 3))]


@pytest.mark.parametrize(("size", "coarse"), SPACES)
def test_additive_gates(size, coarse):
    rng = np.random.default_rng(0)
    skip, gating = rng.normal(size=(2, 3, *size)), rng.normal(size=(2, 5, *coarse))
    single = randomise(AdditiveGate(len(size), 3, 5)).eval()
    assert_equal(single, lambda s, g: plain_gate(single, s, g), skip, gating)

    dual = randomise(DualGate(len(size), 3, 5)).eval()

    def expected(s, g):
        both = np.concatenate([plain_gate(gate, s, g) for gate in dual.gates])
        return relu(norm(conv(both, dual.combine), dual.norm))

    assert_equal(dual, expected, skip, gating)


@pytest.mark.parametrize("size", [(7, 10), (1, 6), (5, 4, 6)])
def test_non_local(size):
    block = randomise(NonLocal(len(size), 8)).eval()

    def expected(x):
        query = conv(x, block.theta).reshape(2, -1)
        key = pool_by_two(conv(x, block.phi)).reshape(2, -1)
        value = pool_by_two(conv(x, block.g)).reshape(2, -1)
        mixed = np.zeros_like(query)
        for i in range(query.shape[1]):
            weights = [np.exp(query[:, i] @ key[:, j]) for j in range(key.shape[1])]
            for j, weight in enumerate(weights):
                mixed[:, i] += weight / sum(weights) * value[:, j]
        return x + norm(conv(mixed.reshape(2, *size), block.out), block.norm)

    assert_equal(block, expected, np.random.default_rng(0).normal(size=(2, 8, *size)))


@pytest.mark.parametrize("size", [(7, 10), (5, 4, 6)])
def test_channel_attention(size):
    kernel = [3, 3] if len(size) == 2 else [1, 3, 3]
    block = randomise(ChannelAttention(len(size), 6, 4, kernel)).eval()

    def mlp(v):
        first, second = block.mlp[0], block.mlp[2]
        hidden = relu(array(first.weight) @ v + array(first.bias))
        return sigmoid(array(second.weight) @ hidden + array(second.bias))

    def expected(x):
        inner = relu(norm(conv(x, block.expand[0]), block.expand[1]))
        f = norm(conv(inner, block.expand[3]), block.expand[4])
        flat = f.reshape(len(f), -1)
        by_mean = f * column(mlp(flat.mean(axis=1)), f.ndim)
        by_max = f * column(mlp(flat.max(axis=1)), f.ndim)
        residual = norm(conv(x, block.residual[0]), block.residual[1])
        out = relu(by_mean + by_max + residual)
        return relu(norm(conv(out, block.reduce[0]), block.reduce[1]))

    assert_equal(block, expected, np.random.default_rng(0).normal(size=(2, 6, *size)))


def test_stages_are_wired_as_described():
    """Gates see the skip and what comes from below; the skip's channels come first."""
    skip, below = torch.randn(2, 4, 7, 10), torch.randn(2, 6, 4, 5)
    for kind in ("non_local", "gated", "ungated"):
        stage = randomise(AttentionStage(kind, 2, 6, 4, [2, 2], [3, 3])).eval()
        with torch.no_grad():
            left = stage.gate(skip, below) if kind == "gated" else skip
            x = torch.cat((left, stage.upsample(below)[:, :, :7, :10]), dim=1)
            if kind == "non_local":
                x = stage.non_local(x)
            assert torch.equal(stage(below, skip), stage.channel_attention(x))


def test_non_local_starts_as_the_identity():
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(NonLocal(2, 8).train()(x), x)


@pytest.mark.parametrize("size", [(16, 16), (5, 6, 8)])
def test_non_local_soft_max_is_float32_under_autocast(size):
    """Large logits: in bfloat16 their rounding alone would change the weights by a tenth."""
    block = randomise(NonLocal(len(size), 32)).eval()
    seen = {}
    for name in ("theta", "phi", "g"):
        getattr(block, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    block.out.register_forward_pre_hook(lambda module, inputs: seen.update(mixed=inputs[0]))
    x = 6 * torch.randn(1, 32, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(x)
    assert seen["theta"].dtype == torch.bfloat16
    query = seen["theta"].double().flatten(2)
    key, value = (block.pool(seen[name].double()).flatten(2) for name in ("phi", "g"))
    logits = query.transpose(1, 2) @ key
    assert logits.abs().max() > 30
    expected = (value @ torch.softmax(logits, -1).transpose(1, 2)).reshape(seen["mixed"].shape)
    torch.testing.assert_close(seen["mixed"].double(), expected, rtol=2**-8, atol=1e-3)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_autocast_is_close_to_float32(name):
    net = build_network(name, 1, 2, **tiny(2, 4, width=8)).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        exact = net(x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close = net(x)[0]
    assert close.dtype == torch.bfloat16
    assert (close.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
