"""The training loop: what happens in which order, and how it survives being interrupted."""

import platform
import random
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from panorgan.config.labels import Labels
from panorgan.io.writing import write_text
from panorgan.networks import count_parameters
from panorgan.nnunet.devices import (
    memory_problem,
    pick_device,
    resolve_augmentation,
    resolve_precision,
)
from panorgan.nnunet.models.model import save_model
from panorgan.nnunet.training.batches import Batches, in_order, naming_dead_loaders
from panorgan.nnunet.training.checkpoints import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from panorgan.nnunet.training.memory import check_training_memory
from panorgan.nnunet.training.speed import attempt, fastest
from panorgan.nnunet.training.trainer import Setting, StepLoss, Trainer, learning_rate, make_trainer
from panorgan.nnunet.training.watching import CURVE, DICE, PICTURE, Watch, csv_of
from panorgan.problems import Problems


class TrainingInterrupted(Exception):
    """A signal ended the training; its checkpoint is written and a rerun goes on from there."""


@dataclass
class Progress:
    """How far a training is: what a checkpoint says beside weights and random states.

    `losses`, `seconds` and `waited`, those of them without data, are of the unfinished epoch,
    `rows` the curve of the finished ones; `step_seconds` is what `speed` measured.
    """

    epoch: int = 0
    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0
    step_seconds: dict[str, float] = field(default_factory=dict)
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
    labels: Labels,
    device: str = "auto",
    check: Callable[[], None] = lambda: None,
    console: IO[str] | None = None,
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
        Folder of checkpoints, ``progress.csv`` and ``curve.png``; nothing is written elsewhere.
    seed
        Of weights, batches and dropout.
    card
        What the model's card shall say beside what is known here.
    labels
        The class table, for the log and the curve.
    device
        auto, cpu or cuda.
    check
        Called before anything is written into `state`; raises if that belongs to another by now.
    console
        Where a bar is shown if it is a terminal.
    unknown
        For every case the classes that are unknown in it, which are then not learnt as background
        there (`panorgan.nnunet.training.losses`); None takes the labels at their word.

    Returns
    -------
    model : Path
        ``state/model``, a model folder as `panorgan.nnunet.models.model` reads it.

    Raises
    ------
    TrainingInterrupted
        After SIGTERM, SIGUSR1 or SIGINT: a checkpoint was written after the current iteration.
    Problems
        If the loss becomes NaN (the checkpoints before stay), a case cannot be read, a process
        that loads is killed or memory does not suffice.
    """
    state = Path(state)
    model = state / "model"
    if model.exists():
        return model
    state.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(state)
    recipe = plan["panorgan"]["recipe"]["training"]
    device = pick_device(device)
    if not torch.cuda.is_available():
        print("no GPU: training on the CPU")
    torch.set_num_threads(recipe["threads"])
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    watch = Watch(state, recipe, labels, console)
    try:
        trainer = make_trainer(plan, dataset_json, device, state)
        checkpoint = load_checkpoint(state)
        if checkpoint:
            if checkpoint["random"]["cuda"] and device.type == "cpu":
                cause = "this training was begun on a GPU, and here is none"
                raise Problems.one(cause, "go on with it where there is one", file=state)
            precision = resolve_precision(checkpoint["precision"], device)
            augment_on = checkpoint["augment_on"]
        else:
            precision = resolve_precision(recipe["precision"], device)
            augment_on = resolve_augmentation(recipe["augment_on"])
        check_training_memory(plan, dataset_json, precision, device)
        trainer.initialize(precision, augment_on)
        if trainer.precision != precision:
            check_training_memory(plan, dataset_json, trainer.precision, device)
        progress = _restore(trainer, checkpoint) if checkpoint else Progress()
        batches = trainer.training_batches(training, seed, unknown)
        _choose_setting(trainer, progress, checkpoint, batches, state)
        print(
            f"{count_parameters(trainer.network):,} parameters, {len(training)} training and "
            f"{len(validation)} validation cases, {trainer.precision}, {recipe['threads']} threads"
        )
        to_look_at = trainer.validation_batches(validation, seed, unknown) if validation else None
        with naming_dead_loaders(batches, to_look_at):
            _run(trainer, progress, batches, to_look_at, state, watch, check)
        return _finish(trainer, progress, plan, model, {**card, "seed": seed}, watch)
    except (RuntimeError, MemoryError, OSError) as error:
        if not (problem := memory_problem(error)):
            raise
        print(error)
        raise Problems([problem]) from None
    finally:
        watch.close()


def _remove_leftovers(state: Path) -> None:
    """Remove what a killed training was just writing."""
    for leftover in state.glob(".*.tmp"):
        leftover.unlink()
    for leftover in state.glob(".nnunet-*"):
        shutil.rmtree(leftover)


def _choose_setting(
    trainer: Trainer,
    progress: Progress,
    checkpoint: Mapping[str, Any] | None,
    batches: Batches,
    state: Path,
) -> None:
    """How to compute on this GPU: as the training began, or what a search finds once."""
    compute = trainer.training["compute"]
    setting = Setting(**checkpoint["setting"]) if checkpoint else Setting()
    if compute == "plain":
        setting = Setting()
    search = trainer.device.type == "cuda" and compute == "search"
    if setting != Setting() and not attempt(trainer, batches[0], setting, state):
        setting = Setting()
    elif search and not checkpoint:
        steps = trainer.training["epochs"] * trainer.training["iterations"]
        setting, progress.step_seconds = fastest(trainer, batches[0], steps, state)
    trainer.use(setting)
    if trainer.device.type == "cuda":
        # What was tried is not what the training takes.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trainer.device)


def _run(
    trainer: Trainer,
    progress: Progress,
    batches: Batches,
    to_look_at: Batches | None,
    state: Path,
    watch: Watch,
    check: Callable[[], None],
) -> None:
    """The epochs that are left."""
    recipe = trainer.training
    epochs, iterations = recipe["epochs"], recipe["iterations"]
    look = recipe["validation_iterations"] if to_look_at else 0
    pin_memory = trainer.device.type == "cuda"
    coming = in_order(
        batches,
        progress.epoch * iterations + progress.iteration,
        epochs * iterations,
        workers=recipe["workers"],
        pin_memory=pin_memory,
    )
    to_come = in_order(
        to_look_at,
        progress.epoch * look,
        epochs * look,
        workers=min(recipe["workers"], 1),
        pin_memory=pin_memory,
    )
    under_way: deque[StepLoss] = deque()

    def settle() -> None:
        """Wait for the oldest of the steps that are under way."""
        loss = float(under_way.popleft())
        if np.isnan(loss):
            raise _not_finite(trainer, progress, state)
        progress.losses.append(loss)
        watch.batch_done(progress.epoch, len(progress.losses), progress.losses)

    saved = time.monotonic()
    with _stop_signals() as stop, closing(coming), closing(to_come):
        while progress.epoch < epochs:
            started = time.monotonic() - progress.seconds
            trainer.network.train()
            for iteration in range(progress.iteration, iterations):
                for group in trainer.optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, progress.epoch, iteration)
                asked = time.monotonic()
                batch = next(coming)
                progress.waited += time.monotonic() - asked
                under_way.append(trainer.train_step(batch))
                progress.iteration = iteration + 1
                if len(under_way) > 1:
                    settle()
                if stop.is_set():
                    break
            while under_way:
                settle()
            looked = None if stop.is_set() else _look(trainer, to_come, look, progress, stop)
            progress.seconds = time.monotonic() - started
            if stop.is_set():
                path = _save(trainer, progress, state, check)
                raise TrainingInterrupted(
                    f"stopped in epoch {progress.epoch + 1} of {epochs} after batch "
                    f"{progress.iteration} of {iterations}; {path.name} is written, run the same "
                    f"command again to go on"
                )
            check()
            _end_epoch(trainer, progress, looked)
            watch.epoch_done(progress.rows)
            now = time.monotonic()
            if progress.epoch == epochs or now - saved >= recipe["checkpoint_every_s"]:
                _save(trainer, progress, state, check)
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


def _not_finite(trainer: Trainer, progress: Progress, state: Path) -> Problems:
    """The problem of a training that has left the numbers."""
    at = f"epoch {progress.epoch + 1}, batch {len(progress.losses) + 1}"
    half = ", precision fp32 or bf16" if trainer.precision == "fp16" else ""
    cure = (
        "the last checkpoint, of before, is kept, but from there the same would happen again: "
        f"lower training.optimizer.learning_rate or gradient_clip{half} of this network in the "
        "config, which begins a new training"
    )
    return Problems.one(f"the loss is NaN in {at}", cure, file=state)


def _look(
    trainer: Trainer,
    coming: Iterator[dict[str, Any]],
    count: int,
    progress: Progress,
    stop: threading.Event,
) -> tuple[float, np.ndarray]:
    """Loss and pseudo-Dice of each class over an epoch's validation batches; NaN without any."""
    losses: list[float] = []
    counts = np.zeros((3, len(trainer.label_manager.foreground_labels)))
    trainer.network.eval()
    for _ in range(count):
        asked = time.monotonic()
        batch = next(coming)
        progress.waited += time.monotonic() - asked
        loss, batch_counts = trainer.validation_step(batch)
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
) -> None:
    """Close an epoch with its row of the curve."""
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
            "wait_s": progress.waited,
            "peak_gpu_mb": _peak_mb(trainer.device),
        }
    )
    progress.epoch += 1
    progress.iteration, progress.losses = 0, []
    progress.seconds = progress.waited = 0.0


