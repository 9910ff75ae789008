"""One process at a time in a folder, on one machine and on a network file system.

The right to a folder is a file, ``lease-0001`` and so on, of which the highest number counts. It
says who holds the folder (host, boot, process and its start) and its modification time is the
holder's heartbeat. Nobody ever overwrites it: whoever finds its holder gone makes the file with
the next number, which the file system lets one process do (``O_EXCL``, also on NFS from version
3 on), and removes the lower ones. File locks would not do: many network file systems keep them on
each machine alone, or not at all. Nor would filelock's lease: it takes a dead holder's file over by
an exchange of names, which NFS does not have.
"""

import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from panorgan.io.writing import write_text
from panorgan.problems import Problems

BEAT_S = 30.0
"""Seconds between two heartbeats."""

STALE_S = 10 * BEAT_S
"""A holder that cannot be asked and has been silent for so long is dead."""

LOOK_S = 1.0
"""Seconds between two looks at a holder that cannot be asked."""

WAIT_S = 10.0
"""The same at one that lives and is waited for."""

SAY_S = 300.0
"""Seconds between two lines that say that this waits."""

HIDDEN = "hidden"
"""Start of a process of which the kernel tells others nothing."""

FREE = "free"
"""What a lease says that was given back."""


@dataclass(frozen=True)
class Holder:
    """A process, so that it can be told from every other one.

    Attributes
    ----------
    boot
        Names the run of a machine's kernel: hosts, containers too, may have the same name.
    pids
        Names the set of process numbers in which `pid` counts; containers have their own.
    born
        When the process started, in ticks of that kernel: numbers of processes are used again.
    token
        Random, one for each time that a folder is taken.
    since
        When that was, for people.
    """

    host: str
    boot: str
    pids: str
    pid: int
    born: str
    token: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def lives(self, asking: "Holder") -> bool | None:
        """Whether the process exists; None where the one that asks cannot know."""
        if not self.boot or (self.boot, self.pids) != (asking.boot, asking.pids):
            return None
        born = _born(self.pid)
        return None if born == HIDDEN else born == self.born

    def suspended(self) -> bool:
        """Whether a process of this machine is stopped, as by Ctrl-Z: it will not end by itself."""
        return _facts(self.pid)[:1] in (["T"], ["t"])


def this_process() -> Holder:
    """The identity of this process, with a new token."""
    boot = pids = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.readlink("/proc/self/ns/pid")
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return Holder(socket.gethostname(), boot, pids, pid, _born(pid), uuid4().hex, now)


def _born(pid: int) -> str:
    """Start of a process in the kernel's ticks; empty if there is none, or only its remains."""
    if not (facts := _facts(pid)):
        return HIDDEN if _hidden(pid) else ""
    return "" if facts[0] in "ZX" else facts[19]


