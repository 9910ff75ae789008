"""The search for the fastest setting: what it chooses, what it leaves alone, what it survives."""

from copy import deepcopy
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import checksum, plan_of, run, student, teacher, write_case

from panorgan.nnunet.training import speed
from panorgan.nnunet.training import train as train_module
from panorgan.nnunet.training.speed import fastest, measure
from panorgan.nnunet.training.trainer import Setting, Trainer, make_trainer

CPU = torch.device("cpu")
PLAIN, LAST, COMPILED, BOTH = (
    Setting(),
    Setting(channels_last=True),
    Setting(compiled=True),
    Setting(channels_last=True, compiled=True),
)
WEEK = 10**9
"""Steps, whatever one takes."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    for number in range(2):
        write_case(folder, f"case-{number}", number)
    return {f"case-{number}": folder for number in range(2)}


@pytest.fixture(params=[teacher, student], ids=["2D", "3D"])
def trainer(request, tmp_path) -> Trainer:
    made = make_trainer(*plan_of(request.param()), CPU, tmp_path)
    made.initialize("fp32")
    return made


def pretend(monkeypatch, seconds, losses=None):
    """Let `measure` find what a GPU might show; None is a setting that does not work there."""

    def measured(trainer, batch, setting):
        if seconds[setting] is None:
            raise RuntimeError("no compiler\nand more about it")
        return (losses or {}).get(setting, 1.0), seconds[setting]

    monkeypatch.setattr(speed, "measure", measured)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.0, 0.5, 0.7, 0.8), LAST),
        ((1.0, 1.2, 0.7, 0.8), COMPILED),
        ((1.0, 1.2, 0.9, 0.8), BOTH),
        ((1.0, 1.2, None, None), PLAIN),
        ((1.0, 0.9, None, None), LAST),
        ((1.0, 0.98, 0.99, 1.1), PLAIN),
    ],
)
def test_choice(seconds, expected, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, dict(zip((PLAIN, LAST, COMPILED, BOTH), seconds, strict=True)))
    setting, figures = fastest(None, None, WEEK, tmp_path)
    assert setting == expected
    assert figures["plain"] == 1.0
    assert len(figures) == 4 - seconds.count(None)
    text = capsys.readouterr().out
    assert f"used: {expected}" in text
    failed = "compiled: does not work here, not used (no compiler)\n"
    assert (failed in text) == (None in seconds)


@pytest.mark.parametrize("loss", [1.05, 0.9, float("nan")])
def test_another_loss_is_not_taken(loss, tmp_path, monkeypatch, capsys):
    times = {PLAIN: 1.0, LAST: 0.9, COMPILED: 0.1, BOTH: 0.95}
    pretend(monkeypatch, times, {COMPILED: loss})
    setting, figures = fastest(None, None, WEEK, tmp_path)
    assert setting == LAST
    assert "compiled" not in figures
    text = capsys.readouterr().out
    assert ("another loss" in text) == isfinite(loss)
    assert ("the loss is nan" in text) == (not isfinite(loss))


def test_what_ended_the_process_is_not_tried_again(tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, {PLAIN: 1.0, LAST: 0.9, COMPILED: 0.1, BOTH: 0.95})

    class Killed(BaseException):
        """As no handler sees it."""

    def crash(trainer, batch, setting, measured=speed.measure):
        if setting == COMPILED:
            assert (tmp_path / "tried-compiled").exists()
            raise Killed
        return measured(trainer, batch, setting)

    with monkeypatch.context() as patch:
        patch.setattr(speed, "measure", crash)
        # A killed process removes nothing.
        patch.setattr(Path, "unlink", lambda path: None)
        with pytest.raises(Killed):
            fastest(None, None, WEEK, tmp_path)
    (tmp_path / "tried-channels-last").unlink()
    assert fastest(None, None, WEEK, tmp_path)[0] == LAST
    assert "compiled: not used, as the process ended" in capsys.readouterr().out


def test_a_short_training_is_not_worth_it(tmp_path, monkeypatch):
    pretend(monkeypatch, {PLAIN: 1.0})
    assert fastest(None, None, 3500, tmp_path) == (PLAIN, {})


def test_nothing_is_changed_by_measuring(trainer, cases):
    batch = trainer.training_batches(cases, 0)[0]
    before = deepcopy(trainer.network.state_dict()), torch.get_rng_state()
    optimizer = deepcopy(trainer.optimizer.state_dict())
    loss, seconds = measure(trainer, batch, LAST)
    assert seconds > 0
    assert torch.equal(torch.get_rng_state(), before[1])
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, before[0][name])
        assert tensor.is_contiguous()
    assert trainer.optimizer.state_dict() == optimizer
    assert trainer.setting == PLAIN
    assert measure(trainer, batch, PLAIN)[0] == pytest.approx(loss, rel=1e-5)


def test_channels_last(trainer, cases):
    """The same steps to rounding, computed on tensors in that order."""
    batches = trainer.training_batches(cases, 0)
    weights = deepcopy(trainer.network.state_dict())
    losses = {}
    for setting in (PLAIN, LAST):
        trainer.network.load_state_dict(weights)
        trainer.use(setting)
        trainer.optimizer = trainer.make_optimizer()
        trainer.network.train()
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.p = 0.0
        losses[setting] = [float(trainer.train_step(batches[number])) for number in range(3)]
    last = torch.channels_last if len(trainer.patch_size) == 2 else torch.channels_last_3d
    kernels = [p for p in trainer.network.parameters() if p.ndim == 2 + len(trainer.patch_size)]
    assert all(kernel.is_contiguous(memory_format=last) for kernel in kernels)
    assert losses[LAST] == pytest.approx(losses[PLAIN], rel=1e-3)


def test_only_training_is_compiled(trainer, cases, monkeypatch):
    """One graph less to compile, and the names of the weights stay."""
    calls = []

    def compile_(network, **_):
        def forward(data):
            calls.append(network.training)
            return network(data)

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    names = list(trainer.network.state_dict())
    trainer.use(COMPILED)
    batch = trainer.training_batches(cases, 0)[0]
    trainer.network.train()
    assert np.isfinite(float(trainer.train_step(batch)))
    trainer.network.eval()
    trainer.validation_step(batch)
    assert calls == [True]
    assert list(trainer.network.state_dict()) == names


class TestResume:
    """What the first job found is kept, unless it does not work on the machine of the next."""

    @pytest.fixture
    def begun(self, tmp_path, cases, monkeypatch):
        """A training that was killed after its first epoch, in channels-last memory."""
        with monkeypatch.context() as patch:

            def choose(trainer, progress, *_):
                progress.step_seconds = {"plain": 2.0, "channels last": 1.0}
                trainer.use(LAST)

            def end(*_):
                raise KeyboardInterrupt

            patch.setattr(train_module, "_choose_setting", choose)
            patch.setattr(train_module.Watch, "epoch_done", lambda *_: None)
            patch.setattr(train_module, "_finish", end)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, cases, recipe=teacher(epochs=2))
        (tmp_path / "checkpoint-0002.pt").unlink()
        return tmp_path

    def finish(self, state, cases, monkeypatch):
        used = []
        original = train_module._finish

        def noted(trainer, progress, *rest):
            used.append((trainer.setting, progress.step_seconds))
            return original(trainer, progress, *rest)

        monkeypatch.setattr(train_module, "_finish", noted)
        assert checksum(run(state, cases, recipe=teacher(epochs=2)))
        return used

    def test_kept(self, begun, cases, monkeypatch):
        expected = [(LAST, {"plain": 2.0, "channels last": 1.0})]
        assert self.finish(begun, cases, monkeypatch) == expected

    def test_does_not_work_any_more(self, begun, cases, monkeypatch, capsys):
        pretend(monkeypatch, {LAST: None})
        ((setting, _),) = self.finish(begun, cases, monkeypatch)
        assert setting == PLAIN
        assert "channels last: does not work here" in capsys.readouterr().out
