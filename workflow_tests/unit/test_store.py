"""Finished work is kept, checked, reused, published and pruned."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest
from fault_rows import fault_rows

from panorgan.io.tables import read_table
from panorgan.io.volumes import VolumeError
from panorgan.problems import Problem, Problems, Stop
from panorgan.run.store import (
    Result,
    ShardOutput,
    ShardReader,
    Work,
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
    assert len(list(shard.out.store.iterdir())) == 2


def test_a_case_that_left_is_not_published_and_may_come_back_for_free(shard):
    shard({"a": "x", "b": "y"})
    shard({"a": "x"})
    assert [path.name for path in shard.out.folder.iterdir()] == ["a.txt"]
    assert shard({"a": "x", "b": "y"}) == []


def test_an_entry_cut_by_a_power_failure_is_computed_again(shard):
    shard({"a": "x", "b": "y"})
    (entry,) = shard.out.store.glob("a.*/entry.json")
    entry.write_text('{"row": {')
    assert shard({"a": "x", "b": "y"}) == ["a"]


def test_two_cases_with_files_of_one_name_are_never_mixed(tmp_path):
    def compute(name, folder):
        (folder / "same.txt").write_text(name)
        return Result()

    out = ShardOutput(tmp_path / ".store", tmp_path / "s.tsv", tmp_path / "s")
    with pytest.raises(FileExistsError):
        run_shard([Work("a", {}), Work("b", {})], compute, out, parameters=1)
    assert [path.read_text() for path in sorted(out.store.glob("*/same.txt"))] == ["a", "b"]


def test_damaged_entry_is_computed_again(shard):
    shard({"a": "x", "b": "y"})
    (file,) = shard.out.store.glob("a.*/a.txt")
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
        rf"b: {shard.out.store}/b\.\w+: no space left on the disk \(.* free\); free some space and "
        "run the same command again: finished work is kept",
        b,
    )
    assert shard({"a": "x", "b": "y", "c": "z"}) == ["a", "b", "c"]


def test_half_written_case_of_a_dead_process_is_removed(shard):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    shard({"a": "x"})
    for pid in (dead, str(os.getpid())):
        (shard.out.store / f".tmp-{os.uname().nodename}-{pid}-b.123").mkdir()
    shard({"a": "x"})
    left = [path.name for path in shard.out.store.iterdir() if path.name.startswith(".tmp")]
    assert left == [f".tmp-{os.uname().nodename}-{os.getpid()}-b.123"]


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
