"""What the report is of, read: students and their scores, gates, fused labels."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from panorgan.cases.selection import TUMOUR
from panorgan.cases.table import EVALUATED
from panorgan.config.labels import Labels
from panorgan.config.registry import GATED, TEACHER, VARIANTS, first_stage
from panorgan.config.settings import Arm, Config, fused_labels, main_arm, origins, students
from panorgan.io.tables import read_table
from panorgan.report.frames import DECISIONS, EFFICIENCY, GATE_CASES
from panorgan.run.layout import Layout
from panorgan.run.store import ShardReader
from panorgan.scoring.scores import read_lesions, read_scores
from panorgan.stages.components import Round
from panorgan.stages.pseudo_labels import OrganLabels

SYNTHETIC = "synthetic data, not for clinical use"


@dataclass(frozen=True)
class Student:
    """One trained student and what was measured of it; scores and lesions by split."""

    arm: Arm
    model: Path
    table: Path
    scores: Mapping[str, pd.DataFrame]
    summaries: Mapping[str, dict[str, Any]]
    lesions: Mapping[str, pd.DataFrame]
    predictions: ShardReader
    efficiency: pd.DataFrame

    @property
    def title(self) -> str:
        return self.arm.title

    @property
    def scored(self) -> list[str]:
        """The splits in which anything is known, so that there are scores."""
        return [
            split
            for split in EVALUATED
            if any(found["cases"] for found in self.summaries[split]["classes"].values())
        ]

    @property
    def shown(self) -> str:
        """The split of which cases are shown: the first scored one."""
        return (self.scored or EVALUATED)[0]


@dataclass(frozen=True)
class Gate:
    """What a round's gate decided on the pseudo-labels of `origin`: the teacher, or a variant."""

    round: int
    origin: str
    summary: Mapping[str, Any]
    cases: pd.DataFrame
    decisions: pd.DataFrame
    pseudo_labels: Round = field(repr=False)

    @property
    def name(self) -> str:
        """A part of links."""
        return f"round-{self.round}-{self.origin}"

    def used(self, arms: Iterable[Arm]) -> bool:
        """Whether any of these students learnt by these decisions."""
        gated = any((arm.round, arm.variant) == (self.round, GATED) for arm in arms)
        return gated and self.origin in (TEACHER, GATED)


@dataclass(frozen=True)
class Fusion:
    """The tables of one round's fused labels, a path a shard."""

    round: int
    labels: str
    composition: list[str]
    conflicts: list[str]
    specks: list[str]
    reader: ShardReader

    @property
    def title(self) -> str:
        if self.round == 1:
            return VARIANTS[self.labels].title
        later = VARIANTS[self.labels].later_title or VARIANTS[self.labels].title
        return f"Round {self.round}, {later.lower()}"


def read_students(config: Config, paths: Layout, evaluated: Sequence[str]) -> list[Student]:
    """Every student that is a result of the run, with what it predicted in some shards."""
    found = []
    for arm in students(config):

        def by_split(name: str, read: Callable[[str], Any], arm: Arm = arm) -> dict[str, Any]:
            return {split: read(paths.results(name, *arm.place, split)) for split in EVALUATED}

        model = paths.student_model(*arm.place)
        predictions = [paths.predictions(*arm.place, shard) for shard in evaluated]
        found.append(
            Student(
                arm=arm,
                model=Path(model),
                table=Path(model + ".tsv"),
                scores=by_split("cases.csv", read_scores),
                summaries=by_split("summary.json", read_json),
                lesions=by_split("lesions.csv", read_lesions),
                predictions=_reader(predictions),
                efficiency=EFFICIENCY.read(*_ended(predictions, ".efficiency.tsv")),
            )
        )
    return found


def main_student(found: Sequence[Student]) -> Student:
    """The one of the `main_arm`."""
    arm = main_arm(student.arm for student in found)
    return next(student for student in found if student.arm == arm)


def read_gates(
    config: Config, paths: Layout, training: Sequence[str], labels: Labels
) -> list[Gate]:
    """The gate of every round and origin, the first round first."""

    def maps(kind: str, number: int) -> ShardReader:
        return _reader([paths.pseudo_labels(kind, number, shard) for shard in training])

    def judged(origin: str, number: int) -> Round:
        if number > 1:
            found = maps(origin, number)
            return Round(found, OrganLabels(found), labels.tumour.value)
        own = config.pseudo_labels.predicted
        return Round(maps("tumour", 1), OrganLabels(maps("organs", 1) if own else None), TUMOUR)

    return [
        Gate(
            round=number,
            origin=origin,
            summary=read_json(paths.gate("summary.json", origin, number)),
            cases=GATE_CASES.read(paths.gate("cases.tsv", origin, number)),
            decisions=DECISIONS.read(paths.gate("decisions.tsv", origin, number)),
            pseudo_labels=judged(origin, number),
        )
        for origin, number in origins(config)
    ]


def read_fusions(
    config: Config, paths: Layout, shards: Mapping[str, Sequence[str]]
) -> list[Fusion]:
    """All fused labels of the run, by round and in the order in which they are made."""
    order = list(VARIANTS)
    fusions = []
    for number, labels in sorted(
        fused_labels(config), key=lambda one: (one[0], order.index(one[1]))
    ):
        names = shards[labels]
        places = [paths.fusion(labels, number, shard) for shard in names]
        # Stage 2 goes on from stage 1, which has set them to background.
        first = [paths.fusion(first_stage(labels, number), number, shard) for shard in names]
        fusions.append(
            Fusion(
                round=number,
                labels=labels,
                composition=_ended(places, ".composition.tsv"),
                conflicts=_ended(places, ".conflicts.tsv"),
                specks=_ended(first, ".specks.tsv"),
                reader=_reader(places),
            )
        )
    return fusions


def _ended(places: Sequence[str], end: str) -> list[str]:
    return [place + end for place in places]


def _reader(places: Sequence[str]) -> ShardReader:
    return ShardReader(_ended(places, ".tsv"), places)


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_rows(tables: Iterable[str | Path]) -> list[dict[str, str]]:
    """The rows of some tables, one table after the other."""
    return [row for table in tables for row in read_table(table)]
