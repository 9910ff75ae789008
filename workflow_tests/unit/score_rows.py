"""Rows of scores as `metrics.score_case` makes them, for tests of what is made of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from panorgan.config.labels import load_labels
from panorgan.scoring.frames import SCORES
from panorgan.scoring.metrics import PROFILES

LABELS = load_labels()


def score_row(
    case: str,
    name: str,
    dsc: float | None,
    nsd: float | None = None,
    status: str = "scored",
    **others: Any,
) -> dict[str, Any]:
    """A row of scores, the same by every profile but where `others` says so; NSD is DSC if not
    given."""
    nsd = dsc if nsd is None else nsd
    scores = {f"dsc_{profile}": dsc for profile in PROFILES}
    scores |= {f"nsd_{profile}": nsd for profile in PROFILES}
    return {
        "case": case,
        "value": LABELS.by_name(name).value,
        "name": name,
        "status": status,
        "dsc": dsc,
        "nsd": nsd,
        "hd95_mm": None,
        "ref_ml": None if status == "not_scored" else 10.0,
        "pred_ml": 10.0,
    } | (scores | others)


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of scores as scoring has them."""
    return SCORES.frame(rows)
