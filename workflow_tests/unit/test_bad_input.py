"""Bad input, as a user gives it to a command: what docs/reliability.md says is what is seen.

Each function spoils something in a folder and names the command; its mark is the row of the fault
table. The command ends with 1, or with 2 where an option is wrong, and whatever was there before is
there afterwards, and nothing else.
"""

import gzip
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import toys
import yaml
from fault_rows import fault_rows
from toys import Runs

from panorgan.cli import main
from panorgan.config.labels import config_folder
from panorgan.io.volumes import new_volume, write_image, write_label

Spoil = Callable[[Path], list[object]]
FAULTS: dict[str, Spoil] = {}
CODES: dict[str, int] = {}
SHAPE, SPACING = (12, 30, 40), (4.0, 9.0, 9.0)
DIM, DATATYPE, PIXDIM, OFFSET, SLOPE, UNITS = 40, 70, 80, 108, 112, 123
QFORM_CODE, SFORM_CODE, QUATERN, SROW, MAGIC = 252, 254, 256, 280, 344
"""Where fields begin in a NIfTI header."""


def fault(name: str, code: int = 1) -> Callable[[Spoil], Spoil]:
    """Mark what makes a fault with its row and the command's exit code."""

    def mark(spoil: Spoil) -> Spoil:
        assert name not in FAULTS
        FAULTS[name], CODES[name] = spoil, code
        return spoil

    return mark


