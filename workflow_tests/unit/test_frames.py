"""Typed tables: what they read and write, and who does without them."""

import subprocess
import sys

import pytest

from panorgan.io.frames import records
from panorgan.problems import Problems
from panorgan.scoring.frames import COMPARED_CASES, LESIONS

ROW = {"case": "a", "side": "reference", "lesion": 1, "ml": 0.1, "diameter_mm": 2.5, "overlap": 1.0}
ROW |= {"hit": True, "centre_mm": "1 2 3", "centre_zyx": "1 2 3"}


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = [ROW | {"case": "NA"}, ROW | {"case": "007", "overlap": None, "hit": False}]
    LESIONS.write(tmp_path / "lesions.csv", LESIONS.frame(rows))
    lines = (tmp_path / "lesions.csv").read_text().splitlines()
    assert lines[1] == "NA,reference,1,0.1,2.5,1.0,yes,1 2 3,1 2 3"
    assert lines[2] == "007,reference,1,0.1,2.5,,no,1 2 3,1 2 3"
    assert records(LESIONS.read(tmp_path / "lesions.csv")) == rows


def test_some_tables_are_read_as_one_and_none_is_empty(tmp_path):
    paths = [tmp_path / f"{case}.lesions.tsv" for case in "ab"]
    for path in paths:
        LESIONS.write(path, LESIONS.frame([ROW | {"case": path.name[0]}]))
    assert [*LESIONS.read(*paths)["case"]] == ["a", "b"]
    assert LESIONS.read().dtypes.equals(LESIONS.read(*paths).dtypes)


@pytest.mark.parametrize(
    "changes",
    [
        *({"hit": "maybe"}, {"lesion": "one"}, {"lesion": ""}, {"side": "left"}),
        *({"ml": "inf"}, {"ml": "nan"}, {"ml": "1;5"}),
    ],
)
def test_other_values_are_refused(tmp_path, changes):
    row = {**ROW, "hit": "yes", **changes}
    text = "\n".join(",".join(map(str, line)) for line in (row, row.values()))
    (tmp_path / "lesions.csv").write_text(text + "\n")
    with pytest.raises(Problems, match="is no table of lesions with the columns case, side"):
        LESIONS.read(tmp_path / "lesions.csv")
    with pytest.raises(Problems, match="No such file"):
        COMPARED_CASES.read(tmp_path / "cases.tsv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace(",ml,", ",ml,ml,"), "has the column `ml` twice; remove one"),
        (
            lambda text: text.removesuffix(",1 2 3,1 2 3\n"),
            "line 2 has not the 9 fields of the header",
        ),
        (
            lambda text: text.replace("a,", '"a,') + text[-30:],
            "line 2 opens a quote that is not closed",
        ),
        (lambda text: text.replace(",", ";"), "has semicolons between its columns"),
    ],
)
def test_tables_that_would_be_read_otherwise_than_they_were_written(tmp_path, change, said):
    LESIONS.write(tmp_path / "lesions.csv", LESIONS.frame([ROW]))
    path = tmp_path / "lesions.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(Problems, match=said):
        LESIONS.read(path)


def test_what_plans_predicts_or_fuses_loads_no_pandas():
    modules = "run.inputs, cli, report.preflight, fusing.fusion, stages.fusion, stages.judging"
    imports = "; ".join(f"import panorgan.{name}" for name in modules.split(", "))
    code = f"import sys; {imports}; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
