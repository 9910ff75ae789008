"""`panorgan show`: draw cases of a run, or a CT with label maps."""

import argparse
import sys
from pathlib import Path
from typing import Any

from panorgan.cli.options import class_table, path, text
from panorgan.cli.places import check_places
from panorgan.config.labels import load_labels


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "show",
        parents=[class_table()],
        help="draw cases of a run, or a CT with label maps",
        usage="panorgan show CASE… --run results/RUN [-o FILE|FOLDER] [--class NAME]\n"
        "       panorgan show -i CT [-l LABEL] [-r REFERENCE] -o FILE [--class NAME] "
        "[--labels FILE]",
    )
    parser.add_argument(
        "cases", nargs="*", type=text, metavar="CASE", help="a name of the run's case table"
    )
    parser.add_argument("--run", type=path, help="a run's folder, such as results/demo")
    parser.add_argument("-i", "--image", type=path, help="a CT of no run")
    parser.add_argument(
        "-l", "--label", type=path, help="a label map on its grid, a prediction say"
    )
    parser.add_argument("-r", "--reference", type=path, help="a reference on its grid")
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        help="a new PNG; of several cases a folder (default: CASE.png in the current folder)",
    )
    parser.add_argument(
        "--class",
        dest="structure",
        type=text,
        default="none",
        metavar="NAME",
        help="one structure, close up",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.report.show import show_cases, show_files

    check_places(options.output or Path())
    of_run = options.cases and options.run
    loose = options.image and options.output
    if of_run and not (options.image or options.label or options.reference or options.labels):
        for line in show_cases(options.cases, options.run, options.output, options.structure):
            print(line)
    elif loose and not (options.cases or options.run):
        print(
            show_files(
                options.image,
                options.output,
                load_labels(options.labels),
                label=options.label,
                reference=options.reference,
                structure=options.structure,
            )
        )
    else:
        print("name cases and their --run, or a CT with -i and a PNG with -o", file=sys.stderr)
        return 2
    return 0
