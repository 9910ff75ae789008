"""Kills a job of a run from within, at a moment that a file of `killing.py` names.

Python imports a module of this name whenever it starts; the tests put this folder on its path.
Nothing happens but in scripts of rules. What such a job is about to do with files Python tells its
audit hooks, so that a moment is exact: before the n-th change of a place.
"""

import atexit
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 1),
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"), 0),
}
"""What changes a file system, and which of its arguments names what becomes of it."""


class Killer:
    """Waits in a job for the moment that is planned for its rule."""

    def __init__(self) -> None:
        self.here = os.getcwd()
        self.plan: dict | None = None
        self.rule = self.log = ""
        self.seen: dict[str, int] = {}
        self.lock = threading.RLock()
        self.asleep = False  # while this itself does something with files

    def hook(self, event: str, arguments: tuple) -> None:
        """Look at what is about to happen."""
        if event not in CHANGES or self.asleep:
            return
        if event == "open" and not (arguments[2] or 0) & WRITING:
            return
        with self.lock:
            self.asleep = True
            try:
                self.look(event, self.named(arguments, CHANGES[event]))
            finally:
                self.asleep = False

    def named(self, arguments: tuple, at: int) -> str:
        """The path that an event is about, absolute; empty if it is none."""
        if isinstance(arguments[at], int):
            return ""
        name = os.fsdecode(arguments[at])
        folders = [value for value in arguments[at + 1 :] if isinstance(value, int) and value >= 0]
        if not os.path.isabs(name) and folders and at == 0 and len(arguments) < 4:
            with contextlib.suppress(OSError):
                name = os.path.join(os.readlink(f"/proc/self/fd/{folders[-1]}"), name)
        return os.path.join(self.here, name)

    def look(self, event: str, path: str) -> None:
        """Kill if the moment has come."""
        place = self.place(path)
        if place == "log" and event == "open" and not self.rule:
            self.begin(path)
        if not self.plan or not place:
            return
        self.seen[place] = self.seen.get(place, 0) + 1
        if [place, self.seen[place]] == self.plan["moment"]:
            self.strike(f"before change {self.seen[place]} of: {place}")

    def place(self, path: str) -> str:
        """What kind of a place a path is; empty if it is none of a run's."""
        if not path.startswith(f"{self.here}/"):
            return ""
        parts = path[len(self.here) + 1 :].split("/")
        if parts[0] in (".snakemake", "plans", "src"):
            return ""
        if parts[0] != "results" or len(parts) < 3:
            return "output"
        kinds = {"logs": "log", "benchmarks": "records", ".store": "store"}
        if parts[2] == ".store" and parts[3:4] in (["logs"], ["benchmarks"]):
            return "records"
        hidden = any(part.startswith(".") for part in parts[3:])
        return kinds.get(parts[2], "draft" if hidden else "output")

    def begin(self, path: str) -> None:
        """The job is about to open its log, which tells its rule."""
        name = path.partition("/logs/")[2].split("/")
        self.rule = name[0].lstrip(".").partition(".")[0]
        last = name[-1].lstrip(".").partition(".")[0]
        self.log = os.path.join(path.partition("/logs/")[0], "logs", *name[:-1], f"{last}.log")
        with contextlib.suppress(OSError):
            self.plan = json.loads(Path(self.here, "plans", f"{self.rule}.json").read_text())
        if not self.plan:
            return
        atexit.register(self.strike, "at the end")
        place, number = self.plan["moment"]
        if place == "seconds":
            timer = threading.Timer(number, self.strike, [f"after {number:.2f} s"])
            timer.daemon = True
            timer.start()

    def strike(self, when: str) -> None:
        """Kill, unless that is done."""
        with self.lock:
            self.asleep = True
            plan, self.plan = self.plan, None
            todo = os.path.join(self.here, "plans", self.rule)
            try:
                # Another job of this rule may have been faster.
                os.rename(f"{todo}.json", f"{todo}.done")
            except OSError:
                plan = None
            if not plan:
                self.asleep = False
                return
            with contextlib.suppress(OSError):
                shutil.copyfile(self.log, f"{todo}.log")
            Path(f"{todo}.txt").write_text(f"{self.log}\n{when}")
            if plan["victim"] == "all":
                os.killpg(0, signal.SIGKILL)
            elif plan["victim"] == "job":
                os.kill(os.getpid(), signal.SIGKILL)
            elif plan["victim"] == "snakemake":
                os.kill(os.getpgrp(), signal.SIGKILL)
            elif plan["victim"] == "memory":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                most = pages * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
            self.asleep = False


if any("/.snakemake/scripts/" in argument for argument in sys.orig_argv):
    sys.addaudithook(Killer().hook)
