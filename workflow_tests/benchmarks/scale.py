"""What a run of many cases costs beside the work itself: processor, memory, inodes.

    python workflow_tests/benchmarks/scale.py [--cases 4050] [--keep FOLDER]
    python workflow_tests/benchmarks/scale.py --full --cases 12 --shards 1 1 1

Snakemake plans the whole workflow for so many small cases, in the proportions of FLARE23; then each
of its jobs runs here, one after another, its rule's own script in a process of its own. Networks
are left out: instead of a training a model's folder with made-up curves is written, and predictions
are ready label maps, the truth moved by a voxel, published as the rules publish theirs. All else is
real: index, manifest, selection, plans, preprocessing, components, gate, fusion, histograms, scores
and the report. With `--full` volumes are as large as a CT and grids those of the full recipe: what
`nodes.py` reckons with.

Left out is what Snakemake adds: its scheduling, the start of a Python and imports for each job, and
its own records (`.snakemake`).

A line a rule: jobs; cases that were computed; seconds and processor seconds of a job; of a case
processor milliseconds of the work itself, and those beside it: tables, hashes, store, publishing;
megabytes by which its largest job outgrew the process that started it. At the end the inodes of the
results: files, each once whatever its names, and folders.
"""

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from _workflow import planned
from running import TINY, Project

from panorgan.cases.manifest import read_manifest
from panorgan.cases.selection import TUMOUR, WANTED
from panorgan.cases.table import Case, write_cases
from panorgan.config.labels import load_labels
from panorgan.fusing.components import component_rows, find_components
from panorgan.io.plots import draw_curves
from panorgan.io.tables import write_table
from panorgan.io.volumes import new_volume, write_image, write_label
from panorgan.io.writing import write_text
from panorgan.run import job as job_module
from panorgan.run.job import shard_output
from panorgan.run.store import Result, Work, run_shard
from panorgan.stages import LABEL, cases, components, fusion, teacher, training
from panorgan.stages import prediction as predictions

# What scripts import when they come to it: here a job shall find it in memory.
for module in ("nnunet.case_file", "scoring.evaluation", "report.page", "report.preflight"):
    import_module(f"panorgan.{module}")

LABELS = load_labels()
TUMOUR_VALUE = LABELS.tumour.value


@dataclass(frozen=True)
class Grid:
    """Voxels and mm of the volumes, (z, y, x)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


SMALL = Grid((20, 32, 44), (9.0, 7.0, 7.0))
FULL = Grid((114, 512, 512), (2.5, 0.78, 0.78))
SHARE = {"tumour": 1500, "organs": 700, "unlabelled": 1800, "validation": 50}
"""Of 4,050 cases: with annotated tumours, with some organs, without a label, to be scored."""
ANNOTATED = {"tumour": "liver,tumour", "organs": "liver,right_kidney,spleen,pancreas"}


def truth(number: int, grid: Grid) -> np.ndarray:
    """A block for each organ, and a tumour in the liver of most; no two cases are equal."""
    label = np.zeros(SMALL.shape, np.uint8)
    for value in range(1, 14):
        row, column = divmod(value - 1, 5)
        z, y, x = 3 + number % 3, 2 + 10 * row, 2 + 8 * column
        label[z : z + 12 - 2 * row, y : y + 8, x : x + 6] = value
    if number % 4:
        label[6:9, 4:7, 4:6] = TUMOUR_VALUE
    nearest = (np.arange(n) * own // n for n, own in zip(grid.shape, SMALL.shape, strict=True))
    label = label[np.ix_(*nearest)]
    label.reshape(-1)[number] = 1
    return label


def write_data(folder: Path, count: int, grid: Grid) -> list[Case]:
    """Images, partial labels and organ pseudo-labels of so many cases."""
    folder.mkdir(parents=True)
    total = sum(SHARE.values())
    kinds = [kind for kind, share in SHARE.items() for _ in range(max(2, share * count // total))]
    noise = 10 * np.random.default_rng(0).standard_normal(grid.shape, np.float32)
    like = new_volume(np.zeros(grid.shape, np.int16), grid.spacing)
    made = []
    for number, kind in enumerate(kinds):
        full, name = truth(number, grid), f"{kind}_{number:06d}"
        files = {part: folder / f"{name}_{part}.nii.gz" for part in ("image", "label", "organs")}
        hu = np.where(full > 0, 60 + 8 * full.astype(np.int16), -90) + np.roll(noise, number)
        write_image(files["image"], hu.astype(np.int16), like)
        known = LABELS.parse(ANNOTATED.get(kind, "all"))
        values = [label.value for label in known]
        if kind == "unlabelled":
            files["label"] = ""
        else:
            write_label(files["label"], np.where(np.isin(full, values), full, 0), like)
        if kind == "validation":
            files["organs"] = ""
        else:
            organs = np.roll(np.where(full == TUMOUR_VALUE, 1, full), 1, axis=2)
            write_label(files["organs"], organs.astype(np.uint8), like)
        split = "validation" if kind == "validation" else "train"
        annotated = "" if kind == "unlabelled" else ANNOTATED.get(kind, "all")
        places = (str(files[part]) for part in ("image", "label"))
        made.append(Case(name, *places, split, kind, "", annotated, str(files["organs"])))
    return made


def predict(job: Any) -> None:
    """Ready label maps in place of a network's, published as `predict_cases` does."""
    wanted = WANTED[job.params.wanted]
    entries = {e.case: e for e in read_manifest(job.input.manifest, LABELS) if wanted(e, LABELS)}
    details = [name for name in ("efficiency", "components") if job.output.get(name)]
    of_tumours = "tumours" in job.params.wanted
    columns = {"efficiency": predictions.EFFICIENCY, "components": components.COLUMNS}

    def compute(name: str, folder: Path) -> Result:
        image = entries[name].read_image()
        full = np.roll(truth(int(name.rpartition("_")[2]), job.grid), 1, axis=1)
        if of_tumours:
            full[full != TUMOUR_VALUE] = 0
        found = {"efficiency": [{"device": "cpu", "engine": "none", "total_s": 0.1}]}
        if "components" in details:
            names = {label.value: label.name for label in LABELS.labels}
            found["components"] = component_rows(
                find_components(full), image.array, image.grid, names
            )
        label = (full > 0).astype(np.uint8) * TUMOUR if of_tumours else full
        write_label(folder / (name + LABEL), label, image)
        return Result(details=found)

    predictions.run_shard(
        [Work(name, {}) for name in entries],
        compute,
        shard_output(job),
        parameters=str(job.output.table),
        details={name: columns[name] for name in details},
    )


