"""Kernels are compiled once, kept apart by source and machine, and work where nothing is kept."""

import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numba
import pytest
from llvmlite.binding import FeatureMap

from panorgan.io.compiled import cache_folder, kernel

SIGNATURE = numba.int64(numba.int64)


def add_three(number):
    return number + 3


def compiled():
    """The kernel as a new process gets it: its value, and whether it came from the cache."""
    function = kernel(SIGNATURE)(add_three)
    assert function(4) == 7
    assert len(function.signatures) == 1
    return sum(function.stats.cache_hits.values()) == 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    return folder


def names(folder):
    return sorted(path.suffix for path in folder.rglob("*") if path.is_file())


def test_kept_for_the_next_time(folder):
    before = numba.config.CACHE_DIR
    assert [compiled(), compiled()] == [False, True]
    assert names(folder) == [".nbc", ".nbi"]
    assert before == numba.config.CACHE_DIR


def test_place_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder(add_three).parent == tmp_path / "home" / ".cache" / "panorgan"
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert cache_folder(add_three).parent == tmp_path / name / "panorgan"


def test_another_source_version_or_machine_has_another_folder(folder, monkeypatch):
    def loaded(text):
        path = folder.with_name("source.py")
        path.write_text(text)
        spec = spec_from_file_location("source", path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return cache_folder(module.double)

    text = "def double(x):\n    return 2 * x\n"
    folders = [loaded(text), loaded(text + "# changed\n"), cache_folder(add_three)]
    assert loaded(text) == folders[0]
    for name, value in (
        ("numba.__version__", "0.1"),
        ("llvmlite.binding.llvm_version_info", (1, 2, 3)),
        ("llvmlite.binding.get_host_cpu_name", lambda: "i386"),
        ("llvmlite.binding.get_host_cpu_features", lambda: FeatureMap({"sse": True})),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(name, value)
            folders.append(cache_folder(add_three))
    assert len(set(folders)) == len(folders) == 7


def test_a_file_in_the_way(tmp_path, folder):
    folder.touch()
    assert [compiled(), compiled()] == [False, False]
    assert folder.stat().st_size == 0


def test_no_home(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert not compiled()


def test_a_place_that_cannot_be_written_to(folder, monkeypatch):
    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panorgan.io.compiled.TemporaryFile", full)
    assert not compiled()
    assert names(folder) == []
    assert not list(Path(__file__).parent.rglob("test_compiled.add_three*"))  # nor elsewhere


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_broken_files(folder, suffix):
    compiled()
    [path] = folder.rglob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:20])
    assert not compiled()
    shutil.rmtree(folder)
    assert [compiled(), compiled()] == [False, True]


def test_what_cannot_be_compiled_says_why(folder):
    def wrong(number):
        return number.nothing

    with pytest.raises(numba.TypingError, match="nothing"):
        kernel(SIGNATURE)(wrong)


SCRIPT = """
import numpy as np
from panorgan.scoring import surface

first = np.zeros((3, 4, 5), np.uint8)
first[1, 1:3, 1:4] = 1
words = [surface.as_words(labels) for labels in (first, np.roll(first, 1, 2))]
assert surface.extents(words[0])[1].tolist() == [6, 1, 2, 1, 3, 1, 4]
print(surface.compare(*words, 1, np.array([0, 3, 0, 4, 0, 5]), 1.0, (1.0, 1.0, 1.0)))
"""


def test_processes_that_start_at_once_with_an_empty_cache(folder):
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first.startswith(b"Comparison(dsc=0.666666")  # two of three voxels of both rows: 2·4/12
    assert first == second
    # An index and a version of each kernel, no temporary files; a folder for each source.
    assert names(folder) == [".nbc"] * 6 + [".nbi"] * 6
    assert len(list((folder / "panorgan").iterdir())) == 1
