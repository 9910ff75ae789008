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

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from panorgan.config.labels import Label, Labels
from panorgan.config.registry import PROFILES

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
"""Of a row; dsc and nsd are those of the profile that was asked for."""


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
    from panorgan.scoring import surface  # loads numba and the compiled kernels

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
            scores[f"dsc_{name}"] = rounded(found.dsc)
            scores[f"nsd_{name}"] = rounded(found.nsd) if found.dsc >= rules.nsd_floor else 0.0
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
            "hd95_mm": None if hd95 is None else rounded(hd95),
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


def rounded(number: float) -> float:
    """Four decimals by NumPy's rule, as the official script; Python's differs at halves."""
    return float(np.round(np.float64(number), 4))
