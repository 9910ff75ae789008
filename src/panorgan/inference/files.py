"""Label maps of many CTs: the model is loaded once, and the next CT read while one is computed."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.cases.checks import value_counts
from panorgan.cases.folders import case_of, cases_in, reason_against
from panorgan.cases.hounsfield import is_empty, not_hounsfield
from panorgan.config.labels import REPORT
from panorgan.inference.describe import ON_A_PHANTOM
from panorgan.inference.predictor import Predictor
from panorgan.io.failures import Failures
from panorgan.io.resources import available_memory
from panorgan.io.stamps import stamp
from panorgan.io.tables import COMMA, table_text
from panorgan.io.volumes import (
    Volume,
    VolumeError,
    geometry_hash,
    read_frame,
    read_image,
    read_label,
    voxel_hash,
    write_label,
)
from panorgan.io.writing import making_folder, write_text
from panorgan.nnunet.normalisation import CT
from panorgan.nnunet.plans import configuration_of
from panorgan.problems import Problem, Problems, WrongOption

STATISTICS = "statistics.csv"
SHARE_FOR_THE_NEXT = 0.25
"""Of free memory, what the next CT may take while one is computed."""

OF_A_WAY = ("model", "folds", "engine", "precision", "export", "tile_step", "labels")
"""Keys of a report that must agree before a folder is gone on with."""


@dataclass(frozen=True)
class _Read:
    """A CT, which one it is, and in how many seconds it was read."""

    volume: Volume
    known: dict[str, str]
    read_s: float


def predict_files(
    images: str | Path,
    out: str | Path,
    predictor: Predictor,
    say: Callable[[str], None] = print,
    *,
    labels: Sequence[str] = (),
    statistics: bool = False,
    resume: bool = False,
    show: Callable[[str, int, int, float], None] = lambda case, number, count, share: None,
) -> dict[str, Any]:
    """Label a CT, all CTs of a folder, or those of a list: ``CASE_0000.nii.gz`` or ``CASE.nii.gz``.

    Parameters
    ----------
    images
        A file, a folder, or a text file (``.txt``) with a CT's path a line, relative to itself.
    out
        Folder of the label maps ``CASE.nii.gz`` and of ``report.json``; made if need be. Nothing
        in it is overwritten; images that an earlier call with the same model has labelled in the
        same way are left out.
    say
        Gets a line a case.
    labels
        Names or values of the classes to keep; none: all. The others become background.
    statistics
        Whether volumes and mean HU of all classes are also written as ``statistics.csv``.
    resume
        Take label maps that are there for done, although the report does not list them, if they
        lie on exactly their image's grid and hold the model's values.
    show
        Gets a case, its number, how many there are, and how much of it is done, now and then.

    Returns
    -------
    dict
        The report: the model's checksum and classes, how it was computed, and of every case
        seconds, memory, volumes in ml and mean HU of its classes, and which image it is: hashes of
        its voxels (`image`) and geometry (`grid`), and its file's stamp.

    Raises
    ------
    Problems
        If there is nothing to do or something would be overwritten; of every image that cannot be
        used, what else is in the folder, and label maps there that are another image's, after all
        others have been labelled. A `Stop`, such as a full disk, ends it at once; what is labelled
        stays.
    """
    out = Path(out)
    found, problems = _images(Path(images))
    if out.exists() and any(out.samefile(path.parent) for path in found.values()):
        raise Problems.one("holds the images", "name another folder with -o", file=out)
    card, plan = predictor.model.card, predictor.model.plan
    classes = dict(enumerate(plan["panorgan"]["classes"], 1))
    kept = _kept_values(labels, classes)
    way = predictor.way
    report: dict[str, Any] = {
        "model": card.get("checksum"),
        "folds": list(predictor.model.folds),
        "classes": {str(value): classes[value] for value in kept},
        "labels": [classes[value] for value in kept],
        "engine": way.engine,
        "version": way.version,
        "precision": way.precision,
        "export": predictor.export,
        "tile_step": predictor.tile_step,
        "threads": predictor.threads,
    }
    if card.get("phantom"):
        report["note"] = ON_A_PHANTOM
        say(f"the model was {ON_A_PHANTOM}")
    report["cases"] = _done_before(out, report)
    for case, path in found.items():
        target = out / f"{case}.nii.gz"
        if target.exists() and case not in report["cases"]:
            if not resume:
                cure = "name another folder with -o, remove it, or say --resume to take it for done"
                raise Problems.one("exists already", cure, file=target)
            report["cases"][case] = _found_there(path, target, kept)
    configuration = configuration_of(plan)[1]
    wants_hu = configuration["normalization_schemes"] == [CT]
    failures = Failures()
    failures.problems += problems
    todo = {}
    for case, path in found.items():
        before = report["cases"].get(case) if (out / f"{case}.nii.gz").exists() else None
        seen = stamp(str(path))
        if before is not None and before.get("file", seen) == seen:
            unknown = "" if "file" in before else "; the report does not say from which image"
            say(f"{case}: labelled before{unknown}")
        else:
            todo[case] = path, seen, before
    began = time.perf_counter()
    with making_folder(out):
        for number, (case, read) in enumerate(_reading(todo), 1):
            path, seen, before = todo[case]
            target = out / f"{case}.nii.gz"
            with failures.of(case, path):
                image = read()
                if before is not None:
                    _check_image(image.known, before, target)
                    say(f"{case}: labelled before")
                    continue
                volume = image.volume
                if wrong := is_empty(volume.array) or (wants_hu and not_hounsfield(volume.array)):
                    raise VolumeError(*wrong)

                def tick(share: float, case: str = case, number: int = number) -> None:
                    show(case, number, len(todo), share)

                label = predictor.predict(volume, tick=tick)
                if labels:
                    label = np.array([v if v in kept else 0 for v in range(256)], np.uint8)[label]
                start = time.perf_counter()
                write_label(target, label, volume)
                report["cases"][case] = {
                    "read_s": round(image.read_s, 3),
                    **predictor.last_report,
                    "write_s": round(time.perf_counter() - start, 3),
                    "structures": _structures(label, volume, kept, classes),
                    **image.known,
                    "file": seen,
                }
                _write_report(out, report, target)
                left = (time.perf_counter() - began) / number * (len(todo) - number)
                say(
                    f"{case}: {predictor.last_report['total_s']:.1f} s"
                    + (f" ({number} of {len(todo)}, {_minutes(left)} left)" if left else "")
                )
        if report["cases"]:  # those that were only found there, too
            write_text(out / REPORT, _text(report))
        if statistics:
            write_text(out / STATISTICS, _statistics(report))
        failures.check()
    return report


def _reading(todo: Mapping[str, tuple]) -> Iterator[tuple[str, Callable[[], _Read]]]:
    """Each case with a function that gives its CT, read while the case before was computed.

    Where memory is short it is read when it is asked for.
    """
    cases = list(todo)
    with ThreadPoolExecutor(1) as pool:
        ahead: Future | None = None
        for number, case in enumerate(cases, 1):
            following = cases[number] if number < len(cases) else None
            mine = ahead or pool.submit(_read, todo[case][0])
            ahead = None

            def read(mine: Future = mine, following: str | None = following) -> _Read:
                nonlocal ahead
                found = mine.result()
                if following is not None and _has_room(todo[following][0]):
                    ahead = pool.submit(_read, todo[following][0])
                return found

            yield case, read


def _read(path: Path) -> _Read:
    start = time.perf_counter()
    volume = read_image(path)
    known = {"image": voxel_hash(volume), "grid": geometry_hash(volume)}
    return _Read(volume, known, time.perf_counter() - start)


def _has_room(path: Path) -> bool:
    """Whether a CT, its compressed file and its voxels as int16, is small beside free memory."""
    try:
        voxels = read_frame(path).array.size
    except (VolumeError, OSError):
        return True  # it is read to say what is wrong with it
    return 4 * voxels < SHARE_FOR_THE_NEXT * available_memory()


def _kept_values(labels: Sequence[str], classes: Mapping[int, str]) -> list[int]:
    """The values of the classes of interest, ascending.

    Raises
    ------
    Problems
        If the model does not know one.
    """
    known = {key: value for value, name in classes.items() for key in (name, str(value))}
    if unknown := [name for name in labels if name not in known]:
        cause = f"--labels: the model knows no {', '.join(unknown)}"
        raise WrongOption.one(cause, f"it knows {', '.join(classes.values())}")
    return sorted({known[name] for name in labels}) if labels else sorted(classes)


def _found_there(image: Path, label: Path, values: Sequence[int]) -> dict[str, Any]:
    """A report's entry of a label map that nobody has listed.

    Raises
    ------
    Problems
        If it is not on its image's grid or holds other values.
    """
    cure = "remove it, or name another folder with -o"
    try:
        volume = read_label(label)
        difference = read_frame(image).grid.difference(volume.grid)
    except VolumeError as error:
        raise Problems.one(error.cause, cure, file=label) from None
    if difference:
        cause = f"--resume: is not on the grid of {image}: {difference}"
        raise Problems.one(cause, cure, file=label)
    if other := sorted(value_counts(volume.array).keys() - {*values}):
        raise Problems.one(f"--resume: holds {other[0]}, which the model has not", cure, file=label)
    return {"note": "was there before", "file": stamp(str(image))}


def _structures(
    label: np.ndarray, volume: Volume, kept: Sequence[int], classes: Mapping[int, str]
) -> dict[str, dict[str, float | None]]:
    """Of each class: volume in ml, and mean HU (None where it was not found)."""
    counts, sums = np.zeros(256, np.int64), np.zeros(256)
    for found, hu in zip(label, volume.array, strict=True):
        places = np.flatnonzero(found)
        values = found.reshape(-1)[places]
        counts += np.bincount(values, minlength=256)
        sums += np.bincount(values, hu.reshape(-1)[places], minlength=256)
    ml = float(np.prod(volume.grid.spacing)) / 1000
    return {
        classes[value]: {
            "ml": round(counts[value] * ml, 3),
            "mean_hu": round(sums[value] / counts[value], 1) if counts[value] else None,
        }
        for value in kept
    }


def _statistics(report: Mapping[str, Any]) -> str:
    """A row a case and class."""
    values = {name: value for value, name in report["classes"].items()}
    rows = (
        {"case": case, "value": values[name], "name": name, **found}
        for case, facts in sorted(report["cases"].items())
        for name, found in facts.get("structures", {}).items()
    )
    return table_text(("case", "value", "name", "ml", "mean_hu"), rows, COMMA)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _write_report(out: Path, report: Mapping[str, Any], target: Path) -> None:
    """Write the report; a label map that it could not list is removed: it would be in the way."""
    try:
        write_text(out / REPORT, _text(report))
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _text(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1)


def _done_before(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Cases that an earlier call has labelled in the same way.

    Raises
    ------
    Problems
        If the folder is of another model or another way of prediction.
    """
    path = out / REPORT
    if not path.exists():
        return {}
    try:
        before = json.loads(path.read_text())
        differs = [key for key in OF_A_WAY if before[key] != report[key]]
    except (ValueError, LookupError, TypeError, RecursionError):
        differs = ["model"]
    if differs:
        cause = f"was made otherwise: {differs[0].replace('_', ' ')} differs"
        raise Problems.one(cause, "name another folder with -o", file=path)
    return before["cases"]


