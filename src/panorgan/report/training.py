"""How the networks were trained: who teaches, the teacher's own scores, learning curves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from panorgan.io.formats import duration, spread
from panorgan.io.frames import records
from panorgan.io.tables import COMMA, read_table
from panorgan.report.inputs import read_json, read_rows
from panorgan.report.pages import cut
from panorgan.report.pictures import Gallery
from panorgan.scoring.lesions import detection_text
from panorgan.scoring.scores import read_scores


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


def describe_teacher(files: Mapping[str, Any], gallery: Gallery) -> dict[str, Any]:
    """The teacher's model and its own scores on the validation cases."""
    summary = read_json(files["teacher_summary"])
    return {
        "model": describe_model("the teacher", Path(files["teacher"]), gallery),
        "summary": summary,
        "lesions": detection_text(summary["lesions"]) if summary["lesions"] else "",
        "cases": cut(records(read_scores(files["teacher_scores"])), files["teacher_scores"]),
    }


def describe_model(title: str, model: Path, gallery: Gallery) -> dict[str, Any]:
    """What a model's card says, and the learning curves that its training drew."""
    card = read_json(model / "card.json")
    progress, curves = model / "progress.csv", model / "curve.png"
    rows = read_table(progress, COMMA) if progress.exists() else []
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    facts = {
        "parameters": f"{card['parameters']:,}" if "parameters" in card else None,
        "training cases": card.get("cases"),
        "epochs": card.get("epochs"),
        "training time": duration(card["hours"]) if "hours" in card else None,
        "precision": card.get("precision"),
        "device": card.get("device"),
        "seconds an epoch, median": f"{median(seconds):.1f}" if seconds else None,
    }
    return {
        "title": title,
        "facts": {name: value for name, value in facts.items() if value is not None},
        "recorded": curves.exists(),
        "curves": gallery.add(
            "learning curves",
            curves.read_bytes,
            f"Learning curves of {title}: losses and pseudo-Dice over the epochs",
        )
        if curves.exists()
        else None,
    }
