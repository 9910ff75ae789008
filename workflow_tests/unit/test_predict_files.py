"""Many cases: lists, classes of interest, statistics, going on, the bar, and what is read ahead."""

import csv
import json
import threading
from io import StringIO

import numpy as np
import pytest
from fault_rows import fault_rows
from test_predict import models, predictor_by_intensity  # noqa: F401
from test_preprocess import CLASSES

from panorgan.cli import main
from panorgan.cli.progress import Bar
from panorgan.inference import files
from panorgan.inference.files import predict_files
from panorgan.io.volumes import new_volume, read_image, read_label, write_image, write_label
from panorgan.problems import Problems

NAME = "3d isotropic"


@pytest.fixture
def images(tmp_path):
    """Three CTs, each of one class on another level of HU."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, case in enumerate(("a", "b", "c")):
        array = np.full((6, 10, 12), -250, np.int16)
        array[2:4, 2:8, 2:8] = (-50, 100, 250)[number]
        write_image(folder / f"{case}_0000.nii.gz", array, new_volume(array, (2.5, 2.0, 2.0)))
    return folder


@pytest.fixture
def predictor(models):  # noqa: F811
    return predictor_by_intensity(models, NAME)


def test_a_list_names_its_images_in_any_folder(images, tmp_path, predictor):
    (images / "more").mkdir()
    (images / "c_0000.nii.gz").rename(images / "more/c.nii.gz")
    listed = images / "list.txt"
    listed.write_text(f"# mine\nmore/c.nii.gz\n\n  {images}/a_0000.nii.gz  \n")
    report = predict_files(listed, tmp_path / "out", predictor)
    assert list(report["cases"]) == ["c", "a"]


@pytest.mark.fault("predict-list")
def test_every_bad_line_of_a_list_is_told(images, tmp_path, predictor):
    listed = images / "list.txt"
    listed.write_text("no.nii.gz\na_0000.nii.gz\n./a_0000.nii.gz\nb.mha\n")
    (images / "b.mha").touch()
    with pytest.raises(Problems) as caught:
        predict_files(listed, tmp_path / "out", predictor)
    said = str(caught.value).splitlines()
    assert len(said) == 3
    fault_rows()["predict-list"].check(str(caught.value).replace(f"{tmp_path}/", ""))
    assert "line 3: ./a_0000.nii.gz: its case has the name of" in said[1]
    assert "line 4: b.mha: " in said[2]
    listed.write_text("\n")
    with pytest.raises(Problems, match=r"names no image; write a path a line"):
        predict_files(listed, tmp_path / "out", predictor)
    assert not (tmp_path / "out").exists()


def test_only_classes_of_interest_are_kept(images, tmp_path, predictor):
    whole = predict_files(images, tmp_path / "all", predictor)
    report = predict_files(images, tmp_path / "some", predictor, labels=[CLASSES[1], "3"])
    for case, kept in (("a", False), ("b", True), ("c", True)):
        expected = read_label(tmp_path / f"all/{case}.nii.gz").array
        found = read_label(tmp_path / f"some/{case}.nii.gz").array
        np.testing.assert_array_equal(found, np.where(expected == 1, 0, expected))
        assert found.any() == kept
    assert report["labels"] == CLASSES[1:]
    assert list(whole["cases"]["a"]["structures"]) == CLASSES
    assert list(report["cases"]["a"]["structures"]) == CLASSES[1:]
    with pytest.raises(Problems, match="was made otherwise: labels differs; name another"):
        predict_files(images, tmp_path / "some", predictor)


@pytest.mark.fault("predict-no-class")
def test_a_class_that_the_model_has_not(images, tmp_path, predictor):
    with pytest.raises(Problems) as caught:
        predict_files(images, tmp_path / "out", predictor, labels=["heart"])
    fault_rows()["predict-no-class"].check(str(caught.value))
    assert ", ".join(CLASSES) in str(caught.value)


def test_volumes_and_mean_hu_are_reported_and_written(images, tmp_path, predictor):
    report = predict_files(images, tmp_path / "out", predictor, statistics=True)
    for number, case in enumerate("abc"):
        label = read_label(tmp_path / f"out/{case}.nii.gz").array
        hu = read_image(images / f"{case}_0000.nii.gz").array
        for value, name in enumerate(CLASSES, 1):
            found = report["cases"][case]["structures"][name]
            inside = hu[label == value]
            assert found["ml"] == pytest.approx(inside.size * 10 / 1000, abs=1e-3)
            assert found["mean_hu"] == (
                pytest.approx(inside.mean(), abs=0.1) if len(inside) else None
            )
        assert report["cases"][case]["structures"][CLASSES[number]]["ml"] > 0
    rows = list(csv.DictReader((tmp_path / "out/statistics.csv").open()))
    assert len(rows) == 9
    assert rows[0] == {
        "case": "a",
        "value": "1",
        "name": CLASSES[0],
        "ml": str(report["cases"]["a"]["structures"][CLASSES[0]]["ml"]),
        "mean_hu": str(report["cases"]["a"]["structures"][CLASSES[0]]["mean_hu"]),
    }
    assert rows[1]["mean_hu"] == ""


def test_the_report_tells_how_and_how_long(images, tmp_path, predictor):
    report = predict_files(images, tmp_path / "out", predictor)
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    way = predictor.way
    assert (report["engine"], report["version"]) == (way.engine, way.version)
    assert (report["precision"], report["export"]) == ("fp32", "nearest")
    seconds = {
        f"{phase}_s" for phase in ["read", "preprocess", "network", "export", "total", "write"]
    }
    memory = {"peak_ram_mb", "peak_gpu_mb", "gpu_area_mb_s", "challenge_area_mb_s"}
    assert seconds | memory | {"image", "grid", "file", "device"} <= report["cases"]["a"].keys()


def test_label_maps_that_nobody_listed_can_be_taken_for_done(images, tmp_path, predictor):
    out = tmp_path / "out"
    image = read_image(images / "a_0000.nii.gz")
    write_label(out / "a.nii.gz", np.ones(image.array.shape, np.uint8), image)
    before = (out / "a.nii.gz").stat()
    with pytest.raises(Problems, match=r"exists already; .* or say --resume to take it for done"):
        predict_files(images, out, predictor)
    lines = []
    report = predict_files(images, out, predictor, lines.append, resume=True)
    assert lines[0] == "a: labelled before"
    assert report["cases"]["a"]["note"] == "was there before"
    assert (out / "a.nii.gz").stat() == before
    assert report["cases"].keys() == {"a", "b", "c"}
    # Where there is nothing else to do, too; then nobody has to say it again.
    (out / "report.json").unlink()
    predict_files(images, out, predictor, resume=True)
    assert json.loads((out / "report.json").read_text())["cases"].keys() == {"a", "b", "c"}
    predict_files(images, out, predictor)


@pytest.mark.fault("predict-resume-elsewhere")
def test_a_label_map_of_something_else_is_not_taken_for_done(images, tmp_path, predictor):
    out = tmp_path / "out"
    image = read_image(images / "a_0000.nii.gz")
    write_label(out / "a.nii.gz", np.full(image.array.shape, 9, np.uint8), image)
    with pytest.raises(Problems, match="--resume: holds 9, which the model has not; remove it"):
        predict_files(images, out, predictor, resume=True)
    (out / "a.nii.gz").write_bytes((out / "a.nii.gz").read_bytes()[:-20])
    with pytest.raises(Problems, match=r"is truncated.*; remove it, or name another folder"):
        predict_files(images, out, predictor, resume=True)
    (out / "a.nii.gz").unlink()
    other = np.ones((6, 10, 11), np.uint8)
    write_label(out / "a.nii.gz", other, new_volume(other, (2.5, 2.0, 2.0)))
    with pytest.raises(Problems) as caught:
        predict_files(images, out, predictor, resume=True)
    fault_rows()["predict-resume-elsewhere"].check(str(caught.value).replace(f"{tmp_path}/", ""))


@pytest.mark.fault("scores-no-numbers")
def test_a_network_that_gives_no_numbers_ends_its_case(images, tmp_path, predictor):
    first = predictor.engines[0].of

    def broken(tile):
        return first(tile) * np.float32(np.nan if tile.max() < 0.1 else 1)

    predictor.engines[0].of = broken
    with pytest.raises(Problems) as caught:
        predict_files(images, tmp_path / "out", predictor)
    fault_rows()["scores-no-numbers"].check(str(caught.value).replace(f"{tmp_path}/", ""))
    assert (tmp_path / "out/b.nii.gz").exists()
    assert not (tmp_path / "out/a.nii.gz").exists()


@pytest.mark.parametrize(("free", "ahead"), [(1e12, True), (1000, False)])
def test_the_next_ct_is_read_while_one_is_computed(
    images, tmp_path, predictor, monkeypatch, free, ahead
):
    """Unless memory is short."""
    monkeypatch.setattr(files, "available_memory", lambda: free)
    read, second = [], threading.Event()
    original = files.read_image

    def noted(path):
        read.append(path.name)
        if len(read) == 2:
            second.set()
        return original(path)

    monkeypatch.setattr(files, "read_image", noted)
    seen = []
    predict = predictor.predict

    def watched(volume, **options):
        seen.append(second.wait(5 if ahead else 0.2))
        return predict(volume, **options)

    predictor.predict = watched
    predict_files(images, tmp_path / "out", predictor)
    assert seen[0] is ahead
    assert read == ["a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz"]


class Terminal(StringIO):
    def isatty(self):
        return True


def test_a_bar_shows_case_share_and_time_left(images, tmp_path, predictor, monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("panorgan.cli.progress.time.monotonic", lambda: next(clock))
    stream = Terminal()
    bar = Bar(stream)
    lines = []
    predict_files(images, tmp_path / "out", predictor, lines.append, show=bar.show)
    shown = stream.getvalue().split("\r")
    assert "1/3 a [########################] 16 s left" in [text.rstrip() for text in shown]
    bar.clear()
    assert stream.getvalue().endswith("\r")
    assert lines[0].startswith("a: 0.")
    assert lines[0].endswith("left)")


def test_where_nobody_looks_there_is_no_bar():
    stream = StringIO()
    bar = Bar(stream)
    bar.show("a", 1, 3, 0.5)
    bar.clear()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "'0' is no whole number from 1"),
        (["--labels", "liver,,x"], "'liver,,x': a name is empty or there twice"),
        (["--folds", "1,x"], "'x' is no fold"),
        (["--engine", "tpu"], "invalid choice: 'tpu'"),
        (["--export", "cubic"], "invalid choice: 'cubic'"),
    ],
)
def test_options_that_mean_nothing(options, said, images, tmp_path, models, capsys):  # noqa: F811
    arguments = ["predict", "-i", str(images), "-o", str(tmp_path / "o"), "-m", str(models / NAME)]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, *options])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_gpu_that_is_not_used_is_said(images, tmp_path, models, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("panorgan.cli.predict.gpus_here", lambda: ["0"])
    arguments = ["predict", "-i", str(images), "-m", str(models / NAME), "--engine", "openvino"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    said = "there is a GPU, which only engine torch uses: computing on the CPU"
    assert said in capsys.readouterr().out
    assert main([*arguments, "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert said not in capsys.readouterr().out


def test_the_command_with_all_of_them(images, tmp_path, models, capsys):  # noqa: F811
    out = tmp_path / "out"
    options = "--device cpu --engine torch --precision fp32 --export nearest --threads 1 "
    options += f"--labels {CLASSES[0]} --statistics --resume"
    arguments = ["predict", "-i", str(images), "-o", str(out), "-m", str(models / NAME)]
    assert main([*arguments, *options.split()]) == 0
    said = capsys.readouterr().out
    assert said.startswith("torch ")
    assert "on the cpu, fp32, nearest" in said
    assert f"{out}: 3 label maps and report.json" in said
    assert (out / "statistics.csv").exists()
