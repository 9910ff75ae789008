"""The SLURM profile on a real SLURM: where jobs go, what they get, what happens when they fail."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.slurm import jobs
from running import hashes, tiny_project

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]

SNAKEFILE = """
rule all:
    input:
        "train_teacher.json",
        "fuse_tumours.json",
        "retried.json",
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
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
    params: needs_mb=4000

use rule fuse_tumours as broken with:
    output: "broken.json"
    log: "results/r/logs/broken.log"
    params: needs_mb=1000000
"""

SCRIPT = """
import json, os
from panorgan.run.job import job
from panorgan.problems import Problem, Problems

with job(snakemake):
    if snakemake.resources.mem_mb < snakemake.params.get("needs_mb", 0):
        raise Problems([Problem("case_7", "ct.nii.gz", "is too large", "give it more memory")])
    with open(snakemake.output[0], "w") as file:
        json.dump(dict(os.environ), file)
"""


def test_a_job_gets_its_partition_and_gpu_and_a_failed_one_another_try(slurm, tmp_path):
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
        "broken": 2,
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

    assert run.returncode == 1
    assert "results/r/logs/broken.log" in run.stderr
    assert "is too large" in (tmp_path / "results/r/logs/broken.problems.tsv").read_text()
    assert not (tmp_path / "broken.json").exists()


def test_exactly_the_jobs_with_a_gpu_go_to_the_gpu_partition():
    """Of the real workflow; planning needs no cluster."""
    options = ["--workflow-profile=profiles/slurm", "--configfile=config/demo.yaml"]

    plan = _snakemake(*options, "--dry-run", "--forceall", cwd=REPOSITORY).stdout

    jobs_planned = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", plan, re.MULTILINE)
    with_gpu = {name for name, text in jobs_planned if re.search(r"\bgpu=[1-9]", text)}
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
