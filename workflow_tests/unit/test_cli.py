"""The command-line tool: exit codes, one line a problem, never a traceback."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from fault_rows import fault_rows

from panorgan.cases.table import read_cases
from panorgan.cli import main
from panorgan.config.labels import config_folder, load_labels
from panorgan.io.volumes import new_volume, read_label, write_image, write_label
from panorgan.scoring.scores import read_scores

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
    for number, name in enumerate("abc"):
        label(tmp_path / f"organs/{name}.nii.gz", *[0] * number, 3)
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


@pytest.mark.fault("left-out-by-init")
def test_init_names_what_it_leaves_out(flare, capsys):
    (flare / "imagesTr2200/x_0000.mha").touch()
    (flare / "imagesTr2200/y_0000.mha").touch()
    (flare / "imagesTr2200/._z_0000.nii.gz").touch()
    (flare / "labelsVal/LICENSE").touch()
    label(flare / "organs/nobody.nii.gz", 3)
    (flare / "organs/c.nii.gz").rename(flare / "organs/c.NII.GZ")
    table = flare / "cases.tsv"
    assert main(["init", str(flare), "-o", str(table), "--organs", str(flare / "organs")]) == 0
    said = capsys.readouterr().out
    fault_rows()["left-out-by-init"].check(said)
    assert said.splitlines()[4:] == [
        f"  {flare}/imagesTr2200/x_0000.mha: is left out: only .nii.gz and .nii are read (the "
        "first of 2 such entries of its folder); convert it, or move it elsewhere",
        f"  {flare}/organs/c.NII.GZ: is left out: its ending has capital letters; write it in "
        "small ones",
        "  organ pseudo-labels of no case: 1, first nobody",
        "  without an organ pseudo-label: 1 training cases, first c",
    ]
    assert [case.case for case in read_cases(table, LABELS)] == [*"abcde"]


def test_init_takes_either_kind_of_pseudo_label_but_not_both(flare, capsys):
    label(flare / "organs/a.nii", 1)
    command = ["init", str(flare), "-o", str(flare / "cases.tsv")]
    assert main([*command, "--organs", str(flare / "organs")]) == 1
    assert capsys.readouterr().err == (
        f"a: {flare}/organs/a.nii.gz: is of the same case as a.nii; remove one of them\n"
    )
    (flare / "organs/a.nii.gz").unlink()
    assert main([*command, "--organs", str(flare / "organs")]) == 0
    assert read_cases(flare / "cases.tsv", LABELS)[0].organs.endswith("organs/a.nii")
    assert main([*command[:-1], str(flare / "new.tsv"), "--organs", str(flare / "none")]) == 1
    assert capsys.readouterr().err == f"{flare}/none: is no folder; check the path\n"


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
    assert set(np.unique(read_label(flare / "source.nii.gz").array)) == {0, 1, 3}


def test_evaluate_writes_both_files_and_never_over_others(flare, capsys):
    command = ["evaluate", "-p", str(flare / "labelsVal"), "-r", str(flare / "labelsVal")]
    assert main([*command, "-o", str(flare / "scores")]) == 0
    summary = json.loads((flare / "scores/summary.json").read_text())
    assert summary["all"]["dsc"] == 1.0
    assert main([*command, "-o", str(flare / "scores")]) == 1
    assert "exists already" in capsys.readouterr().err


class TestOwnClasses:
    """A table whose bladder has the value of the shipped table's tumour."""

    @pytest.fixture
    def table(self, tmp_path):
        table = yaml.safe_load((config_folder() / "labels.yaml").read_text())
        tumour = table["labels"][-1]
        bladder = tumour | {"name": "bladder", "title": "Bladder", "colour": "#123456"}
        table["labels"][-1:] = [bladder, tumour | {"value": 15}]
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(table | {"ignore": 16}))
        return str(tmp_path / "mine.yaml")

    @pytest.fixture
    def predicted(self, tmp_path, table):
        """Label maps of a bladder, as `panorgan predict` leaves them, and their references."""
        label(tmp_path / "predicted/a.nii.gz", 1, 14)
        label(tmp_path / "references/a.nii.gz", 1, 14)
        classes = {str(one.value): one.name for one in load_labels(table).labels}
        (tmp_path / "predicted/report.json").write_text(json.dumps({"classes": classes}))
        return ["-p", str(tmp_path / "predicted"), "-r", str(tmp_path / "references")]

    def test_evaluate(self, predicted, table, tmp_path, capsys):
        out = tmp_path / "scores"
        assert main(["evaluate", *predicted, "-o", str(out)]) == 1
        said = capsys.readouterr().err
        assert said == (
            f"{tmp_path}/predicted/report.json: says that 14 is bladder, which is tumour in the "
            "class table; name the model's table with --labels, or its classes with panorgan "
            "convert --classes\n"
        )
        assert not out.exists()
        assert main(["evaluate", *predicted, "-o", str(out), "--labels", table]) == 0
        assert "Bladder" in capsys.readouterr().out
        rows = read_scores(out / "cases.csv").set_index("name").T
        assert (rows["bladder"]["value"], rows["bladder"]["status"]) == (14, "scored")
        assert rows["tumour"]["status"] == "both_empty"

    def test_compare_reads_the_table_of_the_scores(self, predicted, table, tmp_path, capsys):
        out = str(tmp_path / "scores")
        assert main(["evaluate", *predicted, "-o", out, "--labels", table]) == 0
        capsys.readouterr()
        assert main(["compare", out, out]) == 0
        assert "Bladder" in capsys.readouterr().out

    def test_fuse(self, predicted, table, tmp_path, capsys):
        command = ["fuse", "--organs", predicted[1], "-o", str(tmp_path / "fused")]
        assert main(command) == 1
        assert "says that 14 is bladder" in capsys.readouterr().err
        assert main([*command, "--labels", table]) == 0
        assert set(np.unique(read_label(tmp_path / "fused/a.nii.gz").array)) == {0, 1, 14}

    def test_check(self, table, tmp_path):
        label(tmp_path / "label.nii.gz", 15)
        assert main(["check", str(tmp_path / "label.nii.gz")]) == 1
        assert main(["check", str(tmp_path / "label.nii.gz"), "--labels", table]) == 0

    def test_show(self, predicted, table, tmp_path, capsys):
        image(tmp_path / "ct.nii.gz")
        files = ["-i", str(tmp_path / "ct.nii.gz"), "-l", f"{predicted[1]}/a.nii.gz"]
        command = ["show", *files, "-o", str(tmp_path / "ct.png")]
        assert main(command) == 1
        assert "says that 14 is bladder" in capsys.readouterr().err
        assert main([*command, "--labels", table, "--class", "bladder"]) == 0
        assert "Bladder" in capsys.readouterr().out

    def test_a_table_that_is_not_there(self, tmp_path, capsys):
        assert main(["check", str(tmp_path), "--labels", str(tmp_path / "none.yaml")]) == 1
        assert "none.yaml: No such file or directory; check the path" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["check"], ["evaluate", "-p", "x"]])
