"""What is finished of a shard: its cases' files in one flat folder, and a line a case beside them.

A file's name there ends with its checksum, so that nobody ever replaces one by another content. A
line is appended once its case's files lie under these names. Whatever a kill or a power cut leaves
half done is then a line that does not fit its own checksum, or a file that does not fit its line's:
the case is made again. The same holds for two processes in one folder, an orphan and its successor;
on a network file system they may garble each other's lines, but no file.
"""

import json
import os
import shutil
import time
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from panorgan.io.writing import clear_temporaries, replacing, to_disk

NAME = "journal.jsonl"
OLD_ENTRY = "entry.json"
"""In stores of earlier versions: each case was a folder, with its line in this file."""
UNLISTED_S = 3600.0
"""A file that no line names belongs to a process that is about to write the line; not for so long,
though."""


@dataclass(frozen=True)
class Finished:
    """A finished case.

    Attributes
    ----------
    case, key
        Its name, and the hash of all that it depends on.
    row, details
        Its row of the shard's table, and its rows of further tables.
    files
        Size in bytes and checksum of each of its files, by name.
    columns
        The columns of the tables that the rows are for.
    flushed
        Whether its files are on the disk, not only in the system's memory.
    """

    case: str
    key: str
    row: Mapping[str, object]
    details: Mapping[str, list[Mapping[str, object]]]
    files: Mapping[str, tuple[int, str]]
    columns: Mapping[str, list[str]]
    flushed: bool = False

    @property
    def stored(self) -> dict[str, str]:
        """Name in the store of each file."""
        return {name: stored_name(name, checksum) for name, (_, checksum) in self.files.items()}


def stored_name(name: str, checksum: str) -> str:
    """Name in the store of a file."""
    return f"{name}.{checksum}"


class Journal:
    """The finished cases of a store.

    Parameters
    ----------
    store
        The folder, which exists. Folders of earlier versions in it become lines.

    Attributes
    ----------
    entries
        The newest line of each case and key.
    """

    def __init__(self, store: Path):
        self._store = store
        self._path = store / NAME
        self._take_over_folders()
        self.entries = {(entry.case, entry.key): entry for entry in self._read()}

    def find(self, case: str, key: str) -> Finished | None:
        """The line of a case under a key."""
        return self.entries.get((case, key))

    def append(self, entry: Finished) -> Finished:
        """Add a case whose files are in the store; the line as it will be read."""
        text = _line(entry)
        # The line before may have no end.
        data = b"\n" + text
        number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while data:
                data = data[os.write(number, data) :]
        finally:
            os.close(number)
        return _entry(text)

    def settle(self, entries: Mapping[str, Finished]) -> set[str]:
        """Have some cases on the disk, files and lines, and forget what nobody needs.

        Of each case the line that is given stays, and the newest one of another key, so that
        changing back is free.

        Returns
        -------
        Names of the files that were forgotten, for `prune`.
        """
        new = [entry for entry in entries.values() if not entry.flushed]
        if new:
            to_disk(*(self._store / name for name in sorted(_names(new))), self._store)
        # Another process may have added lines, or lost ours.
        lines = [*self._read(), *entries.values()]
        others = {
            entry.case: entry
            for entry in lines
            if entry.case not in entries or entries[entry.case].key != entry.key
        }
        kept = [*others.values(), *(replace(entry, flushed=True) for entry in entries.values())]
        text = b"".join(map(_line, kept))
        if not self._path.exists() or self._path.read_bytes() != text:
            with replacing(self._path) as temporary:
                temporary.write_bytes(text)
                to_disk(temporary)
        # Another result of the same key may be another process's, which is about to publish it.
        keys = {(entry.case, entry.key) for entry in kept}
        gone = [entry for entry in lines if (entry.case, entry.key) not in keys]
        return _names(gone) - _names(kept)

    def prune(self, dropped: Container[str]) -> None:
        """Remove files of lines that `settle` has dropped, and what dead processes left."""
        clear_temporaries(self._store)
        known = {NAME, *_names(self._read())}
        for path in self._store.iterdir():
            if path.name in known or path.is_dir():
                continue
            with suppress(FileNotFoundError):  # another process was faster
                if path.name in dropped or time.time() - path.stat().st_mtime > UNLISTED_S:
                    path.unlink()

    def _read(self) -> list[Finished]:
        """Every whole line, the oldest first."""
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().split(b"\n")
        return [_entry(line) for line in lines if _is_whole(line)]

    def _take_over_folders(self) -> None:
        """Make lines of what an earlier version has finished, so that it is not made again."""
        with os.scandir(self._store) as found:
            names = [one.name for one in found if one.is_dir() and not one.name.endswith(".tmp")]
        folders = [self._store / name for name in names]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime):
            if not folder.name.startswith("."):  # else a job died there
                self._take_over(folder)
            shutil.rmtree(folder)

    def _take_over(self, folder: Path) -> None:
        case, _, key = folder.name.rpartition(".")
        try:
            entry = Finished(
                case, key, **json.loads((folder / OLD_ENTRY).read_text()), flushed=True
            )
        except (FileNotFoundError, TypeError, ValueError):
            return  # not whole
        self.append(entry)
        for name, stored in entry.stored.items():
            if (folder / name).exists():  # not moved before a kill
                os.replace(folder / name, self._store / stored)


def _line(entry: Finished) -> bytes:
    text = json.dumps(vars(entry), separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _is_whole(line: bytes) -> bool:
    checksum, _, text = line.partition(b" ")
    return checksum == _checksum(text)


def _entry(line: bytes) -> Finished:
    return Finished(**json.loads(line.partition(b" ")[2]))


def _checksum(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).hexdigest().encode()


def _names(entries: Iterable[Finished]) -> set[str]:
    return set(chain.from_iterable(entry.stored.values() for entry in entries))
