"""Two scored runs, A and B, compared case by case: what changed, and whether that may be chance.

Means are those of `metrics.summarise`. The interval of a difference is from a bootstrap that draws
cases, the same ones for both runs. The p value is that of Wilcoxon's signed-rank test of the
paired scores, two-sided: cases with equal scores are left out of it (Wilcoxon's own rule), and if
all are equal it is 1. It is exact up to 50 cases without ties and up to 13 with ties, else from
the normal distribution (SciPy's rule). Classes are many questions at once, so their p values are
corrected by Holm's method, those of DSC and of NSD each for themselves.

*Measurable* is a difference whose interval leaves out 0 and whose (corrected) p is below 0.05.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from panorgan.bootstrap import COVERAGE, drawn_means, interval
from panorgan.labels import Labels, load_labels
from panorgan.metrics import (
    BOOTSTRAP_SEED,
    MISSED,
    NOT_SCORED,
    PROFILES,
    SAMPLES,
    SCORED,
    Row,
    read_scores,
)
from panorgan.pages import MISSING
from panorgan.problems import Problems
from panorgan.tables import write_table, write_text

SCORES = ("dsc", "nsd")
ALPHA = 0.05
MOST_FALLS, MOST_NAMES, WIDTH = 10, 5, 100
ORGANS, ALL, POSITIVE = "organs", "all", "tumour_positive"
"""Rows of the comparison that are no class."""

CLASS_COLUMNS = (
    "score", "name", "cases", "a", "b", "difference", "low", "high", "p", "p_holm", "worse",
    "equal", "better", "largest_fall", "largest_fall_case",
)  # fmt: skip
CASE_COLUMNS = (
    "case", "value", "name", "ref_ml", "status_a", "status_b", "dsc_a", "dsc_b", "dsc_difference",
    "nsd_a", "nsd_b", "nsd_difference",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A scored run: its table, the rules of its scores, a row for each class of each case, and the
    class table, as far as a summary beside it says."""

    table: Path
    profile: str
    classes: Mapping[int, str]
    cases: Mapping[str, Mapping[int, Row]]
    labels: Labels | None = None


@dataclass(frozen=True)
class Line:
    """One line of the comparison: a class, or a mean over `values`; `positive`: only cases with
    one."""

    name: str
    title: str
    values: tuple[int, ...]
    positive: bool = False

    @property
    def is_class(self) -> bool:
        return self.name not in (ORGANS, ALL, POSITIVE)


