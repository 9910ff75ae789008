"""A folder belongs to one process at a time, whatever host, container or clock it lives by."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from panorgan.problems import Problems
from panorgan.run import lease
from panorgan.run.lease import exclusive, this_process

FORK = multiprocessing.get_context("fork")
HERE = this_process()
ELSEWHERE = replace(HERE, host="far", boot="another-kernel", pid=1, token="theirs")
CONTAINER = replace(HERE, pids="pid:[7]", pid=1, token="theirs")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """A second stands for a minute."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.02)
    monkeypatch.setattr(lease, "WAIT_S", 0.05)
    monkeypatch.setattr(lease, "SAY_S", 0.4)


def write_lease(folder, holder, age=0.0, number=1):
    """What a process with some identity leaves when it is killed `age` seconds ago."""
    path = folder / f"lease-{number:04d}"
    path.write_text(json.dumps(asdict(holder)) if holder else "")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from panorgan.run.lease import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_holder_is_named(tmp_path, holder):
    said = []
    expected = rf"process {holder.pid} on \S+ is training here \(since 20.*, last sign of life \d"
    with pytest.raises(Problems, match=expected), exclusive(tmp_path, said.append):
        pass
    assert said == []


def test_a_killed_holder_is_no_obstacle(tmp_path, holder):
    holder.kill()
    # Not waited for: what is left of the process has its number still.
    while lease._born(holder.pid):
        time.sleep(0.01)
    said = []
    with exclusive(tmp_path, said.append):
        assert names(tmp_path) == ["lease-0002"]
    (line,) = said
    assert line.startswith(f"process {holder.pid} on ")
    assert line.endswith("is dead: going on")


def test_a_suspended_holder_is_still_one(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / "lease-0001", (0, 0))
    with pytest.raises(Problems, match=r"last sign of life \d{9,} s ago"), exclusive(tmp_path):
        pass


class TestWaiting:
    """A job whose twin, an orphan of a killed run, is still at it."""

    def test_until_it_ends(self, tmp_path, holder):
        said = []
        threading.Timer(1.5, holder.kill).start()
        began = time.monotonic()
        with exclusive(tmp_path, said.append, wait=True):
            assert time.monotonic() - began > 1.4
        *waiting, end = said
        assert 2 <= len(waiting) <= 4
        assert all(
            line.startswith(f"process {holder.pid} on ")
            and line.endswith(f": waiting for its end; its log is in {tmp_path}")
            for line in waiting
        )
        assert end.endswith("is dead: going on")

    def test_until_it_has_finished(self, tmp_path, holder):
        threading.Timer(0.2, (tmp_path / "lease-0001").write_text, [lease.FREE]).start()
        with exclusive(tmp_path, lambda line: None, wait=True):
            assert names(tmp_path)[-1] == "lease-0002"

    def test_a_suspended_one_is_not_waited_for_without_end(self, tmp_path, holder):
        holder.send_signal(signal.SIGSTOP)
        expected = (
            rf"process {holder.pid} on .* and is suspended; `kill -CONT {holder.pid}` lets it go on"
            rf", `kill -9 {holder.pid}` ends it"
        )
        began = time.monotonic()
        with pytest.raises(Problems, match=expected), exclusive(tmp_path, wait=True):
            pass
        assert time.monotonic() - began > 0.5

    def test_a_quiet_one_that_runs_is_no_suspended_one(self, tmp_path):
        """As behind a server that is away: it can be asked whether it lives."""
        path = write_lease(tmp_path, HERE, age=60.0)
        threading.Timer(2.0, path.write_text, [lease.FREE]).start()
        began = time.monotonic()
        with exclusive(tmp_path, lambda line: None, wait=True):
            assert time.monotonic() - began > 1.9

    @pytest.mark.parametrize("other", [ELSEWHERE, CONTAINER], ids=["host", "container"])
    def test_one_elsewhere_until_it_falls_silent(self, other, tmp_path):
        path = write_lease(tmp_path, other)
        beats = [threading.Timer(0.1 * n, os.utime, [path]) for n in range(1, 15)]
        for beat in beats:
            beat.start()
        said = []
        began = time.monotonic()
        with exclusive(tmp_path, said.append, wait=True):
            assert time.monotonic() - began > 2.3
        assert "waiting for a sign of life" in said[0]
        assert "waiting for its end" in said[1]
        assert said[-1].endswith("held this folder and is silent: going on")


def test_a_process_number_that_is_used_again(tmp_path):
    write_lease(tmp_path, replace(HERE, born="1", token="theirs"))
    with exclusive(tmp_path):
        pass


def test_one_after_the_other_and_never_twice(tmp_path):
    for _ in range(3):
        with (
            exclusive(tmp_path),
            pytest.raises(Problems, match=f"process {os.getpid()}"),
            exclusive(tmp_path),
        ):
            pass
    assert names(tmp_path) == ["lease-0003"]


def test_it_is_given_back_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        _ = 1 / 0
    with exclusive(tmp_path):
        pass


@pytest.mark.parametrize("other", [ELSEWHERE, CONTAINER], ids=["host", "container"])
class TestElsewhere:
    """Where a process number says nothing, here not even that it is free."""

    def test_stale(self, other, tmp_path):
        write_lease(tmp_path, other, age=2.0)
        said = []
        with exclusive(tmp_path, said.append):
            assert names(tmp_path) == ["lease-0002"]
        assert said == [f"process 1 on {other.host} held this folder and is silent: going on"]

    def test_fresh_and_dead(self, other, tmp_path):
        write_lease(tmp_path, other, age=0.5)
        said = []
        began = time.monotonic()
        with exclusive(tmp_path, said.append):
            assert time.monotonic() - began > 0.4
        assert "waiting for a sign of life" in said[0]
        assert "is silent: going on" in said[1]

    def test_living(self, other, tmp_path):
        path = write_lease(tmp_path, other)
        heart = threading.Timer(0.2, os.utime, [path])
        heart.start()
        with (
            pytest.raises(Problems, match=f"process 1 on {other.host} is training here"),
            exclusive(tmp_path),
        ):
            pass
        heart.join()
        assert names(tmp_path) == ["lease-0001"]

    def test_a_file_of_the_future(self, other, tmp_path):
        write_lease(tmp_path, other, age=-3600.0)
        with exclusive(tmp_path):
            pass


