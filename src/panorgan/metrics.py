"""DSC and NSD by the FLARE23 challenge's rules, HD95 and volumes: a row a case and class.

The challenge's profiles are exact to the fourth decimal printed by the official script
(JunMa11/FLARE, FLARE23_DSC_NSD_Eval.py), its quirks included:

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

A row has the scores by every profile, so that what the rules make of a result can be seen, and
beside them, by no challenge's rule, HD95 (of a cropped class on the reference's slices) and
volumes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.bootstrap import drawn_means, interval
from panorgan.labels import Label, Labels
from panorgan.registry import PROFILES
from panorgan.tables import read_csv, write_csv, write_text

SAMPLES = 2000
"""Bootstrap samples where nothing else is said."""
BOOTSTRAP_SEED = 0

SCORED = "scored"  # both volumes have the class
BOTH_EMPTY = "both_empty"  # neither has it: 1 and 1
MISSED = "missed"  # only the reference has it: 0 and 0
FALSE_POSITIVE = "false_positive"  # only the prediction has it: 0 and 0
NOT_SCORED = "not_scored"  # the truth is unknown: no scores
STATUSES = (SCORED, BOTH_EMPTY, MISSED, FALSE_POSITIVE, NOT_SCORED)

Row = dict[str, Any]


DECIMALS = {"dsc": 4, "nsd": 4, "hd95_mm": 4, "ref_ml": 3, "pred_ml": 3} | {
    f"{score}_{profile}": 4 for profile in PROFILES for score in ("dsc", "nsd")
}
SCORES = ("value", "name", "status", *DECIMALS)
COLUMNS = ("case", *SCORES)
"""Of `cases.csv`; dsc and nsd are those of the profile that was asked for."""


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Labels | Iterable[Label],
    profile: str,
    *,
    unknown: Iterable[int] = (),
    threads: int = 1,
) -> list[Row]:
    """DSC, NSD, HD95 and volumes of every class of one case.

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
    threads
        How many classes are scored at once; the result is the same.

    Returns
    -------
    list of dict
        A row per class, in the order of `labels`, with `SCORES`: value, name, status (one of
        `STATUSES`), dsc and nsd (4 decimals) by the profile, hd95_mm (4 decimals; None unless both
        volumes have the class, on the reference's slices if it is cropped), ref_ml and pred_ml
        (whole volumes, 3 decimals), and dsc and nsd by every profile. A class whose truth is
        unknown has pred_ml and None for all other numbers.

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
    PROFILES[profile]
    classes = labels.labels if isinstance(labels, Labels) else labels
    unknown = frozenset(unknown)
    spacing = tuple(np.float64(np.float32(spacing)))
    pred_words, ref_words = (
        surface.as_words(array if array.dtype == np.uint8 else array.astype(np.int8))
        for array in (prediction, reference)
    )
    pred_table, ref_table = surface.extents(pred_words), surface.extents(ref_words)
    voxel_ml = float(np.prod(spacing)) / 1000

    def compare(label: Label) -> tuple[dict[str, float], float | None]:
        """Scores by every profile, and HD95."""
        pred_box, ref_box = pred_table[label.value, 1:], ref_table[label.value, 1:]
        box = np.empty(6, np.int64)
        box[::2] = np.minimum(pred_box[::2], ref_box[::2])
        box[1::2] = np.maximum(pred_box[1::2], ref_box[1::2])
        if label.crop_slices:
            box[:2] = ref_box[:2]
        value, tolerance = label.value, label.tolerance_mm
        whole = surface.compare(pred_words, ref_words, value, box, tolerance, spacing)
        shorter = whole
        if label.crop_slices and box[1] - box[0] > 1:
            box[1] -= 1
            shorter = surface.compare(
                pred_words, ref_words, value, box, tolerance, spacing, with_hd95=False
            )
        scores = {}
        for name, rules in PROFILES.items():
            found = shorter if rules.drops_last_slice else whole
            scores[f"dsc_{name}"] = _rounded(found.dsc)
            scores[f"nsd_{name}"] = _rounded(found.nsd) if found.dsc >= rules.nsd_floor else 0.0
        return scores, whole.hd95_mm

    def score(label: Label) -> Row:
        in_pred, in_ref = pred_table[label.value, 0], ref_table[label.value, 0]
        hd95 = None
        if label.value in unknown:
            status, scores = NOT_SCORED, _same(None)
        elif not in_pred and not in_ref:
            status, scores = BOTH_EMPTY, _same(1.0)
        elif not in_pred or not in_ref:
            status, scores = MISSED if in_ref else FALSE_POSITIVE, _same(0.0)
        else:
            status = SCORED
            scores, hd95 = compare(label)
        return {
            "value": label.value,
            "name": label.name,
            "status": status,
            "dsc": scores[f"dsc_{profile}"],
            "nsd": scores[f"nsd_{profile}"],
            "hd95_mm": None if hd95 is None else _rounded(hd95),
            "ref_ml": None if status == NOT_SCORED else round(int(in_ref) * voxel_ml, 3),
            "pred_ml": round(int(in_pred) * voxel_ml, 3),
            **scores,
        }

    if threads == 1:
        return [score(label) for label in classes]
    with ThreadPoolExecutor(threads) as pool:  # the kernels release the interpreter's lock
        return list(pool.map(score, classes))


def _same(score: float | None) -> dict[str, float | None]:
    """A score by every profile."""
    return {f"{name}_{profile}": score for profile in PROFILES for name in ("dsc", "nsd")}


def _rounded(number: float) -> float:
    """Four decimals by NumPy's rule, as the official script; Python's differs at halves."""
    return float(np.round(np.float64(number), 4))


def _mean(numbers: Sequence[float]) -> float | None:
    return _rounded(np.mean(numbers)) if len(numbers) else None


def summarise(
    rows: Iterable[Row],
    labels: Labels,
    profile: str,
    *,
    samples: int = SAMPLES,
    lesions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Class means, organ mean and the tumour apart, rounded as the official script does.

    Parameters
    ----------
    rows
        Of all cases, as `score_case` gives them and with the column case.
    labels
        The class table.
    profile
        The rules that the rows were scored by; kept in the summary.
    samples
        Bootstrap samples for the intervals.
    lesions
        What `lesions.summarise_lesions` found, kept in the summary.

    Returns
    -------
    dict
        profile, class_table (as in labels.yaml), cases (their number), then:

        classes
            name -> value, dsc, nsd, cases (with a score), hd95_mm (the median over hd95_cases,
            those with the class in both volumes), ml_error and ml_abs_error (means of prediction
            minus reference). No case: the numbers are None.
        organs, all
            dsc, nsd: mean of the class means of the organs and of all classes; classes: over how
            many classes, those without a scored case being left out.
        tumour
            dsc, nsd, cases, as in classes; positive: the same over the cases whose reference has
            a tumour; tumour_free: cases, false_positives (cases with a predicted tumour) and
            false_positive_ml (their sum).
        profiles
            By every profile: dsc and nsd of organs, tumour and all.
        samples, lesions
            As given.

        Beside each dsc and nsd but those of profiles is its interval (dsc_interval,
        nsd_interval): the lower and the upper end that hold 95 % of the bootstrap samples of
        cases, or None.
    """
    # Order decides the last bit of a mean and with it ties in the rounding; the official script
    # goes through the sorted file names.
    rows = sorted(rows, key=lambda row: f"{row['case']}.nii.gz")
    by_value = {label.value: _Scores(rows, label.value) for label in labels.labels}
    # The same cases are drawn for all classes: a mean of classes is one of whole cases.
    cases = {case: at for at, case in enumerate(dict.fromkeys(row["case"] for row in rows))}
    drawn = {
        score: dict(
            zip(
                by_value,
                drawn_means(
                    _matrix([found.scored for found in by_value.values()], cases, score),
                    samples,
                    BOOTSTRAP_SEED,
                ),
                strict=True,
            )
        )
        for score in ("dsc", "nsd")
    }

    def of_class(label: Label) -> dict[str, Any]:
        intervals = {f"{score}_interval": _interval(drawn[score][label.value]) for score in drawn}
        return by_value[label.value].means(profile) | intervals

    def of_classes(chosen: Iterable[Label]) -> dict[str, Any]:
        scored = [label.value for label in chosen if by_value[label.value].scored]
        found = {score: _mean_of_means(by_value, scored, score, profile) for score in drawn}
        intervals = {
            f"{score}_interval": _interval(_mean_rows([drawn[score][value] for value in scored]))
            for score in drawn
        }
        return found | intervals | {"classes": len(scored)}

    tumour = by_value[labels.tumour.value]
    positive = tumour.only(SCORED, MISSED)
    free = tumour.only(BOTH_EMPTY, FALSE_POSITIVE).scored
    false = [row for row in free if row["status"] == FALSE_POSITIVE]
    return {
        "profile": profile,
        "class_table": labels.model_dump(mode="json", by_alias=True),
        "cases": len(cases),
        "classes": {
            label.name: {"value": label.value, **of_class(label)} | by_value[label.value].errors()
            for label in labels.labels
        },
        "organs": of_classes(labels.organs),
        "tumour": {
            **of_class(labels.tumour),
            "positive": positive.means(profile) | positive.intervals(samples),
            "tumour_free": {
                "cases": len(free),
                "false_positives": len(false),
                "false_positive_ml": round(sum(row["pred_ml"] for row in false), 3),
            },
        },
        "all": of_classes(labels.labels),
        "profiles": {
            name: {
                "organs": _scores_of(by_value, labels.organs, name),
                "tumour": _scores_of(by_value, [labels.tumour], name),
                "all": _scores_of(by_value, labels.labels, name),
            }
            for name in PROFILES
        },
        "samples": samples,
        "lesions": lesions,
    }


class _Scores:
    """The rows of one class whose truth is known."""

    def __init__(self, rows: Iterable[Row], value: int):
        self.scored = [row for row in rows if row["value"] == value and row["status"] != NOT_SCORED]

    def only(self, *statuses: str) -> "_Scores":
        found = _Scores((), 0)
        found.scored = [row for row in self.scored if row["status"] in statuses]
        return found

    def mean(self, score: str, profile: str) -> float | None:
        return _mean([row[f"{score}_{profile}"] for row in self.scored])

    def means(self, profile: str) -> dict[str, Any]:
        scores = {score: self.mean(score, profile) for score in ("dsc", "nsd")}
        return scores | {"cases": len(self.scored)}

    def intervals(self, samples: int) -> dict[str, Any]:
        columns = [[row[score] for score in ("dsc", "nsd")] for row in self.scored]
        drawn = drawn_means(np.reshape(columns, (-1, 2)), samples, BOOTSTRAP_SEED)
        return {"dsc_interval": _interval(drawn[0]), "nsd_interval": _interval(drawn[1])}

    def errors(self) -> dict[str, Any]:
        distances = [row["hd95_mm"] for row in self.scored if row["hd95_mm"] is not None]
        errors = [row["pred_ml"] - row["ref_ml"] for row in self.scored]
        return {
            "hd95_mm": _rounded(np.median(distances)) if distances else None,
            "hd95_cases": len(distances),
            "ml_error": _mean(errors),
            "ml_abs_error": _mean(np.abs(errors)),
        }


def _mean_of_means(
    by_value: Mapping[int, _Scores], values: Iterable[int], score: str, profile: str
) -> float | None:
    return _mean([by_value[value].mean(score, profile) for value in values])


def _scores_of(
    by_value: Mapping[int, _Scores], chosen: Iterable[Label], profile: str
) -> dict[str, float | None]:
    values = [label.value for label in chosen if by_value[label.value].scored]
    return {score: _mean_of_means(by_value, values, score, profile) for score in ("dsc", "nsd")}


def _matrix(classes: Sequence[Sequence[Row]], cases: Mapping[str, int], score: str) -> np.ndarray:
    """Scores (case, class), NaN where there is none."""
    matrix = np.full((len(cases), len(classes)), np.nan)
    for column, rows in enumerate(classes):
        for row in rows:
            matrix[cases[row["case"]], column] = row[score]
    return matrix


def _mean_rows(drawn: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of some classes in every sample, of those that it has."""
    if not drawn:
        return np.array([np.nan])
    stacked = np.stack(drawn)
    known = ~np.isnan(stacked)
    counts = known.sum(axis=0)
    return np.where(known, stacked, 0).sum(axis=0) / np.where(counts == 0, np.nan, counts)


def _interval(drawn: np.ndarray) -> list[float] | None:
    ends = interval(drawn)
    return None if np.isnan(ends).any() else [_rounded(end) for end in ends]


def write_scores(rows: Iterable[Row], summary: dict[str, Any], folder: str | Path) -> None:
    """Write `cases.csv` (`COLUMNS`; empty fields for None) and `summary.json` into a folder."""

    def as_text(row: Row) -> dict[str, object]:
        numbers = {
            key: "" if row[key] is None else f"{row[key]:.{digits}f}"
            for key, digits in DECIMALS.items()
        }
        return {**row, **numbers}

    write_csv(Path(folder) / "cases.csv", COLUMNS, map(as_text, rows))
    write_text(Path(folder) / "summary.json", json.dumps(summary, indent=2) + "\n")


def parse_row(row: Mapping[str, str]) -> Row:
    """A row of scores as it was before it became text.

    Raises
    ------
    KeyError, ValueError, TypeError
        If a column is missing or holds something else.
    """
    numbers = {key: float(row[key]) if row[key] else None for key in DECIMALS}
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
    return read_csv(path, COLUMNS, parse_row, kind="scores", name="cases.csv")
