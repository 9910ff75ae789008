"""Fusion against hand-computed cases, a naive loop over voxels, its properties and real CT."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from panorgan.fusion import (
    Source,
    UnexpectedValues,
    composition,
    conflicts,
    fuse,
    fuse_paths,
    fuse_stage1,
    fuse_stage2,
    specks,
)
from panorgan.labels import load_labels
from panorgan.problems import Problems
from panorgan.volumes import new_volume, read_label, write_label

LABELS = load_labels()
LIVER, RIGHT_KIDNEY, SPLEEN, LEFT_KIDNEY, TUMOUR, IGNORE = 1, 2, 3, 13, 14, 15


def states_of(annotated=(), absent=()):
    """States with everything else unknown."""
    states = dict.fromkeys(range(1, 15), "unknown")
    states |= dict.fromkeys(annotated, "annotated") | dict.fromkeys(absent, "absent")
    return states


def row(*values):
    return np.array(values, np.uint8).reshape(1, 1, -1)


def listed(array):
    return array.ravel().tolist()


# Hand-computed


def test_stage1_puts_tumour_over_annotated_classes_and_drops_the_rest():
    states = states_of(annotated=(LIVER, RIGHT_KIDNEY))
    partial = row(0, 1, 1, 2, 13, 13, 14, 14, 0)
    tumour = row(0, 0, 1, 1, 0, 1, 0, 1, 1)
    fused = fuse_stage1(partial, tumour, states, LABELS)
    assert listed(fused.label) == [0, 1, 14, 14, 0, 14, 0, 14, 14]
    assert listed(fused.source) == [0, 1, 2, 2, 0, 2, 0, 2, 2]
    assert fused.specks == {13: 2, 14: 2}
    assert fused.conflicts == {(14, 1, "partial"): 1, (14, 2, "partial"): 1}
    assert fused.voxels == {(0, 0): 3, (1, 1): 1, (14, 2): 5}


def test_stage2_fills_background_with_unknown_organs_alone():
    states = states_of(annotated=(LIVER, RIGHT_KIDNEY), absent=(SPLEEN,))
    label = row(0, 0, 0, 0, 0, 1, 1, 2, 14, 14, 15, 0)
    source = row(0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 4, 0)
    organs = row(0, 1, 2, 3, 13, 13, 1, 13, 1, 14, 13, 14)
    fused = fuse_stage2(label, source, organs, states, LABELS)
    assert listed(fused.label) == [0, 0, 0, 0, 13, 1, 1, 2, 14, 14, 15, 0]
    assert listed(fused.source) == [0, 0, 0, 0, 3, 1, 1, 1, 2, 2, 4, 0]
    assert fused.specks == {}
    assert fused.conflicts == {
        (1, 13, "organs"): 1,
        (2, 13, "organs"): 1,
        (14, 1, "organs"): 1,
    }
    assert fused.voxels == {(0, 0): 5, (1, 1): 2, (2, 1): 1, (13, 3): 1, (14, 2): 2, (15, 4): 1}


@pytest.mark.parametrize("state", ["annotated", "absent"])
def test_no_pseudo_tumour_where_the_tumour_is_known(state):
    states = states_of(annotated=(LIVER,)) | {TUMOUR: state}
    partial = row(0, 1, 1, 0)
    fused = fuse_stage1(partial, row(1, 1, 0, 0), states, LABELS)
    assert listed(fused.label) == [0, 1, 1, 0]
    assert fused.conflicts == {(1, 14, "tumour"): 1}
    fused = fuse_stage2(fused.label, fused.source, row(14, 14, 14, 14), states, LABELS)
    assert listed(fused.label) == [0, 1, 1, 0]


def test_annotated_tumour_is_kept():
    fused = fuse_stage1(row(14, 14, 0), row(0, 1, 1), states_of(annotated=(TUMOUR,)), LABELS)
    assert listed(fused.label) == [14, 14, 0]
    assert listed(fused.source) == [1, 1, 0]
    assert not fused.conflicts


def test_a_class_that_is_absent_but_labelled_counts_as_specks():
    fused = fuse_stage1(row(14, 1), None, states_of(annotated=(LIVER,), absent=(TUMOUR,)), LABELS)
    assert listed(fused.label) == [0, 1]
    assert fused.specks == {14: 1}


def test_specks_may_be_filled_again():
    states = states_of(annotated=(LIVER,))
    fused = fuse(row(3, 3, 3), row(0, 0, 1), row(3, 4, 3), states, LABELS)
    assert listed(fused.label) == [3, 4, 14]
    assert listed(fused.source) == [3, 3, 2]
    assert fused.specks == {3: 3}
    assert fused.conflicts == {(14, 3, "organs"): 1}


def test_unlabelled_is_tumour_over_organs():
    fused = fuse(None, row(0, 1, 1, 0), row(2, 13, 0, 14), states_of(), LABELS)
    assert listed(fused.label) == [2, 14, 14, 0]
    assert listed(fused.source) == [3, 2, 2, 0]
    assert fused.conflicts == {(14, 13, "organs"): 1}


@pytest.mark.parametrize("value", range(1, 15))
def test_each_class_alone(value):
    """No class takes another's place, whichever way it comes in."""
    everything = row(*range(15))
    only = [value if v == value else 0 for v in range(15)]
    fused = fuse_stage1(everything, None, states_of(annotated=(value,)), LABELS)
    assert listed(fused.label) == only
    known = states_of(annotated=set(range(1, 15)) - {value})
    fused = fuse(None, None, everything, known, LABELS)
    assert listed(fused.label) == (only if value != TUMOUR else [0] * 15)
    fused = fuse(None, None, everything, states_of(absent=(value,)), LABELS)
    assert listed(fused.label) == [0 if v in (value, TUMOUR) else v for v in range(15)]


