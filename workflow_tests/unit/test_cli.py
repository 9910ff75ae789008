"""The command-line tool: exit codes, one line a problem, never a traceback."""

import json

import numpy as np
import pytest

from panorgan.cases import read_cases
from panorgan.cli import main
from panorgan.labels import load_labels
from panorgan.volumes import new_volume, read_label, write_image, write_label

LABELS = load_labels()


def image(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    write_image(path, pixels, new_volume(pixels, (3.0, 2.0, 1.0)))


def label(path, *values):
    path.parent.mkdir(exist_ok=True)
    array = np.zeros((4, 5, 6), np.uint8)
    for place, value in enumerate(values):
        array[:, place] = value
    write_label(path, array, new_volume(array, (3.0, 2.0, 1.0)))


@pytest.fixture
def flare(tmp_path):
    """Two labelled, one unlabelled, one validation and one test case."""
    for seed, name in enumerate(("imagesTr2200/a", "imagesTr2200/b", "imagesTr1800/c")):
        image(tmp_path / f"{name}_0000.nii.gz", seed)
    image(tmp_path / "imagesVal/d_0000.nii.gz", 3)
    image(tmp_path / "imagesTs/e_0000.nii.gz", 4)
    label(tmp_path / "labelsTr2200/a.nii.gz", 1, 14)
    label(tmp_path / "labelsTr2200/b.nii.gz", 2)
    label(tmp_path / "labelsVal/d.nii.gz", 1, 2, 3)
    for name in "abc":
        label(tmp_path / f"organs/{name}.nii.gz", 3)
    return tmp_path


def test_init_writes_a_table_that_reads(flare, capsys):
    table = flare / "cases.tsv"
    assert main(["init", str(flare), "-o", str(table), "--organs", str(flare / "organs")]) == 0
    assert "5 cases, 3 with a label" in capsys.readouterr().out
    cases = {case.case: case for case in read_cases(table, LABELS)}
    assert {name: case.split for name, case in cases.items()} == {
        "a": "train",
        "b": "train",
        "c": "train",
        "d": "validation",
        "e": "test",
    }
    assert cases["a"].source == "Tr2200"
    assert cases["c"].label == ""
    assert cases["a"].organs.endswith("organs/a.nii.gz")
    assert cases["d"].organs == ""
    assert main(["check", str(table)]) == 0


def test_init_overwrites_nothing(flare, capsys):
    table = flare / "cases.tsv"
    table.write_text("mine")
    assert main(["init", str(flare), "-o", str(table)]) == 1
    assert table.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err


def test_init_names_a_label_without_image(flare, capsys):
    (flare / "imagesTr2200/b_0000.nii.gz").unlink()
    assert main(["init", str(flare), "-o", str(flare / "cases.tsv")]) == 1
    assert capsys.readouterr().err.startswith("b: ")
    assert not (flare / "cases.tsv").exists()


def test_check_finds_nothing_wrong(flare, capsys):
    assert main(["check", str(flare)]) == 0
    assert capsys.readouterr().out.strip().endswith("0 problems")


def test_check_gives_a_line_a_problem(flare, capsys):
    broken = flare / "imagesTr2200/a_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-20])
    label(flare / "labelsTr2200/b.nii.gz", 99)
    assert main(["check", str(flare)]) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"a: {broken}: ")
    assert lines[1].startswith(f"b: {flare / 'labelsTr2200/b.nii.gz'}: ")
    assert "99" in lines[1]


def test_fuse_files(flare):
    out = flare / "fused.nii.gz"
    assert (
        main(
            [
                *("fuse", "--partial", str(flare / "labelsTr2200/b.nii.gz")),
                *("--annotated", "right_kidney", "--organs", str(flare / "organs/b.nii.gz")),
                *("-o", str(out), "--source-map", str(flare / "source.nii.gz")),
            ]
        )
        == 0
    )
    fused = read_label(out).array
    assert (fused[:, 0] == 2).all()
    assert set(np.unique(read_label(flare / "source.nii.gz").array)) == {0, 1}


def test_evaluate_writes_both_files_and_never_over_others(flare, capsys):
    command = ["evaluate", "-p", str(flare / "labelsVal"), "-r", str(flare / "labelsVal")]
    assert main([*command, "-o", str(flare / "scores")]) == 0
    summary = json.loads((flare / "scores/summary.json").read_text())
    assert summary["all"]["dsc"] == 1.0
    assert main([*command, "-o", str(flare / "scores")]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["check"], ["evaluate", "-p", "x"]])
def test_wrong_usage_is_2(arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


def test_a_surprise_is_a_line_unless_asked_for(monkeypatch, capsys):
    def explode(*_):
        raise RuntimeError("surprise")

    monkeypatch.setattr("panorgan.checks.check_paths", explode)
    assert main(["check", "x"]) == 1
    assert "unexpected RuntimeError: surprise" in capsys.readouterr().err
    monkeypatch.setenv("PANORGAN_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        main(["check", "x"])
