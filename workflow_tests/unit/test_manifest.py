"""What the manifest says of cases and classes."""

from dataclasses import replace

import numpy as np
import pytest
from fault_rows import fault_rows
from hypothesis import given
from hypothesis import strategies as st

from panorgan.cases.corrections import Correction
from panorgan.cases.manifest import (
    FACTS,
    FOR_SUSPECTS,
    MISNUMBERED,
    Rule,
    build_manifest,
    class_states,
    load_sources,
    read_manifest,
    same_images,
    write_manifest,
)
from panorgan.cases.selection import needs_tumour, reason_against, shows_tumours, teacher_label
from panorgan.cases.table import Case
from panorgan.config.labels import ABSENT, ANNOTATED, UNKNOWN, load_labels
from panorgan.io.volumes import geometry_hash, new_volume, read_label, voxel_hash, write_label
from panorgan.problems import Problems

LABELS = load_labels()
KIDNEYS = (2, 13)
SOURCES = {
    "kidneys": Rule(("right_kidney", "left_kidney", "tumour")),
    "scoped": Rule(("right_kidney", "left_kidney", "tumour"), KIDNEYS),
    "liver": Rule(("liver",)),
    "nothing": Rule(()),
}


def case(name="a", split="train", source="s", label=None, annotated="", patient="", **more):
    label = f"{name}.nii.gz" if label is None else label
    return Case(name, f"{name}_0000.nii.gz", label, split, source, patient, annotated, **more)


def states(values, voxel_ml=1.0, min_ml=0.0, speck_ml=0.0, settled=(), **fields):
    found, _, doubts = class_states(
        case(**fields), values, voxel_ml, SOURCES, LABELS, min_ml, speck_ml, settled
    )
    named = {LABELS.by_value(value).name: state for value, state in found.items()}
    return {name: state for name, state in named.items() if state != UNKNOWN}, doubts


def test_without_a_rule_the_values_that_occur_are_annotated_and_none_is_absent():
    assert states({1: 500, 14: 3}) == ({"liver": ANNOTATED, "tumour": ANNOTATED}, [])


def test_a_source_with_a_rule_makes_missing_classes_absent():
    found, doubts = states({2: 100}, source="kidneys")
    assert found == {"right_kidney": ANNOTATED, "left_kidney": ABSENT, "tumour": ABSENT}
    assert doubts == ["left_kidney: annotated in kidneys, but missing in this case"]
    assert states({2: 100}, source="kidneys", settled=[13])[1] == []


def test_a_class_outside_the_rule_is_a_suspect_and_stays_unknown():
    found, doubts = states({2: 100, 13: 90, 1: 4}, voxel_ml=0.5, source="kidneys")
    assert found["tumour"] == ABSENT
    assert "liver" not in found
    assert doubts == ["2.000 ml of liver, which is not annotated in this case: left out"]


def test_the_cases_own_list_wins_over_the_source():
    found, doubts = states({1: 9}, source="kidneys", annotated="liver,spleen,14")
    assert found == {"liver": ANNOTATED, "spleen": ABSENT, "tumour": ABSENT}
    assert doubts == ["spleen: named in the case's `annotated`, but missing in its label"]


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
    known = dict.fromkeys((*FACTS, *FOR_SUSPECTS), "")
    return known | {
        "image_hash": image_hash,
        "label_values": values,
        "voxel_ml": "0.5",
        "shape_zyx": "3 4 5",
        "spacing_mm_zyx": "2.5 0.8 0.8",
    }


