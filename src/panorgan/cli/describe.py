"""`panorgan describe`: say what a model or a recipe is."""

import argparse
import sys
from typing import Any

from panorgan.cli.options import path


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser("describe", help="what a model or a recipe is, as JSON")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", type=path, metavar="MODEL", help="a model's folder")
    what.add_argument("--recipe", choices=["teacher", "student"], help="of the config")
    parser.add_argument("--config", type=path, help="laid over the defaults, as --configfile")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.inference.describe import as_json, describe_model, describe_recipe

    if options.recipe:
        facts = describe_recipe(options.recipe, options.config)
    elif options.config:
        print("--config is for a recipe: leave it out, or say --recipe", file=sys.stderr)
        return 2
    else:
        facts = describe_model(options.model)
    print(as_json(facts))
    return 0