@pytest.mark.parametrize("name", FAULTS)
def test_a_line_says_what_is_wrong_and_nothing_else_happens(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [str(word) for word in FAULTS[name](tmp_path)]
    before = contents(tmp_path)
    try:
        code = main(command)
    except SystemExit as ended:  # argparse
        code = ended.code
    said = capsys.readouterr()
    fault_rows()[name].check((said.out + said.err).replace(f"{tmp_path}/", ""))
    assert code == CODES[name]
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


# ---------------------------------------------------------------------------------------------
# Sound input


@cache
def anatomy() -> tuple[np.ndarray, np.ndarray]:
    """A body in air with a liver, a spleen and a tumour: HU, and labels."""
    _, y, x = np.indices(SHAPE)
    body = ((y - 15) / 12.0) ** 2 + ((x - 20) / 17.0) ** 2 < 1
    noise = np.random.default_rng(0).integers(-20, 20, SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    label[2:10, 10:20, 24:34] = 1
    label[3:8, 8:14, 6:12] = 3
    label[4:7, 13:16, 27:30] = 14
    hu = np.where(body, 40, -1000) + noise + 60 * (label > 0)
    return hu.astype(np.int16), label


def ct(path: Path, shift: int = 0, **place: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.roll(anatomy()[0], shift, 2)
    write_image(path, hu, new_volume(hu, SPACING, **place))
    return path


def mask(path: Path, array: np.ndarray | None = None, **place: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = anatomy()[1] if array is None else array
    write_label(path, array, new_volume(array, SPACING, **place))
    return path


def shifted(mm: float) -> np.ndarray:
    """An affine whose origin is elsewhere."""
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[2, 3] = mm
    return affine


def patched(path: Path, *edits: tuple[object, ...]) -> Path:
    """Write numbers into the header: offset, format, numbers."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    for offset, form, *numbers in edits:
        struct.pack_into("<" + form, raw, offset, *numbers)
    path.write_bytes(gzip.compress(raw, 1))
    return path


def write_scaled(path: Path, factor: float) -> None:
    """A CT whose header is right but for a factor; the writer would refuse it."""
    edits = [(PIXDIM + 4 * (2 - axis), "f", factor * SPACING[axis]) for axis in range(3)]
    rows = [(SROW + 20 * (2 - axis), "f", factor * SPACING[axis]) for axis in range(3)]
    patched(ct(path), *edits, *rows)


def table(folder: Path, *rows: dict[str, str], header: str = "") -> Path:
    """A case table of sound cases; a row changes fields of its case."""
    columns = header.split() or [
        *("case", "image", "label", "split", "source", "patient", "annotated", "tumour_scope")
    ]
    lines = ["\t".join(columns)]
    for number, row in enumerate(rows or [{}]):
        name = f"c{number}"
        ct(folder / f"{name}_0000.nii.gz", number)
        mask(folder / f"{name}.nii.gz", np.roll(anatomy()[1], number, 2))
        sound = {"case": name, "image": f"{name}_0000.nii.gz", "label": f"{name}.nii.gz"}
        sound |= {"split": "train", "source": "hospital"}
        lines.append("\t".join({**sound, **row}.get(column, "") for column in columns))
    path = folder / "cases.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def scored(folder: Path) -> tuple[Path, Path]:
    """Folders of predictions and references."""
    prediction = np.roll(anatomy()[1], 1, 1)
    for name in "ab":
        mask(folder / f"p/{name}.nii.gz", prediction)
        mask(folder / f"r/{name}.nii.gz")
    return folder / "p", folder / "r"


def evaluate(folder: Path, *more: object) -> list[object]:
    return ["evaluate", "-p", folder / "p", "-r", folder / "r", "-o", folder / "scores", *more]


def config(folder: Path, text: str) -> list[object]:
    path = folder / "mine.yaml"
    path.write_text(text)
    return ["describe", "--recipe", "student", "--config", path]


def nested(key: str, value: str) -> str:
    """YAML that sets a key alone."""
    *sections, last = key.split(".")
    lines = [*(f"{section}:" for section in sections), f"{last}: {value}"]
    return "\n".join("  " * depth + line for depth, line in enumerate(lines)) + "\n"


def model(folder: Path) -> Path:
    toys.write_model(folder / "model")
    return folder / "model"


def predict(folder: Path, images: Path, *more: object) -> list[object]:
    return ["predict", "-i", images, "-o", folder / "out", "-m", folder / "model", *more]


def test_sound_input_passes(tmp_path, capsys):
    assert main(["check", str(table(tmp_path / "t", {}, {}))]) == 0
    scored(tmp_path)
    assert main([str(word) for word in evaluate(tmp_path)]) == 0
    model(tmp_path)
    assert main([str(word) for word in predict(tmp_path, ct(tmp_path / "a_0000.nii.gz"))]) == 0
    assert main([str(word) for word in config(tmp_path, "run: mine\n")]) == 0


# ---------------------------------------------------------------------------------------------
# Volumes


@fault("volume-missing")
def _(folder):
    (path := table(folder)).with_name("c0_0000.nii.gz").unlink()
    return ["check", path]


@fault("volume-empty")
def _(folder):
    (folder / "a_0000.nii.gz").touch()
    return ["check", folder]


@fault("volume-is-a-folder")
def _(folder):
    path = table(folder, {"image": "."})
    return ["check", path]


@fault("gzip-truncated")
def _(folder):
    path = ct(folder / "a_0000.nii.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    return ["check", folder]


@fault("gzip-checksum")
def _(folder):
    path = ct(folder / "a_0000.nii.gz")
    path.write_bytes(path.read_bytes()[:-8] + bytes(4) + path.read_bytes()[-4:])
    return ["check", folder]


@fault("gzip-damaged")
def _(folder):
    path = ct(folder / "a_0000.nii.gz")
    path.write_bytes(path.read_bytes()[:400] + b"\xff" * 100 + path.read_bytes()[500:])
    return ["check", folder]


@fault("gzip-tail")
def _(folder):
    path = ct(folder / "a_0000.nii.gz")
    path.write_bytes(path.read_bytes() + b"<html>404 Not Found</html>")
    return ["check", folder]


@fault("gzip-unnamed")
def _(folder):
    ct(folder / "a_0000.nii.gz").rename(folder / "a_0000.nii")
    return ["check", folder]


@fault("gzip-only-named")
def _(folder):
    ct(folder / "a_0000.nii").rename(folder / "a_0000.nii.gz")
    return ["check", folder]


@fault("header-truncated")
def _(folder):
    (folder / "a_0000.nii").write_bytes(ct(folder / "b.nii").read_bytes()[:300])
    (folder / "b.nii").unlink()
    return ["check", folder]


@fault("not-nifti")
def _(folder):
    (folder / "a_0000.nii.gz").write_bytes(gzip.compress(b"DICM" * 200))
    return ["check", folder]


@fault("nifti-2")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (0, "i", 540))
    return ["check", folder]


@fault("half-a-pair")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (MAGIC, "4s", b"ni1\0"))
    return ["check", folder]


@fault("colour")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (DATATYPE, "h", 128))
    return ["check", folder]


@fault("complex-numbers")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (DATATYPE, "h", 32))
    return ["check", folder]


@fault("number-format-unknown")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (DATATYPE, "h", 999))
    return ["check", folder]


@fault("four-dimensions")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (DIM, "h", 4), (DIM + 8, "h", 2))
    return ["check", folder]


@fault("size-zero")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (DIM + 6, "h", 0))
    return ["check", folder]


@fault("voxels-missing")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (DIM + 6, "h", 13))
    return ["check", folder]


@fault("voxels-in-the-header")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (OFFSET, "f", 100.0))
    return ["check", folder]


@fault("spacing-zero")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (PIXDIM + 8, "f", 0.0))
    return ["check", folder]


@fault("spacing-twice")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (PIXDIM + 8, "f", 5.0))
    return ["check", folder]


@fault("spacing-in-metres")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (UNITS, "B", 1))
    return ["check", folder]


@fault("spacing-in-micrometres")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (UNITS, "B", 3))
    return ["check", folder]


@fault("spacing-tenfold")
def _(folder):
    write_scaled(folder / "a_0000.nii.gz", 10.0)
    return ["check", folder]


@fault("spacing-a-tenth")
def _(folder):
    write_scaled(folder / "a_0000.nii.gz", 0.02)
    return ["check", folder]


@fault("positions-mirrored")
def _(folder):
    edits = (SFORM_CODE, "h", 2), (SROW, "4f", -9.0, 0, 0, 351)
    patched(ct(folder / "a_0000.nii.gz"), *edits)
    return ["check", folder]


@fault("positions-shifted")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (SROW + 44, "f", 25.0))
    return ["check", folder]


@fault("positions-one-unusable")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (QUATERN, "3f", 2.0, 0, 0))
    return ["check", folder]


@fault("orientation-code-unknown")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (SFORM_CODE, "h", 77))
    return ["check", folder]


@fault("orientation-missing")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (QFORM_CODE, "hh", 0, 0))
    return ["check", folder]


@fault("orientation-nan")
def _(folder):
    edits = (QFORM_CODE, "hh", 0, 1), (SROW, "f", float("nan"))
    patched(ct(folder / "a_0000.nii.gz"), *edits)
    return ["check", folder]


@fault("orientation-singular")
def _(folder):
    edits = (QFORM_CODE, "hh", 0, 1), (SROW + 16, "4f", 9.0, 0, 0, 0)
    patched(ct(folder / "a_0000.nii.gz"), *edits)
    return ["check", folder]


@fault("orientation-no-rotation")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (SFORM_CODE, "h", 0), (QUATERN, "3f", 2.0, 0, 0))
    return ["check", folder]


@fault("axes-sheared")
def _(folder):
    edits = (QFORM_CODE, "hh", 0, 1), (SROW, "4f", 8.9, 1.3, 0, 0)
    patched(ct(folder / "a_0000.nii.gz"), *edits)
    return ["check", folder]


@fault("scaling-infinite")
def _(folder):
    patched(ct(folder / "a_0000.nii.gz"), (SLOPE, "f", float("inf")))
    return ["check", folder]


@fault("voxels-nan")
def _(folder):
    hu = anatomy()[0].astype(np.float32)
    hu[0, 0, :7] = np.nan
    write_image(folder / "a_0000.nii.gz", hu, new_volume(hu, SPACING))
    return ["check", folder]


@fault("voxels-beyond-hu")
def _(folder):
    hu = anatomy()[0].astype(np.float32)
    hu[0, 0, 0] = 4e9
    write_image(folder / "a_0000.nii.gz", hu, new_volume(hu, SPACING))
    return ["check", folder]


@fault("hu-with-offset")
def _(folder):
    hu = anatomy()[0] + np.int16(1024)
    write_image(folder / "a_0000.nii.gz", hu, new_volume(hu, SPACING))
    return ["check", folder]


@fault("hu-scaled-to-1")
def _(folder):
    scaled = ((anatomy()[0] + 1020) / 1200).astype(np.float32)
    write_image(folder / "a_0000.nii.gz", scaled, new_volume(scaled, SPACING))
    return ["check", folder]


@fault("hu-as-a-picture")
def _(folder):
    picture = ((np.clip(anatomy()[0], -60, 65) + 60) / 125 * 255).astype(np.int16)
    write_image(folder / "a_0000.nii.gz", picture, new_volume(picture, SPACING))
    return ["check", folder]


@fault("hu-doubled")
def _(folder):
    hu = anatomy()[0] * np.int16(2)
    write_image(folder / "a_0000.nii.gz", hu, new_volume(hu, SPACING))
    return ["check", folder]


@fault("image-is-a-label")
def _(folder):
    mask(folder / "a_0000.nii.gz")
    return ["check", folder]


@fault("image-empty")
def _(folder):
    hu = np.full(SHAPE, -1024, np.int16)
    write_image(folder / "a_0000.nii.gz", hu, new_volume(hu, SPACING))
    return ["check", folder]


@fault("image-twice")
def _(folder):
    for name in "ab":
        ct(folder / f"{name}_0000.nii.gz")
    return ["check", folder]


@fault("two-files-of-a-name")
def _(folder):
    for end in (".nii", ".nii.gz"):
        ct(folder / f"a_0000{end}")
    return ["check", folder]


# ---------------------------------------------------------------------------------------------
# Labels


@fault("label-no-class")
def _(folder):
    ct(folder / "a_0000.nii.gz")
    mask(folder / "a.nii.gz", anatomy()[1] * 20)
    return ["check", folder]


@fault("label-is-a-ct")
def _(folder):
    ct(folder / "labelsTr/a.nii.gz")
    return ["check", folder / "labelsTr"]


@fault("label-scaled")
def _(folder):
    scaled = anatomy()[1] * np.float32(0.99999)
    write_image(folder / "labelsTr/a.nii.gz", scaled, new_volume(scaled, SPACING))
    return ["check", folder / "labelsTr"]


@fault("label-elsewhere")
def _(folder):
    ct(folder / "a_0000.nii.gz")
    mask(folder / "a.nii.gz", affine=shifted(20.0))
    return ["check", folder]


@fault("label-without-image")
def _(folder):
    ct(folder / "imagesTr/a_0000.nii.gz")
    for name in "ab":
        mask(folder / f"labelsTr/{name}.nii.gz")
    return ["check", folder]


# ---------------------------------------------------------------------------------------------
# Tables


@fault("table-missing")
def _(folder):
    return ["check", folder / "cases.tsv"]


@fault("table-no-cases")
def _(folder):
    (folder / "cases.tsv").write_text("case\timage\tlabel\tsplit\tsource\n")
    return ["check", folder / "cases.tsv"]


@fault("table-no-utf-8")
def _(folder):
    path = table(folder, {"source": "Köln"})
    path.write_bytes(path.read_text("utf-8").encode("latin-1"))
    return ["check", path]


@fault("table-column-missing")
def _(folder):
    return ["check", table(folder, header="case image label source")]


@fault("table-column-unknown")
def _(folder):
    return ["check", table(folder, header="case image label split source patience")]


@fault("table-line-short")
def _(folder):
    path = table(folder)
    path.write_text(path.read_text().replace("\thospital", ""))
    return ["check", path]


@fault("table-column-twice")
def _(folder):
    path = table(folder, {}, {})
    head, *lines = path.read_text().splitlines()
    lines = [head + "\tlabel", *(line + "\tc0.nii.gz" for line in lines)]
    path.write_text("\n".join(lines) + "\n")
    return ["check", path]


@fault("table-column-nameless")
def _(folder):
    path = table(folder)
    path.write_text(path.read_text().replace("\n", "\t\n"))
    return ["check", path]


@fault("table-quote-open")
def _(folder):
    return ["check", table(folder, {"patient": '"P1'}, {}, {"patient": '"P2'})]


@fault("table-other-separators")
def _(folder):
    path = table(folder)
    path.write_text(path.read_text().replace("\t", ","))
    return ["check", path]


@fault("table-spreadsheet")
def _(folder):
    with zipfile.ZipFile(folder / "cases.tsv", "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    return ["check", folder / "cases.tsv"]


@fault("table-zero-byte")
def _(folder):
    return ["check", table(folder, {"patient": "\0"})]


@fault("table-empty")
def _(folder):
    (folder / "cases.tsv").touch()
    return ["check", folder / "cases.tsv"]


@fault("table-name-twice")
def _(folder):
    return ["check", table(folder, {"case": "x"}, {"case": "x"})]


@fault("table-name-bad")
def _(folder):
    return ["check", table(folder, {"case": "a b"})]


@fault("table-name-ending")
def _(folder):
    return ["check", table(folder, {"case": "a_label"})]


@fault("table-split-unknown")
def _(folder):
    return ["check", table(folder, {"split": "val"})]


@fault("table-no-image")
def _(folder):
    return ["check", table(folder, {"image": ""})]


@fault("table-no-source")
def _(folder):
    return ["check", table(folder, {"source": ""})]


@fault("table-validation-unlabelled")
def _(folder):
    return ["check", table(folder, {"split": "validation", "label": ""})]


@fault("table-class-unknown")
def _(folder):
    return ["check", table(folder, {"annotated": "liver,splen"})]


@fault("table-scope-without-tumour")
def _(folder):
    return ["check", table(folder, {"annotated": "liver", "tumour_scope": "liver"})]


@fault("patient-in-two-splits")
def _(folder):
    rows = [{"patient": "P", "split": "train"}, {"patient": "P", "split": "test"}]
    return ["check", table(folder, *rows)]


# ---------------------------------------------------------------------------------------------
# Configs and class tables


@fault("config-missing")
def _(folder):
    return ["describe", "--recipe", "student", "--config", folder / "mine.yaml"]


@fault("config-no-yaml")
def _(folder):
    return config(folder, "student: [1, 2\n")


@fault("config-no-keys")
def _(folder):
    return config(folder, "- student\n")


@fault("config-key-twice")
def _(folder):
    return config(folder, "student:\n  seeds: [0]\n  batch_size: 2\n  seeds: [1]\n")


@fault("config-tabs")
def _(folder):
    return config(folder, "student:\n\tseeds: [0]\n")


@fault("config-key-unknown")
def _(folder):
    return config(folder, "student:\n  sead: 1\n")


@fault("config-wrong-type")
def _(folder):
    return config(folder, "student:\n  batch_size: two\n")


@fault("config-out-of-range")
def _(folder):
    return config(folder, "prediction:\n  tile_step: 1.5\n")


@fault("config-exponent")
def _(folder):
    return config(folder, nested("student.training.optimizer.learning_rate", "1e-3"))


@fault("config-infinite")
def _(folder):
    return config(folder, nested("student.spacing_mm", "[.inf, 1.2, 1.2]"))


@fault("config-spacing")
def _(folder):
    return config(folder, nested("student.spacing_mm", "[0.0012, 0.0012, 0.0012]"))


@fault("config-range-downwards")
def _(folder):
    return config(folder, nested("gate.tumour.hu", "[250.0, -50.0]"))


@fault("config-factor-zero")
def _(folder):
    return config(folder, nested("student.training.augmentation.gamma", "[0.0, 1.0]"))


@fault("config-kernel-even")
def _(folder):
    kernels = "[[1, 2, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]"
    return config(folder, nested("student.network.kernel_sizes", kernels))


@fault("config-stages-differ")
def _(folder):
    return config(folder, nested("student.network.features", "[8, 16, 32, 64]"))


@fault("config-patch-small")
def _(folder):
    return config(folder, nested("student.patch_size", "[4, 128, 192]"))


@fault("config-value-missing")
def _(folder):
    return config(folder, nested("student.batch_size", ""))


@fault("config-run-name")
def _(folder):
    return config(folder, "run: ..\n")


@fault("config-braces")
def _(folder):
    return config(folder, "cases: data/{all}/cases.tsv\n")


@fault("config-choice-unknown")
def _(folder):
    return config(folder, "fusion:\n  order: referense\n")


@fault("config-seed-twice")
def _(folder):
    return config(folder, "student:\n  seeds: [1, 1]\n")


@fault("config-mirrored-sides")
def _(folder):
    return config(
        folder, "student:\n  training:\n    augmentation:\n      mirror_axes: [0, 1, 2]\n"
    )


def class_table(folder: Path, change: Callable[[dict], object]) -> list[object]:
    classes = yaml.safe_load((config_folder() / "labels.yaml").read_text("utf-8"))
    change(classes)
    path = folder / "labels.yaml"
    path.write_text(yaml.safe_dump(classes))
    return ["check", ct(folder / "a_0000.nii.gz"), "--labels", path]


@fault("classes-missing")
def _(folder):
    return ["check", ct(folder / "a_0000.nii.gz"), "--labels", folder / "labels.yaml"]


@fault("classes-with-a-gap")
def _(folder):
    return class_table(folder, lambda table: table["labels"].pop(3))


@fault("classes-without-tumour")
def _(folder):
    return class_table(folder, lambda table: table.update(tumour="lesion"))


@fault("class-name-reserved")
def _(folder):
    return class_table(folder, lambda table: table["labels"][0].update(name="background"))


@fault("classes-key-twice")
def _(folder):
    command = class_table(folder, lambda table: None)
    path = folder / "labels.yaml"
    path.write_text("ignore: 15\n" + path.read_text())
    return command


@fault("class-tolerance-infinite")
def _(folder):
    return class_table(folder, lambda table: table["labels"][0].update(tolerance_mm=float("inf")))


@fault("class-colour-unknown")
def _(folder):
    return class_table(folder, lambda table: table["labels"][0].update(colour="red"))


@fault("class-volume-upside-down")
def _(folder):
    return class_table(folder, lambda table: table["labels"][0].update(volume_ml=[6000, 400]))


# ---------------------------------------------------------------------------------------------
# Folders and names


@fault("left-out-format")
def _(folder):
    ct(folder / "scans/a_0000.nii.gz")
    for name in ("b_0000.mha", "c_0000.mha"):
        (folder / "scans" / name).touch()
    (folder / "scans/._a_0000.nii.gz").touch()
    return ["check", folder / "scans"]


@fault("left-out-capitals")
def _(folder):
    ct(folder / "scans/a_0000.nii.gz").rename(folder / "scans/b_0000.NII.GZ")
    return ["check", folder / "scans"]


@fault("left-out-channel")
def _(folder):
    for number in range(2):
        ct(folder / f"imagesTr/a_000{number}.nii.gz", number)
    return ["check", folder]


@fault("left-out-of-scores")
def _(folder):
    """Missed in both folders, the case would be in no mean."""
    for place in scored(folder):
        (place / "more").mkdir()
        (place / "b.nii.gz").rename(place / "more/b.nii.gz")
    return evaluate(folder)


@fault("left-out-of-fusion")
def _(folder):
    mask(folder / "o/a.nii.gz")
    (folder / "o/b.seg.nrrd").touch()
    return ["fuse", "--organs", folder / "o", "-o", folder / "fused"]


@fault("left-out-all")
def _(folder):
    model(folder)
    (folder / "scans").mkdir()
    (folder / "scans/a.dcm").touch()
    return predict(folder, folder / "scans")


@fault("volume-twice")
def _(folder):
    for end in (".nii", ".nii.gz"):
        ct(folder / f"imagesTr/a_0000{end}")
    return ["init", folder, "-o", folder / "new.tsv"]


@fault("case-name-long")
def _(folder):
    return ["check", table(folder, {"case": "L" * 151})]


@fault("case-name-line-break")
def _(folder):
    return ["check", table(folder, {"case": '"a\nb"'})]


@fault("file-name-long")
def _(folder):
    model(folder)
    return predict(folder, ct(folder / ("L" * 151 + "_0000.nii.gz")))


@fault("label-of-two-images")
def _(folder):
    return ["check", table(folder, {}, {"label": "c0.nii.gz"})]


@fault("organs-of-two-images")
def _(folder):
    """Two files, one content."""
    columns = "case image label split source organs"
    organs = [{"organs": f"o{number}.nii.gz"} for number in range(2)]
    for row in organs:
        mask(folder / row["organs"], anatomy()[1] * (anatomy()[1] < 14))
    return ["check", table(folder, *organs, header=columns)]


# ---------------------------------------------------------------------------------------------
# Commands


@fault("argument-empty", 2)
def _(folder):
    ct(folder / "a_0000.nii.gz")
    return ["check", ""]


@fault("option-no-class", 2)
def _(folder):
    scored(folder)
    return evaluate(folder, "--annotated", "livr")


@fault("option-no-value", 2)
def _(folder):
    return ["fuse", "--tumour", mask(folder / "t.nii.gz"), "-o", "a", "--tumour-value", 300]


@fault("output-exists")
def _(folder):
    scored(folder)
    (folder / "scores").mkdir()
    return evaluate(folder)


@fault("into-a-model")
def _(folder):
    scored(folder)
    for name in ("plans.json", "weights.safetensors"):
        (folder / "model" / name).parent.mkdir(exist_ok=True)
        (folder / "model" / name).touch()
    return [*evaluate(folder)[:-1], "model/scores"]


@fault("into-a-run")
def _(folder):
    mask(folder / "o.nii.gz")
    for name in (".store", "logs"):
        (folder / "results/mine" / name).mkdir(parents=True)
    return ["fuse", "--organs", "o.nii.gz", "-o", "results/mine/labels"]


@fault("init-nothing-there")
def _(folder):
    ct(folder / "scans/a_0000.nii.gz")
    return ["init", folder, "-o", folder / "new.tsv"]


@fault("prediction-missing")
def _(folder):
    scored(folder)[0].joinpath("b.nii.gz").unlink()
    return evaluate(folder)


@fault("prediction-extra")
def _(folder):
    scored(folder)[1].joinpath("b.nii.gz").unlink()
    return evaluate(folder)


@fault("prediction-elsewhere")
def _(folder):
    mask(scored(folder)[0] / "b.nii.gz", affine=shifted(4.0))
    return evaluate(folder)


@fault("prediction-nan")
def _(folder):
    prediction = np.where(anatomy()[1] > 13, np.nan, 0).astype(np.float32)
    scored(folder)
    write_image(folder / "p/b.nii.gz", prediction, new_volume(prediction, SPACING))
    return evaluate(folder)


@fault("prediction-no-class")
def _(folder):
    mask(scored(folder)[0] / "b.nii.gz", anatomy()[1] * 3)
    return evaluate(folder)


@fault("prediction-other-classes")
def _(folder):
    path = scored(folder)[0] / "report.json"
    path.write_text(json.dumps({"classes": {"1": "liver", "2": "tumour"}}))
    return evaluate(folder)


@fault("nothing-annotated", 2)
def _(folder):
    scored(folder)
    return evaluate(folder, "--annotated", "none")


@fault("compare-no-scores")
def _(folder):
    for name in "ab":
        (folder / name).mkdir()
    return ["compare", folder / "a", folder / "b"]


@fault("compare-other-table")
def _(folder):
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "cases.csv").write_text("case,dice\nx,0.9\n")
    return ["compare", folder / "a", folder / "b"]


def fuse(folder: Path, *inputs: object) -> list[object]:
    return ["fuse", *inputs, "--annotated", "liver", "-o", folder / "fused.nii.gz"]


@fault("fuse-nothing", 2)
def _(folder):
    return ["fuse", "-o", folder / "fused.nii.gz"]


@fault("fuse-elsewhere")
def _(folder):
    partial = mask(folder / "a.nii.gz")
    organs = mask(folder / "o.nii.gz", affine=shifted(9.0))
    return fuse(folder, "--partial", partial, "--organs", organs)


@fault("fuse-more-than-tumour")
def _(folder):
    partial, tumour = mask(folder / "a.nii.gz"), mask(folder / "t.nii.gz")
    return fuse(folder, "--partial", partial, "--tumour", tumour)


@fault("model-missing")
def _(folder):
    return predict(folder, ct(folder / "a_0000.nii.gz"))


@fault("model-damaged")
def _(folder):
    weights = next(path for path in model(folder).iterdir() if path.suffix == ".safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 255
    weights.write_bytes(content)
    return predict(folder, ct(folder / "a_0000.nii.gz"))


@fault("images-missing")
def _(folder):
    model(folder)
    return predict(folder, folder / "scans")


@fault("images-none")
def _(folder):
    model(folder)
    (folder / "scans").mkdir()
    return predict(folder, folder / "scans")


@fault("predict-into-the-images")
def _(folder):
    model(folder)
    path = ct(folder / "scans/a_0000.nii.gz")
    return ["predict", "-i", path, "-o", folder / "scans", "-m", folder / "model"]


@fault("predict-into-a-file", 2)
def _(folder):
    model(folder)
    path = ct(folder / "a_0000.nii.gz")
    return ["predict", "-i", path, "-o", folder / "label.nii.gz", "-m", folder / "model"]


@fault("predict-over-anothers")
def _(folder):
    model(folder)
    mask(folder / "out/a.nii.gz")
    return predict(folder, ct(folder / "a_0000.nii.gz"))


@fault("predict-two-of-a-case")
def _(folder):
    model(folder)
    for name in ("a_0000.nii.gz", "a.nii.gz"):
        ct(folder / "scans" / name)
    return predict(folder, folder / "scans")


@fault("convert-no-model")
def _(folder):
    (folder / "m").mkdir()
    return ["convert", folder / "m", "-o", folder / "new"]


@fault("show-elsewhere")
def _(folder):
    image = ct(folder / "a_0000.nii.gz")
    label = mask(folder / "a.nii.gz", affine=shifted(9.0))
    return ["show", "-i", image, "--label", label, "-o", folder / "a.png"]


@fault("show-no-run")
def _(folder):
    return ["show", "c0", "--run", folder / "results/mine"]


# ---------------------------------------------------------------------------------------------
# Names, files and folders of others


@fault("file-name-formula")
def _(folder):
    model(folder)
    return predict(folder, ct(folder / "scans/=1+1_0000.nii.gz").parent)


@fault("file-name-escape")
def _(folder):
    model(folder)
    return predict(folder, ct(folder / "scans/\x1b[2Ja_0000.nii.gz").parent)


@fault("case-name-outside")
def _(folder):
    return ["check", table(folder, {"case": "../x"})]


@fault("patient-formula")
def _(folder):
    return ["check", table(folder, {"patient": "=HYPERLINK(A1)"})]


@fault("source-escape")
def _(folder):
    return ["check", table(folder, {"source": "\x1b[2Jhospital"})]


@fault("class-title-escape")
def _(folder):
    return class_table(folder, lambda table: table["labels"][0].update(title="\x1b[2JLiver"))


@fault("yaml-runs-code")
def _(folder):
    return config(folder, "run: !!python/object/apply:os.system ['touch trace']\n")


@fault("config-path-command")
def _(folder):
    return config(folder, "cases: $(id).tsv\n")


@fault("model-runs-code")
def _(folder):
    (folder / "m").mkdir()
    (folder / "m/plans.pkl").write_bytes(pickle.dumps(Runs(os.system, "touch trace")))
    (folder / "m/all").mkdir()
    (folder / "m/all/model_final_checkpoint.model").touch()
    (folder / "m/all/model_final_checkpoint.model.pkl").touch()
    return ["convert", folder / "m", "-o", folder / "new"]


@fault("model-class-formula")
def _(folder):
    plan = json.loads((model(folder) / "plans.json").read_text())
    plan["panorgan"]["classes"][0] = "=cmd"
    (folder / "model/plans.json").write_text(json.dumps(plan))
    return predict(folder, ct(folder / "a_0000.nii.gz"))


@fault("model-nested")
def _(folder):
    (model(folder) / "card.json").write_text("[" * 100_000)
    return predict(folder, ct(folder / "a_0000.nii.gz"))
