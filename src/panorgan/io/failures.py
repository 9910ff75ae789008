"""What is said of an error that ends one case of several; the others go on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from panorgan.io.resources import available_memory, gb
from panorgan.io.volumes import VolumeError
from panorgan.io.writing import FULL
from panorgan.problems import Log, Problem, Problems, Stop, unexpected


class Failures:
    """The problems of some cases, none of which keeps the next case from being tried.

    Parameters
    ----------
    log
        Gets the problems and the traceback of what nobody expected. None: such a traceback is
        shown if `panorgan.problems.TRACEBACK` asks for it.

    Attributes
    ----------
    problems : list of Problem
        Those found so far.
    """

    def __init__(self, log: Log | None = None):
        self.problems: list[Problem] = []
        self._log = log

    @contextmanager
    def of(self, case: str, file: object) -> Iterator[None]:
        """Take down whatever error the block ends with.

        Parameters
        ----------
        case, file
            For the message, where the error does not know them itself.

        Raises
        ------
        Stop
            With all problems so far, if the block raises one: the other cases would have it too.
        """
        try:
            yield
        except Stop as stop:
            raise Stop([*self.problems, *_placed(stop, case, file)]) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, *FULL):
                raise  # of what is printed, as files are written with a `Stop`
            found = self._problems_of(error, case, file)
            if self._log:
                self._log("\n".join(map(str, found)))
            self.problems += found

    def check(self) -> None:
        """Raise Problems if there are any."""
        if self.problems:
            raise Problems(self.problems)

    def _problems_of(self, error: Exception, case: str, file: object) -> list[Problem]:
        if isinstance(error, Problems):
            return _placed(error, case, file)
        if isinstance(error, VolumeError):
            return [Problem(case, str(file), error.cause, error.cure)]
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            asked = f": {error}" if str(error) else ""
            cause = f"does not fit into memory, of which {gb(available_memory())} are free{asked}"
            cure = "use a machine with more of it (mem_mb of a job)"
            return [Problem(case, str(file), cause, cure)]
        if isinstance(error, OSError) and error.filename and error.strerror:
            cure = "check the path, its permissions and the disk"
            return [Problem(case, str(error.filename), error.strerror.lower(), cure)]
        return [unexpected(error, case, file, self._log)]


def _placed(error: Problems, case: str, file: object) -> list[Problem]:
    return [replace(p, case=p.case or case, file=p.file or str(file)) for p in error.problems]
