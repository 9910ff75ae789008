"""`panorgan convert`: models of nnU-Net 1 and 2 into ours, and back."""

import argparse
from typing import Any

from panorgan.cli.options import fold, path, text
from panorgan.cli.places import check_places


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser("convert", help="models of nnU-Net 1 and 2 into ours, and back")
    parser.add_argument("source", type=path, help="folder of a trained model")
    parser.add_argument("-o", "--output", type=path, required=True, help="a new folder")
    parser.add_argument(
        "--to",
        default="panorgan",
        choices=["panorgan", "nnunet"],
        help="our model folder, or one for nnUNetv2_predict (default: %(default)s)",
    )
    parser.add_argument(
        "--fold", type=fold, help="of a foreign model (default: all, else the only one)"
    )
    parser.add_argument(
        "--classes",
        type=text,
        help="names of a foreign model's classes, in the order of their values",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.nnunet.models.convert import convert

    if not options.output.exists():  # else that is what is wrong
        check_places(options.output)
    classes = options.classes and [name.strip() for name in options.classes.split(",")]
    lines = convert(
        options.source, options.output, to=options.to, fold=options.fold, classes=classes
    )
    print("\n".join(lines))
    return 0
