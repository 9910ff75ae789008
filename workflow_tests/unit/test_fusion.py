"""Fusion against hand-computed cases, a naive loop over voxels, its properties and real CT."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import affine_of

from panorgan.cli import main
from panorgan.config.labels import load_labels
from panorgan.fusing.fusion import (
    ORDERS,
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
from panorgan.io.tables import write_table
from panorgan.io.volumes import geometry_hash, new_volume, read_frame, read_label, write_label
from panorgan.problems import Problems, Stop

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


def test_orders():
    """The example of docs/fusion.md."""
    states = states_of(annotated=(LIVER,))
    partial = row(1, 1, 0, 0, 0, 0, 0, 0, 0, 2)
    tumour = row(0, 1, 1, 0, 1, 0, 0, 1, 1, 0)
    organs = row(0, 0, 0, 0, 0, 0, 0, 0, 3, 3)
    results = {
        "reference": [1, 14, 14, 0, 14, 0, 0, 14, 14, 3],
        "annotated-first": [1, 1, 14, 0, 14, 0, 0, 14, 14, 3],
        "inside-organs": [1, 14, 14, 0, 0, 0, 0, 14, 14, 3],
    }
    for order, expected in results.items():
        fused = fuse(partial, tumour, organs, states, LABELS, order)
        assert listed(fused.label) == expected
        assert fused.outside == (order == "inside-organs")


def test_a_piece_touches_by_faces_edges_and_corners():
    tumour = np.zeros((3, 3, 3), np.uint8)
    tumour[0, 0, 0] = tumour[1, 1, 1] = 1
    for place, inside in {(2, 2, 2): True, (0, 0, 2): True, (2, 0, 1): True}.items():
        organs = np.zeros_like(tumour)
        organs[place] = SPLEEN
        fused = fuse(None, tumour, organs, states_of(), LABELS, "inside-organs")
        assert (fused.outside == 0) == inside
    far = np.zeros((1, 1, 4), np.uint8)
    far[0, 0, 0] = SPLEEN
    fused = fuse(None, row(0, 0, 1, 1), far, states_of(), LABELS, "inside-organs")
    assert (listed(fused.label), fused.outside) == ([3, 0, 0, 0], 2)
    # An organ that is annotated here, but not there: pseudo-labels of it say nothing.
    known = states_of(annotated=(SPLEEN,))
    assert fuse(None, row(0, 1), row(3, 0), known, LABELS, "inside-organs").outside == 1


def test_scope():
    """Kidneys and their tumours are annotated; elsewhere nobody looked for tumours."""
    states = states_of(annotated=(RIGHT_KIDNEY, LEFT_KIDNEY, TUMOUR))
    partial = row(2, 2, 14, 0, 0, 0, 0, 0, 0, 0)
    tumour = row(0, 1, 0, 1, 0, 1, 0, 1, 1, 0)
    organs = row(2, 2, 2, 0, 0, 0, 0, 0, 1, 1)
    fused = fuse(partial, tumour, organs, states, LABELS, scope=(2, 13))
    assert listed(fused.label) == [2, 2, 14, 0, 0, 14, 0, 14, 14, 1]
    assert listed(fused.source) == [1, 1, 1, 0, 0, 2, 0, 2, 2, 3]
    assert fused.outside == 2
    inside = fuse(partial, tumour, organs, states, LABELS, "inside-organs", (2, 13))
    assert listed(inside.label) == [2, 2, 14, 0, 0, 0, 0, 14, 14, 1]
    # Where the tumour is unknown a scope says nothing.
    unknown = states_of(annotated=(RIGHT_KIDNEY, LEFT_KIDNEY))
    fused = fuse(partial, tumour, organs, unknown, LABELS, scope=(2, 13))
    assert listed(fused.label)[:5] == [2, 14, 0, 14, 0]
    # If nothing says where the scope is, annotators may have looked anywhere.
    alone = fuse(None, row(1, 0), None, states_of(absent=(TUMOUR,)), LABELS, scope=(2,))
    assert (listed(alone.label), alone.outside) == ([0, 0], 1)


def test_ignored_voxels_claim_theirs_as_pseudo_labels_would():
    states = states_of(annotated=(LIVER,))
    partial, tumour, organs = row(1, 0, 0, 1, 0), row(2, 2, 1, 0, 0), row(3, 3, 15, 15, 15)
    fused = fuse(partial, tumour, organs, states, LABELS)
    assert listed(fused.label) == [15, 15, 14, 1, 15]
    assert listed(fused.source) == [4, 4, 2, 1, 4]
    assert not fused.conflicts
    first = fuse(partial, tumour, organs, states, LABELS, "annotated-first")
    assert listed(first.label) == [1, 15, 14, 1, 15]
    known = states_of(annotated=range(1, 15))
    assert listed(fuse(partial, tumour, organs, known, LABELS).label) == [1, 0, 0, 1, 0]
    # Pieces of ignored voxels are admitted for themselves.
    tumour, organs = row(2, 2, 1, 1), row(3, 0, 0, 0)
    fused = fuse(None, tumour, organs, states_of(), LABELS, "inside-organs")
    assert (listed(fused.label), fused.outside) == ([15, 15, 0, 0], 2)


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
        fuse_stage1(row(0, 15), None, everything, LABELS)
    assert error.value.values == (15,)
    for order in ORDERS:
        with pytest.raises(UnexpectedValues) as error:
            fuse_stage1(None, row(0, 1, 3), states_of(), LABELS, order)
        assert (error.value.input, error.value.values) == ("tumour", (3,))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage1(None, row(0, 1), states_of(), LABELS, "inside-organs", organs=row(16, 0))
    assert (error.value.input, error.value.values) == ("organs", (16,))
    with pytest.raises(UnexpectedValues) as error:
        fuse_stage2(row(1), row(1), row(16), everything, LABELS)
    assert (error.value.input, error.value.values) == ("organs", (16,))
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
        ((row(1), None, states_of(), LABELS, "refrence"), "refrence"),
        ((row(1), None, states_of(absent=[14]), LABELS, "reference", [14]), "consist of organs"),
        ((row(1), row(1), states_of(), LABELS, "reference", None, row(1, 0)), "organs \\(1, 1, 2"),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        fuse_stage1(*arguments, *[LABELS] * (len(arguments) == 3))


@pytest.mark.parametrize(("label", "source"), [(0, 1), (1, 0)])
def test_label_and_source_of_stage1_belong_together(label, source):
    with pytest.raises(ValueError, match="contradict"):
        fuse_stage2(row(label), row(source), None, states_of(), LABELS)


# Against a loop over voxels

ORGAN_VALUES = range(1, 14)


def naive(partial, tumour, organs, states, order="reference", scope=None):
    """The method's rules, voxel by voxel, with plain numbers.

    Returns label, source, specks, conflicts and the voxels of pieces that were not admitted.
    """
    label, source = np.zeros_like(partial), np.zeros_like(partial)
    removed, lost, outside = Counter(), Counter(), 0
    tumour = np.array(tumour, np.uint8)
    adds = states[14] == "unknown" or scope is not None
    if adds and (order == "inside-organs" or (scope is not None and states[14] != "unknown")):
        for piece in naive_pieces(tumour):
            around = {at for voxel in piece for at in neighbours(voxel, tumour.shape)}
            if not naive_admits(around, partial, organs, states, order, scope):
                outside += len(piece)
                for voxel in piece:
                    tumour[voxel] = 0
    for at in np.ndindex(partial.shape):
        given, predicted, organ = int(partial[at]), int(tumour[at]), int(organs[at])
        if given != 0 and states[given] != "annotated":
            removed[given] += 1
            given = 0
        if given != 0:
            label[at], source[at] = given, 1
        if predicted != 0 and adds and not (order == "annotated-first" and given != 0):
            label[at], source[at] = (14, 2) if predicted == 1 else (15, 4)
        if given not in (0, label[at]) and label[at] != 15:
            lost[int(label[at]), given, "partial"] += 1
        if predicted == 1 and label[at] not in (0, 14, 15):
            lost[int(label[at]), 14, "tumour"] += 1
        if label[at] == 0:
            if 1 <= organ <= 13 and states[organ] == "unknown":
                label[at], source[at] = organ, 3
            elif organ == 15 and any(states[v] == "unknown" for v in ORGAN_VALUES):
                label[at], source[at] = 15, 4
        elif organ not in (0, 15, label[at]) and label[at] != 15:
            lost[int(label[at]), organ, "organs"] += 1
    return label, source, removed, lost, outside


def neighbours(voxel, shape):
    """The voxel itself and all around it that are in the volume."""
    z, y, x = voxel
    for k in range(max(z - 1, 0), min(z + 2, shape[0])):
        for j in range(max(y - 1, 0), min(y + 2, shape[1])):
            for i in range(max(x - 1, 0), min(x + 2, shape[2])):
                yield k, j, i


def naive_pieces(mask):
    """Flood fill: lists of voxels of one value that hang together."""
    left = {at: int(mask[at]) for at in np.ndindex(mask.shape) if mask[at]}
    while left:
        seed, value = left.popitem()
        piece = [seed]
        for voxel in piece:
            for at in neighbours(voxel, mask.shape):
                if left.get(at) == value:
                    del left[at]
                    piece.append(at)
        yield piece


def naive_admits(around, partial, organs, states, order, scope):
    in_organ = in_scope = False
    for at in around:
        given, organ = int(partial[at]), int(organs[at])
        annotated = given != 0 and states[given] == "annotated"
        if annotated and given != 14:
            in_organ = True
        if 1 <= organ <= 13 and states[organ] == "unknown":
            in_organ = True
        here = scope is not None and (organ in scope or (annotated and given in (14, *scope)))
        if here and states[14] != "unknown":
            in_scope = True
    return not in_scope and (in_organ or order != "inside-organs")


def random_case(random):
    """Small label maps of one shape, in runs as real ones are, and what is known of the case.

    Sparse or dense, so that pieces lie apart, touch, and are one; now and then with ignored voxels.
    """
    shape = tuple(random.integers(1, 7, 3))
    run = random.choice((1, 1, 2, 5))
    state_names = ("annotated", "absent", "unknown")

    def volume(values):
        voxels = random.choice(values, shape) * (
            random.random(shape) < random.choice((0.1, 0.4, 1))
        )
        return np.repeat(voxels, run, axis=2).astype(np.uint8)

    classes = random.choice(np.arange(1, 15), random.integers(1, 15), replace=False)
    partial = volume(classes)
    tumour = volume((1, 1, 2) if random.random() < 0.5 else (1,))
    organs = volume([*classes, 15] if random.random() < 0.5 else classes)
    states = dict(zip(range(1, 15), random.choice(state_names, 14).tolist(), strict=True))
    scope = None
    if random.random() < 0.5:
        scope = random.choice(np.arange(1, 14), random.integers(1, 4), replace=False).tolist()
    order = str(random.choice(list(ORDERS)))
    return partial, tumour, organs, states, order, scope


cases = st.integers(0, 2**32 - 1).map(lambda seed: random_case(np.random.default_rng(seed)))


def fused_of(case, **changes):
    partial, tumour, organs, states, order, scope = case
    return fuse(partial, tumour, organs, states, LABELS, order, scope, **changes)


def test_thousands_of_volumes_equal_the_loop_over_voxels(monkeypatch):
    random = np.random.default_rng(3)
    outside = Counter()
    for number in range(2000):
        monkeypatch.setattr("panorgan.fusing.fusion.BLOCK", (8, 16, 64, 1 << 19)[number % 4])
        case = random_case(random)
        fused = fused_of(case)
        label, source, removed, lost, left_out = naive(*case)
        np.testing.assert_array_equal(fused.label, label, err_msg=str(case))
        np.testing.assert_array_equal(fused.source, source)
        assert fused.specks == removed
        assert fused.conflicts == lost
        assert fused.outside == left_out
        pairs = zip(label.ravel().tolist(), source.ravel().tolist(), strict=True)
        assert fused.voxels == Counter(pairs)
        outside[case[4], case[5] is None, left_out > 0] += 1
        alone = fused_of(case, with_source=False)
        assert alone.source is None
        np.testing.assert_array_equal(alone.label, label)
    # Enough of all kinds, or this test shows little.
    assert min(outside[order, False, True] for order in ORDERS) > 50
    assert min(outside[order, True, False] for order in ORDERS) > 50


@settings(max_examples=150)
@given(cases)
def test_two_stages_equal_one_pass(case):
    partial, tumour, organs, states, order, scope = case
    stage1 = fuse_stage1(partial, tumour, states, LABELS, order, scope, organs)
    stage2 = fuse_stage2(stage1.label, stage1.source, organs, states, LABELS)
    whole = fused_of(case)
    assert_same(stage2, whole)
    assert stage2.voxels == whole.voxels
    assert stage1.specks == whole.specks
    assert stage1.outside == whole.outside
    assert {**stage1.conflicts, **stage2.conflicts} == whole.conflicts


@settings(max_examples=60)
@given(cases, st.sets(st.sampled_from(("partial", "tumour", "organs")), max_size=2))
def test_a_missing_input_is_an_empty_one(case, missing):
    *arrays, states, order, scope = case
    if "organs" in missing and scope is not None:
        scope = None  # then it is not known where the scope's organs are: no piece is admitted
    names = ("partial", "tumour", "organs")
    there = [None if n in missing else a for n, a in zip(names, arrays, strict=True)]
    empty = [a * 0 if n in missing else a for n, a in zip(names, arrays, strict=True)]
    assert_same(fused_of((*there, states, order, scope)), fused_of((*empty, states, order, scope)))


def assert_same(one, other):
    np.testing.assert_array_equal(one.label, other.label)
    np.testing.assert_array_equal(one.source, other.source)
    assert one.label.dtype == one.source.dtype == np.uint8


# Properties


def tumours_are_added(case):
    return case[3][TUMOUR] == "unknown" or case[5] is not None


@settings(max_examples=150)
@given(cases)
def test_annotated_voxels_change_only_by_the_declared_priority(case):
    partial, tumour, _, states, order, _ = case
    fused = fused_of(case)
    annotated = np.isin(partial, [v for v in states if states[v] == "annotated"])
    changed = annotated & (fused.label != partial)
    np.testing.assert_array_equal(fused.label[changed] == TUMOUR, tumour[changed] == 1)
    np.testing.assert_array_equal(fused.label[changed] == IGNORE, tumour[changed] == 2)
    assert tumour[changed].all()
    assert not changed.any() or (tumours_are_added(case) and order != "annotated-first")
    kept = annotated & ~changed & (tumour == 0)
    assert (fused.source[kept] == Source.GROUND_TRUTH).all()


@settings(max_examples=150)
@given(cases)
def test_pseudo_labels_add_no_class_that_is_known(case):
    states, scope = case[3], case[5]
    fused = fused_of(case)
    pseudo = (fused.source == Source.TUMOUR_PSEUDO) | (fused.source == Source.ORGAN_PSEUDO)
    for value in np.unique(fused.label[pseudo]).tolist():
        assert states[value] == "unknown" or (value == TUMOUR and scope is not None)
    truth = np.unique(fused.label[fused.source == Source.GROUND_TRUTH])
    assert all(states[v] == "annotated" for v in truth.tolist())
    np.testing.assert_array_equal(fused.label == IGNORE, fused.source == Source.IGNORED)


@settings(max_examples=150)
@given(cases)
def test_no_pseudo_tumour_in_or_beside_the_scope(case):
    partial, _, organs, states, _, scope = case
    if scope is None or states[TUMOUR] == "unknown":
        return
    fused = fused_of(case)
    annotated = [v for v in (*scope, TUMOUR) if states[v] == "annotated"]
    searched = np.isin(organs, scope) | np.isin(partial, annotated)
    near = {at for voxel in np.argwhere(searched) for at in neighbours(voxel, partial.shape)}
    assert not any(fused.source[at] == Source.TUMOUR_PSEUDO for at in near)


@settings(max_examples=150)
@given(cases)
def test_idempotent(case):
    partial, tumour, organs, states, order, scope = case
    once = fused_of(case)
    # The tumours that were put, or ignored, instead of those that were offered: nothing changes.
    put = (once.source == Source.TUMOUR_PSEUDO).astype(np.uint8)
    put[(once.source == Source.IGNORED) & (tumour == 2)] = 2
    again = fused_of((partial, put, organs, states, order, scope))
    assert_same(again, once)
    # The result as stage 1's: the organs have filled what they can.
    filled = fuse_stage2(once.label, once.source, organs, states, LABELS)
    assert_same(filled, once)
    # Without ignored voxels, which no partial label has, also with the result as partial label.
    if order != "inside-organs" and 2 not in tumour:
        stage1 = fuse_stage1(partial, tumour, states, LABELS, order, scope, organs)
        repeated = fuse_stage1(stage1.label, tumour, states, LABELS, order, scope, organs)
        np.testing.assert_array_equal(repeated.label, stage1.label)


@settings(max_examples=150)
@given(cases, st.data())
def test_commutes_with_cropping_flipping_and_transposing(case, data):
    *arrays, states, order, scope = case
    box = (slice(None),) * 3
    if order != "inside-organs" and scope is None:  # else a crop may cut pieces off from organs
        bounds = [
            sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n))))
            for n in arrays[0].shape
        ]
        box = tuple(slice(a, max(b, a + 1)) for a, b in bounds)
    axes = data.draw(st.permutations(range(3)))
    flips = data.draw(st.sets(st.integers(0, 2)))

    def moved(array):
        return np.flip(array[box].transpose(axes), tuple(flips))

    fused = fused_of(case)
    again = fused_of((*map(moved, arrays), states, order, scope))
    np.testing.assert_array_equal(again.label, moved(fused.label))
    np.testing.assert_array_equal(again.source, moved(fused.source))


def assert_truth_comes_back(truth, hidden, absent=(), order="reference"):
    """Hide classes, give the truth as pseudo-labels, get the truth."""
    states = states_of(annotated=set(range(1, 15)) - set(hidden), absent=absent)
    partial = np.where(np.isin(truth, list(hidden)), 0, truth).astype(np.uint8)
    tumour = truth == TUMOUR if TUMOUR in hidden else None
    fused = fuse(partial, tumour, truth, states, LABELS, order)
    np.testing.assert_array_equal(fused.label, truth)
    assert not fused.conflicts
    assert not fused.specks
    assert (fused.source[truth == 0] == Source.BACKGROUND).all()
    organs = np.isin(truth, [v for v in hidden if v != TUMOUR])
    np.testing.assert_array_equal(fused.source == Source.ORGAN_PSEUDO, organs)


def without_lonely_tumours(truth):
    """Tumours that touch no organ become background: those are no tumours inside organs."""
    kept = truth.copy()
    for piece in naive_pieces(truth == TUMOUR):
        around = {int(truth[at]) for voxel in piece for at in neighbours(voxel, truth.shape)}
        if not around - {0, TUMOUR}:
            kept[tuple(np.transpose(piece))] = 0
    return kept


@settings(max_examples=100)
@given(cases, st.sets(st.integers(1, 14)))
def test_truth_as_pseudo_label_gives_the_truth(case, hidden):
    truth, order = case[0], case[4]
    if order == "inside-organs":
        truth = without_lonely_tumours(truth)
    missing = set(range(1, 15)) - set(np.unique(truth).tolist())
    assert_truth_comes_back(truth, hidden, absent=missing - hidden, order=order)


@settings(max_examples=100)
@given(cases, st.sets(st.integers(1, 13)))
def test_truth_comes_back_where_only_some_organs_were_searched(case, hidden):
    truth, scope = case[0], case[5] or [LIVER]
    states = states_of(annotated=set(range(1, 15)) - hidden)
    partial = np.where(np.isin(truth, list(hidden)), 0, truth).astype(np.uint8)
    for piece in naive_pieces(truth == TUMOUR):
        around = {int(truth[at]) for voxel in piece for at in neighbours(voxel, truth.shape)}
        if not around & set(scope):
            partial[tuple(np.transpose(piece))] = 0  # nobody looked here
    fused = fuse(partial, truth == TUMOUR, truth, states, LABELS, scope=scope)
    np.testing.assert_array_equal(fused.label, truth)


@pytest.mark.real_data
def test_truth_comes_back_on_a_real_ct(real_data):
    truth = read_label(real_data / "labels" / "TSexample.nii.gz").array
    random = np.random.default_rng(7)
    present = np.unique(truth)[1:].tolist()
    assert len(present) > 5
    for order in (*ORDERS, *["reference"] * 10):
        hidden = random.choice(present, random.integers(0, len(present) + 1), replace=False)
        assert_truth_comes_back(truth, hidden.tolist(), order=order)


# The pass


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


def test_hundreds_of_files_through_the_command_equal_the_loop(tmp_path):
    """In folders, with what is known of each case in a case table, or typed."""
    random = np.random.default_rng(11)
    done = Counter()
    for number in range(80):
        folder = tmp_path / str(number)
        options, expected = write_random_cases(random, folder, with_table=number % 2 == 0)
        order = list(ORDERS)[number // 2 % len(ORDERS)]
        out, sources = folder / "out", folder / "sources"
        command = ["fuse", *options, "--order", order, "-o", str(out), "--source-map", str(sources)]
        assert main(command) == 0
        for case, arguments in expected.items():
            label, source, *_ = naive(*arguments[:4], order, arguments[4])
            fused = read_label(out / f"{case}.nii.gz")
            np.testing.assert_array_equal(fused.array, label)
            np.testing.assert_array_equal(read_label(sources / f"{case}.nii.gz").array, source)
            before = read_label(folder / "organs" / f"{case}.nii.gz")
            assert geometry_hash(fused) == geometry_hash(before)
            done[order, arguments[4] is not None] += 1
    assert sum(done.values()) == 320
    assert min(done.values()) >= 10


def write_random_cases(random, folder, with_table):
    """Four cases as folders of files; the options of `panorgan fuse`, and what they must mean."""
    looked_for = random.choice(np.arange(1, 15), random.integers(1, 14), replace=False).tolist()
    value = int(random.choice((1, 2, 14)))
    lines, expected = ["case\timage\tlabel\tsplit\tsource\tannotated\ttumour_scope"], {}
    for case in "abcd":
        partial, tumour, organs, _, _, scope = random_case(random)
        tumour = np.array(tumour == 1, np.uint8)
        spacing, affine = (2.0, 0.7, 0.8), affine_of("LPS", (2.0, 0.7, 0.8), tilt=(3, 7, 0))
        labelled = case != "d"
        if with_table:
            looked_for = random.choice(np.arange(1, 15), random.integers(1, 14), replace=False)
            looked_for = sorted(
                {*looked_for.tolist(), *([TUMOUR] if random.random() < 0.6 else [])}
            )
        states = dict.fromkeys(range(1, 15), "unknown")
        if labelled:
            for v in looked_for:
                states[v] = "absent" if with_table and v not in partial else "annotated"
        scope = scope if with_table and states[14] != "unknown" else None
        names = ",".join(map(str, looked_for))
        organ_names = ",".join(LABELS.by_value(v).name for v in scope or ())
        lines.append(f"{case}\tx.nii.gz\ty.nii.gz\ttrain\tany\t{names}\t{organ_names}")
        expected[case] = (partial if labelled else partial * 0, tumour, organs, states, scope)
        files = {"partial": partial, "tumour": tumour * value, "organs": organs}
        for name, array in files.items():
            if name != "partial" or labelled:
                volume = new_volume(array.astype(np.uint8), spacing, affine)
                (folder / name).mkdir(parents=True, exist_ok=True)
                write_label(folder / name / f"{case}.nii.gz", volume.array, volume)
    (folder / "cases.tsv").write_text("\n".join(lines) + "\n")
    annotated = str(folder / "cases.tsv") if with_table else ",".join(map(str, looked_for))
    tumour_value = "tumour" if value == 14 else str(value)
    options = [f"--{name}={folder / name}" for name in ("partial", "tumour", "organs")]
    return [*options, "--annotated", annotated, "--tumour-value", tumour_value], expected


@pytest.mark.real_data
def test_real_geometries_stay_bit_for_bit(real_data, tmp_path):
    """Oblique, flipped, thick and scaled volumes, real ones: fused like their voxels alone."""
    names = ["crop_IPL", "crop_LPS", "crop_RAS", "crop_oblique12x7z", "crop_thick6mm"]
    files = [real_data / "geometry" / f"{name}.nii.gz" for name in (*names, "scl_inter_uint16")]
    files.append(real_data / "labels" / "TSexample.nii.gz")
    annotated, states = [LIVER, RIGHT_KIDNEY], states_of(annotated=(LIVER, RIGHT_KIDNEY))
    for path in files:
        folder = tmp_path / path.name
        truth = read_label(path)
        tumour = np.zeros_like(truth.array)
        liver = np.argwhere(truth.array == LIVER)
        z, y, x = liver[len(liver) // 2]
        tumour[z - 2 : z + 2, y - 3 : y + 3, x - 5 : x + 5] = 1
        organs = np.roll(truth.array, 2, axis=1)
        folder.mkdir()
        for name, array in {"t.nii.gz": tumour, "o.nii.gz": organs}.items():
            write_label(folder / name, array, truth)
        out, sources = folder / "out.nii.gz", folder / "sources.nii.gz"
        command = ["--partial", path, "--annotated", "1,2", "--tumour", folder / "t.nii.gz"]
        command += ["--organs", folder / "o.nii.gz", "-o", out, "--source-map", sources]
        assert main(["fuse", *map(str, command)]) == 0
        label = np.where(np.isin(truth.array, annotated), truth.array, 0)
        label[tumour == 1] = TUMOUR
        filled = (label == 0) & np.isin(organs, [v for v in states if v not in (1, 2, 14)])
        label[filled] = organs[filled]
        np.testing.assert_array_equal(read_label(out).array, label)
        for written in map(read_frame, (out, sources)):
            assert geometry_hash(written) == geometry_hash(truth)
            np.testing.assert_array_equal(written.grid.affine, truth.grid.affine)


def save(path, array, spacing=(2.0, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = new_volume(np.asarray(array, np.uint8), spacing)
    write_label(path, volume.array, volume)
    return path


def run(
    out,
    partial=None,
    annotated="",
    tumour=None,
    organs=None,
    tumour_value=1,
    source_map=None,
    order="reference",
):
    return fuse_paths(
        partial, annotated, tumour, tumour_value, organs, out, source_map, LABELS, order
    )


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


def table_of(folder, *lines, scope=False):
    header = ["case", "image", "label", "split", "source", "annotated"]
    header += ["tumour_scope"] if scope else []
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    write_table(folder / "cases.tsv", header, rows)
    return str(folder / "cases.tsv")


def test_a_case_table_says_what_is_annotated_in_each_case(tmp_path):
    """By the case's own list, by the rule of its source, and by what its label holds."""
    known = {"a": ("any", "1,3"), "b": ("phantom-liver", ""), "c": ("any", ""), "e": ("any", "")}
    lines = [(case, "x", "y", "train", *rule) for case, rule in known.items()]
    table = table_of(tmp_path, *lines, ("more", "x", "y", "train", "any", ""))
    for case in "abc":
        save(tmp_path / "p" / f"{case}.nii.gz", row(1, 2, 0, 0))
    for case in "abce":
        save(tmp_path / "o" / f"{case}.nii.gz", row(0, 0, 3, 4))
        if case != "b":  # annotators of this source looked for tumours: it needs no mask
            save(tmp_path / "t" / f"{case}.nii.gz", row(0, 0, 0, 1))
    run(tmp_path / "out", tmp_path / "p", table, tmp_path / "t", tmp_path / "o")
    expected = {"a": [1, 0, 0, 14], "b": [1, 0, 3, 4], "c": [1, 2, 3, 14], "e": [0, 0, 3, 14]}
    for case, label in expected.items():
        assert listed(read_label(tmp_path / "out" / f"{case}.nii.gz").array) == label