def test_round_trip_and_filters(tmp_path):
    cases = [case("b", split="test"), case("a", source="scoped"), case("gone")]
    known = {"a": facts(values="2:8 13:1 14:3"), "b": facts()}
    shards = {"a": "labelled-00", "b": "test-01", "gone": "labelled-00"}
    entries, suspects, _ = build_manifest(cases, known, shards, SOURCES, LABELS, 0.0)
    assert [entry.case for entry in entries] == ["a", "b"]
    assert suspects == []
    assert [entry.scope for entry in entries] == [KIDNEYS, None]
    write_manifest(tmp_path / "m.tsv", entries, LABELS)
    assert read_manifest(tmp_path / "m.tsv", LABELS) == entries
    assert [e.case for e in read_manifest(tmp_path / "m.tsv", LABELS, split="test")] == ["b"]
    parts = []
    for entry in entries:
        parts.append(tmp_path / f"{entry.shard}.tsv")
        write_manifest(parts[-1], [entry], LABELS)
    assert read_manifest(parts, LABELS) == entries
    assert entries[0].volume_ml(14) == 1.5
    assert entries[0].shape == (3, 4, 5)
    assert entries[0].spacing == (2.5, 0.8, 0.8)


def test_same_image_in_two_splits_is_a_problem_of_the_training_case():
    cases = [case("a"), case("b", split="validation"), case("c")]
    problems, suspects = same_images(cases, {name: facts("same") for name in "abc"})
    assert [problem.case for problem in problems] == ["a", "c"]
    assert "same image as b, which is a validation case" in problems[0].cause
    assert suspects == []


def test_same_image_twice_in_one_split_is_suspicious():
    problems, suspects = same_images([case("a"), case("b")], {name: facts("same") for name in "ab"})
    assert problems == []
    assert suspects == [{"case": "a", "file": "a_0000.nii.gz", "cause": "same image as b"}]


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


def labelled(name, label, patient="", organs="", **hashes):
    """A case and its facts: `label` and `organs` name a file and the hash of what it holds."""
    files = {"label": f"{label}.nii.gz", "organs": organs and f"{organs}.nii.gz"}
    hashes = {"image_hash": name, "label_hash": label, "organs_hash": organs} | hashes
    return case(name, patient=patient, **files), facts() | {"places": "1:…", **hashes}


def shared(*labelled):
    """Problems of `same_images` as (case, file, cause), and its suspects likewise."""
    problems, suspects = same_images(
        [case for case, _ in labelled], {case.case: fact for case, fact in labelled}
    )
    rows = [tuple(row[column] for column in ("case", "file", "cause")) for row in suspects]
    return [(p.case, p.file, p.cause) for p in problems], rows


def test_a_label_of_two_images_is_a_problem_of_both():
    one = ("a", "l.nii.gz", "is the label of b too, which is another image")
    other = ("b", "l.nii.gz", "is the label of a too, which is another image")
    assert shared(labelled("a", "l"), labelled("b", "l"), labelled("c", "m")) == ([one, other], [])
    # Copies are as bad as one file, unless they are empty.
    copy = labelled("b", "copy", label_hash="l")
    assert shared(labelled("a", "l"), copy)[0] == [one, ("b", "copy.nii.gz", other[2])]
    empty = [(case, fact | {"places": ""}) for case, fact in (labelled("a", "l"), copy)]
    assert shared(*empty) == ([], [])
    empty[1] = labelled("b", "l")[0], empty[1][1]
    assert shared(*empty)[0] == [one, other]
    # Of one patient it may be right, of one image it is.
    assert shared(labelled("a", "l", "p"), labelled("b", "l", "p")) == ([], [one, other])
    assert len(shared(labelled("a", "l", "p"), labelled("b", "l", "q"))[0]) == 2
    same = ("a", "a_0000.nii.gz", "same image as b")
    assert shared(labelled("a", "l"), labelled("b", "l", image_hash="a")) == ([], [same])


