"""The training loop: what happens in which order, and how it survives being interrupted."""

import platform
import random
import shutil
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panorgan.labels import load_labels
from panorgan.networks import count_parameters
from panorgan.nnunet.batches import Batches, in_order
from panorgan.nnunet.checkpoints import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from panorgan.nnunet.devices import pick_device, resolve_precision
from panorgan.nnunet.model import save_model
from panorgan.nnunet.trainer import Trainer, learning_rate, make_trainer
from panorgan.problems import Problems
from panorgan.tables import write_text

DICE = "dice_"
"""Start of the names of the pseudo-Dice columns."""


class TrainingInterrupted(Exception):
    """A signal ended the training; its checkpoint is written and a rerun goes on from there."""


@dataclass
class Progress:
    """How far a training is: what a checkpoint says beside weights and random states.

    `losses` and `seconds` are of the unfinished epoch, `rows` the curve of the finished ones.
    """

    epoch: int = 0
    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


def train(
    plan: dict[str, Any],
    dataset_json: dict[str, Any],
    training: Mapping[str, str | Path],
    validation: Mapping[str, str | Path],
    state: str | Path,
    *,
    seed: int,
    card: Mapping[str, Any],
    device: str = "auto",
    unknown: Mapping[str, Collection[int]] | None = None,
) -> Path:
    """Train a network, going on from the last checkpoint in `state` if there is one.

    On the CPU the result is bitwise the same every time (same machine, versions and threads),
    interrupted or not, whatever the validation cases are.

    Parameters
    ----------
    plan, dataset_json
        As `panorgan.nnunet.plans` makes them; the schedule is in ``plan["panorgan"]["recipe"]``.
    training
        For each case the folder of its preprocessed files.
    validation
        Likewise; for the curve only, may be empty.
    state
        Folder of checkpoints and ``progress.csv``; nothing is written elsewhere.
    seed
        Of weights, batches and dropout.
    card
        What the model's card shall say beside what is known here.
    device
        auto, cpu or cuda.
    unknown
        For every case the classes that are unknown in it, which are then not learnt as background
        there (`panorgan.nnunet.losses`); None takes the labels at their word.

    Returns
    -------
    model : Path
        ``state/model``, a model folder as `panorgan.nnunet.model` reads it.

    Raises
    ------
    TrainingInterrupted
        After SIGTERM, SIGUSR1 or SIGINT: a checkpoint was written after the current iteration.
    Problems
        If the loss becomes NaN (the checkpoints before stay), a case cannot be read or the GPU's
        memory does not suffice.
    """
    state = Path(state)
    model = state / "model"
    if model.exists():
        return model
    state.mkdir(parents=True, exist_ok=True)
    for leftover in state.glob(".*.tmp"):
        leftover.unlink()
    recipe = plan["panorgan"]["recipe"]["training"]
    device = pick_device(device)
    if not torch.cuda.is_available():
        print("no GPU: training on the CPU")
    torch.set_num_threads(recipe["threads"])
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)

    trainer = make_trainer(plan, dataset_json, device, state)
    checkpoint = load_checkpoint(state)
    if checkpoint:
        trainer.initialize(checkpoint["precision"])
        progress = _restore(trainer, checkpoint)
    else:
        trainer.initialize(resolve_precision(recipe["precision"], device))
        progress = Progress()
    print(
        f"{count_parameters(trainer.network):,} parameters, {len(training)} training and "
        f"{len(validation)} validation cases, {trainer.precision}, {recipe['threads']} threads"
    )
    try:
        _run(trainer, progress, training, validation, state, seed, unknown)
    except torch.OutOfMemoryError as error:
        print(error)
        cure = "lower batch_size or patch_size of this network in the config"
        raise Problems.one("the GPU's memory does not suffice", cure) from None
    return _finish(trainer, progress, plan, model, {**card, "seed": seed})


