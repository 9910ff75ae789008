"""kill -9 at each step of publishing: whatever is on the disk then, the same call mends it.

A step is where the folder differs from what it was a line before. So this knows nothing of how the
store keeps its work, and leaves out none of its states.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from fault_rows import fault_rows

import panorgan
from panorgan.nnunet.training.checkpoints import load_checkpoint, save_checkpoint
from panorgan.problems import Problems
from panorgan.run import lease
from panorgan.run.layout import beside
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, run_shard, run_training
from panorgan.stages.cleaning import free_preprocessed

FORK = multiprocessing.get_context("fork")
SOURCES = str(Path(panorgan.__file__).parent)
ROOT = Path("results/r")
OUT = ShardOutput(
    ROOT / ".store/net/data/s",
    ROOT / "net/data/s.tsv",
    ROOT / "net/data/s",
    {"letters": ROOT / "net/data/s.letters.tsv"},
)
MODEL = ROOT / "net/seed-0/model"


def shard(cases, say=print, memory=None):
    """Publish a shard of cases with two files each, of which one holds the case's text.

    Parameters
    ----------
    memory
        Bytes that some cases take.
    """

    def compute(name, folder):
        time.sleep(0.005)
        bytearray((memory or {}).get(name, 0))
        (folder / f"{name}.txt").write_text(cases[name])
        (folder / f"{name}.bin").write_bytes(bytes(100))
        return Result({"size": len(cases[name])}, {"letters": [{"letter": cases[name][0]}]})

    run_shard(
        [Work(name, {"text": text}) for name, text in cases.items()],
        compute,
        OUT,
        parameters=1,
        columns=["size"],
        details={"letters": ["letter"]},
        say=say,
    )


def train(steps, say=print):
    """Train in three steps, with a checkpoint after each, and publish the model."""

    def steps_left(state, check):
        if (state / "model").exists():
            return state / "model", False
        at = load_checkpoint(state) or {"done": 0, "weights": torch.zeros(3)}
        for done in range(at["done"], steps):
            at = {"done": done + 1, "weights": 2 * at["weights"] + done}
            say(f"step {done}: computed")
            save_checkpoint(state, at, done + 1, 0, check)
        unfinished = state / ".model.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        (unfinished / "weights.bin").write_bytes(at["weights"].numpy().tobytes())
        (unfinished / "card.json").write_text(json.dumps({"checksum": "abc"}))
        unfinished.rename(state / "model")
        return state / "model", True

    slot, table = beside(MODEL, ".store"), MODEL.with_suffix(".tsv")
    run_training(slot, {"plan": 1}, steps_left, model=MODEL, table=table, say=say)


def free(say=print):
    """Remove preprocessed data."""
    free_preprocessed({str(OUT.folder.parent): [str(MODEL)]}, say)


def shard_again(say=print):
    """Publish a shard and remove it, as Snakemake does before its job runs again."""
    shard(FIRST, say)
    shutil.rmtree(OUT.folder)
    for table in (OUT.table, *OUT.details.values()):
        table.unlink()


FIRST = {"a": "x", "b": "yy", "c": "zzz"}
LATER = {"a": "x", "b": "other", "d": "new"}
ACTIONS = {
    "shard": (lambda say: None, lambda say: shard(FIRST, say)),
    "shard-again": (shard_again, lambda say: shard(LATER, say)),
    "training": (lambda say: None, lambda say: train(3, say)),
    "free-preprocessed": (lambda say: (shard(FIRST, say), train(1, say)), free),
}
"""What was done before, and what is killed."""


def contents(folder):
    """Files by path, those of the store and hidden ones left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    }


def in_a_process(folder, action, at_line=None):
    """Do something in a process of its own.

    Parameters
    ----------
    at_line
        Called with the number of each line of panorgan's code before that is executed.

    Returns
    -------
    told
        What `at_line` returned, if not None.
    said
        What the action said.
    code
        Exit code of the process.
    """
    receive, send = FORK.Pipe(duplex=False)

    def body():
        os.chdir(folder)
        lines = count()

        def trace(frame, event, _):
            if not frame.f_code.co_filename.startswith(SOURCES):
                return None
            if event == "line" and (told := at_line(next(lines))) is not None:
                send.send(("told", told))
            return trace

        sys.settrace(at_line and trace)
        action(lambda text: send.send(("said", text)))
        sys.settrace(None)

    process = FORK.Process(target=body)
    process.start()
    send.close()
    found = {"told": [], "said": []}
    try:
        while True:
            kind, what = receive.recv()
            found[kind].append(what)
    except EOFError:
        process.join()
    return found["told"], found["said"], process.exitcode


