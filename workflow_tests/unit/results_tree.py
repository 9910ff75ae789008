"""A small run made with the package's own stages, for tests of the report."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from panorgan.cases.manifest import read_manifest, write_manifest
from panorgan.cases.selection import needs_tumour, shows_tumours
from panorgan.cases.table import Case, write_cases
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.registry import FUSED, first_stage
from panorgan.config.settings import Arm, Config, fused_labels, load_config, origins, students
from panorgan.fusing.gate import CASE_COLUMNS, DECISION_COLUMNS
from panorgan.io.plots import draw_curves
from panorgan.io.tables import write_table
from panorgan.io.volumes import new_volume, write_image, write_label
from panorgan.io.writing import write_text
from panorgan.report.page import write_report
from panorgan.run.layout import Layout
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.stages.cases import check_cases, index_cases
from panorgan.stages.fusion import fuse_organs, fuse_tumours
from panorgan.stages.prediction import EFFICIENCY, score_cases, summarise_scores
from panorgan.stages.teacher import score_teacher, select_tumour_cases

LABELS_FILE = str(config_folder() / "labels.yaml")
LABELS = load_labels(LABELS_FILE)
TRAIN, VALIDATION, TEST = SHARDS = ("train-00", "validation-00", "test-00")
"""Training cases are in one shard here."""
FALSE = "The teacher marks false tumours in 1 of 2 tumour-free cases."
STRANGE = "<script>alert('x')</script> & co"
SPACING = (5.0, 4.0, 4.0)
SPECK = (10, 24, 30)
"""A voxel in no organ, of which the teacher makes a second tumour in training cases."""
SCORING = {"samples": 50, "overlap": 0.1, "sizes_mm": (10.0, 20.0)}


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


def with_speck(full: np.ndarray, value: int = 14) -> np.ndarray:
    """A copy with one more tumour."""
    full = full.copy()
    full[SPECK] = value
    return full


def place_of(arm: Arm, kind: str, *more: str) -> str:
    """Where something of a student is, below the run's folder."""
    return "/".join([f"round-{arm.round}/{kind}/{arm.variant}/seed-{arm.seed}", *more])


