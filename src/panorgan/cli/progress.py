"""A bar on a terminal: which case, how much of it, how long still."""

import sys
import time
from typing import TextIO

WIDTH = 24


class Bar:
    """One line that is written anew; on anything but a terminal nothing is written."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._shown = 0
        self._began = self._last = time.monotonic()

    def show(self, case: str, number: int, count: int, share: float) -> None:
        """Case `number` of `count` is done by a share from 0 to 1."""
        now = time.monotonic()
        if not self._stream.isatty() or now - self._last < 0.2:
            return
        self._last = now
        done = (number - 1 + share) / count
        left = (now - self._began) / done - (now - self._began) if done else 0
        marks = round(WIDTH * share)
        bar = "#" * marks + "." * (WIDTH - marks)
        self._write(f"{number}/{count} {case} [{bar}] {left:.0f} s left")

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self.clear()
        print(line, flush=True)

    def clear(self) -> None:
        """Remove the bar."""
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()
            self._shown = 0

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._shown))
        self._stream.flush()
        self._shown = len(text)
