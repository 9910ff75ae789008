"""Names, files and folders that were made to do harm: nothing runs, nothing leaves its folder.

The lines that a user sees are asked for in test_bad_input.py; here is what must not happen.
"""

import ast
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from fault_rows import fault_rows
from test_bad_input import ct, model
from toys import Runs, write_case

from panorgan.cases.intensities import load_histograms
from panorgan.cases.phantom import phantom_cases
from panorgan.cases.table import write_cases
from panorgan.cli import main
from panorgan.config.labels import config_folder
from panorgan.config.settings import load_config
from panorgan.io.tables import why_no_text
from panorgan.nnunet.training.batches import CaseFolders
from panorgan.nnunet.training.checkpoints import load_checkpoint
from panorgan.problems import Problems, shown
from panorgan.report.drawing import draw_piece
from panorgan.run.arguments import check_arguments
from panorgan.run.inputs import Run

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src/panorgan"
COMMAND = "touch trace"
NAMES = [
    *(
        f"a;{COMMAND}",
        f"$({COMMAND})",
        f"`{COMMAND}`",
        f"a|{COMMAND}",
        f"a&{COMMAND}&",
        f"a>{COMMAND}",
    ),
    *("a b", "a'b", 'a"b', "a\\b", "%s", "{x}", "<b>", "*", "~", "!a", "#a", "con", "ünï", "漢字"),
    *("a$x$b", "a$\\frac$", "a..", "CON.x"),
]
"""Names of files that any shell, template, formula or other system takes for something else."""


# ---------------------------------------------------------------------------------------------
# Paths and shells


def test_names_of_files_are_only_names(tmp_path, monkeypatch, capsys):
    """Every command writes what is named so, into the folder that it was told, and no more."""
    monkeypatch.chdir(tmp_path)
    model(tmp_path)
    classes = ["--labels", two_classes(tmp_path)]
    for name in NAMES:
        ct(tmp_path / "scans" / f"{name}_0000.nii.gz")
    assert main(["predict", "-i", "scans", "-m", "model", "-o", "out"]) == 0
    labels = {f"{name}.nii.gz" for name in NAMES}
    assert {path.name for path in Path("out").iterdir()} == {*labels, "report.json"}
    assert main(["check", "scans", "--predictions", "out"]) == 0
    assert main(["evaluate", "-p", "out", "-r", "out", "-o", "scores", *classes]) == 0
    for name in NAMES:
        image, label = f"scans/{name}_0000.nii.gz", f"out/{name}.nii.gz"
        assert main(["show", "-i", image, "-l", label, "-o", f"{name}.png", *classes]) == 0, name
        Path(f"{name}.png").unlink()
    assert main(["fuse", "--organs", "out", "-o", "fused", *classes]) == 0
    assert {path.name for path in Path("fused").iterdir()} >= labels
    assert {path.name for path in tmp_path.iterdir()} == {
        *("scans", "model", "out", "scores", "fused", "labels.yaml")
    }
    assert "Traceback" not in capsys.readouterr().err


def two_classes(folder: Path) -> str:
    """The class table of the toy model."""
    table = yaml.safe_load((config_folder() / "labels.yaml").read_text())
    chosen = [one for one in table["labels"] if one["name"] in ("liver", "tumour")]
    for value, one in enumerate(chosen, 1):
        one["value"] = value
    (folder / "labels.yaml").write_text(yaml.safe_dump(table | {"labels": chosen, "ignore": 3}))
    return str(folder / "labels.yaml")


@pytest.mark.parametrize(
    "name",
    ["../../x", "..", ".", "", "/x", "a/b", "-rf", "$(x)", "a;rm", "a b", "a\nb", "ünï", "~"],
)
def test_no_run_has_such_a_name(name):
    with pytest.raises(Problems, match="is no name of a run"):
        load_config({"run": name})


@pytest.mark.parametrize("name", ["con", "a..b", "A-1.x_", "0"])
def test_a_run_may_be_called(name):
    assert load_config({"run": name}).run == name


