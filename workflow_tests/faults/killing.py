"""A run that is driven to its end through many kills, and what they cost.

What kills is `killed/sitecustomize.py`, from inside of a job; which rule's job, when, and what dies
with it is drawn here from a seed.
"""

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compare_results import compare_folders
from running import Project, hashes, tiny_project

CASE, CHECKPOINT, JOB = "the case in work", "what came after the last checkpoint", "its job's work"
LOSES = {
    CASE: (
        *("index_cases", "select_tumour_cases", "preprocess_teacher", "predict_validation_tumours"),
        *("predict_known_tumours", "predict_tumours", "predict_organs", "measure_components"),
        *("measure_known_components", "fuse_tumours", "fuse_organs", "measure_student"),
        *("preprocess_student", "predict_cases", "relabel_cases", "score_cases"),
    ),
    CHECKPOINT: ("train_teacher", "train_student"),
    JOB: (
        *("write_phantom", "check_cases", "check_organs", "deal_cases", "write_preflight"),
        *("plan_teacher", "score_teacher", "import_organ_model", "judge_components"),
        *("plan_student", "summarise_scores", "write_ablation", "write_report"),
        "free_preprocessed",
    ),
}
"""Rules by what is lost of a job that is killed. JOB: seconds, of the full recipe a minute."""

SOMETIMES = (
    *("import_organ_model", "predict_organs", "relabel_cases", "write_ablation"),
    "free_preprocessed",
)
"""Rules that a plain run has no job of."""

PLANS = "plans"
"""Folder of a project in which kills are planned, and noted by what kills."""

VICTIMS = {"job": 10, "all": 3, "snakemake": 3, "memory": 2}
"""What dies, and how often: the job; it, Snakemake and other jobs, as in a power cut; Snakemake
alone. Or there is no more memory than the job has at that moment."""

PLACES = {"seconds": 3, "log": 1, "store": 4, "draft": 2, "output": 3, "records": 1, "end": 1}
"""When, and how often: after a time; before the job has begun; before some change of its folder in
the store, of an output under its temporary name, of outputs under their own (0 or 1 of them are
there), of the records that follow the outputs; when all is done and only Snakemake doesn't know."""
MOST = {"store": 40, "draft": 8, "output": 2}
"""At most so many changes are waited for: jobs with fewer are killed at their end."""


@dataclass(frozen=True)
class Kill:
    """A kill that is planned: of which rule's job, what else dies, and when."""

    rule: str
    victim: str
    moment: tuple[str, float]

    def __str__(self) -> str:
        return f"{self.rule}: {self.victim}, {' '.join(map(str, self.moment))}"


@dataclass
class Drive:
    """What a driven run left.

    Attributes
    ----------
    happened
        For each rule what was killed, and when.
    sessions
        How often Snakemake was started.
    texts
        What each log held, at one time after the other.
    """

    happened: dict[str, str] = field(default_factory=dict)
    sessions: int = 0
    texts: dict[str, list[str]] = field(default_factory=dict)


def draw_kills(rules: Iterable[str], seed: int, seconds: Mapping[str, float]) -> list[Kill]:
    """A kill for each rule.

    Parameters
    ----------
    seconds
        What a job of a rule takes: a time is drawn from it.
    """
    chance = random.Random(seed)
    kills = []
    for rule in sorted(rules):
        (victim,) = chance.choices([*VICTIMS], [*VICTIMS.values()])
        (place,) = chance.choices([*PLACES], [*PLACES.values()])
        number: float = chance.randint(1, MOST.get(place, 1))
        if place == "seconds":
            number = chance.random() * seconds.get(rule, 1.0)
        kills.append(Kill(rule, victim, (place, number)))
    return kills


def kill_in_every_rule(undisturbed: Project, folder: Path, seed: int) -> Drive:
    """Drive a run through a kill in each of its rules, and compare it with an undisturbed one.

    Raises
    ------
    AssertionError
        If its results differ, finished work was done again or something is left.
    """
    project = tiny_project(folder)
    rules = {rule for rules in LOSES.values() for rule in rules} - {*SOMETIMES}
    driven = drive(project, draw_kills(rules, seed, job_seconds(undisturbed)))
    assert driven.happened.keys() == rules
    check(undisturbed, project, driven)
    said = project.run("--dry-run")
    assert "Nothing to be done" in said, said
    return driven


def check(undisturbed: Project, project: Project, *drives: Drive) -> None:
    """Fail unless a run that was driven has the results of an undisturbed one, and little was lost.

    Label maps, weights and scores are the same to the byte, all else but for times. A job that goes
    on computes no case again that was finished, and one epoch at most.
    """
    count, lines = compare_folders(undisturbed.results, project.results)
    assert count
    assert lines == []
    for pattern in ("[a-z]*/**/*.nii.gz", "**/weights.safetensors", "round-*/scores/**/*.csv"):
        expected = hashes(undisturbed.results, pattern)
        assert expected
        assert hashes(project.results, pattern) == expected
    for driven in drives:
        for log, again in computed_twice(driven).items():
            rule = Path(log).relative_to(project.results / "logs").parts[0]
            assert rule in LOSES[CHECKPOINT], (log, again)
            assert len(again) == 1, (log, again)
    assert left_over(project) == []


def job_seconds(project: Project) -> dict[str, float]:
    """What the longest job of each rule took in a finished run."""
    found: dict[str, float] = {}
    folder = project.results / "benchmarks"
    for path in folder.rglob("*.tsv"):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        _, row = path.read_text().splitlines()
        found[rule] = max(found.get(rule, 0.0), float(row.split("\t")[0]))
    return found