def where_it_differs(folder):
    """Tells the lines before which a folder is another than a line before."""
    last = []

    def at_line(number):
        nonlocal last
        before, last = last, state_of(folder)
        return None if last == before else number

    return at_line


def kill_at(line):
    """Kills the process before a line."""

    def at_line(number):
        if number == line:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_line


def state_of(folder):
    """What is on the disk: names and sizes, the same for two runs of the same action."""
    found = []
    for place, _, files in os.walk(folder):
        found.append(place)
        found += [(place, name, os.stat(os.path.join(place, name)).st_size) for name in files]
    return sorted(map(str, found))


def is_whole():
    """Fail unless what is published is whole: if there is a table, then with all that it names."""
    if OUT.table.exists():
        reader = ShardReader([OUT.table], [OUT.folder])
        for case in reader.cases:
            assert reader.checked_folder(case) == OUT.folder
        assert len(reader.cases) == 3
    if MODEL.with_suffix(".tsv").exists():
        assert {path.name for path in MODEL.iterdir()} == {"weights.bin", "card.json"}


@pytest.mark.fault("killed-while-publishing")
@pytest.mark.parametrize("name", ACTIONS)
def test_killed_at_each_step(name, tmp_path, monkeypatch):
    before, action = ACTIONS[name]
    monkeypatch.setattr(os, "fsync", lambda number: None)  # a kill loses nothing that is written
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "LOOK_S", 0.02)
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    in_a_process(undisturbed, before)
    steps, _, code = in_a_process(undisturbed, action, where_it_differs(undisturbed))
    assert code == 0
    assert len(steps) > 8
    expected = contents(undisturbed)
    assert expected
    for step in steps:
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        in_a_process(folder, before)
        _, first, code = in_a_process(folder, action, kill_at(step))
        assert code == -signal.SIGKILL
        monkeypatch.chdir(folder)
        if name != "free-preprocessed":
            is_whole()
        _, second, code = in_a_process(folder, action)
        assert code == 0, second
        if name == "shard":
            fault_rows()["killed-while-publishing"].check("\n".join(second))
        assert contents(folder) == expected
        again = {*computed(first)} & {*computed(second)}
        # A step of a training is done once its checkpoint has a name.
        assert len(again) <= (name == "training")
        left = [path for path in folder.rglob("*") if "tmp" in path.name]
        assert left == [], f"killed at line {step}"
        shutil.rmtree(folder)


def computed(said):
    return [text for text in said if text.endswith(": computed")]


@pytest.mark.fault("memory-gone")
def test_no_memory_is_left_for_a_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def without_memory(say):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**24
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            shard(FIRST, say, {"b": 2**28})
        except Problems as error:
            say(str(error))

    _, said, code = in_a_process(tmp_path, without_memory)
    assert code == 0
    assert computed(said) == ["a: computed", "c: computed"]
    fault_rows()["memory-gone"].check(said[-1])
    _, said, _ = in_a_process(tmp_path, lambda say: shard(FIRST, say))
    assert computed(said) == ["b: computed"]
    is_whole()


@pytest.mark.fault("two-jobs-of-a-shard")
def test_two_jobs_of_a_shard_at_once(tmp_path, monkeypatch):
    """As after a scheduler lost sight of a job that still runs."""
    monkeypatch.chdir(tmp_path)
    start = FORK.Barrier(2)

    def body():
        start.wait()
        try:
            shard(FIRST)
        except Problems as error:
            print(error)
            sys.exit(1)

    for _ in range(10):
        processes = [FORK.Process(target=body) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert 0 in [process.exitcode for process in processes]
        said = []
        shard(FIRST, said.append)
        assert computed(said) == []
        fault_rows()["two-jobs-of-a-shard"].check(said[-1])
        is_whole()
        assert {path.name for path in OUT.folder.iterdir()} == {
            f"{case}.{end}" for case in FIRST for end in ("txt", "bin")
        }
        shutil.rmtree(ROOT)