def _check_image(known: Mapping[str, str], before: Mapping[str, Any], label: Path) -> None:
    """Problems if a label map that is there is of another image, or of the same one elsewhere."""
    if any(before.get(key) != value for key, value in known.items()):
        cause = f"is another image than that of which {label} was made"
        raise Problems.one(cause, "name another folder with -o, or remove that label map")


def _images(path: Path) -> tuple[dict[str, Path], list[Problem]]:
    """The images of a path by case, sorted, and what of it gets no label."""
    if path.is_dir():
        found, problems = cases_in(path, labels=False)
        twice = {problem.case for problem in problems}
        found = {case: file for case, file in found.items() if case not in twice}
        if not found:
            raise Problems(problems)
        return found, problems
    if path.suffix == ".txt" and path.is_file():
        return _listed(path), []
    if not path.is_file():
        raise Problems.one("there is no such file or folder", "check the path", file=path)
    if reason := reason_against(path.name):
        raise Problems.one(*reason, file=path)
    return {case_of(path.name): path}, []


def _listed(path: Path) -> dict[str, Path]:
    """The images of a list by case, in its order.

    Raises
    ------
    Problems
        Of every line that names no image, and if two have one case's name.
    """
    found: dict[str, Path] = {}
    problems = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Problems.one(f"cannot be read ({error})", "write a path a line", file=path) from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        image = path.parent / line
        reason = reason_against(image.name)
        if not image.is_file():
            reason = ("there is no such file", "mend the path; it is relative to the list")
        elif case_of(image.name) in found:
            other = found[case_of(image.name)]
            reason = (f"its case has the name of {other}'s", "give it another file name")
        if reason:
            problems.append(Problem("", f"{path}, line {number}: {line}", *reason))
        else:
            found[case_of(image.name)] = image
    if not found and not problems:
        problems.append(Problem("", str(path), "names no image", "write a path a line"))
    if problems:
        raise Problems(problems)
    return found
