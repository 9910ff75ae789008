"""kill -9 in every rule, at moments drawn from one seed: nothing finished is lost."""

import re
import shutil
from pathlib import Path

import pytest
from fault_rows import fault_rows
from killing import (
    LOSES,
    SOMETIMES,
    Kill,
    check,
    draw_kills,
    drive,
    kill_in_every_rule,
    kill_table,
    session,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.workflow
@pytest.mark.fault("killed-job")
@pytest.mark.fault("killed-snakemake")
def test_killed_once_in_every_rule(tiny, tmp_path, seed):
    print(kill_in_every_rule(tiny, tmp_path / "p", seed))


@pytest.mark.workflow
def test_killed_in_the_rules_that_only_some_runs_have(tiny, tmp_path, seed):
    undisturbed, killed = tiny.copy(tmp_path / "undisturbed"), tiny.copy(tmp_path / "killed")
    model = tmp_path / "organ_model"
    shutil.copytree(tiny.results / "round-1/student/stage2/seed-0/model", model)
    relabelled = {"rounds": 2, "folds": 1}
    runs = [
        (["ablation"], ["write_ablation"], {"ablation": {"arms": ["stage2"], "seeds": [0]}}),
        (["--until", "relabel_cases"], ["relabel_cases"], relabelled),
        (
            ["--until", "predict_organs"],
            ["import_organ_model", "predict_organs"],
            {"rounds": 1, "pseudo_labels": {"organs": str(model)}},
        ),
        (["free_preprocessed"], ["free_preprocessed"], {"pseudo_labels": {"organs": "cases"}}),
    ]
    drives = []
    for arguments, rules, changes in runs:
        for project in (undisturbed, killed):
            project.write_config(**changes)
        undisturbed.run(*arguments)
        drives.append(drive(killed, draw_kills(rules, seed, {}), *arguments))
    assert {rule for driven in drives for rule in driven.happened} == {*SOMETIMES}
    check(undisturbed, killed, *drives)


@pytest.mark.workflow
@pytest.mark.fault("killed-job")
@pytest.mark.fault("killed-snakemake")
def test_what_a_user_sees_of_a_kill(tiny, tmp_path):
    """Of a job that is killed again and again, and after Snakemake was killed."""
    project = tiny.copy(tmp_path / "p")
    for place in ("round-1/fusion", ".store/round-1/fusion"):
        shutil.rmtree(project.results / place)
    project.forget_logs()
    kill = Kill("fuse_tumours", "job", ("store", 9))
    code, said = session(project, [kill], "labels", "--retries", "0")
    assert code == 1
    fault_rows()["killed-job"].check(said)
    code, said = session(project, [Kill("fuse_organs", "all", ("records", 1))], "labels")
    assert code < 0
    fault_rows()["killed-snakemake"].check(project.run("labels", fails=True))
    tables = [*(project.results / "round-1/fusion/stage2").glob("*labelled-00.tsv")]
    assert len(tables) == 2
    project.forget_logs()
    project.run("--unlock")
    project.run("labels")
    assert "fuse_organs" not in project.computed()
    check(tiny, project)


def test_the_kill_table_knows_every_rule_and_stands_in_the_readme():
    sources = [path.read_text() for path in (REPOSITORY / "rules").glob("*.smk")]
    names = re.findall(r"^ *(?:use )?rule (?:\w+ as )?(\w+)", "".join(sources), re.M)
    assert sorted(names) == sorted(rule for rules in LOSES.values() for rule in rules)
    assert kill_table() in (REPOSITORY / "README.md").read_text(encoding="utf-8")
