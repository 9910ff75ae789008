"""What predictions cost: seconds and memory, over the cases and of each case."""

from typing import Any

from panorgan.pages import cut, spread
from panorgan.report.inputs import Student

PHASES = ("preprocess", "network", "export", "total")


def describe_efficiency(student: Student) -> dict[str, Any]:
    """Seconds and memory of a student's predictions; `listed` has the slowest cases first."""
    rows = student.efficiency

    def over_cases(column: str, digits: int) -> str:
        return spread((float(row[column]) for row in rows if row.get(column)), digits)

    slowest = sorted(rows, key=lambda row: (-float(row["total_s"] or 0), row["case"]))
    listed = [
        {
            "case": row["case"],
            "device": row["device"],
            "numbers": [
                *((_number(row.get(f"{name}_s")), 2) for name in PHASES),
                *((_number(row.get(f"peak_{kind}_mb")), 0) for kind in ("ram", "gpu")),
            ],
        }
        for row in slowest
    ]
    return {
        "title": student.title,
        "cases": len(rows),
        "devices": ", ".join(sorted({row["device"] for row in rows})),
        "seconds": {name: over_cases(f"{name}_s", 2) for name in PHASES},
        "ram": over_cases("peak_ram_mb", 0),
        "gpu": over_cases("peak_gpu_mb", 0),
        "listed": cut(listed, f"…/{student.arm.variant}/…/SHARD.efficiency.tsv"),
    }


def _number(text: str | None) -> float | None:
    return float(text) if text else None
