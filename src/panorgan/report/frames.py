"""The tables that the report sums up, as frames; what wrote them streamed rows."""

from panorgan.fusing.gate import CASE_COLUMNS, DECISION_COLUMNS
from panorgan.io.frames import Schema

DECISIONS = Schema(
    "a gate's decisions",
    "decisions.tsv",
    dict.fromkeys(DECISION_COLUMNS, str) | {"value": int, "component": int, "ml": float},
)
GATE_CASES = Schema(
    "a gate's cases",
    "cases.tsv",
    dict.fromkeys(CASE_COLUMNS, str) | {"instability": float, "doubt": float},
)
_AMOUNT = {"voxels": int, "ml": float}
COMPOSITION = Schema(
    "what labels are made of",
    "composition.tsv",
    {"case": str, "name": str, "source": str} | _AMOUNT,
)
CONFLICTS = Schema(
    "conflicts",
    "conflicts.tsv",
    dict.fromkeys(("case", "kept_name", "lost_name", "lost_input"), str) | _AMOUNT,
)
SPECKS = Schema("specks", "specks.tsv", {"case": str, "name": str} | _AMOUNT)
EFFICIENCY = Schema(
    "what predictions cost",
    "efficiency.tsv",
    {"case": str, "device": str, "engine": str, "precision": str}
    | dict.fromkeys(("preprocess_s", "network_s", "export_s", "total_s"), float)
    | dict.fromkeys(("peak_ram_mb", "peak_gpu_mb", "gpu_area_mb_s", "challenge_area_mb_s"), float),
)
