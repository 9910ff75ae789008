"""The ablation's numbers against hand-computed and independent ones, and what is said of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from score_rows import frame, score_row

from panorgan.config.labels import config_folder, load_labels
from panorgan.io.formats import MISSING
from panorgan.io.tables import read_table
from panorgan.problems import Problems
from panorgan.scoring.ablation import MEASURES, compare, measure_cases, page_text
from panorgan.scoring.scores import write_scores
from panorgan.stages.ablation import write_ablation

LABELS_FILE = str(config_folder() / "labels.yaml")
LABELS = load_labels(LABELS_FILE)


def rows_of(case: str, organs: float, tumour: float | None, *, unknown=(), predicted=False):
    """Scores of a case: one DSC for all organs (NSD half of it), and a tumour or none."""
    rows = []
    for label in LABELS.labels:
        dsc, status = organs, "scored"
        if label == LABELS.tumour:
            dsc, status = tumour, "scored" if tumour else "missed"
            if tumour is None:
                dsc, status = (0.0, "false_positive") if predicted else (1.0, "both_empty")
        if label.name in unknown:
            dsc, status = None, "not_scored"
        nsd = None if dsc is None else dsc / 2
        rows.append(score_row(case, label.name, dsc, nsd, status))
    return rows


def student(*numbers: float, name: str = "organs_dsc") -> pd.DataFrame:
    return measured({f"case_{index}": {name: number} for index, number in enumerate(numbers)})


def measured(cases: dict[str, dict[str, float]]) -> pd.DataFrame:
    columns = [measure.name for measure in MEASURES]
    return pd.DataFrame.from_dict(cases, "index", dtype=float).reindex(columns=columns)


def run(tmp_path: Path, arms: dict[str, list[list[dict]]], samples: int = 200):
    """Rows by arm and measure, page and details of an ablation of some scores."""
    files = {}
    for arm, students in arms.items():
        files[arm] = []
        for seed, rows in enumerate(students):
            folder = tmp_path / arm / f"seed-{seed}" / "validation"
            write_scores(frame(rows), {}, folder)
            files[arm].append(str(folder / "cases.csv"))
    out = {name: tmp_path / f"out.{name}" for name in ("tsv", "md", "json")}
    write_ablation(
        files, split="validation", labels_file=LABELS_FILE, samples=samples, seed=0,
        table=str(out["tsv"]), page=str(out["md"]), details=str(out["json"]),
    )  # fmt: skip
    rows = {(row["arm"], row["measure"]): row for row in read_table(out["tsv"])}
    return rows, out["md"].read_text(), json.loads(out["json"].read_text())


def test_measures_of_a_case_leave_out_what_is_unknown():
    rows = rows_of("a", 0.8, 0.4, unknown=["liver"]) + rows_of("b", 0.6, None, predicted=True)
    rows += rows_of("c", 0.5, None) + rows_of("d", 0.5, 0.2, unknown=["tumour"])
    next(row for row in rows if row["name"] == "spleen")["dsc"] = 0.2
    found = measure_cases(frame(rows), LABELS)
    assert found.loc["a", "organs_dsc"] == pytest.approx((11 * 0.8 + 0.2) / 12)
    assert found.loc["a", "organs_nsd"] == pytest.approx(0.4)
    assert found.loc["a", ["tumour_dsc", "tumour_nsd"]].tolist() == [0.4, 0.2]
    assert found.loc[["b", "c"], "false_tumours"].tolist() == [1.0, 0.0]
    bears = found.notna().apply(lambda row: [*row[row].index], axis=1)
    assert bears["a"] == ["organs_dsc", "organs_nsd", "tumour_dsc", "tumour_nsd"]
    assert bears["b"] == bears["c"] == ["organs_dsc", "organs_nsd", "false_tumours"]
    assert bears["d"] == ["organs_dsc", "organs_nsd"]


def test_means_over_cases_and_seeds_by_hand(tmp_path):
    stage2 = [
        rows_of("a", 0.9, 0.5) + rows_of("b", 0.7, None),
        rows_of("a", 0.8, 0.0) + rows_of("b", 0.6, None, predicted=True),
    ]
    noise = [
        rows_of("a", 0.4, 0.5) + rows_of("b", 0.2, None),
        rows_of("a", 0.4, 0.3) + rows_of("b", 0.2, None),
    ]
    rows, page, details = run(tmp_path, {"stage2": stage2, "noise": noise})
    found = rows["stage2", "organs_dsc"]
    assert float(found["mean"]) == pytest.approx(0.75)  # of 0.8 and 0.7
    assert (float(found["lowest_seed"]), float(found["highest_seed"])) == (0.7, 0.8)
    assert (found["cases"], found["seeds"], found["difference"]) == ("2", "2", "")
    assert float(rows["stage2", "organs_nsd"]["mean"]) == pytest.approx(0.375)
    assert float(rows["stage2", "tumour_dsc"]["mean"]) == pytest.approx(0.25)  # missed: 0
    assert float(rows["stage2", "false_tumours"]["mean"]) == pytest.approx(0.5)
    assert rows["stage2", "tumour_dsc"]["cases"] == "1"
    assert float(rows["noise", "organs_dsc"]["difference"]) == pytest.approx(-0.45)
    assert details["arms"]["stage2"]["organs_dsc"]["seeds"] == pytest.approx([0.8, 0.7])
    assert f"| 75.0 [70.0, 80.0]<br>{MISSING} |" in page
    assert "Warning" not in page
    # Two cases are too few for an interval.
    assert {row[key] for row in rows.values() for key in ("low", "difference_high")} == {""}
    assert f"{MISSING}: no interval from fewer than 5 cases." in page
    assert (
        "With noise instead of organ pseudo-labels, no interval from fewer than 5 cases: organs "
        "-45.0, tumours +15.0, false tumours -50.0."
    ) in page
    assert "In no reference" not in page
    assert "with_reference" not in details


def test_differences_have_intervals_from_five_cases_on(tmp_path):
    arms = {
        arm: [[row for case in "abcde" for row in rows_of(case, dsc, 0.5)] for dsc in by_seed]
        for arm, by_seed in {"stage2": (0.9, 0.8), "noise": (0.5, 0.3)}.items()
    }
    rows, page, _ = run(tmp_path, arms)
    # Every pair of a case and a seed differs by 40 to 50 points.
    assert float(rows["noise", "organs_dsc"]["difference_low"]) == -0.5
    assert float(rows["noise", "organs_dsc"]["difference_high"]) == -0.4
    assert "With noise instead of organ pseudo-labels, organs fall by 45.0 (40.0 to 50.0)" in page
    assert "fewer than" not in page


def test_organs_in_no_reference_are_not_in_the_mean_beside(tmp_path):
    def scored(dsc):
        rows = rows_of("a", dsc, 0.5)
        empty = {"status": "both_empty", "ref_ml": 0.0, "dsc": 1.0}
        return [row | empty if row["name"] == "gallbladder" else row for row in rows]

    rows, page, details = run(tmp_path, {"stage2": [scored(0.8)], "noise": [scored(0.4)]})
    assert float(rows["noise", "organs_dsc"]["mean"]) == pytest.approx((12 * 0.4 + 1) / 13)
    assert details["with_reference"] == {
        "absent": ["gallbladder"], "organs_dsc": {"stage2": 0.8, "noise": 0.4},
    }  # fmt: skip
    assert (
        "In no reference: gallbladder; such a class counts 100 where it is not predicted, else 0; "
        "without it organs DSC is: stage2 80.0, noise 40.0."
    ) in page


def test_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.8, 0.1, 30), rng.normal(0.7, 0.1, 30)
    result = compare(
        {"stage2": [student(*first)], "noise": [student(*second)]}, samples=20_000, seed=0
    )
    found = result["arms"]["stage2"]["organs_dsc"]
    paired = result["arms"]["noise"]["organs_dsc"]
    for values, low, high in (
        (first, found["low"], found["high"]),
        (second - first, paired["difference_low"], paired["difference_high"]),
    ):
        expected = bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", rng=2
        ).confidence_interval
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.002)


def test_seeds_are_resampled_too():
    """Cases that are all alike leave chance in training: resampled means of two seeds."""
    result = compare({"stage2": [student(*[0.8] * 9), student(*[0.6] * 9)]}, samples=999, seed=0)
    found = result["arms"]["stage2"]["organs_dsc"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.7, 0.6, 0.8))


def test_differences_are_paired_and_of_equal_arms_zero():
    rng = np.random.default_rng(0)
    seeds = [student(*rng.random(12)) for _ in range(3)]
    better = [cases + 0.01 for cases in seeds]
    result = compare({"noise": seeds, "stage2": seeds, "gated": better}, samples=500, seed=0)

    def numbers(arm: str) -> list[float]:
        keys = ("difference", "difference_low", "difference_high")
        return [result["arms"][arm]["organs_dsc"][key] for key in keys]

    assert numbers("noise") == [0, 0, 0]
    assert numbers("gated") == pytest.approx([0.01] * 3)
    own = result["arms"]["stage2"]["organs_dsc"]
    assert own["high"] - own["low"] > 0.1
    assert own["difference"] is None
    text = page_text(result, "validation")
    assert "**Warning: with noise instead of organ pseudo-labels, organs are not measurably" in text
    assert "With the gate, organs rise by 1.0 (1.0 to 1.0)." in text
    assert (
        "With noise instead of organ pseudo-labels, nothing changes measurably: organs 0.0" in text
    )
    assert (
        compare({"noise": seeds, "stage2": seeds, "gated": better}, samples=500, seed=0) == result
    )


def test_without_a_case_of_a_measure_it_has_no_numbers():
    result = compare(
        {"stage2": [student(0.5, 0.7)], "gated": [student(0.5, 0.6)]}, samples=9, seed=0
    )
    for measure in MEASURES[2:]:
        entry = result["arms"]["gated"][measure.name]
        assert (entry["cases"], entry["mean"], entry["low"], entry["difference"]) == (0,) + (
            None,
        ) * 3
    text = page_text(result, "validation")
    assert "nan" not in text
    assert "With a single seed they say nothing of chance in training." in text


def test_a_rare_kind_of_case_may_be_missing_in_a_sample():
    """Of fifty cases five have a tumour: some samples draw only others."""
    cases = {f"case_{at}": {"organs_dsc": 0.5} for at in range(50)}
    for case in list(cases)[:5]:
        cases[case]["tumour_dsc"] = 0.3
    compared = compare({"stage2": [measured(cases)]}, samples=2000, seed=0)
    found = compared["arms"]["stage2"]["tumour_dsc"]
    assert (found["low"], found["high"]) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"stage2": [student(1, 1)], "gated": [student(1)]}, "gated, student 1 of 1: lacks case"),
        ({"stage2": [student(1)], "gated": [student(1, 1)]}, "has also case case_1"),
        ({"stage2": [student(1)], "gated": [student(1)] * 2}, "gated: 2 seeds, but stage2 has 1"),
        ({"stage2": [student(1)], "gated": []}, "gated: 0 seeds"),
        (
            {"stage2": [student(1)], "gated": [student(1, name="tumour_dsc")]},
            "case case_0 has another truth",
        ),
        ({"stage2": [student()]}, "there is no scored case"),
        ({}, "there is no scored case"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(arms, expected):
    with pytest.raises(Problems) as error:
        compare(arms, samples=9, seed=0)
    assert expected in str(error.value)


def test_incomplete_tables_are_refused(tmp_path):
    rows = rows_of("a", 0.5, 0.5)
    with pytest.raises(Problems, match=r"cases\.csv: a lacks class tumour"):
        run(tmp_path, {"stage2": [rows[:-1]]})
    with pytest.raises(Problems, match="a has class liver twice"):
        run(tmp_path, {"stage2": [rows + rows[:1]]})
