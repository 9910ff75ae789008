"""Two scored runs compared: hand-computed numbers, independent ones, and what is refused."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from score_rows import frame, score_row

from panorgan.cli import main
from panorgan.config.labels import load_labels
from panorgan.io.tables import read_table
from panorgan.problems import Problems
from panorgan.scoring.comparison import (
    compare_paths,
    comparison_text,
    holm,
    least_cases,
    wilcoxon_p,
)
from panorgan.scoring.frames import COMPARED_CASES, COMPARED_CLASSES, SCORES
from panorgan.scoring.metrics import PROFILES
from panorgan.scoring.scores import summarise, write_scores

LABELS = load_labels()
ORGANS = [label.name for label in LABELS.organs]


def case_rows(case, organs, tumour=1.0, *, truth="both_empty", ml=0.0):
    """All classes of a case; one score for all organs."""
    rows = [score_row(case, name, organs) for name in ORGANS]
    return [*rows, score_row(case, "tumour", tumour, status=truth, ref_ml=ml)]


def run(folder: Path, rows, profile="flare23-2023"):
    """A scored run's folder."""
    rows = [{**one, "dsc": one[f"dsc_{profile}"], "nsd": one[f"nsd_{profile}"]} for one in rows]
    write_scores(frame(rows), {"profile": profile}, folder)
    return folder


def compare(tmp_path, a, b, **how):
    """The comparison of two runs' rows, its rows by score and name, and the case rows."""
    folders = [run(tmp_path / name, rows) for name, rows in (("a", a), ("b", b))]
    comparison, cases = compare_paths(*folders, LABELS, **how)
    return comparison, {(one["score"], one["name"]): one for one in comparison["classes"]}, cases


# Numbers


def test_two_runs_by_hand(tmp_path):
    a = case_rows("x", 0.8, 0.5, truth="scored", ml=3.0) + case_rows("y", 0.9)
    b = case_rows("x", 0.7, 0.7, truth="scored", ml=3.0)
    b += case_rows("y", 0.9, 0.0, truth="false_positive")
    b[0] |= {f"dsc_{profile}": 0.9 for profile in PROFILES}  # the liver of x
    comparison, found, cases = compare(tmp_path, a, b, samples=100)
    liver, organs = found["dsc", "liver"], found["dsc", "organs"]
    assert (liver["a"], liver["b"], liver["difference"]) == (0.85, 0.9, 0.05)
    assert (liver["worse"], liver["equal"], liver["better"]) == (0, 1, 1)
    assert (liver["largest_fall"], liver["largest_fall_case"]) == (None, None)
    spleen = found["dsc", "spleen"]
    assert (spleen["largest_fall"], spleen["largest_fall_case"]) == (-0.1, "x")
    # 12 organs at 0.8 and the liver at 0.9.
    assert (organs["a"], organs["b"]) == (0.85, 0.8077)
    assert organs["difference"] == pytest.approx(-0.55 / 13, abs=1e-6)
    assert (organs["cases"], organs["worse"], organs["equal"]) == (2, 1, 1)
    # Over all cases, tumour-free ones too, and over the one with a tumour.
    assert (found["dsc", "tumour"]["a"], found["dsc", "tumour"]["b"]) == (0.75, 0.35)
    positive = found["dsc", "tumour_positive"]
    assert (positive["cases"], positive["a"], positive["b"]) == (1, 0.5, 0.7)
    assert found["nsd", "liver"]["difference"] == -0.05
    assert comparison["falls"] == [
        {"case": "x", "a": 0.8, "b": round((12 * 0.7 + 0.9) / 13, 6), "difference": -0.084615}
    ]
    assert [*cases.loc[cases["name"] == "tumour", "dsc_difference"]] == [0.2, -1.0]
    assert [*cases.loc[cases["name"] == "tumour", "status_b"]] == ["scored", "false_positive"]


