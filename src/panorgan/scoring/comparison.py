"""Two scored runs, A and B, compared case by case: what changed, and whether that may be chance.

Means are those of `scores.summarise`. The interval of a difference is from a bootstrap that draws
cases, the same ones for both runs. The p value is that of Wilcoxon's signed-rank test of the
paired scores, two-sided: cases with equal scores are left out of it (Wilcoxon's own rule), and if
all are equal it is 1. It is exact up to 50 cases without ties and up to 13 with ties, else from
the normal distribution (SciPy's rule). Classes are many questions at once, so their p values are
corrected by Holm's method, those of DSC and of NSD each for themselves.

*Measurable* is a difference whose interval leaves out 0 and whose (corrected) p is below 0.05. From
fewer than five cases there is neither (`bootstrap.interval`).
"""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from panorgan.config.labels import Labels, load_labels
from panorgan.config.registry import PROFILES
from panorgan.io.formats import MISSING, WIDTH, count, percent, points, span
from panorgan.io.writing import write_text
from panorgan.problems import Problems
from panorgan.scoring.bootstrap import COVERAGE, TOO_FEW, compare, mean, number
from panorgan.scoring.frames import COMPARED_CASES, COMPARED_CLASSES
from panorgan.scoring.metrics import MISSED, NOT_SCORED, SCORED
from panorgan.scoring.scores import (
    ALL_PRESENT,
    BOOTSTRAP_SEED,
    BOTH,
    ORGANS_PRESENT,
    SAMPLES,
    absent_text,
    faults,
    read_scores,
    rounded_mean,
)

ALPHA = 0.05
MOST_FALLS, MOST_NAMES = 10, 5
ORGANS, ALL, POSITIVE = "organs", "all", "tumour_positive"
WITH_REFERENCE = {ORGANS: "organs_with_reference", ALL: "all_with_reference"}
MEANS = {ORGANS, ALL, POSITIVE, *WITH_REFERENCE.values()}
"""Rows of the comparison that are no class."""


@dataclass(frozen=True)
class Run:
    """A scored run: its table, the rules of its scores, its rows, and its class table.

    `scores` has case, value, name, status, dsc and nsd by these rules, and of the reference whether
    it has the class (`has`) and its `ref_ml`, NaN where the truth is unknown. `labels` is None if
    no summary beside the table says.
    """

    table: Path
    profile: str
    scores: pd.DataFrame
    labels: Labels | None = None

    @property
    def classes(self) -> dict[int, str]:
        named = self.scores.drop_duplicates("value", keep="last").sort_values("value")
        return dict(zip(named["value"], named["name"], strict=True))

    @property
    def cases(self) -> set[str]:
        return {*self.scores["case"]}


Line = tuple[str, str, list[int]]
"""One line of the comparison: a name, a title, and the classes that it is the mean of."""


