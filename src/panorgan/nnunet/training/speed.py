"""Which way of computing the same steps is fastest on this GPU: tried, not guessed."""

import time
from collections.abc import Mapping
from copy import copy, deepcopy
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch

from panorgan.nnunet.training.trainer import Setting, Trainer

WARM_UP, STEPS = 4, 10
"""Steps before the clock runs (compiling, cuDNN's own search), and steps on it."""

WORTH_S = 3600.0
"""A training that takes less is not worth the search, which may take minutes to compile."""

GAIN = 0.97
"""Another setting has to take less than this share of the time."""

ALIKE = 0.03
"""The first loss may differ by this share: dropout and half precision do not repeat it."""


def fastest(
    trainer: Trainer, batch: Mapping[str, Any], steps_left: int, state: Path
) -> tuple[Setting, dict[str, float]]:
    """Try channels-last memory and `torch.compile`, alone and together.

    Works on copies: the trainer and all random numbers are afterwards as they were. What fails, or
    has another loss, is left out with a line in the log.

    Parameters
    ----------
    trainer
        An initialized one.
    batch
        A training batch.
    steps_left
        Of the whole training, to see whether a search is worth its time.
    state
        As for `attempt`.

    Returns
    -------
    setting
        The fastest; plain unless the gain is clear.
    seconds : dict
        Median time of a step by the setting's name; empty if nothing was searched.
    """
    plain = Setting()
    loss, step = measure(trainer, batch, plain)
    if step * steps_left < WORTH_S:
        return plain, {}
    seconds = {plain: step}
    for setting in (Setting(True, False), Setting(False, True), Setting(True, True)):
        if (tried := attempt(trainer, batch, setting, state)) is None:
            continue
        if not abs(tried[0] - loss) <= ALIKE * abs(loss):
            print(f"{setting}: another loss ({tried[0]:.4f}, not {loss:.4f}), not used")
            continue
        seconds[setting] = tried[1]
    best = min(seconds, key=seconds.__getitem__)
    if seconds[best] > GAIN * step:
        best = plain
    figures = {str(setting): round(value, 5) for setting, value in seconds.items()}
    text = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in figures.items())
    print(f"a step takes: {text}; used: {best}")
    return best, figures


def attempt(
    trainer: Trainer, batch: Mapping[str, Any], setting: Setting, state: Path
) -> tuple[float, float] | None:
    """As `measure`, or None and a line in the log if the setting does not work here.

    A note in the folder `state` tells whoever comes after a crash not to try it again.
    """
    note = state / f"tried-{str(setting).replace(' ', '-')}"
    if note.exists():
        print(f"{setting}: not used, as the process ended when it was tried before")
        return None
    note.touch()
    try:
        loss, seconds = measure(trainer, batch, setting)
        if not isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        return loss, seconds
    except Exception as error:
        # Compilers fail in many ways, none of them a reason not to train.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f"{setting}: does not work here, not used ({reason[:200]})")
        return None
    finally:
        note.unlink()


def measure(trainer: Trainer, batch: Mapping[str, Any], setting: Setting) -> tuple[float, float]:
    """First loss and median seconds of steps of a copy of the trainer.

    Raises
    ------
    Exception
        Whatever the setting makes torch raise.
    """
    trial = copy(trainer)
    trial.network = deepcopy(trainer.network)
    trial.optimizer = trial.make_optimizer()
    trial.grad_scaler = deepcopy(trainer.grad_scaler)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            trial.use(setting)
            trial.network.train()
            losses = [float(trial.train_step(batch)) for _ in range(WARM_UP)]
            times = []
            for _ in range(STEPS):
                started = time.perf_counter()
                float(trial.train_step(batch))
                times.append(time.perf_counter() - started)
    finally:
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
    return losses[0], median(times)