def test_inputs_stay_as_they_are():
    partial, tumour, organs = row(1, 3, 0, 0), row(0, 0, 1, 0), row(2, 2, 2, 2)
    for array in (partial, tumour, organs):
        array.flags.writeable = False
    states = states_of(annotated=(LIVER,))
    stage1 = fuse_stage1(partial, tumour, states, LABELS)
    fuse_stage2(stage1.label, stage1.source, organs, states, LABELS)
    assert listed(stage1.label) == [1, 0, 14, 0]
    assert listed(partial) == [1, 3, 0, 0]


def test_tables_are_in_voxels_and_ml():
    states = states_of(annotated=(LIVER,))
    fused = fuse(row(1, 1, 3, 0), row(0, 1, 0, 0), row(2, 2, 0, 13), states, LABELS)
    assert composition(fused, LABELS, 0.25) == [
        {"value": 1, "name": "liver", "source": "ground_truth", "voxels": 1, "ml": 0.25},
        {"value": 13, "name": "left_kidney", "source": "organ_pseudo", "voxels": 1, "ml": 0.25},
        {"value": 14, "name": "tumour", "source": "tumour_pseudo", "voxels": 1, "ml": 0.25},
    ]
    names = ("kept", "kept_name", "lost", "lost_name", "lost_input", "voxels", "ml")
    assert [tuple(r[name] for name in names) for r in conflicts(fused, LABELS, 0.25)] == [
        (1, "liver", 2, "right_kidney", "organs", 1, 0.25),
        (14, "tumour", 1, "liver", "partial", 1, 0.25),
        (14, "tumour", 2, "right_kidney", "organs", 1, 0.25),
    ]
    assert specks(fused, LABELS, 0.5) == [{"value": 3, "name": "spleen", "voxels": 1, "ml": 0.5}]
    ignored = fuse_stage2(row(15), row(4), None, states, LABELS)
    assert composition(ignored, LABELS, 1.0) == [
        {"value": 15, "name": "ignored", "source": "ignored", "voxels": 1, "ml": 1.0}
    ]


# What is refused


