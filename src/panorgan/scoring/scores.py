"""What scores of many cases come to: means as the challenge rounds them, and lesions found."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from panorgan.config.labels import Label, Labels
from panorgan.config.registry import PROFILES
from panorgan.io.formats import MISSING, percent
from panorgan.io.tables import why_no_text
from panorgan.io.writing import write_text
from panorgan.scoring.bootstrap import TOO_FEW, drawn_means, fewest, interval, mean
from panorgan.scoring.frames import LESIONS, SCORES
from panorgan.scoring.lesions import OVERLAP, PREDICTION, REFERENCE, SIDES
from panorgan.scoring.metrics import (
    BOTH_EMPTY,
    FALSE_POSITIVE,
    MISSED,
    NOT_SCORED,
    SCORED,
    rounded,
)

SAMPLES = 2000
"""Bootstrap samples where nothing else is said."""
BOOTSTRAP_SEED = 0
SIZES_MM = (10.0, 20.0, 50.0)
"""Bounds of the groups of lesions by diameter, where nothing else is said."""
BOTH = ("dsc", "nsd")
ORGANS_PRESENT, ALL_PRESENT = "Organs in a reference", "Classes in a reference"


def summarise(
    scores: pd.DataFrame,
    labels: Labels,
    profile: str,
    *,
    samples: int = SAMPLES,
    lesions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Class means, organ mean and the tumour apart, rounded as the official script does.

    Parameters
    ----------
    scores
        Of all cases, with the columns of `SCORES`.
    labels
        The class table.
    profile
        The rules that the cases were scored by; kept in the summary.
    samples
        Bootstrap samples for the intervals.
    lesions
        What `summarise_lesions` found, kept in the summary.

    Returns
    -------
    dict
        profile, class_table (as in labels.yaml), cases (their number), then:

        classes
            name -> value, dsc, nsd, cases (with a score), hd95_mm (the median over hd95_cases,
            those with the class in both volumes), one_sided (cases with the class in only one of
            them, which have no HD95), ml_error and ml_abs_error (means of prediction minus
            reference). No case: the numbers are None.
        organs, all
            dsc, nsd: mean of the class means of the organs and of all classes; classes: over how
            many classes, those without a scored case being left out.
        tumour
            dsc, nsd, cases, as in classes; positive: the same over the cases whose reference has
            a tumour; tumour_free: cases, false_positives (cases with a predicted tumour) and
            false_positive_ml (their sum).
        with_reference
            absent: names of the classes that are known but in no reference, each of which lifts
            means by 1 where none is predicted; organs, all: the same as above without them.
        equal_cases
            How many predictions, not empty, are equal to their references in all that is scored.
        profiles
            By every profile: dsc and nsd of organs, tumour and all.
        samples, lesions
            As given.

        Beside each dsc and nsd but those of profiles is its interval (dsc_interval,
        nsd_interval): the lower and the upper end that hold 95 % of the bootstrap samples of
        cases, or None (see `bootstrap.interval`; a mean of classes has the `fewest` cases of one).
    """
    # Order decides the last bit of a mean and with it ties in the rounding; the official script
    # goes through the sorted file names.
    scores = scores.sort_values("case", key=lambda case: case + ".nii.gz", kind="stable")
    known = scores[scores["status"] != NOT_SCORED]
    cases = scores["case"].unique()
    values = [label.value for label in labels.labels]

    def by_class(score: str, rules: str) -> pd.DataFrame:
        """Scores (case, class)."""
        wide = known.pivot(index="case", columns="value", values=f"{score}_{rules}")
        return wide.reindex(index=cases, columns=values)

    means = {
        (score, rules): {
            value: rounded_mean(column) for value, column in by_class(score, rules).items()
        }
        for score in BOTH
        for rules in PROFILES
    }
    # The same cases are drawn for all classes: a mean of classes is one of whole cases.
    drawn = {score: _drawn(by_class(score, profile), samples) for score in BOTH}
    counts = {value: int((known["value"] == value).sum()) for value in values}

    def of_class(label: Label) -> dict[str, Any]:
        found = {score: means[score, profile][label.value] for score in BOTH}
        found["cases"] = counts[label.value]
        own = [drawn[score][values.index(label.value)] for score in BOTH]
        return found | _intervals(own, counts[label.value])

    def errors(label: Label) -> dict[str, Any]:
        own = known[known["value"] == label.value]
        distances, error = own["hd95_mm"].dropna(), own["pred_ml"] - own["ref_ml"]
        return {
            "hd95_mm": rounded(np.median(distances)) if len(distances) else None,
            "hd95_cases": len(distances),
            "one_sided": int(own["status"].isin((MISSED, FALSE_POSITIVE)).sum()),
            "ml_error": rounded_mean(error),
            "ml_abs_error": rounded_mean(error.abs()),
        }

    def of_classes(chosen: Iterable[Label], rules: str) -> dict[str, Any]:
        """The mean of the class means by some rules."""
        found = {score: [means[score, rules][label.value] for label in chosen] for score in BOTH}
        return {score: rounded_mean(own) for score, own in found.items()}

    def with_intervals(chosen: Sequence[Label]) -> dict[str, Any]:
        places = [values.index(label.value) for label in chosen]
        own = [counts[label.value] for label in chosen]
        intervals = _intervals([mean(drawn[score][places], axis=0) for score in BOTH], fewest(own))
        return of_classes(chosen, profile) | intervals | {"classes": len([*filter(None, own)])}

    tumour = known[known["value"] == labels.tumour.value]
    positive = tumour[tumour["status"].isin((SCORED, MISSED))]
    positive = positive[[f"{score}_{profile}" for score in BOTH]]
    free = tumour[tumour["status"].isin((BOTH_EMPTY, FALSE_POSITIVE))]
    false = free.loc[free["status"] == FALSE_POSITIVE, "pred_ml"]
    parts = {"organs": labels.organs, "tumour": (labels.tumour,), "all": labels.labels}
    absent = absent_classes(known)
    return {
        "profile": profile,
        "class_table": labels.model_dump(mode="json", by_alias=True),
        "cases": len(cases),
        "classes": {
            label.name: {"value": label.value, **of_class(label), **errors(label)}
            for label in labels.labels
        },
        "organs": with_intervals(labels.organs),
        "tumour": {
            **of_class(labels.tumour),
            "positive": {
                **{score: rounded_mean(positive[f"{score}_{profile}"]) for score in BOTH},
                "cases": len(positive),
                **_intervals(_drawn(positive, samples), len(positive)),
            },
            "tumour_free": {
                "cases": len(free),
                "false_positives": len(false),
                "false_positive_ml": round(sum(false.tolist()), 3),
            },
        },
        "all": with_intervals(labels.labels),
        "with_reference": {
            "absent": [label.name for label in labels.labels if label.value in absent],
            **{
                part: with_intervals([label for label in parts[part] if label.value not in absent])
                for part in ("organs", "all")
            },
        },
        "equal_cases": _equal_cases(known),
        "profiles": {
            rules: {part: of_classes(chosen, rules) for part, chosen in parts.items()}
            for rules in PROFILES
        },
        "samples": samples,
        "lesions": lesions,
    }


