"""Mutated headers, tables, configs: each is read as a plain reader does, or refused in a line.

    python workflow_tests/fuzz.py [--count 2000] [--seed 0]

Memory is limited. What is neither equal nor refused is printed with the number that makes it again
(--only NUMBER), and then the exit code is 1.
"""

import argparse
import csv
import gzip
import io
import json
import re
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

from panorgan.cases.checks import check_paths
from panorgan.cases.corrections import read_corrections
from panorgan.cases.manifest import load_sources
from panorgan.cases.table import COLUMNS, read_cases
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.settings import default_yaml, load_config, merge, read_config_file
from panorgan.io.volumes import Volume, VolumeError, read_frame, read_image, read_label
from panorgan.problems import Problems

MEMORY = 4 << 30
"""Bytes of address space; the libraries that are loaded take more than half of it."""

READ, REFUSED = "read", "refused"
LABELS = load_labels()
HOSTILE = [0, 1, -1, 2, 3, 127, 255, 32767, -32768, 2**31 - 1, -(2**31), 1e9, 1e30, -1e30, 1e-30]
HOSTILE += [float("nan"), float("inf"), float("-inf"), 0.5, 1.0000005, 4.99992]
PIECES = ['"', "\t", "\n", "\r\n", "\0", "\ufeff", "'", ":", "- ", "{", "}", "[", "#", "&a", "*a"]
PIECES += ["\t\t", "\n\n", "é", "\\", "/", "..", " ", "null", "1e-3", ".inf", ".nan", "-1", "0"]


class Wrong(Exception):
    """What is neither equal to the plain reader's result nor refused in one line."""


# ---------------------------------------------------------------------------------------------
# Volumes


def mutate_volume(random: np.random.Generator, folder: Path) -> str:
    """Read a volume of which something is changed; `READ` or `REFUSED`."""
    header, voxels = _sound_volume(random)
    packed = random.random() < 0.6
    raw = bytearray(header.binaryblock + bytes(4) + voxels)
    for _ in range(random.integers(1, 4)):
        _change_content(random, raw)
    content = gzip.compress(raw, 1, mtime=0) if packed else bytes(raw)
    if random.random() < 0.15:
        content = _change_file(random, content)
    path = folder / ("a_0000.nii.gz" if packed else "a_0000.nii")
    path.write_bytes(content)
    results = [_read_volume(path, reader) for reader in (read_image, read_label)]
    _one_line(lambda: read_frame(path), VolumeError)
    for problem in check_paths([path], LABELS)[1]:
        _check_line(str(problem))
    return READ if READ in results else REFUSED


