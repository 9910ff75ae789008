"""The real workflow, submitted to a SLURM job by job."""

import subprocess
import sys

import pytest
from cluster.slurm import jobs
from running import hashes, tiny_project

pytestmark = pytest.mark.cluster


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