def test_a_pseudo_label_of_two_images_is_a_problem_of_both():
    both = [labelled("a", "l", organs="o"), labelled("b", "m", organs="o")]
    both = [(case, fact | {"organ_places": "1:…"}) for case, fact in both]
    assert [(case, file) for case, file, _ in shared(*both)[0]] == [
        ("a", "o.nii.gz"),
        ("b", "o.nii.gz"),
    ]
    # So is a label that is another case's pseudo-label.
    both[1] = (replace(both[1][0], organs="l.nii.gz"), both[1][1] | {"organs_hash": "l"})
    assert [(case, file) for case, file, _ in shared(*both)[0]] == [
        ("a", "l.nii.gz"),
        ("b", "l.nii.gz"),
    ]


def entry(values, **fields):
    (found,), _, _ = build_manifest(
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
    assert load_sources(path, LABELS) == {"a": Rule(("liver", "tumour")), "b": Rule(())}
    path.write_text("sources: {a: {annotated: [livr]}}")
    with pytest.raises(Problems, match="a: 'livr' is no class; did you mean 'liver'"):
        load_sources(path, LABELS)
    path.write_text("sources: {a: {anotated: all}}")
    with pytest.raises(Problems, match=r"sources\.a\.ann?otated"):
        load_sources(path, LABELS)


def test_scope_of_a_source(tmp_path):
    path = tmp_path / "sources.yaml"
    both = "right_kidney, left_kidney"
    path.write_text(f"sources: {{a: {{annotated: [{both}, tumour], tumour_scope: [{both}]}}}}")
    rule = Rule(("right_kidney", "left_kidney", "tumour"), KIDNEYS)
    assert load_sources(path, LABELS) == {"a": rule}
    path.write_text("sources: {a: {annotated: all, tumour_scope: all}}")
    assert load_sources(path, LABELS)["a"].scope is None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("annotated: [liver, 14], tumour_scope: [livr]", "did you mean 'liver'"),
        ("annotated: [liver], tumour_scope: [liver]", "tumour is not annotated"),
        ("annotated: all, tumour_scope: [liver, tumour]", "'tumour' is no organ"),
        ("annotated: all, tumour_scope: []", "is no scope"),
    ],
)
def test_scopes_that_mean_nothing(tmp_path, rule, text):
    path = tmp_path / "sources.yaml"
    path.write_text(f"sources: {{a: {{{rule}}}}}")
    with pytest.raises(Problems, match=text):
        load_sources(path, LABELS)


def test_a_tumour_free_case_of_a_kidney_data_set_is_unknown_elsewhere():
    found = entry("2:8 13:8", source="scoped")
    assert (found.states[14], found.scope) == (ABSENT, KIDNEYS)
    assert 14 in found.unknown
    assert not {2, 13} & set(found.unknown)
    assert needs_tumour(found, LABELS)
    assert not shows_tumours(found, LABELS)
    reason = reason_against(found, LABELS, 0.0, (), negatives=True)
    assert reason == "has no tumour in right_kidney,left_kidney, elsewhere nobody looked"
    # Without the scope the same case is free of tumours everywhere.
    known = entry("2:8 13:8", source="kidneys")
    assert (known.states[14], known.scope) == (ABSENT, None)
    assert 14 not in known.unknown
    assert not needs_tumour(known, LABELS)
    assert shows_tumours(known, LABELS)
    assert reason_against(known, LABELS, 5.0, (), negatives=True) == ""
    assert reason_against(known, LABELS, 0.0, ["a"], negatives=True) == "named in selection.exclude"


def test_an_annotated_tumour_with_a_scope_stays_known_and_gets_a_pseudo_label():
    found = entry("2:8 14:8", source="scoped")
    assert (found.states[14], found.scope) == (ANNOTATED, KIDNEYS)
    assert 14 not in found.unknown
    assert 14 in found.unjudged
    assert entry("2:8 14:8", source="kidneys").unjudged == found.unknown
    assert needs_tumour(found, LABELS)
    assert not needs_tumour(entry("2:8 14:8", source="scoped", split="validation"), LABELS)
    assert reason_against(found, LABELS, 0.0, ()) == ""


