"""Finished work is kept, checked, reused, published and pruned."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path

import pytest
from fault_rows import fault_rows

from panorgan.io.tables import read_table
from panorgan.io.volumes import VolumeError
from panorgan.problems import Problem, Problems, Stop
from panorgan.run.journal import Journal
from panorgan.run.store import (
    Result,
    ShardOutput,
    ShardReader,
    Work,
    file_checksum,
    key_of,
    run_shard,
    run_training,
)


@pytest.fixture
def shard(tmp_path):
    """Runs a shard of cases whose file holds their input; returns what was computed."""

    def run(cases, version=1, failing=(), columns=("size",)):
        computed = []

        def compute(name, folder):
            if name in failing:
                raise failing[name]
            computed.append(name)
            (folder / f"{name}.txt").write_text(cases[name])
            return Result(
                dict.fromkeys(columns, len(cases[name])), {"letters": [{"letter": cases[name][0]}]}
            )

        run_shard(
            [Work(name, {"content": text}, f"{name}.nii.gz") for name, text in cases.items()],
            compute,
            out,
            parameters={"version": version},
            columns=columns,
            details={"letters": ["letter"]},
        )
        return computed

    out = ShardOutput(
        tmp_path / ".store/s", tmp_path / "s.tsv", tmp_path / "s", {"letters": tmp_path / "l.tsv"}
    )
    run.out = out
    return run


def test_a_new_column_is_not_left_empty(shard):
    shard({"a": "x"})
    assert shard({"a": "x", "b": "yy"}, columns=("size", "length")) == ["a", "b"]
    assert [row["length"] for row in read_table(shard.out.table)] == ["1", "2"]


def test_published_folder_and_tables(shard):
    shard({"b": "yy", "a": "x"})
    assert sorted(path.name for path in shard.out.folder.iterdir()) == ["a.txt", "b.txt"]
    rows = read_table(shard.out.table)
    assert [(row["case"], row["status"], row["size"]) for row in rows] == [
        ("a", "ok", "1"),
        ("b", "ok", "2"),
    ]
    assert read_table(shard.out.details["letters"]) == [
        {"case": "a", "letter": "x"},
        {"case": "b", "letter": "y"},
    ]


def test_only_what_changed_is_computed(shard):
    assert shard({"a": "x", "b": "y"}) == ["a", "b"]
    assert shard({"a": "x", "b": "y"}) == []
    assert shard({"a": "x", "b": "y", "c": "z"}) == ["c"]
    assert shard({"a": "x", "b": "other", "c": "z"}) == ["b"]
    assert shard({"a": "x", "b": "other", "c": "z"}, version=2) == ["a", "b", "c"]


def test_publishing_again_gives_equal_bytes(shard):
    shard({"a": "x", "b": "y"})
    before = shard.out.table.read_bytes()
    shard({"b": "y", "a": "x"})
    assert shard.out.table.read_bytes() == before


def test_deleted_outputs_come_back_without_computing(shard):
    shard({"a": "x"})
    (shard.out.folder / "a.txt").unlink()
    shard.out.folder.rmdir()
    shard.out.table.unlink()
    assert shard({"a": "x"}) == []
    assert (shard.out.folder / "a.txt").read_text() == "x"


def test_one_older_key_is_kept_and_changing_back_is_free(shard):
    shard({"a": "1"})
    shard({"a": "2"})
    assert shard({"a": "1"}) == []
    shard({"a": "3"})
    assert sorted(path.read_text() for path in shard.out.store.glob("a.txt.*")) == ["1", "3"]
    assert len(Journal(shard.out.store).entries) == 2


def test_a_case_that_left_is_not_published_and_may_come_back_for_free(shard):
    shard({"a": "x", "b": "y"})
    shard({"a": "x"})
    assert [path.name for path in shard.out.folder.iterdir()] == ["a.txt"]
    assert shard({"a": "x", "b": "y"}) == []


@pytest.mark.parametrize("damage", ["cut", "garbled", "cut before", "overwritten"])
def test_a_line_that_is_not_whole_is_a_case_to_be_made_again(shard, damage):
    shard({"a": "x", "b": "y"})
    journal = shard.out.store / "journal.jsonl"
    a, b = journal.read_bytes().splitlines(keepends=True)
    changed = {
        "cut": a + b[:-20],
        "garbled": a + bytes(len(b)),
        "cut before": b[20:] + a,
        "overwritten": a + b.replace(b'"y"', b'"z"'),
    }
    journal.write_bytes(changed[damage])
    assert shard({"a": "x", "b": "y"}) == ["b"]
    assert sorted(journal.read_bytes().splitlines(keepends=True)) == [a, b]


def test_what_follows_a_line_without_an_end_is_whole(shard):
    shard({"a": "x"})
    journal = shard.out.store / "journal.jsonl"
    with open(journal, "ab") as file:
        file.write(b"0123 half a li")
    with pytest.raises(Problems):
        shard({"a": "x", "b": "y", "c": "z"}, failing={"c": ValueError()})
    assert shard({"a": "x", "b": "y", "c": "z"}) == ["c"]


def test_two_cases_with_files_of_one_name_are_never_mixed(tmp_path):
    def compute(name, folder):
        (folder / "same.txt").write_text(name)
        return Result()

    out = ShardOutput(tmp_path / ".store", tmp_path / "s.tsv", tmp_path / "s")
    with pytest.raises(FileExistsError):
        run_shard([Work("a", {}), Work("b", {})], compute, out, parameters=1)
    assert {path.read_text() for path in out.store.glob("same.txt.*")} == {"a", "b"}
    assert not out.table.exists()


def test_a_case_takes_no_more_than_its_files(shard):
    shard({name: name for name in "abcdefgh"})
    places = [shard.out.store, shard.out.folder]
    inodes = {path.stat().st_ino for place in places for path in (place, *place.rglob("*"))}
    assert len(inodes) == 8 + len({"store", "journal", "folder"})


def test_finished_folders_of_earlier_versions_are_taken_over(shard):
    """They had a folder a case, with its line in `entry.json`."""
    columns = {"cases": ["size"], "letters": ["letter"]}
    for case, text in {"a": "x", "b": "y"}.items():
        folder = shard.out.store / f"{case}.{key_of([{'version': 1}, {'content': text}])}"
        folder.mkdir(parents=True)
        (folder / f"{case}.txt").write_text(text)
        files = {f"{case}.txt": [1, file_checksum(folder / f"{case}.txt")]}
        details = {"letters": [{"letter": text}]}
        entry = {"row": {"size": 1}, "details": details, "files": files, "columns": columns}
        (folder / "entry.json").write_text(json.dumps(entry, indent=1))
    (shard.out.store / "c.123").mkdir()
    (shard.out.store / "c.123/entry.json").write_text('{"row": {')
    (shard.out.store / ".tmp-host-1-c.123").mkdir()
    assert shard({"a": "x", "b": "y", "c": "z"}) == ["c"]
    assert [path.name for path in shard.out.store.iterdir() if path.is_dir()] == []
    assert [row["size"] for row in read_table(shard.out.table)] == ["1", "1", "1"]
    assert (shard.out.folder / "a.txt").read_text() == "x"


def test_all_is_on_the_disk_before_it_is_published_and_nothing_is_flushed_twice(shard, monkeypatch):
    flushed = {}
    fsync = os.fsync

    def recording(number):
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        flushed.setdefault(path.name, []).append(shard.out.table.exists())
        fsync(number)

    monkeypatch.setattr("os.fsync", recording)
    shard({"a": "x", "b": "y"})
    files = {path.name for path in shard.out.store.iterdir()} - {"journal.jsonl"}
    assert len(files) == 2
    assert all(flushed[name] == [False] for name in files)
    flushed.clear()
    shard({"a": "x", "b": "y", "c": "z"})
    assert [name for name in flushed if name[1:5] == ".txt"] == [
        path.name for path in shard.out.store.glob("c.txt.*")
    ]


def test_what_a_killed_process_finished_is_flushed_by_the_next(shard, monkeypatch):
    """It may have been in the system's memory only."""
    with pytest.raises(Problems):
        shard({"a": "x", "b": "y"}, failing={"b": ValueError()})
    (file,) = shard.out.store.glob("a.txt.*")
    flushed = []
    monkeypatch.setattr("os.fsync", lambda number: flushed.append(os.fstat(number).st_ino))
    assert shard({"a": "x", "b": "y"}) == ["b"]
    assert file.stat().st_ino in flushed


