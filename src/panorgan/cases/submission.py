"""Whether label maps are what is asked for of a folder of CTs, as a challenge would check them."""

import json
from collections.abc import Collection
from pathlib import Path

from panorgan.cases.checks import value_counts
from panorgan.cases.folders import IMAGE_ENDING, cases_in
from panorgan.config.labels import REPORT, check_predicted, load_labels
from panorgan.io.failures import Failures
from panorgan.io.volumes import VolumeError, read_frame, read_label
from panorgan.problems import Problem, Problems

UINT8 = 2
"""NIfTI's number for it."""


def check_submission(
    images: str | Path, predictions: str | Path, labels: str | Path | None = None
) -> tuple[int, list[Problem]]:
    """Check that each CT of a folder has its label map, and that nothing else is there.

    A label map is named ``CASE.nii.gz``, lies on exactly its CT's grid, is stored as uint8 and
    holds the values of classes alone.

    Parameters
    ----------
    images
        Folder of ``CASE_0000.nii.gz`` or ``CASE.nii.gz``; of these only the headers are read.
    predictions
        Folder of the label maps.
    labels
        The class table. None: the classes that the report of `panorgan predict` beside the label
        maps names; without one, the shipped table.

    Returns
    -------
    checked
        Number of label maps.
    problems
        Sorted.

    Raises
    ------
    Problems
        If a folder is missing or holds no case, or the label maps' classes are not the table's.
    """
    folder = Path(predictions)
    values = _values(folder, labels)
    found, problems = cases_in(images, labels=False)
    try:
        maps, wrong = cases_in(folder)
    except Problems as error:
        maps, wrong = {}, error.problems
    problems += wrong
    for case in found.keys() - maps.keys():
        cause = f"{found[case]} has no label map there"
        problems.append(Problem(case, str(folder), cause, "predict it, or copy it there"))
    failures = Failures()
    for case, path in maps.items():
        with failures.of(case, path):
            problems += [
                Problem(case, str(path), *fault) for fault in _faults(path, found.get(case), values)
            ]
    return len(maps), sorted([*problems, *failures.problems])


def _values(folder: Path, table: str | Path | None) -> Collection[int]:
    """The values that label maps of a folder may hold beside 0."""
    if table is None:
        try:
            return {int(value) for value in json.loads((folder / REPORT).read_text())["classes"]}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            pass  # made by somebody else, who does not say
    labels = load_labels(table)
    check_predicted(folder, labels)
    return labels.values


def _faults(path: Path, image: Path | None, values: Collection[int]) -> list[tuple[str, str]]:
    """Causes and cures of all that is wrong with a label map.

    Raises
    ------
    VolumeError
        If it cannot be read.
    """
    faults = []
    if image is None:
        cure = f"remove it; the label map of CASE{IMAGE_ENDING}.nii.gz is named CASE.nii.gz"
        faults.append(("is of no CT", cure))
    elif path.suffix != ".gz":
        faults.append(("is not compressed", "write it as .nii.gz"))
    volume = read_label(path)
    stored = volume.header.get_data_dtype()
    if int(volume.header["datatype"]) != UINT8:
        faults.append((f"is stored as {stored}, not as uint8", "save it as uint8"))
    if image is not None:
        try:
            difference = read_frame(image).grid.difference(volume.grid)
        except VolumeError as error:
            raise VolumeError(f"its CT {image} {error.cause}", error.cure) from None
        if difference:
            faults.append((f"is not on the grid of its CT: {difference}", "predict it again"))
    if strange := [str(value) for value in value_counts(volume.array) if value not in values]:
        cause = f"holds {', '.join(strange[:5])}, which {'are' if strange[1:] else 'is'} no class"
        faults.append((cause, f"classes are {min(values)} to {max(values)}"))
    return faults