def _sound_volume(random: np.random.Generator) -> tuple[nib.Nifti1Header, bytes]:
    kind = random.choice(["u1", "i2", "f4", "f8", "u2", "i4"])
    order = random.choice(["<", ">"])
    array = random.integers(0, 14, (3, 4, 5)).astype(np.dtype(kind).newbyteorder(order))
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    affine[:3, 3] = 100, 120, -300
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape((5, 4, 3))
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=int(random.integers(0, 3)))
    header.set_sform(affine, code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header, array.tobytes()


def _change_content(random: np.random.Generator, raw: bytearray) -> None:
    """Change a few bytes, or write a number that is hostile where a number stands."""
    what = random.integers(4)
    if what == 0:
        for place in random.integers(0, 352, random.integers(1, 5)):
            raw[place % len(raw)] = random.integers(256)
    elif what == 1:
        raw[random.integers(len(raw))] ^= 1 << random.integers(8)
    else:
        fields = nib.Nifti1Header().structarr.dtype.fields
        name = random.choice([name for name, (kind, *_) in fields.items() if kind.kind != "S"])
        kind, offset, *_ = fields[name]
        base = kind.base.newbyteorder("<" if raw[0] == 92 else ">")
        place = offset + base.itemsize * int(random.integers(kind.itemsize // base.itemsize))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = np.asarray(random.choice(HOSTILE)).astype(base)
        raw[place : place + base.itemsize] = value.tobytes()


def _change_file(random: np.random.Generator, content: bytes) -> bytes:
    place = int(random.integers(len(content)))
    return [
        content[:place],
        content + bytes(random.integers(1, 20)),
        content + content,
        content[:place] + bytes([random.integers(256)]) + content[place + 1 :],
        b"",
    ][random.integers(5)]


def _read_volume(path: Path, reader: Callable[[Path], Volume]) -> str:
    volume = _one_line(lambda: reader(path), VolumeError)
    if volume is None:
        return REFUSED
    plain = nib.Nifti1Image.from_filename(path, mmap=False)
    with np.errstate(all="ignore"):
        voxels = np.asanyarray(plain.dataobj)
        voxels = voxels.reshape(voxels.shape[:3])  # a series of one volume
    same = np.allclose(voxels.T, volume.array, rtol=1e-6, atol=1e-30)  # float32 has no less
    if voxels.T.shape != volume.array.shape or not same:
        raise Wrong("other voxels than nibabel's")
    scale = {1: 1000.0, 3: 0.001}.get(int(plain.header["xyzt_units"]) & 7, 1.0)
    affine = plain.affine.copy()
    affine[:3] *= scale
    if not np.allclose(affine, volume.grid.affine, rtol=1e-5, atol=1e-3):
        raise Wrong("another affine than nibabel's")
    return READ


# ---------------------------------------------------------------------------------------------
# Texts


def mutate_table(random: np.random.Generator, folder: Path) -> str:
    """Read a case table, or corrections, of which something is changed; `READ` or `REFUSED`."""
    if random.random() < 0.5:
        columns, reader = list(COLUMNS), read_cases
        rows = [
            [f"c{at}", f"c{at}_0000.nii.gz", f"c{at}.nii.gz", "train", "demo", f"P{at}", "all", ""]
            for at in range(4)
        ]
    else:
        columns, reader = ["case", "annotated", "absent", "label", "note"], read_corrections
        rows = [[f"c{at}", "liver", "tumour", "", f"seen {at}"] for at in range(4)]
    rows = [row + [""] * (len(columns) - len(row)) for row in rows]
    text = "\n".join("\t".join(row) for row in [columns, *rows]) + "\n"
    path = folder / "table.tsv"
    path.write_bytes(_change_text(random, text, "\t"))
    found = _one_line(lambda: reader(path, LABELS), Problems)
    if found is None:
        return REFUSED
    names = [one.case for one in (found.values() if isinstance(found, dict) else found)]
    plain = csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""), delimiter="\t")
    head, *lines = [line for line in plain if any(map(str.strip, line))]
    expected = sorted(line[head.index("case")].strip() for line in lines)
    if sorted(names) != expected:
        raise Wrong(f"cases {names}, but the table has {expected}")
    return READ


def mutate_yaml(random: np.random.Generator, folder: Path) -> str:
    """Read a config, class table or rules of which something is changed; `READ` or `REFUSED`."""
    path = folder / "changed.yaml"
    what = random.integers(3)
    if what == 0:
        path.write_bytes(_change_text(random, default_yaml(), " "))
        defaults = yaml.safe_load(default_yaml())

        def read() -> object:
            given = read_config_file(path)
            load_config(merge(defaults, given))
            return given

        found = _one_line(read, Problems)
    else:
        name = ("labels.yaml", "sources.yaml")[what - 1]
        text = (config_folder() / name).read_text(encoding="utf-8")
        path.write_bytes(_change_text(random, text, " "))
        load_labels.cache_clear()
        found = _one_line(
            lambda: load_labels(path) if what == 1 else load_sources(path, LABELS), Problems
        )
    if found is None:
        return REFUSED
    text = path.read_text(encoding="utf-8")
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError:
        plain = json.loads(text)
    if what == 0 and repr(plain) != repr(found):  # NaN is not equal to itself
        raise Wrong("another content than PyYAML's")
    return READ


def _change_text(random: np.random.Generator, text: str, space: str) -> bytes:
    """Change lines, fields or letters of a text."""
    for _ in range(random.integers(1, 4)):
        lines = text.split("\n")
        at, other = random.integers(len(lines), size=2)
        what = random.integers(7)
        if what == 0:
            lines.insert(at, lines[other])
        elif what == 1:
            del lines[at]
        elif what == 2:
            parts = lines[at].split(space)
            parts[random.integers(len(parts))] = str(random.choice([*map(str, HOSTILE), *PIECES]))
            lines[at] = space.join(parts)
        elif what == 3:
            parts = lines[at].split(space)
            parts.insert(random.integers(len(parts) + 1), parts[random.integers(len(parts))])
            lines[at] = space.join(parts)
        else:
            place = random.integers(len(lines[at]) + 1)
            cut = random.integers(3)
            piece = str(random.choice(PIECES)) if what < 6 else chr(random.integers(1, 0x2FFF))
            lines[at] = lines[at][:place] + piece + lines[at][place + cut :]
        text = "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    return content if random.random() < 0.9 else content[: random.integers(len(content))]


# ---------------------------------------------------------------------------------------------
# All of them


def _one_line(read: Callable[[], object], refusal: type[Exception]) -> object | None:
    """What is read; None if it is refused properly."""
    try:
        return read()
    except refusal as error:
        lines = map(str, error.problems) if isinstance(error, Problems) else [str(error)]
        for line in lines:
            _check_line(line)
        return None


def _check_line(line: str) -> None:
    if not line.isprintable() or not 10 < len(line) < 1000:
        raise Wrong(f"no line for people: {line!r}")
    if re.search(r": unexpected \w+: ", line):
        raise Wrong(f"what nobody has thought of: {line}")


KINDS = (mutate_volume, mutate_table, mutate_yaml)


def main() -> int:
    """Fuzz; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    nib.imageglobals.logger.setLevel("CRITICAL")
    counted: Counter[str] = Counter()
    faults = 0
    numbers = range(options.count) if options.only is None else [options.only]
    for number in numbers:
        mutate = KINDS[number % len(KINDS)]
        random = np.random.default_rng([options.seed, number])
        with tempfile.TemporaryDirectory() as folder:
            try:
                counted[f"{mutate.__name__}: {mutate(random, Path(folder))}"] += 1
            except Exception as error:
                if options.only is not None:
                    raise
                faults += 1
                print(f"{number} {mutate.__name__}: {type(error).__name__}: {error}"[:500])
    for what, count in sorted(counted.items()):
        print(f"{what} {count}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
