"""What each part of the report says, from rows that are written by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from score_rows import frame, score_row

from panorgan.config.labels import load_labels
from panorgan.config.settings import Arm, Config, fused_labels
from panorgan.fusing.gate import Rule
from panorgan.io.formats import DASH, MISSING, interval, percent, signed
from panorgan.io.tables import write_table
from panorgan.io.volumes import new_volume
from panorgan.report.data import distributions
from panorgan.report.efficiency import describe_efficiency
from panorgan.report.examples import (
    chosen_examples,
    median_case,
    rank_cases,
    worst_by_class,
    worst_structure,
    wrong_lesions,
)
from panorgan.report.frames import COMPOSITION, CONFLICTS, DECISIONS, EFFICIENCY, GATE_CASES
from panorgan.report.fusion import (
    composition_by_class,
    conflicts_by_pair,
    count_specks,
    telling_case,
)
from panorgan.report.gates import (
    decisions_by_rule,
    describe_gate,
    describe_rounds,
    telling_pieces,
)
from panorgan.report.inputs import Gate, Student, main_student, read_fusions
from panorgan.report.pictures import MOST, Gallery, Scans, piece_of
from panorgan.report.results import (
    MOST_DOTS,
    PUBLISHED,
    case_table,
    class_table,
    compared_results,
    few,
    lesions_by_case,
    profile_table,
    student_table,
)
from panorgan.report.run import left_out, training_time
from panorgan.run.layout import Layout
from panorgan.scoring.frames import LESIONS
from panorgan.scoring.lesions import detection_text
from panorgan.scoring.scores import summarise

LABELS = load_labels()
STAGE2 = Arm(1, "stage2", "0")
PROFILES = ("flare23-2023", "flare23-2024", "corrected")


def score(
    case: str,
    value: int,
    dsc: float | None,
    status: str = "scored",
    ref_ml: float | None = 10.0,
    pred_ml: float = 10.0,
) -> dict:
    """A row of scores; NSD is DSC minus 0.1 but in the corrected rules, where it is DSC."""
    nsd = None if dsc is None else round(max(dsc - 0.1, 0), 4)
    others = {"hd95_mm": 3.0 if status == "scored" else None, "pred_ml": pred_ml}
    if status != "not_scored":
        others["ref_ml"] = ref_ml
    return score_row(
        case, LABELS.by_value(value).name, dsc, nsd, status, nsd_corrected=dsc, **others
    )


def lesion(case: str, side: str, number: int, ml: float, hit: bool) -> dict:
    return {"case": case, "side": side, "lesion": number, "ml": ml, "hit": hit}


def student(arm: Arm = STAGE2, rows: Sequence[dict] = (), **more) -> Student:
    """One with these scores of validation cases, and none of test cases."""
    scores = {"validation": frame(rows), "test": frame([])}
    summaries = {
        split: summarise(found, LABELS, "flare23-2023", samples=20)
        for split, found in scores.items()
    }
    found = Student(
        arm,
        Path(),
        Path(),
        scores,
        summaries,
        dict.fromkeys(scores, LESIONS.frame()),
        None,
        EFFICIENCY.frame(),
    )
    return replace(found, **more)


def test_cases_are_ranked_by_their_organs_else_by_what_is_scored():
    rows = [
        score("a", 1, 0.9),
        score("a", 2, 0.7),
        score("a", 14, 0.0),
        score("b", 1, 0.5),
        score("b", 2, None, "not_scored"),
        score("c", 14, 1.0),
        score("d", 1, 0.95),
        score("e", 1, None, "not_scored"),
    ]
    ranking = rank_cases(frame(rows), LABELS)
    assert list(ranking) == ["b", "a", "d", "c"]
    assert ranking["a"] == pytest.approx(0.8)
    assert ranking["c"] == 1.0
    assert median_case(ranking) == "a"


def test_examples_are_the_worst_three_the_median_and_the_best():
    def of(count: int) -> dict[str, str]:
        return chosen_examples({"abcdefgh"[at]: at / 10 for at in range(count)})

    assert of(0) == {}
    assert of(1) == {"a": "only"}
    assert of(2) == {"a": "worst", "b": "best"}
    assert of(3) == {"a": "worst", "b": "median", "c": "best"}
    assert of(5) == {"a": "worst", "b": "second worst", "c": "median", "e": "best"}
    assert list(of(8).items()) == [
        ("a", "worst"),
        ("b", "second worst"),
        ("c", "third worst"),
        ("d", "median"),
        ("h", "best"),
    ]


def test_the_worst_of_a_class_is_the_largest_of_the_lowest():
    rows = [
        score("a", 14, 0.0, "missed", ref_ml=2.0, pred_ml=0.0),
        score("b", 14, 0.0, "false_positive", ref_ml=0.0, pred_ml=5.0),
        score("c", 14, 0.5, ref_ml=90.0),
        score("d", 14, 1.0, "both_empty", ref_ml=0.0, pred_ml=0.0),
        score("e", 14, None, "not_scored"),
        score("d", 1, 1.0, "both_empty", ref_ml=0.0, pred_ml=0.0),
        score("a", 2, 0.8),
        score("b", 2, 0.7),
    ]
    worst = worst_by_class(frame(rows))
    assert {name: row["case"] for name, row in worst.items()} == {
        "tumour": "b",
        "right_kidney": "b",
    }


def test_the_worst_structure_of_a_case_is_an_organ_if_any_is_scored():
    rows = [score("a", 1, 0.8), score("a", 2, 0.7), score("a", 14, 0.0, "missed")]
    assert worst_structure(frame(rows), "a", LABELS) == rows[1]
    assert worst_structure(frame(rows[2:]), "a", LABELS) == rows[2]
    assert worst_structure(frame(rows), "b", LABELS) is None


def test_wrong_lesions_are_the_largest():
    lesions = [
        *(
            lesion(case, "reference", 1, ml, False)
            for case, ml in zip("abcd", (1, 4, 2, 3), strict=True)
        ),
        lesion("e", "reference", 1, 50, True),
        lesion("a", "prediction", 2, 0.5, False),
        lesion("a", "prediction", 1, 60, True),
    ]
    lesions = LESIONS.frame(lesions)
    wrong = wrong_lesions(lesions)
    assert [row["case"] for row in wrong["missed"]] == ["b", "d", "c"]
    assert [(row["case"], row["lesion"]) for row in wrong["false"]] == [("a", 2)]
    assert wrong_lesions(LESIONS.frame()) == {"missed": [], "false": []}
    assert lesions_by_case(lesions) == {
        "a": {"reference": 1, "found": 0, "false": 1},
        "b": {"reference": 1, "found": 0, "false": 0},
        "c": {"reference": 1, "found": 0, "false": 0},
        "d": {"reference": 1, "found": 0, "false": 0},
        "e": {"reference": 1, "found": 1, "false": 0},
    }


def test_results_stand_beside_published_ones_with_their_splits():
    one = student(rows=[score("a", 1, 0.8), score("a", 2, 0.6), score("a", 14, 0.3)])
    own, *others = compared_results([one], PUBLISHED)
    assert own["title"] == "This run, student stage2, seed 0"
    assert own["split"] == "this run's validation, 1 case"
    # organs DSC, tumour DSC, DSC and NSD of all three classes
    assert [cell["value"] for cell in own["cells"]] == [0.7, 0.3, 0.5667, 0.4667]
    assert own["cells"][0]["interval"] is None  # of a single case
    assert others[0]["split"] == "FLARE23 validation, 50 cases"
    assert [cell["value"] for cell in others[0]["cells"]] == [0.8853, 0.3047, 0.8438, 0.8928]
    assert others[1]["split"] == "FLARE23 hidden test set"
    assert compared_results([one]) == [own]
    assert compared_results([student()], []) == []


def test_means_without_what_no_reference_has_stand_below():
    rows = [score("a", 1, 0.8), score("a", 9, 1.0, "both_empty"), score("a", 14, 0.3)]
    one = student(rows=rows)
    first, second = compared_results([one])
    assert first["title"] == "This run, student stage2, seed 0"
    assert second["title"] == "This run, student stage2, seed 0, classes in a reference"
    assert [cell["value"] for cell in first["cells"][:3]] == [0.9, 0.3, 0.7]
    assert [cell["value"] for cell in second["cells"][:3]] == [0.8, 0.3, 0.55]
    free = student(rows=[score("a", 1, 0.8), score("a", 14, 1.0, "both_empty")])
    assert [cell["value"] for cell in compared_results([free])[1]["cells"][:3]] == [0.8, None, 0.8]
    titles = [row["title"] for row in class_table(one, "validation", LABELS)["rows"]]
    assert titles[14:18] == [
        "Mean of the organs", "Organs in a reference",
        "Mean of all classes", "Classes in a reference",
    ]  # fmt: skip
    table = student_table("validation", [one, student(rows=[score("a", 1, 0.8)])], LABELS)
    by_title = {row["title"]: [cell["dsc"] for cell in row["cells"]] for row in table["rows"]}
    assert by_title["Organs in a reference"] == [0.8, 0.8]


def test_classes_have_their_worst_case_and_means_have_none():
    rows = [score("a", 1, 0.8, pred_ml=13.0), score("b", 1, 0.6, pred_ml=9.0)]
    one = student(rows=rows)
    table = class_table(one, "validation", LABELS)
    assert table["cases"] == 2
    liver = table["rows"][0]
    assert (liver["title"], liver["dsc"], liver["cases"]) == ("Liver", 0.7, 2)
    assert (liver["hd95_mm"], liver["ml_error"], liver["ml_abs_error"]) == (3.0, 1.0, 2.0)
    assert liver["worst"] == rows[1]
    assert table["rows"][1]["worst"] is None  # nothing is known of the right kidney
    mean = table["rows"][14]
    assert (mean["title"], mean["dsc"], mean["worst"]) == ("Mean of the organs", 0.7, None)
    assert class_table(one, "test", LABELS)["rows"] == []


def test_students_stand_side_by_side_where_they_are_scored():
    found = [student(rows=[score("a", 1, 0.8)]), student(Arm(1, "stage1", "0"))]
    table = student_table("validation", found, LABELS)
    assert table["students"] == ["stage2, seed 0"]
    assert [cell["dsc"] for cell in table["rows"][0]["cells"]] == [0.8]


def test_profiles_differ_from_the_runs_own():
    rows = [score("a", 1, 0.5)]
    table = profile_table(student(rows=rows).summaries["validation"])
    assert [row["profile"] for row in table] == list(PROFILES)
    # DSC and NSD of organs, tumour, all
    assert [cell["value"] for cell in table[2]["cells"]] == [0.5, 0.5, None, None, 0.5, 0.5]
    changes = [cell["change"] for cell in table[2]["cells"]]
    assert changes == [0.0, pytest.approx(0.1), None, None, 0.0, pytest.approx(0.1)]
    other = summarise(frame(rows), LABELS, "corrected", samples=20)
    assert profile_table(other)[0]["profile"] == "corrected"


def test_lesions_in_a_line():
    found = {"reference": 11, "found": 9, "sensitivity": 0.8182, "prediction": 13, "true": 9}
    free = {"cases": 2, "false": 1}
    assert detection_text(found | {"tumour_free": free}) == (
        "9 of 11 found (82 %), 4 of 13 predicted are false, 1 of them in 2 tumour-free scans"
    )
    nothing = {"reference": 0, "found": 0, "sensitivity": None, "prediction": 0, "true": 0}
    none = {"cases": 0, "false": 0}
    assert (
        detection_text(nothing | {"tumour_free": none})
        == "0 of 0 found, 0 of 0 predicted are false"
    )


def test_cases_have_their_worst_organ_their_tumour_and_lesions():
    rows = [
        score("a", 1, 0.9),
        score("a", 2, 0.5),
        score("a", 14, 0.0, "missed"),
        score("b", 14, 1.0, "both_empty"),
        score("c", 3, 0.4),
        score("c", 14, None, "not_scored"),
    ]
    one = student(
        rows=rows, lesions={"validation": LESIONS.frame([lesion("a", "reference", 1, 2, False)])}
    )
    table = case_table(rank_cases(frame(rows), LABELS), one, "validation", LABELS)
    assert [row["case"] for row in table] == ["c", "a", "b"]
    c, a, b = table
    assert (a["dsc"], a["lowest"]["name"], a["tumour"]["status"]) == (0.7, "right_kidney", "missed")
    assert a["lesions"] == {"reference": 1, "found": 0, "false": 0}
    assert (b["dsc"], b["nsd"], b["lowest"], b["lesions"]) == (None, None, None, None)
    assert (c["dsc"], c["tumour"]) == (0.4, None)


def test_few_scores_keep_their_extremes():
    assert few([0.3, 0.1]) == [0.3, 0.1]
    many = np.random.default_rng(0).random(1001).tolist()
    chosen = few(many)
    assert len(chosen) == MOST_DOTS
    assert {*chosen} <= {*many}
    assert (min(chosen), max(chosen)) == (min(many), max(many))
    assert np.median(chosen) == pytest.approx(np.median(many), abs=0.01)


def test_the_slowest_case_is_listed_first():
    def row(case: str, total: float, gpu: float | None = None) -> dict[str, object]:
        names = {"preprocess_s": 1.0, "network_s": 2.0, "export_s": None, "total_s": total}
        way = {"device": "cpu", "engine": "torch 2.13.0", "precision": "fp32"}
        areas = {"gpu_area_mb_s": gpu, "challenge_area_mb_s": gpu}
        return {"case": case, "peak_ram_mb": 500.0, "peak_gpu_mb": gpu} | way | areas | names

    rows = EFFICIENCY.frame([row("a", 3.0), row("b", 4.5, 0.0)])
    found = describe_efficiency(student(efficiency=rows))
    assert found["cases"] == 2
    assert found["seconds"]["total"] == "3.75 (3.00 to 4.50)"
    assert list(found["memory"].values()) == ["500", "0", "0", "0"]
    assert found["devices"] == "cpu (torch 2.13.0, fp32)"
    listed = [
        (one["case"], [value for value, _ in one["numbers"]]) for one in found["listed"]["rows"]
    ]
    assert listed == [
        ("b", [1, 2, None, 4.5, 500, 0, 0, 0]),
        ("a", [1, 2, None, 3, 500, None, None, None]),
    ]


def test_distributions_are_those_of_each_split():
    def entry(split: str, shape, spacing, state: str, ml: float = 0.0):
        return SimpleNamespace(
            split=split,
            shape=shape,
            spacing=spacing,
            states={14: state},
            volume_ml=lambda value: ml,
        )

    entries = [
        entry("train", (100, 512, 512), (2.5, 0.8, 0.5), "annotated", 12.0),
        entry("train", (50, 512, 400), (5.0, 0.8, 0.8), "absent"),
        entry("test", (20, 512, 500), (5.0, 0.9, 0.9), "unknown"),
    ]
    found = distributions(entries, LABELS)
    assert found == {
        "Slices": {"train": [100, 50], "test": [20]},
        "Slice distance": {"train": [2.5, 5.0], "test": [5.0]},
        "In-plane spacing": {"train": [0.5, 0.8], "test": [0.9]},
        "Extent from feet to head": {"train": [250, 250], "test": [100]},
        "Extent from left to right": {"train": [256, 320], "test": [450]},
        "Tumour of a case": {"train": [12.0]},
    }
    assert "Tumour of a case" not in distributions(entries[1:], LABELS)


def decision(
    case: str, name: str, action: str, rule: str, ml: float, component: int = 1
) -> dict[str, object]:
    """A row of the gate's."""
    found = {"case": case, "name": name, "action": action, "rule": rule, "ml": ml}
    return found | {"component": component, "value": LABELS.by_name(name).value}


