"""`make gpu` at toy size, on a machine that nothing can be downloaded to, with what is carried.

The machine is a Python that sees two folders alone: what `make wheels` collected, installed, and
the packages that it takes for there, as links into this environment.
"""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import collect_wheels
import psutil
import pytest

pytestmark = pytest.mark.workflow

REPOSITORY = Path(__file__).parents[2]
RUN = REPOSITORY / "workflow_tests/gpu/run.py"
PARTS = ["tests", "student", "teacher", "ct-student", "ct-teacher", "demo"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("carried") / "wheels"
    version = ".".join(map(str, sys.version_info[:2]))
    command = ["make", "wheels", f"OUT={out}", f"PYTHON_VERSION={version}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count = len(list(out.iterdir()))
    assert f"{out}: {count} wheels for Python {version} on {os.uname().machine}, " in done.stdout
    return out


@pytest.fixture(scope="module")
def machine(wheels, tmp_path_factory) -> dict[str, str]:
    """Its environment variables; PYTHON is its interpreter."""
    home = tmp_path_factory.mktemp("machine")
    site, there = home / "site", home / "there"
    there.mkdir()
    for name in collect_wheels.usually_there():
        link(name, there)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
            *("--target", site, *wheels.iterdir()),
        ],
        check=True,
    )
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    subprocess.run([base, "-m", "venv", "--without-pip", home / "venv"], check=True)
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "PANORGAN_CI")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": f"{home / 'venv/bin'}:/usr/bin:/bin",
        "PYTHONPATH": f"{site}:{there}",
        "PYTHON": str(home / "venv/bin/python"),
    }


def link(name: str, folder: Path) -> None:
    """Make an installed package importable from a folder, and from nowhere else."""
    try:
        found = distribution(name)
    except PackageNotFoundError:  # of another platform
        return
    for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "/")}:
        target = folder / top
        if not target.exists() and top != "__pycache__":
            target.symlink_to(found.locate_file(top))


def run(machine, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [machine["PYTHON"], str(RUN), *map(str, arguments)],
        env={key: value for key, value in machine.items() if key != "PYTHON"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_what_is_carried_is_little(wheels):
    assert sum(path.stat().st_size for path in wheels.iterdir()) <= 60e6
    names = {path.name.split("-")[0].lower() for path in wheels.iterdir()}
    assert {"panorgan", "nnunetv2", "snakemake", "pytest"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia", "simpleitk"))}


def test_everything_at_toy_size(machine, tmp_path):
    # More time than is usual: a machine that runs other tests may be slow.
    done = run(machine, "--device", "cpu", "--smoke", "--minutes", "25", "--out", tmp_path)
    logs = "".join(
        f"\n--- {path.name}\n{path.read_text()[-5000:]}" for path in tmp_path.glob("*.log")
    )
    assert done.returncode == 0, done.stdout + done.stderr + logs

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["smoke"] is True
    assert {"torch", "python", "cores", "processor", "driver", "date"} <= report["machine"].keys()
    parts = report["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(PARTS, "done")
    assert parts["tests"]["failed"] == {}
    assert parts["tests"]["skipped"] == []
    assert parts["tests"]["passed"] > 80
    assert parts["tests"]["interrupted"] is None
    recorded = parts["tests"]["figures"]
    assert recorded["killed and resumed: distance of the weights, ≤ 0"] == [0, 0]
    assert all(cosine > 0.97 for cosine in recorded["bf16: cosine of the gradients, > 0.97"])
    for network in ("student", "teacher"):
        ways = parts[network]["ways"]
        assert ways.keys() >= {"stock", "workers, plain", "device, plain", "device, channels last"}
        assert all(way["steps_per_s"] > 0 and 0 <= way["waiting"] <= 1 for way in ways.values())
        assert parts[network]["traced_mb"] > 1000
        for way, runs in (("panorgan", 2), ("stock", 1)):
            found = parts[f"ct-{network}"]["ways"][way]["runs"]
            assert len(found) == runs
            assert all(figures["case_s"] > 0 for figures in found)
    assert parts["demo"]["trainings"].keys() == {"teacher", "student"}
    assert parts["demo"]["scores"]["organs"]["dsc"] >= 0

    text = (tmp_path / "report.md").read_text()
    assert text in done.stdout
    options = f"--device cpu --smoke --minutes 25 --out {tmp_path}"
    command = f"`python workflow_tests/gpu/run.py {options}`, "
    (line,) = (line for line in text.splitlines() if line.startswith(command))
    assert line.endswith("All went well.")
    for line in (
        "At toy size: these figures say that all parts run, and nothing else.",
        f"Tests: {parts['tests']['passed']} passed, 0 failed, 0 skipped.",
        "| | precision | steps/s | ratio | busy | waiting | GPU MB | main MB |",
        "A CT of 24×48×64 voxels, seconds:",
    ):
        assert f"\n{line}\n" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json",
        "report.md",
        *(f"{name}.log" for name in PARTS),
    }


def test_ended_from_outside_it_leaves_nothing_running(machine, tmp_path):
    command = [machine["PYTHON"], str(RUN), "--device", "cpu", "--smoke", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--parts", "ct-student"],
        env={key: value for key, value in machine.items() if key != "PYTHON"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ct-student …\n"
    time.sleep(3)
    parts = psutil.Process(process.pid).children(recursive=True)
    assert parts
    process.terminate()
    assert process.wait(30) == 1
    process.stdout.close()
    assert not psutil.wait_procs(parts, 10)[1]
    assert {path.name for path in tmp_path.iterdir()} <= {"ct-student.log"}


def test_a_report_is_never_overwritten(machine, tmp_path):
    (tmp_path / "report.json").write_text("mine")
    done = run(machine, "--device", "cpu", "--smoke", "--out", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} holds a report already: name another folder" in done.stderr
    assert (tmp_path / "report.json").read_text() == "mine"


def test_without_a_gpu_it_says_so(machine, tmp_path):
    done = run(machine | {"CUDA_VISIBLE_DEVICES": ""}, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "finds no NVIDIA GPU here" in done.stderr
    assert "run.py --device cpu --smoke" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(machine, tmp_path):
    alone = machine | {"PYTHONPATH": machine["PYTHONPATH"].partition(":")[2]}
    done = run(alone, "--device", "cpu", "--smoke", "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "lacks panorgan, nnunetv2, snakemake, pytest, hypothesis, nibabel" in line
    assert "make wheels" in line
