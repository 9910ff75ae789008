"""Files and folders that appear whole or not at all, also where the disk becomes full."""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from socket import gethostname

from panorgan.problems import Problem, Stop

FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EFBIG: "a file may not become so large here: a limit (ulimit -f) or the file system",
}
"""What the system says of a file that has no room."""

IN_TEXT = re.compile(r"\b(?:os error|Errno) (\d+)")
"""How safetensors and `shutil.copytree` tell the system's number."""

BY = "~"
"""Between what a temporary is for and who makes it, machine and process, in its name."""

SILENT_S = 24 * 3600.0
"""After so long a process of another machine, which cannot be asked, no longer writes."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if the block ends well.

    Raises
    ------
    Stop
        If the disk is full. As after any error then nothing is left, no new folder either.
    """
    path = Path(path)
    temporary = own_temporary(path)
    with making_folder(path.parent), _speaking_of(path, temporary):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name if the block ends well.

    Parameters
    ----------
    path
        A new one; or the block removes the old one at its end.

    Raises
    ------
    Stop
        As `replacing`.
    """
    path = Path(path)
    with scratch_folder(path) as temporary:
        yield temporary
        os.rename(temporary, path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder for what `path` will hold, gone when the block ends; errors name `path`.

    Raises
    ------
    Stop
        As `replacing`.
    """
    temporary = own_temporary(path)
    with making_folder(path.parent), _speaking_of(path, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def own_temporary(path: Path) -> Path:
    """A name beside `path` that no other process uses and that says whose it is."""
    return path.with_name(f".{path.name}{BY}{gethostname()}{BY}{os.getpid()}.tmp")


def clear_temporaries(folder: Path) -> None:
    """Remove files and folders that processes have left when they were killed."""
    for path in folder.glob(f".*{BY}*{BY}*.tmp"):
        if not _maker_lives(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _maker_lives(temporary: Path) -> bool:
    """Whether the process that made a temporary file or folder may still be writing."""
    _, host, process = temporary.name.removesuffix(".tmp").rsplit(BY, 2)
    try:
        if host != gethostname():
            return time.time() - temporary.stat().st_mtime < SILENT_S
        os.kill(int(process), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except (PermissionError, ValueError):
        return True
    return True


def to_disk(*paths: Path) -> None:
    """Return when files or folders are on the disk: what a power cut leaves of them."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def making_folder(path: str | Path) -> Iterator[None]:
    """A folder, made with those above it; what was made goes again if the block fails and has
    left nothing in it."""
    path = Path(path)
    made = [place for place in (path, *path.parents) if not place.exists()]
    try:
        with stopping(path):
            path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for place in made:
                place.rmdir()
        raise


@contextmanager
def _speaking_of(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the block that mean that the disk is full as a `Stop`; it and all others name
    `path` instead of the temporary name under which it is made."""

    def named(text: str) -> str:
        return text.replace(str(temporary), str(path))

    try:
        with stopping(path):
            yield
    except Stop as stop:
        raise Stop(replace(one, file=named(one.file)) for one in stop.problems) from None
    except OSError as error:
        if isinstance(error.filename, str):
            error.filename = named(error.filename)
        raise


@contextmanager
def stopping(path: str | Path) -> Iterator[None]:
    """Errors of the block that mean that the disk is full as a `Stop` that names `path`."""
    try:
        yield
    except Exception as error:
        if stop := disk_full(error, path):
            raise stop from None
        raise


def disk_full(error: BaseException, path: str | Path) -> Stop | None:
    """What to say if an error means that there is no room for a file; None if it does not.

    Parameters
    ----------
    error
        Any error; libraries hide the system's inside of one of their own.
    path
        What was to be written, for the message.
    """
    if (cause := FULL.get(_number(error))) is None:
        return None
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    room = f"{free:,} bytes" if free < 1e6 else f"{free / 1e9:,.3f} GB"
    cure = "free some space and run the same command again"
    return Stop([Problem("", str(path), f"{cause} ({room} free)", cure)])


def _number(error: BaseException | None) -> int | None:
    """The system's number of an error, or of the one that it came from."""
    while error is not None and not isinstance(error, Stop):
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if match := IN_TEXT.search(str(error)):
            return int(match[1])
        hidden = error.__suppress_context__
        error = error.__cause__ if hidden else error.__cause__ or error.__context__
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
