"""Two result folders compared: what counts as a difference, and what does not."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from compare_results import main
from safetensors.numpy import save_file

from panorgan.nnunet.case_file import save
from panorgan.nnunet.preprocess import Preprocessed

GRID = np.diag([2.0, 2.0, 5.0, 1.0])


def save_label(path: Path, array: np.ndarray, affine: np.ndarray = GRID, level: int = 1) -> None:
    data = nib.Nifti1Image(array, affine).to_bytes()
    path.write_bytes(gzip.compress(data, level, mtime=level))


def save_weights(path: Path, value: float, note: str = "") -> None:
    save_file({"a": np.ones(3, np.float32), "b": np.full(2, value)}, path, {"note": note})


def save_page(
    path: Path, dice: str = "81.2", took: str = "3.2 hours", seconds: str = "0.4"
) -> None:
    path.write_text(
        f'<p>{dice}, after {took}</p>\n<section aria-labelledby="efficiency">\n<td>{seconds}</td>\n'
        "</section>\n<p>the end</p>"
    )


def save_preprocessed(folder, image=0, label=0, place=0):
    data, seg = np.zeros((1, 8, 8, 8), np.float32), np.zeros((1, 8, 8, 8), np.int16)
    data[0, 0, 0, 0], seg[0, 0, 0, 0] = image, label
    places = {"class_locations": {1: np.full((3, 4), place, np.int16)}}
    folder.mkdir(exist_ok=True)
    save(folder, "x", Preprocessed(data, seg, places, (8, 8, 8)))


@pytest.fixture
def pair(tmp_path):
    """Two folders with equal content."""
    for name in "ab":
        folder = tmp_path / name
        for part in ("fusion/stage2", "model", "logs", "benchmarks", ".store"):
            (folder / part).mkdir(parents=True)
        save_label(
            folder / "fusion/stage2/x.nii.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        )
        save_weights(folder / "model/weights.safetensors", 0.5)
        card = {"seed": 0, "hours": 1.5, "step_seconds": {"plain": 0.1}, "parts": [{"x": 1}]}
        (folder / "model/card.json").write_text(json.dumps(card))
        (folder / "model/progress.csv").write_text("epoch,loss,seconds,wait_s\n1,0.25,3.5,0\n")
        checksum = "0" * 32
        (folder / "fusion/stage2.tsv").write_text(f"case\tfiles\nx\tx.nii.gz:{checksum}\n")
        (folder / "fusion/x.efficiency.tsv").write_text("case\ttotal_s\nx\t1\n")
        save_preprocessed(folder / "data")
        save_page(folder / "report.html")
        (folder / "logs/job.log").write_text("done")
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def compare(pair, capsys):
    def run(*arguments: str) -> tuple[int, list[str]]:
        code = main([*map(str, pair), *arguments])
        return code, capsys.readouterr().out.splitlines()

    return run


def test_equal_folders(compare):
    assert compare() == (0, ["7 files compared, 0 differ or are only in one"])


def test_what_is_bound_to_differ_does_not_count(pair, compare):
    _, b = pair
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    save_label(b / "fusion/stage2/x.nii.gz", array, level=9)
    save_weights(b / "model/weights.safetensors", 0.5, note="made later")
    card = {"step_seconds": {}, "hours": 2, "parts": [{"x": 1}], "seed": 0}
    (b / "model/card.json").write_text(json.dumps(card, indent=1))
    (b / "model/progress.csv").write_text("epoch,loss,seconds,wait_s\n1,0.25,9,1\n")
    (b / "fusion/stage2.tsv").write_text(f"case\tfiles\nx\tx.nii.gz:{'1' * 32}\n")
    (b / "fusion/x.efficiency.tsv").write_text("case\ttotal_s\nx\t2\n")
    save_page(b / "report.html", took="12.0 minutes", seconds="0.9")
    (b / "logs/job.log").unlink()
    (b / ".store/left").touch()
    assert compare() == (0, ["7 files compared, 0 differ or are only in one"])


def change(place: str):
    """Changes what counts in a file of B."""
    return {
        "voxel": lambda b: save_label(
            b / "fusion/stage2/x.nii.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4) // 23 * 9
        ),
        "grid": lambda b: save_label(
            b / "fusion/stage2/x.nii.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4), GRID + 1
        ),
        "damaged": lambda b: (b / "fusion/stage2/x.nii.gz").write_bytes(b"none"),
        "weights": lambda b: save_weights(b / "model/weights.safetensors", 0.75),
        "json": lambda b: (b / "model/card.json").write_text(
            json.dumps({"seed": 0, "hours": 1.5, "parts": [{"x": 2}]})
        ),
        "curve": lambda b: (b / "model/progress.csv").write_text(
            "epoch,loss,seconds,wait_s\n1,0.5,3.5,0\n"
        ),
        "table": lambda b: (b / "fusion/stage2.tsv").write_text("case\tfiles\ny\t\n"),
        "preprocessed image": lambda b: save_preprocessed(b / "data", image=1),
        "preprocessed label": lambda b: save_preprocessed(b / "data", label=1),
        "places": lambda b: save_preprocessed(b / "data", place=1),
        "page": lambda b: save_page(b / "report.html", dice="81.3"),
    }[place]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("voxel", "fusion/stage2/x.nii.gz: 23 of 24 voxels differ"),
        ("grid", "fusion/stage2/x.nii.gz: another grid"),
        ("damaged", "fusion/stage2/x.nii.gz: cannot be read ("),
        ("weights", "model/weights.safetensors: b.data differs"),
        ("json", "model/card.json: parts.0.x differs"),
        ("curve", "model/progress.csv: line 2: …1,0.25… and …1,0.5…"),
        ("table", "fusion/stage2.tsv: line 1: …case=x\tfiles=x.nii.gz:… and …case=y\tfiles=…"),
        ("preprocessed image", "data/x.b2nd: 1 of 512 voxels differ"),
        ("preprocessed label", "data/x.b2nd: 1 of 512 voxels differ"),
        ("places", "data/x.b2nd: places.1.0.0 differs"),
        ("page", "report.html: line 1: …<p>81.2, after </p>… and …<p>81.3, after </p>…"),
    ],
)
def test_a_difference_is_a_line(pair, compare, place, said):
    change(place)(pair[1])
    code, (line, total) = compare()
    assert (code, total) == (1, "7 files compared, 1 differ or are only in one")
    assert line.startswith(said)


def test_files_of_one_folder_and_moved_ones(pair, compare):
    _, b = pair
    (b / "fusion").rename(b / "labels")
    (b / "model/card.json").rename(b / "card.json")
    code, lines = compare()
    assert code == 1
    assert lines == [
        "card.json: only in B",
        "fusion/stage2.tsv: only in A",
        "fusion/stage2/x.nii.gz: only in A",
        "labels/stage2.tsv: only in B",
        "labels/stage2/x.nii.gz: only in B",
        "model/card.json: only in A",
        "4 files compared, 6 differ or are only in one",
    ]
    moved = ["--moved", "fusion=labels/", "--moved", "model/card.json=card.json"]
    assert compare(*moved)[0] == 0
    assert compare("--moved", "fus=labels")[0] == 1


@pytest.mark.parametrize("arguments", [["--moved", "fusion"], ["--moved", "a=b=c"]])
def test_wrong_usage_is_2(pair, arguments):
    with pytest.raises(SystemExit) as error:
        main([*map(str, pair), *arguments])
    assert error.value.code == 2


def test_no_folder_is_2(tmp_path):
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), str(tmp_path / "none")])
    assert error.value.code == 2


def test_shards_are_compared_as_one(pair, compare):
    """Cases may be dealt otherwise: the same rows and files in other shards are no difference."""
    a, b = pair
    rows = {"one": "x\ttrain-00\n", "two": "y\ttrain-01\n"}
    head = "case\tshard\n"
    (a / "fusion/train-00.tsv").write_text(head + rows["one"])
    (a / "fusion/train-01.tsv").write_text(head + rows["two"])
    text = (rows["two"] + rows["one"]).replace("train-01", "all-00").replace("train-00", "all-00")
    (b / "fusion/all-00.tsv").write_text(head + text)
    for folder, shard in ((a, "train-01"), (b, "all-00")):
        (folder / "fusion" / shard).mkdir()
        save_label(folder / "fusion" / shard / "y.nii.gz", np.ones((2, 3, 4), np.uint8))
    assert compare() == (0, ["9 files compared, 0 differ or are only in one"])
    (b / "fusion/all-00.tsv").write_text(head + text.replace("y", "z"))
    code, (line, _) = compare()
    assert code == 1
    assert line.startswith("fusion/SHARD.tsv: line 2: ")
