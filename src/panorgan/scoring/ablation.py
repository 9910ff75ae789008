"""The ablation: students that differ in their labels only, compared on the same cases and seeds.

Every measure is a mean over seeds of a mean over cases. The uncertainty is that of both: a
bootstrap sample draws cases and seeds (`bootstrap.compare`), the same ones for every arm, so that
differences between arms are paired.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from panorgan.config.labels import Labels
from panorgan.config.registry import ARMS
from panorgan.io.formats import MISSING, count, percent, points, span
from panorgan.problems import Problem, Problems
from panorgan.scoring import bootstrap
from panorgan.scoring.bootstrap import COVERAGE, TOO_FEW
from panorgan.scoring.frames import ABLATION
from panorgan.scoring.metrics import BOTH_EMPTY, FALSE_POSITIVE, MISSED, NOT_SCORED, SCORED
from panorgan.scoring.scores import absent_classes, absent_text, faults

BASE = next(name for name, arm in ARMS.items() if arm.instead is None)
"""The arm that the others are compared with: the method itself."""


@dataclass(frozen=True)
class Measure:
    """One number of an arm, between 0 and 1."""

    name: str
    title: str
    subject: str


MEASURES = (
    Measure("organs_dsc", "Organs DSC", "organs"),
    Measure("organs_nsd", "Organs NSD", ""),
    Measure("tumour_dsc", "Tumour DSC", "tumours"),
    Measure("tumour_nsd", "Tumour NSD", ""),
    Measure("false_tumours", "False tumours", "false tumours"),
)
"""`subject` names those that the text speaks of."""


def measure_cases(
    scores: pd.DataFrame, labels: Labels, without: Collection[int] = ()
) -> pd.DataFrame:
    """What each measure is in each case of one student.

    Parameters
    ----------
    scores
        Of all cases and classes, with the columns of `frames.SCORES`.
    labels
        The class table.
    without
        Values of organs that are left out.

    Returns
    -------
    (cases, measures) float
        Sorted by case. NaN where a case does not bear on a measure: organs are the mean over those
        whose truth is known, the tumour is measured if the reference has one, else, if the truth is
        known, `false_tumours`: 1 if a tumour is predicted and 0 if not.

    Raises
    ------
    ValueError
        If a case does not have each class once, or lacks a score of one that is known.
    """
    for case, cause in faults(scores, {label.value: label.name for label in labels.labels}):
        raise ValueError(f"{case} {cause}")
    known = scores["status"] != NOT_SCORED
    tumour = scores["value"] == labels.tumour.value
    organs = scores[known & ~tumour & ~scores["value"].isin(without)]
    organs = organs.groupby("case")[["dsc", "nsd"]]
    # NumPy's mean, as everywhere: that of pandas' groups differs in its last bit.
    organs = organs.agg(lambda own: np.mean(own.to_numpy()))
    tumours = scores[tumour & scores["status"].isin((SCORED, MISSED))].set_index("case")
    free = scores[tumour & scores["status"].isin((BOTH_EMPTY, FALSE_POSITIVE))].set_index("case")
    return pd.DataFrame(
        {f"organs_{score}": organs[score] for score in ("dsc", "nsd")}
        | {f"tumour_{score}": tumours[score] for score in ("dsc", "nsd")}
        | {"false_tumours": (free["status"] == FALSE_POSITIVE).astype(float)},
        index=sorted(scores["case"].unique()),
    )


def compare(
    arms: Mapping[str, Sequence[pd.DataFrame]], *, samples: int, seed: int
) -> dict[str, Any]:
    """Every arm's measures and their differences to `BASE`, with intervals.

    Parameters
    ----------
    arms
        Arm -> for each seed what `measure_cases` gives; every arm with the same cases, number of
        seeds, and measures that bear on a case.
    samples
        Of the bootstrap.
    seed
        Of its random numbers.

    Returns
    -------
    dict
        cases and seeds (their numbers), samples, coverage, and arms: arm -> measure -> what
        `bootstrap.compare` says of it.

    Raises
    ------
    Problems
        If the arms cannot be compared.
    """
    _check_cases(arms)
    names = [measure.name for measure in MEASURES]
    values = np.array(
        [[student[names].to_numpy().T for student in students] for students in arms.values()]
    )
    base = list(arms).index(BASE) if BASE in arms else None
    found = bootstrap.compare(values, [1] * len(names), base=base, samples=samples, seed=seed)
    return {
        "cases": values.shape[3],
        "seeds": values.shape[1],
        "samples": samples,
        "coverage": COVERAGE,
        "arms": {
            arm: dict(zip(names, own, strict=True)) for arm, own in zip(arms, found, strict=True)
        },
    }


def without_absent(arms: Mapping[str, Sequence[pd.DataFrame]], labels: Labels) -> dict[str, Any]:
    """The organs' DSC without the organs that no reference has, each of which lifts it.

    Parameters
    ----------
    arms
        Arm -> for each seed what `measure_cases` takes.
    labels
        The class table.

    Returns
    -------
    dict
        absent: names of these organs; organs_dsc: arm -> mean over seeds of the mean over cases,
        None where no organ is left. Empty if a reference has each.
    """
    first = next(students[0] for students in arms.values() if students)
    absent = absent_classes(first) - {labels.tumour.value}
    if not absent:
        return {}
    means = {
        arm: np.mean([measure_cases(one, labels, absent)["organs_dsc"].mean() for one in students])
        for arm, students in arms.items()
    }
    return {
        "absent": [organ.name for organ in labels.organs if organ.value in absent],
        "organs_dsc": {arm: bootstrap.number(mean) for arm, mean in means.items()},
    }


def _check_cases(arms: Mapping[str, Sequence[pd.DataFrame]]) -> None:
    """Problems if the students' cases, or what is known of them, differ."""
    problems = []
    first_arm = next((arm for arm, students in arms.items() if students), "")
    if not first_arm or arms[first_arm][0].empty:
        raise Problems.one("there is no scored case", "label validation cases", case="ablation")
    first, seeds = arms[first_arm][0], len(arms[first_arm])
    cure = "score the arms again on the same cases"
    for arm, students in arms.items():
        if len(students) != seeds:
            cause = f"{len(students)} seeds, but {first_arm} has {seeds}"
            problems.append(Problem(arm, "", cause, "train every arm with the same seeds"))
        for at, student in enumerate(students, 1):
            where = f"{arm}, student {at} of {len(students)}"
            cause = ""
            if other := sorted({*student.index} ^ {*first.index}):
                word = "lacks" if other[0] in first.index else "has also"
                cause = f"{word} case {other[0]}; cases that differ from {first_arm}: {len(other)}"
            elif (differ := (student.isna() != first.isna()).any(axis=1)).any():
                cause = f"case {differ.idxmax()} has another truth than in {first_arm}"
            if cause:
                problems.append(Problem(where, "", cause, cure))
    if problems:
        raise Problems(problems)


