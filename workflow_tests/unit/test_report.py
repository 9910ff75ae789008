"""The report, its picture and its summary, from a small run made with the package's own stages."""

import io
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panorgan.cases import Case, shard_of, write_cases
from panorgan.config import Arm, Config, load_config, students
from panorgan.labels import config_folder, load_labels
from panorgan.manifest import read_manifest
from panorgan.report import (
    Gate,
    Student,
    chosen_examples,
    composition_by_class,
    conflicts_by_pair,
    count_specks,
    decisions_by_reason,
    describe_gate,
    describe_rounds,
    main_student,
    median_case,
    rank_cases,
    training_time,
    write_report,
)
from panorgan.selection import needs_tumour, shows_tumours
from panorgan.stages.cases import collect_manifest, index_cases
from panorgan.stages.fusion import fuse_organs, fuse_partial, fuse_tumours
from panorgan.stages.prediction import EFFICIENCY, score_cases, summarise_scores
from panorgan.stages.teacher import score_teacher, select_tumour_cases
from panorgan.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.tables import write_table, write_text
from panorgan.volumes import new_volume, write_image, write_label

LABELS_FILE = str(config_folder() / "labels.yaml")
LABELS = load_labels(LABELS_FILE)
SHARDS = {"train": 1, "evaluation": 1}
TRAIN, EVALUATION = "train-00", "evaluation-00"
FALSE = "The teacher marks false tumours in 1 of 2 tumour-free cases."
DECISIONS = ("case", "value", "name", "component", "action", "reason", "ml")
GATE_CASES = ("case", "status", "reason", "instability", "doubt", "why")
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
        rounds: int = 1,
        folds: int = 5,
    ):
        self.root, self.truths = root, {}
        student = Config().student.model_dump() | {"variants": list(variants), "seeds": list(seeds)}
        self.config = Config().model_dump() | {
            "run": "tiny",
            "labels": LABELS_FILE,
            "student": student,
            "phantom": {"seed": 0} if phantom else None,
            "rounds": rounds,
            "folds": folds,
        }
        self.arms = students(load_config(self.config))
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
            index,
            shards=SHARDS,
            labels_file=LABELS_FILE,
            sources_file=str(config_folder() / "sources.yaml"),
            min_ml=0.0,
            bad_cases="exclude",
            manifest=self.manifest,
            excluded=self.path("cases/excluded.tsv"),
            suspects=self.path("cases/suspects.tsv"),
            corrected=self.path("cases/corrected.tsv"),
            repaired=self.path("cases/repaired.tsv"),
        )
        self.changes([], [])
        self.entries = read_manifest(self.manifest, LABELS)

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
        details = ("composition", "conflicts", "specks")
        fuse_tumours(
            self.manifest,
            TRAIN,
            self.reader(f"round-1/pseudo_labels/tumour/{TRAIN}"),
            self.out(place, *details),
            labels_file=LABELS_FILE,
        )
        fuse_organs(
            self.manifest,
            TRAIN,
            self.reader(place),
            self.out(f"round-1/fusion/stage2/{TRAIN}", "composition", "conflicts"),
            labels_file=LABELS_FILE,
        )
        fuse_partial(
            self.manifest,
            TRAIN,
            self.out(f"round-1/fusion/partial/{TRAIN}", *details),
            labels_file=LABELS_FILE,
        )
        # What is fused in one pass has files of the same form.
        for number, labels in self.fused:
            place = self.root / f"round-{number}/fusion/{labels}"
            if not place.exists():
                shutil.copytree(self.root / "round-1/fusion/stage2", place)
                shutil.copy(self.root / f"round-1/fusion/stage1/{TRAIN}.specks.tsv", place)

    @property
    def fused(self) -> list[tuple[int, str]]:
        """Round and name of the labels that the students learn, and stage 1 below stage 2."""
        found = {(arm.round, arm.labels) for arm in self.arms}
        return sorted(found | {(1, "stage1") for one in found if one == (1, "stage2")})

    @property
    def gates(self) -> list[str]:
        later = sorted({(arm.round, arm.variant) for arm in self.arms if arm.round > 1})
        return [
            self.path(f"round-{number}/gate/{origin}/")
            for number, origin in [(1, "teacher"), *later]
        ]

    def judge(self) -> None:
        """Two cases with teacher's tumours, the second with a doubtful one."""
        decisions = [
            ("four_1", 14, "tumour", 1, "keep", "", 2.0),
            ("four_1", 14, "tumour", 2, "clean", "0.03 ml, below 0.1", 0.03),
            ("plain_1", 3, "spleen", 1, "keep", "", 50.0),
            ("plain_1", 14, "tumour", 1, "ignore", "mean probability 0.55, below 0.7", 3.0),
            ("plain_1", 14, "tumour", 2, "clean", "0.04 ml, below 0.1", 0.04),
        ]
        for folder in self.gates:
            later = "round-1" not in folder
            cases = [
                ("four_1", "keep", "", "0.1" if later else "", 0.1, "a tumour is unsure"),
                ("liver_1", "keep", "", "0.2" if later else "", 0, ""),
                ("plain_1", "keep", "", "0.4" if later else "", 1.25, "3 of 3 ml tumour ignored"),
            ]
            for name, columns, rows in (
                ("decisions", DECISIONS, decisions),
                ("cases", GATE_CASES, cases),
            ):
                lines = [dict(zip(columns, row, strict=True)) for row in rows]
                write_table(folder + f"/{name}.tsv", columns, lines)
            write_text(folder + "/summary.json", json.dumps({"text": [FALSE, "Thresholds."]}))

    def study(self, arm: Arm, progress: bool) -> None:
        self.model(arm.place.format("student"), LABELS.names, progress)
        place = f"{arm.place.format('predictions')}/{EVALUATION}"
        step = (1 if arm.variant == "stage2" else 2) + int(arm.seed)
        self.predict(place, EVALUATION, lambda e: True, lambda full: np.roll(full, step, axis=1))
        scores = arm.place.format("scores")
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
        fused = [self.path(f"round-{n}/fusion/{labels}/{TRAIN}") for n, labels in self.fused]
        specks = [place for place in fused if "round-1/fusion/stage2" not in place]
        scores = [
            self.path(arm.place.format("scores"), split)
            for arm in self.arms
            for split in ("validation", "test")
        ]
        predictions = [self.path(arm.place.format("predictions"), EVALUATION) for arm in self.arms]
        models = [self.path(arm.place.format("student"), "model") for arm in self.arms]
        return {
            "manifest": self.manifest,
            "excluded": self.path("cases/excluded.tsv"),
            "suspects": self.path("cases/suspects.tsv"),
            "corrected": self.path("cases/corrected.tsv"),
            "repaired": self.path("cases/repaired.tsv"),
            "selection": [self.path(f"teacher/labels/{TRAIN}.tsv")],
            "teacher_scores": self.path("teacher/seed-0/scores/cases.csv"),
            "teacher_summary": self.path("teacher/seed-0/scores/summary.json"),
            "teacher": self.path("teacher/seed-0/model"),
            "teacher_table": self.path("teacher/seed-0/model.tsv"),
            "decisions": [f"{folder}/decisions.tsv" for folder in self.gates],
            "gate_cases": [f"{folder}/cases.tsv" for folder in self.gates],
            "gate_summaries": [f"{folder}/summary.json" for folder in self.gates],
            "composition": [place + ".composition.tsv" for place in fused],
            "conflicts": [place + ".conflicts.tsv" for place in fused],
            "specks": [place + ".specks.tsv" for place in specks],
            "fused": [place + ".tsv" for place in fused],
            "fused_folders": fused,
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"), variants=("stage1", "stage2"), phantom=True)


@pytest.fixture(scope="module")
def made(tree: Tree) -> tuple[str, bytes, str]:
    return tree.report()


class Page(HTMLParser):
    """What a test asks of a page: its text, pictures and links, and whether tags are closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.pictures, self.links, self.ids = [], [], [], []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        if "id" in attributes:
            self.ids.append(attributes["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())


def row_of(html: str, start: str) -> list[str]:
    """Cells of the first table row whose first cell is `start`."""
    for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL):
        cells = [Page(cell).words for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
        if cells[0] == start:
            return cells
    raise AssertionError(f"no row {start}")


def test_page_is_self_contained_and_well_formed(made):
    html, _, _ = made
    page = Page(html)
    assert len(html) < 15e6
    assert all(picture["src"].startswith("data:image/") for picture in page.pictures)
    assert all(picture["alt"] for picture in page.pictures)
    # Cases, fused case, distributions, curves, doubtful cases.
    assert len(page.pictures) == 3 + 1 + 2 + 3 + 2
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "http" not in re.sub(r"data:image[^\"]*", "", html)


def test_user_text_is_escaped(made):
    html, _, _ = made
    assert "<script" not in html
    assert STRANGE in Page(html).text


def test_scores_are_those_of_the_summaries(tree, made):
    html, _, text = made
    summary = json.loads(
        Path(tree.root, "round-1/scores/stage2/seed-0/validation/summary.json").read_text()
    )
    dsc, nsd = (f"{summary['classes']['liver'][key] * 100:.2f}" for key in ("dsc", "nsd"))
    assert row_of(html, "Liver")[4:7] == [dsc, nsd, "3"]  # after three columns of stage 1
    positive = f"{summary['tumour']['positive']['dsc'] * 100:.2f}"
    assert row_of(html, "Tumour, only cases with one")[4:7:2] == [positive, "2"]
    block = text.split("student stage2, seed 0")[1]
    assert re.search(rf"^Liver +{dsc} +{nsd} +3 ", block, re.MULTILINE)
    assert re.search(rf"^Tumour, only cases with one +{positive} ", block, re.MULTILINE)
    assert f"{summary['organs']['dsc'] * 100:.2f}" in block
    assert text.endswith("report.html\n" + str(tree.root / "overlay.png") + "\n")


def test_phantoms_are_called_synthetic_and_not_compared(made):
    html, _, text = made
    assert "Synthetic data, not for clinical use" in html
    assert "synthetic data, not for clinical use" in text
    assert "88.53" not in html


def test_picture_is_a_png_and_all_is_deterministic(tree, made):
    picture = Image.open(io.BytesIO(made[1]))
    assert picture.format == "PNG"
    assert picture.width > picture.height > 300
    assert tree.report() == made


def test_teacher_and_fusion_are_described(tree, made):
    html, _, _ = made
    words = Page(html).words
    assert (
        "The tumour is unknown in 2 training cases; the teacher found one in 2 of them, "
        "2.5 (2.0 to 3.0) ml in a case."
    ) in words
    assert row_of(html, "not selected: tumour is not annotated") == [
        "not selected: tumour is not annotated",
        "2",
    ]
    assert "Tumour-free cases: 1, of which 0 got a tumour predicted" in words
    assert row_of(html, "Training time") == ["Training time", "1.5 hours in all"]


def test_what_can_be_missing_may_be_missing(tmp_path):
    tree = Tree(tmp_path, test_labels=False, tumour_free=False, progress=False)
    html, _, text = tree.report()
    page = Page(html)
    assert "No labelled test cases: no scores." in page.words
    assert page.words.count("No learning curve was recorded.") == 2
    assert "test, cases" not in text
    assert "tumour-free case counts" not in text
    assert "88.53" in html  # no phantom


def test_without_any_scores_the_picture_shows_a_prediction(tmp_path):
    tree = Tree(tmp_path, test_labels=False)
    for path in tree.files["scores"]:
        Path(path).write_text(Path(path).read_text().splitlines()[0] + "\n")
    for path in tree.files["summaries"]:
        empty = re.sub(r'"cases": \d+', '"cases": 0', Path(path).read_text())
        Path(path).write_text(re.sub(r'"(dsc|nsd)": [\d.]+', r'"\1": null', empty))
    html, picture, text = tree.report()
    assert "No labelled validation cases: no scores." in Page(html).words
    assert "no labelled validation or test cases: no scores" in text
    assert Image.open(io.BytesIO(picture)).format == "PNG"


def score(case: str, value: int, dsc: float | None, status: str = "scored") -> dict:
    return {"case": case, "value": value, "dsc": dsc, "nsd": dsc, "status": status}


def test_cases_are_ranked_by_their_organs():
    rows = [
        score("a", 1, 0.9),
        score("a", 2, 0.7),
        score("a", 14, 0.0),
        score("b", 1, 0.5),
        score("b", 2, None, "not_scored"),
        score("c", 14, 1.0),
        score("d", 1, 0.95),
    ]
    ranking = rank_cases(rows, LABELS)
    assert list(ranking) == ["b", "a", "d"]
    assert ranking["a"] == pytest.approx(0.8)
    assert median_case(ranking) == "a"
    assert chosen_examples(ranking) == {"b": "worst", "a": "median", "d": "best"}
    assert chosen_examples({"b": 0.5}) == {"b": "best"}
    assert chosen_examples({}) == {}


def test_composition_is_summed_over_cases():
    rows = [
        {"case": "a", "name": "liver", "source": "ground_truth", "ml": "30"},
        {"case": "b", "name": "liver", "source": "organ_pseudo", "ml": "10"},
    ]
    table = composition_by_class(rows, ["ground_truth", "organ_pseudo"], LABELS)
    assert [row["title"] for row in table] == [label.title for label in LABELS.labels]
    assert table[0]["ml"] == 40
    assert [part["share"] for part in table[0]["parts"]] == [0.75, 0.25]
    assert table[1]["ml"] == 0


def test_conflicts_are_summed_by_pair(tmp_path):
    columns = ("case", "kept", "kept_name", "lost", "lost_name", "lost_input", "voxels", "ml")
    tables = []
    for shard, lost, cases in (("0", "liver", "ab"), ("1", "spleen", "c"), ("1", "liver", "d")):
        rows = [
            dict(zip(columns, (case, 14, "tumour", 1, lost, "partial", 10, 2.5), strict=True))
            for case in cases
        ]
        tables.append(str(tmp_path / f"train-{shard}-{lost}.conflicts.tsv"))
        write_table(tables[-1], columns, rows)
    found = conflicts_by_pair(tables, LABELS)
    assert (found["count"], found["ml"]) == (2, 10)
    assert found["rows"][0] == {
        "kept_name": "Tumour",
        "lost_name": "Liver",
        "lost_input": "partial label",
        "cases": 3,
        "voxels": 30,
        "ml": 7.5,
    }


def test_specks_are_counted_once(tmp_path):
    row = {"case": "a", "value": 1, "name": "liver", "voxels": 4, "ml": 0.5}
    tables = []
    for labels in ("gated", "partial"):
        for case in "ab":
            tables.append(str(tmp_path / labels / f"train-{case}.specks.tsv"))
            write_table(tables[-1], list(row), [row | {"case": case}])
    assert count_specks(tables, LABELS) == [{"name": "Liver", "cases": 2, "voxels": 8, "ml": 1.0}]


def test_decisions_with_other_numbers_are_of_one_reason():
    def decision(case: str, name: str, action: str, reason: str, ml: str) -> dict[str, str]:
        return {"case": case, "name": name, "action": action, "reason": reason, "ml": ml}

    far = "{} mm from the nearest organ ({}), more than 10"
    swapped = "right_kidney lies to the left of left_kidney: sides swapped"
    rows = [
        decision("a", "liver", "keep", "", "9"),
        decision("a", "right_kidney", "ignore", swapped, "4"),
        decision("a", "tumour", "ignore", far.format(12, "liver"), "1"),
        decision("b", "tumour", "ignore", far.format(30.5, "left_kidney"), "2"),
        decision("b", "tumour", "ignore", "mean probability 0.5, below 0.7", "2"),
        decision("b", "tumour", "clean", "mean HU -45 is outside -20 to 200", "0.5"),
        decision("b", "tumour", "clean", "mean HU 310 is outside -20 to 200", "0.25"),
    ]
    table = [tuple(row.values()) for row in decisions_by_reason(rows, LABELS)]
    assert table == [
        ("tumour", "removed", "mean HU … is outside -20 to 200", 1, 2, 0.75),
        ("tumour", "ignored", far.format("…", "…"), 2, 2, 3.0),
        ("tumour", "ignored", "mean probability 0.5, below 0.7", 1, 1, 2.0),
        ("organs", "kept", "", 1, 1, 9.0),
        ("organs", "ignored", swapped, 1, 1, 4.0),
    ]


def test_gate_is_described(made):
    html, _, text = made
    words = Page(html).words
    assert "<strong>" + FALSE + "</strong>" in html
    assert FALSE in text.splitlines()
    assert "For information only: no student of this report learnt by these decisions." in words
    assert "… ml, below 0.1" in words
    assert "Label stability" not in words


def test_doubtful_cases_come_with_what_opens_them(tree, made):
    html, _, _ = made
    page = Page(html)
    doubtful = page.text[page.text.index("Most doubtful cases") :]
    assert doubtful.index("1. plain_1") < doubtful.index("2. four_1")
    assert "liver_1" not in doubtful
    place = tree.root / "round-1/fusion/stage2" / TRAIN
    for ending in ("", "_source"):
        image = tree.root / "data/plain_1_image.nii.gz"
        assert f"itksnap -g {image} -s {place}/plain_1{ending}.nii.gz\n" in doubtful + "\n"
    assert "case\tlabel\tnote\nplain_1\tcorrected/plain_1.nii.gz\twhat was wrong" in page.text
    alts = [picture["alt"] for picture in page.pictures if "an axial slice" in picture["alt"]]
    assert [alt.split()[2] for alt in alts] == ["plain_1:", "four_1:"]


def test_corrected_cases_are_no_longer_doubtful_and_changes_are_listed(tmp_path):
    tree = Tree(tmp_path, test_labels=False)
    table = tmp_path / f"round-1/fusion/stage2/{TRAIN}.tsv"
    place = tmp_path / f"round-1/fusion/stage2/{TRAIN}"
    shutil.copy(place / "plain_1.nii.gz", place / "plain_1_automatic.nii.gz")
    lines = table.read_text()
    checksum = re.search(r"plain_1\.nii\.gz:(\w+)", lines).group(1)
    added = f"plain_1_automatic.nii.gz:{checksum} plain_1.nii.gz"
    table.write_text(lines.replace("plain_1.nii.gz", added, 1))
    tree.config["corrections"] = "my <corrections>.tsv"
    tree.changes(
        [
            {
                "case": "changed_1", "what": "spleen", "before": "unknown", "after": "absent",
                "note": "taken out",
            }
        ],
        [{"case": "mended_1", "file": "test_1.nii.gz", "shift_mm": "0.31"}],
    )  # fmt: skip
    html, _, _ = tree.report()
    page = Page(html)
    assert "Cases with a corrected label of yours, left out here: 1." in page.words
    assert "1. four_1" in page.text
    assert "plain_1" not in page.text[page.text.index("Most doubtful cases") :]
    assert "the corrections file of this run, my <corrections>.tsv" in page.words
    assert row_of(html, "changed_1")[1:] == ["spleen", "unknown", "absent", "taken out"]
    assert row_of(html, "mended_1")[1:] == ["test_1.nii.gz", "0.31"]


def test_nothing_changed_is_not_mentioned(made):
    words = Page(made[0]).words
    assert "Corrections that were applied" not in words
    assert "Repaired headers" not in words


def test_later_rounds_and_the_gate(tmp_path):
    tree = Tree(tmp_path, test_labels=False, variants=("gated",), rounds=2, folds=1)
    html, _, text = tree.report()
    words = Page(html).words
    assert "Round 2: the student's (gated) pseudo-labels" in words
    assert words.count("Students of the variant gated learnt by these decisions") == 2
    assert "Networks relabelled cases that they trained on (folds: 1)" in words
    assert row_of(html, "2") == ["2", "gated", "3", "0.200 (0.100 to 0.400)"]
    assert "Student gated, round 2, seed 0, means over" in words
    assert "Round 2, gated: without what the gate does not trust" in words
    assert "Stage 2: + organ pseudo-labels" not in words
    assert f"{tmp_path}/round-2/fusion/gated/{TRAIN}/plain_1.nii.gz" in html
    assert row_of(html, "Rounds")[1] == "2, cases relabelled by one network"
    assert "student gated, round 2, seed 0" in text
    assert text.count(FALSE) == 1


def test_cross_fitted_rounds_say_so():
    def gate(number: int, origin: str, changes: Sequence[str]) -> Gate:
        return Gate(number, origin, {"text": []}, [{"instability": text} for text in changes], [])

    gates = [gate(1, "teacher", ["", ""]), gate(2, "stage2", ["0.1", "", "0.3"])]
    config = Config(rounds=2, folds=5)
    found = describe_rounds(config.model_dump(), gates)
    assert found["folds"] == 5
    assert found["rows"] == [
        {"round": 2, "origin": "stage2", "cases": 2, "instability": "0.200 (0.100 to 0.300)"}
    ]
    assert describe_rounds(Config().model_dump(), gates) is None
    # Five folds of the student relabel the cases; the report's own students are the two others.
    text = training_time(config.model_dump(), [0.5, 1.0])
    assert text == "1.5 hours without 5 networks that only make or judge pseudo-labels"


@pytest.mark.parametrize(
    ("variant", "number", "origin", "used"),
    [
        ("gated", 1, "teacher", True),
        ("stage2", 1, "teacher", False),
        ("gated", 2, "gated", True),
        ("gated", 2, "stage2", False),
        ("gated", 1, "gated", False),
    ],
)
def test_only_gated_students_learn_by_a_gate(variant, number, origin, used):
    cases = [{"status": "drop", "reason": f"instability {x}, above 1"} for x in ("1.2", "3.1")]
    gate = Gate(2 if origin != "teacher" else 1, origin, {"text": ["x"]}, cases, [])
    student = Student(Arm(number, variant, "0"), Path(), Path(), {}, {}, None, [])
    found = describe_gate(gate, [student], LABELS)
    assert found["used"] is used
    assert found["dropped"] == [{"cases": 2, "reason": "instability …, above 1"}]


def test_partial_labels_alone_have_a_report(tmp_path):
    tree = Tree(tmp_path, test_labels=False, variants=("partial",))
    page = Page(tree.report()[0])
    assert "Partial labels" in page.words
    assert "Stage 1: " not in page.words
    # The case without a label has nothing fused, and no picture.
    assert "It has no fused label." in page.words
    assert f"itksnap -g {tree.root}/data/plain_1_image.nii.gz\n" in page.text + "\n"
    assert len([p for p in page.pictures if "an axial slice" in p["alt"]]) == 1


def test_main_student_is_the_last_rounds_stage_2_else_gated(tmp_path):
    for variants, expected in (
        (("noise", "gated"), "gated, seed 3"),
        (("gated", "stage2", "noise"), "stage2, seed 3"),
        (("noise", "partial"), "noise, seed 3"),
    ):
        arms = [Arm(1, variant, seed) for variant in variants for seed in ("3", "4")]
        found = [Student(arm, Path(), Path(), {}, {}, None, []) for arm in arms]
        assert main_student(found).title == expected
        if "noise" not in variants[:1]:
            later = Student(Arm(2, "gated", "3"), Path(), Path(), {}, {}, None, [])
            assert main_student([*found, later]) == later


def test_summary_says_what_tumour_free_cases_count(made):
    note = "a tumour-free case counts 100 for the tumour if none is predicted, else 0"
    assert note in made[2].splitlines()
