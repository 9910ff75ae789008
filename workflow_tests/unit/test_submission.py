"""Label maps as a challenge checks them: one a CT, its name, grid, type and values."""

import json

import numpy as np
import pytest

from panorgan.cli import main
from panorgan.io.volumes import new_volume, write_image, write_label


def write(path, value=0, shape=(4, 5, 6), spacing=(3.0, 2.0, 1.0), dtype=np.uint8):
    """A volume that holds one value; a CT where the type is not uint8."""
    path.parent.mkdir(exist_ok=True)
    array = np.full(shape, value, dtype)
    (write_label if dtype is np.uint8 else write_image)(path, array, new_volume(array, spacing))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three CTs and their label maps, which can be submitted."""
    monkeypatch.chdir(tmp_path)
    for value, case in enumerate("abc"):
        write(tmp_path / f"cts/{case}_0000.nii.gz", 40, dtype=np.int16)
        write(tmp_path / f"maps/{case}.nii.gz", value)
    return tmp_path


def check(capsys, *options):
    """The exit code of the command, and what it prints."""
    code = main(["check", "cts", "--predictions", "maps", *options])
    return code, capsys.readouterr().out.splitlines()


def test_what_can_be_submitted(folders, capsys):
    (folders / "maps/report.json").write_text("{}")
    assert check(capsys) == (0, ["3 checked, 0 problems"])


def missing(maps):
    (maps / "b.nii.gz").unlink()


def of_no_ct(maps):
    write(maps / "b_0000.nii.gz")


def not_compressed(maps):
    (maps / "b.nii.gz").unlink()
    write(maps / "b.nii")


def cut_off(maps):
    data = (maps / "b.nii.gz").read_bytes()
    (maps / "b.nii.gz").write_bytes(data[:-10])


def of_another_size(maps):
    write(maps / "b.nii.gz", shape=(4, 5, 7))


def of_another_spacing(maps):
    write(maps / "b.nii.gz", spacing=(3.0, 2.0, 1.5))


def of_16_bits(maps):
    write(maps / "b.nii.gz", dtype=np.int16)


def of_no_class(maps):
    write(maps / "b.nii.gz", 15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (missing, "b: maps: cts/b_0000.nii.gz has no label map there; predict it, or copy it"),
        (
            of_no_ct,
            "b_0000: maps/b_0000.nii.gz: is of no CT; remove it; the label map of "
            "CASE_0000.nii.gz is named CASE.nii.gz",
        ),
        (not_compressed, "b: maps/b.nii: is not compressed; write it as .nii.gz"),
        (cut_off, "b: maps/b.nii.gz: is truncated: its gzip data have no end"),
        (
            of_another_size,
            "b: maps/b.nii.gz: is not on the grid of its CT: size 6 x 5 x 4 against",
        ),
        (of_another_spacing, "b: maps/b.nii.gz: is not on the grid of its CT: spacing 1 x 2 x 3"),
        (of_16_bits, "b: maps/b.nii.gz: is stored as int16, not as uint8; save it as uint8"),
        (of_no_class, "b: maps/b.nii.gz: holds 15, which is no class; classes are 1 to 14"),
    ],
)
def test_what_cannot(folders, capsys, make, said):
    make(folders / "maps")
    code, [line, count] = check(capsys)
    assert code == 1
    assert said in line
    assert count.endswith("1 problems")


def test_a_ct_that_nobody_can_read(folders, capsys):
    (folders / "cts/b_0000.nii.gz").write_bytes(b"")
    code, [line, _] = check(capsys)
    assert code == 1
    assert "b: maps/b.nii.gz: its CT cts/b_0000.nii.gz is empty; copy or download it" in line


def test_all_that_is_wrong_is_said_at_once(folders, capsys):
    for fault in (missing, of_no_ct):
        fault(folders / "maps")
    write(folders / "maps/c.nii.gz", 99, shape=(4, 5, 7))
    (folders / "maps/notes.rar").touch()
    code, lines = check(capsys)
    assert code == 1
    assert lines[-1] == "3 checked, 5 problems"


def test_no_label_map_at_all(folders, capsys):
    for path in (folders / "maps").iterdir():
        path.unlink()
    code, lines = check(capsys)
    assert code == 1
    assert "maps: holds no .nii.gz or .nii file; check the path" in lines
    assert [line[:1] for line in lines if "has no label map" in line] == ["a", "b", "c"]


def test_a_model_s_own_classes(folders, capsys):
    """Label maps of a model of others: its report names their values."""
    write(folders / "maps/b.nii.gz", 2)
    (folders / "maps/report.json").write_text(json.dumps({"classes": {"1": "heart", "2": "lung"}}))
    assert check(capsys)[0] == 0
    write(folders / "maps/b.nii.gz", 3)
    _, [line, _] = check(capsys)
    assert "holds 3, which is no class; classes are 1 to 2" in line
    # A table that is asked for wins, and the label maps are not of it.
    table = folders / "table.yaml"
    table.write_text(
        "labels: [{value: 1, name: heart, title: Heart, tolerance_mm: 1.0, crop_slices: false, "
        "colour: '#ff0000'}]\ntumour: heart\nignore: 2\n"
    )
    assert main(["check", "cts", "--predictions", "maps", "--labels", str(table)]) == 1
    assert "says that 2 is lung, which is no class in the class table" in capsys.readouterr().err


def test_one_folder_of_cts(folders, capsys):
    assert main(["check", "cts", "maps", "--predictions", "maps"]) == 2
    assert "--predictions are of one folder of CTs: name one PATH" in capsys.readouterr().err