def random_rows(rng, cases, *, unknown=0.2):
    """Two runs' rows of the same truth."""
    runs = [], []
    for case, label in product(range(cases), LABELS.labels):
        known = rng.random() >= unknown
        has = label.name != "tumour" or rng.random() < 0.5
        for rows in runs:
            dsc, nsd = rng.random(2).round(4).tolist()
            if not known:
                rows.append(score_row(f"case_{case}", label.name, None, status="not_scored"))
            elif has:
                rows.append(score_row(f"case_{case}", label.name, dsc, nsd))
            else:
                empty = {"status": "both_empty", "ref_ml": 0.0}
                rows.append(score_row(f"case_{case}", label.name, 1.0, **empty))
    return runs


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), cases=st.integers(1, 12), unknown=st.sampled_from([0, 0.4]))
def test_means_are_those_of_the_summary(tmp_path_factory, seed, cases, unknown):
    a, b = random_rows(np.random.default_rng(seed), cases, unknown=unknown)
    folder = tmp_path_factory.mktemp("runs")
    _, found, _ = compare(folder, a, b, samples=5)
    for name, rows in (("a", a), ("b", b)):
        rows = [{**one, "dsc": one["dsc_corrected"], "nsd": one["nsd_corrected"]} for one in rows]
        summary = summarise(frame(rows), LABELS, "corrected", samples=1)
        for score in ("dsc", "nsd"):
            for key in ("organs", "all"):
                assert found[score, key][name] == summary[key][score]
            assert found[score, "tumour_positive"][name] == summary["tumour"]["positive"][score]
            for label in LABELS.names:
                assert found[score, label][name] == summary["classes"][label][score]


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_swapped_runs_turn_every_sign(tmp_path_factory, seed):
    a, b = random_rows(np.random.default_rng(seed), 7)
    one = compare(tmp_path_factory.mktemp("one"), a, b, samples=50)[1]
    two = compare(tmp_path_factory.mktemp("two"), b, a, samples=50)[1]
    for key, found in one.items():
        other = two[key]
        assert (found["a"], found["b"]) == (other["b"], other["a"])
        assert (found["worse"], found["equal"]) == (other["better"], other["equal"])
        if found["difference"] is not None:
            assert found["difference"] == pytest.approx(-other["difference"])
        if found["low"] is not None:
            assert found["low"] == pytest.approx(-other["high"], abs=2e-6)
            assert found["p"] == pytest.approx(other["p"])


def test_intervals_are_those_of_paired_differences(tmp_path):
    a, b = random_rows(np.random.default_rng(3), 30, unknown=0)
    _, found, _ = compare(tmp_path, a, b, samples=20_000)

    def by_case(rows, *names):
        return np.array(
            [
                np.mean(
                    [r["dsc_corrected"] for r in rows if r["case"] == case and r["name"] in names]
                )
                for case in sorted({r["case"] for r in rows})
            ]
        )

    for name, names in (("spleen", ["spleen"]), ("organs", ORGANS), ("all", LABELS.names)):
        difference = by_case(b, *names) - by_case(a, *names)
        expected = bootstrap(
            (difference,), np.mean, n_resamples=20_000, method="percentile", rng=2
        ).confidence_interval
        own = found["dsc", name]
        assert own["difference"] == pytest.approx(difference.mean(), abs=1e-6)
        assert (own["low"], own["high"]) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_wilcoxon_by_hand():
    # Six differences of one sign: one of 2^6 signs on either side.
    assert wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 64)
    # Zeros are left out.
    assert wilcoxon_p(np.array([0, 0.1, 0, 0.2, 0.3, 0.4, 0.5, 0.6, 0])) == pytest.approx(2 / 64)
    # Ranks 1, 2, 3 with signs -, +, +: W+ = 5; 5 or 6 in 2 of 8 cases.
    assert wilcoxon_p(np.array([-0.1, 0.2, 0.3])) == pytest.approx(0.5)
    # Ties: ranks 2, 2, 2; all of one sign in one of 8 cases on either side.
    assert wilcoxon_p(np.array([0.1, 0.1, 0.1])) == pytest.approx(0.25)
    assert wilcoxon_p(np.array([0.3])) == 1
    assert wilcoxon_p(np.zeros(5)) == 1
    assert wilcoxon_p(np.array([])) is None


@given(
    differences=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
)
@settings(max_examples=60)
def test_wilcoxon_is_the_share_of_sign_patterns(differences):
    """Against all 2^n signs of the ranks, with ties."""
    values = np.array(differences, float)
    values = values[values != 0]
    if not values.size:
        assert wilcoxon_p(np.array(differences, float)) == 1
        return
    sizes = np.abs(values)
    ranks = np.array([(sizes < one).sum() + ((sizes == one).sum() + 1) / 2 for one in sizes])
    sums = np.array([ranks @ signs for signs in product((0, 1), repeat=len(ranks))])
    own = ranks @ (values > 0)
    expected = min(1, 2 * min((sums <= own + 1e-9).mean(), (sums >= own - 1e-9).mean()))
    assert wilcoxon_p(np.array(differences, float)) == pytest.approx(expected)


