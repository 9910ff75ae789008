"""What jobs take of memory and time, beside what they ask a scheduler for.

    python workflow_tests/benchmarks/needs.py [--slices 1000] [--out DIR]

Runs the whole workflow, with tiny networks, on five synthetic CTs of 512×512 voxels and so many
slices, and prints for each rule the job that came nearest to its limits: the peak memory of its
script as it says itself, and its seconds, against `panorgan.run.needs`. Trainings are left out:
networks as small say nothing of those of a recipe.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from running import TINY, tiny_project

from panorgan.io.tables import read_table
from panorgan.run.layout import benchmark_of
from panorgan.run.needs import SNAKEMAKE_MB, TRAININGS

CASES = ("liver_1", "organs_1", "unlabelled_1", "validation_1", "test_1")
JOB = re.compile(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", re.M)


def measure(folder: Path, slices: int, cores: int = 2) -> list[dict[str, float | str]]:
    """A row for each job that was not a training: rule, asked_mb, took_mb, asked_s, took_s."""
    spacing = [max(0.8, 240 / slices), 0.8, 0.8]  # a trunk needs some length
    project = tiny_project(
        folder,
        CASES,
        phantom={"seed": 1, "shape": [slices, 512, 512], "spacing_mm": spacing},
        teacher=TINY["teacher"] | {"spacing_mm": spacing[1:]},
        student=TINY["student"] | {"spacing_mm": [2.5, 0.8, 0.8]},
    )
    command = [*project.command("--cores", str(cores))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr + project.failures())
    rows = []
    for rule, text in JOB.findall(done.stderr):
        if rule in TRAININGS or not (log := re.search(r"^    log: (\S+)", text, re.M)):
            continue
        (took,) = read_table(folder / benchmark_of(log[1]))
        asked = dict(re.findall(r"\b(mem_mb|runtime)=(\d+)", text))
        rows.append(
            {
                "rule": rule,
                "asked_mb": float(asked["mem_mb"]),
                "took_mb": float(took["peak_mb"]),
                "asked_s": 60 * float(asked["runtime"]),
                "took_s": float(took["s"]),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--out", type=Path, help="keep the run there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure((arguments.out or Path(folder)) / "project", arguments.slices)
    print("| rule | peak MB | asked MB | without Snakemake, times the peak | s | asked min |")
    print("|---|---|---|---|---|---|")
    for rule in sorted({row["rule"] for row in rows}):
        jobs = [row for row in rows if row["rule"] == rule]
        by_memory = max(jobs, key=lambda row: row["took_mb"] / row["asked_mb"])
        by_time = max(jobs, key=lambda row: row["took_s"] / row["asked_s"])
        margin = (by_memory["asked_mb"] - SNAKEMAKE_MB) / by_memory["took_mb"]
        print(
            f"| {rule} | {by_memory['took_mb']:,.0f} | {by_memory['asked_mb']:,.0f} | {margin:.1f} "
            f"| {by_time['took_s']:,.1f} | {by_time['asked_s'] / 60:,.0f} |"
        )


if __name__ == "__main__":
    main()