def test_a_link_in_the_way_is_replaced_and_not_written_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model(tmp_path)
    ct(tmp_path / "a_0000.nii.gz")
    Path("out").mkdir()
    Path("out/a.nii.gz").symlink_to("../mine.nii.gz")
    assert main(["predict", "-i", "a_0000.nii.gz", "-m", "model", "-o", "out"]) == 0
    assert not Path("mine.nii.gz").exists()
    assert not Path("out/a.nii.gz").is_symlink()


@pytest.mark.parametrize("target", ["a_0000.nii.gz", "/dev/zero", "pipe"])
def test_a_link_to_no_file_is_a_line(target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("a_0000.nii.gz").symlink_to(target)
    assert main(["check", "a_0000.nii.gz"]) == 1
    (said, *_) = capsys.readouterr().out.splitlines()
    assert re.search("does not exist|Too many levels|no regular file", said)


@pytest.mark.fault("phantom-elsewhere")
def test_a_phantom_is_drawn_over_nothing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(folder: str) -> str:
        chosen = [case for case in phantom_cases(folder) if case.case == "liver_1"]
        write_cases("cases.tsv", chosen)
        tables = {name: str(config_folder() / f"{name}.yaml") for name in ("labels", "sources")}
        phantom = {"seed": 1, "shape": [28, 56, 80], "spacing_mm": [6.0, 4.0, 4.0]}
        with pytest.raises(SystemExit) as ended:
            _ = Run({"cases": "cases.tsv", "phantom": phantom, **tables}).phantom_files
        return str(ended.value.code)

    fault_rows()["phantom-elsewhere"].check(refused("../mine"))
    assert "names $(x)/imagesTr/liver_1_0000.nii.gz" in refused("$(x)")


@pytest.mark.fault("folder-name-command")
def test_jobs_are_not_submitted_from_a_folder_whose_name_is_a_command(tmp_path, monkeypatch):
    folder = tmp_path / f"$({COMMAND})"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        check_arguments(["--cores", "2"], submits=True)
    fault_rows()["folder-name-command"].check(str(ended.value.code))
    check_arguments(["--cores", "2"])
    (folder / "{x}").mkdir()
    monkeypatch.chdir(folder / "{x}")
    with pytest.raises(
        SystemExit, match=r"'\{' in it, which Snakemake takes for a wildcard; rename"
    ):
        check_arguments([])
    monkeypatch.chdir(tmp_path)
    for typed in ("--config run=`x`", "-s $x/Snakefile", "--directory=$x"):
        with pytest.raises(SystemExit, match="which the shell obeys that submits jobs"):
            check_arguments(typed.split(), submits=True)
    assert (
        "check_arguments(submits=True)" in (REPOSITORY / "profiles/slurm/config.yaml").read_text()
    )


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_passes_values_as_they_are(tmp_path):
    """A `python` that prints its arguments stands for an environment."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for needed in ("envs/requirements.txt", "envs/constraints.txt", "pyproject.toml"):
        (tmp_path / needed).parent.mkdir(exist_ok=True)
        (tmp_path / needed).touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/installed").touch()
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    value = f"a b;{COMMAND};`{COMMAND}`|{COMMAND} 'x"
    command = ["make", "--silent", "-C", tmp_path, "wheels", f"OUT={value}", f"THERE={value}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[1:] == ["--out", value, "--there", value]
    assert not (tmp_path / "trace").exists()


def test_no_rule_and_no_function_calls_a_shell():
    for path in [REPOSITORY / "Snakefile", *(REPOSITORY / "rules").glob("*.smk")]:
        assert not re.search(r"^\s*(shell|run):", path.read_text(), re.M), path
    python = [*SOURCE.rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    for path in python:
        names = {
            part.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for part in node.names
        }
        assert not names & {"subprocess", "pty"}, path
        assert not re.search(
            r"os\.(system|popen|exec|spawn)|\bshell=|\b(eval|exec)\(\w", path.read_text()
        )


# ---------------------------------------------------------------------------------------------
# Code in data


def test_what_loads_data_runs_no_code():
    """No reader of pickles but the one that follows admitted names only."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if path.name != "pickles.py":
            assert not re.search(
                r"pickle\.loads?\(|pickle\.Unpickler\(|joblib|read_pickle|shelve", text
            ), path
        assert "allow_pickle" not in text, path
        assert not re.search(r"yaml\.(load|unsafe|full|Loader|FullLoader|UnsafeLoader)", text), path
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, path


@pytest.mark.fault("preprocessed-runs-code")
def test_a_preprocessed_case_runs_nothing(tmp_path):
    write_case(tmp_path, "case-1", 0)
    # As an earlier version wrote them, in three files.
    shutil.copy(tmp_path / "case-1.b2nd", tmp_path / "case-1_seg.b2nd")
    path = tmp_path / "case-1.pkl"
    path.write_bytes(pickle.dumps({"class_locations": {1: np.zeros((1, 4), np.int16)}}))
    CaseFolders({"case-1": tmp_path}).load_case("case-1")
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch {tmp_path}/trace")))
    with pytest.raises(Problems) as caught:
        CaseFolders({"case-1": tmp_path}).load_case("case-1")
    fault_rows()["preprocessed-runs-code"].check(str(caught.value))
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_runs_nothing(tmp_path, capsys):
    import torch

    path = tmp_path / "checkpoint-0001.pt"
    torch.save({"x": Runs(os.system, f"touch {tmp_path}/trace")}, path)
    assert load_checkpoint(tmp_path) is None
    assert "checkpoint-0001.pt is damaged" in capsys.readouterr().out
    assert not (tmp_path / "trace").exists()


def test_a_histogram_runs_nothing(tmp_path):
    code = np.array([Runs(os.system, f"touch {tmp_path}/trace")], object)
    np.savez(tmp_path / "a.npz", **{"1_0": code})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_histograms(tmp_path / "a.npz")
    assert not (tmp_path / "trace").exists()


# ---------------------------------------------------------------------------------------------
# What people see


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "@SUM(A1)",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "\uff1d1",
        "\tx",
        "a\nb",
        "\x1b[2J",
        "\u202eb",
    ],
)
def test_no_table_tells_a_spreadsheet_or_a_terminal_what_to_do(text):
    assert why_no_text(text)


