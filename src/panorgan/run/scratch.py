"""Copies of preprocessed data on a node's own disk, for as long as a training reads them."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import gethostname
from uuid import uuid4

from panorgan.io.resources import free_disk, gb
from panorgan.run.claims import claim
from panorgan.run.store import ShardReader, file_checksum, key_of

Cases = tuple[ShardReader, Sequence[str]]
"""Published shards, and the names of those of their cases that are wanted."""


@contextmanager
def near(
    place: str, wanted: Sequence[Cases], say: Callable[[str], None] = print
) -> Iterator[list[dict[str, Path]]]:
    """Folders with the checked files of some cases, copied to a place once and removed at the end.

    They are read where they are if that place is not there or has no room: a line says so. What
    a killed process of this machine has left in the place is removed.

    Parameters
    ----------
    place
        A folder of this machine; variables of the environment are put in. Empty: nothing is copied.
    wanted
        One or more sets of cases.

    Yields
    ------
    For each set the folder of each of its cases.

    Raises
    ------
    Problems
        If a file is gone or no longer what its job wrote.
    """
    with ExitStack() as held:
        folder = None
        if place:
            try:
                with ExitStack() as trying:
                    folder = _copied(place, wanted, trying)
                    held.enter_context(trying.pop_all())
                say(f"preprocessed data are copied to {folder}")
            except OSError as error:
                # Where copying stopped nothing is left, and no training ends for it.
                cause = error.strerror or error
                say(f"scratch: {place}: {cause}: preprocessed data are read where they are")
        yield [
            {case: folder or reader.checked_folder(case) for case in cases}
            for reader, cases in wanted
        ]


def _copied(place: str, wanted: Sequence[Cases], held: ExitStack) -> Path:
    """A new folder with all files of the cases, which is there as long as `held` is."""
    root = Path(os.path.expanduser(os.path.expandvars(place)))
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder here", str(root))
    # In a container with a network of its own names are claimed apart.
    machine = key_of([gethostname(), os.readlink("/proc/self/ns/net")])
    for left in root.glob(f"panorgan-{machine}-*"):
        if found := claim(left.name):
            with found:
                shutil.rmtree(left, ignore_errors=True)
    size = sum(
        file.stat().st_size
        for reader, cases in wanted
        for case in cases
        for file in (reader.folder(case) / name for name in reader.checksums(case))
        if file.exists()  # else copying it will tell
    )
    if size > (free := free_disk(root)):
        raise OSError(errno.ENOSPC, f"has room for {gb(free)}, not for {gb(size)}")
    folder = root / f"panorgan-{machine}-{uuid4().hex}"
    held.enter_context(claim(folder.name))
    folder.mkdir(mode=0o700)
    held.callback(shutil.rmtree, folder, ignore_errors=True)
    for reader, cases in wanted:
        for case in cases:
            _copy(reader, case, folder)
    return folder


def _copy(reader: ShardReader, case: str, into: Path) -> None:
    """Copy a case's files and compare the copies with its row.

    Raises
    ------
    Problems
        If what was copied is no longer what its job wrote.
    OSError
        If the copy is another one nevertheless.
    """
    for name, checksum in reader.checksums(case).items():
        source = reader.folder(case) / name
        if not source.exists() or file_checksum(shutil.copyfile(source, into / name)) != checksum:
            reader.checked_folder(case)
            raise OSError(errno.EIO, f"the copy of {name} is not what was copied")
