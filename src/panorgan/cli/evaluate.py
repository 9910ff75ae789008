"""`panorgan evaluate`: score a folder of predictions."""

import argparse
from typing import Any

from panorgan.cli.options import class_table, path, text
from panorgan.cli.places import check_places
from panorgan.config.labels import load_labels
from panorgan.config.registry import CHALLENGE, PROFILES
from panorgan.problems import Problems


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "evaluate", parents=[class_table()], help="score a folder of predictions: DSC and NSD"
    )
    parser.add_argument("-p", "--predictions", type=path, required=True)
    parser.add_argument("-r", "--references", type=path, required=True)
    parser.add_argument("-o", "--output", type=path, required=True, help="a new folder")
    parser.add_argument(
        "--profile",
        default=CHALLENGE,
        choices=list(PROFILES),
        help="rules of the challenge "
        + ", or ".join(profile.title for profile in PROFILES.values())
        + " (default: %(default)s)",
    )
    parser.add_argument(
        "--annotated",
        type=text,
        default="all",
        metavar="CLASSES",
        help="classes that the references know, by name or value, such as 1,spleen; or a case "
        "table, TABLE.tsv; others are not scored (default: all)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.io.writing import new_folder
    from panorgan.scoring.evaluation import evaluate_folders, summary_lines

    if options.output.exists():
        raise Problems.one("exists already", "name another with -o", file=options.output)
    check_places(options.output)
    labels = load_labels(options.labels)
    found = evaluate_folders(
        options.predictions, options.references, labels, options.profile, options.annotated
    )
    with new_folder(options.output) as temporary:
        found.write(temporary)
    print("\n".join([*found.notes, *summary_lines(found.summary, labels), ""]))
    cases = found.summary["cases"]
    print(f"{options.output}: cases.csv, lesions.csv and summary.json of {cases} cases")
    return 0
