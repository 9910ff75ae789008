"""What the Snakefile and the rules know of the run: its config, its shards and their cases."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any

from panorgan.cases import Case, read_cases, shard_names, shard_of
from panorgan.config import (
    MARGINAL,
    Config,
    labels_of,
    load_config,
    teachers,
    trained_students,
)
from panorgan.labels import load_labels
from panorgan.problems import Problems
from panorgan.store import file_checksum, key_of


def stop(error: Problems) -> None:
    """End the workflow with one line a problem instead of a traceback."""
    sys.exit("\n".join(map(str, error.problems)))


ORGANS = "pseudo_labels.organs"


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
            load_labels(self.config.labels)
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
            cases = read_cases(self.config.cases, load_labels(self.config.labels))
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

    @staticmethod
    def of_labels(pattern: str, shards: Sequence[str] = ()) -> Callable[[Any], Any]:
        """Input function of a student: a path, or one a shard, of the labels its variant learns.

        `pattern` has the wildcards ``{labels}`` and, with shards, ``{shard}``.
        """

        def paths(wildcards: Any) -> str | list[str]:
            labels = labels_of(wildcards.variant)
            if shards:
                return [pattern.format(labels=labels, shard=shard) for shard in shards]
            return pattern.format(labels=labels)

        return paths

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

    def tables_digest(self) -> str:
        """A hash of the class and source tables."""
        return key_of([file_checksum(self.config.labels), file_checksum(self.config.sources)])
