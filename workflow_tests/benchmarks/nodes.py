"""The full recipe's jobs on clusters of several sizes: simulated, nothing is computed.

    python workflow_tests/benchmarks/nodes.py [--cases 4050] [--step 0.2] [--predict 5]

Snakemake plans the run, with the numbers of FLARE23. Each job then takes what its cases take by the
measured costs below, and starts as soon as what it reads is there and a node has room for its
threads and its GPU. Prints for 1, 8 and 64 nodes (16 cores and a GPU each) the hours of the run,
those of its longest chain of jobs, and how much of the GPUs' and cores' time nobody used; then the
chain itself, and the disk's share.

Not measured, but assumed: a training's step and a prediction on a GPU (no figure exists), and what
it takes a scheduler to start a job.
"""

import argparse
import heapq
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _workflow import planned
from planning import write_table
from running import Project

from panorgan.config.settings import Config
from panorgan.run.inputs import Run

NODES = (1, 8, 64)
CORES = 16
START_S = 10.0
"""Assumed: from a job's submission to its first line, and from its end to the next submission."""

TUMOURS = 1500 / 2200
"""Share of the labelled cases in which tumours are annotated."""

Share = dict[str, float]
ALL: Share = {"labelled": 1, "unlabelled": 1, "validation": 1, "test": 1}
LEARNT: Share = {"labelled": 1, "unlabelled": 1}
TEACHING: Share = {"labelled": TUMOURS, "validation": 1}
UNKNOWN: Share = {"labelled": 1 - TUMOURS, "unlabelled": 1}
SCORED: Share = {"validation": 1, "test": 1}


@dataclass(frozen=True)
class Stage:
    """A rule of shards.

    Attributes
    ----------
    seconds
        The processor's, of a case of 114x512x512 voxels: `scale.py --full`.
    share
        Of the cases of each kind of shard that it works on.
    files, megabytes
        What it leaves of a case.
    """

    seconds: float
    share: Share
    files: int = 0
    megabytes: float = 0.0


MAP_MB = 0.3
"""A label map: 0.01 bytes a voxel (docs/benchmarks.md)."""

STAGES = {
    "index_cases": Stage(0.87, ALL, 1, 0.05),
    "select_tumour_cases": Stage(0.13, TEACHING, 1, MAP_MB),
    "preprocess_teacher": Stage(1.28, TEACHING, 1, 51),
    "predict_validation_tumours": Stage(0, {"validation": 1}, 1, MAP_MB),
    "predict_known_tumours": Stage(0, {}),
    "predict_tumours": Stage(0, UNKNOWN, 1, MAP_MB),
    "measure_known_components": Stage(0.55, {}),
    "measure_components": Stage(1.35, UNKNOWN),
    "fuse_tumours": Stage(0.07, LEARNT, 2, 2 * MAP_MB),
    "fuse_organs": Stage(0.17, LEARNT, 2, 2 * MAP_MB),
    "measure_student": Stage(0.46, LEARNT, 1, 0.05),
    "preprocess_student": Stage(0.85, LEARNT | {"validation": 1}, 1, 16),
    "predict_cases": Stage(0, SCORED, 1, MAP_MB),
    "score_cases": Stage(0.36, SCORED),
}
JOB_INODES = 10 + 4
"""Tables, logs, benchmarks and folders of a job (`scale.py`), and Snakemake's records of it."""


def seconds_of(job: Any, recipe: Config, dealt: Counter, step: float, prediction: float) -> float:
    """How long a job works."""
    if job.rule.startswith("train_"):
        schedule = getattr(recipe, job.rule.removeprefix("train_")).training
        return schedule.epochs * (schedule.iterations + schedule.validation_iterations / 3) * step
    stage = STAGES.get(job.rule)
    if not stage:
        return 0.0
    count = cases_of(job, stage, dealt)
    return count * (prediction if job.gpu else stage.seconds)


def cases_of(job: Any, stage: Stage, dealt: Counter) -> float:
    """How many of its shard's cases a job works on."""
    shard = job.wildcards.shard
    return dealt[shard] * stage.share.get(shard.rpartition("-")[0], 0)


class Cluster:
    """Nodes of equal size, and what is free of each.

    Attributes
    ----------
    free
        Cores and GPUs of each node.
    """

    def __init__(self, nodes: int):
        self.free = [[CORES, 1] for _ in range(nodes)]

    def take(self, threads: int, gpu: bool) -> int | None:
        """The first node with so much room, which is taken."""
        for node, free in enumerate(self.free):
            if free[0] >= threads and free[1] >= gpu:
                self.give(node, -threads, -gpu)
                return node
        return None

    def give(self, node: int, threads: int, gpu: int) -> None:
        """Room of a node that is free again."""
        self.free[node][0] += threads
        self.free[node][1] += gpu