def test_wrong_usage_is_2(arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("check @", "argument PATH: is empty; the current folder is ."),
        ("init @", "argument folder: is empty; the current folder is ."),
        ("init . --organs @", "argument --organs: is empty; the current folder is ."),
        ("predict -i @ -o x -m m", "argument -i/--images: is empty; the current folder is ."),
        ("check a --labels @", "argument --labels: is empty; the current folder is ."),
        ("describe @", "argument MODEL: is empty; the current folder is ."),
        ("evaluate -p p -r r -o o --annotated @", "argument --annotated: is empty"),
        ("show @ --run r", "argument CASE: is empty"),
        ("show a --run r --class @", "argument --class: is empty"),
        ("convert m -o o --fold 1a", "argument --fold: '1a' is no fold; write all, 0, 1, …"),
        ("predict -i a -o b -m c --precision fp8", "argument --precision: invalid choice"),
    ],
)
def test_values_that_argparse_refuses(tmp_path, monkeypatch, capsys, command, said):
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "imagesTr/a_0000.nii.gz")  # what an empty path would find
    with pytest.raises(SystemExit) as error:
        main(["" if word == "@" else word for word in command.split()])
    assert error.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "evaluate -p labelsVal -r labelsVal -o o --annotated livr",
            "--annotated: 'livr' is no class; did you mean 'liver'?; mend the list",
        ),
        (
            "evaluate -p labelsVal -r labelsVal -o o --annotated none",
            "--annotated names no class: nothing to score; name some",
        ),
        (
            "fuse --tumour organs -o o --tumour-value 300",
            "--tumour-value is 300; give a number from 1 to 255, or one class's name",
        ),
        (
            "fuse --tumour organs -o o --tumour-value liver,1",
            "--tumour-value is liver,1; give a number from 1 to 255, or one class's name",
        ),
        ("fuse --organs organs -o o --annotated liver", "--annotated without --partial; give both"),
        ("fuse --partial labelsVal -o o", "--partial without --annotated: no class of it would be"),
        (
            "show -i imagesVal/d_0000.nii.gz -o a.png --class livr",
            "--class: 'livr' is no class; did you mean 'liver'?",
        ),
        (
            "show -i imagesVal/d_0000.nii.gz -o a.jpg",
            "a.jpg: is no name of a PNG, nor a folder that exists; name a new .png file with -o",
        ),
        ("predict -i imagesVal -o a.nii.gz -m m", "a.nii.gz: is the name of a file; name a folder"),
    ],
)
def test_values_that_a_command_refuses(flare, monkeypatch, capsys, command, said):
    monkeypatch.chdir(flare)
    before = sorted(flare.rglob("*"))
    assert main(command.split()) == 2
    assert capsys.readouterr().err.startswith(said)
    assert sorted(flare.rglob("*")) == before


@pytest.mark.parametrize("command", ["--help", "check ."])
def test_a_closed_pipe_ends_a_command_in_silence(flare, command):
    """As ``| head`` closes it, before the first line or after it."""
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from panorgan.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=flare,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 128 + signal.SIGPIPE


def test_a_surprise_is_a_line_unless_asked_for(monkeypatch, capsys):
    def explode(*_):
        raise RuntimeError("surprise")

    monkeypatch.setattr("panorgan.cases.checks.check_paths", explode)
    assert main(["check", "x"]) == 1
    assert "unexpected RuntimeError: surprise" in capsys.readouterr().err
    monkeypatch.setenv("PANORGAN_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        main(["check", "x"])