def test_a_liver_data_set_without_tumours_leaves_them_unknown():
    found = entry("1:8", source="liver")
    assert (found.states[14], found.scope) == (UNKNOWN, None)
    assert 14 in found.unknown


def test_the_cases_own_scope_wins():
    assert entry("2:8", source="scoped", tumour_scope="2").scope == (2,)
    assert entry("2:8", source="scoped", tumour_scope="all").scope is None
    assert entry("14:8", tumour_scope="liver").scope == (1,)
    # Another list of classes does not widen what the source says of tumours.
    assert entry("2:8", source="scoped", annotated="2,14").scope == KIDNEYS
    for source in ("liver", "without a rule"):
        with pytest.raises(Problems, match="nothing says that annotators looked for tumours"):
            entry("1:8", tumour_scope="liver", source=source)


@pytest.mark.parametrize(("voxels", "listed"), [(9, True), (10, False)])
def test_specks_of_annotated_classes_are_suspects(voxels, listed):
    for fields in ({}, {"source": "liver"}):
        found, doubts = states({1: voxels}, voxel_ml=0.1, speck_ml=1.0, **fields)
        assert found["liver"] == ANNOTATED
        assert doubts == (["only 0.900 ml of liver: a speck?"] if listed else [])


def test_organs_on_the_wrong_side_are_suspects_of_the_file_that_has_them():
    swapped = "2:-70,0,0,1,0,0,0 13:70,0,0,1,0,0,0"
    given = facts(values="2:300 13:300") | {"midline_mm": "0.0", "places": swapped}
    found = build_manifest([case()], {"a": given}, {"a": "t"}, SOURCES, LABELS, 0.0)[1]
    assert [(row["file"], row["obstacle"]) for row in found] == [("a.nii.gz", MISNUMBERED)]
    assert "right_kidney lies 140 mm to the left of left_kidney" in found[0]["cause"]
    given = facts(values="1:8") | {"midline_mm": "0.0", "organ_places": swapped}
    found = build_manifest(
        [case(organs="o.nii.gz")], {"a": given}, {"a": "t"}, SOURCES, LABELS, 0.0
    )[1]
    assert [row["file"] for row in found] == ["o.nii.gz"]
    # A class that is not annotated is left out of the label, so its place does not matter.
    given = facts(values="2:8 13:8") | {"midline_mm": "0.0", "places": swapped}
    found = build_manifest(
        [case(source="nothing")], {"a": given}, {"a": "t"}, SOURCES, LABELS, 0.0
    )[1]
    assert not any("lies" in row["cause"] for row in found)


def test_corrections_win_over_everything():
    cases = [case("a", annotated="1,14", tumour_scope="liver"), case("b", source="kidneys")]
    known = {"a": facts(values="1:8 14:2"), "b": facts(values="2:8 14:3")}
    corrections = {
        "a": Correction("a", unknown="tumour", note="too hard to see"),
        "b": Correction("b", absent="left_kidney", tumour_scope="2"),
    }
    entries, suspects, changes = build_manifest(
        cases, known, dict.fromkeys("ab", "t"), SOURCES, LABELS, 0.0, 0.0, corrections
    )
    assert [entry.states[14] for entry in entries] == [UNKNOWN, ANNOTATED]
    assert [entry.scope for entry in entries] == [None, (2,)]
    assert entries[1].states[13] == ABSENT
    assert suspects == []  # the missing kidney has been looked at
    left_out = "too hard to see; 2 voxels of it in the label are left out"
    assert [tuple(row.values()) for row in changes] == [
        ("a", "tumour", ANNOTATED, UNKNOWN, left_out),
        ("a", "tumour_scope", "liver", "nowhere", "too hard to see"),
        ("b", "left_kidney", ABSENT, ABSENT, ""),
        ("b", "tumour_scope", "everywhere", "right_kidney", ""),
    ]


