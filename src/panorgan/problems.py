"""How a user's mistake is said: one line with case, file, cause and cure."""

from collections.abc import Iterable
from dataclasses import dataclass


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
        line = f"{where}: {what}" if where else what
        # A name may hold a line break, or what a terminal would obey.
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


class Problems(Exception):
    """Raised with every problem found, so that one run shows them all."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = sorted(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def one(cls, cause: str, cure: str = "", *, case: str = "", file: object = "") -> "Problems":
        """The common case of a single problem."""
        return cls([Problem(case, str(file), cause, cure)])


class WrongOption(Problems):
    """What is wrong is the value of a command's option, whatever the files hold."""
