"""What all tests share: markers, and what only some machines have."""

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
from cluster.slurm import one_node_slurm, why_not
from running import TINY, Project, tiny_project

from panorgan.io.processor import limit_spinning

MARKERS = {
    "workflow": "runs Snakemake on a small data set",
    "gpu": "runs on the device that --device names; all of them on a GPU: make gpu",
    "needs_cuda": "runs on a GPU only",
    "demo": "runs the whole demo: many minutes",
    "fault": "makes the fault of that name in docs/reliability.md",
    "real_data": "needs real CTs in the folder that PANORGAN_REAL_DATA names",
    "cluster": "needs root, slurm-wlm and munge: submits to a SLURM of its own",
}

limit_spinning()

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("panorgan", deadline=None)
hypothesis.settings.load_profile("panorgan")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="of tests marked gpu")
    parser.addoption("--seed", type=int, help="of what is killed; default: another one each time")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if config.option.seed is None:  # processes that run tests side by side get the same one
        config.option.seed = random.randrange(10**6)


def pytest_report_header(config: pytest.Config) -> str:
    return f"kills are drawn from --seed {config.option.seed}"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks in tests are so small that threads only wait for each other."""
    torch = sys.modules.get("torch")
    if not torch:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes an empty file system of so many pages of 4 kB, in memory; gone after the test."""
    if os.geteuid() != 0:
        cannot_run("only root may mount a small file system")
    mounted = []

    def make(pages: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        size = f"size={pages * 4096}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            cannot_run(f"no small file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What is drawn is drawn from this."""
    print(f"--seed {request.config.option.seed} draws the same again")
    return request.config.option.seed


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CTs."""
    folder = os.environ.get("PANORGAN_REAL_DATA")
    if not folder:
        cannot_run("PANORGAN_REAL_DATA names no folder of real CTs")
    if not Path(folder).is_dir():
        cannot_run(f"PANORGAN_REAL_DATA={folder} is no folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def slurm() -> Iterator[list[str]]:
    """A SLURM of one node, up while the tests last: the options with which Snakemake submits to it.

    `subprocess.run([sys.executable, "-m", "snakemake", *slurm, ...])` in a checkout or a copy of
    it; `cluster.slurm.jobs()` then tells what was submitted where.
    """
    if reason := why_not():
        cannot_run(reason)
    with one_node_slurm():
        profile = Path(__file__).parents[1] / "profiles" / "slurm"
        # As a user would, but with this machine's size and patience.
        yield [
            f"--workflow-profile={profile}",
            "--jobs=2",
            "--slurm-init-seconds-before-status-checks=1",
        ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run on a few small phantoms; tests that change it work on a `copy`.

    It is made once, whichever of the processes that run tests side by side is the first to ask.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    with open(place / "tiny.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = place / "tiny.finished"
        if finished.exists():
            return Project.there(place / "tiny", TINY)
        project = tiny_project(place / "tiny")
        project.run()
        finished.touch()
    return project


def cannot_run(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; where all must run, fail."""
    if os.environ.get("PANORGAN_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