def compare_paths(
    a: str | Path,
    b: str | Path,
    labels: Labels | None = None,
    profile: str | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare two scored runs.

    Parameters
    ----------
    a, b
        Each a `cases.csv`, or the folder of one.
    labels
        The class table: which classes are organs, and their titles; None: the one by which both
        were scored, or the shipped one if their summaries name none.
    profile
        By whose rules; None: those by which both were scored.
    samples, seed
        Of the bootstrap.

    Returns
    -------
    comparison
        profile; cases (that both have); a and b: path, cases (their number); only_a, only_b: names
        of cases that the other lacks; absent: names of the classes that are known but in no
        reference; samples, seed, coverage; classes: rows with the columns of `COMPARED_CLASSES` and
        title, first `organs`, `all` and `tumour_positive` as far as there are such classes, and
        those of `WITH_REFERENCE` if some are absent; falls: case, a, b and difference of the cases
        whose first row's DSC fell most; sentences. Scores are between 0 and 1, and None where no
        case bears on them. `p_holm` is None for what is no class; low, high and both p are None
        where there are too few cases.
    cases
        With the columns of `COMPARED_CASES`.

    Raises
    ------
    Problems
        If a table cannot be read, or the two cannot be compared.
    """
    first, second = read_run(a, profile), read_run(b, profile)
    labels = labels or first.labels or second.labels or load_labels()
    cases = _paired(first, second, labels)
    absent = _absent(cases)
    lines = _lines(first.classes, labels, absent)
    measures = [(score, line) for score in BOTH for line in lines]
    scores = [_columns(cases, score, line) for score, line in measures]
    names = cases["case"].unique().tolist()
    rows = _compare(measures, scores, names, samples, seed)
    comparison = {
        "profile": first.profile,
        "cases": len(names),
        "a": {"path": str(a), "cases": len(first.cases)},
        "b": {"path": str(b), "cases": len(second.cases)},
        "only_a": sorted(first.cases - second.cases),
        "only_b": sorted(second.cases - first.cases),
        "absent": [name for value, name in first.classes.items() if value in absent],
        "samples": samples,
        "seed": seed,
        "coverage": COVERAGE,
        "classes": rows,
        "falls": _falls(scores[0], names),
    }
    comparison["sentences"] = sentences(comparison)
    if absent:
        titles = [labels.by_name(name).title for name in comparison["absent"]]
        comparison["sentences"].insert(0, f"{absent_text(titles)}.")
    return comparison, cases


def read_run(path: str | Path, profile: str | None = None) -> Run:
    """A scored run with the scores of a profile; None: of the one that its summary names.

    Raises
    ------
    Problems
        If there is no table of scores, or none by this profile.
    """
    table = _table_in(Path(path))
    scores = read_scores(table)
    if scores.empty:
        raise Problems.one("holds no scored case", "compare runs with scores", file=table)
    own_profile, labels = _summary(table)
    profile = profile or own_profile
    if profile not in PROFILES:
        cause = "no summary.json beside it says by which profile it was scored"
        raise Problems.one(cause, "name one with --profile", file=table)
    scores = scores.assign(
        **{score: scores[f"{score}_{profile}"] for score in BOTH},
        has=scores["status"].isin((SCORED, MISSED)),
        ref_ml=scores["ref_ml"].where(scores["status"] != NOT_SCORED),
    )
    columns = ["case", "value", "name", "status", "ref_ml", "has", *BOTH]
    run = Run(table, profile, scores[columns], labels)
    for case, cause in faults(run.scores, run.classes):
        raise Problems.one(cause, "score it again", case=case, file=table)
    return run


def _table_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / "cases.csv").is_file():
        return path / "cases.csv"
    below = sorted(found.parent for found in path.glob("*/cases.csv"))
    cure = f"did you mean {below[0]}?" if below else "give a folder that panorgan evaluate wrote"
    raise Problems.one("holds no cases.csv", cure, file=path)


def _summary(table: Path) -> tuple[str | None, Labels | None]:
    """Profile and class table in the summary beside a table of scores; None for what is not."""
    try:
        summary = json.loads((table.parent / "summary.json").read_text(encoding="utf-8"))
        labels = summary.get("class_table")
        return summary.get("profile"), labels and Labels.model_validate(labels)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None, None


def _paired(a: Run, b: Run, labels: Labels) -> pd.DataFrame:
    """The cases of both; Problems if the runs were scored by other rules, classes or references."""
    if a.profile != b.profile:
        cause = f"scored by profile {b.profile}, but {a.table} by {a.profile}"
        raise Problems.one(cause, "name one for both with --profile", file=b.table)
    _check_classes(a, b, labels)
    both = a.scores.merge(b.scores, on=["case", "value", "name"], suffixes=("_a", "_b"))
    if both.empty:
        cause = f"has no case of {a.table}: their first cases are {min(b.cases)} and {min(a.cases)}"
        raise Problems.one(cause, "compare runs of the same data", file=b.table)
    # The order of `scores.summarise`, so that means agree to the last bit.
    both = both.sort_values("value").sort_values(
        "case", key=lambda case: case + ".nii.gz", kind="stable"
    )
    ml = both["ref_ml_a"].fillna(-1) != both["ref_ml_b"].fillna(-1)
    differing = both[ml | (both["has_a"] != both["has_b"])]
    for row in differing.head(1).itertuples():
        others = differing["case"].nunique() - 1
        more = f" (and {others} more {'case differs' if others == 1 else 'cases differ'})"
        cause = (
            f"the reference's {row.name} is {_truth_text(row.has_b, row.ref_ml_b)} here, but "
            f"{_truth_text(row.has_a, row.ref_ml_a)} in {a.table}{more if others else ''}"
        )
        cure = "score both runs against the same references"
        raise Problems.one(cause, cure, case=row.case, file=b.table)
    differences = {f"{score}_difference": both[f"{score}_b"] - both[f"{score}_a"] for score in BOTH}
    both = both.assign(**{name: found.round(4) + 0.0 for name, found in differences.items()})
    return both.rename(columns={"ref_ml_a": "ref_ml", "has_a": "has"})


def _check_classes(a: Run, b: Run, labels: Labels) -> None:
    if a.classes != b.classes:
        value, name = min({*a.classes.items()} ^ {*b.classes.items()})
        which, other = (a, b) if a.classes.get(value) == name else (b, a)
        cause = f"has class {value} ({name}), which {other.table} lacks"
        raise Problems.one(cause, "compare runs with the same classes", file=which.table)
    if strange := sorted({*a.classes.values()} - {*labels.names}):
        cause = f"has class {strange[0]}, which the class table lacks"
        raise Problems.one(cause, "name its table with --labels", file=a.table)
    if a.labels and b.labels and _rules(a.labels) != _rules(b.labels):
        cause = f"scored with other tolerances, slices or tumours than {a.table}"
        raise Problems.one(cause, "score both with one class table", file=b.table)


def _rules(labels: Labels) -> tuple[Any, ...]:
    """What scores depend on in a class table."""
    rows = sorted((one.value, one.tolerance_mm, one.crop_slices) for one in labels.labels)
    return labels.tumour_name, rows


def _truth_text(has: bool, ml: float) -> str:
    return "unknown" if np.isnan(ml) else f"{ml:.3f} ml" if has else "none"


def _absent(cases: pd.DataFrame) -> set[int]:
    """Values of the classes that are known in some of the cases, but that no reference has."""
    return {*cases.loc[cases["ref_ml"].notna(), "value"]} - {*cases.loc[cases["has"], "value"]}


def _lines(classes: Mapping[int, str], labels: Labels, absent: Container[int]) -> list[Line]:
    """What is compared: means, as far as there are such classes, then every class."""
    titles = {label.name: label.title for label in labels.labels}
    tumour = [value for value, name in classes.items() if name == labels.tumour_name]
    organs = [value for value in classes if value not in tumour]
    both = [*organs, *tumour] if organs and tumour else []

    def present(values: Sequence[int]) -> list[int]:
        """Those in a reference; none if these are all."""
        found = [value for value in values if value not in absent]
        return [] if len(found) == len(values) else found

    means = [
        (ORGANS, "Mean of the organs", organs),
        (WITH_REFERENCE[ORGANS], ORGANS_PRESENT, present(organs)),
        (ALL, "Mean of all classes", both),
        (WITH_REFERENCE[ALL], ALL_PRESENT, present(both)),
        (POSITIVE, f"{labels.tumour.title}, cases with one", tumour),
    ]
    single = [(name, titles[name], [value]) for value, name in classes.items()]
    return [line for line in means if line[2]] + single


def _columns(cases: pd.DataFrame, score: str, line: Line) -> np.ndarray:
    """The scores (runs, classes, cases) that a line is the mean of."""
    name, _, values = line
    chosen = cases[cases["value"].isin(values)]
    found = chosen[[f"{score}_a", f"{score}_b"]].to_numpy().T
    if name == POSITIVE:
        found = np.where(chosen["has"], found, np.nan)
    return np.ascontiguousarray(found.reshape(2, -1, len(values)).swapaxes(1, 2))


def _compare(
    measures: Sequence[tuple[str, Line]],
    scores: Sequence[np.ndarray],
    cases: Sequence[str],
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each measure."""
    parts = [found.shape[1] for found in scores]
    stacked = np.concatenate(scores, axis=1)[:, None]
    _, compared = compare(stacked, parts, base=0, samples=samples, seed=seed)
    rows = []
    for (score, (name, title, _)), found, how in zip(measures, scores, compared, strict=True):
        # Scores have four decimals: without rounding equal differences would not be ties.
        differences = np.round(np.subtract(*mean(found[::-1], axis=1)), 9)
        bearing = differences[~np.isnan(differences)]
        a, b = (rounded_mean(rounded_mean(column) for column in run) for run in found)
        worse = int((bearing < 0).sum())
        worst = int(np.nanargmin(differences)) if worse else None
        rows.append(
            {
                "score": score,
                "name": name,
                "title": title,
                "cases": how["cases"],
                "a": a,
                "b": b,
                "difference": how["difference"],
                "low": how["difference_low"],
                "high": how["difference_high"],
                "p": None if how["difference_low"] is None else wilcoxon_p(bearing),
                "p_holm": None,
                "worse": worse,
                "equal": int((bearing == 0).sum()),
                "better": int((bearing > 0).sum()),
                "largest_fall": number(differences[worst]) if worse else None,
                "largest_fall_case": cases[worst] if worse else None,
            }
        )
    for score in BOTH:
        tested = [row for row in rows if row["score"] == score and _is_class(row)]
        tested = [row for row in tested if row["p"] is not None]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p
    return rows


def _is_class(row: Mapping[str, Any]) -> bool:
    return row["name"] not in MEANS


def wilcoxon_p(differences: np.ndarray) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are left out, and all zeros give 1.

    None without any difference.
    """
    if not differences.size:
        return None
    differing = differences[differences != 0]
    if not differing.size:
        return 1.0
    from scipy.stats import wilcoxon  # takes half a second

    return float(wilcoxon(differing).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down method, in their order.

    The smallest of m is multiplied by m, the next by m - 1, …; none becomes smaller than one
    before it, or larger than 1 (Holm, A simple sequentially rejective multiple test procedure,
    Scand. J. Stat. 6, 1979).
    """
    values, corrected = np.array(p_values), np.empty(len(p_values))
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1)
    return corrected.tolist()