def table_of(result: Mapping[str, Any]) -> pd.DataFrame:
    """What `compare` found as a frame of `ABLATION`."""
    rows = []
    for arm, measures in result["arms"].items():
        for name, entry in measures.items():
            known = [value for value in entry["seeds"] if value is not None] or [None]
            row = {"arm": arm, "measure": name, "seeds": result["seeds"]}
            rows.append(entry | row | {"lowest_seed": min(known), "highest_seed": max(known)})
    return ABLATION.frame(rows)


def page_text(result: Mapping[str, Any], split: str) -> str:
    """What `compare` found as Markdown: the table, how it was made, and what it says.

    With what `without_absent` found as `with_reference`, if there is anything.
    """
    arms = result["arms"]
    shown = next(iter(arms.values()))
    lines = [
        "# Ablation",
        "",
        "Students that differ in nothing but the labels that they learn from.",
        "",
        *_table(result),
        "",
        f"In percent, {split} cases: mean over {count(result['seeds'], 'seed')}, in brackets the "
        "lowest and the highest seed, below the "
        f"{result['coverage']:.0%} interval. Organs: over {_count_cases(shown, 'organs_dsc')}, the "
        "mean of the organs in each. Tumour: over "
        f"{_count_cases(shown, 'tumour_dsc')} with a tumour. False tumours: the share of "
        f"{_count_cases(shown, 'false_tumours')} without a tumour in which one is predicted. "
        f"Last columns: difference to {BASE} in points and its interval.",
        "",
        f"Intervals are percentiles of {result['samples']:,} bootstrap samples that draw cases and "
        "seeds with replacement, the same ones for every arm, so that differences are paired."
        + _few_seeds(result["seeds"])
        + f" {MISSING}: {TOO_FEW}."
        * any(one["cases"] and one["low"] is None for one in shown.values()),
        "",
        *_without_absent_text(result.get("with_reference")),
        "## What it says",
        "",
    ]
    if BASE not in arms:
        return "\n".join([*lines, f"There is no arm {BASE} to compare with.", ""])
    lower = [name for name, arm in ARMS.items() if arm.lowers_organs and name in arms]
    warnings = [text for arm in lower for text in _warn(arm, arms[arm])]
    lines += [f"**Warning: {text}**\n" for text in warnings]
    sentences = [_sentence(arm, arms[arm]) for arm in arms if arm != BASE]
    if not sentences:
        sentences = ["There is no other arm to compare with."]
    return "\n".join([*lines, *(f"* {sentence}" for sentence in sentences), ""])


