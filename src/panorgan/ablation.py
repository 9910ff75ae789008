"""The ablation: students that differ in their labels only, compared on the same cases and seeds.

Every measure is a mean over seeds of a mean over cases. The uncertainty is that of both: a
bootstrap sample draws cases and seeds with replacement, independently of each other (Owen, The
pigeonhole bootstrap, Ann. Appl. Stat. 1, 2007), and the same ones for every arm, so that
differences between arms are paired. Intervals are percentiles.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panorgan.bootstrap import COVERAGE, draw, interval
from panorgan.labels import Labels
from panorgan.metrics import BOTH_EMPTY, FALSE_POSITIVE, MISSED, NOT_SCORED, SCORED, Row
from panorgan.pages import MISSING
from panorgan.problems import Problem, Problems

BASE = "stage2"
"""The arm that the others are compared with: the method itself."""

LEARNS_FROM = {
    "partial": "partial labels as they are: what nobody annotated is background",
    "marginal": "partial labels with the marginal loss: what nobody annotated is not background",
    "stage1": "partial labels + tumour pseudo-labels",
    "stage2": "partial labels + tumour + organ pseudo-labels: the method",
    "gated": "stage 2 without the pieces that the gate does not trust",
    "rounds": "stage 2, its pseudo-labels made again by the student",
    "noise": "stage 2 with shuffled organ pseudo-labels",
}
INSTEAD = {
    "partial": "From partial labels as they are",
    "marginal": "From partial labels with the marginal loss",
    "stage1": "Without stage 2",
    "gated": "With the gate",
    "rounds": "With a further round",
    "noise": "With noise instead of organ pseudo-labels",
}
"""How a sentence about an arm begins."""
MUST_FALL = ("stage1", "noise")
"""Arms in which organs have to be worse than in `BASE`, if its organ pseudo-labels teach organs."""


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


def measure_cases(rows: Iterable[Row], labels: Labels) -> dict[str, dict[str, float]]:
    """What each measure is in each case of one student.

    Parameters
    ----------
    rows
        Scores of all cases and classes, as `metrics.read_scores` gives them.
    labels
        The class table.

    Returns
    -------
    dict
        Case -> measure -> value. A case has only the measures that it bears on: organs (mean over
        those whose truth is known), the tumour if the reference has one, else, if the truth is
        known, `false_tumours`: 1 if a tumour is predicted and 0 if not.

    Raises
    ------
    ValueError
        If a case does not have each class once.
    """
    by_case: dict[str, dict[int, Row]] = {}
    for row in rows:
        found = by_case.setdefault(row["case"], {})
        if row["value"] in found:
            raise ValueError(f"{row['case']} has class {row['name']} twice")
        found[row["value"]] = row
    measured = {}
    for case, found in sorted(by_case.items()):
        if missing := [label.name for label in labels.labels if label.value not in found]:
            raise ValueError(f"{case} lacks class {missing[0]}")
        organs = [found[label.value] for label in labels.organs]
        organs = [row for row in organs if row["status"] != NOT_SCORED]
        tumour = found[labels.tumour.value]
        own = measured[case] = {}
        if organs:
            for score in ("dsc", "nsd"):
                own[f"organs_{score}"] = float(np.mean([row[score] for row in organs]))
        if tumour["status"] in (SCORED, MISSED):
            own |= {f"tumour_{score}": tumour[score] for score in ("dsc", "nsd")}
        elif tumour["status"] in (BOTH_EMPTY, FALSE_POSITIVE):
            own["false_tumours"] = float(tumour["status"] == FALSE_POSITIVE)
    return measured


def compare(
    arms: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]],
    *,
    samples: int,
    seed: int,
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
        cases and seeds (their numbers), samples, coverage, and arms: arm -> measure -> mean, low,
        high (the interval), seeds (the mean of each), cases (that the measure bears on), and
        difference, difference_low, difference_high to `BASE`. Numbers are None where there is no
        such case, and differences where there is no `BASE`, or the arm is it.

    Raises
    ------
    Problems
        If the arms cannot be compared.
    """
    cases = _same_cases(arms)
    count = len(next(iter(arms.values())))
    # (arm, measure, seed, case); a measure bears on the same cases in all arms.
    values = np.array(
        [
            [
                [
                    [student[case].get(measure.name, np.nan) for case in cases]
                    for student in students
                ]
                for measure in MEASURES
            ]
            for students in arms.values()
        ]
    )
    bears = ~np.isnan(values[0, :, 0])
    values = np.nan_to_num(values)
    rng = np.random.default_rng(seed)
    of_cases, of_seeds = draw(rng, len(cases), samples), draw(rng, count, samples)
    once, each = np.ones((1, len(cases))), np.eye(count)
    by_seed = _means(values, bears, np.repeat(once, count, 0), each)
    mean = _means(values, bears, once, np.ones((1, count)))[..., 0]
    drawn = _means(values, bears, of_cases, of_seeds)
    low, high = interval(drawn)
    base = list(arms).index(BASE) if BASE in arms else None
    if base is not None:
        difference = mean - mean[base]
        difference_low, difference_high = interval(drawn - drawn[base])
    found: dict[str, Any] = {}
    for a, arm in enumerate(arms):
        found[arm] = {}
        for m, measure in enumerate(MEASURES):
            entry = found[arm][measure.name] = {
                "mean": _number(mean[a, m]),
                "low": _number(low[a, m]),
                "high": _number(high[a, m]),
                "seeds": [_number(value) for value in by_seed[a, m]],
                "cases": int(bears[m].sum()),
                "difference": None,
                "difference_low": None,
                "difference_high": None,
            }
            if base not in (None, a):
                entry["difference"] = _number(difference[a, m])
                entry["difference_low"] = _number(difference_low[a, m])
                entry["difference_high"] = _number(difference_high[a, m])
    return {
        "cases": len(cases),
        "seeds": count,
        "samples": samples,
        "coverage": COVERAGE,
        "arms": found,
    }


