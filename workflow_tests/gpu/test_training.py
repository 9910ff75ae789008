"""Trainings on the device: killed and resumed, NaN, out of memory, the search for speed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import curve, plan_of, run, student, teacher

from panorgan.config.settings import Optimizer
from panorgan.nnunet.training import speed
from panorgan.nnunet.training import train as train_module
from panorgan.nnunet.training.checkpoints import load_checkpoint
from panorgan.nnunet.training.trainer import learning_rate, make_trainer
from panorgan.problems import Problems

pytestmark = pytest.mark.gpu

RECIPES = {"teacher": teacher, "student": student}
SGD = Optimizer(learning_rate=0.01, momentum=0.9)
TOLERANCE = 0.01
"""Relative distance of the weights of two trainings on a GPU that differ in rounding alone."""

TRAIN = """
import json, sys
from toys import run
folder, cases, recipe, device = sys.argv[1:]
run(folder, json.loads(cases), recipe=json.loads(recipe), device=device)
"""
SHORT_OF_MEMORY = """
import json, resource, sys
import torch
from toys import run
from panorgan.problems import Problems
folder, cases, recipe, device, megabytes = sys.argv[1:]
if device == "cuda":
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(int(megabytes) * 2**20 / total)
else:
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    run(folder, json.loads(cases), recipe=json.loads(recipe), device=device)
except Problems as error:
    print("problem:", error)
"""


def as_arguments(cases: dict[str, Path], recipe: dict) -> tuple[str, str]:
    return json.dumps({name: str(folder) for name, folder in cases.items()}), json.dumps(recipe)


def wait_for(path: Path, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.005)


def weights(model: Path) -> torch.Tensor:
    return torch.cat(
        [t.flatten().float() for t in load_file(model / "weights.safetensors").values()]
    )


def same(a: object, b: object) -> bool:
    """Whether two states hold the same, tensors compared bit by bit on the CPU."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(("name", "augment_on"), [("teacher", "workers"), ("student", "device")])
def test_killed_and_resumed(
    name, augment_on, device, cases, start, tmp_path, monkeypatch, record_property
):
    precision = "fp16" if device.type == "cuda" else "fp32"
    recipe = RECIPES[name](
        epochs=5,
        iterations=10,
        optimizer=SGD,
        precision=precision,
        augment_on=augment_on,
        workers=1,
    )
    whole = run(tmp_path / "whole", cases, recipe=recipe, device=device.type)

    state = tmp_path / "state"
    process = start(TRAIN, state, *as_arguments(cases, recipe), device.type)
    wait_for(state / "checkpoint-0002.pt", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    # What goes on is exactly what was saved.
    saved = load_checkpoint(state)
    assert saved["epoch"] in (2, 3, 4)
    trainer = make_trainer(*plan_of(recipe), device, tmp_path)
    trainer.initialize(saved["precision"], saved["augment_on"])
    progress = train_module._restore(trainer, saved)
    assert (progress.epoch, progress.iteration) == (saved["epoch"], saved["iteration"])
    assert same(trainer.network.state_dict(), saved["network"])
    assert same(trainer.optimizer.state_dict(), saved["optimizer"])
    assert same(trainer.grad_scaler.state_dict(), saved["scaler"])
    assert bool(saved["random"]["cuda"]) == (device.type == "cuda")
    assert {p.device.type for p in trainer.network.parameters()} == {device.type}
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    assert {buffer.device.type for buffer in momentum} == {device.type}

    # And it goes on with the batch after the last one.
    asked = []
    original = train_module.in_order

    def noted(batches, first, last, **options):
        asked.append((first, last))
        return original(batches, first, last, **options)

    monkeypatch.setattr(train_module, "in_order", noted)
    resumed = run(state, cases, recipe=recipe, device=device.type)
    assert asked[0] == (saved["epoch"] * 10 + saved["iteration"], 50)
    rows, expected = curve(resumed), curve(whole)
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in expected]
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in expected]
    rates = [learning_rate(recipe["training"], epoch, 9) for epoch in range(5)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)
    for row, other in zip(rows, expected, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), abs=0.02)
    whole, resumed = weights(whole), weights(resumed)
    distance = float((whole - resumed).norm() / whole.norm())
    limit = TOLERANCE if device.type == "cuda" else 0
    record_property(f"killed and resumed: distance of the weights, ≤ {limit}", distance)
    assert distance <= limit


def test_nan(precision, device, cases, tmp_path):
    optimizer = Optimizer(learning_rate=1e30, momentum=0.0, gradient_clip=1e30)
    recipe = student(optimizer=optimizer, precision=precision)
    with pytest.raises(Problems, match=r"the loss is NaN in epoch 1, batch [1-4]; ") as caught:
        run(tmp_path, cases, recipe=recipe, device=device.type)
    assert "lower training.optimizer.learning_rate or gradient_clip" in str(caught.value)
    assert not list(tmp_path.glob("checkpoint*"))
    assert not (tmp_path / "model").exists()


def test_out_of_memory(device, cases, start, tmp_path):
    recipe = student() | {"patch_size": [16, 128, 128], "batch_size": 8}
    process = start(SHORT_OF_MEMORY, tmp_path, *as_arguments(cases, recipe), device.type, 200)
    said = process.communicate(timeout=300)[0]
    # Of main memory the limit is known before the first step.
    cause = "the GPU's memory does not suffice; "
    if device.type == "cpu":
        cause = "a training step in fp32 needs about"
    (line,) = [line for line in said.splitlines() if line.startswith("problem: ")]
    assert cause in line, said
    assert "batch_size" in line
    assert process.returncode == 0


def test_the_search_is_kept_in_the_card(device, cases, tmp_path, monkeypatch):
    """On a GPU the training tries what is faster, if told; on a CPU it computes plainly."""

    def no_compiler(*_, **__):
        raise RuntimeError("that compiled steps work is for another test")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(speed, "WORTH_S", 0.0)
    monkeypatch.setattr(speed, "STEPS", 3)
    model = run(tmp_path, cases, recipe=student(compute="search"), device=device.type)
    card = json.loads((model / "card.json").read_text())
    if device.type == "cuda":
        assert list(card["step_seconds"]) == ["plain", "channels last"]
        assert card["setting"] in card["step_seconds"]
        assert float(curve(model)[0]["peak_gpu_mb"]) > 0
    else:
        assert (card["setting"], card["step_seconds"]) == ("plain", {})
    plain = run(tmp_path / "plain", cases, recipe=student(), device=device.type)
    assert json.loads((plain / "card.json").read_text())["setting"] == "plain"
