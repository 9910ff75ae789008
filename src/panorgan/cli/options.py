"""Options that several commands have."""

import argparse
from pathlib import Path


def class_table() -> argparse.ArgumentParser:
    """A parent parser: ``--labels``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="the class table (default: the shipped one)"
    )
    return parser
