"""What predictions cost: seconds and memory, over the cases and of each case."""

from collections.abc import Mapping
from typing import Any

from panorgan.io.formats import spread
from panorgan.io.frames import records
from panorgan.report.inputs import Student
from panorgan.report.pages import cut

PHASES = ("preprocess", "network", "export", "total")
MEMORY = ("peak_ram_mb", "peak_gpu_mb", "gpu_area_mb_s", "challenge_area_mb_s")


def describe_efficiency(student: Student) -> dict[str, Any]:
    """Seconds and memory of a student's predictions; `listed` has the slowest cases first."""
    rows = student.efficiency

    def over_cases(column: str, digits: int) -> str:
        return spread(rows[column].dropna(), digits)

    slowest = rows.fillna({"total_s": 0.0}).sort_values(
        ["total_s", "case"], ascending=[False, True]
    )
    listed = [
        {
            "case": row["case"],
            "device": _way(row),
            "numbers": [
                *((row[f"{name}_s"], 2) for name in PHASES),
                *((row[name], 0) for name in MEMORY),
            ],
        }
        for row in records(rows.loc[slowest.index])
    ]
    return {
        "title": student.title,
        "cases": len(rows),
        "devices": "; ".join(sorted({_way(row) for row in records(rows)})),
        "seconds": {name: over_cases(f"{name}_s", 2) for name in PHASES},
        "memory": {name: over_cases(name, 0) for name in MEMORY},
        "listed": cut(listed, f"…/{student.arm.variant}/…/SHARD.efficiency.tsv"),
    }


def _way(row: Mapping[str, Any]) -> str:
    """What computed a case."""
    return f"{row['device']} ({row['engine']}, {row['precision']})"
