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


@pytest.mark.parametrize("profile", ["profiles/default", "none"])
def test_a_key_that_stands_twice_ends_the_start_with_a_line(tmp_path, profile):
    project = Project(tmp_path, {"run": "unused"})
    (tmp_path / "twice.yaml").write_text("run: a\nfolds: 1\nfolds: 2\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "-n", "--cores", "1"),
            *("--workflow-profile", profile, "--configfile", "twice.yaml"),
        ],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith(
        "twice.yaml: has the key `folds` twice: in line 2 and in line 3; remove one"
    )
    assert "Traceback" not in done.stderr
