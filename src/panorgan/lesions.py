"""Tumours one by one: which are found, which are false, and how large they are.

A lesion is a connected piece of tumour (by faces, edges or corners). A reference lesion counts as
found if at least a given share of its voxels is predicted as tumour, a predicted one as true if at
least that share of its voxels is tumour in the reference. Nothing is matched one to one: a
prediction that covers two lesions finds both.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.bootstrap import drawn_means, interval
from panorgan.components import Pieces, centre_mm, find_components
from panorgan.metrics import BOOTSTRAP_SEED, MISSED, NOT_SCORED, SAMPLES, SCORED
from panorgan.metrics import Row as Score
from panorgan.pages import percent
from panorgan.tables import read_csv, write_csv
from panorgan.volumes import Grid

OVERLAP = 0.1
"""Share of a lesion's voxels that the other side must have, where nothing else is said."""
SIZES_MM = (10.0, 20.0, 50.0)
"""Bounds of the groups of lesions by diameter, where nothing else is said."""

REFERENCE, PREDICTION = SIDES = ("reference", "prediction")
DETAILS = ("side", "lesion", "ml", "diameter_mm", "overlap", "hit", "centre_mm", "centre_zyx")
COLUMNS = ("case", *DETAILS)
"""Of `lesions.csv`."""

Row = dict[str, Any]


def find_lesions(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    tumour: int,
    *,
    overlap: float = OVERLAP,
) -> list[Row]:
    """All lesions of one case.

    Parameters
    ----------
    prediction, reference : (z, y, x) uint8
        Label maps of one shape.
    grid
        Of both.
    tumour
        The value of tumours.
    overlap
        Share of a lesion's voxels that must be tumour on the other side for a hit.

    Returns
    -------
    list of dict
        Those of the reference, then those of the prediction, each the largest first, with
        `DETAILS`: side (one of `SIDES`), lesion (its number on its side), ml (3 decimals),
        diameter_mm (of a sphere of its volume; 2 decimals), overlap (the share; 4 decimals), hit,
        centre_mm (RAS) and centre_zyx (index of the lesion's voxel that is nearest its centre).
    """
    masks = {REFERENCE: reference == tumour, PREDICTION: prediction == tumour}
    rows = []
    for side, other in ((REFERENCE, PREDICTION), (PREDICTION, REFERENCE)):
        pieces = find_components(masks[side].view(np.uint8))
        inside = pieces.total(masks[other].reshape(-1)[pieces.places])
        for piece, hits, place in zip(pieces.rows, inside, _middles(pieces), strict=True):
            share = hits / piece.voxels
            ml = float(piece.voxels * grid.voxel_ml)
            rows.append(
                {
                    "side": side,
                    "lesion": piece.component,
                    "ml": round(ml, 3),
                    "diameter_mm": round(float(np.cbrt(6000 * ml / np.pi)), 2),
                    "overlap": round(float(share), 4),
                    "hit": bool(share > 0 and share >= overlap),
                    "centre_mm": centre_mm(piece.centroid, grid),
                    "centre_zyx": " ".join(map(str, place)),
                }
            )
    return rows


def _middles(pieces: Pieces) -> list[list[int]]:
    """For each piece the index (z, y, x) of its voxel that is nearest its centroid."""
    if not pieces.rows:
        return []
    places = np.stack(pieces.indices, 1)
    centroids = np.array([piece.centroid for piece in pieces.rows])
    away = ((places - centroids[pieces.numbers - 1]) ** 2).sum(axis=1)
    order = np.lexsort((away, pieces.numbers))
    firsts = np.searchsorted(pieces.numbers[order], np.arange(1, len(centroids) + 1))
    return places[order[firsts]].tolist()


