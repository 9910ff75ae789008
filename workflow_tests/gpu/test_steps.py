"""Training steps on the device against the CPU's in fp32: loss, gradient, the ways to compute."""

from dataclasses import replace
from math import isfinite

import pytest
import torch
from toys import plan_of, student, teacher

from panorgan.nnunet.training import speed
from panorgan.nnunet.training.speed import fastest
from panorgan.nnunet.training.trainer import Setting, Trainer, make_trainer

pytestmark = pytest.mark.gpu

RECIPES = {"teacher": teacher, "student": student}
WEEK = 10**9
"""Steps, whatever one takes."""

TOLERANCE = {"fp32": (2e-3, 0.999), "bf16": (0.02, 0.97), "fp16": (0.02, 0.99)}
"""Largest relative difference of a loss, smallest cosine between gradients. On a GPU fp32
convolutions round their factors to TF32."""


def trainer_on(device: torch.device, recipe: dict, precision: str, folder) -> Trainer:
    """A trainer with the weights of seed 0, without dropout."""
    torch.manual_seed(0)
    trainer = make_trainer(*plan_of(recipe), device, folder)
    trainer.initialize(precision)
    for module in trainer.network.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return trainer


def loss_and_gradient(trainer: Trainer, batch: dict) -> tuple[float, torch.Tensor]:
    trainer.network.train()
    data, target, unknown = trainer._to_device(batch)
    loss = trainer.loss(trainer._forward(data), target, unknown)
    trainer.grad_scaler.scale(loss).backward()
    scale = trainer.grad_scaler.get_scale()
    found = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    gradients = [gradient.flatten().cpu() / scale for gradient in found]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("name", RECIPES)
def test_loss_and_gradient(name, precision, device, cases, tmp_path, record_property):
    compare(name, Setting(), precision, device, cases, tmp_path, record_property)


@pytest.mark.parametrize("name", RECIPES)
def test_channels_last(name, device, cases, tmp_path, record_property):
    # In half precision on a GPU alone, where a training may be told to compute so.
    precision = "bf16" if device.type == "cuda" else "fp32"
    compare(name, Setting(channels_last=True), precision, device, cases, tmp_path, record_property)


def compare(name, setting, precision, device, cases, tmp_path, record_property):
    """Loss and gradient of a batch on the device are the CPU's in fp32 to a tolerance."""
    recipe = RECIPES[name]()
    plain = trainer_on(torch.device("cpu"), recipe, "fp32", tmp_path)
    batch = plain.training_batches(cases, 0, {case: [1] for case in cases})[3]
    expected, exact = loss_and_gradient(plain, batch)
    trainer = trainer_on(device, recipe, precision, tmp_path)
    trainer.use(setting)
    loss, gradient = loss_and_gradient(trainer, batch)
    cosine = float(torch.nn.functional.cosine_similarity(gradient, exact, 0))
    differs, alike = TOLERANCE[precision]
    record_property(f"{precision}: difference of the loss, ≤ {differs}", abs(loss / expected - 1))
    record_property(f"{precision}: cosine of the gradients, > {alike}", cosine)
    assert loss == pytest.approx(expected, rel=differs)
    assert cosine > alike
    assert float(gradient.norm() / exact.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", RECIPES)
def test_looking_at_validation_batches(name, device, cases, tmp_path):
    """The same voxels are hit, but for those where two classes are nearly equal."""
    counts = []
    for where in (torch.device("cpu"), device):
        trainer = trainer_on(where, RECIPES[name](), "fp32", tmp_path)
        trainer.network.eval()
        batch = trainer.validation_batches(cases, 0)[1]
        counts.append(trainer.validation_step(batch)[1])
    voxels = batch["target"][0].numel()
    assert abs(counts[0] - counts[1]).max() <= 0.01 * voxels
    # Hits and missed voxels of a class are its voxels.
    assert (counts[0][0] + counts[0][2] == counts[1][0] + counts[1][2]).all()


def test_augmenting_on_the_device_is_part_of_a_step(device, cases, tmp_path):
    """Batches that are augmented where the network is have the loss of what comes out there."""
    torch.manual_seed(0)
    trainer = make_trainer(*plan_of(student()), device, tmp_path)
    trainer.initialize("fp32", "device")
    batch = trainer.training_batches(cases, 0)[2]
    data, target, _ = trainer._to_device(batch)
    assert data.device.type == device.type
    assert data.shape[2:] == (4, 16, 16) != batch["data"].shape[2:]
    again, _, _ = trainer._to_device(batch)
    assert torch.equal(again, data)
    trainer.network.eval()
    with torch.no_grad():
        expected = float(trainer.loss(trainer.network(data), target))
    trainer.network.train()
    assert float(trainer.train_step(batch)) == pytest.approx(expected, rel=0.05)


def test_the_search_finds_ways_that_work(device, cases, tmp_path, capsys):
    """Channels-last and compiled steps are possible here and have the plain steps' loss."""
    trainer = trainer_on(device, student(), "fp32", tmp_path)
    setting, seconds = fastest(trainer, trainer.training_batches(cases, 0)[0], WEEK, tmp_path)
    tried = ["plain", "channels last", "compiled", "channels last and compiled"]
    assert list(seconds) == tried, capsys.readouterr().out
    assert str(setting) in tried
    assert all(0 < value < 10 for value in seconds.values())
    assert not list(tmp_path.glob("tried-*"))


def test_a_way_that_fails_is_left_out(device, cases, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(speed, "STEPS", 2)
    trainer = trainer_on(device, student(), "fp32", tmp_path)
    batch = trainer.training_batches(cases, 0)[0]
    setting, seconds = fastest(trainer, batch, WEEK, tmp_path)
    assert list(seconds) == ["plain", "channels last"]
    assert setting == replace(setting, compiled=False)
    text = capsys.readouterr().out
    assert text.count("does not work here, not used (no compiler here)") == 2
    trainer.use(setting)
    trainer.network.train()
    assert isfinite(float(trainer.train_step(batch)))
