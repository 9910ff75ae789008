"""Which cases, structures and lesions are worth a look, and their pictures."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from panorgan.config.labels import Labels
from panorgan.io.formats import number, percent
from panorgan.io.frames import records
from panorgan.report import drawing
from panorgan.report.inputs import Student
from panorgan.report.pictures import (
    Gallery,
    Picture,
    Scans,
    piece_of,
    prediction_of,
)
from panorgan.report.show import compared_layers, draw_scan
from panorgan.scoring.lesions import REFERENCE
from panorgan.scoring.metrics import BOTH_EMPTY, NOT_SCORED, Row
from panorgan.stages import LABEL

MOST_LESIONS = 3
"""Drawn of the missed and of the false ones each."""
Links = dict[tuple[str, str], str]
"""Places of the page by case and class; the class is empty for a picture of all of them."""


def rank_cases(scores: pd.DataFrame, labels: Labels) -> dict[str, float]:
    """Mean organ DSC of every case, the worst case first; of all classes if no organ is scored."""
    known = scores[scores["status"] != NOT_SCORED]
    every = known.groupby("case")["dsc"].mean()
    organs = known[known["value"] != labels.tumour.value].groupby("case")["dsc"].mean()
    # The groups are sorted by case.
    return organs.reindex(every.index).fillna(every).sort_values(kind="stable").to_dict()


def median_case(ranking: Mapping[str, float]) -> str:
    """The case in the middle of a ranking, the lower of two."""
    cases = list(ranking)
    return cases[(len(cases) - 1) // 2]


def chosen_examples(ranking: Mapping[str, float]) -> dict[str, str]:
    """The worst three, the median and the best case and what each is; each case once."""
    cases = list(ranking)
    if len(cases) < 2:
        return dict.fromkeys(cases, "only")
    chosen = {cases[0]: "worst", cases[-1]: "best"}
    chosen.setdefault(median_case(ranking), "median")
    for case, what in zip(cases[1:], ("second worst", "third worst"), strict=False):
        chosen.setdefault(case, what)
    return {case: chosen[case] for case in cases if case in chosen}


def worst_by_class(scores: pd.DataFrame) -> dict[str, Row]:
    """The row of the lowest DSC of each class, of equal ones that of the largest structure.

    Cases in which nobody sees the class, or nobody knows of it, do not count.
    """
    return {row["name"]: row for row in records(_worst_first(scores).drop_duplicates("name"))}


def worst_structure(scores: pd.DataFrame, case: str, labels: Labels) -> Row | None:
    """The row of a case's worst organ; of its tumour, if no organ is scored."""
    found = records(_worst_first(scores[scores["case"] == case]))
    organs = [row for row in found if row["name"] != labels.tumour.name]
    return next(iter(organs or found), None)


def _worst_first(scores: pd.DataFrame) -> pd.DataFrame:
    seen = scores[~scores["status"].isin((NOT_SCORED, BOTH_EMPTY))]
    order = seen.assign(size=seen[["ref_ml", "pred_ml"]].max(axis=1))
    order = order.sort_values(["dsc", "size", "case"], ascending=[True, False, True])
    return seen.loc[order.index]