def test_a_case_table_lacks_a_case(tmp_path):
    for case in "ab":
        save(tmp_path / "p" / f"{case}.nii.gz", row(1))
    table = table_of(tmp_path, ("a", "x", "y", "train", "any", "1"))
    with pytest.raises(Problems, match=r"has no line in .*cases\.tsv; add one") as error:
        run(tmp_path / "out", tmp_path / "p", table)
    assert [p.case for p in error.value.problems] == ["b"]
    with pytest.raises(Problems, match="no such case table"):
        run(tmp_path / "out", tmp_path / "p", str(tmp_path / "none.tsv"))


def test_what_depends_on_organs_asks_for_them(tmp_path):
    save(tmp_path / "p" / "a.nii.gz", row(2, 0, 0))
    for case in "ab":
        save(tmp_path / "t" / f"{case}.nii.gz", row(0, 0, 1))
    with pytest.raises(Problems, match="inside-organs needs to know where organs are"):
        run(tmp_path / "out", tumour=tmp_path / "t", order="inside-organs")
    with pytest.raises(Problems, match="nothing says where organs are in this case") as error:
        run(tmp_path / "out", tmp_path / "p", "2", tmp_path / "t", order="inside-organs")
    assert [p.case for p in error.value.problems] == ["b"]
    line = ("a", "x", "y", "train", "any", "right_kidney,tumour", "right_kidney,left_kidney")
    table = table_of(tmp_path, line, ("b", "x", "", "train", "any", "", ""), scope=True)
    with pytest.raises(Problems, match="nothing says where left_kidney is; give --organs") as error:
        run(tmp_path / "out", tmp_path / "p", table, tmp_path / "t")
    assert [p.case for p in error.value.problems] == ["a"]


