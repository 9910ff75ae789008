"""The shipped configs plan."""

import subprocess
import sys
from pathlib import Path

import pytest
from running import Project

pytestmark = pytest.mark.workflow


def test_the_demo_with_a_3d_teacher_plans(tmp_path):
    project = Project(tmp_path, {"run": "unused"})
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "snakemake"), "-n", "--cores", "1"),
            *("--configfile", "config/demo.yaml", "config/teacher_3d.yaml"),
        ],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "results/flare23_teacher_3d/teacher/seed-0/model" in said
