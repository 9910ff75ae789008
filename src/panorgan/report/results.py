"""Scores: beside published ones, by class and by case, by other rules, and of single lesions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from panorgan.config.labels import Labels
from panorgan.config.registry import PROFILES
from panorgan.io import plots
from panorgan.io.formats import count
from panorgan.io.frames import records
from panorgan.report.examples import worst_by_class
from panorgan.report.inputs import Student
from panorgan.report.pictures import Gallery, Picture
from panorgan.scoring.lesions import REFERENCE
from panorgan.scoring.metrics import MISSED, NOT_SCORED, SCORED
from panorgan.scoring.scores import hd95_text, remarks, score_rows

STATUS_TEXTS = {
    "scored": "in both",
    "both_empty": "in neither",
    "missed": "missed",
    "false_positive": "false positive",
    "not_scored": "unknown",
}
PUBLISHED = (
    (
        "Reference method (team zzm3zz)",
        "FLARE23 validation, 50 cases",
        (0.8853, 0.3047, 0.8438, 0.8928),
    ),
    ("Winner of FLARE23", "FLARE23 hidden test set", (0.923, 0.649, None, None)),
)
"""What, of which cases, and DSC of organs and tumour, DSC and NSD of all; as their authors say."""
MOST_DOTS = 200
"""Of a class in a plot of scores; of more cases as many of evenly spaced ranks are drawn."""


def compared_results(
    students: Iterable[Student], published: Sequence[tuple] = ()
) -> list[dict[str, Any]]:
    """This run's means beside published ones: title, split, four cells, whether they are ours.

    Where no reference has some class, the means without such classes have a row of their own.
    """
    own = [
        {
            "title": f"This run, student {student.title}{title}",
            "split": f"this run's {split}, {count(summary['cases'], 'case')}",
            "cells": cells,
            "own": True,
        }
        for student in students
        for split in student.scored
        for summary in [student.summaries[split]]
        for title, cells in _headlines(summary)
    ]
    others = [
        {
            "title": title,
            "split": split,
            "cells": [{"value": value, "interval": None} for value in values],
            "own": False,
        }
        for title, split, values in published
    ]
    return own + others


def _headlines(summary: Mapping[str, Any]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """The means of a summary, and those of the classes in a reference if these are others."""
    yield "", _cells(summary)
    if summary["with_reference"]["absent"]:
        tumour = summary["tumour"]
        if not tumour["positive"]["cases"]:
            tumour = tumour["positive"]  # no numbers
        only = summary["with_reference"] | {"tumour": tumour}
        yield ", classes in a reference", _cells(only)


def _cells(means: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"value": means[part][score], "interval": means[part][f"{score}_interval"]}
        for part, score in (("organs", "dsc"), ("tumour", "dsc"), ("all", "dsc"), ("all", "nsd"))
    ]


def class_table(student: Student, split: str, labels: Labels) -> dict[str, Any]:
    """A split's scores of a student: a row a class or mean; no rows where nothing is known.

    Rows of classes have the row of scores of their worst case.
    """
    summary = student.summaries[split]
    worst = worst_by_class(student.scores[split])
    names = {label.title: label.name for label in labels.labels}
    return {
        "split": split,
        "cases": summary["cases"],
        "rows": [
            {"title": title, "colour": colour}
            | dict(pick(summary))
            | {"name": names.get(title, ""), "worst": worst.get(names.get(title, ""))}
            for title, colour, pick in score_rows(labels, [summary])
        ]
        if split in student.scored
        else [],
        "free": summary["tumour"]["tumour_free"],
        "remarks": [hd95_text(summary, labels), *remarks(summary, labels)],
    }


def student_table(split: str, students: Sequence[Student], labels: Labels) -> dict[str, Any]:
    """A split's scores of several students: a row a class or mean, a cell a student."""
    scored = [student for student in students if split in student.scored]
    summaries = [student.summaries[split] for student in scored]
    return {
        "split": split,
        "students": [student.title for student in scored],
        "cases": summaries[0]["cases"] if scored else 0,
        "rows": [
            {"title": title, "colour": colour, "cells": [pick(summary) for summary in summaries]}
            for title, colour, pick in score_rows(labels, summaries)
        ],
    }