def compare_paths(
    a: str | Path,
    b: str | Path,
    labels: Labels | None = None,
    profile: str | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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
        of cases that the other lacks; samples, seed, coverage; classes: rows with `CLASS_COLUMNS`
        and title, first `organs`, `all` and `tumour_positive` as far as there are such classes;
        falls: case, a, b and difference of the cases whose first row's DSC fell most; sentences.
        Scores are between 0 and 1, and None where no case bears on them. `p_holm` is None for
        what is no class.
    cases
        Rows with `CASE_COLUMNS`.

    Raises
    ------
    Problems
        If a table cannot be read, or the two cannot be compared.
    """
    runs = [read_run(path, profile) for path in (a, b)]
    _check_profiles(*runs)
    labels = labels or runs[0].labels or runs[1].labels or load_labels()
    _check_classes(*runs, labels)
    # The order of `metrics.summarise`, so that means agree to the last bit.
    common = sorted(runs[0].cases.keys() & runs[1].cases.keys(), key="{}.nii.gz".format)
    if not common:
        first, second = (min(run.cases, default="none") for run in runs)
        cause = f"has no case of {runs[0].table}: their first cases are {second} and {first}"
        raise Problems.one(cause, "compare runs of the same data", file=runs[1].table)
    _check_truth(*runs, common)
    lines = _lines(runs[0].classes, labels)
    values = _values(runs, common)
    rows = _compare(values, lines, list(runs[0].classes), common, samples, seed)
    only_a, only_b = (
        sorted(own.cases.keys() - other.cases.keys()) for own, other in (runs, runs[::-1])
    )
    comparison = {
        "profile": runs[0].profile,
        "cases": len(common),
        "a": {"path": str(a), "cases": len(runs[0].cases)},
        "b": {"path": str(b), "cases": len(runs[1].cases)},
        "only_a": only_a,
        "only_b": only_b,
        "samples": samples,
        "seed": seed,
        "coverage": COVERAGE,
        "classes": rows,
        "falls": _falls(values, lines[0], list(runs[0].classes), common),
    }
    comparison["sentences"] = sentences(comparison)
    return comparison, _case_rows(runs, common)


def read_run(path: str | Path, profile: str | None = None) -> Run:
    """A scored run with the scores of a profile; None: of the one that its summary names.

    Raises
    ------
    Problems
        If there is no table of scores, or none by this profile.
    """
    table = _table_in(Path(path))
    rows = read_scores(table)
    if not rows:
        raise Problems.one("holds no scored case", "compare runs with scores", file=table)
    own_profile, labels = _summary(table)
    profile = profile or own_profile
    if profile not in PROFILES:
        cause = "no summary.json beside it says by which profile it was scored"
        raise Problems.one(cause, "name one with --profile", file=table)
    classes = {row["value"]: row["name"] for row in sorted(rows, key=lambda row: row["value"])}
    cases: dict[str, dict[int, Row]] = {}
    for row in rows:
        scores = {score: row[f"{score}_{profile}"] for score in SCORES}
        known = row["status"] != NOT_SCORED
        found = cases.setdefault(row["case"], {})
        cause = ""
        if row["value"] in found:
            cause = f"has class {row['name']} twice"
        elif known and None in scores.values():
            cause = f"has no score of {row['name']}, though it is {row['status']}"
        if cause:
            raise Problems.one(cause, "score it again", case=row["case"], file=table)
        found[row["value"]] = {**row, **scores}
    for case, found in sorted(cases.items()):
        if missing := classes.keys() - found.keys():
            cause = f"lacks class {classes[min(missing)]}"
            raise Problems.one(cause, "score it again", case=case, file=table)
    return Run(table, profile, classes, cases, labels)


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
    except (OSError, ValueError, AttributeError):
        return None, None


def _check_profiles(a: Run, b: Run) -> None:
    if a.profile != b.profile:
        cause = f"scored by profile {b.profile}, but {a.table} by {a.profile}"
        raise Problems.one(cause, "name one for both with --profile", file=b.table)


def _check_classes(a: Run, b: Run, labels: Labels) -> None:
    if a.classes == b.classes:
        if strange := sorted({*a.classes.values()} - {*labels.names}):
            cause = f"has class {strange[0]}, which the class table lacks"
            raise Problems.one(cause, "name its table with --labels", file=a.table)
        if a.labels and b.labels and _rules(a.labels) != _rules(b.labels):
            cause = f"scored with other tolerances, slices or tumours than {a.table}"
            raise Problems.one(cause, "score both with one class table", file=b.table)
        return
    value, name = min(set(a.classes.items()) ^ set(b.classes.items()))
    which, other = (a, b) if a.classes.get(value) == name else (b, a)
    cause = f"has class {value} ({name}), which {other.table} lacks"
    raise Problems.one(cause, "compare runs with the same classes", file=which.table)


def _rules(labels: Labels) -> tuple[Any, ...]:
    """What scores depend on in a class table."""
    rows = sorted((one.value, one.tolerance_mm, one.crop_slices) for one in labels.labels)
    return labels.tumour_name, rows


def _truth(row: Row) -> tuple[bool, float | None]:
    """What a score says of the reference; whether it has the class, and its volume."""
    if row["status"] == NOT_SCORED:
        return False, None
    return row["status"] in (SCORED, MISSED), row["ref_ml"]


def _truth_text(row: Row) -> str:
    has, ml = _truth(row)
    return "unknown" if ml is None else f"{ml:.3f} ml" if has else "none"


def _check_truth(a: Run, b: Run, common: Sequence[str]) -> None:
    """Problems if the reference of any case was another one."""
    differing = {}
    for case in common:
        for value, row in a.cases[case].items():
            if _truth(row) != _truth(b.cases[case][value]):
                differing.setdefault(case, (row, b.cases[case][value]))
    if differing:
        case, (first, second) = next(iter(differing.items()))
        others = len(differing) - 1
        more = ""
        if others:
            more = f" (and {others} more {'case differs' if others == 1 else 'cases differ'})"
        cause = (
            f"the reference's {first['name']} is {_truth_text(second)} here, but "
            f"{_truth_text(first)} in {a.table}{more}"
        )
        cure = "score both runs against the same references"
        raise Problems.one(cause, cure, case=case, file=b.table)


def _lines(classes: Mapping[int, str], labels: Labels) -> list[Line]:
    """What is compared: means, as far as there are such classes, then every class."""
    titles = {label.name: label.title for label in labels.labels}
    tumour = tuple(value for value, name in classes.items() if name == labels.tumour_name)
    organs = tuple(value for value in classes if value not in tumour)
    lines = []
    if organs:
        lines.append(Line(ORGANS, "Mean of the organs", organs))
    if organs and tumour:
        lines.append(Line(ALL, "Mean of all classes", (*organs, *tumour)))
    if tumour:
        lines.append(Line(POSITIVE, f"{labels.tumour.title}, cases with one", tumour, True))
    return lines + [Line(name, titles.get(name, name), (value,)) for value, name in classes.items()]


def _values(runs: Sequence[Run], common: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores (runs, scores, cases, classes) with NaN where the truth is unknown, and whether
    the reference has a class (cases, classes)."""
    scores = [
        [
            [[row[score] for row in _by_value(run.cases[case])] for case in common]
            for score in SCORES
        ]
        for run in runs
    ]
    has = [[_truth(row)[0] for row in _by_value(runs[0].cases[case])] for case in common]
    return {"scores": np.array(scores, np.float64), "has": np.array(has)}


def _by_value(found: Mapping[int, Row]) -> list[Row]:
    return [found[value] for value in sorted(found)]


def _of_line(values: Mapping[str, np.ndarray], line: Line, classes: Sequence[int]) -> np.ndarray:
    """The scores (runs, scores, cases, classes) that a line is the mean of."""
    chosen = [classes.index(value) for value in line.values]
    scores = values["scores"][..., chosen]
    return np.where(values["has"][:, chosen], scores, np.nan) if line.positive else scores


def _compare(
    values: Mapping[str, np.ndarray],
    lines: Sequence[Line],
    classes: Sequence[int],
    common: Sequence[str],
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each score and line."""
    found = [_of_line(values, line, classes) for line in lines]
    widths = [scores.shape[-1] for scores in found]
    columns = np.concatenate(found, axis=-1).transpose(2, 0, 1, 3)
    drawn = drawn_means(columns.reshape(len(common), -1), samples, seed)
    drawn = drawn.reshape(2, len(SCORES), sum(widths), samples)
    drawn = [
        _mean(part, axis=2) for part in np.split(drawn, np.cumsum(widths)[:-1].tolist(), axis=2)
    ]
    rows = []
    for s, score in enumerate(SCORES):
        own = []
        for line, scores, sampled in zip(lines, found, drawn, strict=True):
            # Scores have four decimals: without rounding equal differences would not be ties.
            differences = np.round(np.subtract(*_mean(scores[::-1, s], axis=2)), 9)
            bearing = differences[~np.isnan(differences)]
            low, high = interval(sampled[1, s] - sampled[0, s])
            a, b = (_challenge_mean(run[s]) for run in scores)
            row = {
                "score": score,
                "name": line.name,
                "title": line.title,
                "cases": bearing.size,
                "a": a,
                "b": b,
                "difference": _number(np.subtract(*_mean(_mean(scores[::-1, s], axis=1), axis=1))),
                "low": _number(low),
                "high": _number(high),
                "p": wilcoxon_p(bearing),
                "p_holm": None,
                "worse": int((bearing < 0).sum()),
                "equal": int((bearing == 0).sum()),
                "better": int((bearing > 0).sum()),
                "largest_fall": None,
                "largest_fall_case": None,
            }
            if row["worse"]:
                worst = int(np.nanargmin(differences))
                row["largest_fall"] = _number(differences[worst])
                row["largest_fall_case"] = common[worst]
            own.append(row)
        tested = [
            row
            for line, row in zip(lines, own, strict=True)
            if line.is_class and row["p"] is not None
        ]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p
        rows += own
    return rows


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over an axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(known, values, 0).sum(axis) / np.where(count == 0, np.nan, count)


def _challenge_mean(scores: np.ndarray) -> float | None:
    """Mean of class means of (cases, classes), rounded at each step as the challenge does."""
    means = [
        np.round(np.mean(known), 4)
        for column in scores.T
        if (known := column[~np.isnan(column)]).size
    ]
    return float(np.round(np.mean(means), 4)) if means else None


def _number(value: float) -> float | None:
    # Six decimals hide the order in which a machine's library adds.
    return None if np.isnan(value) else round(float(value), 6) + 0.0


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
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _falls(
    values: Mapping[str, np.ndarray], line: Line, classes: Sequence[int], common: Sequence[str]
) -> list[dict[str, Any]]:
    """The cases whose DSC fell most, by the mean over a line's classes."""
    a, b = _mean(_of_line(values, line, classes)[:, SCORES.index("dsc")], axis=2)
    differences = np.round(b - a, 9)
    order = np.argsort(differences, kind="stable")  # NaN comes last
    return [
        {
            "case": common[index],
            "a": _number(a[index]),
            "b": _number(b[index]),
            "difference": _number(differences[index]),
        }
        for index in order[:MOST_FALLS]
        if differences[index] < 0
    ]


def _case_rows(runs: Sequence[Run], common: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for case in common:
        for first, second in zip(*(_by_value(run.cases[case]) for run in runs), strict=True):
            row = {key: first[key] for key in ("case", "value", "name", "ref_ml")}
            row |= {"status_a": first["status"], "status_b": second["status"]}
            for score in SCORES:
                a, b = first[score], second[score]
                row |= {f"{score}_a": a, f"{score}_b": b}
                row[f"{score}_difference"] = None if a is None else round(b - a, 4) + 0.0
            rows.append(row)
    return rows


def write_comparison(
    comparison: Mapping[str, Any], cases: Iterable[Mapping[str, Any]], folder: str | Path
) -> None:
    """Write `classes.tsv`, `cases.tsv` and `comparison.json` into a folder."""
    folder = Path(folder)
    rows = [{key: row[key] for key in CLASS_COLUMNS} for row in comparison["classes"]]
    write_table(folder / "classes.tsv", CLASS_COLUMNS, rows)
    write_table(folder / "cases.tsv", CASE_COLUMNS, cases)
    write_text(folder / "comparison.json", json.dumps(comparison, indent=2) + "\n")


# What is said of it


def is_measurable(row: Mapping[str, Any]) -> bool:
    """Whether a row's difference is unlikely to be chance."""
    p = row["p"] if row["p_holm"] is None else row["p_holm"]
    return (_leaves_out_zero(row, 1) or _leaves_out_zero(row, -1)) and p < ALPHA


def _leaves_out_zero(row: Mapping[str, Any], sign: int) -> bool:
    """Whether a row's interval lies on one side of 0."""
    end = row["low"] if sign > 0 else row["high"]
    return end is not None and end * sign > 0


def least_cases(classes: int) -> int:
    """Fewest cases that have to differ for a corrected p below `ALPHA` to be possible at all."""
    cases = 1
    while classes * 2 * 0.5**cases >= ALPHA:
        cases += 1
    return cases


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """What got better or worse, in plain words."""
    said = []
    for score in SCORES:
        rows = [row for row in comparison["classes"] if row["score"] == score]
        rows = [row for row in rows if row["cases"]]
        means = [row for row in rows if row["p_holm"] is None]
        classes = [row for row in rows if row["p_holm"] is not None]
        said += [_sentence(row) for row in means]
        for word, sign in (("better", 1), ("worse", -1)):
            found = [row for row in classes if _leaves_out_zero(row, sign)]
            found.sort(key=lambda row: -abs(row["difference"]))
            sure = [f"{_lower(row['title'])} {_change(row)}" for row in found if is_measurable(row)]
            if sure:
                said.append(f"{score.upper()}, measurably {word} classes: {', '.join(sure)}.")
            unsure = [
                f"{_lower(row['title'])} {_signed(row['difference'])}"
                for row in found
                if not is_measurable(row)
            ]
            if unsure:
                said.append(
                    f"{score.upper()}, {word} by the interval, but p is not below {ALPHA:g}: "
                    f"{', '.join(unsure)}."
                )
        if classes and not any(map(is_measurable, classes)):
            least = least_cases(len(classes))
            text = f"{score.upper()}: no class is measurably better or worse."
            if all(row["worse"] + row["better"] < least for row in classes):
                text += (
                    f" It would take {least} cases that differ: with fewer, p cannot fall below "
                    f"{ALPHA:g} after the correction for {_count(len(classes), 'class')}."
                )
            said.append(text)
    return said


def _sentence(row: Mapping[str, Any]) -> str:
    """How a mean changed."""
    subject = f"{row['score'].upper()}, {_lower(row['title'])}:"
    if not row["worse"] and not row["better"]:
        return f"{subject} the same in {_count(row['cases'], 'case')}."
    counts = f"{row['worse']} of {_count(row['cases'], 'case')} worse, {row['better']} better"
    if is_measurable(row):
        word = "better" if row["difference"] > 0 else "worse"
        return f"{subject} measurably {word}, {_change(row)}; {counts}."
    return f"{subject} not measurably different, {_change(row)}; {counts}."


def _change(row: Mapping[str, Any]) -> str:
    return f"{_signed(row['difference'])} ({_range(row)})"


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def _count(number: int, word: str) -> str:
    plural = word + ("es" if word.endswith("s") else "s")
    return f"{number:,} {word if number == 1 else plural}"


def _percent(value: float | None) -> str:
    # No minus before a zero.
    return MISSING if value is None else f"{round(value * 100, 2) + 0.0:.2f}"


def _signed(value: float | None) -> str:
    text = _percent(value)
    return text if text[0] in f"-{MISSING}" or text == "0.00" else f"+{text}"


def _range(row: Mapping[str, Any]) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}" if row["low"] is not None else ""


def _p(value: float | None) -> str:
    return MISSING if value is None else "< .001" if value < 0.001 else f"{value:.3f}"


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The comparison for a terminal of `WIDTH` columns."""
    lines = [
        f"A: {comparison['a']['path']}",
        f"B: {comparison['b']['path']}",
        f"{_count(comparison['cases'], 'case')} compared, profile {comparison['profile']}",
    ]
    for run in "ab":
        names = comparison[f"only_{run}"]
        if names:
            shown = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
            lines.append(
                f"only in {run.upper()}, not compared: {_count(len(names), 'case')} ({shown})"
            )
    for score in SCORES:
        rows = [row for row in comparison["classes"] if row["score"] == score]
        lines += ["", *_table(f"{score.upper()} in percent", rows)]
    count = sum(row["p_holm"] is not None for row in comparison["classes"]) // len(SCORES)
    lines += [
        "",
        f"Interval: {100 * comparison['coverage']:g} % of the difference, from "
        f"{comparison['samples']:,} bootstrap samples of cases, the same for A and B.",
        "p: Wilcoxon's signed-rank test, cases that are equal left out; of classes after Holm's",
        f"correction for {_count(count, 'class')}. Measurable: the interval leaves out 0, p < "
        f"{ALPHA:g}.",
        "",
        *(
            line
            for text in comparison["sentences"]
            for line in wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
        ),
    ]
    fallen = [
        row for row in comparison["classes"] if row["score"] == "dsc" and row["p_holm"] is not None
    ]
    fallen = [row for row in fallen if row["worse"]]
    if fallen:
        width = max(len(row["title"]) for row in fallen)
        lines += ["", "Largest fall of DSC by class:"]
        lines += [
            f"  {row['title']:{width}} {_signed(row['largest_fall']):>8}"
            f"  {row['largest_fall_case']}"
            for row in fallen
        ]
    if comparison["falls"]:
        first = next(row for row in comparison["classes"] if row["score"] == "dsc")
        lines += ["", f"Largest falls of DSC, {_lower(first['title'])}:"]
        lines += [
            f"  {_percent(one['a']):>6} to {_percent(one['b']):>6} "
            f"{_signed(one['difference']):>8}  {one['case']}"
            for one in comparison["falls"]
        ]
    return "\n".join(lines)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max(len(title), *(len(row["title"]) for row in rows))
    lines = [
        f"{title:{width}}{'cases':>6}{'A':>7}{'B':>7}{'B - A':>8}{'95 % interval':>19}{'p':>8}"
        f"{'worse':>6}{'equal':>6}{'better':>7}"
    ]
    for row in rows:
        p = row["p"] if row["p_holm"] is None else row["p_holm"]
        lines.append(
            f"{row['title']:{width}}{row['cases']:>6}{_percent(row['a']):>7}"
            f"{_percent(row['b']):>7}{_signed(row['difference']):>8}{_range(row):>19}"
            f"{_p(p):>8}{row['worse']:>6}{row['equal']:>6}{row['better']:>7}"
        )
    return lines
