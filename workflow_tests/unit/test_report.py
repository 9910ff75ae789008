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
    assert len(page.pictures) == 3 + 1 + 2 + 3  # cases, fused case, distributions, curves
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
    assert "the tumour is unknown in 2 training cases; the teacher found one in 2 of them" in words
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


def test_conflicts_are_summed_by_pair_and_stage(tmp_path):
    columns = ("case", "kept", "kept_name", "lost", "lost_name", "lost_input", "voxels", "ml")
    tables = []
    for stage, cases in (("stage1", "ab"), ("stage2", "c")):
        rows = [
            dict(zip(columns, (case, 14, "tumour", 1, "liver", "partial", 10, 2.5), strict=True))
            for case in cases
        ]
        tables.append(str(tmp_path / stage / "train-00.conflicts.tsv"))
        write_table(tables[-1], columns, rows)
    found = conflicts_by_pair(tables, LABELS)
    assert (found["count"], found["ml"]) == (2, 7.5)
    assert found["rows"][0] == {
        "stage": "1",
        "kept_name": "Tumour",
        "lost_name": "Liver",
        "lost_input": "partial label",
        "cases": 2,
        "voxels": 20,
        "ml": 5.0,
    }