class Tree:
    """A folder of results, made stage by stage; networks are replaced by shifted truths.

    `validated` says what is annotated in the validation cases.
    """

    def __init__(
        self,
        root: Path,
        *,
        validation: bool = True,
        test: bool = True,
        test_labels: bool = True,
        validated: str = "all",
        tumour_free: bool = True,
        tumours: bool = True,
        organs: bool = True,
        doubt: bool = True,
        progress: bool = True,
        phantom: bool = False,
        variants: Sequence[str] = ("stage2",),
        seeds: Sequence[int] = (0,),
        rounds: int = 1,
        folds: int = 5,
    ):
        self.root, self.truths, self.organs, self.doubt = root, {}, organs, doubt
        self.paths = Layout(root)
        student = Config().student.model_dump() | {"variants": list(variants), "seeds": list(seeds)}
        self.config = Config().model_dump() | {
            "run": "tiny",
            "labels": LABELS_FILE,
            "student": student,
            "phantom": {"seed": 0} if phantom else None,
            "rounds": rounds,
            "folds": folds,
        }
        self.settings = load_config(self.config)
        self.arms = students(self.settings)
        cases = [
            self.case("liver_1", "train", STRANGE, 0, True, annotated="liver,tumour"),
            self.case("four_1", "train", "four", 1, True, annotated="liver,spleen"),
            self.case("plain_1", "train", "plain", 0, True, labelled=False),
        ]
        if validation:
            cases += [
                self.case("val_1", "validation", "full", 0, tumours, annotated=validated),
                self.case("val_2", "validation", "full", 1, tumours, annotated=validated),
                self.case("val_3", "validation", "full", 0, not tumour_free, annotated=validated),
            ]
        if test:
            cases.append(self.case("test_1", "test", "full", 1, True, labelled=test_labels))
        self.index(cases)
        self.teach(progress)
        self.fuse()
        self.judge()
        for arm in self.arms:
            self.study(arm, progress)

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
        annotated: str = "all",
    ) -> Case:
        full = self.truths[name] = truth(shift, tumour)
        full[0, 0, len(self.truths)] = 1  # no two cases have the same label
        rng = np.random.default_rng(len(self.truths))
        hu = np.where(full > 0, 60 + 10 * full.astype(np.int16), -90)
        image = new_volume((hu + rng.normal(0, 10, hu.shape)).astype(np.int16), SPACING)
        files = {kind: self.path("data", f"{name}_{kind}.nii.gz") for kind in ("image", "label")}
        write_image(files["image"], image.array, image)
        if labelled:
            kept = [label.value for label in LABELS.parse(annotated)]
            write_label(files["label"], np.where(np.isin(full, kept), full, 0), image)
        organs = ""
        if split == "train" and self.organs:
            organs = self.path("data", f"{name}_organs.nii.gz")
            # Shifted, so that it disagrees with the annotated liver.
            write_label(organs, np.roll(np.where(full == 14, 1, full), 1, axis=2), image)
        return Case(
            name, files["image"], files["label"] * labelled, split, source,
            annotated=annotated if labelled else "", organs=organs,
        )  # fmt: skip

    def index(self, cases: list[Case]) -> None:
        table = self.path("cases.tsv")
        write_cases(table, cases)
        index = [self.path(f"cases/index/{shard}") for shard in SHARDS]
        self.manifest = self.path("cases/manifest.tsv")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("panorgan.stages.cases.shard_of", lambda case, _: f"{case.split}-00")
            for shard in SHARDS:
                out = self.out(f"cases/index/{shard}", "problems")
                index_cases(table, shard, {}, out, labels_file=LABELS_FILE)
            check_cases(
                table,
                [place + ".tsv" for place in index],
                [place + ".problems.tsv" for place in index],
                index,
                shards={},
                labels_file=LABELS_FILE,
                sources_file=str(config_folder() / "sources.yaml"),
                min_ml=0.0,
                bad_cases="exclude",
                manifest=self.manifest,
                excluded=self.path("cases/excluded.tsv"),
                suspects=self.path("cases/suspects.tsv"),
                corrected=self.path("cases/corrected.tsv"),
                repaired=self.path("cases/repaired.tsv"),
                class_table=self.path("cases/labels.yaml"),
            )
        self.changes([], [])
        self.entries = read_manifest(self.manifest, LABELS)
        for shard in SHARDS:
            inside = [entry for entry in self.entries if entry.shard == shard]
            write_manifest(self.part(shard), inside, LABELS)

    def part(self, shard: str) -> str:
        """A shard's part of the manifest."""
        return self.path(f"cases/manifest/{shard}.tsv")

    def changes(self, corrected: list[dict], repaired: list[dict]) -> None:
        columns = ("case", "what", "before", "after", "note")
        write_table(self.path("cases/corrected.tsv"), columns, corrected)
        write_table(self.path("cases/repaired.tsv"), ("case", "file", "shift_mm"), repaired)

    def predict(self, place: str, shard: str, wanted, make) -> None:
        by_name = {e.case: e for e in self.entries if e.shard == shard and wanted(e)}

        def compute(name: str, folder: Path) -> Result:
            image = by_name[name].read_image()
            write_label(folder / f"{name}.nii.gz", make(self.truths[name]), image)
            seconds = {"preprocess_s": 0.1, "network_s": 0.5, "export_s": 0.2, "total_s": 0.8}
            way = {"device": "cpu", "engine": "openvino 2026.4.1", "precision": "bf16"}
            return Result(details={"efficiency": [{**way, "peak_ram_mb": 500, **seconds}]})

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
            epochs = [
                {name: float(value or "nan") for name, value in zip(columns, line, strict=True)}
                for line in lines
            ]
            (folder / "curve.png").write_bytes(draw_curves(epochs, LABELS))

    def teach(self, progress: bool) -> None:
        for shard in (TRAIN, VALIDATION):
            select_tumour_cases(
                self.part(shard),
                self.out(f"teacher/labels/{shard}"),
                labels_file=LABELS_FILE,
                min_tumour_ml=0.0,
                exclude=(),
            )
        self.model("teacher/seed-0", ["tumour"], progress)

        def tumour(full: np.ndarray) -> np.ndarray:
            return np.roll(full == 14, 1, axis=1).astype(np.uint8)

        place = f"teacher/seed-0/predictions/{VALIDATION}"
        self.predict(place, VALIDATION, lambda e: shows_tumours(e, LABELS), tumour)
        score_teacher(
            [self.part(VALIDATION)],
            self.reader(f"teacher/labels/{VALIDATION}"),
            self.reader(place),
            labels_file=LABELS_FILE,
            profile="flare23-2023",
            folder=Path(self.path("teacher/seed-0/scores")),
            **SCORING,
        )

        self.predict(
            f"round-1/pseudo_labels/tumour/{TRAIN}",
            TRAIN,
            lambda e: needs_tumour(e, LABELS),
            lambda full: with_speck(tumour(full), 1),
        )

    def fuse(self) -> None:
        place = f"round-1/fusion/stage1/{TRAIN}"
        details = ("composition", "conflicts", "specks")
        fuse_tumours(
            self.part(TRAIN),
            self.reader(f"round-1/pseudo_labels/tumour/{TRAIN}"),
            self.out(place, *details),
            labels_file=LABELS_FILE,
        )
        fuse_organs(
            self.part(TRAIN),
            self.reader(place),
            self.out(f"round-1/fusion/stage2/{TRAIN}", "composition", "conflicts"),
            labels_file=LABELS_FILE,
        )
        fuse_tumours(
            self.part(TRAIN),
            None,
            self.out(f"round-1/fusion/partial/{TRAIN}", *details),
            labels_file=LABELS_FILE,
        )
        # What else is fused has files of the same form.
        for number, labels in fused_labels(self.settings):
            place = self.root / f"round-{number}/fusion/{labels}"
            if not place.exists():
                shutil.copytree(self.root / "round-1/fusion/stage2", place)
            first = self.paths.fusion(first_stage(labels, number), number, TRAIN)
            specks = Path(self.path(first + ".specks.tsv"))
            if not specks.exists():
                shutil.copy(self.path(f"round-1/fusion/stage1/{TRAIN}.specks.tsv"), specks)

    def judge(self) -> None:
        """Two cases with teacher's tumours, the second with a doubtful one; later all classes."""
        kept = ("keep", "", "")
        unsure = ("mean_probability", "mean probability 0.55, below 0.7")
        decisions = [
            ("four_1", 14, "tumour", 1, "keep", "", "", 2.0),
            ("four_1", 14, "tumour", 2, "clean", "volume", "0.03 ml, below 0.1", 0.03),
            *([("plain_1", 3, "spleen", 1, "keep", "", "", 50.0)] if self.organs else []),
            ("plain_1", 14, "tumour", 1, "ignore", *unsure, 3.0),
            ("plain_1", 14, "tumour", 2, "clean", "volume", "0.04 ml, below 0.1", 0.04),
        ]
        for origin, number in origins(self.settings):
            later = number > 1
            cases = [
                ("four_1", *kept, "0.1" * later, 0.1, "a tumour is unsure"),
                ("liver_1", *kept, "0.2" * later, 0, ""),
                ("plain_1", *kept, "0.4" * later, 1.25, "3 of 3 ml tumour ignored"),
            ]
            if not self.doubt:
                cases = [(*case[:5], 0, "") for case in cases]
            if later:
                place = f"round-{number}/pseudo_labels/{origin}/{TRAIN}"
                self.predict(place, TRAIN, lambda entry: True, with_speck)
            for name, columns, rows in (
                ("decisions", DECISION_COLUMNS, decisions),
                ("cases", CASE_COLUMNS, cases),
            ):
                lines = [dict(zip(columns, row, strict=True)) for row in rows]
                write_table(self.paths.gate(f"{name}.tsv", origin, number), columns, lines)
            summary = self.paths.gate("summary.json", origin, number)
            write_text(summary, json.dumps({"text": [FALSE, "Thresholds."]}))

    def study(self, arm: Arm, progress: bool) -> None:
        self.model(place_of(arm, "student"), LABELS.names, progress)
        step = (1 if arm.variant == "stage2" else 2) + int(arm.seed)
        for split, shard in (("validation", VALIDATION), ("test", TEST)):
            place, scores = place_of(arm, "predictions", shard), place_of(arm, "scores")
            self.predict(place, shard, lambda e: True, lambda full: np.roll(full, step, axis=1))
            out = self.out(f"{scores}/{shard}", "scores", "lesions")
            score_cases(
                self.part(shard),
                self.reader(place),
                ShardOutput(out.store, out.table, None, out.details),
                labels_file=LABELS_FILE,
                profile="flare23-2023",
                overlap=SCORING["overlap"],
            )
            summarise_scores(
                [str(out.details["scores"])],
                [str(out.details["lesions"])],
                labels_file=LABELS_FILE,
                profile="flare23-2023",
                folder=Path(self.path(scores, split)),
                **SCORING,
            )

    def report(self) -> tuple[str, bytes, str]:
        """HTML, PNG and text of the report."""
        paths, teacher = self.paths, self.paths.teacher_model(0)
        write_report(
            self.config,
            paths,
            {
                "training": [TRAIN],
                "evaluated": [VALIDATION, TEST],
                "fused": {labels: [TRAIN] for labels in FUSED},
            },
            {
                "manifest": paths.case_list,
                "excluded": paths.excluded,
                "suspects": paths.suspects,
                "corrected": paths.corrected,
                "repaired": paths.repaired,
                "selection": [paths.teacher_labels(TRAIN) + ".tsv"],
                "teacher_scores": paths.teacher_scores(0, "cases.csv"),
                "teacher_summary": paths.teacher_scores(0, "summary.json"),
                "teacher": teacher,
                "teacher_table": teacher + ".tsv",
                "students": [paths.student_model(*arm.place) for arm in self.arms],
            },
            report=paths.report,
            picture=paths.picture,
            summary=paths.summary,
        )
        made = [Path(path) for path in (paths.report, paths.picture, paths.summary)]
        return made[0].read_text(), made[1].read_bytes(), made[2].read_text()