def simulate(
    jobs: Sequence[Any], needs: dict[int, list[int]], seconds: list[float], nodes: int
) -> tuple[float, float, float]:
    """Seconds of the run, and the shares of the GPUs' and of the cores' time that nobody used."""
    cluster = Cluster(nodes)
    waits = {at: len(needs[at]) for at in range(len(jobs))}
    followers: dict[int, list[int]] = {}
    for at, others in needs.items():
        for other in others:
            followers.setdefault(other, []).append(at)
    ready = [at for at, count in waits.items() if not count]
    running: list[tuple[float, int, int]] = []
    now = 0.0
    while ready or running:
        waiting = []
        for at in ready:
            node = cluster.take(jobs[at].threads, jobs[at].gpu)
            if node is None:
                waiting.append(at)
            else:
                heapq.heappush(running, (now + START_S + seconds[at], at, node))
        ready = waiting
        now, at, node = heapq.heappop(running)
        cluster.give(node, jobs[at].threads, jobs[at].gpu)
        for other in followers.get(at, []):
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    gpu = sum(seconds[at] for at, job in enumerate(jobs) if job.gpu)
    cores = sum(seconds[at] * job.threads for at, job in enumerate(jobs))
    return now, 1 - gpu / (nodes * now), 1 - cores / (nodes * CORES * now)


def longest(needs: dict[int, list[int]], seconds: list[float]) -> tuple[float, list[int]]:
    """Seconds of the longest chain of jobs, and the chain."""
    ends: list[tuple[float, int | None]] = []
    for at, own in enumerate(seconds):  # each after those that it needs
        before = max(((ends[other][0], other) for other in needs[at]), default=(0.0, None))
        ends.append((before[0] + START_S + own, before[1]))
    last: int | None = max(range(len(ends)), key=lambda at: ends[at][0])
    whole, chain = ends[last][0], []
    while last is not None:
        chain.append(last)
        last = ends[last][1]
    return whole, chain[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=4050)
    parser.add_argument("--step", type=float, default=0.2, help="s of a training step, assumed")
    parser.add_argument("--predict", type=float, default=5.0, help="s of a prediction, assumed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = write_table(Path(name), arguments.cases)
        project = Project(Path(name, "project"), {"run": "full", "cases": str(table)})
        os.chdir(project.folder)
        jobs, needs = planned()
        run = Run(project.config)
        dealt = Counter({shard: len(cases) for shard, cases in run.cases.items()})
        seconds = [
            seconds_of(job, run.config, dealt, arguments.step, arguments.predict) for job in jobs
        ]
        os.chdir("/")
    print(f"{arguments.cases} cases, {len(jobs)} jobs; a training step {arguments.step} s,", end="")
    print(f" a prediction {arguments.predict} s")
    print(
        "| nodes | hours | longest chain, hours | GPUs idle | cores idle |\n|---|---|---|---|---|"
    )
    whole, chain = longest(needs, seconds)
    for nodes in NODES:
        took, gpu, cores = simulate(jobs, needs, seconds, nodes)
        row = (f"{took / 3600:.1f}", f"{whole / 3600:.1f}", f"{gpu:.0%}", f"{cores:.0%}")
        print(f"| {nodes} | {' | '.join(row)} |")
    print("longest chain:", ", ".join(f"{jobs[at].rule} {seconds[at]:.0f} s" for at in chain))
    print_disk(jobs, dealt)


def print_disk(jobs: Sequence[Any], dealt: Counter) -> None:
    """How much the run leaves, and what most of it is."""
    inodes, megabytes = JOB_INODES * len(jobs), Counter()
    for job in jobs:
        if stage := STAGES.get(job.rule):
            count = cases_of(job, stage, dealt)
            inodes += count * stage.files
            megabytes[job.rule] += count * stage.megabytes
    parts = ", ".join(f"{rule} {size / 1000:.0f}" for rule, size in megabytes.most_common(2))
    print(f"disk: {sum(megabytes.values()) / 1000:.0f} GB, of which {parts}; ", end="")
    print(f"{inodes:,.0f} inodes, {inodes / sum(dealt.values()):.1f} a case")


if __name__ == "__main__":
    main()
