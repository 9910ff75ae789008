"""What the tests of a GPU share."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toys import write_case

PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every precision of the device, for tests that ask for one."""
    if "precision" in metafunc.fixturenames:
        device = metafunc.config.getoption("--device")
        metafunc.parametrize("precision", PRECISIONS[device])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no CPU can stand for."""
    if config.getoption("--device") == "cpu":
        left_out = [item for item in items if item.get_closest_marker("needs_cuda")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the tests compute: on a GPU, or on the CPU, as far as it can stand for one."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(autouse=True)
def _no_search() -> Iterator[None]:
    """Trainings leave cuDNN's search for algorithms on, which would cost seconds a test."""
    yield
    torch.backends.cudnn.benchmark = False


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toy cases to train on."""
    folder = tmp_path_factory.mktemp("cases")
    for seed in range(4):
        write_case(folder, f"case-{seed}", seed)
    return {f"case-{seed}": folder for seed in range(4)}


@pytest.fixture
def start():
    """Starts Python code in a process of its own, which can import the tests' modules."""
    processes = []

    def begin(code: str, *arguments: object) -> subprocess.Popen:
        path = os.pathsep.join(filter(None, map(str, sys.path)))
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.stdout.close()
        process.wait()
