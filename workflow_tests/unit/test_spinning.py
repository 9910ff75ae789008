"""OpenMP reads how long threads spin when torch loads it: panorgan says it before."""

import os
import re
import subprocess
import sys

import pytest

from panorgan.io.processor import SPIN_COUNT

IN_A_JOB = """
from types import SimpleNamespace
import panorgan.stages.prediction, panorgan.stages.training
from panorgan.run.job import job
with job(SimpleNamespace(rule="a_rule", resources={}, log=["results/r/logs/a.log"], output=[])):
    import torch
"""
BY_COMMAND = """
from panorgan.cli import main
try:
    main(["--version"])
except SystemExit:
    import torch
"""


def openmp(tmp_path, code, **said):
    """What OpenMP shows, when it is loaded, of how it will wait."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**kept, "OMP_DISPLAY_ENV": "VERBOSE", **said},
        capture_output=True,
        text=True,
        check=True,
    )
    log = tmp_path / "results/r/logs/a.log"
    text = done.stderr + (log.read_text() if log.exists() else "")
    if "GOMP_SPINCOUNT" not in text:
        pytest.skip("this torch has another OpenMP than GNU's")
    return {
        name: re.search(rf"{name} = '(\w+)'", text).group(1)
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }


@pytest.mark.parametrize("code", [IN_A_JOB, BY_COMMAND], ids=["job", "command"])
def test_threads_spin_shortly(code, tmp_path):
    assert openmp(tmp_path, code)["GOMP_SPINCOUNT"] == str(SPIN_COUNT)


def test_the_environment_decides(tmp_path):
    assert openmp(tmp_path, IN_A_JOB, GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"
    found = openmp(tmp_path, IN_A_JOB, OMP_WAIT_POLICY="PASSIVE")
    assert found == {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}