STEPS = ("replace", "rename", "link", "write", "fsync", "unlink", "mkdir", "rmdir", "chmod")


def in_a_process(do):
    """Call a function in a process of its own; whether it came to its end."""
    child = os.fork()
    if not child:
        try:
            do()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def die_at(step):
    """Have this process killed at one of its next steps on the disk, in the middle of a write."""
    numbers = count()

    def dying(name, function):
        def call(*arguments, **named):
            if next(numbers) == step:
                if name == "write":
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in STEPS:
        setattr(os, name, dying(name, getattr(os, name)))


def whole_if_published(out):
    """Check that the table, if there is one, names whole files."""
    if out.table.exists():
        reader = ShardReader([out.table], [out.folder])
        assert [reader.checked_folder(case) for case in reader.cases]


def test_a_kill_at_any_step_loses_no_finished_case_and_publishes_nothing_torn(shard, tmp_path):
    said = tmp_path / "said"
    survived, steps = False, 0
    while not survived:
        for path in (shard.out.store, shard.out.folder):
            shutil.rmtree(path, ignore_errors=True)
        for path in (shard.out.table, shard.out.details["letters"], said):
            path.unlink(missing_ok=True)
        shard({"a": "x", "b": "old", "c": "z"})
        shard.out.table.unlink()
        cases = {"a": "x", "b": "new", "d": "zz"}

        def killed(cases=cases, step=steps):
            with open(said, "w", buffering=1) as file, redirect_stdout(file):
                die_at(step)
                shard(cases)

        survived = in_a_process(killed)
        whole_if_published(shard.out)
        finished = {line[0] for line in said.read_text().splitlines() if "computed" in line[1:]}
        made = shard(cases)
        assert not {"a", *finished} & {*made}
        assert {path.name: path.read_text() for path in shard.out.folder.iterdir()} == {
            f"{case}.txt": text for case, text in cases.items()
        }
        assert shard({"a": "x", "b": "old", "c": "z"}) == []
        assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
        steps += 1
    assert steps > 20


