"""bf16 convolutions are tried before they are trusted: what is wrong, is noticed, and what then."""

import json

import pytest
import torch
from torch import nn
from toys import plan_of, run, student, teacher, write_case

from panorgan.inference.predictor import Predictor
from panorgan.nnunet.bf16 import TOLERANCE, _convolutions, _largest_error, usable_precision
from panorgan.nnunet.models.model import load_model, network_of

NARROW = {"patch_size": [4, 16, 4]}
"""The student's deepest convolutions make one voxel along the last axis."""


def network(recipe: dict) -> nn.Module:
    return network_of(*plan_of(recipe))


def shape(recipe: dict) -> tuple[int, ...]:
    return (recipe["batch_size"], 1, *recipe["patch_size"])


@pytest.fixture
def sound(monkeypatch):
    """bf16 convolutions as they should be, whatever this processor makes of them."""
    for layer in (nn.Conv2d, nn.Conv3d):

        def exact(self, image, weight, bias, right=layer._conv_forward):
            given = (None if part is None else part.float() for part in (image, weight, bias))
            return right(self, *given).to(image.dtype)

        monkeypatch.setattr(layer, "_conv_forward", exact)


@pytest.fixture
def faulty(sound, monkeypatch):
    """As oneDNN with AMX: wrong where the last axis ends at one voxel by a stride above 1."""
    right = nn.Conv3d._conv_forward

    def wrong(self, image, weight, bias):
        output = right(self, image, weight, bias)
        if image.dtype == torch.bfloat16 and output.shape[-1] == 1 and self.stride[-1] > 1:
            return output.roll(1, dims=1)
        return output

    monkeypatch.setattr(nn.Conv3d, "_conv_forward", wrong)


@pytest.mark.parametrize("recipe", [teacher(), student(), student() | NARROW])
def test_what_is_right_is_trusted(recipe, sound, capsys):
    net = network(recipe)
    assert usable_precision(net, shape(recipe), "bf16", gradients=True) == "bf16"
    errors = [_largest_error(*found, True) for found in _convolutions(net, shape(recipe), None)]
    assert 1e-4 < max(errors) < 6e-3
    assert not capsys.readouterr().out


def test_each_shape_of_the_network_is_tried():
    recipe = student() | NARROW
    net = network(recipe)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(
                lambda m, given, _: seen.append((str(m), tuple(given[0].shape)))
            )
    net.eval()(torch.zeros(shape(recipe)))
    tried = [(str(module), given) for module, given in _convolutions(net, shape(recipe), None)]
    assert tried == list(dict.fromkeys(seen))


def test_large_inputs_are_tried_in_rows():
    wide = student() | {"patch_size": [4, 64, 48]}
    for rows, largest in ((None, 64), (16, 16)):
        found = _convolutions(network(wide), shape(wide), rows)
        sizes = {given[2:] for _, given in found}
        assert (4, largest, 48) in sizes
        assert max(size[1] for size in sizes) == largest


def test_a_wrong_kernel_is_noticed(faulty, capsys):
    broad, narrow = student(), student() | NARROW
    assert usable_precision(network(broad), shape(broad), "bf16") == "bf16"
    assert not capsys.readouterr().out
    assert usable_precision(network(narrow), shape(narrow), "bf16") == "fp32"
    text = capsys.readouterr().out
    assert text.startswith("computing in fp32: in bf16 Conv3d(8, 8, kernel_size=(3, 3, 3)")
    assert "of 4 x 8 x 2 voxels is wrong here (relative error 1" in text
    assert text.count("\n") == 1


def test_a_wrong_gradient_is_noticed_where_it_is_used(sound, monkeypatch):
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, image):
            return image.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.2 if gradient.dtype == torch.bfloat16 else gradient

    right = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *a: Spoilt.apply(right(*a)))
    recipe = teacher()
    net = network(recipe)
    assert usable_precision(net, shape(recipe), "bf16") == "bf16"
    assert usable_precision(net, shape(recipe), "bf16", gradients=True) == "fp32"


def test_what_is_trusted_has_the_right_gradient():
    """With what this processor really does: on some, that of two slices is wrong."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1))
    trusted = usable_precision(block, (1, 1, 2, 16, 24), "bf16", gradients=True) == "bf16"
    worst = max(
        _largest_error(*found, True) for found in _convolutions(block, (1, 1, 2, 16, 24), None)
    )
    assert trusted == (worst <= TOLERANCE)
    image = torch.randn(1, 1, 2, 16, 24)
    for _ in range(10):
        gradients = []
        for dtype in (torch.bfloat16, torch.float32):
            block.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                block(image).square().mean().backward()
            gradients.append(block[1].weight.grad.clone())
        if not (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm():
            assert not trusted


def test_memory_that_nobody_wrote_is_noticed(sound, monkeypatch):
    """A kernel that adds what lies in new memory: often zeros, so that it seems right."""
    right = nn.Conv2d._conv_forward

    def careless(self, image, weight, bias):
        output = right(self, image, weight, bias)
        if image.dtype == torch.bfloat16:
            output = output + torch.empty_like(output)
        return output

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", careless)
    recipe = teacher()
    assert usable_precision(network(recipe), shape(recipe), "bf16") == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_precisions_are_not_tried(precision, monkeypatch):
    monkeypatch.setattr("panorgan.nnunet.bf16._convolutions", None)
    assert usable_precision(network(student()), (1, 1, 4, 16, 16), precision) == precision


def test_it_leaves_no_trace(faulty):
    recipe = student() | NARROW
    net = network(recipe).train()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    usable_precision(net, shape(recipe), "bf16", gradients=True)
    assert torch.rand(1) == expected
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(p.grad is None for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_training_and_prediction_go_on_in_fp32(faulty, tmp_path, capsys):
    write_case(tmp_path / "cases", "case", 0)
    recipe = student(precision="bf16", epochs=1) | NARROW
    model = run(tmp_path / "state", {"case": tmp_path / "cases"}, recipe=recipe)
    assert json.loads((model / "card.json").read_text())["precision"] == "fp32"
    assert capsys.readouterr().out.count("computing in fp32: in bf16") == 1
    assert load_model(model).card["precision"] == "fp32"
    assert Predictor(model, "cpu", "bf16", engine="torch").way.precision == "fp32"
    assert Predictor(model, "cpu", "fp32", engine="torch").way.precision == "fp32"
    assert capsys.readouterr().out.count("computing in fp32: in bf16") == 1
