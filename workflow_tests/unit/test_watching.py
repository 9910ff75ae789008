"""What people see of a training: log, curve, picture, bar, events; and that it stops nothing."""

import csv
import os
import pty
import sys
import termios
from math import nan
from select import select
from types import ModuleType

import pytest

from panorgan.config.labels import Labels
from panorgan.config.settings import Training
from panorgan.nnunet.training import watching
from panorgan.nnunet.training.watching import Watch, line_of

LOOKS = {"tolerance_mm": 1, "crop_slices": False, "colour": "#ff0000"}
LABELS = Labels.model_validate(
    {
        "labels": [
            {"value": value, "name": name, "title": name} | LOOKS
            for value, name in enumerate(("tumour", "liver", "lesion"), 1)
        ],
        "tumour": "lesion",
        "ignore": 4,
    }
)
"""Here the tumour is called lesion, and what is called tumour counts as an organ."""


def row(epoch=1, **changes):
    values = {
        "epoch": epoch,
        "train_loss": 0.5,
        "validation_loss": 0.25,
        "dice_tumour": 0.2,
        "dice_liver": 0.6,
        "dice_lesion": 0.9,
        "learning_rate": 0.001,
        "seconds": 10.0,
        "wait_s": 0.4,
        "peak_gpu_mb": nan,
    }
    return values | changes


def watch(state, console=None, **settings):
    return Watch(state, Training(epochs=5, iterations=4, **settings).model_dump(), LABELS, console)


class TestLine:
    def test_everything(self):
        assert line_of([row(), row(2, seconds=30.0)], 5, "lesion") == (
            "epoch 2 of 5: loss 0.5000, validation 0.2500, Dice organs 0.400, Dice tumour 0.900, "
            "rate 1.00e-03, 30.0 s, 0:01:00 left"
        )

    def test_without_validation(self):
        unknown = {
            "validation_loss": nan,
            "dice_tumour": nan,
            "dice_liver": nan,
            "dice_lesion": nan,
        }
        assert line_of([row(**unknown)], 5, "lesion") == (
            "epoch 1 of 5: loss 0.5000, rate 1.00e-03, 10.0 s, 0:00:40 left"
        )

    def test_waiting_for_data_is_told_when_it_is_long(self):
        assert "10.0 s, 40% of it waiting for data, 0:00:40" in line_of(
            [row(wait_s=4)], 5, "lesion"
        )
        assert "waiting" not in line_of([row(wait_s=0.5)], 5, "lesion")


class TestCurve:
    def test_where_to_look(self, tmp_path, capsys):
        watch(tmp_path)
        text = capsys.readouterr().out
        assert str(tmp_path / "progress.csv") in text
        assert str(tmp_path / "curve.png") in text

    def test_table(self, tmp_path):
        watch(tmp_path).epoch_done([row(), row(2, validation_loss=nan)])
        with open(tmp_path / "progress.csv") as file:
            found = list(csv.DictReader(file))
        assert [line["validation_loss"] for line in found] == ["0.25", ""]
        assert (found[1]["wait_s"], found[1]["peak_gpu_mb"]) == ("0.4", "")

    def test_picture_takes_its_share_of_the_time(self, tmp_path, monkeypatch):
        """One that takes 2 s may come every 200 s, and at most every 30 s come what may."""
        now, drawn = [1000.0], []

        def draw(rows, labels):
            drawn.append(now[0])
            now[0] += 2.0 if len(drawn) == 1 else 0.25
            return b"picture"

        monkeypatch.setattr(watching, "draw_curves", draw)
        monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
        seen = watch(tmp_path)
        for _ in range(60):
            now[0] += 10.0
            seen.epoch_done([row()])
        # From the end of the first, 1032, to 1232, and then by thirties.
        assert drawn[:4] == [1030, 1232, 1262.25, 1292.5]
        assert (tmp_path / "curve.png").read_bytes() == b"picture"

    def test_a_failing_picture_is_told_once_and_stops_nothing(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(watching, "DRAW_EVERY_S", 0.0)
        monkeypatch.setattr(watching, "draw_curves", lambda *_: 1 / 0)
        seen = watch(tmp_path)
        for epoch in range(3):
            seen.epoch_done([row(epoch + 1)])
        assert capsys.readouterr().out.count("cannot be drawn: ZeroDivisionError") == 1
        assert seen.draw([row()]) is None
        assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]

    def test_picture_in_the_colours_of_the_table(self, tmp_path):
        path = watch(tmp_path).draw([row(), row(2)])
        assert path.read_bytes()[:4] == b"\x89PNG"


class TestBar:
    @pytest.fixture
    def terminal(self):
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))

        def shown(last: str) -> str:
            """What comes, which the kernel hands over in parts, up to a text."""
            text = ""
            while last not in text and select([master], [], [], 10.0)[0]:
                text += os.read(master, 10_000).decode()
            return text

        with os.fdopen(slave, "w") as console:
            yield console, shown
        os.close(master)

    def test_on_a_terminal(self, terminal, tmp_path):
        console, shown = terminal
        seen = watch(tmp_path, console)
        seen._bar.mininterval, seen._bar.miniters, seen._bar.dynamic_miniters = 0.0, 1, False
        for iteration in range(1, 4):
            seen.batch_done(2, iteration, [0.5, 0.25])
        text = shown("3/4 [")
        assert "epoch 3 of 5:  75%" in text
        assert "3/4" in text
        assert "loss=0.3750" in text
        assert "\n" not in text
        seen.epoch_done([row()])
        assert seen._bar.n == 0
        seen.close()

    def test_one_a_terminal(self, terminal, tmp_path):
        console, _ = terminal
        first, second = watch(tmp_path, console), watch(tmp_path, console)
        assert second._bar is None
        first.close()
        third = watch(tmp_path, console)
        assert third._bar is not None
        third.close()

    def test_not_in_a_file(self, tmp_path):
        with open(tmp_path / "log", "w") as console:
            seen = watch(tmp_path, console)
            seen.batch_done(0, 1, [1.0])
            seen.close()
        assert (tmp_path / "log").read_text() == ""


class TestEvents:
    def test_not_unless_asked(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        watch(tmp_path).epoch_done([row()])

    def test_not_installed(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        seen = watch(tmp_path, tensorboard=True)
        assert "`pip install tensorboard`" in capsys.readouterr().out
        seen.epoch_done([row()])
        seen.close()

    def test_scalars(self, tmp_path, monkeypatch, capsys):
        written = []

        class Writer:
            def __init__(self, folder):
                written.append(folder)

            def add_scalar(self, *what):
                written.append(what)

            def flush(self):
                written.append("flushed")

            def close(self):
                written.append("closed")

        module = ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        seen = watch(tmp_path, tensorboard=True)
        seen.epoch_done([row(), row(2)])
        seen.close()
        folder = str(tmp_path / "tensorboard")
        assert f"tensorboard --logdir {folder}" in capsys.readouterr().out
        assert written[0] == folder
        assert written[-2:] == ["flushed", "closed"]
        scalars = {name: (value, epoch) for name, value, epoch in written[1:-2]}
        assert scalars["dice/lesion"] == (0.9, 2)
        assert scalars["train_loss"] == (0.5, 2)
        assert not {"epoch", "peak_gpu_mb"} & set(scalars)
