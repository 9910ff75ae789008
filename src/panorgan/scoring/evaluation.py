"""Folders of predictions and references scored: what ``panorgan evaluate`` does."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from panorgan.cases.annotations import Annotations
from panorgan.cases.folders import cases_in
from panorgan.config.labels import UNKNOWN, Labels, check_predicted
from panorgan.config.registry import PROFILES
from panorgan.io.failures import Failures
from panorgan.io.formats import MISSING, WIDTH, interval, percent
from panorgan.io.volumes import Volume, VolumeError, read_image, read_label
from panorgan.problems import Problem, Problems, WrongOption
from panorgan.scoring.frames import LESIONS, SCORES
from panorgan.scoring.lesions import OVERLAP, detection_text, find_lesions
from panorgan.scoring.metrics import Row, score_case
from panorgan.scoring.scores import (
    SAMPLES,
    SIZES_MM,
    hd95_text,
    interval_text,
    remarks,
    score_rows,
    summarise,
    summarise_lesions,
    write_scores,
)

THREADS = 2
"""Cases that are read and scored at once."""


@dataclass
class Evaluation:
    """What was measured: frames of `SCORES` and `LESIONS`, and what was noticed."""

    profile: str
    scores: pd.DataFrame
    lesions: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summarise(
        self,
        labels: Labels,
        *,
        samples: int = SAMPLES,
        overlap: float = OVERLAP,
        sizes_mm: Sequence[float] = SIZES_MM,
    ) -> None:
        """Make the summary of it; `overlap` is that of `lesions.find_lesions`."""
        lesions = summarise_lesions(
            self.lesions,
            self.scores,
            labels.tumour.value,
            overlap=overlap,
            sizes_mm=sizes_mm,
            samples=samples,
        )
        self.summary = summarise(
            self.scores, labels, self.profile, samples=samples, lesions=lesions
        )

    def write(self, folder: str | Path) -> None:
        """Write `cases.csv`, `lesions.csv` and `summary.json`."""
        LESIONS.write(Path(folder) / "lesions.csv", self.lesions)
        write_scores(self.scores, self.summary, folder)


def evaluate_folders(
    prediction_dir: str | Path,
    reference_dir: str | Path,
    labels: Labels,
    profile: str,
    annotated: str = "all",
) -> Evaluation:
    """Score every `<case>.nii.gz` or `<case>.nii` of a folder of references.

    Both folders must hold the same cases and nothing that could be one's but is not taken: a
    missing prediction would otherwise raise the mean, and an extra one is a sign of the wrong
    folder. Grids must agree (the official script looks at shapes only) and values be background or
    classes. Numbers that are not whole are cast as the official script casts them (13.9986 becomes
    13), with a note, unless the profile is ``corrected``: it refuses them.

    Parameters
    ----------
    prediction_dir, reference_dir
        Folders.
    labels
        The class table.
    profile
        A key of `PROFILES`.
    annotated
        Which classes the references know, as `Annotations` takes it. Others are not scored.

    Returns
    -------
    Evaluation
        Cases are sorted by file name.

    Raises
    ------
    Problems
        With all that is wrong in both folders; if `panorgan predict` has made the predictions and
        says of a value that it is another class.
    """
    annotations = Annotations(annotated, labels)
    if not annotations.listed:
        raise WrongOption.one("--annotated names no class: nothing to score", "name some")
    check_predicted(Path(prediction_dir), labels)
    (predictions, wrong), (references, others) = map(cases_in, (prediction_dir, reference_dir))
    failures = Failures()
    problems = failures.problems
    problems += [*wrong, *others]
    for case in references.keys() - predictions.keys():
        path = Path(prediction_dir) / f"{case}.nii.gz"
        cure = "predict this case or take its reference out of the folder"
        problems.append(Problem(case, str(path), "no such prediction", cure))
    for case in predictions.keys() - references.keys():
        cause = f"no reference in {reference_dir}"
        cure = "add the reference or take the prediction out of the folder"
        problems.append(Problem(case, str(predictions[case]), cause, cure))
    scores, lesions, notes = [], [], []

    def score(case: str) -> tuple[list[Row], list[Row], list[str]]:
        """Scores, lesions and notes of a case; with problems elsewhere it is only looked at."""
        noted: list[str] = []
        prediction, reference = _read_pair(
            case, predictions[case], references[case], labels, profile, noted
        )
        states, scope = annotations.of(case, references[case], reference.array)
        unknown = {value for value, state in states.items() if state == UNKNOWN}
        if scope is not None:
            unknown.add(labels.tumour.value)
        if problems:
            return [], [], noted
        # The official script's spacing: pixdim, whatever the affine says.
        spacing = reference.header.get_zooms()[2::-1]
        arrays = prediction.array, reference.array
        rows = score_case(*arrays, spacing, labels, profile, unknown=unknown)
        found = []
        if labels.tumour.value not in unknown:
            found = find_lesions(*arrays, reference.grid, labels.tumour.value)
        of_case = ([{"case": case, **row} for row in own] for own in (rows, found))
        return (*of_case, noted)

    cases = sorted(references.keys() & predictions.keys(), key="{}.nii.gz".format)
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for case, done in [(case, pool.submit(score, case)) for case in cases]:
                with failures.of(case, predictions[case]):
                    found = done.result()
                    for kept, own in zip((scores, lesions, notes), found, strict=True):
                        kept += own
        except BaseException:  # Ctrl-C waits for no case that has not begun
            pool.shutdown(cancel_futures=True)
            raise
    failures.check()
    if same := sum(predictions[case].samefile(references[case]) for case in cases):
        notes.append(
            f"WARNING: predictions that are the very files of their references: {same} of "
            f"{len(cases)}; was the folder of references given twice?"
        )
    result = Evaluation(profile, SCORES.frame(scores), LESIONS.frame(lesions), notes=notes)
    result.summarise(labels)
    return result


def _read_pair(
    case: str, prediction: Path, reference: Path, labels: Labels, profile: str, notes: list[str]
) -> tuple[Volume, Volume]:
    """Prediction and reference of a case; Problems with all that is wrong with them."""
    from panorgan.scoring import surface

    volumes, problems = [], []
    for path in (prediction, reference):
        try:
            volume = _read(case, path, profile, notes)
        except VolumeError as error:
            problems.append(Problem(case, str(path), error.cause, error.cure))
            continue
        volumes.append(volume)
        strange = sorted(surface.values_in(volume.array) - set(labels.values))
        if strange:
            cause = f"label values that are no class: {', '.join(map(str, strange))}"
            problems.append(Problem(case, str(path), cause, "map them to classes or to 0"))
    if len(volumes) == 2 and (difference := volumes[0].grid.difference(volumes[1].grid)):
        cause = f"not on the grid of its reference: {difference}"
        problems.append(Problem(case, str(prediction), cause, "resample it to the reference"))
    if problems:
        raise Problems(problems)
    return volumes[0], volumes[1]


def _read(case: str, path: Path, profile: str, notes: list[str]) -> Volume:
    """A label map; one of numbers that are not whole, cast as the official script does it."""
    try:
        return read_label(path)
    except VolumeError as error:
        wrong = error
    try:
        image = read_image(path)
    except VolumeError:
        raise wrong from None  # what it says is about labels
    cast = np.trunc(image.array)
    castable = image.array.dtype == np.float32 and cast.min() >= 0 and cast.max() <= 127
    if not castable or not PROFILES[profile].drops_last_slice:
        raise wrong
    broken = image.array[cast != image.array]
    notes.append(
        f"{case}: {path}: {broken.size:,} voxels hold no whole number, such as {broken[0]:g}, and "
        f"were cast to {int(broken[0])}, as the official script does"
    )
    return Volume(cast.astype(np.uint8), image.grid, image.header)


def summary_lines(summary: Mapping[str, Any], labels: Labels) -> list[str]:
    """A summary for the terminal: scores by class, what other rules make of them, lesions."""
    rows = [(title, pick(summary)) for title, _, pick in score_rows(labels, [summary])]
    width = max(len(title) for title, _ in rows)
    lines = [f"{'':{width}}{'DSC % (95 %)':>22}{'NSD % (95 %)':>22}{'HD95 mm':>9}{'cases':>7}"]
    for title, entry in rows:
        scores = "".join(
            f"{percent(entry[score]):>8}{_bracketed(entry, score):>14}" for score in ("dsc", "nsd")
        )
        distance = entry.get("hd95_mm")
        distance = MISSING if distance is None else f"{distance:.1f}"
        distance = distance if "hd95_mm" in entry else ""
        lines.append(f"{title:{width}}{scores}{distance:>9}{entry.get('cases', ''):>7}".rstrip())
    said = [interval_text(summary), hd95_text(summary, labels), *remarks(summary, labels)]
    lines += [line for text in said if text for line in wrap(text, WIDTH)]
    lines += ["", *_profile_lines(summary)]
    if lesions := summary["lesions"]:
        lines += ["", f"lesions: {detection_text(lesions)}"]
        found = [size for size in lesions["sizes"] if size["reference"]]
        sizes = (f"{size['title']} {size['found']} of {size['reference']}" for size in found)
        if found:
            lines.append(f"  found by diameter: {', '.join(sizes)}")
    return lines


def _bracketed(entry: Mapping[str, Any], score: str) -> str:
    text = interval(entry[f"{score}_interval"])
    return f"({text})" if text and entry[score] is not None else ""


def _profile_lines(summary: Mapping[str, Any]) -> Iterable[str]:
    """The means by every profile."""
    heads = ("organs", "tumour", "all")
    yield f"{'by the rules of':16}" + "".join(f"{head + ' DSC, NSD':>18}" for head in heads)
    for name, scores in summary["profiles"].items():
        cells = (f"{percent(scores[h]['dsc'])}, {percent(scores[h]['nsd'])}" for h in heads)
        yield f"{name:16}" + "".join(f"{cell:>18}" for cell in cells)
