"""The SLURM profile on a real SLURM: where jobs go, what they get, what happens when they fail."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster.slurm import jobs
from running import hashes, tiny_project

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]

SNAKEFILE = """
from panorgan.run.retries import memory_kills, retry_interruptions

retry_interruptions()

rule all:
    input:
        "train_teacher.json",
        "fuse_tumours.json",
        "retried.json",
        "cancelled.json",
        "broken.json",

rule train_teacher:
    output: "train_teacher.json"
    log: "results/r/logs/train_teacher.log"
    threads: 8
    resources: gpu=1, mem_mb=32000, runtime=10080
    script: "environment.py"

use rule train_teacher as fuse_tumours with:
    output: "fuse_tumours.json"
    log: "results/r/logs/fuse_tumours.log"
    threads: 1
    resources: gpu=0, mem_mb=2000, runtime=60

use rule fuse_tumours as retried with:
    output: "retried.json"
    log: "results/r/logs/retried.log"
    resources:
        gpu=0,
        runtime=60,
        mem_mb=lambda wildcards, attempt: 2000 * (1 + memory_kills("retried", ())),
    params: ends="killed"

use rule retried as cancelled with:
    output: "cancelled.json"
    log: "results/r/logs/cancelled.log"
    params: ends="cancelled"

use rule fuse_tumours as broken with:
    output: "broken.json"
    log: "results/r/logs/broken.log"
    params: ends="wrong"
"""

SCRIPT = """
import json, os, signal, subprocess, time
from pathlib import Path
from panorgan.run.job import job
from panorgan.problems import Problem, Problems

ends = snakemake.params.get("ends")
first_try = ends and not Path(ends).exists()
Path(ends or "other").touch()
with job(snakemake):
    if ends == "killed" and first_try:
        os.kill(os.getpid(), signal.SIGKILL)  # as for want of memory
    if ends == "cancelled" and first_try:
        subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]])
        time.sleep(100)
    if ends == "wrong":
        raise Problems([Problem("case_7", "ct.nii.gz", "is too large", "leave it out")])
    with open(snakemake.output[0], "w") as file:
        json.dump(dict(os.environ), file)
"""


def test_a_job_gets_its_partition_and_gpu_and_an_interrupted_one_another_try(slurm, tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "environment.py").write_text(SCRIPT)
    before = len(jobs())

    run = _snakemake(*slurm, cwd=tmp_path)

    submitted: dict[str, list[dict[str, str]]] = {}
    for job in jobs()[before:]:
        submitted.setdefault(job["Rule"], []).append(job)
    assert {name: len(tries) for name, tries in submitted.items()} == {
        "train_teacher": 1,
        "fuse_tumours": 1,
        "retried": 2,
        "cancelled": 2,
        "broken": 1,
    }, run.stderr

    (training,) = submitted["train_teacher"]
    assert training["Partition"] == "gpu"
    assert training["TimeLimit"] == "7-00:00:00"
    assert training["TRES"].startswith("cpu=8,mem=32000M,")
    assert training["TresPerJob"] == "gres:gpu:1"
    environment = json.loads((tmp_path / "train_teacher.json").read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] in {"0", "1"}
    assert environment["SLURM_JOB_ID"] == training["JobId"]

    (fusion,) = submitted["fuse_tumours"]
    assert fusion["Partition"] == "cpu"
    assert "TresPerJob" not in fusion
    assert "CUDA_VISIBLE_DEVICES" not in json.loads((tmp_path / "fuse_tumours.json").read_text())

    first, second = submitted["retried"]
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")
    assert "mem=2000M" in first["TRES"]
    assert "mem=4000M" in second["TRES"]
    assert (tmp_path / "retried.json").exists()

    first, second = submitted["cancelled"]
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")
    assert first["TRES"].partition(",node=")[0] == second["TRES"].partition(",node=")[0]

    assert run.returncode == 1
    assert "results/r/logs/broken.log" in run.stderr
    assert "is too large" in (tmp_path / "results/r/logs/broken.problems.tsv").read_text()
    assert not (tmp_path / "broken.json").exists()


AWAY = """
from panorgan.run.slurm import lose_no_jobs

lose_no_jobs()

rule slow:
    output: "done"
    shell: "sleep 8; touch {output}"
"""


def test_jobs_are_not_forgotten_while_the_controller_is_away(slurm, tmp_path):
    (tmp_path / "Snakefile").write_text(AWAY)
    before = len(jobs())
    command = [sys.executable, "-m", "snakemake", *slurm, "--slurm-status-attempts=1"]
    controller = int((Path("/etc/slurm/slurm.conf").resolve().parent / "slurmctld.pid").read_text())
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while len(jobs()) == before:
            assert run.poll() is None
            time.sleep(0.2)
        os.kill(controller, signal.SIGSTOP)
        time.sleep(15)  # squeue gives up after ten seconds
        os.kill(controller, signal.SIGCONT)
        said = run.communicate(timeout=150)[1]
    finally:
        os.kill(controller, signal.SIGCONT)
        run.kill()
    assert run.returncode == 0, said
    assert (tmp_path / "done").exists()
    assert len(jobs()) == before + 1


def test_exactly_the_jobs_with_a_gpu_go_to_the_gpu_partition():
    """Of the real workflow; planning needs no cluster."""
    options = ["--workflow-profile=profiles/slurm", "--configfile=config/demo.yaml"]

    plan = _snakemake(*options, "--dry-run", "--forceall", cwd=REPOSITORY).stdout

    jobs_planned = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", plan, re.MULTILINE)
    # Predictions know only once their cases are dealt whether they have any.
    with_gpu = {name for name, text in jobs_planned if re.search(r"\bgpu=(?:[1-9]|<TBD>)", text)}
    on_partition = {name for name, text in jobs_planned if "slurm_partition=gpu" in text}
    assert with_gpu == on_partition
    assert {"train_teacher", "train_student"} <= with_gpu


def test_the_whole_workflow_through_slurm_gives_the_same_results(slurm, tiny, tmp_path):
    # Another number of shards: results do not depend on it.
    shards = {"labelled": 2, "unlabelled": 1, "validation": 1, "test": 1}
    project = tiny_project(tmp_path, shards=shards)
    before = len(jobs())
    command = [sys.executable, "-m", "snakemake", *slurm, "--configfile", "config/run.yaml"]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + project.failures()

    submitted = jobs()[before:]
    by_rule = {job["Rule"]: job for job in submitted}
    assert {job["JobState"] for job in submitted} == {"COMPLETED"}
    assert by_rule["train_teacher"]["Partition"] == "gpu"
    assert by_rule["train_student"]["TresPerJob"] == "gres:gpu:1"
    assert by_rule["fuse_organs"]["Partition"] == "cpu"
    for pattern in ("**/weights.safetensors", "round-1/predictions/**/*.nii.gz", "**/cases.csv"):
        here, there = hashes(tiny.results, pattern), hashes(project.results, pattern)
        assert here, pattern
        assert here == there, pattern


def _snakemake(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