def test_equal_differences_are_ties_whatever_the_scores(tmp_path):
    """0.8 - 0.7 and 0.9 - 0.8 differ in their last bit; as ranks they must not."""
    olds = [0.7, 0.8, 0.1, 0.3, 0.6, 0.2, 0.5]
    a = [one for k, old in enumerate(olds) for one in case_rows(f"c{k}", old)]
    b = [
        one
        for k, old in enumerate(olds)
        for one in case_rows(f"c{k}", round(old + (-0.1 if k == 0 else 0.1), 4))
    ]
    _, found, _ = compare(tmp_path, a, b, samples=10)
    # All ranks are 4: W- is 4, and of 2^7 patterns 1 + 7 have at most one negative sign.
    assert found["dsc", "liver"]["p"] == pytest.approx(2 * 8 / 128)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, 0.9, 0.8]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p):
    corrected = holm(p)
    for one, own in zip(p, corrected, strict=True):
        assert one <= own <= min(1, one * len(p)) + 1e-12
        for other, theirs in zip(p, corrected, strict=True):
            assert own <= theirs or other <= one
    # The definition: rejected at a level if it and all smaller ones pass theirs.
    for level in (0.01, 0.05, 0.3):
        order = sorted(range(len(p)), key=p.__getitem__)
        rejected = set()
        for rank, index in enumerate(order):
            if (len(p) - rank) * p[index] > level:
                break
            rejected.add(index)
        assert {i for i, own in enumerate(corrected) if own <= level} == rejected


def test_fewest_cases_that_can_be_measurable():
    assert least_cases(1) == 6  # 2/2^6 = 0.031
    assert least_cases(14) == 10  # 14 · 2/2^10 = 0.027
    for classes in (1, 2, 14):
        least = least_cases(classes)
        steps = np.arange(1, least + 1) / 100
        assert wilcoxon_p(steps) * classes < 0.05 <= wilcoxon_p(steps[1:]) * classes


# What is said


def shifted(cases, step):
    """Two runs of some cases; the organs of the second differ by `step` and a bit."""
    a = [one for k in range(cases) for one in case_rows(f"c{k:02}", 0.5 + k / 200)]
    b = [
        one
        for k in range(cases)
        for one in case_rows(f"c{k:02}", round(0.5 + k / 200 + step + k / 10_000, 4))
    ]
    return a, b


@pytest.mark.parametrize(("step", "word"), [(0.05, "better"), (-0.05, "worse")])
def test_a_clear_difference_is_measurable(tmp_path, step, word):
    comparison, found, _ = compare(tmp_path, *shifted(12, step))
    text = "\n".join(comparison["sentences"])
    assert f"DSC, mean of the organs: measurably {word}" in text
    assert f"NSD, measurably {word} classes: liver" in text
    assert "no class is measurably" not in text
    assert "DSC, tumour" not in text.replace("DSC, tumour, cases with one", "")
    assert found["dsc", "liver"]["p_holm"] == pytest.approx(14 * 2 / 2**12)
    assert found["dsc", "organs"]["p_holm"] is None


def test_few_cases_measure_no_class_and_it_says_how_many_would(tmp_path):
    comparison, _, _ = compare(tmp_path, *shifted(5, 0.1))
    text = "\n".join(comparison["sentences"])
    assert "DSC, mean of the organs: not measurably different, +10" in text
    assert "no class is measurably better or worse. It would take 10 cases" in text
    assert "DSC, better by the interval, but p is not below 0.05: liver +10.0" in text


def test_fewer_than_five_cases_have_neither_interval_nor_p(tmp_path):
    comparison, found, _ = compare(tmp_path, *shifted(4, 0.1))
    for one in found.values():
        assert one["low"] is one["high"] is one["p"] is one["p_holm"] is None
    assert found["dsc", "liver"]["difference"] == 0.10015
    text = comparison_text(comparison)
    assert (
        "- DSC, mean of the organs: +10.02, no interval from fewer than 5 cases; 0 of 4 cases worse"
    ) in text
    assert (
        "\n–: no interval from fewer than 5 cases, nor of a mean with such a class, and no p."
        in text
    )
    assert "Wilcoxon" not in text
    assert "by the interval" not in text
    assert "It would take 10 cases" in text


