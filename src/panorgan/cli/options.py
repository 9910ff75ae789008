"""Options that several commands have, and what argparse checks of an option's value."""

import argparse
import re
from pathlib import Path


def text(value: str) -> str:
    """A value that is not empty: a shell's empty variable names nothing."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty")
    return value


def path(value: str) -> Path:
    """A path that is not empty: that would be the current folder."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty; the current folder is .")
    return Path(value)


def fold(value: str) -> str:
    """The name of a fold of nnU-Net's."""
    if not re.fullmatch(r"(fold_)?(all|\d+)", value):
        raise argparse.ArgumentTypeError(f"'{value}' is no fold; write all, 0, 1, …")
    return value


def names(value: str) -> list[str]:
    """Names with commas between them, each once."""
    found = [name.strip() for name in value.split(",")]
    if "" in found or len({*found}) < len(found):
        raise argparse.ArgumentTypeError(f"'{value}': a name is empty or there twice")
    return found


def folds(value: str) -> list[str]:
    """Names of folds of nnU-Net's with commas between them."""
    return [fold(name) for name in names(value)]


def positive(value: str) -> int:
    """A whole number from 1."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"'{value}' is no whole number from 1")
    return int(value)


def class_table() -> argparse.ArgumentParser:
    """A parent parser: ``--labels``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--labels", type=path, metavar="FILE", help="the class table (default: the shipped one)"
    )
    return parser