def _same_cases(
    arms: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]],
) -> list[str]:
    """The cases of every student; Problems if they or what is known of them differ."""
    problems = []
    first = next((students[0] for students in arms.values() if students), None)
    if not first:
        raise Problems.one("there is no scored case", "label validation cases", case="ablation")
    first_arm = next(arm for arm, students in arms.items() if students)
    count = len(arms[first_arm])
    cure = "score the arms again on the same cases"
    for arm, students in arms.items():
        if len(students) != count:
            cause = f"{len(students)} seeds, but {first_arm} has {count}"
            problems.append(Problem(arm, "", cause, "train every arm with the same seeds"))
        for number, student in enumerate(students, 1):
            where = f"{arm}, student {number} of {len(students)}"
            if other := sorted(student.keys() ^ first.keys()):
                word = "lacks" if other[0] in first else "has also"
                cause = f"{word} case {other[0]}; cases that differ from {first_arm}: {len(other)}"
                problems.append(Problem(where, "", cause, cure))
                continue
            for case, known in first.items():
                if student[case].keys() != known.keys():
                    cause = f"case {case} has another truth than in {first_arm}"
                    problems.append(Problem(where, "", cause, cure))
                    break
    if problems:
        raise Problems(problems)
    return sorted(first)


def _means(
    values: np.ndarray, bears: np.ndarray, of_cases: np.ndarray, of_seeds: np.ndarray
) -> np.ndarray:
    """Means (arm, measure, sample) with weights (sample, case) and (sample, seed); NaN of none."""
    sums = ((values @ of_cases.T) * of_seeds.T).sum(axis=2)
    weights = (bears @ of_cases.T) * of_seeds.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return sums / np.where(weights == 0, np.nan, weights)


def _number(value: float) -> float | None:
    # Six decimals hide the order in which a machine's library adds.
    return None if np.isnan(value) else round(float(value), 6) + 0.0


COLUMNS = (
    "arm", "measure", "mean", "low", "high", "lowest_seed", "highest_seed", "cases", "seeds",
    "difference", "difference_low", "difference_high",
)  # fmt: skip
"""Of the table: a row an arm and measure, numbers between 0 and 1."""


def table_rows(result: Mapping[str, Any]) -> list[dict[str, object]]:
    """What `compare` found as rows with `COLUMNS`."""
    rows = []
    for arm, measures in result["arms"].items():
        for name, entry in measures.items():
            seeds = [value for value in entry["seeds"] if value is not None]
            row = {key: entry[key] for key in COLUMNS if key in entry}
            row |= {"arm": arm, "measure": name, "seeds": result["seeds"]}
            row |= {
                "lowest_seed": min(seeds, default=None),
                "highest_seed": max(seeds, default=None),
            }
            rows.append(row)
    return rows


