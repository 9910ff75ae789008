"""The report, its picture and its summary, from a small run made with the package's own stages."""

import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panorgan.cases import Case, shard_of, write_cases
from panorgan.config import Config
from panorgan.labels import config_folder, load_labels
from panorgan.manifest import read_manifest
from panorgan.report import (
    chosen_examples,
    composition_by_class,
    conflicts_by_pair,
    median_case,
    rank_cases,
    write_report,
)
from panorgan.selection import needs_tumour, shows_tumours
from panorgan.stages.cases import collect_manifest, index_cases
from panorgan.stages.fusion import fuse_organs, fuse_tumours
from panorgan.stages.prediction import EFFICIENCY, score_cases, summarise_scores
from panorgan.stages.teacher import score_teacher, select_tumour_cases
from panorgan.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.tables import write_table, write_text
from panorgan.volumes import new_volume, write_image, write_label

LABELS_FILE = str(config_folder() / "labels.yaml")
LABELS = load_labels(LABELS_FILE)
SHARDS = {"train": 1, "evaluation": 1}
TRAIN, EVALUATION = "train-00", "evaluation-00"
STRANGE = "<script>alert('x')</script> & co"
SPACING = (5.0, 4.0, 4.0)


def truth(shift: int, tumour: bool) -> np.ndarray:
    """A block for each organ, and a tumour in the liver."""
    label = np.zeros((12, 28, 36), np.uint8)
    for value in range(1, 14):
        row, column = divmod(value - 1, 5)
        y, x = 2 + row * 8 + shift, 2 + column * 6 + shift
        label[2 : 9 - row, y : y + 6, x : x + 5] = value
    if tumour:
        label[4:6, 4 + shift : 6 + shift, 3 + shift : 5 + shift] = 14
    return label