def test_unexpected_values_are_named():
    everything = states_of(annotated=range(1, 15))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage1(row(0, 14, 15, 255), None, everything, LABELS)
    assert (error.value.input, error.value.values) == ("partial", (15, 255))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage1(None, row(0, 1, 2), everything, LABELS)
    assert (error.value.input, error.value.values) == ("tumour", (2,))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage2(row(1), row(1), row(15), everything, LABELS)
    assert (error.value.input, error.value.values) == ("organs", (15,))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage2(row(16), row(1), None, everything, LABELS)
    assert (error.value.input, error.value.values) == ("label", (16,))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage2(row(1), row(5), None, everything, LABELS)
    assert (error.value.input, error.value.values) == ("source", (5,))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((row(1), row(1, 0), states_of()), "shapes differ"),
        ((row(1).astype(np.int16), None, states_of()), "partial is int16"),
        ((None, None, states_of()), "nothing to fuse"),
        ((row(1), None, {1: "annotated"}), "not of the classes"),
        ((row(1), None, states_of() | {1: "maybe"}), "maybe"),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        fuse_stage1(*arguments, LABELS)


@pytest.mark.parametrize(("label", "source"), [(0, 1), (1, 0)])
def test_label_and_source_of_stage1_belong_together(label, source):
    with pytest.raises(ValueError, match="contradict"):
        fuse_stage2(row(label), row(source), None, states_of(), LABELS)


# Against a loop over voxels


def naive(partial, tumour, organs, states):
    """The method's rules, voxel by voxel, with plain values: label, source, specks, conflicts."""
    label, source = np.zeros_like(partial), np.zeros_like(partial)
    removed, lost = Counter(), Counter()
    for at in np.ndindex(partial.shape):
        given = int(partial[at])
        if given != 0 and states[given] != "annotated":
            removed[given] += 1
            given = 0
        if given != 0:
            label[at], source[at] = given, 1
        if tumour[at] != 0:
            if states[14] == "unknown":
                if given not in (0, 14):
                    lost[14, given, "partial"] += 1
                label[at], source[at] = 14, 2
            elif given not in (0, 14):
                lost[given, 14, "tumour"] += 1
        organ = int(organs[at])
        if label[at] == 0:
            if 1 <= organ <= 13 and states[organ] == "unknown":
                label[at], source[at] = organ, 3
        elif organ not in (0, label[at]):
            lost[int(label[at]), organ, "organs"] += 1
    return label, source, removed, lost


