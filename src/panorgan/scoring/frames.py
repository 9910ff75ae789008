"""The tables of scores, as frames."""

from panorgan.io.frames import Schema
from panorgan.scoring.lesions import DETAILS, SIDES
from panorgan.scoring.metrics import DECIMALS, STATUSES

SCORES = Schema(
    "scores",
    "cases.csv",
    {"case": str, "value": int, "name": str, "status": str} | dict.fromkeys(DECIMALS, float),
    DECIMALS,
    {"status": STATUSES},
)
"""A row a case and class, as `metrics.score_case` says; of the tables of shards too."""
LESIONS = Schema(
    "lesions",
    "lesions.csv",
    {"case": str}
    | dict.fromkeys(DETAILS, str)
    | {"lesion": int, "ml": float, "diameter_mm": float, "overlap": float, "hit": bool},
    values={"side": SIDES},
)
"""A row a lesion, as `lesions.find_lesions` says."""

_SCORES = ("dsc", "nsd")
COMPARED_CASES = Schema(
    "compared cases",
    "cases.tsv",
    {"case": str, "value": int, "name": str, "ref_ml": float, "status_a": str, "status_b": str}
    | {f"{score}_{what}": float for score in _SCORES for what in ("a", "b", "difference")},
)
COMPARED_CLASSES = Schema(
    "compared classes",
    "classes.tsv",
    {"score": str, "name": str, "cases": int}
    | dict.fromkeys(("a", "b", "difference", "low", "high", "p", "p_holm"), float)
    | dict.fromkeys(("worse", "equal", "better"), int)
    | {"largest_fall": float, "largest_fall_case": str},
)
ABLATION = Schema(
    "an ablation",
    "ablation.tsv",
    {"arm": str, "measure": str}
    | dict.fromkeys(("mean", "low", "high", "lowest_seed", "highest_seed"), float)
    | {"cases": int, "seeds": int}
    | dict.fromkeys(("difference", "difference_low", "difference_high"), float),
)
"""A row an arm and measure; numbers between 0 and 1."""
