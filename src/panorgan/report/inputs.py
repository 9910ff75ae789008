"""What the rule hands over, read: students and their scores, gates, fused labels."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from panorgan.cases.selection import TUMOUR
from panorgan.config.labels import Labels
from panorgan.config.registry import GATED, TEACHER, VARIANTS, first_stage
from panorgan.config.settings import Arm, load_config, main_arm, students
from panorgan.io.tables import read_table
from panorgan.report.frames import DECISIONS, EFFICIENCY, GATE_CASES
from panorgan.run.store import ShardReader
from panorgan.scoring.scores import read_lesions, read_scores
from panorgan.stages.components import Round

SPLITS = ("validation", "test")
"""Those that are scored."""
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
            for split in SPLITS
            if any(found["cases"] for found in self.summaries[split]["classes"].values())
        ]

    @property
    def shown(self) -> str:
        """The split of which cases are shown: the first scored one."""
        return (self.scored or SPLITS)[0]


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


def read_students(config: Mapping[str, Any], files: Mapping[str, Any]) -> list[Student]:
    """Every student that is a result of the run, with its part of the files."""
    found = []
    for arm in students(load_config(config)):

        def own(name: str, kind: str, arm: Arm = arm) -> list[str]:
            place = f"/round-{arm.round}/{kind}/{arm.variant}/seed-{arm.seed}/"
            return [path for path in files[name] if place in path]

        def by_split(name: str, read: Any, own: Any = own) -> dict[str, Any]:
            return {Path(path).parent.name: read(path) for path in own(name, "scores")}

        found.append(
            Student(
                arm=arm,
                model=Path(*own("students", "student")),
                table=Path(*own("student_tables", "student")),
                scores=by_split("scores", read_scores),
                summaries=by_split("summaries", read_json),
                lesions=by_split("lesions", read_lesions),
                predictions=ShardReader(
                    own("predictions", "predictions"), own("prediction_folders", "predictions")
                ),
                efficiency=EFFICIENCY.read(*own("efficiency", "predictions")),
            )
        )
    return found


def main_student(found: Sequence[Student]) -> Student:
    """The one of the `main_arm`."""
    arm = main_arm(student.arm for student in found)
    return next(student for student in found if student.arm == arm)


def read_gates(files: Mapping[str, Any], labels: Labels) -> list[Gate]:
    """The gate of every round and origin, the first round first."""
    tables = {
        (kind, Path(path).parent): path
        for kind in ("gate_cases", "decisions")
        for path in files[kind]
    }
    gates = []
    for path in files["gate_summaries"]:
        folder = Path(path).parent
        number, origin = round_of(folder), folder.name
        gates.append(
            Gate(
                round=number,
                origin=origin,
                summary=read_json(path),
                cases=GATE_CASES.read(tables["gate_cases", folder]),
                decisions=DECISIONS.read(tables["decisions", folder]),
                pseudo_labels=_pseudo_labels(files, number, origin, labels),
            )
        )
    return sorted(gates, key=lambda gate: (gate.round, gate.origin))


def _pseudo_labels(files: Mapping[str, Any], number: int, origin: str, labels: Labels) -> Round:
    """The maps that a gate has judged."""

    def reader(kind: str) -> ShardReader | None:
        place = f"/round-{number}/pseudo_labels/{kind}/"
        tables, folders = (
            [path for path in files[name] if place in path]
            for name in ("pseudo_labels", "pseudo_label_folders")
        )
        return ShardReader(tables, folders) if tables else None

    if number > 1:
        found = reader(origin)
        return Round(found, found, labels.tumour.value)
    return Round(reader("tumour"), reader("organs"), TUMOUR)


def read_fusions(files: Mapping[str, Any]) -> list[Fusion]:
    """All fused labels of the run, by round and in the order in which they are made."""
    places = {Path(path).parent for path in files["composition"]}
    order = list(VARIANTS)

    def own(name: str, place: Path) -> list[str]:
        return [path for path in files[name] if Path(path).parent == place]

    fusions = [
        Fusion(
            round=round_of(place),
            labels=place.name,
            composition=own("composition", place),
            conflicts=own("conflicts", place),
            # Stage 2 goes on from stage 1, which has set them to background.
            specks=own("specks", place.with_name(first_stage(place.name, round_of(place)))),
            reader=ShardReader(own("fused", place), own("fused_folders", place)),
        )
        for place in places
    ]
    return sorted(fusions, key=lambda one: (one.round, order.index(one.labels)))


def round_of(place: Path) -> int:
    """The round of a folder ``round-R/KIND/NAME``."""
    return int(place.parts[-3].removeprefix("round-"))


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_rows(tables: Iterable[str | Path]) -> list[dict[str, str]]:
    """The rows of some tables, one table after the other."""
    return [row for table in tables for row in read_table(table)]
