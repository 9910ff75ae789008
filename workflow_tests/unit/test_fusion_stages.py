"""The fusion of a shard: what is computed again, and what gate, noise and corrections do."""

import numpy as np
import pytest

from panorgan.cases.manifest import FACTS, Entry, read_manifest, write_manifest
from panorgan.config.labels import config_folder, load_labels
from panorgan.fusing.fusion import fuse
from panorgan.fusing.gate import read_decisions
from panorgan.io.tables import read_table, write_table
from panorgan.io.volumes import (
    geometry_hash,
    new_volume,
    read_label,
    voxel_hash,
    write_image,
    write_label,
)
from panorgan.problems import Problems
from panorgan.run.store import ShardOutput, ShardReader, file_checksum
from panorgan.stages import AUTOMATIC, LABEL
from panorgan.stages.fusion import SOURCE, fuse_organs, fuse_tumours, shuffled
from panorgan.stages.training import measure_intensities

LABELS = load_labels()
FILE = str(config_folder() / "labels.yaml")
LIVER, KIDNEY, SPLEEN, TUMOUR, IGNORE = 1, 2, 3, 14, 15
SPACING = (2.0, 1.0, 1.0)
TABLES = ("composition", "conflicts", "specks")


def row(*values):
    return np.array(values, np.uint8).reshape(1, 1, -1)


def states_of(annotated=(), absent=()):
    states = dict.fromkeys(range(1, 15), "unknown")
    return states | dict.fromkeys(annotated, "annotated") | dict.fromkeys(absent, "absent")


class Run:
    """A shard's files: a manifest, pseudo-labels, and fusions of them."""

    def __init__(self, folder):
        self.folder = folder
        self.entries = []
        self.made = {"tumours": {}, "organs": {}}

    def add(self, case, partial, states, organs=None, scope=None, tumour=None, model=None):
        """A case; `tumour` and `model` (organs) are pseudo-labels that networks made."""
        size = next(a for a in (partial, organs, tumour, model) if a is not None).shape
        image = new_volume(np.arange(np.prod(size), dtype=np.int16).reshape(size), SPACING)
        paths = {"image": str(self.folder / f"{case}_image.nii.gz"), "label": "", "organs": ""}
        write_image(paths["image"], image.array, image)
        facts = dict.fromkeys(FACTS, "")
        facts |= {"image_hash": voxel_hash(image), "grid": geometry_hash(image)}
        for kind, array in {"label": partial, "organs": organs}.items():
            if array is not None:
                paths[kind] = str(self.folder / f"{case}_{kind}.nii.gz")
                write_label(paths[kind], array, image)
                facts[f"{kind}_hash"] = voxel_hash(read_label(paths[kind]))
        self.entries = [entry for entry in self.entries if entry.case != case]
        self.entries.append(
            Entry(
                case=case,
                split="train",
                shard="labelled-00",
                source="any",
                patient="",
                **paths,
                facts=facts,
                states=states,
                scope=scope,
                tumour=TUMOUR,
            )
        )
        write_manifest(self.folder / "manifest.tsv", self.entries, LABELS)
        for kind, array in {"tumours": tumour, "organs": model}.items():
            self.made[kind].pop(case, None)
            if array is not None:
                file = self.folder / kind / f"{case}.nii.gz"
                file.parent.mkdir(exist_ok=True)
                write_label(file, array, image)
                self.made[kind][case] = file
        return self

    def reader(self, kind, **columns):
        rows = [
            {"case": case, "status": "ok", "files": f"{file.name}:{file_checksum(file)}"} | columns
            for case, file in self.made[kind].items()
        ]
        table = self.folder / f"{kind}.tsv"
        write_table(table, ("case", "status", "files", *columns), rows)
        return ShardReader([table], [self.folder / kind])

    def out(self, name):
        folder = self.folder / name
        details = {table: folder / f"t.{table}.tsv" for table in TABLES}
        return ShardOutput(folder / "store", folder / "t.tsv", folder / "t", details)

    def result(self, name):
        return ShardReader([self.folder / name / "t.tsv"], [self.folder / name / "t"])

    @property
    def manifest(self):
        return str(self.folder / "manifest.tsv")

    def tumours(self, name="stage1", **options):
        options = {"labels_file": FILE} | options
        fuse_tumours(self.manifest, self.reader("tumours"), self.out(name), **options)
        return self.result(name)

    def organs(self, name="stage2", stage1="stage1", **options):
        options = {"labels_file": FILE} | options
        fuse_organs(self.manifest, self.result(stage1), self.out(name), **options)
        return self.result(name)

    def both(self, name="gated", **options):
        """Both stages; each takes its part of the options."""
        first = {"organs", "decisions"} & options.keys() | {"tumour_value", "order"}
        second = options.keys() - {"tumour_value", "order"}
        self.tumours(f"{name}-stage1", **{k: options[k] for k in first & options.keys()})
        return self.organs(name, f"{name}-stage1", **{k: options[k] for k in second})

    def decisions(self, rows, cases):
        columns = ("case", "value", "name", "component", "action", "rule", "reason", "ml")
        write_table(self.folder / "decisions.tsv", columns, rows)
        columns = ("case", "status", "rule", "reason", "instability", "doubt", "why")
        write_table(self.folder / "cases.tsv", columns, cases)
        return str(self.folder / "decisions.tsv")

    def corrected(self, case, array, like=None):
        """The options of a stage 2 with a corrected label."""
        file = self.folder / "corrected.nii.gz"
        write_label(file, array, like or new_volume(array, SPACING))
        return {"corrected": {case: str(file)}, "corrections": "corrections.tsv"}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def label_of(result, case, suffix=LABEL):
    return read_label(result.file(case, suffix)).array.ravel().tolist()