def test_telling_pieces_are_the_largest_of_what_is_not_learnt_and_one_that_is():
    rows = [
        decision("a", "tumour", "ignore", "mean_probability", 2),
        decision("b", "tumour", "ignore", "mean_probability", 3),
        decision("c", "tumour", "clean", "unused", 99),
        *(
            decision(case, "tumour", "keep", "", ml)
            for case, ml in zip("abc", (1, 5, 3), strict=True)
        ),
        decision("d", "tumour", "keep", "unused", 4),
        decision("d", "liver", "clean", "share", 2),
        decision("d", "liver", "clean", "share", 2, 2),
    ]
    chosen = [
        (title, row["case"], row["component"])
        for title, row in telling_pieces(DECISIONS.frame(rows), LABELS)
    ]
    assert chosen == [
        ("Ignored tumour, the largest", "b", 1),
        ("Kept tumour, one of middle size", "c", 1),
        ("Removed organ, the largest", "d", 1),
    ]
    assert telling_pieces(DECISIONS.frame(), LABELS) == []


def test_a_piece_is_that_of_its_number_in_ras_order():
    array = np.zeros((4, 5, 6), np.uint8)
    array[0, 0, 0] = 14
    array[2:4, 3:5, 5] = 14
    array[1, 4, 2] = 1
    flipped = new_volume(array, (5.0, 1.0, 1.0), np.diag([-1.0, 1.0, 5.0, 1.0]))
    assert piece_of(flipped, 14, 1).sum() == 4
    assert np.argwhere(piece_of(flipped, 14, 2)).tolist() == [[0, 0, 5]]
    assert not piece_of(flipped, 14, 3).any()


