"""Gate, rounds, corrections and ablation through the whole workflow, on a few small phantoms."""

import json

import numpy as np
import pytest
from running import Project, hashes, tiny_project

from panorgan.cases.manifest import read_manifest
from panorgan.cases.table import fold_of
from panorgan.config.labels import load_labels
from panorgan.config.settings import Member, members
from panorgan.inference.predictor import Predictor
from panorgan.io.tables import read_table
from panorgan.io.volumes import read_image, read_label, write_label
from panorgan.run.store import ShardReader, key_of

pytestmark = pytest.mark.workflow
LABELS = load_labels()
FOLDS = 2


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run of two cross-fitted rounds, gated and not, with its ablation."""
    project = tiny_project(
        tmp_path_factory.mktemp("rounds"),
        rounds=2,
        folds=FOLDS,
    )
    project.write_config(
        student=project.config["student"] | {"variants": ["stage2", "gated"]},
        ablation={"arms": ["stage2", "gated", "rounds", "noise"], "seeds": [0]},
    )
    project.run("all", "ablation")
    return project


def training_entries(project: Project) -> list:
    return read_manifest(project.results / "cases/manifest.tsv", LABELS, split="train")


def shards(project: Project, place: str) -> ShardReader:
    """What a stage published for all training shards."""
    tables = sorted((project.results / place).glob("*labelled-??.tsv"))
    return ShardReader(tables, [table.with_suffix("") for table in tables])


@pytest.mark.parametrize("variant", ["stage2", "gated"])
def test_a_fold_network_trains_on_the_other_cases_only(rounds, variant):
    preprocessed = shards(rounds, f"round-1/student/{variant}/preprocessed")
    for member in members(0, FOLDS):
        state = rounds.results / f".store/round-1/student/{variant}/seed-{member}/model"
        (key,) = state.glob("*/key.json")
        others = [case for case in preprocessed.cases if fold_of(case, FOLDS) != member.fold]
        assert 0 < len(others) < len(preprocessed.cases)
        expected = key_of({case: preprocessed.checksums(case) for case in others})
        assert json.loads(key.read_text())["training cases"] == expected


def test_each_case_is_labelled_again_by_the_network_that_did_not_see_it(rounds):
    relabelled = shards(rounds, "round-2/pseudo_labels/stage2")
    entries = {entry.case: entry for entry in training_entries(rounds)}
    assert relabelled.cases == sorted(entries)  # in each case of the phantom something is unknown
    for member in members(0, FOLDS):
        case = next(name for name in entries if fold_of(name, FOLDS) == member.fold)
        model = rounds.results / f"round-1/student/stage2/seed-{member}/model"
        predictor = Predictor(model, precision="fp32", export="nearest", threads=1)
        image = read_image(rounds.folder / entries[case].image)
        published = read_label(relabelled.file(case, ".nii.gz")).array
        np.testing.assert_array_equal(predictor.predict(image), published)


def test_later_rounds_are_scored_and_reported(rounds):
    for variant in ("stage2", "gated"):
        scores = rounds.results / f"round-2/scores/{variant}/seed-0/validation/summary.json"
        assert json.loads(scores.read_text())["cases"] == 2
        cases = read_table(rounds.results / f"round-2/gate/{variant}/cases.tsv")
        assert cases
        assert all(float(row["instability"]) >= 0 for row in cases)
    assert "round 2" in (rounds.results / "summary.txt").read_text()


def test_what_the_gate_does_not_trust_is_not_learnt(rounds):
    decisions = read_table(rounds.results / "round-1/gate/teacher/decisions.tsv")
    ignored = {row["case"] for row in decisions if row["action"] == "ignore"}
    assert ignored
    assert {row["action"] for row in decisions} <= {"keep", "clean", "ignore"}
    gated, plain = (shards(rounds, f"round-1/fusion/{name}") for name in ("gated", "stage2"))
    found = False
    for case in sorted(ignored & {*gated.cases}):
        label = read_label(gated.file(case, ".nii.gz")).array
        assert not (read_label(plain.file(case, ".nii.gz")).array == LABELS.ignore).any()
        found |= bool((label == LABELS.ignore).any())
    assert found


def test_another_threshold_predicts_nothing_again(rounds, tmp_path):
    project = rounds.copy(tmp_path / "p")
    project.forget_logs()
    project.write_config(gate={"tumour": {"min_ml": 1e6}})
    project.run("labels")
    assert {*project.computed()} <= {"fuse_tumours", "fuse_organs"}
    decisions = read_table(project.results / "round-1/gate/teacher/decisions.tsv")
    tumours = [row for row in decisions if row["name"] == "tumour"]
    assert tumours
    assert {row["action"] for row in tumours} == {"clean"}
    tables = (project.results / "round-1/fusion/gated").glob("*.composition.tsv")
    sources = {row["source"] for table in tables for row in read_table(table)}
    assert "tumour_pseudo" not in sources
    assert hashes(rounds.results, "round-1/fusion/stage2/*/*.gz") == hashes(
        project.results, "round-1/fusion/stage2/*/*.gz"
    )


def test_a_corrected_label_wins_and_computes_its_case_only(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    project.forget_logs()
    (path,) = project.results.glob("round-1/fusion/stage2/*/unlabelled_1.nii.gz")
    automatic = read_label(path)
    corrected = automatic.array.copy()
    corrected[:2] = 0
    corrected[5, 10:14, 10:14] = LABELS.tumour.value
    write_label(project.folder / "mine/unlabelled_1.nii.gz", corrected, automatic)
    table = project.folder / "mine/corrections.tsv"
    table.write_text("case\tlabel\tnote\nunlabelled_1\tunlabelled_1.nii.gz\ttumour by hand\n")
    project.write_config(corrections="mine/corrections.tsv")
    project.run()
    computed = project.computed()
    assert computed.pop("train_student")
    evaluated = {"predict_cases", "score_cases"}
    assert {rule: cases for rule, cases in computed.items() if rule not in evaluated} == {
        "fuse_organs": ["unlabelled_1"],
        "preprocess_student": ["unlabelled_1"],
    }
    np.testing.assert_array_equal(read_label(path).array, corrected)
    before = path.with_name("unlabelled_1_automatic.nii.gz")
    np.testing.assert_array_equal(read_label(before).array, automatic.array)


def test_the_ablation_compares_what_it_names(rounds):
    page = (rounds.results / "ablation.md").read_text()
    rows = read_table(rounds.results / "ablation.tsv")
    assert list(dict.fromkeys(row["arm"] for row in rows)) == rounds.config["ablation"]["arms"]
    for arm in rounds.config["ablation"]["arms"]:
        assert arm in page
    assert rounds.results.joinpath("round-1/student/noise/seed-0/model.tsv").exists()
    assert not rounds.results.joinpath("round-1/student/marginal").exists()


def test_members_have_names_that_paths_hold():
    for member in (Member(0), Member(-3), Member(7, 2, 5)):
        assert Member.parse(str(member)) == member
