"""`panorgan compare`: compare two scored runs case by case."""

import argparse
from typing import Any

from panorgan.cli.options import path
from panorgan.cli.places import check_places
from panorgan.config.labels import load_labels
from panorgan.config.registry import PROFILES
from panorgan.problems import Problems


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "compare",
        help="compare two scored runs case by case",
        description="Compare two scored runs case by case: what got better or worse from A to B.",
    )
    for name in "ab":
        parser.add_argument(
            name,
            metavar=name.upper(),
            type=path,
            help="a folder that panorgan evaluate or the workflow wrote, or its cases.csv",
        )
    parser.add_argument(
        "-o", "--output", type=path, help="a new folder for classes.tsv, cases.tsv, comparison.json"
    )
    parser.add_argument(
        "--profile",
        choices=list(PROFILES),
        help="compare the scores by these rules (default: those by which both were scored)",
    )
    parser.add_argument(
        "--labels",
        type=path,
        metavar="FILE",
        help="the class table (default: the one that both were scored with)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.io.writing import new_folder
    from panorgan.scoring.comparison import compare_paths, comparison_text, write_comparison

    if options.output and options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    check_places(options.output)
    labels = load_labels(options.labels) if options.labels else None
    comparison, cases = compare_paths(options.a, options.b, labels, options.profile)
    if options.output:
        with new_folder(options.output) as temporary:
            write_comparison(comparison, cases, temporary)
    print(comparison_text(comparison))
    if options.output:
        print(f"\n{options.output}: classes.tsv, cases.tsv, comparison.json")
    return 0