def test_a_class_of_few_cases_is_not_tested_and_its_mean_has_no_interval(tmp_path):
    a, b = shifted(12, 0.05)
    known = {f"c{k:02}" for k in range(4)}
    for rows in (a, b):
        for at, one in enumerate(rows):
            if one["name"] == "spleen" and one["case"] not in known:
                rows[at] = one | NOT_KNOWN
    comparison, found, _ = compare(tmp_path, a, b)
    spleen, organs = found["dsc", "spleen"], found["dsc", "organs"]
    assert (spleen["cases"], spleen["low"], spleen["p"], spleen["p_holm"]) == (4, None, None, None)
    assert (organs["cases"], organs["low"], organs["p"]) == (12, None, None)
    assert found["dsc", "liver"]["p_holm"] == pytest.approx(13 * 2 / 2**12)
    text = comparison_text(comparison)
    assert "Holm's correction for 13 classes" in text
    assert "nor of a mean with such a class, and no p" in text


def test_a_class_in_no_reference_is_not_in_the_means_beside(tmp_path):
    """Its 100 lifts both runs' means and thins out what changed."""
    a, b = case_rows("x", 0.8), case_rows("x", 0.4)
    empty = {"status": "both_empty", "ref_ml": 0.0} | {
        f"{score}_{profile}": 1.0 for score in ("dsc", "nsd") for profile in PROFILES
    }
    a[8], b[8] = a[8] | empty, b[8] | empty
    comparison, found, _ = compare(tmp_path, a, b)
    assert comparison["absent"] == ["gallbladder", "tumour"]
    organs, alone = found["dsc", "organs"], found["dsc", "organs_with_reference"]
    assert (organs["a"], organs["b"]) == (0.8154, 0.4462)
    assert (alone["a"], alone["b"], alone["difference"]) == (0.8, 0.4, -0.4)
    assert found["dsc", "all_with_reference"]["b"] == 0.4
    assert alone["p_holm"] is None
    assert comparison["sentences"][0] == (
        "In no reference: Gallbladder, Tumour; such a class counts 100 where it is not predicted, "
        "else 0."
    )
    assert "Organs in a reference" in comparison_text(comparison)
    names = [name for score, name in found if score == "dsc"]
    assert names[:5] == [
        "organs", "organs_with_reference", "all", "all_with_reference", "tumour_positive",
    ]  # fmt: skip


def test_where_each_class_has_a_reference_nothing_is_beside(tmp_path):
    rows = case_rows("x", 0.8, 0.5, truth="scored", ml=3.0)
    comparison, _, _ = compare(tmp_path, rows, rows)
    assert comparison["absent"] == []
    assert "reference" not in comparison_text(comparison)


def test_equal_runs_differ_in_nothing(tmp_path):
    a, _ = shifted(5, 0)
    comparison, found, _ = compare(tmp_path, a, a)
    assert comparison["falls"] == []
    for one in found.values():
        if one["cases"]:
            assert (one["difference"], one["low"], one["high"], one["p"]) == (0, 0, 0, 1)
            assert one["equal"] == one["cases"]
    text = comparison_text(comparison)
    assert "Every score is the same in A and B: are they one run?" in text
    assert "DSC, mean of the organs: the same in 5 cases." in text
    assert "Largest fall" not in text
    assert "nan" not in text
    assert "-0.00" not in text


def test_the_ten_largest_falls_are_named(tmp_path):
    a = [one for k in range(15) for one in case_rows(f"c{k:02}", 0.9)]
    b = [one for k in range(15) for one in case_rows(f"c{k:02}", 0.9 - k / 100)]
    comparison, found, _ = compare(tmp_path, a, b)
    assert [one["case"] for one in comparison["falls"]] == [f"c{k:02}" for k in range(14, 4, -1)]
    assert found["dsc", "aorta"]["largest_fall_case"] == "c14"
    assert found["dsc", "aorta"]["largest_fall"] == pytest.approx(-0.14)
    text = comparison_text(comparison)
    assert "  90.00 to  76.00   -14.00  c14" in text


# Which cases and scores