def test_a_gallery_is_full_by_number_and_by_size():
    drawn = []

    def draw(size: int):
        def content() -> bytes:
            drawn.append(size)
            return b"<svg" + b" " * (size - 4)

        return content

    gallery = Gallery()
    found = [gallery.add("cases", draw(10), f"case {at}") for at in range(MOST["cases"] + 2)]
    assert [picture is not None for picture in found] == [True] * MOST["cases"] + [False] * 2
    assert found[1].alt == "case 1"
    assert found[1].uri.startswith("data:image/svg+xml;base64,")
    assert gallery.left_out == {"cases": 2}
    assert len(drawn) == MOST["cases"]

    gallery = Gallery(budget=25)
    found = [gallery.add("lesions", draw(size), "") for size in (10, 20, 15, 5)]
    assert [picture is not None for picture in found] == [True, False, True, False]
    assert gallery.left_out == {"lesions": 2}
    jpeg = Gallery().add("plots", lambda: b"\xff\xd8\xff", "")
    assert jpeg.uri.startswith("data:image/jpeg;base64,")
    png = Gallery().add("learning curves", lambda: b"\x89PNG", "")
    assert png.uri.startswith("data:image/png;base64,")


def test_what_was_left_out_has_its_reasons(tmp_path):
    def table(name: str, *rows: dict[str, str]) -> str:
        path = str(tmp_path / f"{name}.tsv")
        write_table(path, list(rows[0]) if rows else ["cause", "what", "case"], rows)
        return path

    damaged, nan = "its gzip data are damaged", "has NaN in 3 voxels"
    files = {
        "excluded": table(
            "excluded", {"cause": damaged}, {"cause": nan}, {"cause": nan.replace("3", "77")}
        ),
        "suspects": table("suspects"),
        "corrected": table("corrected", {"what": "spleen"}),
        "repaired": table("repaired"),
        "selection": [
            table("train", {"status": "ok", "reason": ""}, {"status": "no", "reason": "no tumour"})
        ],
    }
    entries = [
        SimpleNamespace(split="train", label=""),
        SimpleNamespace(split="test", label=""),
        SimpleNamespace(split="validation", label="a.nii.gz"),
    ]
    main = student(Arm(1, "gated", "0"), [score("a", 14, None, "not_scored")])
    decisions = [
        decision("a", "tumour", "clean", "volume", 0.03),
        decision("b", "tumour", "clean", "volume", 0.04),
        decision("b", "liver", "clean", "unused", 0.04),
        decision("b", "liver", "keep", "", 900),
    ]
    cases = [{"case": "c", "status": "drop", "rule": "instability"}]
    gate = Gate(1, "teacher", {}, GATE_CASES.frame(cases), DECISIONS.frame(decisions), None)
    specks = [{"name": "Liver", "voxels": 7}, {"name": "Spleen", "voxels": 2}]
    rows = left_out(files, entries, main, [gate], specks)
    found = {row["what"]: (row["count"], row["why"]) for row in rows}
    assert found == {
        "Cases excluded": (3, f"{nan.replace('3', '…')} (2); {damaged} (1)"),
        "Cases with something suspicious": (0, ""),
        "Corrections by hand": (1, "spleen"),
        "Headers repaired, in copies": (0, ""),
        "Training cases that the teacher does not learn from": (1, "no tumour"),
        "Voxels of classes that are not annotated in their case, set to background": (
            9,
            "Liver (7); Spleen (2)",
        ),
        "Pieces of pseudo-labels removed by the gate": (2, "volume below gate.tumour.min_ml"),
        "Pieces of pseudo-labels ignored by the gate": (0, ""),
        "Cases dropped by the gate": (1, "instability above gate.max_instability"),
        "Validation and test cases without a label": (1, "predicted, not scored"),
        "Classes of labelled cases that are not scored": (1, "unknown in the case: in no mean"),
    }
    # A gate that nobody obeyed has left nothing out.
    plain = student(Arm(1, "stage2", "0"), [])
    assert not [row for row in left_out(files, entries, plain, [gate], []) if "gate" in row["what"]]