def train(job: Any) -> None:
    """A model's folder as a report reads it."""
    folder = Path(job.output.model)
    folder.mkdir()
    names = [LABELS.tumour_name] if "teacher" in job.rule else LABELS.names
    card = {"checksum": "c" * 32, "classes": list(names), "parameters": 1, "epochs": 2}
    card |= {"versions": {"torch": "0"}, "hours": 0.5, "precision": "fp32"}
    write_text(folder / "card.json", json.dumps(card))
    columns = ["epoch", "train_loss", "validation_loss", *(f"dice_{name}" for name in names)]
    columns += ["learning_rate", "seconds"]
    epochs = [dict.fromkeys(columns, 0.5) | {"epoch": epoch} for epoch in (1, 2)]
    lines = [columns, *(epoch.values() for epoch in epochs)]
    write_text(folder / "progress.csv", "".join(",".join(map(str, line)) + "\n" for line in lines))
    (folder / "curve.png").write_bytes(draw_curves(epochs, LABELS))
    row = {"model": str(folder), "checksum": card["checksum"], "key": "k"}
    write_table(job.output.table, list(row), [row])


INSTEAD = {
    **dict.fromkeys(("train_teacher", "train_student"), train),
    **dict.fromkeys(
        (
            "predict_tumours",
            "predict_validation_tumours",
            "predict_known_tumours",
            "predict_cases",
        ),
        predict,
    ),
}
"""What is done instead of a rule's script."""


class Clock:
    """How many cases a process has computed, and the processor seconds of that alone."""

    def __init__(self):
        self.cases, self.seconds = 0, 0.0

    def run_shard(self, work: Any, compute: Callable, *arguments: Any, **named: Any) -> int:
        """The store's, with a look at the clock around each case."""

        def timed(name: str, folder: Path) -> Result:
            before = time.process_time()
            result = compute(name, folder)
            self.seconds += time.process_time() - before
            self.cases += 1
            return result

        return run_shard(work, timed, *arguments, **named)


@dataclass
class Cost:
    """What a job took: seconds, processor seconds, those of the cases alone, megabytes."""

    rule: str
    cases: int
    seconds: float
    cpu: float
    work: float
    megabytes: float


def memory(what: str) -> float:
    """Megabytes of this process's memory, VmRSS or VmHWM."""
    return int(Path("/proc/self/status").read_text().partition(what + ":")[2].split()[0]) / 1024


