"""What the Snakefile and the rules know of the run: its config, its shards and their cases."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from panorgan.cases import Case, check_names, read_cases, shard_names, shard_of
from panorgan.config import (
    GATED,
    MARGINAL,
    Arm,
    Config,
    Member,
    ablation_arms,
    fused_labels,
    labels_of,
    load_config,
    members,
    students,
    teachers,
    trained_students,
)
from panorgan.corrections import Correction, read_corrections
from panorgan.labels import load_labels
from panorgan.manifest import load_sources
from panorgan.problems import Problems
from panorgan.selection import TUMOUR
from panorgan.store import file_checksum, key_of


def stop(error: Problems) -> None:
    """End the workflow with one line a problem instead of a traceback."""
    sys.exit("\n".join(map(str, error.problems)))


def _round(wildcards: Any) -> int:
    return int(wildcards.get("round", 1))


ORGANS = "pseudo_labels.organs"
EVALUATED = ("validation", "test")
TEACHER = "teacher"
"""Who makes the pseudo-labels of the first round."""


def check_organs(source: str) -> None:
    """Problems if `pseudo_labels.organs` is neither a known word nor a folder."""
    if source in ("cases", MARGINAL):
        return
    cure = f"write cases, {MARGINAL} or the path of a trained model"
    if not source or not Path(source).is_dir():
        raise Problems.one(f"'{source}' is no folder", cure, case="config", file=ORGANS)
    depths = ("", "*/", "*/*/", "*/*/*/")
    names = ("plans.json", "plans.pkl")
    if not any(any(Path(source).glob(depth + name)) for depth in depths for name in names):
        raise Problems.one(f"'{source}' holds no model", cure, case="config", file=ORGANS)


def check_plan_file(recipe: str, plan: str | None) -> None:
    """Problems if a recipe's `plan` is no file."""
    if plan is not None and not Path(plan).is_file():
        cure = "write the path of a plans.json, or null"
        raise Problems.one(f"'{plan}' is no file", cure, case="config", file=f"{recipe}.plan")


