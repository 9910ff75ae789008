"""The demo as it is shipped, and with it a student without stage 2, which must be worse."""

import json

import numpy as np
import pytest
import yaml
from running import REPOSITORY, Project

from panorgan.cases.manifest import read_manifest
from panorgan.config.labels import load_labels
from panorgan.io.volumes import read_label
from panorgan.scoring.frames import SCORES
from panorgan.scoring.metrics import score_case
from panorgan.scoring.scores import summarise

pytestmark = [pytest.mark.workflow, pytest.mark.demo]
LABELS = load_labels()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Project:
    config = yaml.safe_load((REPOSITORY / "config/demo.yaml").read_text())
    project = Project(tmp_path_factory.mktemp("demo"), config)
    variants = {"variants": ["stage1", "stage2"]}
    project.write_config(student=config["student"] | variants)
    project.run()
    return project


def summary_of(project: Project, variant: str) -> dict:
    folder = project.results / f"round-1/scores/{variant}/seed-0/validation"
    return json.loads((folder / "summary.json").read_text())


def fused_against_truth(project: Project, stage: str) -> dict:
    """Scores of the fused training labels against the truth, which the phantom knows."""
    rows = []
    for entry in read_manifest(project.results / "cases/manifest.tsv", LABELS, split="train"):
        folder = project.results / "round-1/fusion" / stage / entry.shard
        truth = read_label(project.folder / "data/demo/truthTr" / f"{entry.case}.nii.gz")
        fused = read_label(folder / f"{entry.case}.nii.gz").array
        scores = score_case(fused, truth.array, truth.grid.spacing, LABELS, "corrected")
        rows += [{"case": entry.case} | row for row in scores]
    return summarise(SCORES.frame(rows), LABELS, "corrected")


def test_the_student_has_learnt(demo):
    summary = summary_of(demo, "stage2")
    assert summary["cases"] == 8
    assert summary["organs"]["dsc"] > 0.7
    assert summary["tumour"]["positive"]["dsc"] > 0.35


def test_without_stage_2_the_scores_fall(demo):
    with_fusion, without = summary_of(demo, "stage2"), summary_of(demo, "stage1")
    assert without["organs"]["dsc"] < with_fusion["organs"]["dsc"] - 0.15


def test_each_stage_of_fusion_brings_the_labels_nearer_to_the_truth(demo):
    stage1, stage2 = (fused_against_truth(demo, stage) for stage in ("stage1", "stage2"))
    assert stage1["organs"]["dsc"] < 0.6
    assert stage2["organs"]["dsc"] > 0.75
    assert stage2["tumour"]["positive"]["dsc"] > 0.6


def test_the_teacher_is_judged_before_it_is_used(demo):
    summary = json.loads((demo.results / "teacher/seed-0/scores/summary.json").read_text())
    assert summary["tumour"]["positive"]["cases"] == 6
    assert summary["tumour"]["tumour_free"]["cases"] == 2
    assert summary["tumour"]["positive"]["dsc"] > 0.35


def test_pseudo_labels_find_tumours_that_nobody_annotated(demo):
    found = []
    for entry in read_manifest(demo.results / "cases/manifest.tsv", LABELS, split="train"):
        if entry.states[14] != "unknown":
            continue
        folder = demo.results / "round-1/pseudo_labels/tumour" / entry.shard
        predicted = read_label(folder / f"{entry.case}.nii.gz").array == 1
        truth = read_label(demo.folder / "data/demo/truthTr" / f"{entry.case}.nii.gz").array == 14
        if truth.any():
            found.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    assert np.mean(found) > 0.35


def test_what_a_user_sees_at_the_end(demo):
    text = (demo.results / "summary.txt").read_text()
    for label in LABELS.labels:
        assert label.title in text
    assert "results/demo/report.html" in text
    assert "results/demo/overlay.png" in text
    assert (demo.results / "report.html").stat().st_size < 15_000_000
