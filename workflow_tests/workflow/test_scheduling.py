"""How often Snakemake looks for jobs to start, and that it still starts no more than it may."""

import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.workflow

SNAKEFILE = """
from snakemake.scheduling.job_scheduler import JobScheduler
from panorgan.run.inputs import look_again_once

look_again_once()
looks = []
original = JobScheduler.job_selector
JobScheduler.job_selector = lambda self, jobs: looks.append(1) or original(self, jobs)

rule all:
    input: expand("{n}.done", n=range(20))

rule one:
    output: "{n}.done"
    shell: "sleep 0.2; touch {output}"

onsuccess:
    print("looks:", len(looks))
"""


def test_a_look_for_each_job_that_ends_and_one_a_second(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - began
    assert len(list(tmp_path.glob("*.done"))) == 20
    assert int(done.stdout.partition("looks: ")[2]) <= 22 + seconds


def test_jobs_that_have_to_wait_for_others_to_be_older_are_started(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("sleep 0.2; ", ""))
    command = [sys.executable, "-m", "snakemake", "--cores", "8"]
    began = time.monotonic()
    subprocess.run(
        [*command, "--max-jobs-per-timespan", "8/1s"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert len(list(tmp_path.glob("*.done"))) == 20
    assert time.monotonic() - began > 2
