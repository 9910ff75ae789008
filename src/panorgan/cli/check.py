"""`panorgan check`: check volumes, folders or a case table."""

import argparse
from typing import Any

from panorgan.cli.options import class_table, path
from panorgan.config.labels import load_labels


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "check", parents=[class_table()], help="check volumes, folders or a case table"
    )
    parser.add_argument("paths", nargs="+", type=path, metavar="PATH")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.cases.checks import check_paths

    checked, problems = check_paths(options.paths, load_labels(options.labels))
    for problem in problems:
        print(problem)
    print(f"{checked} checked, {len(problems)} problems")
    return 1 if problems else 0
