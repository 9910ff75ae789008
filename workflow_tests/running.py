"""Projects of their own for tests that run the real workflow through Snakemake."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from panorgan.cases.phantom import phantom_cases, write_case
from panorgan.cases.table import read_cases, write_cases
from panorgan.config.labels import load_labels
from panorgan.run.journal import Finished, Journal

REPOSITORY = Path(__file__).parents[1]
TOP_LEVEL = ("Snakefile", "config", "rules", "scripts", "envs", "profiles")
TINY_CASES = (
    *("liver_1", "liver_2", "liver_3", "kidneys_1", "kidneys_2", "four_1", "organs_1", "organs_2"),
    *("unlabelled_1", "unlabelled_2", "validation_1", "validation_2", "test_1"),
)
TRAINING = {
    "epochs": 2,
    "iterations": 2,
    "validation_iterations": 1,
    "optimizer": {"name": "adamw", "learning_rate": 0.003, "weight_decay": 0.01},
    "precision": "fp32",
    "checkpoint_every_s": 0.0,
    "threads": 1,
    "workers": 0,
}
TINY = {
    "run": "tiny",
    "cases": "config/tiny_cases.tsv",
    "phantom": {"seed": 1, "shape": [20, 32, 44], "spacing_mm": [9.0, 7.0, 7.0]},
    "shards": {"labelled": 1, "unlabelled": 1, "validation": 1, "test": 1},
    "teacher": {
        "spacing_mm": [7.0, 7.0],
        "patch_size": [32, 32],
        "network": {
            "features": [4, 8, 16],
            "kernel_sizes": [[3, 3]] * 3,
            "strides": [[1, 1], [2, 2], [2, 2]],
        },
        "training": TRAINING,
    },
    "student": {
        "spacing_mm": [9.0, 7.0, 7.0],
        "patch_size": [8, 32, 32],
        "batch_size": 1,
        "network": {
            "features": [4, 8, 16],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        },
        "training": TRAINING,
    },
    "prediction": {"threads": 1, "precision": "fp32"},
}


class Project:
    """A folder with the workflow in it, as a user's checkout."""

    def __init__(self, folder: Path, config: dict):
        self.folder = folder
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOP_LEVEL:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
            else:
                shutil.copy2(source, folder / name)
        self.write_config()

    def write_config(self, **changes: object) -> None:
        """Write the config file that every run of this project uses."""
        self.config = self.config | changes
        (self.folder / "config/run.yaml").write_text(yaml.safe_dump(self.config))

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.config["run"]

    @classmethod
    def there(cls, folder: Path, config: dict) -> "Project":
        """A project that another process has made."""
        project = object.__new__(cls)
        project.folder, project.config = folder, dict(config)
        return project

    def copy(self, folder: Path) -> "Project":
        """The same project, with all that it has made, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return Project.there(folder, self.config)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs this project's workflow."""
        return [
            *(sys.executable, "-m", "snakemake", *arguments),
            *("--cores", "2", "--configfile", "config/run.yaml"),
        ]

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start the workflow in a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add_case(self, name: str) -> None:
        """Draw another case of the phantom and add it to the table, as new data of a user's."""
        table = self.folder / self.config["cases"]
        cases = read_cases(table, load_labels())
        drawn = next(case for case in phantom_cases(self.folder / "data/demo") if case.case == name)
        write_case(drawn, **self.config["phantom"])
        write_cases(table, [*cases, drawn])
        self.write_config(phantom=None)

    def run(self, *arguments: str, fails: bool = False) -> str:
        """Run the workflow to its end; its output."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500,
        )
        assert (done.returncode != 0) == fails, done.stdout + self.failures()
        return done.stdout

    def failures(self) -> str:
        """The logs of the jobs that recorded a problem."""
        logs = self.results / "logs"
        return "".join(
            f"\n--- {path}\n{path.read_text()}"
            for problems in logs.rglob("*.problems.tsv")
            for path in [problems.with_name(problems.name.replace(".problems.tsv", ".log"))]
            if path.exists()
        )

    def finished(self, stage: str) -> dict[str, Finished]:
        """What the store has of a stage's cases, by case and key; jobs may be at work."""
        return {
            f"{entry.case}.{entry.key}": entry
            for journal in (self.results / ".store" / stage).glob("*/journal.jsonl")
            for entry in Journal(journal.parent).entries.values()
        }

    def forget_logs(self) -> None:
        """Remove the logs, so that `computed` counts from here on."""
        for place in ("logs", ".store/logs"):
            shutil.rmtree(self.results / place, ignore_errors=True)

    def computed(self) -> dict[str, list[str]]:
        """Cases (or epochs) that were computed since the logs were removed, by rule."""
        found: dict[str, list[str]] = {}
        for log in sorted((self.results / "logs").rglob("*.log")):
            rule = log.relative_to(self.results / "logs").parts[0].removesuffix(".log")
            text = log.read_text()
            names = re.findall(r"^(\S+): computed$", text, re.M)
            names += re.findall(r"^(epoch \d+) of", text, re.M)
            if names:
                found.setdefault(rule, []).extend(names)
        return {rule: sorted(names) for rule, names in found.items()}


def tiny_project(folder: Path, cases: Sequence[str] = TINY_CASES, **changes: object) -> Project:
    """A project on a few small phantoms that runs in about a minute."""
    project = Project(folder, TINY | changes)
    chosen = [case for case in phantom_cases(folder / "data/demo") if case.case in cases]
    write_cases(folder / "config/tiny_cases.tsv", chosen)
    return project


def hashes(folder: Path, pattern: str) -> dict[str, bytes]:
    """Contents of files by path, to compare two runs byte by byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}
