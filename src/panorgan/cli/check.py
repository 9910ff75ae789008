"""`panorgan check`: check volumes, folders or a case table; label maps as a submission."""

import argparse
import sys
from typing import Any

from panorgan.cli.options import class_table, path
from panorgan.config.labels import load_labels


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "check", parents=[class_table()], help="check volumes, folders or a case table"
    )
    parser.add_argument("paths", nargs="+", type=path, metavar="PATH")
    parser.add_argument(
        "--predictions",
        type=path,
        metavar="FOLDER",
        help="are these the label maps of one PATH, a folder of CTs, and nothing else?",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.cases.checks import check_paths
    from panorgan.cases.submission import check_submission

    if options.predictions is None:
        checked, problems = check_paths(options.paths, load_labels(options.labels))
    elif options.paths[1:]:
        print("--predictions are of one folder of CTs: name one PATH", file=sys.stderr)
        return 2
    else:
        checked, problems = check_submission(options.paths[0], options.predictions, options.labels)
    for problem in problems:
        print(problem)
    print(f"{checked} checked, {len(problems)} problems")
    return 1 if problems else 0
