"""What the manifest says of cases and classes."""

import pytest

from panorgan.cases import Case
from panorgan.labels import load_labels
from panorgan.manifest import (
    ABSENT,
    ANNOTATED,
    FACTS,
    UNKNOWN,
    build_manifest,
    class_states,
    load_sources,
    read_manifest,
    same_images,
    write_manifest,
)
from panorgan.problems import Problems
from panorgan.selection import needs_tumour, reason_against, shows_tumours

LABELS = load_labels()
SOURCES = {"kidneys": ["right_kidney", "left_kidney", "tumour"], "nothing": []}


def case(name="a", split="train", source="s", label="a.nii.gz", annotated="", patient=""):
    return Case(name, f"{name}_0000.nii.gz", label, split, source, patient, annotated)


def states(values, voxel_ml=1.0, min_ml=0.0, **fields):
    found, doubts = class_states(case(**fields), values, voxel_ml, SOURCES, LABELS, min_ml)
    named = {LABELS.by_value(value).name: state for value, state in found.items()}
    return {name: state for name, state in named.items() if state != UNKNOWN}, doubts


def test_without_a_rule_the_values_that_occur_are_annotated_and_none_is_absent():
    assert states({1: 500, 14: 3}) == ({"liver": ANNOTATED, "tumour": ANNOTATED}, [])


def test_a_source_with_a_rule_makes_missing_classes_absent():
    found, doubts = states({2: 100}, source="kidneys")
    assert found == {"right_kidney": ANNOTATED, "left_kidney": ABSENT, "tumour": ABSENT}
    assert doubts == []


def test_a_class_outside_the_rule_is_a_suspect_and_stays_unknown():
    found, doubts = states({2: 100, 13: 90, 1: 4}, voxel_ml=0.5, source="kidneys")
    assert found["tumour"] == ABSENT
    assert "liver" not in found
    assert doubts == ["2.000 ml of liver, which is not annotated in this case: left out"]


def test_the_cases_own_list_wins_over_the_source():
    found, _ = states({1: 9}, source="kidneys", annotated="liver,14")
    assert found == {"liver": ANNOTATED, "tumour": ABSENT}


def test_annotated_none_makes_everything_unknown():
    found, doubts = states({1: 9}, annotated="none")
    assert found == {}
    assert len(doubts) == 1


def test_validation_cases_are_fully_annotated_by_default():
    found, _ = states({1: 9}, split="validation")
    assert found == {name: ABSENT for name in LABELS.names} | {"liver": ANNOTATED}


def test_unlabelled_cases_know_nothing():
    assert states({}, label="") == ({}, [])
    assert states({}, label="", source="kidneys") == ({}, [])


@pytest.mark.parametrize(("voxels", "state"), [(9, UNKNOWN), (10, ANNOTATED), (11, ANNOTATED)])
def test_specks_below_the_minimum_do_not_count(voxels, state):
    found, doubts = states({1: voxels}, voxel_ml=0.1, min_ml=1.0)
    assert found.get("liver", UNKNOWN) == state
    assert len(doubts) == (state == UNKNOWN)


def facts(image_hash="i", values="1:5"):
    known = dict.fromkeys(FACTS, "")
    return known | {
        "image_hash": image_hash,
        "label_values": values,
        "voxel_ml": "0.5",
        "shape_zyx": "3 4 5",
        "spacing_mm_zyx": "2.5 0.8 0.8",
    }


def test_round_trip_and_filters(tmp_path):
    cases = [case("b", split="test"), case("a", source="kidneys"), case("gone")]
    known = {"a": facts(values="2:8 14:3"), "b": facts()}
    shards = {"a": "train-00", "b": "evaluation-01", "gone": "train-00"}
    entries, suspects = build_manifest(cases, known, shards, SOURCES, LABELS, 0.0)
    assert [entry.case for entry in entries] == ["a", "b"]
    assert suspects == []
    write_manifest(tmp_path / "m.tsv", entries, LABELS)
    assert read_manifest(tmp_path / "m.tsv", LABELS) == entries
    assert [e.case for e in read_manifest(tmp_path / "m.tsv", LABELS, shard="train-00")] == ["a"]
    assert [e.case for e in read_manifest(tmp_path / "m.tsv", LABELS, split="test")] == ["b"]
    assert entries[0].volume_ml(14) == 1.5
    assert entries[0].shape == (3, 4, 5)
    assert entries[0].spacing == (2.5, 0.8, 0.8)


def test_same_image_in_two_splits_is_a_problem_of_the_training_case():
    cases = [case("a"), case("b", split="validation"), case("c")]
    problems, suspects = same_images(cases, {name: facts("same") for name in "abc"})
    assert [problem.case for problem in problems] == ["a", "c"]
    assert "same image as b, which is a validation case" in problems[0].cause
    assert suspects == [{"case": "a", "file": "a_0000.nii.gz", "cause": "same image as c"}]


def test_same_patient_in_two_splits_is_a_problem():
    cases = [case("a", patient="p1"), case("b", split="test", patient="p1"), case("c", patient="")]
    problems, suspects = same_images(cases, {name: facts(name) for name in "abc"})
    assert [(p.case, p.cause) for p in problems] == [
        ("a", "same patient as b, which is a test case")
    ]
    assert suspects == []


def test_different_images_are_fine():
    cases = [case("a"), case("b", split="test")]
    assert same_images(cases, {"a": facts("x"), "b": facts("y")}) == ([], [])


def entry(values, **fields):
    (found,), _ = build_manifest(
        [case(**fields)], {"a": facts(values=values)}, {"a": "train-00"}, SOURCES, LABELS, 0.0
    )
    return found


def test_selection_and_its_reasons():
    def reason(values, minimum=0.0, exclude=(), **fields):
        return reason_against(entry(values, **fields), LABELS, minimum, exclude)

    assert reason("14:4") == ""
    assert reason("1:4") == "tumour is not annotated"
    assert reason("2:4", source="kidneys") == "has no tumour"
    assert reason("14:4", exclude=["a"]) == "named in selection.exclude"
    assert reason("14:4", minimum=2.0) == ""
    assert reason("14:4", minimum=2.5) == "tumour of 2.000 ml is below selection.min_tumour_ml"


def test_who_needs_and_who_shows_tumours():
    assert needs_tumour(entry("1:4"), LABELS)
    assert needs_tumour(entry("", label=""), LABELS)
    assert not needs_tumour(entry("14:4"), LABELS)
    assert not needs_tumour(entry("2:4", source="kidneys"), LABELS)
    assert not needs_tumour(entry("1:4", split="validation", annotated="liver"), LABELS)
    assert shows_tumours(entry("1:4", split="validation"), LABELS)
    assert not shows_tumours(entry("1:4", split="validation", annotated="liver"), LABELS)


def test_sources_file(tmp_path):
    path = tmp_path / "sources.yaml"
    path.write_text("sources: {a: {annotated: [liver, 14]}, b: {annotated: none}}")
    assert load_sources(path, LABELS) == {"a": ["liver", "tumour"], "b": []}
    path.write_text("sources: {a: {annotated: [livr]}}")
    with pytest.raises(Problems, match="a: 'livr' is no class; did you mean 'liver'"):
        load_sources(path, LABELS)
    path.write_text("sources: {a: {anotated: all}}")
    with pytest.raises(Problems, match=r"sources\.a\.ann?otated"):
        load_sources(path, LABELS)
