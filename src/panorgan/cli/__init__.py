"""The command-line tool `panorgan`, a module a command: what people do outside the workflow too."""

import argparse
import os
import sys
from collections.abc import Sequence

from panorgan import __version__
from panorgan.cli import check, compare, convert, describe, evaluate, fuse, init, predict, show
from panorgan.problems import Problems

COMMANDS = (init, check, fuse, predict, evaluate, compare, show, describe, convert)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 if all is well, 1 with problems, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except Problems as error:
        print("\n".join(map(str, error.problems)), file=sys.stderr)
    except OSError as error:
        if os.environ.get("PANORGAN_TRACEBACK"):
            raise
        place = f"{error.filename}: " if error.filename else ""
        cure = "check the path and whether you may write there"
        print(f"{place}{(error.strerror or str(error)).lower()}; {cure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except Exception as error:
        if os.environ.get("PANORGAN_TRACEBACK"):
            raise
        cause = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
        print(f"{cause}; set PANORGAN_TRACEBACK=1 to see where", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panorgan", description="Tools around the panorgan workflow."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
