"""Where a command may write: not where a model or a run of the workflow lies."""

import os
from pathlib import Path

from panorgan.problems import Problem, Problems
from panorgan.run.layout import Layout


def check_places(*paths: Path | None) -> None:
    """Refuse to write into a folder of others' files; None is no place.

    Raises
    ------
    Problems
        For each path that is, or is inside of, a model's folder or one that the workflow made.
    """
    problems = []
    for path in filter(None, paths):
        whole = path.resolve()
        for place in (whole, *whole.parents):
            if what := _what(place):
                where = "is" if place == whole else f"lies in {os.path.relpath(place)},"
                cause = f"{where} {what}, into which only what made it writes"
                problems.append(Problem("", str(path), cause, "name a place outside of it"))
                break
    if problems:
        raise Problems(problems)


def _what(folder: Path) -> str:
    """Whose folder it is; empty if it may be the user's."""
    has_plans = (folder / "plans.json").is_file()
    trained = (folder / "weights.safetensors").is_file() or any(folder.glob("fold_*"))
    if (has_plans and trained) or (folder / "plans.pkl").is_file():
        return "a model's folder"
    run = Layout(folder)
    started = Path(run.root, ".store").is_dir() and Path(run.logs).is_dir()
    if started or (Path(run.case_list).is_file() and Path(run.class_table).is_file()):
        return "a run of the workflow"
    return ""