def computed(capsys):
    """Names of the cases that were computed since the last call."""
    lines = capsys.readouterr().out.splitlines()
    return [line.removesuffix(": computed") for line in lines if line.endswith(": computed")]


ORGANS = row(0, 3, 3, 0, 0, 0, 0, 2)
TUMOURS = row(0, 0, 1, 0, 0, 1, 0, 1)


def add_three(run):
    """A case with annotated livers, an unlabelled one, and one with all tumours known."""
    run.add("a", row(1, 1, 0, 0, 0, 0, 0, 0), states_of([LIVER]), ORGANS, tumour=TUMOURS)
    run.add("b", None, states_of(), ORGANS, tumour=TUMOURS)
    run.add("c", row(14, 0, 0, 0, 0, 0, 0, 0), states_of([TUMOUR]), ORGANS)
    return run


def one_pass(run, case, **options):
    """What `fuse` makes of a case's files: both stages at once."""
    entry = next(entry for entry in run.entries if entry.case == case)

    def array(path):
        return read_label(path).array if path else None

    tumour, model = (run.made[kind].get(case) for kind in ("tumours", "organs"))
    organs = array(model or entry.organs)
    fused = fuse(
        *(array(entry.label), array(tumour), organs, entry.states, LABELS),
        scope=entry.scope,
        **options,
    )
    return fused.label.ravel().tolist(), fused.source.ravel().tolist()


def test_two_stages_equal_one_pass(run):
    add_three(run)
    run.tumours()
    staged = run.organs()
    assert label_of(staged, "a") == [1, 1, 14, 0, 0, 14, 0, 14]
    assert label_of(staged, "b") == [0, 3, 14, 0, 0, 14, 0, 14]
    assert label_of(staged, "c") == [14, 3, 3, 0, 0, 0, 0, 2]
    for case in "abc":
        found = tuple(label_of(staged, case, suffix) for suffix in (LABEL, SOURCE))
        assert found == one_pass(run, case)
    assert staged.row("a")["unknown"] == ""


def test_without_pseudo_labels_only_annotated_classes_are_left(run):
    add_three(run)
    fuse_tumours(run.manifest, None, run.out("partial"), labels_file=FILE, order="inside-organs")
    result = run.result("partial")
    assert result.cases == ["a", "c"]
    assert label_of(result, "a") == [1, 1, 0, 0, 0, 0, 0, 0]
    assert label_of(result, "c") == [14, 0, 0, 0, 0, 0, 0, 0]
    assert result.row("b")["reason"] == "has no label"
    assert result.row("a")["unknown"].split() == [str(value) for value in range(2, 15)]


