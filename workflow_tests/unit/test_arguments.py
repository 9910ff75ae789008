"""What a newcomer types behind `snakemake`, and the line that answers it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_rows import fault_rows

from panorgan.run.arguments import check_arguments

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A sound config, one with a key twice, and files that are none."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("run: mine\n")
    Path("mine.json").write_text('{"run": "mine"}')
    Path("more").write_text("folds: 1\n")
    Path("twice.yaml").write_text("run: a\nfolds: 1\nrun: b\n")
    Path("decisions.tsv").write_text("case\tmeasures\nc1\t1\n")
    Path("labels").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "preflight --cores 2",
        "preflight --cores 2 --configfile mine.yaml",
        "--configfile mine.yaml mine.json more --cores 2",
        "--configfile=mine.yaml preflight",
        "--configfiles mine.yaml -- preflight",
        "--config run=x --cores 2 preflight",
    ],
)
def test_what_is_right(typed):
    check_arguments(typed.split())


SWALLOWED = "is no config file, and --configfile takes every name that follows it; "


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "--cores 2 --configfile mine.yaml preflight",
            f"preflight: {SWALLOWED}targets come first: "
            "snakemake preflight --cores 2 --configfile mine.yaml",
        ),
        (
            "-n --configfile mine.yaml labels decisions.tsv",
            f"labels decisions.tsv: {SWALLOWED}targets come first: "
            "snakemake labels decisions.tsv -n --configfile mine.yaml",
        ),
        (
            "--configfile none.yaml twice.yaml",
            "none.yaml: No such file or directory; check the path\n"
            "twice.yaml: has the key `run` twice: in line 1 and in line 3; remove one",
        ),
    ],
)
def test_what_is_wrong_is_said(typed, said):
    with pytest.raises(SystemExit) as ended:
        check_arguments(typed.split())
    assert ended.value.code == said


@pytest.mark.parametrize("profile", ["default", "slurm"])
@pytest.mark.fault("snakemake-target-last")
def test_both_profiles_ask(folder, profile):
    """Snakemake reads them before the config files, of which it would only give a traceback."""
    command = [sys.executable, "-m", "snakemake"]
    profile = ["--workflow-profile", str(REPOSITORY / "profiles" / profile)]
    done = subprocess.run(
        [*command, "--cores", "2", "--configfile", "mine.yaml", "preflight", *profile],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    fault_rows()["snakemake-target-last"].check(done.stderr)