def test_two_in_a_tumour_mask_is_not_taken_for_ignored(tmp_path):
    """A mask of kidneys (1) and their tumours (2) must not pass for one of tumours."""
    tumour, organs = (
        save(tmp_path / "t.nii.gz", row(0, 1, 2)),
        save(tmp_path / "o.nii.gz", row(1, 15, 0)),
    )
    with pytest.raises(Problems, match="holds 2 beside 0 and the tumour's 1"):
        run(tmp_path / "out.nii.gz", tumour=tumour)
    run(tmp_path / "out.nii.gz", organs=organs)
    assert listed(read_label(tmp_path / "out.nii.gz").array) == [1, 15, 0]


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
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.nrrd").touch()
    wrong = {
        "nothing to fuse": dict(),
        "did you mean 'liver'": dict(partial=file, annotated="livr"),
        "--partial without --annotated": dict(partial=file),
        "--annotated without --partial": dict(organs=file, annotated="1"),
        "--tumour-value is 0": dict(tumour=file, tumour_value=0),
        "--tumour-value: 'tumor' is no class; did you mean 'tumour'": dict(
            tumour=file, tumour_value="tumor"
        ),
        "does not exist": dict(organs=tmp_path / "none"),
        "--partial is a folder, --organs is a file": dict(
            partial=tmp_path / "p", annotated="1", organs=file
        ),
        "holds no .nii.gz or .nii file": dict(organs=tmp_path / "empty"),
        "is left out: only .nii.gz and .nii are read": dict(organs=tmp_path / "other"),
    }
    for text, arguments in wrong.items():
        with pytest.raises(Problems, match=text):
            run(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(Stop.one("no space left"), Stop), (KeyboardInterrupt(), KeyboardInterrupt)],
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

    monkeypatch.setattr("panorgan.fusing.fusion.write_label", failing)
    with pytest.raises(raised):
        run(tmp_path / "out", organs=tmp_path / "o", source_map=tmp_path / "s")
    assert len(calls) == 4
    assert contents(tmp_path) == ["o/a.nii.gz", "o/b.nii.gz", "o/c.nii.gz"]
