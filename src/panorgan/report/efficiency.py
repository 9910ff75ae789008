"""What predictions cost: seconds and memory, over the cases and of each case."""

from typing import Any

from panorgan.io.formats import spread
from panorgan.io.frames import records
from panorgan.report.inputs import Student
from panorgan.report.pages import cut

PHASES = ("preprocess", "network", "export", "total")


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
            "device": row["device"],
            "numbers": [
                *((row[f"{name}_s"], 2) for name in PHASES),
                *((row[f"peak_{kind}_mb"], 0) for kind in ("ram", "gpu")),
            ],
        }
        for row in records(rows.loc[slowest.index])
    ]
    return {
        "title": student.title,
        "cases": len(rows),
        "devices": ", ".join(sorted(rows["device"].unique())),
        "seconds": {name: over_cases(f"{name}_s", 2) for name in PHASES},
        "ram": over_cases("peak_ram_mb", 0),
        "gpu": over_cases("peak_gpu_mb", 0),
        "listed": cut(listed, f"…/{student.arm.variant}/…/SHARD.efficiency.tsv"),
    }
