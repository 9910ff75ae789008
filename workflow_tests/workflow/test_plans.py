"""What a run plans after a small change: what depends on it, and nothing else."""

import os
import re
import shutil
from collections.abc import Callable

import pytest
from running import REPOSITORY, Project, tiny_project

from panorgan.cases.phantom import phantom_cases, write_case
from panorgan.cases.table import read_cases, write_cases
from panorgan.config.labels import load_labels
from panorgan.io.tables import read_table
from panorgan.io.volumes import read_label, write_label

pytestmark = pytest.mark.workflow

CHECKED = {"check_cases": 1, "write_preflight": 1, "check_organs": 1}
CASES = {"index_cases": 1, "deal_cases": 1, **CHECKED}
"""A case of one shard is another, or new."""
END = {"write_report": 1, "all": 1}
LEARNT = {
    "measure_student": 1,
    "plan_student": 1,
    "preprocess_student": 3,
    "train_student": 1,
    "predict_cases": 2,
    "score_cases": 2,
    "summarise_scores": 2,
    **END,
}
"""A shard's labels to learn have changed."""
RULES = [REPOSITORY / "Snakefile", *(REPOSITORY / "rules").glob("*.smk")]
NAME = r"^ *(?:use rule \w+ as|rule) (\w+)(?: with)?:$"
SHARDS = {"labelled": 2, "unlabelled": 12, "validation": 1, "test": 1}
JUDGED = {"measure_components": 1, "judge_components": 1}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Project:
    """The finished run with its volumes as a user's: the run does not draw them any more."""
    project = tiny.copy(tmp_path_factory.mktemp("plans") / "p")
    project.write_config(phantom=None)
    project.run()
    assert planned(project) == {}
    return project


@pytest.fixture
def after(base, tmp_path) -> Callable[[Callable[[Project], None]], dict[str, int]]:
    """What is planned in a copy after a change."""

    def plan(change: Callable[[Project], None]) -> dict[str, int]:
        project = base.copy(tmp_path / "p")
        change(project)
        return planned(project)

    return plan


def planned(project: Project, *targets: str) -> dict[str, int]:
    """Jobs that the next run would have, by rule."""
    table = re.findall(r"^(\w+) +(\d+)$", project.run(*targets, "--dry-run"), re.M)
    return {rule: int(count) for rule, count in table if rule != "total"}


def add(name: str) -> Callable[[Project], None]:
    """A new case of the phantom in folder and table."""

    def change(project: Project) -> None:
        table = project.folder / project.config["cases"]
        drawn = {case.case: case for case in phantom_cases(project.folder / "data/demo")}[name]
        # The phantom's own seed and shape.
        write_case(drawn, seed=1, shape=[20, 32, 44], spacing_mm=[9.0, 7.0, 7.0])
        write_cases(table, [*read_cases(table, load_labels()), drawn])

    return change


def test_every_rule_is_asked_for(tmp_path):
    """What no target needs would never run, and nobody would notice."""
    targets = ("all", "ablation", "preflight", "teacher", "labels", "free_preprocessed")
    project = tiny_project(tmp_path, rounds=2, folds=2, gate={"quantile": 0.1})
    model = tmp_path / "model"
    model.mkdir()
    (model / "plans.json").touch()
    found = set()
    for organs in ("marginal", str(model)):
        project.write_config(pseudo_labels={"organs": organs})
        found |= planned(project, *targets).keys()
    rules = {name for path in RULES for name in re.findall(NAME, path.read_text(), re.M)}
    assert found == rules


def test_a_test_case(after):
    evaluated = {"predict_cases": 1, "score_cases": 1, "summarise_scores": 1}
    assert after(add("test_2")) == CASES | evaluated | END


EMPTY = """
from pathlib import Path

for path in map(Path, snakemake.output):
    # Folders have no ending.
    path.mkdir() if "." not in path.name else path.write_text("case\\n")
"""