def test_cases_of_one_run_only_are_named(tmp_path):
    a = case_rows("x", 0.5) + case_rows("y", 0.5)
    b = [one for k in range(8) for one in case_rows(f"z{k}", 0.5)] + case_rows("y", 0.6)
    comparison, found, cases = compare(tmp_path, a, b)
    assert (comparison["cases"], comparison["only_a"]) == (1, ["x"])
    assert comparison["only_b"] == [f"z{k}" for k in range(8)]
    assert found["dsc", "liver"]["a"] == 0.5
    assert {*cases["case"]} == {"y"}
    text = comparison_text(comparison)
    assert "only in A, not compared: 1 case (x)" in text
    assert "only in B, not compared: 8 cases (z0, z1, z2, z3, z4, …)" in text


def refused(tmp_path, a, b, profiles=("corrected", "corrected"), profile=None):
    folders = [
        run(tmp_path / name, rows, own)
        for name, rows, own in zip("ab", (a, b), profiles, strict=True)
    ]
    with pytest.raises(Problems) as error:
        compare_paths(*folders, LABELS, profile)
    [problem] = error.value.problems
    return str(problem)


def changed(rows, index, **changes):
    return [one | changes if at == index else one for at, one in enumerate(rows)]


NOT_KNOWN = {"status": "not_scored", "ref_ml": None} | {
    f"{score}_{profile}": None for score in ("dsc", "nsd") for profile in PROFILES
}


def test_another_truth_is_refused(tmp_path):
    a = case_rows("x", 0.5) + case_rows("y", 0.5)
    text = refused(tmp_path, a, changed(a, 0, ref_ml=11.0))
    assert text.startswith(f"x: {tmp_path / 'b' / 'cases.csv'}: the reference's liver is 11.000 ml")
    assert "but 10.000 ml in" in text
    text = refused(tmp_path / "unknown", a, changed(a, 14, **NOT_KNOWN))
    assert text.startswith("y: ")
    assert "liver is unknown here" in text
    both = [one | {"ref_ml": 1.0} for one in a]
    assert "(and 1 more case differs)" in refused(tmp_path / "both", a, both)
    # A tumour too small for three decimals is one all the same.
    tiny = changed(a, 13, status="missed", ref_ml=0.0)
    assert "tumour is 0.000 ml here, but none in" in refused(tmp_path / "tiny", a, tiny)


def test_no_common_case_is_refused(tmp_path):
    text = refused(tmp_path, case_rows("x", 0.5), case_rows("y", 0.5))
    assert "has no case of" in text
    assert "y and x" in text
    assert "holds no scored case" in refused(tmp_path / "none", [], case_rows("y", 0.5))


def test_a_name_that_a_spreadsheet_would_compute_is_refused(tmp_path):
    rows = case_rows("=1+1", 0.5)
    assert "=1+1: " in (text := refused(tmp_path, rows, rows))
    assert "its name begins with '=': a spreadsheet would take it for a formula" in text


def test_other_classes_are_refused(tmp_path):
    a = case_rows("x", 0.5)
    assert "has class 14 (tumour), which" in refused(tmp_path, a, a[:-1])
    rows = a + case_rows("y", 0.5)
    text = refused(tmp_path / "part", rows[:-1], rows)
    assert text.startswith("y: ")
    assert "lacks class tumour" in text
    assert "has class liver twice" in refused(tmp_path / "twice", a + a[:1], a)


