"""What people see of a training while it runs; nothing here can stop or change it."""

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf, nan
from pathlib import Path
from typing import IO, Any

import numpy as np

from panorgan.config.labels import Labels
from panorgan.io.plots import draw_curves
from panorgan.io.writing import replacing, write_text
from panorgan.problems import Stop

CURVE, PICTURE, EVENTS = "progress.csv", "curve.png", "tensorboard"
"""Names in the folder of a training's state."""

DICE = "dice_"
"""Start of the names of the pseudo-Dice columns."""

DRAW_EVERY_S = 30.0
DRAWING_SHARE = 0.01
"""The picture is drawn that rarely, and takes at most that share of the time."""

SLOW_LOADING = 0.05
"""From this share of an epoch on, the log says how long it waited for data."""


class Watch:
    """The log's line an epoch, the curve as table and picture, a bar, TensorBoard's events.

    Parameters
    ----------
    state
        Folder in which the curve is kept up to date.
    settings
        The recipe's section `training`.
    labels
        The class table: groups, titles and colours of the classes.
    console
        Where a person may sit; a bar is shown there if it is a terminal that shows none yet.
    """

    def __init__(
        self, state: Path, settings: Mapping[str, Any], labels: Labels, console: IO[str] | None
    ):
        self._state, self._labels = state, labels
        self._epochs, self._iterations = settings["epochs"], settings["iterations"]
        self._draw_at = time.monotonic() + DRAW_EVERY_S
        self._bar = _make_bar(console, self._iterations)
        self._events: Any = _make_events(state / EVENTS) if settings["tensorboard"] else None
        print(f"the learning curve while it trains: {state / CURVE} and {state / PICTURE}")

    def batch_done(self, epoch: int, iteration: int, losses: Sequence[float]) -> None:
        """Move the bar; `epoch` counts from 0, `iteration` is how many are done."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch + 1} of {self._epochs}", refresh=False)
            self._bar.set_postfix({"loss": f"{np.mean(losses):.4f}"}, refresh=False)
            self._bar.update(iteration - self._bar.n)

    def epoch_done(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Tell of the last row."""
        try:
            write_text(self._state / CURVE, csv_of(rows))
        except (OSError, Stop) as error:
            print(f"{CURVE} cannot be written: {error}")
        print(line_of(rows, self._epochs, self._labels.tumour_name), flush=True)
        if self._bar is not None:
            self._bar.reset()
        if self._events:
            for name, value in rows[-1].items():
                if name != "epoch" and value == value:
                    # Names up to a / share a section of the page.
                    self._events.add_scalar(name.replace(DICE, "dice/"), value, len(rows))
            self._events.flush()
        if time.monotonic() >= self._draw_at:
            self.draw(rows)

    def draw(self, rows: Sequence[Mapping[str, float]]) -> Path | None:
        """Draw the curve; None if that failed, which the log then says."""
        path = self._state / PICTURE
        started = time.monotonic()
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(draw_curves(rows, self._labels))
        except Exception as error:
            print(f"the learning curve cannot be drawn: {type(error).__name__}: {error}")
            self._draw_at = inf
            return None
        now = time.monotonic()
        self._draw_at = now + max(DRAW_EVERY_S, (now - started) / DRAWING_SHARE)
        return path

    def close(self) -> None:
        """Take the bar away and finish the events."""
        if self._bar is not None:
            self._bar.close()
            self._bar.fp.close()
        if self._events:
            self._events.close()


def _make_bar(console: IO[str] | None, iterations: int) -> Any:
    """A bar over an epoch's batches, on a terminal on which no other training shows one."""
    if console is None or not console.isatty():
        return None
    from tqdm import tqdm

    with suppress(OSError):
        # Opened anew: a lock is shared by all that inherited the same opening.
        file = os.open(os.ttyname(console.fileno()), os.O_WRONLY | os.O_NOCTTY)
        terminal = os.fdopen(file, "w")
        try:
            fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            terminal.close()
        else:
            return tqdm(
                total=iterations, file=terminal, leave=False, mininterval=1.0, dynamic_ncols=True
            )
    return None


def _make_events(folder: Path) -> Any:
    """TensorBoard's writer, if that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        print(f"no events for TensorBoard ({error}): `pip install tensorboard`")
        return None
    print(f"tensorboard --logdir {folder}")
    return SummaryWriter(str(folder))


def csv_of(rows: Sequence[Mapping[str, float]]) -> str:
    """Rows as CSV with 6 significant digits; NaN is an empty field."""
    lines = [",".join(rows[0])]
    for row in rows:
        lines.append(",".join("" if value != value else f"{value:.6g}" for value in row.values()))
    return "\n".join(lines) + "\n"


def line_of(rows: Sequence[Mapping[str, float]], epochs: int, tumour: str) -> str:
    """What the log says of the last epoch; `tumour` is the name of that class."""
    row, recent = rows[-1], rows[-10:]
    left = (epochs - len(rows)) * sum(r["seconds"] for r in recent) / len(recent)
    parts = [f"epoch {len(rows)} of {epochs}: loss {row['train_loss']:.4f}"]
    if row["validation_loss"] == row["validation_loss"]:
        parts.append(f"validation {row['validation_loss']:.4f}")
    for group, dice in _dice_by_group(row, tumour).items():
        parts.append(f"Dice {group} {dice:.3f}")
    parts += [f"rate {row['learning_rate']:.2e}", f"{row['seconds']:.1f} s"]
    waiting = row["wait_s"] / row["seconds"] if row["seconds"] else 0.0
    if waiting > SLOW_LOADING:
        parts.append(f"{waiting:.0%} of it waiting for data")
    parts.append(f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d} left")
    return ", ".join(parts)


def _dice_by_group(row: Mapping[str, float], tumour: str) -> dict[str, float]:
    """Mean pseudo-Dice of the organs and of the tumour, as far as there is any."""
    groups = {
        "organs": [v for k, v in row.items() if k.startswith(DICE) and k != DICE + tumour],
        "tumour": [row.get(DICE + tumour, nan)],
    }
    present = {name: [v for v in values if v == v] for name, values in groups.items()}
    return {name: float(np.mean(values)) for name, values in present.items() if values}
