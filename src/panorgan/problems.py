"""How a user's mistake is said: one line with case, file, cause and cure."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

TRACEBACK = "PANORGAN_TRACEBACK"
"""Environment variable: with a value, errors that nobody expected show their traceback."""

Log = Callable[[str], None]


def shown(text: str) -> str:
    """A text of others for a terminal: line breaks, and all that it would obey, as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with the input and what to do about it."""

    case: str
    file: str
    cause: str
    cure: str

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.case, self.file) if part)
        what = f"{self.cause}; {self.cure}" if self.cure else self.cause
        return shown(f"{where}: {what}" if where else what)


class Problems(Exception):
    """Raised with every problem found, so that one run shows them all."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = sorted(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self):
        """For other processes: an exception is made again from what `__init__` got."""
        return type(self), (self.problems,)

    @classmethod
    def one(cls, cause: str, cure: str = "", *, case: str = "", file: object = "") -> Self:
        """The common case of a single problem."""
        return cls([Problem(case, str(file), cause, cure)])


class WrongOption(Problems):
    """What is wrong is the value of a command's option, whatever the files hold."""


class Stop(Problems):
    """Problems that all other cases would have too, such as a full disk: a batch ends at once."""


class Interrupted(Problems):
    """Nothing is wrong: work was stopped from outside, and the same again goes on with it."""


class Killed(Problems):
    """A process that helps was killed, as for want of memory."""


def unexpected(
    error: Exception, case: str = "", file: object = "", log: Log | None = None
) -> Problem:
    """A line about an error that nobody expected.

    Parameters
    ----------
    error
        What some code raised.
    case, file
        For the message.
    log
        Gets the traceback. None: it is shown if `TRACEBACK` asks for it.
    """
    text = "".join(traceback.format_exception(error))
    if log:
        log(text)
    elif os.environ.get(TRACEBACK):
        print(text, file=sys.stderr)
    cause = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
    cure = "the log has the traceback" if log else f"set {TRACEBACK}=1 to see where"
    return Problem(case, str(file), cause, cure)
