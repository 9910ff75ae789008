"""DSC and NSD by the FLARE23 challenge's rules, from arrays and from folders.

Every profile is exact to the fourth decimal printed by the official script (JunMa11/FLARE,
FLARE23_DSC_NSD_Eval.py), its quirks included:

- Arrays stay in stored order; the spacing is the reference header's, rounded to float32.
- Neither volume has the class: both scores 1. Only one has it: both 0, so a false tumour on a
  tumour-free case costs the whole case. This looks at whole volumes, before any cropping.
- Classes with `crop_slices` are compared on the slices that the reference annotates, along the
  last stored axis (the first of our arrays). The official script loses the last of them.
- NSD is 0 where the unrounded DSC is below the profile's floor.
- A case's scores are rounded to four decimals, class means are means of those, rounded, and the
  organ mean is the mean of the rounded class means, rounded.

Where the reference has a cropped class on a single slice, the official script crashes on an
empty array. Here that slice is kept in every profile.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.labels import Label, Labels
from panorgan.problems import Problem, Problems
from panorgan.tables import write_text
from panorgan.volumes import Volume, VolumeError, read_label

COLUMNS = ("case", "value", "name", "dsc", "nsd", "ref_ml", "pred_ml", "status")

SCORED = "scored"  # both volumes have the class
BOTH_EMPTY = "both_empty"  # neither has it: 1 and 1
MISSED = "missed"  # only the reference has it: 0 and 0
FALSE_POSITIVE = "false_positive"  # only the prediction has it: 0 and 0
NOT_SCORED = "not_scored"  # the truth is unknown: no scores
STATUSES = (SCORED, BOTH_EMPTY, MISSED, FALSE_POSITIVE, NOT_SCORED)

Row = dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """One version of the challenge's rules."""

    drops_last_slice: bool
    nsd_floor: float


PROFILES = {
    "flare23-2023": Profile(drops_last_slice=True, nsd_floor=0.1),  # during the challenge
    "flare23-2024": Profile(drops_last_slice=True, nsd_floor=0.2),  # official since 2024-03-18
    "corrected": Profile(drops_last_slice=False, nsd_floor=0.0),
}


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Labels | Iterable[Label],
    profile: str,
    *,
    unknown: Iterable[int] = (),
) -> list[Row]:
    """DSC and NSD of every class of one case.

    Parameters
    ----------
    prediction, reference
        Label maps (z, y, x) in stored order, of one shape. Other dtypes than uint8 are cast to
        int8, as the official script does: 13.9986 becomes 13.
    spacing
        In mm along z, y, x, from the reference's header. Cast to float32, which is what the
        header's pixdim holds and decides ties at the tolerance; a spacing derived from an affine
        may differ from pixdim in its last digits.
    labels
        The classes to score.
    profile
        A key of `PROFILES`.
    unknown
        Values of classes whose truth is unknown in this case.

    Returns
    -------
    list of dict
        A row per class, in the order of `labels`, with value, name, dsc and nsd (4 decimals),
        ref_ml and pred_ml (whole volumes, 3 decimals) and status (one of `STATUSES`). A class
        whose truth is unknown has None for dsc, nsd and ref_ml.

    Raises
    ------
    ValueError
        If the shapes differ.
    KeyError
        If there is no such profile.
    """
    from panorgan import surface  # loads numba and the compiled kernels

    if prediction.shape != reference.shape:
        shapes = f"{prediction.shape} and {reference.shape}"
        raise ValueError(f"prediction and reference have different shapes: {shapes}")
    rules = PROFILES[profile]
    classes = labels.labels if isinstance(labels, Labels) else labels
    unknown = frozenset(unknown)
    spacing = tuple(np.float64(np.float32(spacing)))
    pred_words, ref_words = (
        surface.as_words(array if array.dtype == np.uint8 else array.astype(np.int8))
        for array in (prediction, reference)
    )
    pred_table, ref_table = surface.extents(pred_words), surface.extents(ref_words)

    def scores_of(label: Label) -> tuple[float | None, float | None, str]:
        in_pred, in_ref = pred_table[label.value, 0], ref_table[label.value, 0]
        if label.value in unknown:
            return None, None, NOT_SCORED
        if not in_pred and not in_ref:
            return 1.0, 1.0, BOTH_EMPTY
        if not in_pred:
            return 0.0, 0.0, MISSED
        if not in_ref:
            return 0.0, 0.0, FALSE_POSITIVE
        pred_box, ref_box = pred_table[label.value, 1:], ref_table[label.value, 1:]
        box = np.empty(6, np.int64)
        box[::2] = np.minimum(pred_box[::2], ref_box[::2])
        box[1::2] = np.maximum(pred_box[1::2], ref_box[1::2])
        if label.crop_slices:
            first, end = ref_box[:2]
            box[:2] = first, max(end - rules.drops_last_slice, first + 1)
        dsc, nsd = surface.dsc_and_nsd(
            pred_words, ref_words, label.value, box, label.tolerance_mm, spacing
        )
        return _rounded(dsc), _rounded(nsd) if dsc >= rules.nsd_floor else 0.0, SCORED

    voxel_ml = float(np.prod(spacing)) / 1000
    rows = []
    for label in classes:
        dsc, nsd, status = scores_of(label)
        ref_ml = round(int(ref_table[label.value, 0]) * voxel_ml, 3)
        pred_ml = round(int(pred_table[label.value, 0]) * voxel_ml, 3)
        rows.append(
            {
                "value": label.value,
                "name": label.name,
                "dsc": dsc,
                "nsd": nsd,
                "ref_ml": None if status == NOT_SCORED else ref_ml,
                "pred_ml": pred_ml,
                "status": status,
            }
        )
    return rows