def wrong_lesions(lesions: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The largest lesions that were missed, and the largest predicted ones that are none."""
    wrong = lesions[~lesions["hit"]]
    wrong = wrong.sort_values(["ml", "case", "lesion"], ascending=[False, True, True])
    missed = wrong["side"] == REFERENCE
    parts = {"missed": wrong[missed], "false": wrong[~missed]}
    return {what: records(found.head(MOST_LESIONS)) for what, found in parts.items()}


def place_of(case: str, name: str = "") -> str:
    """The id of a picture in the page: a colon is in no case's name."""
    return f"case:{case}:{name}" if name else f"case:{case}"


def draw_examples(
    student: Student,
    ranking: Mapping[str, float],
    labels: Labels,
    scans: Scans,
    gallery: Gallery,
) -> dict[str, Any]:
    """Pictures of the student's cases in the split that is shown, and where each is in the page.

    Returns
    -------
    dict
        cases: rows with case, what, dsc, picture, structure (its worst organ, or None); classes:
        rows with label, row and picture, or the link to the picture of that structure; lesions:
        rows with what, about, case, picture, place; links: `Links`.
    """
    rows = student.scores[student.shown]
    links: Links = {}
    cases = []
    for case, what in chosen_examples(ranking).items():
        picture = gallery.add(
            "cases",
            lambda case=case: draw_scan(
                scans[case],
                compared_layers(prediction_of(student, case), scans.reference(case), labels),
                labels,
                kind="jpeg",
            ),
            f"{what.capitalize()} case {case}: CT, reference, and prediction with the reference's "
            "contours, in three planes",
        )
        worst = worst_structure(rows, case, labels)
        structure = draw_structure(student, worst, labels, scans, gallery) if worst else None
        if picture:
            links[case, ""] = place_of(case)
        if structure:
            links[case, worst["name"]] = place_of(case, worst["name"])
        if picture or structure:
            cases.append(
                {"case": case, "what": what, "dsc": ranking[case], "picture": picture}
                | {"row": worst, "structure": structure}
            )
    classes = []
    by_class = worst_by_class(rows)
    for label in labels.labels:
        row = by_class.get(label.name)
        if row is None:
            continue
        known = links.get((row["case"], label.name))
        picture = None if known else draw_structure(student, row, labels, scans, gallery)
        if picture:
            links[row["case"], label.name] = place_of(row["case"], label.name)
        if picture or known:
            classes.append({"label": label, "row": row, "picture": picture, "link": known})
    lesions = draw_lesions(student, labels, scans, gallery)
    for row in lesions:
        links.setdefault((row["case"], labels.tumour.name), row["place"])
    return {"cases": cases, "classes": classes, "lesions": lesions, "links": links}


def draw_structure(
    student: Student, row: Row, labels: Labels, scans: Scans, gallery: Gallery
) -> Picture | None:
    """A class of a case in three planes, by its row of scores."""
    case, title = row["case"], labels.by_value(row["value"]).title

    def draw() -> bytes:
        scan = scans[case]
        return drawing.draw_structure(
            scan.image,
            scan.spacing,
            prediction_of(student, case),
            scans.reference(case),
            row["value"],
            labels,
            title=f"{case}: {title}, DSC {percent(row['dsc'])} %, NSD {percent(row['nsd'])} %",
        )

    alt = (
        f"{title} of case {case} in an axial, a coronal and a sagittal plane: contours of "
        "prediction and reference on CT"
    )
    return gallery.add("structures", draw, alt)


def draw_lesions(
    student: Student, labels: Labels, scans: Scans, gallery: Gallery
) -> list[dict[str, Any]]:
    """Pictures of `wrong_lesions`."""
    drawn = []
    for what, lesions in wrong_lesions(student.lesions[student.shown]).items():
        for row in lesions:
            case = row["case"]
            about = f"{number(row['ml'], 2)} ml, {number(row['diameter_mm'], 0)} mm"

            def draw(row: Mapping[str, Any] = row, about: str = f"{what} tumour, {about}") -> bytes:
                case = row["case"]
                scan, tumour = scans[case], labels.tumour
                volume = (
                    scans.entry(case).read_label()
                    if row["side"] == REFERENCE
                    else student.predictions.read_label(case, LABEL)
                )
                mask = piece_of(volume, tumour.value, row["lesion"])
                return drawing.draw_piece(scan.image, scan.spacing, mask, f"{case}: {about}")

            alt = f"{what.capitalize()} tumour of {about} in case {case}, outlined on CT"
            if picture := gallery.add("lesions", draw, alt):
                place = f"lesion:{case}:{row['side']}:{row['lesion']}"
                found = {"what": what, "about": about, "case": case}
                drawn.append(found | {"picture": picture, "place": place})
    return drawn
