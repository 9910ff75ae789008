"""Needs of disk and memory by hand, and what a made-up machine has."""

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_preflight import entry
from test_preprocess import INTENSITY

from panorgan.cases.manifest import ANNOTATED, write_manifest
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.settings import Config
from panorgan.io.resources import (
    PROCESS_BYTES,
    available_memory,
    check_disk,
    checkpoints_bytes,
    free_disk,
    grid_shape,
    held_bytes,
    model_bytes,
    preprocessed_bytes,
    preprocessing_memory,
)
from panorgan.io.volumes import new_volume
from panorgan.nnunet.plans import make_plan
from panorgan.nnunet.preprocess import preprocess_image
from panorgan.problems import Problems
from panorgan.run.store import ShardOutput, ShardReader
from panorgan.stages.training import plan_network, preprocess_cases

LABELS = load_labels()

MB = 2**20


def test_a_case_on_a_networks_grid():
    assert grid_shape((10, 20, 20), (5, 1, 1), (2.0, 2.0)) == (10, 10, 10)  # slices are kept
    assert grid_shape((10, 20, 20), (5, 1, 1), (4.0, 2.0, 2.0)) == (12, 10, 10)  # 12.5 rounded
    assert preprocessed_bytes((10, 20, 20), (5, 1, 1), (2.0, 2.0)) == 10 * 10 * 10 * (4 + 2)


@pytest.mark.parametrize("spacing", [(4.0, 2.0, 2.0), (1.0, 0.6, 0.6)])
@pytest.mark.parametrize("target", [(2.0, 1.2, 1.2), (0.8, 0.8)])
def test_memory_of_preprocessing_is_enough(spacing, target):
    """And no more than a few times what numpy takes for a case that is foreground by a third."""
    shape = (40, 120, 120)
    rng = np.random.default_rng(0)
    recipe = Config().student.model_dump() | {
        "spacing_mm": target,
        "patch_size": [64] * len(target),
    }
    plan = make_plan(recipe, ["liver"], INTENSITY, (1,) * 3, (1,) * 3)

    tracemalloc.start()
    image = new_volume(rng.integers(-200, 200, shape, dtype=np.int16), spacing)
    label = (rng.random(shape, dtype=np.float32) < 1 / 3).astype(np.uint8)
    tracemalloc.reset_peak()
    done = preprocess_image(image, plan, label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert done.data.shape[1:] == grid_shape(shape, spacing, target)
    estimate = preprocessing_memory(shape, spacing, target) - PROCESS_BYTES
    assert estimate / 3 < peak < estimate


@pytest.mark.parametrize(
    ("optimizer", "values"),
    [
        ({"name": "sgd", "momentum": 0.99}, 2),
        ({"name": "sgd", "momentum": 0.0}, 1),
        ({"name": "adamw", "momentum": 0.99}, 3),
    ],
)
def test_checkpoints_hold_the_optimizer_too(optimizer, values):
    assert model_bytes(1000) == 4000
    assert checkpoints_bytes(1000, optimizer) == 3 * values * 4000


def test_held_bytes_count_a_file_once(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case/a").write_bytes(bytes(1000))
    os.link(tmp_path / "case/a", tmp_path / "b")
    (tmp_path / "c").write_bytes(bytes(10))
    assert held_bytes(tmp_path) == 1010
    assert held_bytes(tmp_path / "nothing") == 0


def test_a_disk_that_is_too_small_is_refused(tmp_path):
    check_disk(5e9, tmp_path, "preprocessed data", free=lambda path: 5e9)
    with pytest.raises(Problems) as error:
        check_disk(7.5e9, tmp_path, "preprocessed data", free=lambda path: 5e9)
    assert str(error.value) == (
        f"{tmp_path}: preprocessed data: about 7.5 GB are still to be written, 5.0 GB are free; "
        "free 2.5 GB there, or let results be a link to a larger disk"
    )
    assert free_disk(tmp_path / "not/yet/there") > 0


def machine(root: Path, files: dict[str, str]) -> Path:
    meminfo = f"MemTotal: {64 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {40 * 1024} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 40),
        # Version 2: 20 of 32 MB are taken, 5 of these by cached files.
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": f"{32 * MB}\n",
                "sys/fs/cgroup/job/memory.current": f"{20 * MB}\n",
                "sys/fs/cgroup/job/memory.stat": f"anon 7\ninactive_file {5 * MB}\n",
            },
            17,
        ),
        # The group above is the narrower one.
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/memory.max": f"{8 * MB}\n",
                "sys/fs/cgroup/job/memory.current": "0\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
            },
            8,
        ),
        # Version 1, in a container that sees its own group as the root.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{16 * MB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{6 * MB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {MB}\n",
            },
            11,
        ),
        # No limit is a huge number there.
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6\n",
            },
            40,
        ),
    ],
)
def test_available_memory(tmp_path, files, available):
    assert available_memory(machine(tmp_path, files)) == available * MB


