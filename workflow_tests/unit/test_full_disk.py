"""Every command on a disk that becomes full: a line, nothing half done, and it works later."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fault_rows import fault_rows
from toys import write_model

from panorgan.cli import main
from panorgan.io.volumes import new_volume, read_label, write_image, write_label

PAGE, PAGES = 4096, 512
FREE = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
"""Pages that are left on the disk, one time after the other."""
FULL = (
    r"no space left on the disk \([\d,]+ bytes free\); free some space and run the same command "
    r"again\n"
)
COMMANDS = {
    "init": "init flare -o {}.tsv",
    "evaluate": "evaluate -p labels -r organs -o {}",
    "compare": "compare scores scores -o {}",
    "fuse": "fuse --organs organs -o {} --source-map {}-source",
    "export": "convert model --to nnunet -o {}",
    "import": "convert exported -o {}",
    "show": "show -i flare/imagesTr/a_0000.nii.gz -l labels/a.nii.gz -o {}.png",
}
PREDICT = "predict -i flare/imagesTr -m model --device cpu -o {}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with something for each command."""
    folder = tmp_path_factory.mktemp("inputs")
    z, y, x = np.indices((8, 40, 40))
    for number, case in enumerate("abc"):
        hu = (8 * (z + y + x) - 500 + number).astype(np.int16)
        ct = new_volume(hu, (6.0, 4.0, 4.0))
        write_image(folder / f"flare/imagesTr/{case}_0000.nii.gz", hu, ct)
        label = (1 + y // 8 + 5 * (x // 20)).astype(np.uint8)
        write_label(folder / f"flare/labelsTr/{case}.nii.gz", label, ct)
        write_label(folder / f"labels/{case}.nii.gz", label, ct)
        write_label(folder / f"organs/{case}.nii.gz", np.roll(label, 1, 1), ct)
    write_model(folder / "model")
    references = ["-p", f"{folder}/labels", "-r", f"{folder}/organs"]
    assert main(["evaluate", *references, "-o", f"{folder}/scores"]) == 0
    assert main(["convert", f"{folder}/model", "--to", "nnunet", "-o", f"{folder}/exported"]) == 0
    return folder


@pytest.fixture
def disk(small_disk) -> Path:
    return small_disk(PAGES)


def leave(disk: Path, pages: int) -> None:
    """Fill a disk but for some pages."""
    (disk / "filler").write_bytes(bytes((PAGES - pages) * PAGE))


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "filler")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.fault("disk-full")
@pytest.mark.parametrize("name", COMMANDS)
def test_all_or_nothing(name, inputs, disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    plenty = tmp_path / "plenty"
    assert main(COMMANDS[name].format(*[plenty / "deep/new"] * 2).split()) == 0
    capsys.readouterr()
    failed = 0
    for pages in FREE:
        leave(disk, pages)
        if main(COMMANDS[name].format(*[disk / "deep/new"] * 2).split()) == 0:
            break
        failed += 1
        said = capsys.readouterr().err
        fault_rows()["disk-full"].check(said)
        assert re.fullmatch(rf"(\w: )?{disk}/deep/new\S*: {FULL}", said)
        assert [path.name for path in disk.rglob("*")] == ["filler"]
    else:
        raise AssertionError("it never fitted")
    assert failed
    assert files(disk) == files(plenty)


@pytest.mark.fault("disk-full-printing")
def test_what_is_printed_into_a_file_has_no_room(inputs, disk):
    leave(disk, 0)
    with open(disk / "said.txt", "w") as said:
        command = "from panorgan.cli import main; import sys; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", command, "check", inputs / "flare"],
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    fault_rows()["disk-full-printing"].check(done.stderr)
    assert re.fullmatch(f"{disk}/said.txt: {FULL}", done.stderr)


@pytest.mark.fault("disk-full-predict")
def test_predict_keeps_what_is_whole(inputs, disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    command = PREDICT.format(disk / "deep/new").split()
    out = disk / "deep/new"
    found = []
    for pages in FREE:
        leave(disk, pages)
        if main(command) == 0:
            break
        said = capsys.readouterr().err
        fault_rows()["disk-full-predict"].check(said)
        assert re.fullmatch(rf"\w: {out}\S*: {FULL}", said)
        whole = {path.name[0] for path in out.glob("*.nii.gz")}
        listed = json.loads((out / "report.json").read_text())["cases"] if whole else {}
        assert {*listed} == whole
        assert disk.joinpath("deep").exists() == bool(whole)
        assert not list(disk.rglob("*tmp*"))
        found.append(whole)
    else:
        raise AssertionError("it never fitted")
    assert not found[0]
    assert any(found)
    assert "labelled before" in capsys.readouterr().out
    assert main(PREDICT.format(tmp_path / "plenty").split()) == 0
    for case in "abc":
        expected = read_label(tmp_path / f"plenty/{case}.nii.gz").array
        assert np.array_equal(read_label(out / f"{case}.nii.gz").array, expected)