def measured(job: Any) -> Cost:
    """Run a job in a process of its own; what it took."""
    for path in (*job.output, *job.log):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        if os.waitpid(child, 0)[1] or not said:
            sys.exit(f"{job.rule} failed\n{Path(job.log[0]).read_text()}")
        return Cost(**json.loads(said))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begun, clock, before = time.perf_counter(), Clock(), memory("VmRSS")
        for module in (cases, components, fusion, predictions, teacher, training):
            module.run_shard = clock.run_shard
        job_module.PARENT = os.getppid()
        if instead := INSTEAD.get(job.rule):
            with job_module.job(job):
                instead(job)
        else:
            exec(compile(job.script.read_text(), job.script, "exec"), {"snakemake": job})
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cost = Cost(
            job.rule,
            clock.cases,
            time.perf_counter() - begun,
            usage.ru_utime + usage.ru_stime,
            clock.seconds,
            memory("VmHWM") - before,
        )
        os.write(writing, json.dumps(vars(cost)).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def inodes(folder: Path) -> Iterator[tuple[str, str]]:
    """Of each file below a folder, one name, and of each folder: where it is, what it is."""
    seen = set()
    for root, folders, files in os.walk(folder):
        place = "store" if ".store" in Path(root).parts else "results"
        yield from ((place, "folders") for _ in folders)
        for name in files:
            status = os.lstat(os.path.join(root, name))
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                yield place, "one name" if status.st_nlink == 1 else "in both"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=4050)
    parser.add_argument("--shards", type=int, nargs=3, default=(36, 28, 4), metavar="N")
    parser.add_argument("--full", action="store_true", help="volumes as large as a CT")
    parser.add_argument("--keep", type=Path, help="a new folder for all files; they stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name, "project")
        labelled, unlabelled, validation = arguments.shards
        shards = {"labelled": labelled, "unlabelled": unlabelled, "validation": validation}
        grid = FULL if arguments.full else SMALL
        base = {name: TINY[name] for name in ("run", "cases")} if arguments.full else TINY
        project = Project(folder, base | {"phantom": None, "shards": shards})
        os.chdir(folder)
        begun = time.perf_counter()
        made = write_data(Path("data").absolute(), arguments.cases, grid)
        write_cases("config/tiny_cases.tsv", made)
        drawn = time.perf_counter()
        jobs, _ = planned()
        now = time.perf_counter()
        print(f"{len(made)} cases drawn in {drawn - begun:.0f} s; ", end="")
        print(f"{len(jobs)} jobs planned in {now - drawn:.1f} s", flush=True)
        for job in jobs:
            job.grid = grid
        gc.freeze()
        costs = [measured(job) for job in jobs]
        print_costs(costs, time.perf_counter() - now)
        print_inodes(project.results, len(made), len(jobs))


def print_costs(costs: list[Cost], seconds: float) -> None:
    """A line a rule, in the order in which the rules began."""
    print(
        f"{'rule':27} {'jobs':>5} {'cases':>6} {'s a job':>8} {'CPU s':>7}"
        f" {'work, ms':>9} {'beside, ms':>10} {'MB':>6}"
    )
    for rule in dict.fromkeys(cost.rule for cost in costs):
        of_rule = [cost for cost in costs if cost.rule == rule]
        jobs, count = len(of_rule), sum(cost.cases for cost in of_rule)
        wall, cpu, work = (
            sum(getattr(cost, name) for cost in of_rule) for name in ("seconds", "cpu", "work")
        )
        row = f"{rule:27} {jobs:5} {count:6} {wall / jobs:8.2f} {cpu / jobs:7.2f}"
        if count:
            row += f" {1000 * work / count:9.1f} {1000 * (cpu - work) / count:10.1f}"
        else:
            row += " " * 21
        print(row, f"{max(cost.megabytes for cost in of_rule):6.0f}")
    cpu = sum(cost.cpu for cost in costs)
    print(f"all: {len(costs)} jobs, {seconds:.0f} s, {cpu:.0f} s of the processor")


def print_inodes(results: Path, count: int, jobs: int) -> None:
    """How many files and folders there are, and where."""
    found = Counter(inodes(results))
    total = sum(found.values())
    print(f"{total:,} inodes: {total / count:.2f} a case, of which")
    for (place, kind), number in found.most_common():
        each = f"{number / count:.2f} a case, {number / jobs:.1f} a job"
        print(f"  {place}, {kind}: {number:,} ({each})")


if __name__ == "__main__":
    main()
