"""Compare two result folders of a run, file by file: the content, not what is bound to differ.

    python workflow_tests/compare_results.py A B [--moved OLD=NEW]…

A and B are, say, ``results/demo`` of two checkouts. A line a file says what differs or is only in
one; then the exit code is 1. Label maps are compared by voxels and geometry, weights by tensors,
JSON by content, pages without times and sizes, all else by bytes. Results do not depend on how
cases are dealt into shards: what shards hold is compared as one, SHARD. Logs, benchmarks, the
store, and what a prediction took of time and memory are left out.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors import deserialize

from panorgan.nnunet.case_file import load

LEFT_OUT = re.compile(
    r"(logs|benchmarks|\.store|\.snakemake)/|.*(\.efficiency\.tsv|/\.snakemake_timestamp)$"
)
SHARD = re.compile(r"(?<=/)[a-z]+-\d\d(?=[./])")
TIMES = ("hours", "seconds", "step_seconds", "wait_s", "date")
"""Keys of JSON, and columns of learning curves."""
MEASURED = re.compile(
    r'<section aria-labelledby="efficiency">.*?</section>|(?<=seconds an epoch, median: )[\d.,]+'
    r"|[\d.,]+ (?:ms|s|seconds|minutes|hours|days|B|kB|MB|GB|TB)\b",
    re.DOTALL,
)
"""What pages say of time, memory and disk."""
CHECKSUM = re.compile(r"(?<=\.nii\.gz:)[0-9a-f]{32}")
"""In tables of shards, of a label map's compressed bytes."""


def compare_folders(
    a: Path, b: Path, moved: Sequence[tuple[str, str]] = ()
) -> tuple[int, list[str]]:
    """Compare two result folders.

    Parameters
    ----------
    moved
        Folders or files of A, relative to it, and where they are in B; the first that fits counts.

    Returns
    -------
    count
        Files that both have.
    lines
        What differs, sorted: a line a file.
    """
    ours, theirs = _files(a, moved), _files(b)
    lines = dict.fromkeys(ours.keys() - theirs.keys(), "only in A")
    lines |= dict.fromkeys(theirs.keys() - ours.keys(), "only in B")
    both = ours.keys() & theirs.keys()
    for name in both:
        if said := _difference(ours[name], theirs[name]):
            lines[name] = said
    return len(both), [f"{name}: {said}" for name, said in sorted(lines.items())]