def test_the_case_with_most_sources_is_shown(tmp_path):
    path = tmp_path / "a.composition.tsv"
    rows = [
        {"case": "a", "source": "ground_truth", "ml": 50},
        {"case": "b", "source": "ground_truth", "ml": 1},
        {"case": "b", "source": "tumour_pseudo", "ml": 1},
        {"case": "c", "source": "ground_truth", "ml": 1},
        {"case": "c", "source": "tumour_pseudo", "ml": 2},
    ]
    rows = [row | {"name": "liver", "voxels": 1} for row in rows]
    write_table(path, list(rows[0]), rows)
    assert telling_case([str(path)]) == "c"


def test_numbers_are_written_as_people_read_them():
    assert (percent(0.87314), percent(0.87314, 0), percent(None)) == ("87.31", "87", MISSING)
    assert interval([0.8, 0.9046]) == f"80.0{DASH}90.5"
    assert (interval(None), interval([0.8, 0.8])) == (MISSING, "")
    # Only all is 100.
    assert [percent(x, 1) for x in (0.9994, 0.9996, 1.0, 1 - 1e-15)] == [
        "99.9",
        "99.9",
        "100.0",
        "100.0",
    ]
    assert (percent(0.999), percent(0.999, 0), percent(-0.00001)) == ("99.90", "99", "0.00")
    assert [signed(x) for x in (1.2, -1.2, None)] == ["+1.20", "-1.20", MISSING]


