"""Training batches as a function of the seed and the batch's number, and of nothing else.

So a resumed training goes on with the very batches that it would have had, whether they are made
in this process or in workers, and looking at validation batches changes no training batch.
"""

import os
import random
import re
import signal
import time
import traceback
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch.utils.data import DataLoader, Dataset, get_worker_info

from panorgan.nnunet.case_file import load
from panorgan.nnunet.devices import memory_problem
from panorgan.problems import Killed, Problem, Problems

TRAINING, VALIDATION = 0, 1
"""Streams of random numbers."""

DEAD_LOADER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
"""How torch says, in the main process and anywhere in it, that a loader has died."""


class CaseFolders:
    """Preprocessed cases, each in a folder of its own: what nnU-Net's loader takes for a dataset.

    Parameters
    ----------
    folders
        For each case the folder that holds its file.
    unknown
        For each case the classes that are unknown in it; None if the loss shall not ask.
    """

    def __init__(
        self,
        folders: Mapping[str, str | Path],
        unknown: Mapping[str, Collection[int]] | None = None,
    ):
        self.unknown = unknown
        # Sorted, so that neither the number of shards nor their order changes a batch.
        self.identifiers = sorted(folders)
        self._folders = dict(folders)
        # For each loader its process and the case that it reads, in memory that outlives it.
        self._reading = RawArray("q", 2 * (os.cpu_count() or 1))

    def read_last(self, process: int) -> str:
        """The case that a process read last, also if that has died since; empty if none."""
        noted = zip(self._reading[::2], self._reading[1::2], strict=True)
        return next((self.identifiers[case] for pid, case in noted if pid == process), "")

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """What `panorgan.nnunet.case_file.load` gives.

        Raises
        ------
        Problems
            If a file is missing or broken.
        """
        worker = get_worker_info()
        place = 2 * worker.id if worker else 0
        self._reading[place : place + 2] = os.getpid(), self.identifiers.index(identifier)
        try:
            return load(self._folders[identifier], identifier)
        except Exception as error:
            if DEAD_LOADER.match(str(error)) or memory_problem(error):
                raise  # not this case's fault
            cause = f"its preprocessed files cannot be read: {error}"
            cure = f"delete {self._folders[identifier]} and run the same command again"
            raise Problems.one(cause, cure, case=str(identifier)) from error


@contextmanager
def own_random_numbers(*key: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's (CPU) generators for a block; afterwards they go on."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence([part % 2**32 for part in key]).generate_state(4)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]) << 32 | int(seeds[3]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Batches(Dataset):
    """Batches by number.

    Parameters
    ----------
    loader
        nnU-Net's loader, which draws cases, places and augmentation.
    cases
        The cases that it draws from.
    outputs
        How many classes the network tells apart, with the background.
    seed
        The training's seed.
    stream
        `TRAINING` or `VALIDATION`.

    Items
    -----
    dict
        ``data`` (batch, channels, *patch) float32, ``target`` a list of (batch, 1, *size) by
        resolution, and, if the loader's cases know it, ``unknown`` (batch, outputs) bool. Without
        transforms ``target`` is one tensor and ``key`` the integers that name the batch.
    """

    def __init__(
        self, loader: nnUNetDataLoader, cases: CaseFolders, outputs: int, *, seed: int, stream: int
    ):
        self._loader = loader
        self._cases = cases
        self._outputs = outputs
        self._key = (seed, stream)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with own_random_numbers(*self._key, number):
            batch = self._loader.generate_train_batch()
        made = {"data": batch["data"], "target": batch["target"]}
        if self._loader.transforms is None:
            made["key"] = (*self._key, number)
        if self._cases.unknown is not None:
            made["unknown"] = torch.zeros(len(batch["keys"]), self._outputs, dtype=torch.bool)
            for sample, case in enumerate(batch["keys"]):
                made["unknown"][sample, list(self._cases.unknown[case])] = True
        return made

    def read_last(self, process: int) -> str:
        """See `CaseFolders.read_last`."""
        return self._cases.read_last(process)


class _Guarded(Dataset):
    """Batches whose problems survive the way from a worker: an exception would lose its parts."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def __getitem__(self, number: int) -> dict[str, Any] | list[Problem]:
        try:
            return self._batches[number]
        except Problems as error:
            return error.problems
        except Exception as error:
            case = self._batches.read_last(os.getpid())
            traceback.print_exc()
            if problem := memory_problem(error, case):
                return [problem]
            cause = f"unexpected {type(error).__name__} in loading: {error}".splitlines()[0]
            return [Problem(case, "", cause, "the log has the traceback")]


def in_order(
    batches: Batches, first: int, last: int, *, workers: int, pin_memory: bool
) -> Generator[dict[str, Any], None, None]:
    """Batches number `first` to `last` - 1, made ahead by `workers` processes if any.

    Close it when no more of them are wanted: the processes ignore signals and end with it alone.

    Raises
    ------
    Problems
        If a case cannot be read or augmented.
    """
    loader = DataLoader(
        _Guarded(batches),
        batch_size=None,
        sampler=range(first, last),
        num_workers=min(workers, max(0, len(os.sched_getaffinity(0)) - 1)),
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else it would draw from the training's own
    )
    for batch in loader:
        if isinstance(batch, list):
            raise Problems(batch)
        yield batch


def _ignore_signals(worker: int) -> None:
    """A warning signal goes to the whole job: the main process still needs its workers then."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _death_of_a_loader(within_s: float = 5.0) -> str:
    """What torch says of a loader that has died; empty if none does for some seconds."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            torch._C._error_if_any_worker_fails()
            time.sleep(0.05)  # where torch may say it, too: by a signal
        except RuntimeError as error:
            return str(error)
    return ""


@contextmanager
def naming_dead_loaders(*batches: Batches | None) -> Iterator[None]:
    """Say which case a loader of any of these batches worked on when it was killed.

    torch's message comes as soon as that happens, wherever the main process is in the block.

    Raises
    ------
    Problems
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A connection to it may break before torch sees that it has died.
        said = str(error) if isinstance(error, RuntimeError) else _death_of_a_loader()
        if not (dead := DEAD_LOADER.match(said)):
            raise
        print(error)
        cure = (
            "give the job more memory (mem_mb), in a container also more shared memory (docker: "
            "--shm-size=8g), or lower training.workers of this network"
        )
        cases = [
            next((case for part in batches if part and (case := part.read_last(pid))), "")
            for pid in map(int, dead[1].split(","))
        ]
        how = dead[2].partition(".")[0].replace("is killed by", "was killed by")
        cause = f"the process that loaded it {how}: is the memory used up?"
        raise Killed(
            Problem(case, "", cause, f"{cure}; then run the same command again") for case in cases
        ) from None