def test_order_and_scope_reach_only_the_cases_that_they_touch(run, capsys):
    add_three(run)
    scope_states = states_of([KIDNEY], [TUMOUR])
    run.add("d", row(2, *[0] * 7), scope_states, ORGANS, scope=(KIDNEY,), tumour=TUMOURS)
    run.tumours()
    assert computed(capsys) == [*"abcd"]
    run.tumours(order="inside-organs")
    assert computed(capsys) == ["a", "b", "d"]  # not c: its tumours are known
    inside = run.organs()
    assert label_of(inside, "a") == [1, 1, 14, 0, 0, 0, 0, 14]
    assert label_of(inside, "d") == [2, 3, 14, 0, 0, 0, 0, 0]
    for case in "abcd":
        found = tuple(label_of(inside, case, suffix) for suffix in (LABEL, SOURCE))
        assert found == one_pass(run, case, order="inside-organs")
    # Organs matter to stage 1 only where they decide on tumours.
    capsys.readouterr()
    run.tumours()
    assert computed(capsys) == []
    moved = row(0, 0, 3, 3, 0, 0, 0, 2)
    run.add("a", row(1, 1, 0, 0, 0, 0, 0, 0), states_of([LIVER]), moved, tumour=TUMOURS)
    run.add("d", row(2, *[0] * 7), scope_states, moved, scope=(KIDNEY,), tumour=TUMOURS)
    run.tumours()
    assert computed(capsys) == ["d"]


def test_maps_of_a_student(run):
    """All classes in one map, its tumours 14; a map without a list of classes knows all."""
    student = row(0, 3, 14, 0, 14, 14, 0, 2)
    run.add("a", row(1, *[0] * 7), states_of([LIVER]), tumour=student, model=student)
    result = run.both(tumour_value=TUMOUR, organs=run.reader("organs"))
    assert label_of(result, "a") == [1, 3, 14, 0, 14, 14, 0, 2]
    assert result.row("a")["unknown"] == ""
    organs = run.reader("organs", classes="2 3")
    result = run.both("some", tumour_value=TUMOUR, organs=organs)
    assert result.row("a")["unknown"] == "4 5 6 7 8 9 10 11 12 13"


def test_the_gate_cleans_ignores_and_drops(run, capsys):
    organs = row(3, 3, 0, 3, 0, 2, 0, 0, 0, 0)
    tumour = row(0, 0, 0, 0, 0, 0, 1, 0, 1, 1)
    for case in "abe":
        run.add(case, None, states_of(), organs, tumour=tumour)
    pieces = [(TUMOUR, 1, "ignore"), (TUMOUR, 2, "clean"), (SPLEEN, 2, "ignore")]
    pieces += [(KIDNEY, 1, "clean"), (SPLEEN, 1, "keep")]
    rows = [
        {"case": "a", "value": value, "name": "x", "component": number, "action": action}
        for value, number, action in pieces
    ]
    statuses = {"a": ("keep", ""), "b": ("drop", "unstable"), "e": ("keep", "")}
    cases = [{"case": c, "status": s, "reason": r} for c, (s, r) in statuses.items()]
    path = run.decisions(rows, cases)
    assert read_decisions(path)["b"][:2] == ("drop", "unstable")
    result = run.both(decisions=path)
    assert label_of(result, "a") == [3, 3, 0, 15, 0, 0, 0, 0, 15, 15]
    assert label_of(result, "a", SOURCE) == [3, 3, 0, 4, 0, 0, 0, 0, 4, 4]
    assert label_of(result, "e") == [3, 3, 0, 3, 0, 2, 14, 0, 14, 14]
    assert result.cases == ["a", "e"]
    assert result.row("b")["status"] == "excluded"
    assert result.row("b")["reason"] == "unstable"
    # Whether a case is dropped is settled in stage 2.
    assert computed(capsys) == ["a", "b", "e", "a", "e"]
    # What is kept anyway changes nothing; another action only its case.
    run.both(decisions=run.decisions(rows[:-1], cases))
    assert computed(capsys) == []
    rows[0]["action"] = "clean"
    result = run.both(decisions=run.decisions(rows, cases))
    assert computed(capsys) == ["a", "a"]
    assert label_of(result, "a")[-2:] == [0, 0]