def summarise_lesions(
    rows: Iterable[Row],
    scores: Iterable[Score],
    tumour: int,
    *,
    overlap: float = OVERLAP,
    sizes_mm: Sequence[float] = SIZES_MM,
    samples: int = SAMPLES,
) -> dict[str, Any] | None:
    """Detection over all cases and by size.

    Parameters
    ----------
    rows
        Of all cases, as `find_lesions` gives them and with the column case.
    scores
        Of the same cases, as `metrics.score_case` gives them: they say where the truth is known.
    tumour
        The value of tumours.
    overlap
        That of `find_lesions`; kept in the summary.
    sizes_mm
        Bounds of the groups by diameter: a lesion belongs to the one whose lower bound it reaches.
    samples
        Bootstrap samples for the intervals.

    Returns
    -------
    dict or None
        overlap and cases (whose truth is known); reference, found and sensitivity (lesions of the
        reference); prediction, true and precision (predicted lesions), all with sizes: the same by
        size with title, low_mm and high_mm (None: open); sensitivity_interval and
        precision_interval (95 % of the bootstrap samples of cases, or None); false_per_case;
        tumour_free: cases, false (lesions) and false_per_case. None if no truth is known.
    """
    known = {
        row["case"]: row["status"] in (SCORED, MISSED)
        for row in scores
        if row["value"] == tumour and row["status"] != NOT_SCORED
    }
    if not known:
        return None
    rows = [row for row in rows if row["case"] in known]
    bounds = [0.0, *sizes_mm, np.inf]
    free = [case for case, has_tumour in known.items() if not has_tumour]
    false = [row for row in rows if row["side"] == PREDICTION and not row["hit"]]
    false_in_free = sum(row["case"] in free for row in false)
    return {
        "overlap": overlap,
        "cases": len(known),
        **_counts(rows),
        "sensitivity_interval": _ratio_interval(rows, known, REFERENCE, samples),
        "precision_interval": _ratio_interval(rows, known, PREDICTION, samples),
        "false_per_case": round(len(false) / len(known), 4),
        "tumour_free": {
            "cases": len(free),
            "false": false_in_free,
            "false_per_case": round(false_in_free / len(free), 4) if free else None,
        },
        "sizes": [
            {
                "title": _title(low, high),
                "low_mm": low,
                "high_mm": None if high == np.inf else high,
                **_counts([row for row in rows if low <= row["diameter_mm"] < high]),
            }
            for low, high in pairwise(bounds)
        ],
    }


def detection_text(lesions: Mapping[str, Any]) -> str:
    """How many lesions were found and how many are false, in a line."""
    text = f"{lesions['found']} of {lesions['reference']} found"
    if lesions["sensitivity"] is not None:
        text += f" ({percent(lesions['sensitivity'], 0)} %)"
    text += f", {lesions['prediction'] - lesions['true']} of {lesions['prediction']} predicted are"
    text += " false"
    free = lesions["tumour_free"]
    if free["cases"]:
        text += f", {free['false']} of them in {free['cases']} tumour-free "
        text += "scan" if free["cases"] == 1 else "scans"
    return text


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    reference, prediction = (
        [row["hit"] for row in rows if row["side"] == side] for side in (REFERENCE, PREDICTION)
    )
    return {
        "reference": len(reference),
        "found": sum(reference),
        "sensitivity": round(sum(reference) / len(reference), 4) if reference else None,
        "prediction": len(prediction),
        "true": sum(prediction),
        "precision": round(sum(prediction) / len(prediction), 4) if prediction else None,
    }


def _title(low: float, high: float) -> str:
    if high == np.inf:
        return f"{low:g} mm and more"
    return f"{low:g} to {high:g} mm" if low else f"below {high:g} mm"


def _ratio_interval(
    rows: Iterable[Row], cases: Iterable[str], side: str, samples: int
) -> list[float] | None:
    """Of the share of a side's lesions that are hits: cases are drawn, not lesions."""
    at = {case: index for index, case in enumerate(cases)}
    counts = np.zeros((len(at), 2))
    for row in rows:
        if row["side"] == side:
            counts[at[row["case"]]] += row["hit"], 1
    hits, lesions = drawn_means(counts, samples, BOOTSTRAP_SEED)
    ends = interval(hits / np.where(lesions == 0, np.nan, lesions))
    return None if np.isnan(ends).any() else [round(float(end), 4) for end in ends]


def write_lesions(rows: Iterable[Row], path: str | Path) -> None:
    """Write `lesions.csv` (`COLUMNS`)."""
    write_csv(path, COLUMNS, map(as_text, rows))


def as_text(row: Row) -> dict[str, object]:
    """A lesion's row as it is written."""
    return row | {"hit": "yes" if row["hit"] else "no"}


def parse_row(row: Mapping[str, str]) -> Row:
    """A lesion's row as it was before it became text.

    Raises
    ------
    KeyError, ValueError
        If a column is missing or holds something else.
    """
    if row["side"] not in SIDES or row["hit"] not in ("yes", "no"):
        raise ValueError(row["side"], row["hit"])
    numbers = {key: float(row[key]) for key in ("ml", "diameter_mm", "overlap")}
    text = {key: row[key] for key in ("case", "side", "centre_mm", "centre_zyx")}
    return text | numbers | {"lesion": int(row["lesion"]), "hit": row["hit"] == "yes"}


def read_lesions(path: str | Path) -> list[Row]:
    """Rows of a `lesions.csv`, with the types that `find_lesions` gives.

    Raises
    ------
    Problems
        If the file cannot be read or is no table of lesions.
    """
    return read_csv(path, COLUMNS, parse_row, kind="lesions", name="lesions.csv")
