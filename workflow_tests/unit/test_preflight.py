"""The preflight page: counts, disk and hours worked out by hand."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fault_rows import fault_rows

from panorgan.cases.manifest import (
    ABSENT,
    ANNOTATED,
    FACTS,
    MISNUMBERED,
    SUSPECT_COLUMNS,
    UNKNOWN,
    Entry,
    write_manifest,
)
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.settings import Config, load_config, read_config_file
from panorgan.io.formats import duration, number, percent, size, spread
from panorgan.io.tables import write_table
from panorgan.problems import Problems
from panorgan.report.pages import describe_data
from panorgan.report.preflight import (
    disk_needs,
    memory_needs,
    training_hours,
    what_is_doubtful,
    what_is_elsewhere,
    what_is_missing,
    write_preflight,
)
from panorgan.stages.pseudo_labels import check_organs

LABELS = load_labels()


def config(organs: str = "cases", **student: object) -> Config:
    raw = {
        "run": "r",
        "labels": str(config_folder() / "labels.yaml"),
        "teacher": {"spacing_mm": [2.0, 2.0]},
        "student": {"spacing_mm": [4.0, 2.0, 2.0], **student},
        "pseudo_labels": {"organs": organs},
    }
    return load_config(raw)


def entry(name: str, split: str, tumour: str, voxels: int = 1000, source: str = "a") -> Entry:
    """A case of 10x20x20 voxels of 5x1x1 mm whose liver is annotated."""
    states = dict.fromkeys(LABELS.values, UNKNOWN) | {1: ANNOTATED, 14: tumour}
    values = f"1:5000 14:{voxels}" if tumour == ANNOTATED else "1:5000"
    facts = dict.fromkeys(FACTS, "") | {
        "orientation": "RAS",
        "shape_zyx": "10 20 20",
        "spacing_mm_zyx": "5 1 1",
        "voxel_ml": "0.005",
        "label_values": values,
    }
    return Entry(name, split, "train-00", source, "", "i.nii.gz", "l.nii.gz", "", facts, states)


ENTRIES = [
    entry("taught", "train", ANNOTATED),
    entry("free", "train", ABSENT),
    entry("open", "train", UNKNOWN, source="<b>"),
    entry("checked", "validation", ANNOTATED, voxels=3000),
    entry("hidden", "test", UNKNOWN),
]


def test_disk_needs():
    needs = {row["what"]: row for row in disk_needs(ENTRIES, LABELS, config())}
    case = 10 * 20 * 20  # bytes of a label map
    # The teacher learns from one case and is checked on one, which has a prediction too.
    assert needs["Teacher's labels"]["bytes"] == 2 * case
    assert needs["Teacher's preprocessed data"]["bytes"] == 2 * 1000 * 6
    pseudo = needs["Tumour pseudo-labels and the teacher's predictions"]
    assert (pseudo["files"], pseudo["bytes"]) == (2, 2 * case)
    assert needs["Fused labels and source maps"]["bytes"] == 4 * 3 * case
    assert needs["Students' preprocessed data"]["bytes"] == 4 * 1200 * 6
    assert needs["Students' predictions"]["bytes"] == 2 * case
    assert needs["Students' predictions"]["expected"] == 2 * case * 0.02
    assert needs["Students' preprocessed data"]["expected"] == 4 * 1200 * 6 / 2
    # Weights, float32; a checkpoint has also the momentum, and a third is written beside two.
    weights = 4 * (62_939_014 + 5_644_256)
    assert (needs["Models"]["files"], needs["Models"]["bytes"]) == (2, weights)
    checkpoints = needs["Checkpoints of all trainings"]
    assert (checkpoints["files"], checkpoints["bytes"]) == (6, 3 * 2 * weights)
    assert checkpoints["expected"] == checkpoints["bytes"]


def test_memory_is_that_of_the_largest_case():
    wide = replace(ENTRIES[1], facts={**ENTRIES[1].facts, "shape_zyx": "10 40 40"})
    teacher, student = memory_needs([ENTRIES[0], wide, ENTRIES[2]], config())
    assert (teacher["case"], student["case"]) == ("free", "free")
    assert teacher["bytes"] == 300e6 + 6 * 10 * 40 * 40 + 16 * 10 * 20 * 20
    assert student["bytes"] == 300e6 + 6 * 10 * 40 * 40 + 16 * 12 * 20 * 20


def test_disk_grows_with_variants_and_seeds():
    more = config(variants=["stage1", "stage2"], seeds=[0, 1, 2])
    needs = {row["what"]: row["files"] for row in disk_needs(ENTRIES, LABELS, more)}
    assert needs["Students' preprocessed data"] == 2 * 4
    assert needs["Students' predictions"] == 6 * 2
    assert "Organ pseudo-labels" not in needs


def test_a_model_for_organs_counts():
    needs = disk_needs(ENTRIES, LABELS, config("marginal", variants=["partial", "stage2"]))
    files = {row["what"]: row["files"] for row in needs}
    assert files["Organ pseudo-labels"] == 3
    # `marginal` learns from what `partial` preprocessed, and its predictions are pseudo-labels.
    assert files["Students' preprocessed data"] == 2 * 4
    assert files["Students' predictions"] == 2 * 2
    _, *students = training_hours(config("marginal"))
    assert [row["training"] for row in students] == [
        "Student, stage2, seed 0",
        "Student, marginal, seed 0",
    ]


def test_what_is_missing():
    some = [replace(ENTRIES[0], organs="o.nii.gz"), *ENTRIES[1:]]
    first, *others = what_is_missing(some, LABELS, config())
    assert first == "right_kidney is annotated in no training case"
    assert "2 training cases have no organ pseudo-label (first free)" in others[-1]
    learnt = what_is_missing(ENTRIES, LABELS, config("marginal"))
    assert learnt == [first, *others[:-1]]
    assert what_is_missing(ENTRIES, LABELS, config("models/organs")) == []


class TestWithoutOrgans:
    """No training case has an organ pseudo-label: stage 2 would teach that there are no organs."""

    LINE = (
        "config: pseudo_labels.organs: no training case has an organ pseudo-label, and in 3 of 3 "
        "organs are unknown (first taught): stage 2 would teach that they are not there; name "
        "label maps in the case table's column organs (panorgan init --organs), or set it to "
        "marginal or to the folder of a trained model, or to none if that is meant"
    )

    @pytest.fixture
    def check(self, tmp_path):
        """Runs the check before a training, on some cases."""

        def run(entries, organs):
            write_manifest(tmp_path / "manifest.tsv", entries, LABELS)
            labels_file = config().labels
            out = tmp_path / "organs.txt"
            check_organs(tmp_path / "manifest.tsv", organs, labels_file=labels_file, out=out)
            return out.read_text()

        return run

    def test_it_stops(self, check, tmp_path):
        with pytest.raises(Problems) as caught:
            check(ENTRIES, "cases")
        assert str(caught.value) == self.LINE
        assert not (tmp_path / "organs.txt").exists()

    def test_the_page_says_so(self):
        assert f"the run stops before it trains: {self.LINE}" in what_is_missing(
            ENTRIES, LABELS, config()
        )

    @pytest.mark.parametrize("organs", ["none", "marginal", "models/organs"])
    def test_the_ways_out(self, organs, check):
        assert check(ENTRIES, organs) == "0 of 3 training cases name an organ pseudo-label\n"

    def test_one_pseudo_label_is_enough(self, check):
        some = [*ENTRIES[:2], replace(ENTRIES[2], organs="o.nii.gz"), *ENTRIES[3:]]
        assert check(some, "cases") == "1 of 3 training cases name an organ pseudo-label\n"

    def test_where_all_organs_are_annotated_none_is_needed(self, check):
        known = dict.fromkeys(LABELS.values, ANNOTATED) | {14: UNKNOWN}
        check([replace(entry, states=known) for entry in ENTRIES], "cases")

    @pytest.mark.parametrize(
        ("variants", "stops"),
        [(["partial", "marginal", "stage1"], False), (["gated"], True), (["noise"], True)],
    )
    def test_only_what_stage_2_teaches_matters(self, variants, stops):
        found = what_is_missing(ENTRIES, LABELS, config(variants=variants))
        assert any("the run stops" in text for text in found) == stops
        assert any("is learnt as background" in text for text in found) != stops

    @pytest.mark.fault("organs-none-and-some")
    def test_none_and_some_is_a_contradiction(self, check):
        given = [replace(entry, organs="o.nii.gz") for entry in ENTRIES]
        with pytest.raises(Problems) as caught:
            check(given, "none")
        fault_rows()["organs-none-and-some"].check(str(caught.value))


def test_suspects_stand_in_the_way_a_sentence_a_source():
    rows = [
        {"case": "taught", "cause": "liver is in two parts", "obstacle": "misnumbered"},
        {"case": "taught", "cause": "spleen is too small", "obstacle": "misnumbered"},
        {"case": "free", "cause": "only 0.001 ml of liver: a speck?", "obstacle": ""},
        {"case": "free", "cause": "liver is in two parts", "obstacle": "misnumbered"},
        {"case": "open", "cause": "liver is inside", "obstacle": "misnumbered"},
        {"case": "excluded", "cause": "liver is inside", "obstacle": "misnumbered"},
    ]
    assert [*what_is_doubtful(ENTRIES, rows)] == [
        "misnumbered in 2 of 4 cases of a (first taught: liver is in two parts)",
        "misnumbered in 1 of 1 cases of <b> (first open: liver is inside)",
    ]


@pytest.mark.fault("labels-elsewhere")
def test_classes_that_are_never_where_they_were_looked_for():
    """Two tumours as right kidneys: a liver data set with its own numbers."""

    def known(name, values, **states):
        named = {LABELS.by_name(key).value: state for key, state in states.items()}
        facts = ENTRIES[0].facts | {"label_values": values}
        states = dict.fromkeys(LABELS.values, UNKNOWN) | named
        return replace(ENTRIES[0], case=name, source="lits", facts=facts, states=states)

    found = {"liver": ANNOTATED, "tumour": ABSENT}
    wrong = [known("a", "1:9 2:9", **found), known("b", "1:9", **found)]
    (said,) = what_is_elsewhere(wrong, LABELS)
    fault_rows()["labels-elsewhere"].check(said)
    # One case has it: not a matter of numbers.
    assert [*what_is_elsewhere([*wrong, known("c", "1:9 14:9", tumour=ANNOTATED)], LABELS)] == []
    # Healthy livers.
    assert [*what_is_elsewhere([wrong[1]], LABELS)] == []
    assert [*what_is_elsewhere(ENTRIES, LABELS)] == []


def test_hours_come_from_epochs_that_are_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "unknown" in training_hours(config())[0]["text"]
    progress = Path("results/r/.store/teacher/seed-0/model/KEY/progress.csv")
    progress.parent.mkdir(parents=True)
    progress.write_text("epoch,train_loss,seconds\n1,0.5,30\n2,0.4,36\n3,0.3,36\n")
    teacher, student = training_hours(config())
    assert teacher["text"] == "3 of 1000 epochs done, 36.0 s each: 10.0 hours to go"
    assert student["training"] == "Student, stage2, seed 0"
    assert "unknown" in student["text"]


def test_data_are_described():
    data = describe_data(ENTRIES, LABELS)
    assert data["splits"] == {"train": 3, "validation": 1, "test": 1}
    assert data["groups"] == ["train: <b>", "train: a", "validation: a", "test: a"]
    tumour = data["classes"][-1]
    assert tumour["training"] == {ANNOTATED: 1, ABSENT: 1, UNKNOWN: 1}
    assert tumour["groups"][1] == {ANNOTATED: 1, ABSENT: 1, UNKNOWN: 0}
    assert [row["ml"] for row in data["tumours"]] == ["5.0", "15.0", "\N{EN DASH}"]
    assert data["geometry"][0]["spacing"] == ["5.00", "1.00", "1.00"]


@pytest.mark.fault("labels-misnumbered")
def test_page_says_what_matters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_manifest("manifest.tsv", ENTRIES, LABELS)
    bad = {"case": "bad", "file": "x&y.nii.gz", "cause": "is truncated", "cure": "copy it again"}
    write_table("excluded.tsv", list(bad), [bad])
    odd = {"case": "taught", "file": "l.nii.gz", "cause": "liver is in two parts"}
    write_table("suspects.tsv", SUSPECT_COLUMNS, [odd | {"obstacle": MISNUMBERED}])
    page = Path("results/r/cases/preflight.html")
    page.parent.mkdir(parents=True)
    (page.parent / "there").write_bytes(bytes(500_000))
    os.link(page.parent / "there", page.parent / "the same")
    text = write_preflight(
        "manifest.tsv",
        "excluded.tsv",
        "suspects.tsv",
        config=config(),
        page=str(page),
        config_file=str(tmp_path / "config.yaml"),
    )
    assert load_config(read_config_file(tmp_path / "config.yaml")) == config()
    assert text.startswith("cases: 3 train, 1 validation, 1 test; 1 excluded, 1 suspects\n")
    misnumbered = (
        "labels seem to be mirrored, or numbered otherwise than the class table in 1 of 4 cases of "
        "a (first taught: liver is in two parts)"
    )
    assert f"ATTENTION: {misnumbered}\n" in text
    fault_rows()["labels-misnumbered"].check(text)
    assert "no GPU: training would run on the CPU" in text
    assert re.search(
        r"disk: about 1\.9 GB needed, at most .*; 0\.5 MB there already, .* free", text
    )
    html = page.read_text()
    assert f"<strong>{misnumbered}.</strong>" in html
    assert "x&amp;y.nii.gz" in html
    assert "is truncated" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.87314), "87.31"),
        (percent(None), "\N{EN DASH}"),
        (number(12345.67), "12,345.7"),
        (duration(1.25), "1.2 hours"),
        (duration(0.5), "30.0 minutes"),
        (size(2.5e6), "2.5 MB"),
        (size(1.25e13), "12.5 TB"),
        (spread([3, 1, 2]), "2.0 (1.0 to 3.0)"),
        (spread([2, 2]), "2.0"),
        (spread([]), "\N{EN DASH}"),
    ],
)
def test_formats(text, expected):
    assert text == expected
