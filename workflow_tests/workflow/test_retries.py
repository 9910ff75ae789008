"""Snakemake tries again what was interrupted, with more memory where it was killed, and no more."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.workflow

SNAKEFILE = """
from panorgan.run.retries import memory_kills, retry_interruptions

retry_interruptions()

rule all:
    input:
        expand("{how}.txt", how=config["how"].split()),

rule end:
    output:
        "{how}.txt",
    log:
        "results/r/logs/end/{how}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 100 * (1 + memory_kills("end", wildcards.items())),
    script:
        "end.py"
"""

SCRIPT = """
import os, signal
from pathlib import Path
from panorgan.problems import Interrupted, Killed, Problems
from panorgan.run.job import job

how, tries = snakemake.wildcards.how, Path(snakemake.wildcards.how + ".tries")
with open(tries, "a") as file:
    print(snakemake.resources.mem_mb, file=file)
number = len(tries.read_text().split())
with job(snakemake):
    if number <= 2 or how.endswith("always"):
        if how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how.startswith("time"):
            os.kill(os.getpid(), signal.SIGTERM)
        if how.startswith("checkpoint"):
            raise Interrupted.one("stopped after batch 7")
        if how.startswith("helper"):
            raise Killed.one("a loader was killed")
        if how.startswith("wrong"):
            raise Problems.one("the loss is not finite")
        if how.startswith("surprise"):
            1 / 0
    Path(snakemake.output[0]).touch()
"""

MEMORY = {
    "killed": [100, 200, 300],
    "time": [100, 100, 100],
    "checkpoint": [100, 100, 100],
    "helper": [100, 200, 300],
    "wrong": [100],
    "surprise": [100, 100],
    "killed_always": [100, 200, 300, 400],
    "time_always": [100] * 6,
}


def tries(folder, *names, retries):
    """The memory that each try of each job was given."""
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "end.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going"]
    command += [f"--retries={retries}", "--config", f"how={' '.join(names)}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    made = {name for name in names if (folder / f"{name}.txt").exists()}
    assert (done.returncode == 0) == (made == {*names}), done.stderr
    return {name: [*map(int, (folder / f"{name}.tries").read_text().split())] for name in names}


def test_only_what_was_interrupted_is_tried_again(tmp_path):
    assert tries(tmp_path, *MEMORY, retries=5) == MEMORY


def test_no_more_often_than_snakemake_is_told(tmp_path):
    assert tries(tmp_path, "time", "killed", retries=1) == {
        "time": [100, 100],
        "killed": [100, 200],
    }


def test_what_an_earlier_run_has_left_does_not_count(tmp_path):
    assert tries(tmp_path, "wrong", retries=2) == {"wrong": [100]}
    record = tmp_path / "results/r/logs/end/wrong.problems.tsv"
    assert "not finite" in record.read_text()
    subprocess.run(["touch", "-d", "1 hour ago", record], check=True)
    (tmp_path / "end.py").write_text("raise SystemExit(1)")  # as a job that never begins

    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--retries=2", "--config"]
    done = subprocess.run([*command, "how=wrong"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.count("Trying to restart job") == 2