def test_a_lease_that_was_not_written_to_its_end(tmp_path):
    write_lease(tmp_path, None, age=2.0)
    with exclusive(tmp_path):
        pass


def test_a_full_disk_leaves_no_lease_that_would_be_waited_for(small_disk):
    disk = small_disk(1)
    (disk / "filler").write_bytes(bytes(4096))
    with pytest.raises(OSError, match="No space left"), exclusive(disk / "state"):
        pass
    assert not list((disk / "state").iterdir())
    (disk / "filler").unlink()
    with exclusive(disk / "state"):
        pass


def test_it_beats(tmp_path):
    with exclusive(tmp_path):
        path = tmp_path / "lease-0001"
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime < 1:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_exactly_one_of_many_takes_a_stale_one(tmp_path):
    write_lease(tmp_path, ELSEWHERE, age=60.0)
    start, done = FORK.Event(), FORK.Event()
    results = FORK.SimpleQueue()

    def contend():
        start.wait()
        try:
            with exclusive(tmp_path, lambda line: None) as mine:
                results.put("holds")
                done.wait()
                mine.check()
        except Problems as error:
            results.put(str(error))
        except BaseException as error:
            results.put(repr(error))

    processes = [FORK.Process(target=contend) for _ in range(12)]
    for process in processes:
        process.start()
    start.set()
    got = [results.get() for _ in processes]
    done.set()
    for process in processes:
        process.join(20)
    assert got.count("holds") == 1
    assert sum("is training here" in text for text in got) == len(processes) - 1
    assert results.empty()


def test_many_come_and_go_and_are_never_two(tmp_path):
    """Each holder writes its number and reads it back: another one would have written over it."""
    board = tmp_path / "board"
    results = FORK.SimpleQueue()

    def contend():
        held = wrong = 0
        for _ in range(40):
            try:
                with exclusive(tmp_path / "state", lambda line: None):
                    held += 1
                    board.write_text(str(os.getpid()))
                    time.sleep(0.002)
                    wrong += board.read_text() != str(os.getpid())
            except Problems:
                time.sleep(0.001)
        results.put((held, wrong))

    processes = [FORK.Process(target=contend) for _ in range(4)]
    for process in processes:
        process.start()
    got = [results.get() for _ in processes]
    for process in processes:
        process.join(20)
    assert sum(wrong for _, wrong in got) == 0
    assert sum(held for held, _ in got) > 10


class TestTakenOver:
    """As after a machine slept for longer than the others were willing to wait."""

    def test_noticed(self, tmp_path):
        with exclusive(tmp_path) as mine:
            mine.check()
            write_lease(tmp_path, ELSEWHERE, number=2)
            with pytest.raises(Problems, match="another process has taken over"):
                mine.check()
        assert json.loads((tmp_path / "lease-0002").read_text())["token"] == "theirs"

    def test_noticed_when_the_other_has_finished(self, tmp_path):
        with exclusive(tmp_path) as mine:
            (tmp_path / "lease-0001").unlink()
            write_lease(tmp_path, None, number=2).write_text(lease.FREE)
            with pytest.raises(Problems, match="another process has taken over"):
                mine.check()
        assert names(tmp_path) == ["lease-0002"]

    def test_noticed_when_the_folder_was_made_anew(self, tmp_path):
        with exclusive(tmp_path) as mine:
            write_lease(tmp_path, ELSEWHERE)
            with pytest.raises(Problems, match="another process has taken over"):
                mine.check()
        assert json.loads((tmp_path / "lease-0001").read_text())["token"] == "theirs"

    def test_slept_between_looking_and_taking(self, tmp_path, monkeypatch):
        """Number 2 is free again when this one wakes up, because number 3 is there."""
        write_lease(tmp_path, ELSEWHERE, age=60.0)

        def sleep_meanwhile(path, me, say, wait):
            (tmp_path / "lease-0001").unlink()
            write_lease(tmp_path, HERE, number=3)
            monkeypatch.undo()

        monkeypatch.setattr(lease, "_wait_for_the_end_of", sleep_meanwhile)
        with (
            pytest.raises(Problems, match=f"process {os.getpid()} .* is training here"),
            exclusive(tmp_path),
        ):
            pass
        assert names(tmp_path) == ["lease-0003"]


def test_a_server_that_is_away_is_no_other_process(tmp_path, monkeypatch):
    with exclusive(tmp_path) as lease:
        read = type(tmp_path).read_text

        def away(path, *args, **kwargs):
            if path.name.startswith("lease-"):
                raise OSError(5, "Input/output error")
            return read(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "read_text", away)
            lease.check()
        write_lease(tmp_path, ELSEWHERE, number=2)
        with pytest.raises(Problems, match="another process has taken over"):
            lease.check()


def test_a_process_of_which_nothing_may_be_seen_is_not_dead(monkeypatch):
    other = replace(HERE, pid=1, born="123", token="theirs")
    assert other.lives(HERE) is False

    def hidden(*_):
        raise PermissionError

    monkeypatch.setattr(lease.os, "kill", hidden)
    monkeypatch.setattr(lease.Path, "read_text", hidden)
    assert other.lives(HERE) is None