def drive(project: Project, kills: Sequence[Kill], *arguments: str) -> Drive:
    """Run the workflow again and again until it ends well, with all kills on the way.

    Parameters
    ----------
    arguments
        As those of `Project.run`.
    """
    driven = Drive()
    code, in_vain = None, 0
    while code != 0:
        if code is not None and code < 0:
            project.run("--unlock")
        code, said = session(project, kills, *arguments)
        assert "Traceback" not in said, said
        driven.sessions += 1
        before, kills = len(driven.happened), []
        _note_logs(project, driven)
        # After a kill, Snakemake itself may fail once.
        in_vain = 0 if len(driven.happened) > before else in_vain + 1
        assert code == 0 or in_vain < 3, said + project.failures()
    missed = [path.stem for path in (project.folder / PLANS).glob("*.json")]
    assert not missed, f"no job was killed of {missed}"
    _wait_for_orphans(project)
    return driven


def session(project: Project, kills: Sequence[Kill], *arguments: str) -> tuple[int, str]:
    """Start Snakemake with some further kills planned and wait for its end.

    Returns
    -------
    Its exit code, negative if it was killed, and what it said.
    """
    plans, said = project.folder / PLANS, project.folder / "said.txt"
    plans.mkdir(exist_ok=True)
    for kill in kills:
        plan = {"victim": kill.victim, "moment": list(kill.moment)}
        (plans / f"{kill.rule}.json").write_text(json.dumps(plan))
    path = [str(Path(__file__).with_name("killed")), os.environ.get("PYTHONPATH", "")]
    with open(said, "w") as file:
        process = subprocess.Popen(
            project.command("--retries=3", *arguments),
            cwd=project.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = process.wait(timeout=900)
    return code, said.read_text()


def _note_logs(project: Project, driven: Drive) -> None:
    """Keep what logs say before the next job of the same name removes them."""
    plans = project.folder / PLANS
    for path in sorted(plans.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns):
        log, when = path.read_text().splitlines()
        plan = json.loads(path.with_suffix(".done").read_text())
        driven.happened[path.stem] = f"{plan['victim']} {when}"
        if (copy := path.with_suffix(".log")).exists():
            driven.texts.setdefault(log, []).append(copy.read_text())
        path.unlink()
    for path in (project.results / "logs").rglob("*.log"):
        driven.texts.setdefault(str(path), []).append(path.read_text())


def _wait_for_orphans(project: Project) -> None:
    """Wait for the jobs that a killed Snakemake left."""
    end = time.monotonic() + 60
    while orphans := _processes_in(project.folder):
        assert time.monotonic() < end, f"jobs live on without their Snakemake: {orphans}"
        time.sleep(0.05)


def _processes_in(folder: Path) -> list[int]:
    """Processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(int(process.name))
    return found


def computed_twice(driven: Drive) -> dict[str, list[str]]:
    """Cases, or epochs, that a job had finished and a later one has computed again, by log.

    What a job says is looked at several times, and a job that only publishes leaves the log of the
    one that computed: a text that goes on or repeats the one before is of the same job.
    """
    found = {}
    for log, texts in driven.texts.items():
        jobs: list[str] = []
        for text in texts:
            if jobs and text.startswith(jobs[-1]):
                jobs[-1] = text
            else:
                jobs.append(text)
        names = [name for text in jobs for name in finished(text)]
        if again := sorted({name for name in names if names.count(name) > 1}):
            found[log] = again
    return found


def finished(text: str) -> set[str]:
    """Cases or epochs that a log says are computed."""
    return {
        *re.findall(r"^(\S+): computed$", text, re.M),
        *re.findall(r"^(epoch \d+) of", text, re.M),
    }


def left_over(project: Project) -> list[str]:
    """Temporary files of a run that nobody will remove."""
    names = (path.relative_to(project.folder) for path in project.folder.rglob("*"))
    return sorted(
        str(name) for name in names if "tmp" in name.name and name.parts[0] != ".snakemake"
    )


def kill_table() -> str:
    """The README's table of what a kill costs."""
    cases, trainings, others = ([f"`{rule}`" for rule in LOSES[kind]] for kind in LOSES)
    rows = [
        ("Killed", "at", "is lost", "the same command then"),
        ("---", "---", "---", "---"),
        (
            "a job, also for want of memory",
            f"any moment of {', '.join(cases)}",
            "the case in work",
            "computes that one, links the others",
        ),
        (
            "the same",
            f"any moment of {', '.join(trainings)}",
            "what came after the last checkpoint, 5 minutes at most",
            "goes on from there, to the same weights",
        ),
        (
            "the same",
            f"any moment of {', '.join(others)}",
            "that job's work: seconds, a minute of thousands of cases",
            "runs that job again",
        ),
        (
            "the same",
            "each step of publishing: links, folder, tables, Snakemake's own record",
            "nothing",
            "links what is there",
        ),
        (
            "Snakemake",
            "any moment of a job",
            "the same; its jobs on this machine end too, trainings with a checkpoint",
            "after `snakemake --unlock`",
        ),
        ("everything, as in a power cut", "any moment of a job", "the same", "the same"),
        (
            "a node with a training",
            "any moment",
            "what came after the last checkpoint",
            "waits until it has been silent for 5 minutes, and goes on",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