def _falls(scores: np.ndarray, cases: Sequence[str]) -> list[dict[str, Any]]:
    """The cases whose DSC fell most, by the mean over a line's classes."""
    a, b = mean(scores, axis=1)
    numbers = {"a": a, "b": b, "difference": np.round(b - a, 9)}
    order = np.argsort(numbers["difference"], kind="stable")  # NaN comes last
    return [
        {"case": cases[index]} | {name: number(of[index]) for name, of in numbers.items()}
        for index in order[:MOST_FALLS]
        if numbers["difference"][index] < 0
    ]


def write_comparison(
    comparison: Mapping[str, Any], cases: pd.DataFrame, folder: str | Path
) -> None:
    """Write `classes.tsv`, `cases.tsv` and `comparison.json` into a folder."""
    folder = Path(folder)
    classes = COMPARED_CLASSES.frame(comparison["classes"])
    COMPARED_CLASSES.write(folder / "classes.tsv", classes)
    COMPARED_CASES.write(folder / "cases.tsv", cases)
    write_text(folder / "comparison.json", json.dumps(comparison, indent=2) + "\n")


# What is said of it


def is_measurable(row: Mapping[str, Any]) -> bool:
    """Whether a row's difference is unlikely to be chance."""
    return bool(_side(row)) and _p_of(row) < ALPHA


