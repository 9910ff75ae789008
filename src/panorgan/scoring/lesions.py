"""Tumours one by one: which are found, which are false, and how large they are.

A lesion is a connected piece of tumour (by faces, edges or corners). A reference lesion counts as
found if at least a given share of its voxels is predicted as tumour, a predicted one as true if at
least that share of its voxels is tumour in the reference. Nothing is matched one to one: a
prediction that covers two lesions finds both.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from panorgan.fusing.components import Pieces, centre_mm, find_components
from panorgan.io.formats import percent
from panorgan.io.volumes import Grid

OVERLAP = 0.1
"""Share of a lesion's voxels that the other side must have, where nothing else is said."""

REFERENCE, PREDICTION = SIDES = ("reference", "prediction")
DETAILS = ("side", "lesion", "ml", "diameter_mm", "overlap", "hit", "centre_mm", "centre_zyx")

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


def as_text(row: Row) -> dict[str, object]:
    """A lesion's row as the table of a shard has it."""
    return row | {"hit": "yes" if row["hit"] else "no"}
