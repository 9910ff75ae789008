"""How the networks were trained: who teaches, the teacher's own scores, learning curves."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from panorgan import plots
from panorgan.frames import records
from panorgan.labels import Labels
from panorgan.lesions import detection_text
from panorgan.pages import cut, duration, spread
from panorgan.report.inputs import read_json, read_rows
from panorgan.report.pictures import Gallery
from panorgan.scores import read_scores

MOST_POINTS = 300
"""Of a learning curve; of longer trainings each is the mean of some epochs."""


def describe_selection(tables: Sequence[str]) -> dict[str, Any]:
    """Which training cases teach, and why the others do not."""
    rows = sorted(read_rows(tables), key=lambda row: row["case"])
    selected = [row for row in rows if row["status"] == "ok"]
    others = [row for row in rows if row["status"] != "ok"]
    # A reason may hold a volume: those belong together.
    reasons = Counter(
        "tumour below selection.min_tumour_ml"
        if "min_tumour_ml" in row["reason"]
        else row["reason"]
        for row in others
    )
    return {
        "selected": cut(selected, "teacher/labels"),
        "others": cut(others, "teacher/labels"),
        "reasons": reasons.most_common(),
        "ml": spread(float(row["tumour_ml"]) for row in selected),
    }


def describe_teacher(files: Mapping[str, Any], labels: Labels, gallery: Gallery) -> dict[str, Any]:
    """The teacher's model and its own scores on the validation cases."""
    summary = read_json(files["teacher_summary"])
    return {
        "model": describe_model("the teacher", Path(files["teacher"]), labels, gallery),
        "summary": summary,
        "lesions": detection_text(summary["lesions"]) if summary["lesions"] else "",
        "cases": cut(records(read_scores(files["teacher_scores"])), files["teacher_scores"]),
    }


def describe_model(title: str, model: Path, labels: Labels, gallery: Gallery) -> dict[str, Any]:
    """What a model's card says and its learning curves."""
    card = read_json(model / "card.json")
    rows = read_progress(model / "progress.csv")
    facts = {
        "parameters": f"{card['parameters']:,}" if "parameters" in card else None,
        "training cases": card.get("cases"),
        "epochs": card.get("epochs"),
        "training time": duration(card["hours"]) if "hours" in card else None,
        "precision": card.get("precision"),
        "device": card.get("device"),
        "seconds an epoch, median": f"{np.median([r['seconds'] for r in rows]):.1f}"
        if rows and "seconds" in rows[0]
        else None,
    }
    return {
        "title": title,
        "facts": {name: value for name, value in facts.items() if value is not None},
        "recorded": bool(rows),
        "curves": gallery.add(
            "learning curves",
            lambda: plots.draw_curves(smoothed(rows), labels),
            f"Learning curves of {title}: losses and pseudo-Dice over the epochs",
        )
        if rows
        else None,
    }


def smoothed(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """A training's rows, of more than `MOST_POINTS` the means of equally many each.

    A mean leaves out what was not measured, and stands at its last epoch.
    """
    step = -(-len(rows) // MOST_POINTS)
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    return [
        {name: _mean([row[name] for row in block]) for name in block[0]}
        | {"epoch": block[-1]["epoch"]}
        for block in blocks
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def read_progress(path: Path) -> list[dict[str, float]]:
    """A training's rows as numbers, NaN for empty fields; none where there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            {name: float(value) if value else np.nan for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