def rounded_mean(numbers: Iterable[float | None]) -> float | None:
    """The mean of what is known, rounded as the challenge does it; None of nothing."""
    known = pd.Series(list(numbers), dtype=float).dropna()
    return rounded(np.mean(known.to_numpy())) if len(known) else None


def _drawn(columns: pd.DataFrame, samples: int) -> np.ndarray:
    return drawn_means(columns.to_numpy(), samples, BOOTSTRAP_SEED)


def _intervals(drawn: Sequence[np.ndarray], cases: int) -> dict[str, list[float] | None]:
    return {
        f"{score}_interval": _interval(one, cases) for score, one in zip(BOTH, drawn, strict=True)
    }


def _interval(drawn: np.ndarray, cases: int) -> list[float] | None:
    ends = interval(drawn, cases)
    return None if np.isnan(ends).any() else [rounded(end) for end in ends]


def absent_classes(scores: pd.DataFrame) -> set[int]:
    """Values of the classes that are known in some case but that no reference has."""
    present = scores["status"].isin((SCORED, MISSED))
    known = scores["status"] != NOT_SCORED
    return {*scores.loc[known, "value"]} - {*scores.loc[present, "value"]}


def _equal_cases(known: pd.DataFrame) -> int:
    """How many cases' predictions are equal to their references in all that is scored."""
    scored = known["status"] == SCORED
    alike = (known[["dsc_corrected", "nsd_corrected"]] == 1).all(axis=1) & (known["hd95_mm"] == 0)
    alike = alike & (known["pred_ml"] == known["ref_ml"]) | (known["status"] == BOTH_EMPTY)
    cases = known["case"]
    return int((alike.groupby(cases).all() & scored.groupby(cases).any()).sum())


