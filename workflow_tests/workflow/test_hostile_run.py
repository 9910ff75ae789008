"""A run in a folder, of a config and of data whose names a shell would obey."""

from pathlib import Path

import pytest
from running import tiny_project

from panorgan.cases.phantom import phantom_cases, write_case
from panorgan.cases.table import write_cases
from panorgan.io.tables import read_table

pytestmark = pytest.mark.workflow

OBEYED = "a;touch trace;$(touch trace)`touch trace` -rf 'q\"&|>üñ*?[x]~#!\\\n%s{x}<logs>"
ADMITTED = "a;touch trace; -rf 'q&|üñ*?[x]~#!\\\n%s"
"""In the paths of a config; what others in it would do says `config.reading.EXPANDED`."""


def test_no_name_is_more_than_a_name(tmp_path: Path):
    place = tmp_path / OBEYED.replace("{x}", "")  # a line says that Snakemake takes no braces here
    place.mkdir()
    project = tiny_project(place / "checkout", cases=())
    data = project.folder / "data" / OBEYED
    chosen = ("liver_1", "unlabelled_1", "validation_1")
    cases = [case for case in phantom_cases(data) if case.case in chosen]
    for case in cases:
        write_case(case, **project.config["phantom"])
    write_cases(project.folder / f"config/{ADMITTED}.tsv", cases)
    for name in ("labels", "sources"):
        (project.folder / f"config/{name}.yaml").rename(project.folder / f"config/{ADMITTED}{name}")
    tables = {name: f"config/{ADMITTED}{name}" for name in ("labels", "sources")}
    project.write_config(phantom=None, cases=f"config/{ADMITTED}.tsv", **tables)

    project.run("preflight")

    rows = read_table(project.results / "cases/manifest.tsv")
    assert [row["case"] for row in rows] == list(chosen)
    assert all(OBEYED in row["image"] for row in rows)
    assert not [*tmp_path.rglob("*trace")]
    assert {path.name for path in project.folder.iterdir()} == {
        *("Snakefile", "config", "rules", "scripts", "envs", "profiles"),
        *("data", "results", ".snakemake"),
    }