def _facts(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on; empty if nothing."""
    try:
        # The name, in brackets, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _hidden(pid: int) -> bool:
    """Whether a process lives that only its owner may see."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


class Lease:
    """A folder that this process holds, until it gives it back or is taken for dead.

    Use `exclusive`.
    """

    def __init__(self, path: Path, text: str):
        self._path = path
        self._text = text
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._heart.start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            # A server that is away for a while may be back before anybody takes us for dead.
            with suppress(OSError):
                os.utime(self._path)

    def check(self) -> None:
        """Nothing, as long as the folder is ours: to be called before anything is written.

        Raises
        ------
        Problems
            If another process took this one for dead, as after the machine slept.
        """
        folder = self._path.parent
        try:
            ours = _newest(folder) == self._path and self._holds()
        except OSError:
            # The server is away and says nothing of others; what is written next will tell.
            return
        if not ours:
            cause = (
                "another process has taken over this training: this one gave no sign of life for "
                "some minutes"
            )
            cure = "nothing was written since; the other one goes on"
            raise Problems.one(cause, cure, file=folder)

    def _holds(self) -> bool:
        """Whether the lease is there and says so; OSError if the file system cannot tell."""
        try:
            return self._path.read_text() == self._text
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def give_back(self) -> None:
        """Let others in."""
        self._ended.set()
        self._heart.join()
        with suppress(OSError, Problems):
            self.check()
            write_text(self._path, FREE)


@contextmanager
def exclusive(
    folder: Path, say: Callable[[str], None] = print, *, wait: bool = False
) -> Iterator[Lease]:
    """Hold a folder; it comes free with the end of the process, however that ends.

    A holder on this machine is asked for by its number. One elsewhere, or in another container,
    is known by its heartbeat only, whose age is told by the clock of the file system. Unless that
    is old already, this waits for the next one: `BEAT_S` seconds if it lives, up to `STALE_S` if
    not.

    Parameters
    ----------
    folder
        Made if need be.
    say
        Gets a line about a dead holder and about waiting.
    wait
        Whether a living holder is waited for: until it ends or, if it cannot be asked, falls
        silent.

    Raises
    ------
    Problems
        If a living process holds it and is not waited for, or is suspended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(*_take(folder, say, wait))
    try:
        yield lease
    finally:
        lease.give_back()


def _take(folder: Path, say: Callable[[str], None], wait: bool) -> tuple[Path, str]:
    """Make the lease with the next number as soon as nobody alive holds the folder; its text."""
    me = this_process()
    text = json.dumps(asdict(me))
    while True:
        newest = _newest(folder)
        if newest:
            _wait_for_the_end_of(newest, me, say, wait)
        path = folder / f"lease-{_number(newest) + 1:04d}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            # Another one was faster: look at it, once a cached listing shows it.
            time.sleep(LOOK_S / 10)
            continue
        try:
            with os.fdopen(file, "w") as lease:
                lease.write(text)
                lease.flush()
                os.fsync(file)
        except OSError:  # a lease of nobody would be waited for
            path.unlink(missing_ok=True)
            raise
        # We may have slept since we looked, while others came, went and removed this number.
        if _newest(folder) == path:
            for other in _leases(folder)[:-1]:
                other.unlink(missing_ok=True)
            for left in folder.glob(".*.tmp"):  # what the dead were just writing
                if left.is_file():
                    left.unlink(missing_ok=True)
            return path, text
        path.unlink(missing_ok=True)


def _wait_for_the_end_of(path: Path, me: Holder, say: Callable[[str], None], wait: bool) -> None:
    """Return once a lease is no obstacle.

    Raises
    ------
    Problems
        If its holder lives and is not waited for, or is suspended.
    """
    first: tuple[Holder, float] | None = None
    last_beat: float | None = None
    quiet, next_line, alive = 0.0, 0.0, False
    while True:
        holder, beat = _read(path), _beat_of(path)
        if holder == FREE or beat is None:
            return
        age = max(0.0, _now(path.parent, me) - beat)
        asked = holder.lives(me) if holder else None
        if asked is False:
            say(f"{holder} held this folder since {holder.since} and is dead: going on")
            return
        alive = alive or bool(asked) or first not in (None, (holder, beat))
        if beat != last_beat:
            quiet, last_beat = 0.0, beat
        # A server whose clock was set back cannot tell how old a file is. One that was away tells
        # an age at once that says nothing: who was seen to live must be silent while this looks.
        silent = quiet if alive else max(age, quiet)
        # Who takes a folder writes its name at once, or has died before that.
        if not asked and silent >= (STALE_S if holder else BEAT_S):
            say(f"{holder or 'an unknown process'} held this folder and is silent: going on")
            return
        if alive and holder:
            here = (
                f"{holder} is training here (since {holder.since}, last sign of life "
                f"{age:.0f} s ago)"
            )
            if not wait:
                cure = "wait for it or stop it, then run the same command again"
                raise Problems.one(here, cure, file=path.parent)
            if asked and holder.suspended() and age >= STALE_S:
                cure = f"`kill -CONT {holder.pid}` lets it go on, `kill -9 {holder.pid}` ends it"
                raise Problems.one(f"{here} and is suspended", cure, file=path.parent)
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + SAY_S
                say(f"{here}: waiting for its end; its log is in {path.parent}")
        elif holder and not first:
            first = holder, beat
            say(
                f"{holder} held this folder {age:.0f} s ago: waiting for a sign of life, at most "
                f"{STALE_S - silent:.0f} s"
            )
        pause = WAIT_S if alive else LOOK_S
        time.sleep(pause)
        quiet += pause


def _leases(folder: Path) -> list[Path]:
    """The lowest number first."""
    found = (path for path in folder.iterdir() if re.fullmatch(r"lease-\d+", path.name))
    return sorted(found, key=_number)


def _newest(folder: Path) -> Path | None:
    return leases[-1] if (leases := _leases(folder)) else None


def _number(path: Path | None) -> int:
    return int(path.name.partition("-")[2]) if path else 0


def _read(path: Path) -> Holder | str | None:
    """Who holds a lease, or `FREE`; None if it is gone or just being written."""
    try:
        text = path.read_text()
        return FREE if text == FREE else Holder(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None


def _beat_of(path: Path) -> float | None:
    """Time of the last heartbeat by the file system's clock; None if the lease is gone."""
    try:
        # Opened, because NFS asks the server only then.
        with open(path) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _now(folder: Path, me: Holder) -> float:
    """What the file system's clock says."""
    probe = folder / f".lease-{me.token}"
    try:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
