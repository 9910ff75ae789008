"""What tells that a volume's file has changed, without reading all of it.

A gzip file ends with a checksum and the length of what it holds: a file that was only touched, or
copied, keeps its stamp. Of other files size and date count.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from panorgan.io.writing import write_text

Stamp = list[object]
STAMPS = ".stamps.json"
"""What follows the name of a shard's index in the store: its volumes' stamps."""
TRAILER = 8
"""Bytes: CRC32 and length modulo 2^32."""


def stamp(path: str) -> Stamp:
    """The stamp of a file; empty where there is none that can be read."""
    try:
        status = os.stat(path)
        if path.endswith(".gz") and status.st_size > TRAILER:
            with open(path, "rb") as file:
                file.seek(-TRAILER, os.SEEK_END)
                end = file.read()
            if any(end[4:]):  # files in several parts end with an empty one
                return [status.st_size, end.hex()]
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def stamps(paths: Iterable[str], known: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """The stamps of files by path; those that `known` has are taken from it while date and size
    stay."""

    def of(path: str) -> Stamp:
        before = known.get(path)
        return before[2:] if before and before[:2] == _dated(path) else stamp(path)

    return {path: of(path) for path in paths}


def write_stamps(table: Path, paths: Iterable[str]) -> dict[str, Stamp]:
    """Write down the stamps of files, for later `stamps`, and give them."""
    dated = {path: _dated(path) for path in paths}
    found = stamps(dated, {})
    write_text(table, json.dumps({path: [*dated[path], *found[path]] for path in dated}))
    return found


def read_stamps(table: Path) -> dict[str, Stamp]:
    """What `write_stamps` wrote; nothing where it is not there or not whole."""
    try:
        return json.loads(table.read_text())
    except (OSError, ValueError):
        return {}


def unpacked_bytes(facts: Stamp) -> int:
    """The length of what a file of this stamp holds; 0 where there is none."""
    if not facts or isinstance(facts[1], int):
        return facts[0] if facts else 0
    size, end = facts
    length = int.from_bytes(bytes.fromhex(end)[4:], "little")
    # It is told modulo 2^32, and gzip makes nothing much longer.
    return length + max(0, math.ceil((size - 1024 - length) / 2**32)) * 2**32


def _dated(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