@pytest.mark.parametrize("same", [True, False])
def test_an_orphan_and_its_successor_on_one_shard(tmp_path, same):
    """One begins while the other is at work; results may differ, as on a GPU."""
    out = ShardOutput(tmp_path / ".store/s", tmp_path / "s.tsv", tmp_path / "s")

    def run(who, meanwhile=lambda: None):
        def compute(name, folder):
            (folder / f"{name}.txt").write_text(name if same else f"{name} by {who}")
            if name == "b":
                meanwhile()
            return Result()

        run_shard([Work(name, {}) for name in "abc"], compute, out, parameters=1)
        whole_if_published(out)

    def ends_meanwhile(who):
        assert in_a_process(lambda: run(who))

    run("an orphan", lambda: ends_meanwhile("its successor"))
    assert len(list(out.folder.iterdir())) == 3
    # What the orphan finished first was the successor's too; both made the others.
    assert len(list(out.store.iterdir())) == 1 + (3 if same else 1 + 2 * 2)
    for path in out.store.iterdir():
        os.utime(path, (time.time() - 4000,) * 2)
    ends_meanwhile("a third")
    assert len(list(out.store.iterdir())) == 1 + 3


def test_a_successor_at_work_keeps_its_files_when_its_orphan_ends(tmp_path):
    out = ShardOutput(tmp_path / ".store/s", tmp_path / "s.tsv", tmp_path / "s")

    def run(who, after_a=lambda: None):
        def compute(name, folder):
            (folder / f"{name}.txt").write_text(f"{name} by {who}")
            if name == "b":
                after_a()
            return Result()

        run_shard([Work(name, {}) for name in "abc"], compute, out, parameters=1)
        whole_if_published(out)

    def orphan_ends():
        assert in_a_process(lambda: run("an orphan that knows of nothing"))

    # As if the orphan had read the journal before the successor's first line.
    def hidden():
        journal = out.store / "journal.jsonl"
        lines = journal.read_bytes()
        journal.unlink()
        orphan_ends()
        with open(journal, "ab") as file:
            file.write(lines)

    run("the successor", hidden)
    assert {path.read_text() for path in out.folder.iterdir()} == {
        f"{name} by the successor" for name in "abc"
    }


def test_a_file_of_no_line_goes_after_an_hour(shard):
    """Until then its line may be about to be written, by another process."""
    shard({"a": "x"})
    new, old = shard.out.store / "b.txt.12", shard.out.store / "c.txt.34"
    for path in (new, old):
        path.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    shard({"a": "x"})
    assert new.exists()
    assert not old.exists()


def test_damaged_entry_is_computed_again(shard):
    shard({"a": "x", "b": "y"})
    (file,) = shard.out.store.glob("a.txt.*")
    file.chmod(0o644)
    file.write_text("?")
    assert shard({"a": "x", "b": "y"}) == ["a"]
    assert (shard.out.folder / "a.txt").read_text() == "x"


@pytest.mark.fault("case-in-a-job")
def test_every_failing_case_is_reported_and_the_others_are_kept(shard):
    failing = {
        "a": Problems([Problem("a", "f", "is bad", "mend it")]),
        "c": RuntimeError("surprise"),
        "d": MemoryError("Unable to allocate 23.0 GiB"),
        "e": VolumeError("is truncated", "copy it again"),
    }
    with pytest.raises(Problems) as error:
        shard(dict.fromkeys("abcde", "x"), failing=failing)
    a, c, d, e = str(error.value).splitlines()
    assert a == "a: f: is bad; mend it"
    fault_rows()["case-in-a-job"].check(c)
    assert d.startswith("d: d.nii.gz: does not fit into memory, of which ")
    assert e == "e: e.nii.gz: is truncated; copy it again"
    assert not shard.out.table.exists()
    assert shard(dict.fromkeys("abcde", "x")) == ["a", "c", "d", "e"]