def profile_table(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's result by all scoring rules, its own first, and how far others are from that."""
    own = summary["profiles"][summary["profile"]]
    order = sorted(summary["profiles"], key=lambda name: name != summary["profile"])
    return [
        {
            "profile": name,
            "text": PROFILES[name].description,
            "cells": [
                {
                    "value": summary["profiles"][name][part][score],
                    "change": _difference(summary["profiles"][name][part][score], own[part][score]),
                }
                for part in ("organs", "tumour", "all")
                for score in ("dsc", "nsd")
            ],
        }
        for name in order
    ]


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def case_table(
    ranking: Mapping[str, float], student: Student, split: str, labels: Labels
) -> list[dict[str, Any]]:
    """A row a case in the ranking's order: mean organ scores, the worst organ, the tumour."""
    scores = student.scores[split]
    scores = scores[scores["status"] != NOT_SCORED]
    tumour = scores["value"] == labels.tumour.value
    organs = scores[~tumour]
    lowest = organs.sort_values("dsc", kind="stable").drop_duplicates("case")
    found = {
        "lowest": {row["case"]: row for row in records(lowest)},
        "tumour": {row["case"]: row for row in records(scores[tumour])},
        "lesions": lesions_by_case(student.lesions[split]),
    }
    means = organs.groupby("case")[["dsc", "nsd"]].mean().reindex(list(ranking))
    return [
        row | {name: of.get(row["case"]) for name, of in found.items()}
        for row in records(means.rename_axis("case").reset_index())
    ]


def lesions_by_case(lesions: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Of every case with any: how many lesions it has, how many were found, how many are false."""
    reference, hit = lesions["side"] == REFERENCE, lesions["hit"]
    flags = {"reference": reference, "found": reference & hit, "false": ~reference & ~hit}
    return pd.DataFrame(flags).groupby(lesions["case"]).sum().to_dict("index")


def score_plots(student: Student, split: str, labels: Labels, gallery: Gallery) -> list[Picture]:
    """Scores of the cases by class, as pictures."""
    drawn = []
    scores = student.scores[split]
    colours = {label.title: label.colour for label in labels.labels}
    for score in ("dsc", "nsd"):
        values = {
            label.title: few(scores.loc[scores["value"] == label.value, score].dropna())
            for label in labels.labels
        }
        values = {title: found for title, found in values.items() if found}
        if values:
            name = score.upper()
            alt = f"{name} of every {split} case by class; the class means are in the table above"
            drawn.append(
                gallery.add(
                    "plots",
                    lambda values=values, name=name: plots.draw_scores(values, colours, name),
                    alt,
                )
            )
    return [plot for plot in drawn if plot]


def few(values: Iterable[float]) -> list[float]:
    """At most `MOST_DOTS` of some numbers: of evenly spaced ranks, the extremes among them."""
    values = list(values)
    if len(values) <= MOST_DOTS:
        return values
    ranks = np.linspace(0, len(values) - 1, MOST_DOTS).round().astype(int)
    return np.sort(values)[ranks].tolist()


def tumour_plot(student: Student, split: str, labels: Labels, gallery: Gallery) -> Picture | None:
    """The size of each case's tumour against its DSC; None where no case has one."""
    scores = student.scores[split]
    tumours = scores[scores["value"] == labels.tumour.value]
    tumours = tumours[tumours["status"].isin((SCORED, MISSED))]
    points = list(tumours[["ref_ml", "dsc", "case"]].itertuples(index=False, name=None))
    if not points:
        return None
    return gallery.add(
        "plots",
        lambda: plots.draw_tumour_sizes(points),
        f"Volume of the tumour in each of {count(len(points), 'case')} of {split} with one, "
        "against its DSC",
    )
