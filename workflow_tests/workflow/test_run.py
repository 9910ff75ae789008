"""The whole workflow on a few small phantoms: what it makes, and what a second run makes again."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import SimpleITK as sitk
from fault_rows import fault_rows
from running import TINY_CASES, Project, hashes

from panorgan.cases.manifest import read_manifest
from panorgan.cases.table import read_cases, write_cases
from panorgan.config.labels import load_labels
from panorgan.io.tables import read_table
from panorgan.io.volumes import read_label, write_label
from panorgan.scoring.scores import read_scores

pytestmark = pytest.mark.workflow
LABELS = load_labels()


def written_labels(project):
    """Every label map that the run wrote: (case, path)."""
    for path in sorted(project.results.rglob("*.nii.gz")):
        if ".store" not in path.parts:
            yield path.name.removesuffix(".nii.gz").removesuffix("_source"), path


def test_every_label_is_on_exactly_its_images_grid(tiny):
    entries = {
        entry.case: entry for entry in read_manifest(tiny.results / "cases/manifest.tsv", LABELS)
    }
    kinds = set()
    for case, path in written_labels(tiny):
        image = sitk.ReadImage(str(tiny.folder / entries[case].image))
        label = sitk.ReadImage(str(path))
        assert label.GetPixelID() == sitk.sitkUInt8
        for fact in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(label, fact)() == getattr(image, fact)(), path
        kinds.add(path.relative_to(tiny.results).parts[:3])
    assert len(kinds) >= 5
    assert len({entry.facts["orientation"] for entry in entries.values()}) >= 3


def test_fused_labels_follow_the_rules(tiny):
    entries = read_manifest(tiny.results / "cases/manifest.tsv", LABELS, split="train")
    for entry in entries:
        fusion = tiny.results / "round-1/fusion"
        stage1 = read_label(fusion / "stage1" / entry.shard / f"{entry.case}.nii.gz").array
        stage2 = read_label(fusion / "stage2" / entry.shard / f"{entry.case}.nii.gz").array
        source = read_label(fusion / "stage2" / entry.shard / f"{entry.case}_source.nii.gz").array
        organs = read_label(tiny.folder / entry.organs).array
        partial = np.zeros_like(organs)
        if entry.label:
            partial = read_label(tiny.folder / entry.label).array
        expected = partial.copy()
        for value, state in entry.states.items():
            if state != "annotated":
                expected[expected == value] = 0
        if entry.states[14] == "unknown":
            tumours = tiny.results / "round-1/pseudo_labels/tumour" / entry.shard
            expected[read_label(tumours / f"{entry.case}.nii.gz").array == 1] = 14
        assert np.array_equal(stage1, expected), entry.case
        allowed = [value for value, state in entry.states.items() if state == "unknown"]
        fill = (expected == 0) & np.isin(organs, allowed)
        expected[fill] = organs[fill]
        assert np.array_equal(stage2, expected), entry.case
        assert np.array_equal(source == 3, fill), entry.case


def test_only_cases_with_unknown_tumours_get_pseudo_labels(tiny):
    wanted = {
        entry.case
        for entry in read_manifest(tiny.results / "cases/manifest.tsv", LABELS, split="train")
        if entry.states[14] == "unknown"
    }
    tables = (tiny.results / "round-1/pseudo_labels/tumour").glob("*labelled-??.tsv")
    assert {row["case"] for table in tables for row in read_table(table)} == wanted
    assert wanted


def test_scores_have_a_row_for_each_case_and_class(tiny):
    folder = tiny.results / "round-1/scores/stage2/seed-0/validation"
    rows = read_scores(folder / "cases.csv")
    assert len(rows) == 2 * 14
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["profile"] == "flare23-2023"
    assert summary["cases"] == 2
    assert set(summary["classes"]) == set(LABELS.names)


def test_models_carry_their_facts(tiny):
    card = json.loads((tiny.results / "round-1/student/stage2/seed-0/model/card.json").read_text())
    assert card["phantom"] is True
    assert card["cases"] == 10
    teacher = json.loads((tiny.results / "teacher/seed-0/model/card.json").read_text())
    assert teacher["cases"] == 5
    assert teacher["checksum"] != card["checksum"]


def test_a_case_takes_few_inodes(tiny):
    """At most nine, all stages together: quotas count them. What a job takes is not counted."""
    name = re.compile("|".join(rf"{case}(?=\W|_[a-z])" for case in TINY_CASES))
    found = ((path.stat().st_ino, name.match(path.name)) for path in tiny.results.rglob("*"))
    count = Counter({inode: match[0] for inode, match in found if match}.values())
    assert {*count} == {*TINY_CASES}
    assert max(count.values()) <= 9


def test_nothing_is_left_half_written(tiny):
    assert not [path for path in tiny.results.rglob("*") if "tmp" in path.name]


def test_snakemakes_own_report_has_the_results_with_captions(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    project.run("--report", "run.zip")
    with ZipFile(project.folder / "run.zip") as archive:
        names = Counter(Path(name).name for name in archive.namelist())
        page = archive.read("run/report.html").decode()
    # Snakemake's page has the name of ours.
    assert names["report.html"] == 2
    assert names["cases.csv"] == names["lesions.csv"] == 2
    for name in ("overlay.png", "summary.txt", "manifest.tsv", "preflight.html"):
        assert names[name] == 1, name
    for caption in ("The report of run", "a row per validation case and class", "A line a case"):
        assert caption in page, caption


def test_a_second_run_has_nothing_to_do(tiny):
    assert "Nothing to be done" in tiny.run()


def test_another_scoring_profile_computes_scores_only(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    project.forget_logs()
    project.write_config(evaluation={"profile": "corrected"})
    project.run()
    assert project.computed() == {"score_cases": ["test_1", "validation_1", "validation_2"]}


def test_an_added_case_without_tumours_spares_the_teacher(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    project.forget_logs()
    project.add_case("unlabelled_3")
    project.run()
    computed = project.computed()
    for rule in ("predict_tumours", "fuse_tumours", "fuse_organs", "measure_student"):
        assert computed[rule] == ["unlabelled_3"], rule
    assert not [rule for rule in computed if "teacher" in rule or "select" in rule]
    # By the method the student's statistics, hence all that it learns from, have changed.
    assert len(computed["preprocess_student"]) == 13
    assert computed["train_student"] == ["epoch 1", "epoch 2"]


def test_a_frozen_plan_spares_the_other_cases_preprocessing(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    plan = project.folder / "config/student_plans.json"
    plan.write_text((project.results / "round-1/student/stage2/plans.json").read_text())
    project.forget_logs()
    project.add_case("unlabelled_3")
    project.write_config(student=project.config["student"] | {"plan": "config/student_plans.json"})
    project.run()
    assert project.computed()["preprocess_student"] == ["unlabelled_3"]


def test_one_changed_voxel_computes_that_case_only(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    project.forget_logs()
    path = project.folder / "data/demo/labelsTr/organs_1.nii.gz"
    label = read_label(path)
    changed = label.array.copy()
    (fused,) = project.results.glob("round-1/fusion/stage2/*/organs_1.nii.gz")
    changed[tuple(np.argwhere(read_label(fused).array == 0)[0])] = 1
    path.unlink()
    write_label(path, changed, label)
    project.run("--until", "fuse_organs")
    computed = project.computed()
    assert computed == {
        rule: ["organs_1"] for rule in ("index_cases", "fuse_tumours", "fuse_organs")
    }


def test_validation_labels_influence_nothing_but_scores(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    for name in ("validation_1", "validation_2"):
        path = project.folder / f"data/demo/labelsVal/{name}.nii.gz"
        label = read_label(path)
        shuffled = np.random.default_rng(0).permutation(label.array.ravel())
        path.unlink()
        write_label(path, shuffled.reshape(label.array.shape), label)
    shutil.rmtree(project.results)
    project.run()
    for pattern in (
        "**/model/weights.safetensors",
        "**/plans.json",
        "round-1/fusion/**/*.nii.gz",
        "round-1/pseudo_labels/**/*.nii.gz",
        "round-1/predictions/**/*.nii.gz",
    ):
        before, after = hashes(tiny.results, pattern), hashes(project.results, pattern)
        assert before, pattern
        assert before == after, pattern
    scores = "round-1/scores/stage2/seed-0/validation/cases.csv"
    assert (tiny.results / scores).read_text() != (project.results / scores).read_text()


def test_organs_by_a_student_of_the_partial_labels(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    project.forget_logs()
    project.write_config(pseudo_labels={"organs": "marginal"})
    project.run("labels")
    computed = project.computed()
    assert not [rule for rule in computed if "teacher" in rule or "predict_tumours" in rule]
    entries = {
        entry.case: entry
        for entry in read_manifest(project.results / "cases/manifest.tsv", LABELS, split="train")
    }
    labelled = sorted(case for case, entry in entries.items() if entry.label)
    assert computed["fuse_tumours"] == labelled  # those of stage 1 are finished
    # An organ that someone looked for is never filled; a case with all of them needs no model.
    assert computed["predict_organs"] == sorted(
        case for case, entry in entries.items() if {*entry.unknown} - {14}
    )
    round1 = project.results / "round-1"
    (state,) = (project.results / ".store/round-1/student/marginal/seed-0/model").iterdir()
    card = json.loads((round1 / "student/marginal/seed-0/model/card.json").read_text())
    plan = json.loads((round1 / "student/marginal/seed-0/model/plans.json").read_text())
    assert card["cases"] == len(labelled)
    assert plan["panorgan"]["unknown"] == "marginal"
    assert json.loads((state / "key.json").read_text())["unknown classes"] != "background"
    for case in computed["predict_organs"]:
        entry = entries[case]
        place = f"{entry.shard}/{case}.nii.gz"
        before = read_label(round1 / "fusion/stage1" / place).array
        predicted = read_label(round1 / "pseudo_labels/organs" / place).array
        after = read_label(round1 / "fusion/stage2" / place).array
        fill = (before == 0) & np.isin(predicted, [*{*entry.unknown} - {14}])
        assert np.array_equal(after, np.where(fill, predicted, before)), case
    rows = [
        row
        for table in (round1 / "fusion/stage2").glob("*labelled-??.tsv")
        for row in read_table(table)
    ]
    assert {row["case"] for row in rows} == {*entries}
    assert all(row["unknown"] == "" for row in rows)

    # The same model, given as a folder, makes the same labels; an unknown one is one line.
    shutil.copytree(round1 / "student/marginal/seed-0/model", project.folder / "organ_model")
    predicted = hashes(round1, "pseudo_labels/organs/**/*.nii.gz")
    fused = hashes(round1, "fusion/stage2/**/*.nii.gz")
    project.forget_logs()
    project.write_config(pseudo_labels={"organs": "organ_model"})
    project.run("labels")
    assert project.computed() == {}
    assert hashes(round1, "pseudo_labels/organs/**/*.nii.gz") == predicted
    assert hashes(round1, "fusion/stage2/**/*.nii.gz") == fused
    project.write_config(pseudo_labels={"organs": "no_model"})
    assert "pseudo_labels.organs: 'no_model' is no folder" in project.run("labels", fails=True)


@pytest.mark.fault("organs-nowhere")
def test_without_organ_pseudo_labels_nothing_trains_unless_that_is_meant(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    table = project.folder / project.config["cases"]
    write_cases(table, [replace(case, organs="") for case in read_cases(table, LABELS)])
    project.write_config(phantom=None)
    project.forget_logs()
    manifest, page = (
        project.results / "cases/manifest.tsv",
        project.results / "cases/preflight.html",
    )
    page.unlink()
    for arguments in (["preflight"], ["--keep-going"]):
        *_, line, logs = project.run(*arguments, fails=True).strip().splitlines()
        fault_rows()["organs-nowhere"].check(line)
        assert logs == "logs: results/tiny/logs/check_organs.log"
        # The page and what it is made of can be looked at.
        assert "the run stops before it trains: config: pseudo_labels.organs" in page.read_text()
        assert "four_1" in manifest.read_text()
        rules = {path.name.removesuffix(".log") for path in (project.results / "logs").iterdir()}
        tried = {"index_cases", "check_cases", "write_preflight", "check_organs"}
        assert {rule for rule in rules if not rule.endswith(".tsv")} == tried

    project.write_config(pseudo_labels={"organs": "none"})
    project.run("labels")
    tables = (project.results / "round-1/fusion/stage2").glob("*.composition.tsv")
    sources = {row["source"] for table in tables for row in read_table(table)}
    assert "ground_truth" in sources
    assert "organ_pseudo" not in sources


def test_the_full_recipe_plans_a_job_a_shard(tmp_path):
    lines = ["case\timage\tlabel\tsplit\tsource\n"]
    (tmp_path / "volume.nii.gz").touch()
    for number in range(4050):
        split = "train" if number < 4000 else "validation"
        label = "" if 2200 <= number < 4000 else "volume.nii.gz"
        lines.append(f"FLARE23_{number:04d}\tvolume.nii.gz\t{label}\t{split}\tTr\n")
    (tmp_path / "cases.tsv").write_text("".join(lines))
    project = Project(tmp_path / "p", {"cases": str(tmp_path / "cases.tsv")})
    plan = project.run("--dry-run")
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", plan, re.M))
    assert jobs["index_cases"] == "72"
    assert jobs["fuse_tumours"] == "64"
    assert jobs["train_teacher"] == jobs["train_student"] == "1"
    assert int(jobs["total"]) < 800


def test_a_missing_case_table_is_one_line(tmp_path):
    project = Project(tmp_path, {"cases": "nowhere.tsv"})
    output = project.run("--dry-run", fails=True)
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith(
        "nowhere.tsv: there is no such case table; write one with `panorgan init"
    )


def test_a_wrong_config_is_one_line(tmp_path):
    project = Project(tmp_path, {"bad_cases": "stopp"})
    output = project.run("--dry-run", fails=True)
    assert "Traceback" not in output
    assert output.strip().endswith("config: bad_cases: 'stopp' is not known; did you mean 'stop'?")


def test_braces_in_the_paths_of_volumes_mean_nothing(tiny, tmp_path):
    """As wildcards they would have other files made, or none."""
    project = tiny.copy(tmp_path / "p")
    before = hashes(project.results, "round-1/fusion/stage2/*.tsv")
    table, place = project.folder / project.config["cases"], "da{shard}ta/{{demo} %s"
    shutil.move(project.folder / "data/demo", project.folder / place)
    table.write_text(table.read_text().replace("data/demo", place))
    project.write_config(phantom=None)
    project.run("labels", "preflight")
    entries = read_manifest(project.results / "cases/manifest.tsv", LABELS)
    assert len(entries) == 13
    assert all(place in entry.image for entry in entries)
    assert hashes(project.results, "round-1/fusion/stage2/*.tsv") == before
    assert read_table(project.results / "cases/suspects.tsv") == []


def test_freed_data_are_made_again_only_for_a_training_that_needs_them(tiny, tmp_path):
    project = tiny.copy(tmp_path / "p")
    kept = hashes(project.results, "**/model/weights.safetensors")
    said = project.run("free_preprocessed")
    assert "of preprocessed data removed" in said
    assert not list(project.results.rglob("*.b2nd*"))
    assert "Nothing to be done" in project.run()
    assert (project.results / "report.html").exists()

    project.forget_logs()
    project.write_config(student=project.config["student"] | {"seeds": [0, 1]})
    message = project.run("free_preprocessed", fails=True)
    assert "seed-1/model: not trained yet" in message
    project.forget_logs()
    project.run()
    computed = project.computed()
    assert computed["train_student"] == ["epoch 1", "epoch 2"]
    assert len(computed["preprocess_student"]) == 12
    assert not [rule for rule in computed if "teacher" in rule or "fuse" in rule]
    after = hashes(project.results, "**/model/weights.safetensors")
    assert kept.items() <= after.items()