def _rounded(number: float) -> float:
    """Four decimals by NumPy's rule, as the official script; Python's differs at halves."""
    return float(np.round(np.float64(number), 4))


def _mean(numbers: Sequence[float]) -> float | None:
    return _rounded(np.mean(numbers)) if numbers else None


def summarise(rows: Iterable[Row], labels: Labels, profile: str) -> dict[str, Any]:
    """Class means, organ mean and the tumour apart, rounded as the official script does.

    Parameters
    ----------
    rows
        Of all cases, as `score_case` gives them and with the column case.
    labels
        The class table.
    profile
        The rules that the rows were scored by; kept in the summary.

    Returns
    -------
    dict
        profile, cases (their number), then:

        classes
            name -> value, dsc, nsd, cases (with a score). No case: dsc and nsd are None.
        organs, all
            dsc, nsd: mean of the class means of the organs and of all classes; classes: over how
            many classes, those without a scored case being left out.
        tumour
            dsc, nsd, cases, as in classes; positive: the same over the cases whose reference has
            a tumour; tumour_free: cases, false_positives (cases with a predicted tumour) and
            false_positive_ml (their sum).
    """
    # Order decides the last bit of a mean and with it ties in the rounding; the official script
    # goes through the sorted file names.
    rows = sorted(rows, key=lambda row: f"{row['case']}.nii.gz")

    def means(chosen: Iterable[Row]) -> dict[str, Any]:
        scored = [row for row in chosen if row["status"] != NOT_SCORED]
        dsc, nsd = (_mean([row[key] for row in scored]) for key in ("dsc", "nsd"))
        return {"dsc": dsc, "nsd": nsd, "cases": len(scored)}

    def mean_of_classes(chosen: Iterable[Label]) -> dict[str, Any]:
        scored = [classes[label.name] for label in chosen if classes[label.name]["cases"]]
        dsc, nsd = (_mean([entry[key] for entry in scored]) for key in ("dsc", "nsd"))
        return {"dsc": dsc, "nsd": nsd, "classes": len(scored)}

    classes = {
        label.name: {
            "value": label.value,
            **means(row for row in rows if row["value"] == label.value),
        }
        for label in labels.labels
    }
    tumour = [row for row in rows if row["value"] == labels.tumour.value]
    free = [row for row in tumour if row["status"] in (BOTH_EMPTY, FALSE_POSITIVE)]
    false = [row for row in free if row["status"] == FALSE_POSITIVE]
    return {
        "profile": profile,
        "cases": len({row["case"] for row in rows}),
        "classes": classes,
        "organs": mean_of_classes(labels.organs),
        "tumour": {
            **means(tumour),
            "positive": means(row for row in tumour if row["status"] in (SCORED, MISSED)),
            "tumour_free": {
                "cases": len(free),
                "false_positives": len(false),
                "false_positive_ml": round(sum(row["pred_ml"] for row in false), 3),
            },
        },
        "all": mean_of_classes(labels.labels),
    }