def test_composition_is_summed_over_cases():
    rows = [
        {"case": "a", "name": "liver", "source": "ground_truth", "voxels": 3, "ml": 30},
        {"case": "b", "name": "liver", "source": "organ_pseudo", "voxels": 1, "ml": 10},
    ]
    table = composition_by_class(COMPOSITION.frame(rows), ["ground_truth", "organ_pseudo"], LABELS)
    assert [row["title"] for row in table] == [label.title for label in LABELS.labels]
    assert table[0]["ml"] == 40
    assert [part["share"] for part in table[0]["parts"]] == [0.75, 0.25]
    assert table[1]["ml"] == 0


def test_conflicts_are_summed_by_pair(tmp_path):
    columns = ("case", "kept", "kept_name", "lost", "lost_name", "lost_input", "voxels", "ml")
    tables = []
    for shard, lost, cases in (("0", "liver", "ab"), ("1", "spleen", "c"), ("1", "liver", "d")):
        rows = [
            dict(zip(columns, (case, 14, "tumour", 1, lost, "partial", 10, 2.5), strict=True))
            for case in cases
        ]
        tables.append(str(tmp_path / f"train-{shard}-{lost}.conflicts.tsv"))
        write_table(tables[-1], columns, rows)
    found = conflicts_by_pair(CONFLICTS.read(*tables), LABELS)
    assert (found["count"], found["ml"]) == (2, 10)
    assert found["rows"][0] == {
        "kept_name": "Tumour",
        "lost_name": "Liver",
        "lost_input": "partial label",
        "cases": 3,
        "voxels": 30,
        "ml": 7.5,
    }


