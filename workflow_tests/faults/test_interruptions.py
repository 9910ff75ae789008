"""Killed at bad moments and run again: finished cases and epochs are not done again."""

import os
import shutil
import signal
import time

import pytest
from fault_rows import fault_rows
from running import hashes, tiny_project

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


def test_kill_in_the_middle_of_a_shard(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    shutil.rmtree(project.results / "round-1")
    shutil.rmtree(project.results / ".store/round-1")
    process = project.start("labels")
    wait_for(lambda: len(project.finished("round-1/fusion/stage1")) >= 2)
    kill(process)
    finished = project.finished("round-1/fusion/stage1")
    pseudo = project.finished("round-1/pseudo_labels/tumour")
    project.run("--unlock")
    project.forget_logs()
    project.run("labels")
    computed = project.computed()
    kept = {name.rpartition(".")[0] for name in finished}
    assert not kept & set(computed.get("fuse_tumours", []))
    assert len(kept) + len(computed.get("fuse_tumours", [])) == 10
    predicted = {name.rpartition(".")[0] for name in pseudo}
    assert not predicted & set(computed.get("predict_tumours", []))
    assert finished.keys() <= project.finished("round-1/fusion/stage1").keys()
    assert pseudo.keys() <= project.finished("round-1/pseudo_labels/tumour").keys()


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_kill_in_the_middle_of_a_training(tiny, tmp_path, network):
    project = tiny.copy(tmp_path / "p")
    longer = project.config[network]["training"] | {"epochs": 30}
    project.write_config(**{network: project.config[network] | {"training": longer}})
    slot = {"teacher": "teacher/seed-0/model", "student": "round-1/student/stage2/seed-0/model"}
    shutil.rmtree(project.results / ".store" / slot[network])
    process = project.start("--until", f"train_{network}")
    wait_for(lambda: epochs(project, slot[network]) >= 4)
    kill(process)
    done = epochs(project, slot[network])
    project.run("--unlock")
    project.forget_logs()
    project.run("--until", f"train_{network}")
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


def test_kill_between_publishing_and_snakemakes_record(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    shutil.rmtree(project.results / "round-1/fusion")
    shutil.rmtree(project.results / ".store/round-1/fusion")
    process = project.start("labels")
    table = project.results / "round-1/fusion/stage1/unlabelled-00.tsv"
    wait_for(table.exists)
    kill(process)
    project.run("--unlock")
    project.forget_logs()
    project.run("labels")
    published = {line.split("\t")[0] for line in table.read_text().splitlines()[1:]}
    assert not published & set(project.computed().get("fuse_tumours", []))


def test_one_broken_shard_is_repaired_and_only_it_and_what_follows_is_made_again(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    before = hashes(project.results, "round-1/fusion/**/*.nii.gz")
    shutil.rmtree(project.results / "round-1/fusion")
    shutil.rmtree(project.results / ".store/round-1/fusion")
    folder = project.results / "round-1/pseudo_labels/tumour/unlabelled-00"
    victim = sorted(folder.glob("*.nii.gz"))[0]
    case = victim.name.removesuffix(".nii.gz")
    victim.unlink()
    victim.write_bytes(b"broken")

    project.forget_logs()
    output = project.run("labels", fails=True)
    *_, problem, logs = output.strip().splitlines()
    path = victim.relative_to(project.folder)
    assert problem.startswith(f"{case}: {path}: is not what its job wrote; make it again: delete ")
    assert logs == "logs: results/tiny/logs/fuse_tumours/round-1/stage1/unlabelled-00.log"
    assert "Traceback" not in output
    assert (project.results / "round-1/fusion/stage2/labelled-00.tsv").exists()
    assert not (project.results / "round-1/fusion/stage1/unlabelled-00.tsv").exists()
    others = [name for name in project.computed()["fuse_tumours"] if name != case]
    assert len(others) == 9

    project.forget_logs()
    shutil.rmtree(folder)
    project.run("labels")
    computed = project.computed()
    assert computed.pop("fuse_tumours") == [case]
    shard = {
        line.split("\t")[0]
        for line in (project.results / "round-1/fusion/stage2/unlabelled-00.tsv")
        .read_text()
        .splitlines()[1:]
    }
    assert set(computed.pop("fuse_organs")) == shard
    assert computed == {}
    assert hashes(project.results, "round-1/fusion/**/*.nii.gz") == before


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
