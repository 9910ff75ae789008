"""The command-line tool `panorgan`, a module a command: what people do outside the workflow too."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from panorgan import __version__
from panorgan.cli import check, compare, convert, describe, evaluate, fuse, init, predict, show
from panorgan.io.processor import limit_spinning
from panorgan.io.writing import disk_full
from panorgan.problems import TRACEBACK, Problems, WrongOption, unexpected

COMMANDS = (init, check, fuse, predict, evaluate, compare, show, describe, convert)


CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit code of a program that a closed pipe has ended, as shells say it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 if all is well, 1 with problems, 2 for wrong usage.

    If whoever reads what is printed leaves (``| head``), the command ends in silence.
    """
    limit_spinning()
    try:
        try:
            options = _parser().parse_args(arguments)
            return options.command(options)
        finally:
            sys.stdout.flush()
    except Problems as error:
        print("\n".join(map(str, error.problems)), file=sys.stderr)
        return 2 if isinstance(error, WrongOption) else 1
    except BrokenPipeError:
        _print_no_more()
        return CLOSED_PIPE
    except OSError as error:
        if os.environ.get(TRACEBACK):
            raise
        if full := disk_full(error, error.filename or os.path.realpath("/proc/self/fd/1")):
            _print_no_more()
            print(full, file=sys.stderr)
            return 1
        place = f"{error.filename}: " if error.filename else ""
        cure = "check the path and whether you may write there"
        print(f"{place}{(error.strerror or str(error)).lower()}; {cure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(unexpected(error), file=sys.stderr)
    return 1


def _print_no_more() -> None:
    """Let go what is not printed: else Python tries it at its end, and says that it cannot."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panorgan", description="Tools around the panorgan workflow."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