def test_specks_are_those_of_the_fusion_that_is_learnt(tmp_path):
    row = {"value": 1, "name": "liver", "ml": 0.5}
    paths, student = Layout(tmp_path), Config().student
    student = student.model_copy(update={"variants": ["partial", "stage2", "gated"]})
    config = Config(student=student, rounds=2)
    specks = {
        (1, "gated-stage1"): 1, (1, "partial"): 2, (1, "stage1"): 4,
        (2, "gated-stage1"): 8, (2, "stage2-stage1"): 16,
    }  # fmt: skip
    names = ["train-a", "train-b"]
    for shard in names:
        for number, labels in fused_labels(config):
            write_table(paths.fusion(labels, number, shard) + ".tsv", ["case"], [])
        for (number, labels), voxels in specks.items():
            found = row | {"case": shard, "voxels": voxels}
            path = paths.fusion(labels, number, shard) + ".specks.tsv"
            write_table(path, list(found), [found])
    shards = dict.fromkeys(("stage1", "stage2", "gated"), names) | {"partial": names[:1]}
    fusions = read_fusions(config, paths, shards)
    counted = {(one.round, one.labels): count_specks(one, LABELS) for one in fusions}
    assert counted[1, "stage2"] == [{"name": "Liver", "cases": 2, "voxels": 8, "ml": 1.0}]
    assert {name: rows[0]["voxels"] for name, rows in counted.items()} == {
        (1, "partial"): 2, (1, "stage1"): 8, (1, "stage2"): 8, (1, "gated"): 2,
        (2, "stage2"): 32, (2, "gated"): 16,
    }  # fmt: skip