def _p_of(row: Mapping[str, Any]) -> float | None:
    return row["p"] if row["p_holm"] is None else row["p_holm"]


def _side(row: Mapping[str, Any]) -> int:
    """On which side of 0 a row's interval lies: -1, 1, or 0 if on none."""
    if row["low"] is None:
        return 0
    return (row["low"] > 0) - (row["high"] < 0)


def least_cases(classes: int) -> int:
    """Fewest cases that have to differ for a corrected p below `ALPHA` to be possible at all."""
    cases = 1
    while classes * 2 * 0.5**cases >= ALPHA:
        cases += 1
    return cases


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """What got better or worse, in plain words."""
    said = []
    if not any(row["worse"] or row["better"] for row in comparison["classes"]):
        said.append("Every score is the same in A and B: are they one run?")
    for score in BOTH:
        rows = [row for row in comparison["classes"] if row["score"] == score and row["cases"]]
        classes = [row for row in rows if _is_class(row)]
        said += [_sentence(row) for row in rows if not _is_class(row)]
        for word, side in (("better", 1), ("worse", -1)):
            found = [row for row in classes if _side(row) == side]
            found.sort(key=lambda row: -abs(row["difference"]))
            sure = [f"{_lower(row['title'])} {_change(row)}" for row in found if is_measurable(row)]
            if sure:
                said.append(f"{score.upper()}, measurably {word} classes: {', '.join(sure)}.")
            unsure = [
                f"{_lower(row['title'])} {points(row['difference'])}"
                for row in found
                if not is_measurable(row)
            ]
            if unsure:
                said.append(
                    f"{score.upper()}, {word} by the interval, but p is not below {ALPHA:g}: "
                    f"{', '.join(unsure)}."
                )
        if classes and not any(map(is_measurable, classes)):
            least = least_cases(sum(row["p"] is not None for row in classes) or len(classes))
            text = f"{score.upper()}: no class is measurably better or worse."
            if all(row["worse"] + row["better"] < least for row in classes):
                text += (
                    f" It would take {least} cases that differ: with fewer, p cannot fall below "
                    f"{ALPHA:g} after the correction for {count(len(classes), 'class')}."
                )
            said.append(text)
    return said