def _run(
    trainer: Trainer,
    progress: Progress,
    training: Mapping[str, str | Path],
    validation: Mapping[str, str | Path],
    state: Path,
    seed: int,
    unknown: Mapping[str, Collection[int]] | None,
) -> None:
    """The epochs that are left."""
    recipe = trainer.training
    epochs, iterations = recipe["epochs"], recipe["iterations"]
    to_look_at = trainer.validation_batches(validation, seed, unknown) if validation else None
    batches = in_order(
        trainer.training_batches(training, seed, unknown),
        progress.epoch * iterations + progress.iteration,
        epochs * iterations,
        workers=recipe["workers"],
        pin_memory=trainer.device.type == "cuda",
    )
    saved = time.monotonic()
    with _stop_signals() as stop:
        while progress.epoch < epochs:
            started = time.monotonic() - progress.seconds
            trainer.network.train()
            for iteration in range(progress.iteration, iterations):
                for group in trainer.optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, progress.epoch, iteration)
                loss = trainer.train_step(next(batches))
                if np.isnan(loss):
                    cause = f"the loss is NaN in epoch {progress.epoch + 1}, batch {iteration + 1}"
                    cure = "lower training.optimizer.learning_rate; the last checkpoint is kept"
                    raise Problems.one(cause, cure, file=state)
                progress.losses.append(loss)
                progress.iteration = iteration + 1
                if stop.is_set():
                    break
            looked = None if stop.is_set() else _look(trainer, to_look_at, progress.epoch, stop)
            progress.seconds = time.monotonic() - started
            if stop.is_set():
                path = _save(trainer, progress, state)
                raise TrainingInterrupted(
                    f"stopped in epoch {progress.epoch + 1} of {epochs} after batch "
                    f"{progress.iteration} of {iterations}; {path.name} is written, run the same "
                    f"command again to go on"
                )
            _end_epoch(trainer, progress, looked, state)
            now = time.monotonic()
            if progress.epoch == epochs or now - saved >= recipe["checkpoint_every_s"]:
                _save(trainer, progress, state)
                saved = now


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that signals set; a second Ctrl-C ends the process at once.

    Others may well come twice: from a scheduler or Snakemake, and because the parent has died.
    """
    stop = threading.Event()
    before: dict[int, Any] = {}

    def ask_to_stop(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(number, before[number])
        stop.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            before[number] = signal.signal(number, ask_to_stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _look(
    trainer: Trainer, batches: Batches | None, epoch: int, stop: threading.Event
) -> tuple[float, np.ndarray]:
    """Loss and pseudo-Dice of each class over an epoch's validation batches; NaN without any."""
    losses: list[float] = []
    counts = np.zeros((3, len(trainer.label_manager.foreground_labels)))
    trainer.network.eval()
    count = trainer.training["validation_iterations"] if batches else 0
    for number in range(epoch * count, (epoch + 1) * count):
        loss, batch_counts = trainer.validation_step(batches[number])
        losses.append(loss)
        counts += batch_counts
        if stop.is_set():
            break
    hits, false, missed = counts
    with np.errstate(invalid="ignore"):
        return np.mean(losses or [nan]), 2 * hits / (2 * hits + false + missed)


def _end_epoch(
    trainer: Trainer,
    progress: Progress,
    looked: tuple[float, np.ndarray],
    state: Path,
) -> None:
    """Close an epoch: its row of the curve, its line in the log."""
    recipe = trainer.training
    classes = trainer.plans_manager.plans["panorgan"]["classes"]
    progress.rows.append(
        {
            "epoch": progress.epoch + 1,
            "train_loss": float(np.mean(progress.losses)),
            "validation_loss": float(looked[0]),
            **{DICE + name: float(dice) for name, dice in zip(classes, looked[1], strict=True)},
            "learning_rate": learning_rate(recipe, progress.epoch, recipe["iterations"] - 1),
            "seconds": progress.seconds,
        }
    )
    progress.epoch += 1
    progress.iteration, progress.losses, progress.seconds = 0, [], 0.0
    write_text(state / "progress.csv", _csv(progress.rows))
    print(_line(progress.rows, recipe["epochs"]), flush=True)


