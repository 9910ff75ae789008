"""Checkpoints that a kill cannot spoil: whole or absent, the last two kept, loaded without code."""

import os
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panorgan.io.writing import replacing

KEPT = 2


def save_checkpoint(
    state: Path,
    content: Mapping[str, Any],
    epoch: int,
    iteration: int,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint and drop all but it and the one before.

    A newer one, if there is any, could not be loaded, and goes too.

    Parameters
    ----------
    state
        Folder of the training's state.
    content
        Tensors, numbers, texts and lists or dicts of these.
    epoch, iteration
        How many epochs are finished, and how many iterations of the next one. They make the
        name: ``checkpoint-0007.pt``, within an epoch ``checkpoint-0007-00123.pt``.
    check
        Called once all is on the disk but has no name yet; raises if it must not get one.

    Raises
    ------
    Stop
        If the disk is full; the others stay.
    """
    within = f"-{iteration:05d}" if iteration else ""
    path = state / f"checkpoint-{epoch:04d}{within}.pt"
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
        check()
    # Its name has to be on the disk too before older ones go.
    folder = os.open(state, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    found = _checkpoints(state)
    at = found.index(path)
    for other in found[:at] + found[at + KEPT :]:
        other.unlink()
    return path


def load_checkpoint(state: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, on the CPU; None if there is none."""
    found = _checkpoints(state)
    for path in found:
        try:
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"wrong checksum of {broken}")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            print(f"{path.name} is damaged ({error}): not used")
        else:
            print(f"going on from {path.name}")
            return content
    if found:
        print("no checkpoint is whole: starting from the beginning")
    return None


def _checkpoints(state: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    found = {}
    for path in state.glob("checkpoint-*.pt"):
        if match := re.fullmatch(r"checkpoint-(\d+)(?:-(\d+))?", path.stem):
            found[int(match[1]), int(match[2] or 0)] = path
    return [found[number] for number in sorted(found, reverse=True)]


def random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators, as a checkpoint can hold them."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        # Of a training on the CPU none, although the machine has a GPU.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Let the generators go on from where `random_states` was called."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(states["cuda"])