@st.composite
def inputs(draw):
    """Label maps of one shape, in runs as real ones are, and states of the classes."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
    run = draw(st.sampled_from((1, 1, 3, 20)))

    def volume(highest):
        array = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, highest)))
        return np.repeat(array, run, axis=2)

    states = draw(
        st.fixed_dictionaries(
            {v: st.sampled_from(("annotated", "absent", "unknown")) for v in range(1, 15)}
        )
    )
    return volume(14), volume(1), volume(14), states


@settings(max_examples=200, deadline=None)
@given(inputs())
def test_equals_the_loop_over_voxels(given):
    partial, tumour, organs, states = given
    fused = fuse(partial, tumour, organs, states, LABELS)
    label, source, removed, lost = naive(partial, tumour, organs, states)
    np.testing.assert_array_equal(fused.label, label)
    np.testing.assert_array_equal(fused.source, source)
    assert fused.specks == removed
    assert fused.conflicts == lost
    pairs = zip(label.ravel().tolist(), source.ravel().tolist(), strict=True)
    assert fused.voxels == Counter(pairs)


@settings(max_examples=100, deadline=None)
@given(inputs())
def test_two_stages_equal_one_pass(given):
    partial, tumour, organs, states = given
    stage1 = fuse_stage1(partial, tumour, states, LABELS)
    stage2 = fuse_stage2(stage1.label, stage1.source, organs, states, LABELS)
    whole = fuse(partial, tumour, organs, states, LABELS)
    assert_same(stage2, whole)
    assert stage2.voxels == whole.voxels
    assert stage1.specks == whole.specks
    assert {**stage1.conflicts, **stage2.conflicts} == whole.conflicts


@settings(max_examples=60, deadline=None)
@given(inputs(), st.sets(st.sampled_from(("partial", "tumour", "organs")), max_size=2))
def test_a_missing_input_is_an_empty_one(given, missing):
    *arrays, states = given
    names = ("partial", "tumour", "organs")
    there = [None if n in missing else a for n, a in zip(names, arrays, strict=True)]
    empty = [a * 0 if n in missing else a for n, a in zip(names, arrays, strict=True)]
    assert_same(fuse(*there, states, LABELS), fuse(*empty, states, LABELS))


def assert_same(one, other):
    np.testing.assert_array_equal(one.label, other.label)
    np.testing.assert_array_equal(one.source, other.source)
    assert one.label.dtype == one.source.dtype == np.uint8


# Properties


@settings(max_examples=100, deadline=None)
@given(inputs())
def test_annotated_voxels_change_only_by_the_declared_priority(given):
    partial, tumour, organs, states = given
    fused = fuse(partial, tumour, organs, states, LABELS)
    annotated = np.isin(partial, [v for v in states if states[v] == "annotated"])
    changed = annotated & (fused.label != partial)
    assert (fused.label[changed] == TUMOUR).all()
    assert tumour[changed].all()
    assert not changed.any() or states[TUMOUR] == "unknown"
    kept = annotated & ~changed & (tumour == 0)
    assert (fused.source[kept] == Source.GROUND_TRUTH).all()


@settings(max_examples=100, deadline=None)
@given(inputs())
def test_pseudo_labels_add_no_class_that_is_known(given):
    partial, tumour, organs, states = given
    fused = fuse(partial, tumour, organs, states, LABELS)
    added = np.unique(fused.label[fused.source >= Source.TUMOUR_PSEUDO])
    assert all(states[v] == "unknown" for v in added.tolist())
    truth = np.unique(fused.label[fused.source == Source.GROUND_TRUTH])
    assert all(states[v] == "annotated" for v in truth.tolist())


@settings(max_examples=100, deadline=None)
@given(inputs())
def test_idempotent(given):
    partial, tumour, organs, states = given
    once = fuse_stage1(partial, tumour, states, LABELS)
    assert_same(fuse_stage1(once.label, tumour, states, LABELS), once)
    filled = fuse_stage2(once.label, once.source, organs, states, LABELS)
    assert_same(fuse_stage2(filled.label, filled.source, organs, states, LABELS), filled)


@settings(max_examples=100, deadline=None)
@given(inputs(), st.data())
def test_commutes_with_cropping_flipping_and_transposing(given, data):
    *arrays, states = given
    bounds = [
        sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n))))
        for n in arrays[0].shape
    ]
    box = tuple(slice(a, max(b, a + 1)) for a, b in bounds)
    axes = data.draw(st.permutations(range(3)))
    flips = data.draw(st.sets(st.integers(0, 2)))

    def moved(array):
        return np.flip(array[box].transpose(axes), tuple(flips))

    fused = fuse(*arrays, states, LABELS)
    again = fuse(*map(moved, arrays), states, LABELS)
    np.testing.assert_array_equal(again.label, moved(fused.label))
    np.testing.assert_array_equal(again.source, moved(fused.source))


def assert_truth_comes_back(truth, hidden, absent=()):
    """Hide classes, give the truth as pseudo-labels, get the truth."""
    states = states_of(annotated=set(range(1, 15)) - set(hidden), absent=absent)
    partial = np.where(np.isin(truth, list(hidden)), 0, truth).astype(np.uint8)
    tumour = truth == TUMOUR if TUMOUR in hidden else None
    fused = fuse(partial, tumour, truth, states, LABELS)
    np.testing.assert_array_equal(fused.label, truth)
    assert not fused.conflicts
    assert not fused.specks
    assert (fused.source[truth == 0] == Source.BACKGROUND).all()
    organs = np.isin(truth, [v for v in hidden if v != TUMOUR])
    np.testing.assert_array_equal(fused.source == Source.ORGAN_PSEUDO, organs)


@settings(max_examples=100, deadline=None)
@given(inputs(), st.sets(st.integers(1, 14)))
def test_truth_as_pseudo_label_gives_the_truth(given, hidden):
    truth = given[0]
    missing = set(range(1, 15)) - set(np.unique(truth).tolist())
    assert_truth_comes_back(truth, hidden, absent=missing - hidden)


def test_truth_comes_back_on_a_real_ct():
    folder = os.environ.get("PANORGAN_REAL_DATA")
    if not folder:
        pytest.skip("PANORGAN_REAL_DATA is not set")
    truth = read_label(Path(folder) / "labels" / "TSexample.nii.gz").array
    random = np.random.default_rng(7)
    present = np.unique(truth)[1:].tolist()
    assert len(present) > 5
    for _ in range(20):
        hidden = random.choice(present, random.integers(0, len(present) + 1), replace=False)
        assert_truth_comes_back(truth, hidden.tolist())


# The compiled pass


def test_any_memory_layout():
    random = np.random.default_rng(1)
    partial, tumour = random.integers(0, 15, (3, 5, 7), np.uint8), random.random((3, 5, 7)) < 0.3
    states = states_of(annotated=(1, 2, 13))
    expected = fuse_stage1(partial, tumour, states, LABELS)
    buffer = bytes(1) + partial.tobytes()
    unaligned = np.frombuffer(buffer, np.uint8, offset=1).reshape(partial.shape)  # read-only
    for layout in (unaligned, np.asfortranarray(partial), partial[::-1, ::-1][::-1, ::-1]):
        assert_same(fuse_stage1(layout, tumour, states, LABELS), expected)
    aligned_size = np.frombuffer(bytes(1) + bytes(partial[0, 0, :1]) * 64, np.uint8, offset=1)
    fuse_stage1(aligned_size.reshape(4, 4, 4), None, states, LABELS)


def test_one_voxel_and_none():
    assert listed(fuse(None, row(1), None, states_of(), LABELS).label) == [14]
    empty = np.zeros((0, 4, 4), np.uint8)
    assert fuse(empty, None, None, states_of(), LABELS).label.shape == (0, 4, 4)


# Files and folders


def save(path, array, spacing=(2.0, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = new_volume(np.asarray(array, np.uint8), spacing)
    write_label(path, volume.array, volume)
    return path


def run(out, partial=None, annotated="", tumour=None, organs=None, tumour_value=1, source_map=None):
    return fuse_paths(partial, annotated, tumour, tumour_value, organs, out, source_map, LABELS)


def lines(error):
    return str(error.value).splitlines()


def contents(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files(tmp_path):
    partial = save(tmp_path / "a.nii.gz", row(1, 1, 3, 0), (2.5, 0.8, 0.8))
    tumour = save(tmp_path / "t.nii.gz", row(0, 1, 0, 0), (2.5, 0.8, 0.8))
    organs = save(tmp_path / "o.nii.gz", row(1, 1, 3, 13), (2.5, 0.8, 0.8))
    out, sources = tmp_path / "new" / "out.nii.gz", tmp_path / "sources.nii.gz"
    done = run(out, partial, "liver", tumour, organs, source_map=sources)
    fused = read_label(out)
    assert listed(fused.array) == [1, 14, 3, 13]
    assert not fused.grid.difference(read_label(partial).grid)
    assert listed(read_label(sources).array) == [1, 2, 3, 3]
    assert [(d.case, d.file) for d in done] == [("a", out)]
    assert done[0].specks == [{"value": 3, "name": "spleen", "voxels": 1, "ml": 0.0016}]
    assert [r["source"] for r in done[0].composition] == [
        "ground_truth",
        "organ_pseudo",
        "organ_pseudo",
        "tumour_pseudo",
    ]
    assert [r["lost_input"] for r in done[0].conflicts] == ["organs", "partial"]


def test_folders_pair_by_case_and_unlabelled_cases_need_no_partial_label(tmp_path):
    save(tmp_path / "p" / "a.nii.gz", row(1, 0, 0))
    (tmp_path / "p" / "readme.txt").touch()
    (tmp_path / "p" / "._a.nii.gz").touch()
    for case in "ab":
        save(tmp_path / "t" / f"{case}.nii.gz", row(0, 0, 7))
        save(tmp_path / "o" / f"{case}.nii.gz", row(1, 1, 1))
    out = tmp_path / "out"
    done = run(out, tmp_path / "p", "1", tmp_path / "t", tmp_path / "o", tumour_value=7)
    assert [d.case for d in done] == ["a", "b"]
    assert contents(out) == ["a.nii.gz", "b.nii.gz"]
    assert listed(read_label(out / "a.nii.gz").array) == [1, 0, 14]
    assert listed(read_label(out / "b.nii.gz").array) == [1, 1, 14]


def test_annotated_tumour_needs_no_mask(tmp_path):
    save(tmp_path / "p" / "a.nii.gz", row(14, 1, 0, 0))
    save(tmp_path / "p" / "c.nii.gz", row(14, 1, 0, 0))
    save(tmp_path / "t" / "a.nii.gz", row(0, 1, 1, 1))
    save(tmp_path / "t" / "b.nii.gz", row(0, 1, 1, 0))
    run(tmp_path / "out", tmp_path / "p", "liver,tumour", tmp_path / "t")
    for case, expected in {"a": [14, 1, 0, 0], "b": [0, 14, 14, 0], "c": [14, 1, 0, 0]}.items():
        assert listed(read_label(tmp_path / "out" / f"{case}.nii.gz").array) == expected


def test_all_problems_at_once_and_nothing_written(tmp_path):
    for case in "abcd":
        save(tmp_path / "p" / f"{case}.nii.gz", row(1, 0, 0))
        save(tmp_path / "t" / f"{case}.nii.gz", row(0, 0, 1))
        save(tmp_path / "o" / f"{case}.nii.gz", row(1, 1, 1))
    save(tmp_path / "p" / "b.nii.gz", row(1, 15, 200))
    save(tmp_path / "t" / "c.nii.gz", row(0, 1, 14))
    save(tmp_path / "o" / "d.nii.gz", row(1, 1, 1), (3.0, 1.0, 1.0))
    out = tmp_path / "out"
    with pytest.raises(Problems) as error:
        run(out, tmp_path / "p", "1", tmp_path / "t", tmp_path / "o", source_map=tmp_path / "s")
    b, c, d = lines(error)
    assert b.startswith(f"b: {tmp_path}/p/b.nii.gz: holds 15, 200")
    assert c.startswith(f"c: {tmp_path}/t/c.nii.gz: holds 14 beside 0 and the tumour's 1")
    assert "--tumour-value" in c
    assert d.startswith(f"d: {tmp_path}/o/d.nii.gz: is not on the grid of {tmp_path}/p/d.nii.gz")
    assert contents(tmp_path / "out") == contents(tmp_path / "s") == []


def test_a_broken_file_is_named(tmp_path):
    for case in "ab":
        save(tmp_path / "t" / f"{case}.nii.gz", row(0, 1))
    path = tmp_path / "t" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Problems) as error:
        run(tmp_path / "out", tumour=tmp_path / "t")
    assert [(p.case, p.file) for p in error.value.problems] == [("b", str(path))]
    assert contents(tmp_path / "out") == []


@pytest.mark.parametrize("values", [(0, 2, 2), (0, 3, 2)])
def test_tumour_value_is_declared_not_guessed(tmp_path, values):
    tumour = save(tmp_path / "t.nii.gz", row(*values))
    if set(values) == {0, 2}:
        run(tmp_path / "out.nii.gz", tumour=tumour, tumour_value=2)
        assert listed(read_label(tmp_path / "out.nii.gz").array) == [0, 14, 14]
    else:
        with pytest.raises(Problems, match="holds 3 beside 0 and the tumour's 2"):
            run(tmp_path / "out.nii.gz", tumour=tumour, tumour_value=2)


def test_missing_pseudo_labels_are_problems(tmp_path):
    save(tmp_path / "p" / "a.nii.gz", row(1))
    save(tmp_path / "p" / "b.nii.gz", row(1))
    save(tmp_path / "t" / "a.nii.gz", row(1))
    save(tmp_path / "o" / "b.nii.gz", row(1))
    save(tmp_path / "o" / "c.nii.gz", row(1))
    with pytest.raises(Problems) as error:
        run(tmp_path / "out", tmp_path / "p", "1", tmp_path / "t", tmp_path / "o")
    found = [(p.case, Path(p.file).name, p.cause.partition(",")[0]) for p in error.value.problems]
    assert found == [
        ("a", "o", "has no a.nii.gz"),
        ("b", "t", "has no b.nii.gz"),
        ("c", "t", "has no c.nii.gz"),
    ]


def test_nothing_is_overwritten(tmp_path):
    partial = save(tmp_path / "p" / "a.nii.gz", row(1))
    organs = save(tmp_path / "o" / "a.nii.gz", row(2))
    save(tmp_path / "o" / "b.nii.gz", row(2))
    before = partial.read_bytes()
    there = save(tmp_path / "out" / "b.nii.gz", row(3)).read_bytes()
    wrong = {
        "is also --partial": dict(out=tmp_path / "p", partial=tmp_path / "p"),
        "already holds b.nii.gz": dict(out=tmp_path / "out", partial=tmp_path / "p"),
        "is both": dict(
            out=tmp_path / "n", source_map=tmp_path / "q" / ".." / "n", partial=tmp_path / "p"
        ),
        "--source-map is also --organs": dict(
            out=tmp_path / "n", source_map=tmp_path / "o", partial=tmp_path / "p"
        ),
        "name a folder": dict(out=partial, partial=tmp_path / "p"),
    }
    for text, arguments in wrong.items():
        with pytest.raises(Problems, match=text):
            run(annotated="1", organs=tmp_path / "o", **arguments)
    wrong = {
        "is also --partial": tmp_path / "p" / ".." / "p" / "a.nii.gz",
        "exists": tmp_path / "out" / "b.nii.gz",
        "is a folder": tmp_path / "out",
        "does not end in .nii.gz": tmp_path / "out.nii",
    }
    for text, out in wrong.items():
        with pytest.raises(Problems, match=text):
            run(out, partial, "1", organs=organs)
    assert partial.read_bytes() == before
    assert (tmp_path / "out" / "b.nii.gz").read_bytes() == there
    assert contents(tmp_path) == ["o/a.nii.gz", "o/b.nii.gz", "out/b.nii.gz", "p/a.nii.gz"]


def test_wrong_usage(tmp_path):
    file = save(tmp_path / "p" / "a.nii.gz", row(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.nii").touch()
    wrong = {
        "nothing to fuse": dict(),
        "did you mean 'liver'": dict(partial=file, annotated="livr"),
        "--partial without --annotated": dict(partial=file),
        "--annotated without --partial": dict(organs=file, annotated="1"),
        "--tumour-value is 0": dict(tumour=file, tumour_value=0),
        "does not exist": dict(organs=tmp_path / "none"),
        "--partial is a folder, --organs is a file": dict(
            partial=tmp_path / "p", annotated="1", organs=file
        ),
        "holds no <case>.nii.gz": dict(organs=tmp_path / "empty"),
        "ends in .nii": dict(organs=tmp_path / "plain"),
    }
    for text, arguments in wrong.items():
        with pytest.raises(Problems, match=text):
            run(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(28, "No space left"), Problems), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, failure, raised):
    for case in "abc":
        save(tmp_path / "o" / f"{case}.nii.gz", row(1))
    calls = []

    def failing(path, array, like):
        calls.append(path)
        if len(calls) == 4:
            raise failure
        write_label(path, array, like)

    monkeypatch.setattr("panorgan.fusion.write_label", failing)
    with pytest.raises(raised):
        run(tmp_path / "out", organs=tmp_path / "o", source_map=tmp_path / "s")
    assert len(calls) == 4
    assert contents(tmp_path) == ["o/a.nii.gz", "o/b.nii.gz", "o/c.nii.gz"]
