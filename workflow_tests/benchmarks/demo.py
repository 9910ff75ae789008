"""The demo's whole workflow through Snakemake, from nothing to its report: seconds and scores.

It runs in a copy of this checkout, with the Python that runs this script and on the GPU if there is
one. Prints the seconds of the whole and of the trainings, which device and precision they had, and
the student's scores on the validation cases. `--tiny` runs the tests' few small phantoms instead,
whose scores mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

WORKFLOW_TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(WORKFLOW_TESTS))

from running import Project, tiny_project  # noqa: E402

CARD = ("device", "precision", "augment_on", "setting")


def project(folder: Path, tiny: bool) -> Project:
    """The demo in a folder of its own."""
    if tiny:
        return tiny_project(
            folder, shards={"labelled": 1, "unlabelled": 1, "validation": 1, "test": 1}
        )
    return Project(folder, yaml.safe_load((WORKFLOW_TESTS.parent / "config/demo.yaml").read_text()))


def run(demo: Project, cores: int) -> float:
    """Seconds of the workflow; what it says goes to standard error."""
    command = [sys.executable, "-m", "snakemake", "--quiet", "rules", "--cores", str(cores)]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--configfile", "config/run.yaml"], cwd=demo.folder, stdout=sys.stderr
    )
    if done.returncode:
        sys.exit(f"the workflow failed{demo.failures()}")
    return time.perf_counter() - start


def figures(demo: Project, seconds: float, cores: int) -> dict[str, Any]:
    """Seconds, what the trainings say of themselves, and scores in percent."""
    trainings = {
        "teacher": demo.results / "teacher/seed-0/model/card.json",
        "student": demo.results / "round-1/student/stage2/seed-0/model/card.json",
    }
    scores = demo.results / "round-1/scores/stage2/seed-0/validation/summary.json"
    summary = json.loads(scores.read_text())
    parts = {"organs": summary["organs"], "tumour": summary["tumour"]["positive"]}
    return {
        "seconds": seconds,
        "cores": cores,
        "trainings": {name: _card(path) for name, path in trainings.items()},
        "scores": {
            name: {key: 100 * part[key] for key in ("dsc", "nsd")} for name, part in parts.items()
        },
    }


def _card(path: Path) -> dict[str, Any]:
    card = json.loads(path.read_text())
    return {key: card[key] for key in CARD} | {"seconds": 3600 * card["hours"]}


def report(found: Mapping[str, Any]) -> None:
    print(f"the whole workflow: {found['seconds']:.0f} s with {found['cores']} cores")
    for name, card in found["trainings"].items():
        how = ", ".join(card[key] for key in CARD)
        print(f"{name}'s training: {card['seconds']:.0f} s ({how})")
    for name, scores in found["scores"].items():
        print(f"{name}: DSC {scores['dsc']:.1f}, NSD {scores['nsd']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--tiny", action="store_true", help="a run of a minute instead")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo = project(Path(folder), arguments.tiny)
        found = figures(demo, run(demo, arguments.cores), arguments.cores)
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