def page_text(result: Mapping[str, Any], split: str) -> str:
    """What `compare` found as Markdown: the table, how it was made, and what it says."""
    arms = result["arms"]
    shown = next(iter(arms.values()))
    lines = [
        "# Ablation",
        "",
        "Students that differ in nothing but the labels that they learn from.",
        "",
        *_table(result),
        "",
        f"In percent, {split} cases: mean over {_count(result['seeds'], 'seed')}, in brackets the "
        "lowest and the highest seed, below the "
        f"{result['coverage']:.0%} interval. Organs: over {_count_cases(shown, 'organs_dsc')}, the "
        "mean of the organs in each. Tumour: over "
        f"{_count_cases(shown, 'tumour_dsc')} with a tumour. False tumours: the share of "
        f"{_count_cases(shown, 'false_tumours')} without a tumour in which one is predicted. "
        f"Last columns: difference to {BASE} in points and its interval.",
        "",
        f"Intervals are percentiles of {result['samples']:,} bootstrap samples that draw cases and "
        "seeds with replacement, the same ones for every arm, so that differences are paired."
        + _few_seeds(result["seeds"]),
        "",
        "## What it says",
        "",
    ]
    if BASE not in arms:
        return "\n".join([*lines, f"There is no arm {BASE} to compare with.", ""])
    warnings = [text for arm in MUST_FALL if arm in arms for text in _warn(arm, arms[arm])]
    lines += [f"**Warning: {text}**\n" for text in warnings]
    sentences = [_sentence(arm, arms[arm]) for arm in arms if arm != BASE]
    if not sentences:
        sentences = ["There is no other arm to compare with."]
    return "\n".join([*lines, *(f"* {sentence}" for sentence in sentences), ""])


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
    lines = [_row(heads), _row(["---", "---"] + ["---:"] * (len(heads) - 2))]
    for arm, measures in result["arms"].items():
        cells = [arm, LEARNS_FROM.get(arm, "")]
        cells += [_cell(measures[measure.name]) for measure in MEASURES]
        if against:
            cells += [_difference_cell(measures[measure.name]) for measure in spoken]
        lines.append(_row(cells))
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return MISSING
    seeds = [value for value in entry["seeds"] if value is not None]
    spread = f" [{_percent(min(seeds))}, {_percent(max(seeds))}]" if len(seeds) > 1 else ""
    return f"{_percent(entry['mean'])}{spread}<br>{_range(entry['low'], entry['high'])}"


def _difference_cell(entry: Mapping[str, Any]) -> str:
    if entry["difference"] is None:
        return MISSING
    interval = _range(entry["difference_low"], entry["difference_high"])
    return f"{_signed(entry['difference'])}<br>{interval}"


def _percent(value: float) -> str:
    # No minus before a zero.
    return f"{round(value * 100, 1) + 0.0:.1f}"


def _signed(value: float) -> str:
    text = _percent(value)
    return text if text.startswith("-") or text == "0.0" else f"+{text}"


def _range(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _count_cases(measures: Mapping[str, Any], name: str) -> str:
    return _count(measures[name]["cases"], "case")


def _sentence(arm: str, measures: Mapping[str, Any]) -> str:
    """How an arm differs from `BASE`."""
    changed, same = [], []
    for measure in MEASURES:
        entry = measures[measure.name]
        if not measure.subject or entry["difference"] is None:
            continue
        difference, low, high = (
            entry[key] for key in ("difference", "difference_low", "difference_high")
        )
        if low <= 0 <= high:
            same.append(f"{measure.subject} {_signed(difference)} ({_range(low, high)})")
        elif difference < 0:
            text = f"{_percent(-difference)} ({_range(-high, -low)})"
            changed.append(f"{measure.subject} fall by {text}")
        else:
            text = f"{_percent(difference)} ({_range(low, high)})"
            changed.append(f"{measure.subject} rise by {text}")
    parts = []
    if changed:
        parts.append(" and ".join(changed))
    if same:
        nothing = "not measurably different are" if changed else "nothing changes measurably:"
        parts.append(f"{nothing} {', '.join(same)}")
    begin = INSTEAD.get(arm, f"In the arm {arm}")
    return f"{begin}, {'; '.join(parts) or 'nothing could be compared'}."


def _warn(arm: str, measures: Mapping[str, Any]) -> list[str]:
    """What must hold of an arm and does not."""
    entry = measures["organs_dsc"]
    if entry["difference"] is None or entry["difference_high"] < 0:
        return []
    interval = _range(entry["difference_low"], entry["difference_high"])
    begin = INSTEAD[arm][0].lower() + INSTEAD[arm][1:]
    return [
        f"{begin}, organs are not measurably worse: {_signed(entry['difference'])} ({interval}). "
        "Then stage 2's organ pseudo-labels teach nothing that these scores show."
    ]
