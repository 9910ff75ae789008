"""Preprocessed data on a node's own disk: copied once, checked, gone at the end."""

import re
import signal
import subprocess
import sys

import pytest

from panorgan.problems import Problems
from panorgan.run.scratch import near
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, run_shard


@pytest.fixture
def shard(tmp_path):
    """A published shard of three cases with two files each, of 5,000 bytes."""

    def compute(case, folder):
        for name in (case, case + "_seg"):
            (folder / name).write_bytes(name.encode()[:1] * 5000)
        return Result()

    out = ShardOutput(tmp_path / "store", tmp_path / "s.tsv", tmp_path / "s")
    run_shard([Work(case, {}) for case in "abc"], compute, out, parameters=1, say=lambda _: None)
    return ShardReader([out.table], [out.folder])


@pytest.fixture
def scratch(tmp_path):
    place = tmp_path / "scratch"
    place.mkdir()
    return place


def test_copies_are_there_as_long_as_they_are_read(shard, scratch, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(scratch))
    said = []
    with near("$NODE_DISK", [(shard, ["a", "b"]), (shard, ["c"])], said.append) as (first, second):
        assert [*first] == ["a", "b"]
        assert [*second] == ["c"]
        (folder,) = scratch.iterdir()
        assert {*first.values(), *second.values()} == {folder}
        assert sorted(path.name for path in folder.iterdir()) == [
            name + end for name in "abc" for end in ("", "_seg")
        ]
        assert (folder / "a_seg").read_bytes() == b"a" * 5000
        assert folder.stat().st_mode & 0o777 == 0o700
    assert said == [f"preprocessed data are copied to {folder}"]
    assert not list(scratch.iterdir())


def test_without_a_scratch_they_are_read_where_they_are(shard, tmp_path):
    said = []
    with near("", [(shard, ["a", "b"])], said.append) as (found,):
        assert found == dict.fromkeys("ab", tmp_path / "s")
    assert said == []


@pytest.mark.parametrize("place", ["$NO_SUCH_VARIABLE", "file"])
def test_a_place_that_is_none_is_told_and_no_training_ends(place, shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    said = []
    with near(place, [(shard, ["a"])], said.append) as (found,):
        assert found == {"a": tmp_path / "s"}
    assert said == [
        f"scratch: {place}: is no folder here: preprocessed data are read where they are"
    ]


@pytest.mark.parametrize("pages", [3, 9])  # less than what was asked for, and no page for folders
def test_a_scratch_without_room_is_left_alone(pages, shard, small_disk, tmp_path, monkeypatch):
    disk = small_disk(pages)
    if pages == 9:
        monkeypatch.setattr("panorgan.run.scratch.free_disk", lambda _: 10**9)
    said = []
    with near(str(disk), [(shard, ["a", "b", "c"])], said.append) as (found,):
        assert found == dict.fromkeys("abc", tmp_path / "s")
        assert not list(disk.iterdir())
    assert re.fullmatch(
        f"scratch: {disk}: (has room for 0.0 GB, not for 0.0 GB|No space left on device): "
        "preprocessed data are read where they are",
        said[0],
    )


def test_what_is_no_longer_what_its_job_wrote_is_refused(shard, scratch, tmp_path):
    (tmp_path / "s/b_seg").unlink()
    (tmp_path / "s/b_seg").write_bytes(b"c" * 5000)
    for place in (str(scratch), ""):
        with (
            pytest.raises(Problems, match=r"b: .*/b_seg: is not what its job wrote"),
            near(place, [(shard, ["a", "b"])]),
        ):
            raise AssertionError
        assert not list(scratch.iterdir())
    (tmp_path / "s/a").unlink()
    with pytest.raises(Problems, match=r"a: .*/a: is gone"), near(str(scratch), [(shard, ["a"])]):
        raise AssertionError


def test_a_copy_that_is_another_is_not_read(shard, scratch, tmp_path, monkeypatch):
    def damaging(source, target):
        target.write_bytes(source.read_bytes()[:-1])
        return target

    monkeypatch.setattr("panorgan.run.scratch.shutil.copyfile", damaging)
    said = []
    with near(str(scratch), [(shard, ["a"])], said.append) as (found,):
        assert found == {"a": tmp_path / "s"}
    assert "the copy of a is not what was copied: preprocessed data are read where" in said[0]
    assert not list(scratch.iterdir())


def test_what_a_killed_training_left_goes_and_what_a_living_one_reads_stays(shard, scratch):
    code = """
import sys, time
from panorgan.run.scratch import near
with near(sys.argv[1], []): print("there", flush=True); time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(scratch)]
    living = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    living.stdout.readline(), living.stdout.readline()
    (theirs,) = scratch.iterdir()
    with near(str(scratch), [(shard, ["a"])]) as (found,):
        assert {*scratch.iterdir()} == {theirs, found["a"]}
    living.send_signal(signal.SIGKILL)
    living.wait()
    assert theirs.exists()
    with near(str(scratch), [(shard, ["a"])]) as (found,):
        assert [*scratch.iterdir()] == [found["a"]]
