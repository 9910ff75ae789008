"""GPUs of one machine: every one is used, none by two jobs, whatever Snakemake was told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow

SNAKEFILE = """
rule all:
    input:
        expand("train_{seed}", seed=range(4)),
        expand("predict_{seed}", seed=range(4)),

rule train:
    output: "train_{seed}"
    log: "results/r/logs/train_{seed}.log"
    resources: gpu=1
    script: "use.py"

use rule train as predict with:
    output: "predict_{seed}"
    log: "results/r/logs/predict_{seed}.log"
"""

SCRIPT = """
import os, time
from pathlib import Path
from panorgan.run.job import job

with job(snakemake) as this:
    this.claim_gpu()
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    used = Path(f"gpu-{gpu}")
    used.mkdir()  # fails if another job uses it
    time.sleep(0.5)
    running = len(list(Path().glob("gpu-*")))
    time.sleep(0.5)
    used.rmdir()
    Path(snakemake.output[0]).write_text(f"{gpu} {running}")
"""


@pytest.mark.parametrize("told", [2, 4])
def test_two_gpus_and_eight_jobs(told, tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "use.py").write_text(SCRIPT)
    subprocess.run(
        [
            *(Path(sys.executable).parent / "snakemake", "--quiet", "all", "--cores", "4"),
            *("--resources", f"gpu={told}"),
        ],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "a,GPU-b"},
        check=True,
        timeout=300,
    )
    done = [path.read_text().split() for path in tmp_path.glob("*_[0-9]")]
    assert len(done) == 8
    assert {gpu for gpu, _ in done} == {"a", "GPU-b"}
    assert max(int(running) for _, running in done) == 2
