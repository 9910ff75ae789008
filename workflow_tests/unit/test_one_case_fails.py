"""An error that nobody expected in one case ends that case only, in every command and stage."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
from fault_rows import fault_rows
from results_tree import SCORING, VALIDATION, Tree
from toys import write_model

from panorgan.cli import main
from panorgan.config.labels import config_folder
from panorgan.io.volumes import new_volume, read_label, write_image, write_label
from panorgan.problems import Problems
from panorgan.scoring.metrics import score_case
from panorgan.stages.teacher import score_teacher

ERRORS = {
    "memory": MemoryError("Unable to allocate 23.0 GiB"),
    "reader": OSError(errno.EIO, "Input/output error", "b"),
    "network": RuntimeError("shapes differ"),
    "library": ValueError("no\nnumber"),
}
COMMANDS = {
    "check": ("check images labels", "cases.checks.inspect_case"),
    "predict": ("predict -i images -m model --device cpu -o out", "inference.files.read_image"),
    "evaluate": ("evaluate -p labels -r labels -o out", "scoring.evaluation.read_label"),
    "fuse": ("fuse --organs labels -o out", "fusing.fusion.read_label"),
}
"""Words of each, and the function that fails for one of the cases a, b and c."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    z, y, x = np.indices((8, 24, 24))
    for number, case in enumerate("abc"):
        hu = (10 * (z + y + x) - 100 + number).astype(np.int16)
        ct = new_volume(hu, (6.0, 4.0, 4.0))
        write_image(folder / f"images/{case}_0000.nii.gz", hu, ct)
        write_label(folder / f"labels/{case}.nii.gz", (1 + (x + number) // 8).astype(np.uint8), ct)
    write_model(folder / "model")
    return folder


@pytest.fixture
def fail(monkeypatch):
    """Makes a function fail for one case, and keeps which others it was called for."""

    def patch(name, error, case="b"):
        tried = []
        module, _, function = f"panorgan.{name}".rpartition(".")
        original = getattr(__import__(module, fromlist=["x"]), function)

        def failing(first, *rest, **named):
            which = Path(first).name[0]
            if which == case:
                raise error
            tried.append(which)
            return original(first, *rest, **named)

        monkeypatch.setattr(f"{module}.{function}", failing)
        return tried

    return patch


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("memory", marks=pytest.mark.fault("case-memory")),
        pytest.param("reader", marks=pytest.mark.fault("case-reader")),
        pytest.param("network", marks=pytest.mark.fault("case-network")),
        pytest.param("library", marks=pytest.mark.fault("case-library")),
    ],
)
def test_the_others_are_done(kind, command, inputs, fail, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    (words, function), error = COMMANDS[command], ERRORS[kind]
    tried = fail(function, error)
    out = tmp_path / "out"
    assert main([str(out) if word == "out" else word for word in words.split()]) == 1
    assert {*tried} == {"a", "c"}
    printed = capsys.readouterr()
    lines = [line for line in f"{printed.out}{printed.err}".splitlines() if line.startswith("b: ")]
    assert len(lines) == 1
    fault_rows()[f"case-{kind}"].check(lines[0])
    if kind != "reader":
        assert re.match(r"b: (images/b_0000|labels/b)\.nii\.gz: ", lines[0])
    assert "Traceback" not in printed.err
    # Of the others' only what would mean something else without this case is not written.
    kept = {"a.nii.gz", "c.nii.gz", "report.json"} if command == "predict" else set()
    assert {path.name for path in out.glob("*")} == kept


def test_the_same_command_goes_on(inputs, fail, tmp_path, capsys):
    words = ["predict", "-i", f"{inputs}/images", "-m", f"{inputs}/model", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "panorgan.inference.files.write_label", failing_for("b", write_label, OSError(5, "x"))
        )
        assert main([*words, "-o", str(tmp_path / "out")]) == 1
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("labelled before") == 2
    assert read_label(tmp_path / "out/b.nii.gz").array.shape == (8, 24, 24)


def failing_for(case, original, error):
    def failing(path, *rest):
        if Path(path).name[0] == case:
            raise error
        return original(path, *rest)

    return failing


def test_the_traceback_is_shown_if_asked_for(inputs, fail, monkeypatch, capsys):
    monkeypatch.setenv("PANORGAN_TRACEBACK", "1")
    fail("cases.checks.inspect_case", ValueError("no number"))
    assert main(["check", f"{inputs}/images"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_teachers_other_cases_are_scored(tmp_path, monkeypatch, capsys):
    tree = Tree(tmp_path, test=False, progress=False)
    (broken,) = tmp_path.glob(f"teacher/seed-0/predictions/{VALIDATION}/val_1.nii.gz")
    broken.chmod(0o644)
    broken.write_bytes(b"broken")
    scored = []

    def failing(*arguments):
        scored.append(arguments)
        if len(scored) == 1:
            raise ValueError("no number")
        return score_case(*arguments)

    monkeypatch.setattr("panorgan.scoring.metrics.score_case", failing)
    with pytest.raises(Problems) as caught:
        score_teacher(
            [tree.part(VALIDATION)],
            tree.reader(f"teacher/labels/{VALIDATION}"),
            tree.reader(f"teacher/seed-0/predictions/{VALIDATION}"),
            labels_file=str(config_folder() / "labels.yaml"),
            profile="flare23-2023",
            folder=tmp_path / "new",
            **SCORING,
        )
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"val_1: {broken}: is not what its job wrote; ")
    assert second.startswith(f"val_2: {tmp_path}/data/val_2_image.nii.gz: unexpected ValueError")
    assert len(scored) == 2
    assert "Traceback" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
