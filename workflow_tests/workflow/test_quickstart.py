"""The notebook docs/quickstart.ipynb, run as it is but for the installation."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.workflow

NOTEBOOK = Path(__file__).parents[2] / "docs/quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def cells_of(notebook, tag: str | None = None) -> list[nbformat.NotebookNode]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in code if tag is None or tag in cell.metadata.get("tags", [])]


def test_it_is_kept_without_results(notebook):
    for cell in cells_of(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_it_runs(notebook, tmp_path, monkeypatch):
    [install] = cells_of(notebook, "install")
    assert install.source == '%pip install --quiet "panorgan[predict]"'
    install.source = ""
    # Its programs and its kernel are this environment's, and it leaves nothing elsewhere.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))

    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=tmp_path)

    outputs = [output for cell in cells_of(notebook) for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "labels: 2 label maps and report.json" in printed
    assert "scores: cases.csv, lesions.csv and summary.json of 2 cases" in printed
    assert "fused: 2 fused" in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