def numbered(project: Project, unlabelled: int) -> None:
    """A table of cases whose names are numbered, and files that are there."""
    folder = project.folder / "config"
    lines = ["case\timage\tlabel\tsplit\tsource"]
    kinds = [("train", 8), ("validation", 2), ("test", 2), ("unlabelled", unlabelled)]
    for kind, count in kinds:
        for number in range(count):
            name = f"{kind}_{number:04d}"
            label = f"{name}.nii.gz" if kind in ("train", "validation") else ""
            for file in filter(None, (f"{name}_0000.nii.gz", label)):
                if not (folder / file).exists():
                    (folder / file).touch()
            split = kind.replace("unlabelled", "train")
            lines.append(f"{name}\t{name}_0000.nii.gz\t{label}\t{split}\tany")
    (folder / "tiny_cases.tsv").write_text("\n".join(lines) + "\n")


def test_cases_that_are_numbered_on_touch_few_shards(tmp_path):
    """Nothing is computed: scripts that write empty files, so that plans alone are looked at."""
    project = tiny_project(tmp_path / "p", phantom=None, shards=SHARDS)
    for script in (project.folder / "scripts").glob("*.py"):
        script.write_text(EMPTY)
    numbered(project, 12 * 16)
    project.run()
    assert planned(project) == {}
    numbered(project, 12 * 16 + 20)  # a block, and the first of another
    fused = {"select_tumour_cases": 2, "predict_tumours": 2, "fuse_tumours": 2, "fuse_organs": 2}
    new = {"index_cases": 2, "deal_cases": 2, "measure_components": 2, "judge_components": 1}
    learnt = {"measure_student": 2, "preprocess_student": sum(SHARDS.values()) - SHARDS["test"]}
    assert planned(project) == CHECKED | new | fused | LEARNT | learnt


def test_a_validation_case_trains_nothing(after):
    teacher = {"select_tumour_cases": 1, "predict_validation_tumours": 1, "score_teacher": 1}
    evaluated = {"predict_cases": 1, "score_cases": 1, "summarise_scores": 1}
    assert after(add("validation_3")) == CASES | teacher | evaluated | END


def test_an_unlabelled_case_spares_the_teacher(after):
    fused = {"select_tumour_cases": 1, "predict_tumours": 1, "fuse_tumours": 1, "fuse_organs": 1}
    assert after(add("unlabelled_3")) == CASES | fused | JUDGED | LEARNT


def test_a_labelled_case_trains_both(after):
    teacher = {
        "select_tumour_cases": 1,
        "plan_teacher": 1,
        "preprocess_teacher": 2,
        "train_teacher": 1,
        "predict_validation_tumours": 1,
        "score_teacher": 1,
        "predict_tumours": 2,
        "predict_known_tumours": 1,
        "measure_known_components": 1,
        "fuse_tumours": 2,
        "fuse_organs": 2,
        "measure_components": 2,
        "judge_components": 1,
    }
    assert after(add("liver_4")) == CASES | teacher | LEARNT | {"measure_student": 2}


def corrected(project: Project, line: str) -> None:
    (project.folder / "mine.tsv").write_text(f"case\tannotated\tlabel\n{line}\n")
    project.write_config(corrections="mine.tsv")


def test_a_corrected_label_is_fused_and_learnt(after):
    def change(project: Project) -> None:
        (path,) = project.results.glob("round-1/fusion/stage2/*/unlabelled_1.nii.gz")
        label = read_label(path)
        write_label(project.folder / "corrected.nii.gz", label.array, label)
        corrected(project, "unlabelled_1\t\tcorrected.nii.gz")

    assert after(change) == CHECKED | {"fuse_organs": 1} | LEARNT


def test_a_corrected_annotation_reaches_its_shard(after):
    plan = after(lambda project: corrected(project, "liver_1\tspleen\t"))
    assert plan["deal_cases"] == plan["select_tumour_cases"] == 1
    assert plan["check_cases"] == plan["train_teacher"] == plan["train_student"] == 1
    assert "index_cases" not in plan


