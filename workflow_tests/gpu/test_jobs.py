"""Jobs of one machine with one GPU: each has it for itself, whatever Snakemake was told."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

SNAKEFILE = """
rule all:
    input: expand("job_{name}", name=["a", "b"])

rule job:
    output: "job_{name}"
    log: "results/r/logs/{name}.log"
    resources: gpu=1
    script: "use.py"
"""
SCRIPT = """
import os, time
from pathlib import Path
import torch
from panorgan.run.job import job
from panorgan.nnunet.devices import pick_device

with job(snakemake) as this:
    this.claim_gpu()
    begun = time.monotonic()
    device = pick_device("auto")
    numbers = torch.rand(1000, 1000, device=device)
    for _ in range(20):
        numbers = (numbers @ numbers).tanh()
    assert numbers.isfinite().all()
    time.sleep(1)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    Path(snakemake.output[0]).write_text(f"{begun} {time.monotonic()} {device.type} {gpu}")
"""


def test_two_jobs_take_turns(device, tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "use.py").write_text(SCRIPT)
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    if device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = "a"  # one that only its name is known of
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=2"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("results/r/logs/*.log"))
    assert done.returncode == 0, done.stdout + logs
    jobs = sorted((tmp_path / f"job_{name}").read_text().split() for name in "ab")
    (_, first_end, *first), (second_start, _, *second) = sorted(jobs, key=lambda job: float(job[0]))
    assert float(first_end) <= float(second_start)
    assert first == second
    assert first[0] == device.type
    assert logs.count("running on GPU") == 2