def _csv(rows: Sequence[Mapping[str, float]]) -> str:
    """Rows as CSV with 6 significant digits; NaN is an empty field."""
    lines = [",".join(rows[0])]
    for row in rows:
        lines.append(",".join("" if value != value else f"{value:.6g}" for value in row.values()))
    return "\n".join(lines) + "\n"


def _line(rows: Sequence[Mapping[str, float]], epochs: int) -> str:
    """What the log says of the last epoch."""
    row, recent = rows[-1], rows[-10:]
    left = (epochs - len(rows)) * sum(r["seconds"] for r in recent) / len(recent)
    parts = [f"epoch {len(rows)} of {epochs}: loss {row['train_loss']:.4f}"]
    if row["validation_loss"] == row["validation_loss"]:
        parts.append(f"validation {row['validation_loss']:.4f}")
    for group, dice in _dice_by_group(row).items():
        parts.append(f"Dice {group} {dice:.3f}")
    parts += [
        f"rate {row['learning_rate']:.2e}",
        f"{row['seconds']:.1f} s",
        f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d} left",
    ]
    return ", ".join(parts)


def _dice_by_group(row: Mapping[str, float]) -> dict[str, float]:
    """Mean pseudo-Dice of the organs and of the tumour, as far as there is any."""
    tumour = DICE + load_labels().tumour_name
    groups = {
        "organs": [v for k, v in row.items() if k.startswith(DICE) and k != tumour],
        "tumour": [row.get(tumour, nan)],
    }
    present = {name: [v for v in values if v == v] for name, values in groups.items()}
    return {name: float(np.mean(values)) for name, values in present.items() if values}


def _save(trainer: Trainer, progress: Progress, state: Path) -> Path:
    content = {
        **asdict(progress),
        "precision": trainer.precision,
        "network": trainer.network.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.grad_scaler.state_dict(),
        "random": random_states(),
    }
    return save_checkpoint(state, content, progress.epoch, progress.iteration)


def _restore(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Progress:
    trainer.network.load_state_dict(checkpoint["network"])
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint["scaler"]:
        trainer.grad_scaler.load_state_dict(checkpoint["scaler"])
    restore_random_states(checkpoint["random"])
    return Progress(**{name: checkpoint[name] for name in Progress.__dataclass_fields__})


def _finish(
    trainer: Trainer,
    progress: Progress,
    plan: Mapping[str, Any],
    model: Path,
    card: Mapping[str, Any],
) -> Path:
    """Make the model's folder; it appears whole or not at all."""
    temporary = model.with_name(".model")
    shutil.rmtree(temporary, ignore_errors=True)
    hours = sum(row["seconds"] for row in progress.rows) / 3600
    save_model(
        temporary,
        trainer.network,
        plan,
        trainer.dataset_json,
        {
            **card,
            "epochs": progress.epoch,
            "hours": round(hours, 4),
            "precision": trainer.precision,
            "device": _device_name(trainer.device),
        },
    )
    write_text(temporary / "progress.csv", _csv(progress.rows))
    draw_curve(progress.rows, temporary / "curve.png")
    temporary.rename(model)
    return model


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def draw_curve(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw losses and pseudo-Dice over the epochs."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, dice = figure.subplots(1, 2)
    for name in ("train_loss", "validation_loss"):
        losses.plot(epochs, [row[name] for row in rows], label=name.replace("_", " "))
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend()
    for name in rows[0]:
        if name.startswith(DICE):
            dice.plot(epochs, [row[name] for row in rows], label=name.removeprefix(DICE))
    dice.set(xlabel="epoch", ylabel="pseudo-Dice (validation)", ylim=(0, 1))
    dice.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=100)