def summarise_lesions(
    lesions: pd.DataFrame,
    scores: pd.DataFrame,
    tumour: int,
    *,
    overlap: float = OVERLAP,
    sizes_mm: Sequence[float] = SIZES_MM,
    samples: int = SAMPLES,
) -> dict[str, Any] | None:
    """Detection over all cases and by size.

    Parameters
    ----------
    lesions
        Of all cases, with the columns of `LESIONS`.
    scores
        Of the same cases, with those of `SCORES`: they say where the truth is known.
    tumour
        The value of tumours.
    overlap
        That of `lesions.find_lesions`; kept in the summary.
    sizes_mm
        Bounds of the groups by diameter: a lesion belongs to the one whose lower bound it reaches.
    samples
        Bootstrap samples for the intervals.

    Returns
    -------
    dict or None
        overlap and cases (whose truth is known); reference, found and sensitivity (lesions of the
        reference); prediction, true and precision (predicted lesions), all with sizes: the same by
        size with title, low_mm and high_mm (None: open); sensitivity_interval and
        precision_interval (95 % of the bootstrap samples of cases, or None where too few have such
        a lesion; see `bootstrap.interval`); false_per_case;
        tumour_free: cases, false (lesions) and false_per_case. None if no truth is known.
    """
    known = scores[(scores["value"] == tumour) & (scores["status"] != NOT_SCORED)]
    if known.empty:
        return None
    cases = known["case"]
    free = cases[~known["status"].isin((SCORED, MISSED))]
    lesions = lesions[lesions["case"].isin(cases)]
    false = lesions[(lesions["side"] == PREDICTION) & ~lesions["hit"]]
    false_in_free = int(false["case"].isin(free).sum())
    size = lesions["diameter_mm"]
    return {
        "overlap": overlap,
        "cases": len(cases),
        **_counts(lesions),
        "sensitivity_interval": _ratio_interval(lesions, cases, REFERENCE, samples),
        "precision_interval": _ratio_interval(lesions, cases, PREDICTION, samples),
        "false_per_case": round(len(false) / len(cases), 4),
        "tumour_free": {
            "cases": len(free),
            "false": false_in_free,
            "false_per_case": round(false_in_free / len(free), 4) if len(free) else None,
        },
        "sizes": [
            {
                "title": _title(low, high),
                "low_mm": low,
                "high_mm": None if high == np.inf else high,
                **_counts(lesions[(low <= size) & (size < high)]),
            }
            for low, high in pairwise([0.0, *sizes_mm, np.inf])
        ],
    }


def _counts(lesions: pd.DataFrame) -> dict[str, Any]:
    found = {}
    for side, hits, rate in zip(
        SIDES, ("found", "true"), ("sensitivity", "precision"), strict=True
    ):
        hit = lesions.loc[lesions["side"] == side, "hit"]
        found |= {side: len(hit), hits: int(hit.sum())}
        found[rate] = round(found[hits] / len(hit), 4) if len(hit) else None
    return found


def _title(low: float, high: float) -> str:
    if high == np.inf:
        return f"{low:g} mm and more"
    return f"{low:g} to {high:g} mm" if low else f"below {high:g} mm"


def _ratio_interval(
    lesions: pd.DataFrame, cases: pd.Series, side: str, samples: int
) -> list[float] | None:
    """Of the share of a side's lesions that are hits: cases are drawn, not lesions."""
    by_case = lesions[lesions["side"] == side].groupby("case")["hit"]
    counts = by_case.agg(["sum", "size"]).reindex(cases, fill_value=0)
    hits, found = _drawn(counts, samples)
    ends = interval(hits / np.where(found == 0, np.nan, found), len(by_case))
    return None if np.isnan(ends).any() else [round(float(end), 4) for end in ends]


def write_scores(scores: pd.DataFrame, summary: Mapping[str, Any], folder: str | Path) -> None:
    """Write `cases.csv` and `summary.json` into a folder."""
    SCORES.write(Path(folder) / "cases.csv", scores)
    write_text(Path(folder) / "summary.json", json.dumps(summary, indent=2) + "\n")


def read_scores(path: str | Path) -> pd.DataFrame:
    """A `cases.csv`; Problems if it cannot be read or is no table of scores."""
    return SCORES.read(path)