@pytest.mark.parametrize(
    "text", ["", "-", "-5", "+49", "1-2", "a=b", "Müller, A.", "<b>", "$x$", "漢字"]
)
def test_other_texts_are_as_they_are(text):
    assert not why_no_text(text)


def test_what_a_terminal_obeys_is_shown_as_an_escape():
    assert shown("a\x1b[2J\u202e\nb ü") == "a\\x1b[2J\\u202e\\nb ü"


def test_dollar_signs_are_no_formula_in_a_picture():
    hu, where = np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.bool_)
    where[3:5, 3:5, 3:5] = True
    drawn = [draw_piece(hu, (1.0, 1.0, 1.0), where, title) for title in ("$\\frac$", "$x$", "x")]
    assert len({*drawn}) == 3
    assert all(drawn)


def test_templates_escape_all_that_they_are_given():
    """Only constants are marked as safe; the script of a page sets texts and no HTML."""
    for path in (SOURCE / "templates").rglob("*.html.j2"):
        text = path.read_text()
        for before in re.findall(r"(\S+) *\| *safe", text):
            assert re.fullmatch(r"'[^'{}]*'", before) or before.endswith("\"'"), path
        assert not re.search(
            r"autoescape|tojson|innerHTML|outerHTML|insertAdjacent|document\.write", text
        )
        # Within a script nothing is escaped that HTML does not need to be.
        for script in re.findall(r"<script.*?</script>", text, re.S):
            assert "{{" not in script, path