def test_a_limit_of_the_address_space_counts(tmp_path, monkeypatch):
    root = machine(tmp_path, {"proc/self/status": "Name:\tx\nVmSize:\t   3072 kB\nVmRSS:\t1 kB\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10 * MB, -1))
    assert available_memory(root) == 7 * MB


def test_the_most_memory_of_a_process_is_its_own():
    """Not that of the one which started it, here with 400 MB."""
    code = "from panorgan.io.resources import peak_memory; print(peak_memory() / 1e6)"
    outer = (
        "import subprocess, sys; block = bytearray(b'1') * 400_000_000; "
        f"subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 200


def test_a_machine_that_says_nothing_refuses_nothing(tmp_path):
    assert available_memory(tmp_path) == float("inf")
    assert 0 < available_memory() < float("inf")


class TestStages:
    """Both stages before the training look at the disk first."""

    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        """Four cases of 10x20x20 voxels of 5x1x1 mm, two of them in each of two shards."""
        for shard, names in {"training": "ab", "validation": "cd"}.items():
            entries = [entry(name, "train", ANNOTATED) for name in names]
            write_manifest(tmp_path / f"{shard}.tsv", entries, LABELS)
        plan = make_plan(Config().student.model_dump(), LABELS.names, INTENSITY, (1,) * 3, (1,) * 3)
        (tmp_path / "frozen.json").write_text(json.dumps(plan))
        self.folder, self.monkeypatch = tmp_path, monkeypatch
        return self

    def have(self, free: float) -> None:
        usage = SimpleNamespace(free=free)
        self.monkeypatch.setattr("panorgan.io.resources.shutil.disk_usage", lambda path: usage)

    def plan(self) -> None:
        plan_network(
            [str(self.folder / f"{shard}.tsv") for shard in ("training", "validation")],
            [*"abcd"],
            ShardReader([], []),
            Config().student.model_dump(),
            labels_file=str(config_folder() / "labels.yaml"),
            classes=LABELS.values,
            frozen=str(self.folder / "frozen.json"),
            store=self.folder / ".store",
            plans=str(self.folder / "plans.json"),
            dataset=str(self.folder / "dataset.json"),
        )

    def preprocess(self) -> ShardOutput:
        out = ShardOutput(self.folder / ".store", self.folder / "t.tsv", self.folder / "t")
        preprocess_cases(
            str(self.folder / "validation.tsv"),
            None,
            str(self.folder / "frozen.json"),
            out,
            labels_file=str(config_folder() / "labels.yaml"),
        )
        return out

    CASE = 12 * 17 * 17 * 6 / 2
    """Bytes on the student's grid of 4x1.2x1.2 mm, compressed."""

    def test_the_plan_knows_all_cases_and_what_is_stored(self, run):
        run.have(4 * self.CASE - 1)
        with pytest.raises(Problems, match=r"\.store: preprocessed data: about .* free "):
            run.plan()
        assert not (run.folder / "plans.json").exists()
        (run.folder / ".store").mkdir()
        (run.folder / ".store/case").write_bytes(bytes(10))
        run.plan()
        assert (run.folder / "plans.json").exists()

    def test_a_shard_counts_what_it_has_not_done(self, run):
        run.have(2 * self.CASE - 1)
        with pytest.raises(Problems, match="preprocessed data: about"):
            run.preprocess()
        # Tried, and not for want of space: the images of this table do not exist.
        run.have(2 * self.CASE)
        with pytest.raises(Problems, match=r"c: i\.nii\.gz"):
            run.preprocess()
        run.have(self.CASE)
        run.monkeypatch.setattr(
            "panorgan.stages.training.unfinished", lambda store, work, parameters: work[1:]
        )
        with pytest.raises(Problems, match=r"c: i\.nii\.gz"):
            run.preprocess()