def faults(scores: pd.DataFrame, classes: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """Cases without a row of each class and a score where it is known, or with a name that is no
    text in a table; and what is wrong.

    Parameters
    ----------
    scores
        With case, value, name, status, dsc and nsd.
    classes
        Names by value.
    """
    place = ["case", "value"]
    for case in scores["case"].unique():
        if fault := why_no_text(case):
            yield case, f"its name {fault}"
    for row in scores[scores.duplicated(place)].itertuples():
        yield row.case, f"has class {row.name} twice"
    unknown = scores[[*BOTH]].isna().any(axis=1) & (scores["status"] != NOT_SCORED)
    for row in scores[unknown].itertuples():
        yield row.case, f"has no score of {row.name}, though it is {row.status}"
    every = pd.MultiIndex.from_product([scores["case"].unique(), classes], names=place)
    for case, value in every.difference(pd.MultiIndex.from_frame(scores[place])):
        yield case, f"lacks class {classes[value]}"


def read_lesions(path: str | Path) -> pd.DataFrame:
    """A `lesions.csv`; Problems if it cannot be read or is no table of lesions."""
    return LESIONS.read(path)


ScoreRow = tuple[str, str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]


def score_rows(labels: Labels, summaries: Iterable[Mapping[str, Any]]) -> list[ScoreRow]:
    """Rows of a table of scores: title, colour (of means none), and where a summary has them.

    Where one of the summaries has classes that no reference has, the means without them too.
    """
    absent = {name for summary in summaries for name in summary["with_reference"]["absent"]}
    rows: list[ScoreRow] = [
        (label.title, label.colour, lambda summary, name=label.name: summary["classes"][name])
        for label in labels.labels
    ]
    rows.append(("Mean of the organs", "", itemgetter("organs")))
    if absent - {labels.tumour_name}:
        rows.append((ORGANS_PRESENT, "", lambda summary: summary["with_reference"]["organs"]))
    rows.append(("Mean of all classes", "", itemgetter("all")))
    if absent:
        rows.append((ALL_PRESENT, "", lambda summary: summary["with_reference"]["all"]))
    title = f"{labels.tumour.title}, only cases with one"
    return [*rows, (title, "", lambda summary: summary["tumour"]["positive"])]


def remarks(summary: Mapping[str, Any], labels: Labels) -> list[str]:
    """What lifts a summary's means, or what they lack: a sentence each, or none."""
    said = []
    if equal := summary["equal_cases"]:
        begin = "WARNING: predictions" if equal == summary["cases"] else "Predictions"
        said.append(
            f"{begin} that are equal to their references: {equal} of {summary['cases']}. Are they "
            "copies? Then these scores say nothing."
        )
    if absent := summary["with_reference"]["absent"]:
        parts = {"organs": "organs", "all": "all classes"}
        if absent == [labels.tumour_name]:
            del parts["organs"]
        means = "; ".join(
            f"{title} DSC {percent(found['dsc'])}, NSD {percent(found['nsd'])}"
            for part, title in parts.items()
            for found in [summary["with_reference"][part]]
        )
        titles = [labels.by_name(name).title for name in absent]
        said.append(f"{absent_text(titles)}; without it the means are: {means}.")
    if unknown := len(labels.labels) - summary["all"]["classes"]:
        said.append(f"Known in no case, so in no mean: {unknown} of {len(labels.labels)} classes.")
    return said


def absent_text(names: Iterable[str]) -> str:
    """That no reference has some classes, and what that does; no full stop."""
    classes = ", ".join(names)
    return f"In no reference: {classes}; such a class counts 100 where it is not predicted, else 0"


def hd95_text(summary: Mapping[str, Any], labels: Labels) -> str:
    """In how many cases HD95 leaves out that only one volume has a class; empty where in none."""
    few = [
        f"{label.title} {found['one_sided']} of {found['one_sided'] + found['hd95_cases']}"
        for label in labels.labels
        for found in [summary["classes"][label.name]]
        if found["one_sided"]
    ]
    return f"HD95 leaves out cases with the class on one side only: {', '.join(few)}." * bool(few)


def interval_text(summary: Mapping[str, Any]) -> str:
    """Why some of the scores have no interval; empty where all have one."""
    entries = [*summary["classes"].values(), summary["tumour"]["positive"]]
    if all(found["dsc_interval"] for found in entries if found["cases"]):
        return ""
    return f"({MISSING}): {TOO_FEW}, nor of a mean with such a class."
