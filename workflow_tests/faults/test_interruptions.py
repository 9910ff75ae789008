"""Killed at bad moments and run again: finished cases and epochs are not done again."""

import json
import os
import shutil
import signal
import time

import pytest
from compare_results import compare_folders
from fault_rows import fault_rows
from running import hashes, tiny_project

from panorgan.run.lease import STALE_S

pytestmark = pytest.mark.workflow


def wait_for(condition, seconds=120):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def kill(process):
    """Kill Snakemake and everything that it started, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def epochs(project, network):
    """Rows of the learning curve of the only training of a network."""
    curves = list((project.results / ".store" / network).glob("*/progress.csv"))
    return len(curves[0].read_text().splitlines()) - 1 if curves else 0


def lose_the_node(state):
    """Let the lease of a training be that of a machine that has been silent for some minutes."""
    leases = list(state.glob("lease-*"))
    for lease in leases:
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"host": "far", "boot": "b"}))
        os.utime(lease, (time.time() - STALE_S,) * 2)
    assert leases


@pytest.mark.fault("node-lost")
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_kill_in_the_middle_of_a_training(tiny, tmp_path, network):
    """The student's node is lost: of its processes nothing can be known from here."""
    project = tiny.copy(tmp_path / "p")
    longer = project.config[network]["training"] | {"epochs": 30}
    project.write_config(**{network: project.config[network] | {"training": longer}})
    slot = {"teacher": "teacher/seed-0/model", "student": "round-1/student/stage2/seed-0/model"}
    shutil.rmtree(project.results / ".store" / slot[network])
    process = project.start("--until", f"train_{network}")
    wait_for(lambda: epochs(project, slot[network]) >= 4)
    kill(process)
    done = epochs(project, slot[network])
    if network == "student":
        (state,) = (project.results / ".store" / slot[network]).iterdir()
        lose_the_node(state)
    project.run("--unlock")
    project.forget_logs()
    project.run("--until", f"train_{network}")
    if network == "student":
        log = project.results / "logs/train_student/round-1/stage2/seed-0.log"
        fault_rows()["node-lost"].check(log.read_text())
    numbers = sorted(int(name.split()[1]) for name in project.computed()[f"train_{network}"])
    assert done - 1 <= numbers[0] - 1 <= done
    assert numbers == list(range(numbers[0], 31))
    model = project.results / slot[network]
    curve = (model / "progress.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curve[1:]] == [str(n) for n in range(1, 31)]

    # The same training in one piece gives the same weights, bit for bit.
    weights = (model / "weights.safetensors").read_bytes()
    shutil.rmtree(project.results / ".store" / slot[network])
    shutil.rmtree(model)
    project.run("--until", f"train_{network}")
    assert (model / "weights.safetensors").read_bytes() == weights


@pytest.mark.fault("result-changed")
@pytest.mark.fault("result-deleted")
@pytest.mark.fault("store-changed")
def test_one_broken_shard_is_repaired_and_only_it_and_what_follows_is_made_again(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    before = hashes(project.results, "round-1/fusion/**/*.nii.gz")
    shutil.rmtree(project.results / "round-1/fusion")
    shutil.rmtree(project.results / ".store/round-1/fusion")
    folder = project.results / "round-1/pseudo_labels/tumour/unlabelled-00"
    changed, deleted = sorted(folder.glob("*.nii.gz"))
    was, store = changed.read_bytes(), project.results / ".store/round-1/pseudo_labels"
    (kept,) = (path for path in store.rglob("*.nii.gz*") if path.read_bytes() == was)
    for path in (changed, kept):
        path.chmod(0o644)
        path.write_bytes(b"broken")
    deleted.unlink()

    project.forget_logs()
    output = project.run("labels", fails=True)
    *_, first, second, logs = output.strip().splitlines()
    fault_rows()["result-changed"].check(first)
    fault_rows()["result-deleted"].check(second)
    for line, path in ((first, changed), (second, deleted)):
        case = path.name.removesuffix(".nii.gz")
        assert line.startswith(f"{case}: {path.relative_to(project.folder)}: is ")
        assert line.endswith(
            f"delete {folder.relative_to(project.folder)} and run the same command"
        )
    assert logs == "logs: results/tiny/logs/fuse_tumours/round-1/stage1/unlabelled-00.log"
    assert "Traceback" not in output
    assert (project.results / "round-1/fusion/stage2/labelled-00.tsv").exists()
    assert not (project.results / "round-1/fusion/stage1/unlabelled-00.tsv").exists()
    names = [path.name.removesuffix(".nii.gz") for path in (changed, deleted)]
    assert len({*project.computed()["fuse_tumours"]} - {*names}) == 8

    project.forget_logs()
    shutil.rmtree(folder)
    project.run("labels")
    computed = project.computed()
    assert computed.pop("predict_tumours") == names[:1]
    log = project.results / "logs/predict_tumours/unlabelled-00.log"
    fault_rows()["store-changed"].check(log.read_text())
    assert computed.pop("fuse_tumours") == names
    assert computed.pop("fuse_organs") == names
    assert computed == {}
    assert hashes(project.results, "round-1/fusion/**/*.nii.gz") == before


@pytest.mark.fault("two-runs")
@pytest.mark.fault("table-deleted")
@pytest.mark.fault("store-deleted")
@pytest.mark.fault("clock-set-back")
def test_a_clock_that_was_set_back_and_work_that_is_gone(tiny, tmp_path):
    """All files are of the future, a table and the finished work of another shard are gone."""
    project = tiny.copy(tmp_path / "p")
    files = [project.folder, *project.folder.rglob("*")]
    shift(files, 86400)
    assert "Nothing to be done" in project.run("--dry-run")
    place = "round-1/predictions/stage2/seed-0"
    for shard in ("test-00", "validation-00"):
        (project.results / place / f"{shard}.tsv").unlink()
    shutil.rmtree(project.results / ".store" / place / "validation-00")
    project.forget_logs()
    fault_rows()["clock-set-back"].check(project.run(fails=True))
    assert project.computed() == {"predict_cases": ["validation_1", "validation_2"]}
    logs = project.results / "logs/predict_cases/round-1/stage2/seed-0"
    fault_rows()["table-deleted"].check((logs / "test-00.log").read_text())
    fault_rows()["store-deleted"].check((logs / "validation-00.log").read_text())

    # The clock is right again.
    shift([path for path in files if path.exists() and path.stat().st_mtime > time.time()], -86400)
    project.forget_logs()
    process = project.start()
    wait_for((project.folder / ".snakemake/locks/0.input.lock").exists)
    fault_rows()["two-runs"].check(project.run(fails=True))
    assert process.wait(timeout=600) == 0
    assert project.computed() == {}
    assert compare_folders(tiny.results, project.results)[1] == []


def shift(paths, seconds):
    """Let files be of another time."""
    for path in paths:
        then = path.lstat().st_mtime + seconds
        os.utime(path, (then, then), follow_symlinks=False)


def test_bad_cases_stop_the_run_readably_or_are_excluded(tmp_path):
    project = tiny_project(tmp_path)
    project.run("write_phantom")
    images = project.folder / "data/demo/imagesTr"
    whole = (images / "liver_1_0000.nii.gz").read_bytes()
    (images / "liver_1_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (images / "unlabelled_1_0000.nii.gz").write_bytes(b"")
    output = project.run("preflight", fails=True)
    *_, first, second, logs = output.strip().splitlines()
    assert first.startswith("liver_1: data/demo/imagesTr/liver_1_0000.nii.gz: ")
    assert second.startswith("unlabelled_1: data/demo/imagesTr/unlabelled_1_0000.nii.gz: ")
    assert logs == "logs: results/tiny/logs/check_cases.log"
    assert "Traceback" not in output

    project.write_config(bad_cases="exclude")
    project.run("preflight")
    excluded = (project.results / "cases/excluded.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in excluded[1:]] == ["liver_1", "unlabelled_1"]
    manifest = (project.results / "cases/manifest.tsv").read_text()
    assert "liver_1\t" not in manifest
    assert "liver_2\t" in manifest


@pytest.mark.fault("disk-full-run")
def test_a_full_disk_is_a_line_and_the_same_command_goes_on(tiny, tmp_path, small_disk):
    project = tiny.copy(tmp_path / "p")
    before = hashes(project.results, "round-1/fusion/**/*.nii.gz")
    for place in ("round-1", ".store/round-1"):
        shutil.rmtree(project.results / place)
    disk = small_disk(5000)
    shutil.move(project.folder / "results", disk)
    (project.folder / "results").symlink_to(disk / "results")
    lines = set()
    for pages in (0, 30):
        (disk / "filler").write_bytes(b"")
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free - pages * 4096))
        output = project.run("labels", fails=True)
        fault_rows()["disk-full-run"].check(output)
        said = [line for line in output.splitlines() if "no space left on the disk (" in line]
        assert said
        lines.update(line.partition(": no space")[0] for line in said)
        left = [path for path in (disk / "results").rglob("*") if "tmp" in path.name]
        assert not left
    assert len(lines) > 1
    (disk / "filler").unlink()
    project.run("labels")
    assert hashes(project.results, "round-1/fusion/**/*.nii.gz") == before