def test_other_rules_for_a_class_are_refused(tmp_path):
    a, b = (run(tmp_path / name, case_rows("x", 0.5)) for name in "ab")
    liver, *others = LABELS.labels
    strict = LABELS.model_copy(
        update={"labels": (liver.model_copy(update={"tolerance_mm": 1.0}), *others)}
    )
    for folder, labels in ((a, LABELS), (b, strict)):
        summary = {"profile": "corrected", "class_table": labels.model_dump(by_alias=True)}
        (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(Problems, match=r"b/cases.csv: scored with other tolerances, .* than .*a/"):
        compare_paths(a, b)
    other = LABELS.model_copy(update={"labels": (liver.model_copy(update={"name": "x"}), *others)})
    with pytest.raises(Problems, match="has class liver, which the class table lacks; name its"):
        compare_paths(a, a, other)


def test_profiles(tmp_path):
    a = changed(case_rows("x", 0.5), 0, dsc_corrected=0.7)
    text = refused(tmp_path, a, a, ("flare23-2023", "corrected"))
    assert "scored by profile corrected, but" in text
    assert "by flare23-2023; name one for both with --profile" in text
    found, _ = compare_paths(tmp_path / "a", tmp_path / "b", LABELS, "corrected")
    assert next(one for one in found["classes"] if one["name"] == "liver")["a"] == 0.7
    found, _ = compare_paths(tmp_path / "a", tmp_path / "b", LABELS, "flare23-2024")
    assert next(one for one in found["classes"] if one["name"] == "liver")["a"] == 0.5
    (tmp_path / "a" / "summary.json").write_text("{")
    with pytest.raises(Problems, match=r"no summary\.json beside it says .* name one with --prof"):
        compare_paths(tmp_path / "a", tmp_path / "b", LABELS)


def test_a_table_of_one_class(tmp_path):
    """What the workflow writes of the teacher: tumours alone, as class 1."""
    a, b = ([score_row(f"c{k}", "tumour", s) | {"value": 1} for k in range(5)] for s in (0.5, 0.25))
    comparison, found, _ = compare(tmp_path, a, b)
    assert [name for score, name in found if score == "dsc"] == ["tumour_positive", "tumour"]
    assert found["dsc", "tumour"]["difference"] == -0.25
    assert len(comparison["falls"]) == 5
    assert "DSC, tumour, cases with one: not measurably different" in comparison_text(comparison)


def test_classes_that_nobody_knows_have_no_numbers(tmp_path):
    a = [one for k in range(3) for one in changed(case_rows(f"c{k}", 0.5), 0, **NOT_KNOWN)]
    comparison, found, _ = compare(tmp_path, a, a)
    liver = found["dsc", "liver"]
    assert liver["cases"] == 0
    assert {liver[key] for key in ("a", "b", "difference", "low", "high", "p", "p_holm")} == {None}
    assert found["dsc", "organs"]["a"] == 0.5
    text = comparison_text(comparison)
    assert "nan" not in text
    assert "None" not in text


# The command


def test_command_prints_and_writes(tmp_path, capsys):
    a = [one for k in range(12) for one in case_rows(f"a_rather_long_name_{k}", 0.5 + k / 100)]
    b = [one for k in range(12) for one in case_rows(f"a_rather_long_name_{k}", 0.3 + k / 90)]
    a, b = run(tmp_path / "a", a), run(tmp_path / "b", b)
    assert main(["compare", str(a), str(b / "cases.csv"), "-o", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 100
    assert text.splitlines()[:2] == [f"A: {a}", f"B: {b / 'cases.csv'}"]
    classes = read_table(tmp_path / "out" / "classes.tsv")
    assert list(classes[0]) == [*COMPARED_CLASSES.columns]
    assert len(classes) == 2 * (4 + 14)  # no case has a tumour: a mean without it
    cases = read_table(tmp_path / "out" / "cases.tsv")
    assert list(cases[0]) == [*COMPARED_CASES.columns]
    assert len(cases) == 12 * 14
    details = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert details["cases"] == 12
    assert all(
        math.isfinite(value)
        for one in details["classes"]
        for value in one.values()
        if isinstance(value, float)
    )
    assert main(["compare", str(a), str(b), "-o", str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_equal_inputs_give_equal_bytes(tmp_path, capsys):
    a, b = shifted(6, 0.01)
    a, b = run(tmp_path / "a", a), run(tmp_path / "b", b)
    for out in ("one", "two"):
        assert main(["compare", str(a), str(b), "-o", str(tmp_path / out)]) == 0
    for name in ("classes.tsv", "cases.tsv", "comparison.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "no such file or directory"),
        (lambda path: path.mkdir(), "holds no cases.csv; give a folder that panorgan evaluate"),
        (
            lambda path: run(path / "validation", case_rows("x", 0.5)),
            "holds no cases.csv; did you mean",
        ),
        (lambda path: path.write_text("case,dsc\nx,1\n"), "is no table of scores"),
        (lambda path: path.write_text("case\tdsc\nx\t1\n"), "has tabs between its columns"),
        (lambda path: path.write_text(",".join(SCORES.columns) + "\n"), "holds no scored case"),
    ],
)
def test_wrong_paths_are_one_line(tmp_path, capsys, make, expected):
    good = run(tmp_path / "good", case_rows("x", 0.5))
    make(tmp_path / "bad")
    for pair in ((good, tmp_path / "bad"), (tmp_path / "bad", good)):
        assert main(["compare", *map(str, pair)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        assert expected in line.lower() or expected in line
        assert str(tmp_path / "bad") in line