def _files(folder: Path, moved: Sequence[tuple[str, str]] = ()) -> dict[str, list[Path]]:
    """Files by what they are called, those of all shards as one."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not LEFT_OUT.match(name):
            found.setdefault(SHARD.sub("SHARD", _moved(name, moved)), []).append(path)
    return found


def _moved(path: str, moved: Sequence[tuple[str, str]]) -> str:
    for old, new in moved:
        if path == old or path.startswith(f"{old}/"):
            return new + path[len(old) :]
    return path


def _difference(ours: Sequence[Path], theirs: Sequence[Path]) -> str:
    """What differs in two files, or in the tables of two sets of shards; empty if nothing."""
    (a, *more), (b, *others) = ours, theirs
    if b.suffix == ".tsv":
        return _first_line(_rows(ours), _rows(theirs))
    if more or others:
        return f"{len(ours)} and {len(theirs)} files"
    if a.read_bytes() == b.read_bytes():
        return ""
    for ending, compare in COMPARED.items():
        if b.name.endswith(ending):
            try:
                return compare(a, b)
            except Exception as error:
                return f"cannot be read ({' '.join(str(error).split())})"
    return "other bytes"


def _rows(tables: Sequence[Path]) -> str:
    """Lines of tables, sorted, without checksums of compressed files and without the shard."""
    lines = []
    for table in tables:
        with open(table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                row.pop("shard", None)
                lines.append("\t".join(f"{name}={value}" for name, value in row.items()))
    return CHECKSUM.sub("", "\n".join(sorted(lines)))


def _label_maps(a: Path, b: Path) -> str:
    first, second = nib.load(a), nib.load(b)
    if not (
        first.shape == second.shape
        and np.array_equal(first.affine, second.affine)
        and first.header.get_zooms() == second.header.get_zooms()
    ):
        return "another grid"
    return _arrays(*(np.asanyarray(image.dataobj) for image in (first, second)))


def _arrays(a: np.ndarray, b: np.ndarray) -> str:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
    count = np.count_nonzero(a != b)
    return f"{count:,} of {a.size:,} voxels differ" if count else ""


def _preprocessed(a: Path, b: Path) -> str:
    (*first, _, about), (*second, _, other) = (load(path.parent, path.stem) for path in (a, b))
    said = [_arrays(x[:], y[:]) for x, y in zip(first, second, strict=True)]
    places = [{k: v.tolist() for k, v in one["class_locations"].items()} for one in (about, other)]
    return "; ".join(filter(None, [*said, _first_key(*places, "places")]))


def _tensors(a: Path, b: Path) -> str:
    return _first_key(*(dict(deserialize(path.read_bytes())) for path in (a, b)))


def _json(a: Path, b: Path) -> str:
    return _first_key(*(json.loads(path.read_text(encoding="utf-8")) for path in (a, b)))


def _first_key(a: Any, b: Any, place: str = "") -> str:
    """Where two contents differ first, but for `TIMES`."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        pairs = [(key, a.get(key), b.get(key)) for key in {**a, **b} if key not in TIMES]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(str(at), *pair) for at, pair in enumerate(zip(a, b, strict=True))]
    else:
        return "" if a == b else f"{place or 'content'} differs"
    found = (_first_key(*pair, f"{place}.{key}".lstrip(".")) for key, *pair in pairs)
    return next(filter(None, found), "")


def _curves(a: Path, b: Path) -> str:
    """Tables of learning curves, without the columns that are times."""

    def text(path: Path) -> str:
        rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [at for at, name in enumerate(rows[0]) if name not in TIMES]
        return "\n".join(",".join(row[at] for at in kept) for row in rows)

    return _first_line(text(a), text(b))


def _without(pattern: re.Pattern[str]) -> Callable[[Path, Path], str]:
    return lambda a, b: _first_line(
        *(pattern.sub("", path.read_text(encoding="utf-8")) for path in (a, b))
    )


def _first_line(a: str, b: str) -> str:
    pairs = zip_longest(a.splitlines(), b.splitlines(), fillvalue="")
    for number, (first, second) in enumerate(pairs, 1):
        if first != second:
            at = next(at for at, pair in enumerate(zip_longest(first, second)) if len({*pair}) > 1)
            cut = slice(max(0, at - 20), at + 20)
            return f"line {number}: …{first[cut]}… and …{second[cut]}…"
    return ""


COMPARED = {
    ".nii.gz": _label_maps,
    ".b2nd": _preprocessed,
    ".safetensors": _tensors,
    ".json": _json,
    "progress.csv": _curves,
    ".html": _without(MEASURED),
    ".md": _without(MEASURED),
    ".txt": _without(MEASURED),
}
"""How files are compared whose bytes differ, by the ending of their names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what differs; 1 if anything does, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description="Compare two result folders of a run.")
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument(
        "--moved",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a folder or file of A that has another name in B; both relative; may be repeated",
    )
    options = parser.parse_args(arguments)
    moved = [tuple(part.strip("/") for part in text.split("=")) for text in options.moved]
    if wrong := [text for text, pair in zip(options.moved, moved, strict=True) if len(pair) != 2]:
        parser.error(f"--moved {wrong[0]}: is not OLD=NEW")
    for folder in (options.a, options.b):
        if not folder.is_dir():
            parser.error(f"{folder}: is no folder")
    count, lines = compare_folders(options.a, options.b, moved)
    print("\n".join([*lines, f"{count} files compared, {len(lines)} differ or are only in one"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