def _without_absent_text(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    means = (f"{arm} {percent(mean, 1)}" for arm, mean in found["organs_dsc"].items())
    return [f"{absent_text(found['absent'])}; without it organs DSC is: {', '.join(means)}.", ""]


def _few_seeds(seeds: int) -> str:
    if seeds == 1:
        return " With a single seed they say nothing of chance in training."
    if seeds < 10:
        return f" Drawn from {seeds} seeds, chance in training comes out rather too small."
    return ""


def _table(result: Mapping[str, Any]) -> list[str]:
    against = BASE in result["arms"]
    heads = ["Arm", "Learns from", *(measure.title for measure in MEASURES)]
    spoken = [measure for measure in MEASURES if measure.subject]
    if against:
        heads += [f"Δ {measure.title}" for measure in spoken]
    lines = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    for arm, measures in result["arms"].items():
        cells = [arm, ARMS[arm].contents]
        cells += [_cell(measures[measure.name]) for measure in MEASURES]
        if against:
            cells += [_difference_cell(measures[measure.name]) for measure in spoken]
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return MISSING
    seeds = [value for value in entry["seeds"] if value is not None]
    spread = f" [{percent(min(seeds), 1)}, {percent(max(seeds), 1)}]" if len(seeds) > 1 else ""
    return f"{percent(entry['mean'], 1)}{spread}<br>{span(entry['low'], entry['high'], 1)}"


def _difference_cell(entry: Mapping[str, Any]) -> str:
    if entry["difference"] is None:
        return MISSING
    interval = span(entry["difference_low"], entry["difference_high"], 1)
    return f"{points(entry['difference'], 1)}<br>{interval}"


def _count_cases(measures: Mapping[str, Any], name: str) -> str:
    return count(measures[name]["cases"], "case")


def _sentence(arm: str, measures: Mapping[str, Any]) -> str:
    """How an arm differs from `BASE`."""
    changed, same, few = [], [], []
    for measure in MEASURES:
        entry = measures[measure.name]
        if not measure.subject or entry["difference"] is None:
            continue
        difference, low, high = (
            entry[key] for key in ("difference", "difference_low", "difference_high")
        )
        if low is None:
            few.append(f"{measure.subject} {points(difference, 1)}")
        elif low <= 0 <= high:
            same.append(f"{measure.subject} {points(difference, 1)} ({span(low, high, 1)})")
        elif difference < 0:
            text = f"{percent(-difference, 1)} ({span(-high, -low, 1)})"
            changed.append(f"{measure.subject} fall by {text}")
        else:
            text = f"{percent(difference, 1)} ({span(low, high, 1)})"
            changed.append(f"{measure.subject} rise by {text}")
    parts = []
    if changed:
        parts.append(" and ".join(changed))
    if same:
        nothing = "not measurably different are" if changed else "nothing changes measurably:"
        parts.append(f"{nothing} {', '.join(same)}")
    if few:
        parts.append(f"{TOO_FEW}: {', '.join(few)}")
    return f"{ARMS[arm].instead}, {'; '.join(parts) or 'nothing could be compared'}."


def _warn(arm: str, measures: Mapping[str, Any]) -> list[str]:
    """What must hold of an arm and does not."""
    entry, begin = measures["organs_dsc"], ARMS[arm].instead
    if entry["difference_high"] is None or entry["difference_high"] < 0:
        return []
    interval = span(entry["difference_low"], entry["difference_high"], 1)
    return [
        f"{begin[0].lower()}{begin[1:]}, organs are not measurably worse: "
        f"{points(entry['difference'], 1)} ({interval}). "
        "Then stage 2's organ pseudo-labels teach nothing that these scores show."
    ]