def test_noise_is_as_much_in_wrong_places(run):
    organs = np.zeros((20, 60, 60), np.uint8)
    organs[4:9, 10:30, 20:45], organs[12:15, 30:50, 5:30] = SPLEEN, KIDNEY
    noise = shuffled(organs, SPACING, "a", 0)
    np.testing.assert_array_equal(np.bincount(noise.ravel()), np.bincount(organs.ravel()))
    assert np.count_nonzero((noise == organs) & (organs > 0)) < 0.5 * np.count_nonzero(organs)
    np.testing.assert_array_equal(noise, shuffled(organs, SPACING, "a", 0))
    assert (noise != shuffled(organs, SPACING, "b", 0)).any()
    assert (noise != shuffled(organs, SPACING, "a", 1)).any()
    partial = np.zeros_like(organs)
    partial[:2] = LIVER
    run.add("a", partial, states_of([LIVER]), organs, tumour=partial * 0)
    fused = read_label(run.both("noise", shuffle_seed=0).file("a", LABEL))
    expected = np.where(partial == LIVER, LIVER, noise)
    np.testing.assert_array_equal(fused.array, expected)


@pytest.mark.parametrize("shape", [(7, 41, 43), (1, 1, 5), (3, 20, 1)])
def test_noise_of_any_shape_moves_voxels_only(shape):
    organs = np.random.default_rng(1).integers(0, 14, shape, np.uint8)
    noise = shuffled(organs, (3.0, 1.0, 2.0), "x", 4)
    np.testing.assert_array_equal(np.sort(noise, None), np.sort(organs, None))


def test_a_corrected_label_wins_and_nothing_else_changes(run, capsys):
    add_three(run)
    run.tumours()
    before, gated = run.organs(), run.both()
    automatic = label_of(before, "b")
    histograms = ShardOutput(run.folder / "store", run.folder / "h.tsv", run.folder / "h")
    measure_intensities(run.manifest, before, histograms, labels_file=FILE)
    measured = read_table(run.folder / "h.tsv")
    capsys.readouterr()
    by_hand = run.corrected("b", row(0, 3, 3, 15, 0, 14, 0, 0))
    after, again = run.organs(**by_hand), run.both(**by_hand)
    assert computed(capsys) == ["b", "b"]
    for result in (after, again):
        assert label_of(result, "b") == [0, 3, 3, 15, 0, 14, 0, 0]
        assert label_of(result, "b", SOURCE) == [0, 1, 1, 4, 0, 1, 0, 0]
        assert label_of(result, "b", AUTOMATIC) == automatic
        assert result.row("b")["unknown"] == ""
    for case in "ac":
        assert label_of(after, case) == label_of(gated, case)
    composition = read_table(run.folder / "gated" / "t.composition.tsv")
    corrected = [[r["value"], r["source"], r["voxels"]] for r in composition if r["case"] == "b"]
    assert corrected == [
        ["3", "ground_truth", "2"],
        ["14", "ground_truth", "1"],
        ["15", "ignored", "1"],
    ]
    # The plan's statistics are those of the automatic label, and not even measured again.
    measure_intensities(run.manifest, after, histograms, labels_file=FILE)
    assert read_table(run.folder / "h.tsv") == measured
    capsys.readouterr()
    run.organs(**run.corrected("b", row(0, 3, 0, 15, 0, 14, 0, 0)))
    assert computed(capsys) == ["b"]


def test_a_corrected_case_is_not_dropped(run):
    add_three(run)
    path = run.decisions([], [{"case": case, "status": "drop", "reason": "no"} for case in "ab"])
    result = run.both(decisions=path, **run.corrected("b", row(*[3] * 8)))
    assert result.cases == ["b", "c"]
    assert label_of(result, "b") == [3] * 8


@pytest.mark.parametrize("fault", ["is not on its image's grid", "holds 16, 200", "gzip"])
def test_bad_corrected_labels_are_named_with_the_corrections(run, fault):
    add_three(run)
    run.tumours()
    label = row(16, 200, *[0] * 6) if fault.startswith("holds") else row(*[3] * 8)
    spacing = (3.0, 1.0, 1.0) if "grid" in fault else SPACING
    by_hand = run.corrected("b", label, new_volume(label, spacing))
    if fault == "gzip":
        file = run.folder / "corrected.nii.gz"
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(Problems, match=fault) as error:
        run.organs(**by_hand)
    (problem,) = error.value.problems
    assert (problem.case, problem.file) == ("b", "corrections.tsv")
    assert "corrected.nii.gz" in problem.cause


def test_the_manifest_is_read_back(run):
    run.add("d", row(2, 0), states_of([KIDNEY], [TUMOUR]), scope=(KIDNEY,), tumour=row(0, 1))
    (entry,) = read_manifest(run.folder / "manifest.tsv", LABELS)
    assert entry.scope == (KIDNEY,)