def test_a_full_disk_ends_the_shard_at_once(shard):
    failing = {
        "a": ValueError("surprise"),
        "b": OSError(errno.ENOSPC, "No space left on device"),
    }
    with pytest.raises(Stop) as error:
        shard({"a": "x", "b": "y", "c": "z"}, failing=failing)
    a, b = str(error.value).splitlines()
    assert a.startswith("a: a.nii.gz: unexpected ValueError: surprise; ")
    assert re.fullmatch(
        rf"b: {shard.out.store}/b: no space left on the disk \(.* free\); free some space and "
        "run the same command again: finished work is kept",
        b,
    )
    assert shard({"a": "x", "b": "y", "c": "z"}) == ["a", "b", "c"]


def test_what_a_dead_process_left_half_written_goes(shard):
    """One of another machine cannot be asked: it is dead if nothing has happened for a day."""
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = os.uname().nodename
    shard({"a": "x"})
    for place in (shard.out.store, shard.out.folder.parent):
        for maker in (f"{here}~{dead}", f"{here}~{os.getppid()}", "other~1", "other~2"):
            (place / f".a~{maker}.tmp").mkdir()
        (place / f".t.tsv~{here}~{dead}.tmp").touch()
        os.utime(place / ".a~other~2.tmp", (time.time() - 90000,) * 2)
    shard({"a": "x"})
    for place in (shard.out.store, shard.out.folder.parent):
        left = {path.name for path in place.glob(".*.tmp")}
        assert left == {f".a~{here}~{os.getppid()}.tmp", ".a~other~1.tmp"}


def test_published_files_are_read_only(shard):
    shard({"a": "x"})
    assert (shard.out.folder / "a.txt").stat().st_mode & 0o222 == 0


def test_reader_checks_what_it_reads(shard):
    shard({"a": "x", "b": "y"})
    reader = ShardReader([shard.out.table], [shard.out.folder])
    assert reader.cases == ["a", "b"]
    assert reader.file("a", ".txt").read_text() == "x"
    assert reader.checked_folder("b") == shard.out.folder
    (shard.out.folder / "b.txt").chmod(0o644)
    (shard.out.folder / "b.txt").write_text("?")
    with pytest.raises(Problems, match="is not what its job wrote"):
        reader.checked_folder("b")
    (shard.out.folder / "a.txt").unlink()
    with pytest.raises(Problems, match="is gone"):
        reader.file("a", ".txt")


@pytest.fixture
def training(tmp_path):
    """Runs a training of three steps that can be interrupted; returns the steps taken."""

    def run(key, interrupt_after=None):
        steps = []

        def train(state, check):
            done = state / "done"
            while (count := int(done.read_text()) if done.exists() else 0) < 3:
                if interrupt_after is not None and len(steps) == interrupt_after:
                    raise KeyboardInterrupt
                steps.append(count)
                done.write_text(str(count + 1))
            model = state / "model"
            model.mkdir(exist_ok=True)
            (model / "card.json").write_text(json.dumps({"checksum": "abc"}))
            return model, True

        run_training(
            tmp_path / "slot", key, train, model=tmp_path / "model", table=tmp_path / "model.tsv"
        )
        return steps

    run.slot = tmp_path / "slot"
    run.table = tmp_path / "model.tsv"
    return run


def test_training_goes_on_and_is_not_repeated(training):
    with pytest.raises(KeyboardInterrupt):
        training({"plan": 1}, interrupt_after=2)
    assert training({"plan": 1}) == [2]
    assert training({"plan": 1}) == []
    assert read_table(training.table)[0]["checksum"] == "abc"


def test_unfinished_training_survives_another_key(training, capsys):
    with pytest.raises(KeyboardInterrupt):
        training({"plan": 1, "seed": 0}, interrupt_after=2)
    with pytest.raises(KeyboardInterrupt):
        training({"plan": 2, "seed": 0}, interrupt_after=1)
    assert "because this changed: plan" in capsys.readouterr().out
    assert training({"plan": 1, "seed": 0}) == [2]


def test_what_another_process_has_taken_over_is_not_published(tmp_path):
    def train(state, check):
        check()
        (state / "model").mkdir()
        (state / "lease-0002").write_text("another one's")
        return state / "model", True

    model, table = tmp_path / "model", tmp_path / "model.tsv"
    with pytest.raises(Problems, match="another process has taken over"):
        run_training(tmp_path / "slot", {}, train, model=model, table=table)
    assert not model.exists()
    assert not table.exists()


def test_a_full_disk_ends_a_training_readably(tmp_path):
    def train(state, check):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Problems, match=r"no space left on the disk.*finished work is kept"):
        run_training(tmp_path / "slot", {}, train, model="model", table="table")