@given(
    full=st.dictionaries(st.sampled_from(LABELS.values), st.integers(1, 50)),
    hidden=st.sets(st.sampled_from(LABELS.values)),
    named=st.sets(st.sampled_from(LABELS.values)),
    kind=st.sampled_from(["rule", "own", "values"]),
    scope=st.sets(st.sampled_from(LABELS.values[:-1]), min_size=1) | st.none(),
    min_ml=st.sampled_from([0.0, 2.0, 2.5]),
)
def test_hidden_organs_are_never_known_without_a_rule(full, hidden, named, kind, scope, min_ml):
    """A full label loses some organs; only who says that they were looked for makes them known."""
    kept = {value: count for value, count in full.items() if value not in hidden}
    names = tuple(LABELS.by_value(value).name for value in sorted(named))
    scope = tuple(sorted(scope)) if scope and 14 in named else None
    sources = {"s": Rule(names, scope)} if kind == "rule" else {}
    own = (",".join(names) or "none") if kind == "own" else ""
    found, found_scope, _ = class_states(case(annotated=own), kept, 0.1, sources, LABELS, min_ml)
    assert set(found) == set(LABELS.values)
    for value, state in found.items():
        if kind == "values":
            enough = kept.get(value, 0) * 0.1 >= min_ml and value in kept
            assert state == (ANNOTATED if enough else UNKNOWN)
        elif value in named:
            assert state == (ANNOTATED if value in kept else ABSENT)
        else:
            assert state == UNKNOWN
    assert found_scope == (scope if kind == "rule" else None)


def test_what_the_teacher_learns(tmp_path):
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0] = [1, 14, 0, 14]
    volume = new_volume(array, (5.0, 0.8, 0.9))
    path = str(tmp_path / "a.nii.gz")
    write_label(path, array, volume)
    volume = read_label(path)
    known = facts(values="1:1 14:2") | {"label_hash": voxel_hash(volume)}
    known["grid"] = geometry_hash(volume)
    for absent, voxels in (("", 2), ("tumour", 0)):
        (found,), _, _ = build_manifest(
            [Case("a", path, path, "train", "s")], {"a": known}, {"a": "t"}, {}, LABELS, 0.0,
            corrections={"a": Correction("a", absent=absent)},
        )  # fmt: skip
        learnt = teacher_label(found, LABELS)
        assert (learnt.dtype, learnt.shape, learnt.sum()) == (np.uint8, (2, 3, 4), voxels)
        assert not learnt[0, 0, 0]


@pytest.mark.fault("image-changed")
def test_a_volume_that_is_no_longer_the_one_of_the_index_is_refused(tmp_path):
    array = np.zeros((2, 3, 4), np.uint8)
    path = tmp_path / "a.nii.gz"
    write_label(path, array, new_volume(array, (5.0, 0.8, 0.9)))
    known = facts() | {"label_hash": voxel_hash(read_label(path))}
    found = replace(entry("1:5"), facts=known, label=str(path))
    assert found.read_label().array.max() == 0
    path.unlink()
    write_label(path, array + 1, new_volume(array, (5.0, 0.8, 0.9)))
    with pytest.raises(Problems) as error:
        found.read_label()
    fault_rows()["image-changed"].check(str(error.value))


def test_values_have_the_names_of_the_challenge():
    assert [label.name for label in LABELS.labels if label.value in (2, 13)] == [
        "right_kidney",
        "left_kidney",
    ]
    assert [(right.value, left.value) for right, left in LABELS.pairs] == [(2, 13), (7, 8)]


def test_an_unlabelled_case_that_is_said_to_be_free_of_tumours_is_no_negative():
    (found,), _, _ = build_manifest(
        [case(label="")],
        {"a": facts(values="")},
        {"a": "t"},
        SOURCES,
        LABELS,
        0.0,
        corrections={"a": Correction("a", absent="tumour")},
    )
    assert not needs_tumour(found, LABELS)
    assert reason_against(found, LABELS, 0.0, (), negatives=True) == "has no label"