def _sentence(row: Mapping[str, Any]) -> str:
    """How a mean changed."""
    subject, cases = f"{row['score'].upper()}, {_lower(row['title'])}:", count(row["cases"], "case")
    if not row["worse"] and not row["better"]:
        return f"{subject} the same in {cases}."
    counts = f"{row['worse']} of {cases} worse, {row['better']} better"
    if row["low"] is None:
        return f"{subject} {points(row['difference'])}, {TOO_FEW}; {counts}."
    how = "not measurably different"
    if is_measurable(row):
        how = "measurably better" if row["difference"] > 0 else "measurably worse"
    return f"{subject} {how}, {_change(row)}; {counts}."


def _change(row: Mapping[str, Any]) -> str:
    return f"{points(row['difference'])} ({span(row['low'], row['high'])})"


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def _p(value: float | None) -> str:
    return MISSING if value is None else "< .001" if value < 0.001 else f"{value:.3f}"


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The comparison for a terminal of `WIDTH` columns."""
    lines = [
        f"A: {comparison['a']['path']}",
        f"B: {comparison['b']['path']}",
        f"{count(comparison['cases'], 'case')} compared, profile {comparison['profile']}",
    ]
    for run in "ab":
        if names := comparison[f"only_{run}"]:
            shown = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
            lines.append(
                f"only in {run.upper()}, not compared: {count(len(names), 'case')} ({shown})"
            )
    for score in BOTH:
        rows = [row for row in comparison["classes"] if row["score"] == score]
        lines += ["", *_table(f"{score.upper()} in percent", rows)]
    dsc = [row for row in comparison["classes"] if row["score"] == "dsc"]
    tested = sum(row["p_holm"] is not None for row in comparison["classes"]) // len(BOTH)
    lines.append("")
    if any(row["p"] is not None for row in comparison["classes"]):
        lines += [
            f"Interval: {100 * comparison['coverage']:g} % of the difference, from "
            f"{comparison['samples']:,} bootstrap samples of cases, the same for A and B.",
            "p: Wilcoxon's signed-rank test, cases that are equal left out; of classes after",
            f"Holm's correction for {count(tested, 'class')}. Measurable: the interval leaves out "
            f"0, p < {ALPHA:g}.",
        ]
    if any(row["cases"] and row["p"] is None for row in comparison["classes"]):
        lines.append(f"{MISSING}: {TOO_FEW}, nor of a mean with such a class, and no p.")
    lines.append("")
    for text in comparison["sentences"]:
        lines += wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
    if fallen := [row for row in dsc if _is_class(row) and row["worse"]]:
        width = max(len(row["title"]) for row in fallen)
        lines += ["", "Largest fall of DSC by class:"]
        lines += [
            f"  {row['title']:{width}} {points(row['largest_fall']):>8}  {row['largest_fall_case']}"
            for row in fallen
        ]
    if comparison["falls"]:
        lines += ["", f"Largest falls of DSC, {_lower(dsc[0]['title'])}:"]
        lines += [
            f"  {percent(one['a']):>6} to {percent(one['b']):>6} "
            f"{points(one['difference']):>8}  {one['case']}"
            for one in comparison["falls"]
        ]
    return "\n".join(lines)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max(len(title), *(len(row["title"]) for row in rows))
    cells = [(title, "cases", "A", "B", "B - A", "95 % interval", "p", "worse", "equal", "better")]
    for row in rows:
        scores = (percent(row["a"]), percent(row["b"]), points(row["difference"]))
        chance = (span(row["low"], row["high"]), _p(_p_of(row)))
        counts = (row["worse"], row["equal"], row["better"])
        cells.append((row["title"], row["cases"], *scores, *chance, *counts))
    places = f"{{:{width}}}" + "".join(f"{{:>{size}}}" for size in (6, 7, 7, 8, 19, 8, 6, 6, 7))
    return [places.format(*line) for line in cells]