def _peak_mb(device: torch.device) -> float:
    """Most memory of the GPU that torch took since the last call; NaN without one."""
    if device.type != "cuda":
        return nan
    peak = torch.cuda.max_memory_reserved(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _save(trainer: Trainer, progress: Progress, state: Path, check: Callable[[], None]) -> Path:
    weights = trainer.network.state_dict()
    # A step may spoil the weights without a sign of it in its own loss.
    if not torch.stack([tensor.isfinite().all() for tensor in weights.values()]).all():
        raise _not_finite(trainer, progress, state)
    content = {
        **asdict(progress),
        "precision": trainer.precision,
        "augment_on": trainer.augment_on,
        "setting": asdict(trainer.setting),
        "network": weights,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.grad_scaler.state_dict(),
        "random": random_states(),
    }
    return save_checkpoint(state, content, progress.epoch, progress.iteration, check)


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
    watch: Watch,
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
            "augment_on": trainer.augment_on,
            "setting": str(trainer.setting),
            "step_seconds": progress.step_seconds,
            "device": _device_name(trainer.device),
        },
    )
    write_text(temporary / CURVE, csv_of(progress.rows))
    if picture := watch.draw(progress.rows):
        shutil.copyfile(picture, temporary / PICTURE)
    temporary.rename(model)
    return model


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