class Tree:
    """A folder of results, made stage by stage; networks are replaced by shifted truths."""

    def __init__(
        self,
        root: Path,
        *,
        test_labels: bool = True,
        tumour_free: bool = True,
        progress: bool = True,
        phantom: bool = False,
        variants: Sequence[str] = ("stage2",),
        seeds: Sequence[int] = (0,),
    ):
        self.root, self.truths = root, {}
        student = Config().student.model_dump() | {"variants": list(variants), "seeds": list(seeds)}
        self.config = Config().model_dump() | {
            "run": "tiny",
            "labels": LABELS_FILE,
            "student": student,
            "phantom": {"seed": 0} if phantom else None,
        }
        cases = [
            self.case("liver_1", "train", STRANGE, 0, True, annotated="liver,tumour"),
            self.case("four_1", "train", "four", 1, True, annotated="liver,spleen"),
            self.case("plain_1", "train", "plain", 0, True, labelled=False),
            self.case("val_1", "validation", "full", 0, True),
            self.case("val_2", "validation", "full", 1, True),
            self.case("val_3", "validation", "full", 0, not tumour_free),
            self.case("test_1", "test", "full", 1, True, labelled=test_labels),
        ]
        self.index(cases)
        self.teach(progress)
        self.fuse()
        for variant in variants:
            for seed in seeds:
                self.study(variant, seed, progress)

    def path(self, *parts: str) -> str:
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def out(self, place: str, *details: str) -> ShardOutput:
        return ShardOutput(
            store=Path(self.path(".store", place)),
            table=Path(self.path(place + ".tsv")),
            folder=Path(self.path(place)),
            details={name: Path(self.path(f"{place}.{name}.tsv")) for name in details},
        )

    def reader(self, *places: str) -> ShardReader:
        return ShardReader(
            [self.path(place + ".tsv") for place in places], [self.path(place) for place in places]
        )

    def case(
        self,
        name: str,
        split: str,
        source: str,
        shift: int,
        tumour: bool,
        *,
        labelled: bool = True,
        annotated: str = "",
    ) -> Case:
        full = self.truths[name] = truth(shift, tumour)
        rng = np.random.default_rng(len(self.truths))
        hu = np.where(full > 0, 60 + 10 * full.astype(np.int16), -90)
        image = new_volume((hu + rng.normal(0, 10, hu.shape)).astype(np.int16), SPACING)
        files = {kind: self.path("data", f"{name}_{kind}.nii.gz") for kind in ("image", "label")}
        write_image(files["image"], image.array, image)
        if labelled:
            kept = [label.value for label in LABELS.parse(annotated or "all")]
            write_label(files["label"], np.where(np.isin(full, kept), full, 0), image)
        organs = ""
        if split == "train":
            organs = self.path("data", f"{name}_organs.nii.gz")
            # Shifted, so that it disagrees with the annotated liver.
            write_label(organs, np.roll(np.where(full == 14, 1, full), 1, axis=2), image)
        return Case(
            name, files["image"], files["label"] * labelled, split, source,
            annotated=annotated, organs=organs,
        )  # fmt: skip

    def index(self, cases: list[Case]) -> None:
        table = self.path("cases.tsv")
        write_cases(table, cases)
        for shard in (TRAIN, EVALUATION):
            inside = [case for case in cases if shard_of(case.case, case.split, **SHARDS) == shard]
            index_cases(inside, LABELS_FILE, self.out(f"cases/index/{shard}", "problems"))
        index = [self.path(f"cases/index/{shard}") for shard in (TRAIN, EVALUATION)]
        self.manifest = self.path("cases/manifest.tsv")
        collect_manifest(
            table,
            [place + ".tsv" for place in index],
            [place + ".problems.tsv" for place in index],
            shards=SHARDS,
            labels_file=LABELS_FILE,
            sources_file=str(config_folder() / "sources.yaml"),
            min_ml=0.0,
            bad_cases="exclude",
            manifest=self.manifest,
            excluded=self.path("cases/excluded.tsv"),
            suspects=self.path("cases/suspects.tsv"),
        )
        self.entries = read_manifest(self.manifest, LABELS)

    def predict(self, place: str, shard: str, wanted, make) -> None:
        by_name = {e.case: e for e in self.entries if e.shard == shard and wanted(e)}

        def compute(name: str, folder: Path) -> Result:
            image = by_name[name].read_image()
            write_label(folder / f"{name}.nii.gz", make(self.truths[name]), image)
            seconds = {"preprocess_s": 0.1, "network_s": 0.5, "export_s": 0.2, "total_s": 0.8}
            return Result(
                details={"efficiency": [{"device": "cpu", "peak_ram_mb": 500, **seconds}]}
            )

        run_shard(
            [Work(name, {}) for name in by_name],
            compute,
            self.out(place, "efficiency"),
            parameters=place,
            details={"efficiency": EFFICIENCY},
        )

    def model(self, place: str, classes: Sequence[str], progress: bool) -> None:
        folder = Path(self.path(place, "model"))
        folder.mkdir()
        card = {"checksum": "c" * 32, "classes": list(classes), "parameters": 1234}
        card |= {"versions": {"torch": "2.0"}, "epochs": 2, "hours": 0.5, "precision": "fp32"}
        write_text(folder / "card.json", json.dumps(card))
        row = {"model": str(folder), "checksum": card["checksum"], "key": "k"}
        write_table(self.path(place, "model.tsv"), list(row), [row])
        if progress:
            columns = ["epoch", "train_loss", "validation_loss"]
            columns += [f"dice_{name}" for name in classes] + ["learning_rate", "seconds"]
            rows = [[1, 0.9, ""], [2, 0.5, 0.6]]
            lines = [row + [0.1 * row[0]] * len(classes) + [0.01, 3.5] for row in rows]
            text = "\n".join(",".join(map(str, line)) for line in [columns, *lines])
            write_text(folder / "progress.csv", text + "\n")

    def teach(self, progress: bool) -> None:
        for shard in (TRAIN, EVALUATION):
            select_tumour_cases(
                self.manifest,
                shard,
                self.out(f"teacher/labels/{shard}"),
                labels_file=LABELS_FILE,
                min_tumour_ml=0.0,
                exclude=(),
            )
        self.model("teacher/seed-0", ["tumour"], progress)

        def tumour(full: np.ndarray) -> np.ndarray:
            return np.roll(full == 14, 1, axis=1).astype(np.uint8)

        place = f"teacher/seed-0/predictions/{EVALUATION}"
        self.predict(
            place,
            EVALUATION,
            lambda e: e.split == "validation" and shows_tumours(e, LABELS),
            tumour,
        )
        score_teacher(
            self.manifest,
            self.reader(f"teacher/labels/{EVALUATION}"),
            self.reader(place),
            labels_file=LABELS_FILE,
            profile="flare23-2023",
            folder=self.path("teacher/seed-0/scores"),
        )
        place = f"round-1/pseudo_labels/tumour/{TRAIN}"
        self.predict(place, TRAIN, lambda e: needs_tumour(e, LABELS), tumour)

    def fuse(self) -> None:
        place = f"round-1/fusion/stage1/{TRAIN}"
        fuse_tumours(
            self.manifest,
            TRAIN,
            self.reader(f"round-1/pseudo_labels/tumour/{TRAIN}"),
            self.out(place, "composition", "conflicts", "specks"),
            labels_file=LABELS_FILE,
        )
        fuse_organs(
            self.manifest,
            TRAIN,
            self.reader(place),
            self.out(f"round-1/fusion/stage2/{TRAIN}", "composition", "conflicts"),
            labels_file=LABELS_FILE,
        )

    def study(self, variant: str, seed: int, progress: bool) -> None:
        self.model(f"round-1/student/{variant}/seed-{seed}", LABELS.names, progress)
        place = f"round-1/predictions/{variant}/seed-{seed}/{EVALUATION}"
        step = 1 if variant == "stage2" else 2
        self.predict(
            place, EVALUATION, lambda e: True, lambda full: np.roll(full, step + seed, axis=1)
        )
        scores = f"round-1/scores/{variant}/seed-{seed}"
        out = self.out(f"{scores}/{EVALUATION}", "scores")
        score_cases(
            self.manifest,
            EVALUATION,
            self.reader(place),
            ShardOutput(out.store, out.table, None, out.details),
            labels_file=LABELS_FILE,
            profile="flare23-2023",
        )
        for split in ("validation", "test"):
            summarise_scores(
                self.manifest,
                [str(out.details["scores"])],
                split,
                labels_file=LABELS_FILE,
                profile="flare23-2023",
                folder=Path(self.path(scores, split)),
            )

    @property
    def files(self) -> dict[str, object]:
        """What the rule hands over."""
        stages = [self.path(f"round-1/fusion/{stage}/{TRAIN}") for stage in ("stage1", "stage2")]
        students = [
            f"{variant}/seed-{seed}"
            for variant in self.config["student"]["variants"]
            for seed in self.config["student"]["seeds"]
        ]
        scores = [
            self.path("round-1/scores", student, split)
            for student in students
            for split in ("validation", "test")
        ]
        predictions = [self.path("round-1/predictions", s, EVALUATION) for s in students]
        models = [self.path("round-1/student", student, "model") for student in students]
        return {
            "manifest": self.manifest,
            "excluded": self.path("cases/excluded.tsv"),
            "suspects": self.path("cases/suspects.tsv"),
            "selection": [self.path(f"teacher/labels/{TRAIN}.tsv")],
            "teacher_scores": self.path("teacher/seed-0/scores/cases.csv"),
            "teacher_summary": self.path("teacher/seed-0/scores/summary.json"),
            "teacher": self.path("teacher/seed-0/model"),
            "teacher_table": self.path("teacher/seed-0/model.tsv"),
            "stage1_composition": [stages[0] + ".composition.tsv"],
            "composition": [stages[1] + ".composition.tsv"],
            "conflicts": [stage + ".conflicts.tsv" for stage in stages],
            "specks": [stages[0] + ".specks.tsv"],
            "fused": [stages[1] + ".tsv"],
            "fused_folders": [stages[1]],
            "students": models,
            "student_tables": [model + ".tsv" for model in models],
            "scores": [folder + "/cases.csv" for folder in scores],
            "summaries": [folder + "/summary.json" for folder in scores],
            "predictions": [place + ".tsv" for place in predictions],
            "prediction_folders": predictions,
            "efficiency": [place + ".efficiency.tsv" for place in predictions],
        }

    def report(self) -> tuple[str, bytes, str]:
        """HTML, PNG and text of the report."""
        report, picture, summary = (
            self.path(name) for name in ("report.html", "overlay.png", "summary.txt")
        )
        write_report(self.config, self.files, report=report, picture=picture, summary=summary)
        return Path(report).read_text(), Path(picture).read_bytes(), Path(summary).read_text()