def test_decisions_are_counted_by_rule():
    rows = [
        decision("a", "liver", "keep", "", 9),
        decision("a", "right_kidney", "ignore", "sides", 4),
        decision("a", "tumour", "ignore", "distance", 1),
        decision("b", "tumour", "ignore", "distance", 2),
        decision("b", "tumour", "ignore", "mean_probability", 2),
        decision("b", "tumour", "clean", "hu", 0.5),
        decision("b", "tumour", "clean", "hu", 0.25),
    ]
    table = [tuple(row.values()) for row in decisions_by_rule(DECISIONS.frame(rows), LABELS)]
    assert table == [
        ("tumour", "removed", Rule.HU.text, 1, 2, 0.75),
        ("tumour", "ignored", Rule.DISTANCE.text, 2, 2, 3.0),
        ("tumour", "ignored", Rule.MEAN_PROBABILITY.text, 1, 1, 2.0),
        ("organs", "kept", "", 1, 1, 9.0),
        ("organs", "ignored", Rule.SIDES.text, 1, 1, 4.0),
    ]


def test_cross_fitted_rounds_say_so():
    def gate(number: int, origin: str, changes: Sequence[float | None]) -> Gate:
        cases = GATE_CASES.frame([{"instability": change} for change in changes])
        return Gate(number, origin, {"text": []}, cases, DECISIONS.frame(), None)

    gates = [gate(1, "teacher", [None, None]), gate(2, "stage2", [0.1, None, 0.3])]
    config = Config(rounds=2, folds=5)
    found = describe_rounds(config.model_dump(), gates)
    assert found["folds"] == 5
    assert found["rows"] == [
        {"round": 2, "origin": "stage2", "cases": 2, "instability": "0.200 (0.100 to 0.300)"}
    ]
    assert describe_rounds(Config().model_dump(), gates) is None
    # Five folds of the student relabel the cases; the report's own students are the two others.
    text = training_time(config.model_dump(), [0.5, 1.0])
    assert text == "1.5 hours without 5 networks that only make or judge pseudo-labels"


@pytest.mark.parametrize(
    ("variant", "number", "origin", "used"),
    [
        ("gated", 1, "teacher", True),
        ("stage2", 1, "teacher", False),
        ("gated", 2, "gated", True),
        ("gated", 2, "stage2", False),
        ("gated", 1, "gated", False),
    ],
)
def test_only_gated_students_learn_by_a_gate(variant, number, origin, used):
    cases = GATE_CASES.frame([{"status": "drop", "rule": "instability"}] * 2)
    decisions = DECISIONS.frame()
    gate = Gate(2 if origin != "teacher" else 1, origin, {"text": ["x"]}, cases, decisions, None)
    arms = [Arm(number, variant, "0")]
    found = describe_gate(gate, arms, LABELS, Scans([]), Gallery())
    assert found["used"] is used
    assert found["dropped"] == [{"cases": 2, "reason": "instability above gate.max_instability"}]


def test_main_student_is_the_last_rounds_stage_2_else_gated():
    for variants, expected in (
        (("noise", "gated"), "gated, seed 3"),
        (("gated", "stage2", "noise"), "stage2, seed 3"),
        (("noise", "partial"), "noise, seed 3"),
    ):
        arms = [Arm(1, variant, seed) for variant in variants for seed in ("3", "4")]
        found = [student(arm) for arm in arms]
        assert main_student(found).title == expected
        if "noise" not in variants[:1]:
            later = student(Arm(2, "gated", "3"))
            assert main_student([*found, later]) == later