def test_a_threshold_of_the_gate_decides_anew(after):
    plan = after(lambda project: project.write_config(gate={"tumour": {"min_ml": 0.3}}))
    assert plan == {"judge_components": 1, "write_preflight": 1} | END


def test_a_scoring_profile_scores_anew_though_the_teachers_scores_are_waited_for(after):
    """What lies below an `ancient` input of a job that will run has reasons of its own."""
    plan = after(lambda project: project.write_config(evaluation={"profile": "corrected"}))
    scores = {"score_teacher": 1, "score_cases": 2, "summarise_scores": 2, "write_preflight": 1}
    assert plan == scores | END


def test_two_changes_at_once_are_both_planned(after):
    def change(project: Project) -> None:
        add("test_2")(project)
        project.write_config(fusion={"order": "annotated-first"})

    plan = after(change)
    assert plan["index_cases"] == plan["deal_cases"] == 1
    assert plan["fuse_tumours"] == plan["fuse_organs"] == 2
    assert plan["train_student"] == 1
    assert "train_teacher" not in plan


def test_a_gpu_is_asked_for_where_there_is_a_case_to_predict(base):
    plan = base.run("all", "--dry-run", "--forceall")
    job = r"^ +output: (\S+\.tsv),.*\.efficiency\.tsv.*(?:\n +.*)*?gpu=(\d)"
    jobs = re.findall(job, plan, re.M)
    assert len(jobs) == 6
    predicted = {table: read_table(base.folder / table) for table, _ in jobs}
    asked = {table: int(gpu) for table, gpu in jobs}
    assert asked == {table: int(bool(rows)) for table, rows in predicted.items()}
    assert {*asked.values()} == {0, 1}


def test_a_comment_and_a_touch_plan_nothing(after):
    def change(project: Project) -> None:
        for pattern in ("scripts/*.py", "rules/*.smk", "config/*.yaml"):
            for path in project.folder.glob(pattern):
                path.write_text(path.read_text() + "\n# A comment.\n")
        for path in (project.folder / "data/demo").rglob("*.nii.gz"):
            os.utime(path)
        os.utime(project.folder / project.config["cases"])

    assert after(change) == {}


def test_a_job_that_only_links_leaves_the_log_of_the_one_that_did_the_work(base, tmp_path):
    project = base.copy(tmp_path / "p")
    logs = project.results / "logs/train_student/round-1/stage2/seed-0.log"
    took = project.results / "benchmarks/train_student/round-1/stage2/seed-0.tsv"
    before = logs.read_text(), took.read_text()
    assert "epoch 2 of 2" in before[0]
    shutil.rmtree(project.results / "round-1/student/stage2/seed-0/model")
    project.run()
    assert (project.results / "round-1/student/stage2/seed-0/model/card.json").exists()
    assert (logs.read_text(), took.read_text()) == before
    assert not list((project.results / "logs").rglob("*.problems.tsv"))


def test_a_copy_in_the_test_cases_leaves_the_training_case_out_in_the_next_run(base, tmp_path):
    """Nobody plans to deal a shard anew in which nothing changed: the run says so and stops."""
    project = base.copy(tmp_path / "p")
    project.write_config(bad_cases="exclude")
    project.run("preflight")
    table = project.folder / project.config["cases"]
    cases = read_cases(table, load_labels())
    copied = next(case for case in cases if case.case == "unlabelled_1")
    image = project.folder / "data/demo/copy_0000.nii.gz"
    shutil.copy(project.folder / copied.image, image)
    text = table.read_text().splitlines()
    header = text[0].split("\t")
    row = {"case": "copy", "image": os.path.relpath(image, table.parent), "split": "test"}
    row |= {"source": "any"}
    table.write_text("\n".join([*text, "\t".join(row.get(name, "") for name in header)]) + "\n")
    said = project.run("preflight", fails=True)
    assert "unlabelled_1: is left out now, because of a case of another shard; run" in said
    project.run("preflight")
    assert "unlabelled_1" in (project.results / "cases/excluded.tsv").read_text()
    plan = planned(project)
    assert plan["deal_cases"] == 2
    assert plan["train_student"] == 1
