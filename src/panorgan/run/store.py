"""Finished work that a failed or killed job does not lose.

Snakemake deletes the declared outputs of a job that failed, so every finished case and every
training checkpoint lives in a *store* beside them, under a key: the hash of all that the result
depends on. A job links from the store what is there and computes the rest; all of it is flushed to
the disk once, before it is published. Publishing (hard links into a temporary folder, a rename, the
tables last) can be repeated at any moment.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from panorgan.io.failures import Failures
from panorgan.io.tables import read_table, write_table
from panorgan.io.volumes import Volume, VolumeError, read_label
from panorgan.io.writing import (
    clear_temporaries,
    new_folder,
    scratch_folder,
    stopping,
    to_disk,
    write_text,
)
from panorgan.problems import Problems, Stop
from panorgan.run.journal import Finished, Journal
from panorgan.run.lease import exclusive

KEY = "key.json"
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links say."""
BAD = "bad"
"""Status of a case that cannot be used; such an entry is never taken from the store."""
CASE_COLUMNS = ("case", "status", "reason", "files")


@dataclass(frozen=True)
class Work:
    """A case that a shard job has to produce: its name, all that the result depends on, and its
    image, for messages."""

    case: str
    inputs: Mapping[str, object]
    image: str = ""


@dataclass
class Result:
    """What computing a case gave beside its files: its row, and rows for further tables."""

    row: dict[str, object] = field(default_factory=dict)
    details: dict[str, list[dict[str, object]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardOutput:
    """Where a shard job keeps and publishes its work.

    Parameters
    ----------
    store
        Folder of this shard's finished cases.
    table, folder
        The declared outputs: a table with a row per case, and a folder with every case's files
        (None where a stage has only rows).
    details
        Further declared tables, by name: tidy rows, any number per case.
    """

    store: Path
    table: Path
    folder: Path | None
    details: Mapping[str, Path] = field(default_factory=dict)


def key_of(content: object) -> str:
    """A short hash of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=10).hexdigest()


def file_checksum(path: str | Path) -> str:
    """blake2b (16 bytes, hex) of a file's bytes."""
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def unfinished(store: Path, work: Iterable[Work], parameters: object) -> list[Work]:
    """What is not in a store, whose files are not looked at; arguments as those of `run_shard`."""
    if not store.exists():
        return list(work)
    journal = Journal(store)
    return [item for item in work if not journal.find(item.case, _key(item, parameters))]


def _key(item: Work, parameters: object) -> str:
    return key_of([parameters, item.inputs])


def run_shard(
    work: Sequence[Work],
    compute: Callable[[str, Path], Result],
    out: ShardOutput,
    *,
    parameters: object,
    columns: Sequence[str] = (),
    details: Mapping[str, Sequence[str]] | None = None,
    others: Iterable[Mapping[str, object]] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Produce every case of a shard and publish the shard's folder and tables.

    Parameters
    ----------
    work
        The cases to be produced.
    compute
        Makes one case: gets its name and an empty folder for its files.
    out
        Where finished cases are kept and published.
    parameters
        All that every case's result depends on: stage version, settings, models.
    columns, details
        Columns of the table after `CASE_COLUMNS`, and those of each further table after `case`.
    others
        Rows of cases that need no work (skipped or excluded, with the reason).

    Returns
    -------
    How many cases were computed: the others are finished work that was published again.

    Raises
    ------
    Problems
        The problems of all failing cases, after every other case has been tried; finished ones
        stay in the store. A `Stop`, such as a full disk, ends the job at once.
    """
    store = out.store
    with _kept(store):
        store.mkdir(parents=True, exist_ok=True)
        journal = Journal(store)
    entries: dict[str, Finished] = {}
    failures = Failures(say)
    reused = 0
    layout = {"cases": [*columns]} | {name: [*own] for name, own in (details or {}).items()}
    for item in work:
        with failures.of(item.case, item.image):
            key = _key(item, parameters)
            entry = journal.find(item.case, key)
            if entry and _is_whole(entry, store, layout, say):
                reused += 1
            else:
                with _kept(store / item.case):
                    made = _make(store, item.case, key, layout, compute)
                    entry = journal.append(made)
                say(f"{item.case}: computed")
            entries[item.case] = entry
    count = len(failures.problems)
    say(f"{len(entries) - reused} computed, {reused} reused, {count} problems")
    failures.check()
    with _kept(out.table):
        dropped = journal.settle(entries)
        _publish(entries, out, columns, details or {}, others)
    journal.prune(dropped)
    return len(entries) - reused


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """`stopping` where finished work stays in a store."""
    try:
        with stopping(path):
            yield
    except Stop as stop:
        raise Stop(
            replace(one, cure=f"{one.cure}: finished work is kept") for one in stop.problems
        ) from None


def _make(
    store: Path,
    case: str,
    key: str,
    layout: Mapping[str, Sequence[str]],
    compute: Callable[[str, Path], Result],
) -> Finished:
    """Compute a case; its files appear in the store, each of them whole."""
    with scratch_folder(store / case) as temporary:
        result = compute(case, temporary)
        paths = sorted(temporary.iterdir())
        files = {path.name: (path.stat().st_size, file_checksum(path)) for path in paths}
        made = Finished(case, key, result.row, result.details, files, layout)
        for path in paths:
            path.chmod(0o444)
            os.replace(path, store / made.stored[path.name])
    return made


def _is_whole(
    entry: Finished, store: Path, layout: Mapping[str, Sequence[str]], say: Callable[[str], None]
) -> bool:
    """Whether a case that was finished is of use, with every file as it was written.

    Its rows must be for tables of the same columns: of a new one it says nothing.
    """
    if entry.row.get("status") == BAD or entry.columns != layout:
        return False
    for name, (size, checksum) in entry.files.items():
        path = store / entry.stored[name]
        if not path.exists() or path.stat().st_size != size or file_checksum(path) != checksum:
            say(f"{path} was changed after it was written: it is made again")
            return False
    return True


def _publish(
    entries: Mapping[str, Finished],
    out: ShardOutput,
    columns: Sequence[str],
    details: Mapping[str, Sequence[str]],
    others: Iterable[Mapping[str, object]],
) -> None:
    clear_temporaries(out.table.parent)
    if out.folder:
        files = (
            (out.store / stored, name)
            for entry in entries.values()
            for name, stored in entry.stored.items()
        )
        link_folder(out.folder, files)
    for name, detail_columns in details.items():
        rows = [
            {"case": case} | dict(row)
            for case, entry in sorted(entries.items())
            for row in entry.details.get(name, [])
        ]
        write_table(out.details[name], ("case", *detail_columns), rows)
    rows = [
        {"case": case, "status": "ok", "files": _files_text(entry.files)} | dict(entry.row)
        for case, entry in entries.items()
    ]
    rows = sorted([*rows, *map(dict, others)], key=lambda row: row["case"])
    write_table(out.table, (*CASE_COLUMNS, *columns), rows)
    to_disk(*(out.details[name] for name in details), out.table, out.table.parent)


def _files_text(files: Mapping[str, Sequence]) -> str:
    return " ".join(f"{name}:{checksum}" for name, (_, checksum) in sorted(files.items()))


def link_folder(folder: Path, files: Iterable[tuple[Path, str]]) -> None:
    """Make `folder` hold exactly these files under these names.

    They are hard links, copies where links don't exist.
    """
    with new_folder(folder) as temporary:
        for file, name in files:
            try:
                os.link(file, temporary / name)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                shutil.copy2(file, temporary / name)
                to_disk(temporary / name)
        to_disk(temporary)
        shutil.rmtree(folder, ignore_errors=True)


class ShardReader:
    """Published shards read back: rows of their tables, and files checked against them."""

    def __init__(self, tables: Iterable[str | Path], folders: Iterable[str | Path]):
        self._rows: dict[str, tuple[dict[str, str], Path]] = {}
        for table, folder in zip(tables, folders, strict=True):
            for row in read_table(table):
                self._rows[row["case"]] = (row, Path(folder))

    @classmethod
    def of(
        cls, tables: Sequence[str | Path], folders: Sequence[str | Path]
    ) -> "ShardReader | None":
        """A reader of some shards, or None where there are no tables."""
        return cls(tables, folders) if tables else None

    def __contains__(self, case: str) -> bool:
        return case in self._rows and self._rows[case][0]["status"] == "ok"

    @property
    def cases(self) -> list[str]:
        """Names of the cases that were produced, sorted."""
        return sorted(case for case in self._rows if case in self)

    def row(self, case: str) -> dict[str, str]:
        """A case's row; KeyError if the tables don't have it."""
        return self._rows[case][0]

    def checksums(self, case: str) -> dict[str, str]:
        """Checksum of each of the case's files by name."""
        pairs = (pair.rpartition(":") for pair in self.row(case)["files"].split())
        return {name: checksum for name, _, checksum in pairs}

    def folder(self, case: str) -> Path:
        """The folder of the case's files, whatever lies in it."""
        return self._rows[case][1]

    def checked_folder(self, case: str) -> Path:
        """The folder that holds the case's files, after comparing all of them with its row."""
        for name in self.checksums(case):
            self._checked(case, name)
        return self._rows[case][1]

    def file(self, case: str, suffix: str) -> Path:
        """Path of the file ``CASE`` + suffix, after comparing it with its row.

        Raises
        ------
        Problems
            If it is gone or no longer what its job wrote.
        """
        return self._checked(case, case + suffix)

    def read_label(self, case: str, suffix: str) -> Volume:
        """The label map ``CASE`` + suffix; Problems if it cannot be read or is another."""
        path = self.file(case, suffix)
        try:
            return read_label(path)
        except VolumeError as error:
            raise Problems.one(error.cause, error.cure, case=case, file=path) from None

    def _checked(self, case: str, name: str) -> Path:
        path = self._rows[case][1] / name
        checksum = self.checksums(case)[name]
        cure = f"make it again: delete {path.parent} and run the same command"
        if not path.exists():
            raise Problems.one("is gone", cure, case=case, file=path)
        if file_checksum(path) != checksum:
            raise Problems.one("is not what its job wrote", cure, case=case, file=path)
        return path


def run_training(
    slot: str | Path,
    key: Mapping[str, object],
    train: Callable[[Path, Callable[[], None]], tuple[Path, bool]],
    *,
    model: str | Path,
    table: str | Path,
    say: Callable[[str], None] = print,
) -> int:
    """Train in the store under a key, then publish the model.

    Another process that is at the same training is waited for: `panorgan.run.lease.exclusive`.

    Parameters
    ----------
    slot
        Where this training's states are kept, one folder a key.
    key
        All that the weights depend on, by name: another value of any of them starts anew.
    train
        Gets the state folder, resumes what lies in it, returns the finished model's folder and
        whether there was anything left to train. It also gets a function that it has to call before
        it writes: this raises Problems once another process has taken over the folder.
    model, table
        The declared outputs: the model's folder and its one-row table.

    Returns
    -------
    1, or 0 if the model was finished before.
    """
    slot = Path(slot)
    state = slot / key_of(key)
    with exclusive(state, say, wait=True) as lease:
        if not (state / KEY).exists():
            _say_changes(slot, key, say)
            write_text(state / KEY, json.dumps(key, indent=1, sort_keys=True))
        with _kept(state):
            finished, trained = train(state, lease.check)
            lease.check()
            for path in finished.iterdir():
                path.chmod(0o444)
            clear_temporaries(Path(model).parent)
            link_folder(Path(model), ((path, path.name) for path in sorted(finished.iterdir())))
        card = json.loads((finished / "card.json").read_text())
        row = {"model": str(model), "checksum": card["checksum"], "key": state.name}
        write_table(table, list(row), [row])
    others = sorted(
        (path for path in slot.iterdir() if path != state),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in others[1:]:
        shutil.rmtree(path, ignore_errors=True)
    return int(trained)


def _say_changes(slot: Path, key: Mapping[str, object], say: Callable[[str], None]) -> None:
    """Tell why a training starts anew where another one was begun."""
    before = sorted(slot.glob(f"*/{KEY}"), key=lambda path: path.stat().st_mtime)
    if before:
        try:
            old = json.loads(before[-1].read_text())
        except ValueError:
            return
        changed = [name for name in sorted({*old, *key}) if old.get(name) != key.get(name)]
        say(f"training starts anew, because this changed: {', '.join(changed)}")
        say(f"the earlier state stays in {before[-1].parent} until this one has finished")