def evaluate_folders(
    prediction_dir: str | Path, reference_dir: str | Path, labels: Labels, profile: str
) -> tuple[list[Row], dict[str, Any]]:
    """Score every `<case>.nii.gz` of a folder of references; see `score_case`, `summarise`.

    Both folders must hold the same cases: a missing prediction would otherwise raise the mean,
    and an extra one is a sign of the wrong folder. Grids must agree (the official script looks at
    shapes only) and values be background or classes.

    Returns
    -------
    rows
        With the column case, sorted by file name, then class.
    summary
        Of these rows.

    Raises
    ------
    Problems
        With all that is wrong in both folders.
    """
    predictions, references = _cases_in(prediction_dir), _cases_in(reference_dir)
    problems = []
    for case in references.keys() - predictions.keys():
        path = Path(prediction_dir) / f"{case}.nii.gz"
        cure = "predict this case or take its reference out of the folder"
        problems.append(Problem(case, str(path), "no such prediction", cure))
    for case in predictions.keys() - references.keys():
        cause = f"no reference in {reference_dir}"
        cure = "add the reference or take the prediction out of the folder"
        problems.append(Problem(case, str(predictions[case]), cause, cure))
    rows: list[Row] = []
    for case in sorted(references.keys() & predictions.keys(), key="{}.nii.gz".format):
        pair, wrong = _read_pair(case, predictions[case], references[case], labels)
        problems += wrong
        if problems:
            continue  # nothing will be returned; only the other files' problems are of interest
        prediction, reference = pair
        # The official script's spacing: pixdim, whatever the affine says.
        spacing = reference.header.get_zooms()[2::-1]
        scores = score_case(prediction.array, reference.array, spacing, labels, profile)
        rows += [{"case": case, **row} for row in scores]
    if problems:
        raise Problems(problems)
    return rows, summarise(rows, labels, profile)


def _cases_in(folder: str | Path) -> dict[str, Path]:
    """Label files of a folder by case."""
    if not Path(folder).is_dir():
        raise Problems.one("is no folder", "check the path", file=folder)
    files = {
        path.name.removesuffix(".nii.gz"): path
        for path in Path(folder).glob("*.nii.gz")
        if not path.name.startswith(".")
    }
    if not files:
        raise Problems.one("holds no .nii.gz file", "check the path", file=folder)
    return files


def _read_pair(
    case: str, prediction: Path, reference: Path, labels: Labels
) -> tuple[list[Volume], list[Problem]]:
    """Prediction and reference of a case, and what is wrong with them."""
    from panorgan import surface

    volumes, problems = [], []
    for path in (prediction, reference):
        try:
            volume = read_label(path)
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
    return volumes, problems


def write_scores(rows: Iterable[Row], summary: dict[str, Any], folder: str | Path) -> None:
    """Write `cases.csv` (`COLUMNS`; empty fields for None) and `summary.json` into a folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    decimals = {"dsc": 4, "nsd": 4, "ref_ml": 3, "pred_ml": 3}
    for row in rows:
        numbers = {
            key: "" if row[key] is None else f"{row[key]:.{digits}f}"
            for key, digits in decimals.items()
        }
        writer.writerow({**row, **numbers})
    write_text(Path(folder) / "cases.csv", text.getvalue())
    write_text(Path(folder) / "summary.json", json.dumps(summary, indent=2) + "\n")


def parse_row(row: Mapping[str, str]) -> Row:
    """A row of scores as it was before it became text.

    Raises
    ------
    KeyError, ValueError, TypeError
        If a column is missing or holds something else.
    """
    numbers = {
        key: float(row[key]) if row[key] else None for key in ("dsc", "nsd", "ref_ml", "pred_ml")
    }
    if row["status"] not in STATUSES:
        raise ValueError(row["status"])
    text = {key: row[key] for key in ("case", "name", "status")}
    return {**text, "value": int(row["value"]), **numbers}


def read_scores(path: str | Path) -> list[Row]:
    """Rows of a `cases.csv`, with the types that `score_case` gives.

    Raises
    ------
    Problems
        If the file cannot be read or is no table of scores.
    """
    try:
        table = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
    except OSError as error:
        raise Problems.one(error.strerror, "check the path", file=path) from None
    except UnicodeDecodeError:
        table = [{}]
    try:
        return [parse_row(row) for row in table]
    except (KeyError, ValueError, TypeError):
        cause = f"is no table of scores with the columns {', '.join(COLUMNS)}"
        raise Problems.one(cause, "give a cases.csv that panorgan wrote", file=path) from None