class Run:
    """A checked config and the cases that it names; the case table is read when first needed."""

    def __init__(self, raw: Mapping[str, Any]):
        try:
            self.config: Config = load_config(raw)
            self.labels = load_labels(self.config.labels)
            load_sources(self.config.sources, self.labels)
            check_organs(self.config.pseudo_labels.organs)
            for name in ("teacher", "student"):
                check_plan_file(name, getattr(self.config, name).plan)
        except Problems as error:
            stop(error)
        self.folder = f"results/{self.config.run}"
        self.train_shards = shard_names("train", self.config.shards.train)
        self.evaluation_shards = shard_names("evaluation", self.config.shards.evaluation)
        self.shards = self.train_shards + self.evaluation_shards

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        """The case table, dealt into shards."""
        dealt: dict[str, list[Case]] = {shard: [] for shard in self.shards}
        try:
            cases = read_cases(self.config.cases, self.labels)
            names = [case.case for case in cases]
            check_names(self.config.selection.exclude, names, "config", "selection.exclude")
            check_names(self._corrections, names, "", self.config.corrections or "")
        except Problems as error:
            stop(error)
        for case in cases:
            dealt[shard_of(case.case, case.split, **dict(self.config.shards))].append(case)
        return dealt

    def volumes(self, shard: str) -> list[str]:
        """Every volume of a shard's cases that exists or that the run itself writes."""
        files = [path for case in self.cases[shard] for path in case.files]
        return files if self.config.phantom else [path for path in files if Path(path).exists()]

    def sizes(self, shard: str) -> list[int]:
        """Sizes of a shard's volumes: a file replaced by one with an older date is read again."""
        if self.config.phantom:
            return []
        return [os.path.getsize(path) for path in self.volumes(shard)]

    def digest(self, *shards: str) -> str:
        """A hash of the case table's lines of some shards: other lines don't rerun their jobs."""
        return key_of([[astuple(case) for case in self.cases[shard]] for shard in shards])

    @property
    def preprocessed(self) -> dict[str, list[str]]:
        """Every folder of preprocessed data, and the models that learn from it."""
        found: dict[str, list[str]] = {
            f"{self.folder}/teacher/preprocessed": [
                f"{self.folder}/teacher/seed-{member}/model" for member in teachers(self.config)
            ]
        }
        for arm in trained_students(self.config):
            data = f"{self.folder}/round-{arm.round}/student/{arm.labels}/preprocessed"
            model = f"{self.folder}/{arm.place.format('student')}/model"
            found.setdefault(data, []).append(model)
        return found

    def of_fused(self, end: str, but: str = "") -> list[str]:
        """Files of all fusions of the run: `end` may have ``{shard}``."""
        return [
            f"{self.folder}/round-{number}/fusion/{labels}/{end.format(shard=shard)}"
            for number, labels in fused_labels(self.config)
            for shard in self.train_shards
            if (number, labels) != (1, but)
        ]

    @property
    def _origins(self) -> list[tuple[int, str]]:
        """Round and maker of all pseudo-labels that are judged for a result of the run."""
        later = {(arm.round, arm.variant) for arm in students(self.config) if arm.round > 1}
        return [(1, TEACHER), *sorted(later)]

    def of_origins(self, name: str) -> list[str]:
        """Files of the gate of every round."""
        return [
            f"{self.folder}/round-{number}/gate/{origin}/{name}" for number, origin in self._origins
        ]

    def of_pseudo_labels(self, end: str) -> list[str]:
        """Files of the pseudo-labels that the gates of `of_origins` judge, one a shard and kind."""
        organs = [] if self.config.pseudo_labels.organs == "cases" else ["organs"]
        return [
            f"{self.folder}/round-{number}/pseudo_labels/{kind}/{shard}{end}"
            for number, origin in self._origins
            for kind in (["tumour", *organs] if number == 1 else [origin])
            for shard in self.train_shards
        ]

    def of_arms(self, kind: str, end: str) -> list[str]:
        """Files of all students of the run: `end` may have ``{split}`` or ``{shard}``."""
        return [
            f"{self.folder}/{arm.place.format(kind)}/{end.format(split=split, shard=shard)}"
            for arm in students(self.config)
            for split in (EVALUATED if "{split}" in end else [""])
            for shard in (self.evaluation_shards if "{shard}" in end else [""])
        ]

    @staticmethod
    def of_labels(pattern: str, shards: Sequence[str] = ()) -> Callable[[Any], Any]:
        """Input function of a student: a path, or one a shard, of the labels its variant learns.

        `pattern` has the wildcards ``{round}``, ``{labels}`` and, with shards, ``{shard}``.
        """

        def paths(wildcards: Any) -> str | list[str]:
            found = {"round": wildcards.round, "labels": labels_of(wildcards.variant)}
            if shards:
                return [pattern.format(shard=shard, **found) for shard in shards]
            return pattern.format(**found)

        return paths

    @staticmethod
    def origin(wildcards: Any) -> str:
        """Who made the pseudo-labels of a gate or of fused labels: the teacher, or a variant."""
        if _round(wildcards) == 1:
            return TEACHER
        return wildcards.get("origin") or wildcards.labels

    def pseudo_labels(self, kind: str, end: str) -> Callable[[Any], Any]:
        """Input function of a shard: its `tumours` or `organs` of a round, ended by `end`.

        No path for organs that the case table names.
        """
        return lambda wildcards: self._pseudo_labels(kind, _round(wildcards), wildcards, end)

    def rounds(self, kind: str, end: str) -> Callable[[Any], list[str]]:
        """The same of the round and up to two before, the last first."""

        def paths(wildcards: Any) -> list[str]:
            found = (
                self._pseudo_labels(kind, number, wildcards, end)
                for number in self._compared(wildcards)
            )
            return [path for path in found if path]

        return paths

    @staticmethod
    def _compared(wildcards: Any) -> range:
        number = _round(wildcards)
        return range(number, max(0, number - 3), -1)

    def tumour_values(self, wildcards: Any) -> list[int]:
        """The value of tumours in the pseudo-labels of `rounds`."""
        return [self._tumour_value(number) for number in self._compared(wildcards)]

    def tumour_value(self, wildcards: Any) -> int:
        """The value of tumours in a round's pseudo-labels."""
        return self._tumour_value(_round(wildcards))

    def _tumour_value(self, number: int) -> int:
        return TUMOUR if number == 1 else self.labels.tumour.value

    def _pseudo_labels(self, kind: str, number: int, wildcards: Any, end: str) -> Any:
        folder = f"{self.folder}/round-{number}/pseudo_labels"
        if number > 1:
            return f"{folder}/{self.origin(wildcards)}/{wildcards.shard}{end}"
        if kind == "organs" and self.config.pseudo_labels.organs == "cases":
            return []
        return f"{folder}/{kind}/{wildcards.shard}{end}"

    def decisions(self, wildcards: Any) -> list[str]:
        """The gate's decisions on pieces and on cases, for the labels that obey them."""
        if wildcards.labels != GATED:
            return []
        folder = f"{self.folder}/round-{wildcards.round}/gate/{self.origin(wildcards)}"
        return [f"{folder}/decisions.tsv", f"{folder}/cases.tsv"]

    @cached_property
    def _corrections(self) -> dict[str, Correction]:
        if self.config.corrections is None:
            return {}
        try:
            found = read_corrections(self.config.corrections, self.labels)
        except Problems as error:
            stop(error)
        return found

    @property
    def corrections_digest(self) -> str:
        """A hash of what is corrected in the manifest: labels are not, they are for fusion."""
        stated = [replace(found, label="", file="") for found in self._corrections.values()]
        changes = [one for one in stated if one != Correction(one.case, note=one.note)]
        return key_of([astuple(one) for one in changes])

    def corrections(self, shard: str) -> list[str]:
        """The corrected labels of a shard: case and path."""
        names = (case.case for case in self.cases[shard])
        found = (self._corrections.get(name) for name in names)
        return [f"{one.case}: {one.label}" for one in found if one and one.label]

    def corrected(self, shard: str) -> list[str]:
        """The files of a shard's corrected labels."""
        return [text.partition(": ")[2] for text in self.corrections(shard)]

    def makers(self, wildcards: Any) -> list[Member]:
        """Members of the network that made a round's pseudo-labels."""
        if _round(wildcards) == 1:
            return [Member(self.config.teacher.seed)]
        return members(self.config.student.seeds[0], self.config.folds)

    def judges(self, wildcards: Any) -> list[Member]:
        """Members that are judged on the training cases in which tumours are known."""
        if _round(wildcards) > 1 or self.config.gate.quantile is None:
            return self.makers(wildcards)
        return members(self.config.teacher.seed, self.config.folds)

    def models(self, who: str, end: str) -> Callable[[Any], list[str]]:
        """Input function: the `makers` or `judges` of a round, ended by `end`."""

        def paths(wildcards: Any) -> list[str]:
            number, found = _round(wildcards), getattr(self, who)(wildcards)
            if number == 1:
                return [f"{self.folder}/teacher/seed-{member}/model{end}" for member in found]
            arms = (Arm(number - 1, wildcards.origin, str(member)) for member in found)
            return [f"{self.folder}/{arm.place.format('student')}/model{end}" for arm in arms]

        return paths

    def taught(self, wildcards: Any) -> str:
        """The table of a shard's cases that the network of a round's pseudo-labels trained on."""
        if _round(wildcards) == 1:
            return f"{self.folder}/teacher/labels/{wildcards.shard}.tsv"
        before = f"{self.folder}/round-{_round(wildcards) - 1}/fusion/{wildcards.origin}"
        return f"{before}/{wildcards.shard}.tsv"

    @property
    def phantom_files(self) -> list[str]:
        """Every file of the demo's synthetic cases."""
        from panorgan.phantom import case_files, plans

        known = plans()
        foreign = [c.case for cases in self.cases.values() for c in cases if c.case not in known]
        if foreign:
            cause = f"has cases that are not of the phantom ({', '.join(foreign[:3])}, …)"
            cure = "leave the section `phantom` out of the config: it is for the demo only"
            stop(Problems.one(cause, cure, file=self.config.cases))
        return [
            str(path)
            for cases in self.cases.values()
            for case in cases
            for path in case_files(case).values()
        ]

    @property
    def ablation(self) -> dict[str, list[str]]:
        """The scores of each arm of the ablation, one a seed."""
        return {
            arm: [
                f"{self.folder}/{one.place.format('scores')}/validation/cases.csv" for one in found
            ]
            for arm, found in ablation_arms(self.config).items()
        }

    def tables_digest(self) -> str:
        """A hash of the class and source tables."""
        return key_of([file_checksum(self.config.labels), file_checksum(self.config.sources)])
