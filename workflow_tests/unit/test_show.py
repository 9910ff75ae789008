"""`panorgan show`: pictures of a run's cases and of loose files, and what is said of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fault_rows import fault_rows
from PIL import Image

from panorgan.cases.manifest import read_manifest
from panorgan.cases.table import Case, write_cases
from panorgan.cli import main
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.settings import Arm, Config, main_arm
from panorgan.io.volumes import new_volume, read_image, read_label, write_image, write_label
from panorgan.report.show import canonical, compared_layers, draw_scan, scan_of
from panorgan.run.store import Result, ShardOutput, Work, run_shard
from panorgan.stages.cases import check_cases, index_cases

LABELS_FILE = str(config_folder() / "labels.yaml")
LABELS = load_labels(LABELS_FILE)
SHARDS = {"labelled": 1, "unlabelled": 1, "validation": 1, "test": 1}
SHAPE, SPACING = (6, 20, 24), (5.0, 4.0, 4.0)


def label_map(shift: int = 0) -> np.ndarray:
    """Liver, spleen and a tumour."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 4:12, 14 - shift : 20 - shift] = LABELS.by_name("liver").value
    label[1:5, 4:12, 3:8] = LABELS.by_name("spleen").value
    label[2:4, 6:9, 15:18] = LABELS.tumour.value
    return label


def other_label_map() -> np.ndarray:
    """The same, but for a voxel of liver: two cases do not have one label."""
    label = label_map()
    label[1, 4, 13] = LABELS.by_name("liver").value
    return label


def write_files(folder: Path, name: str, label: np.ndarray | None) -> tuple[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, name))
    hu = np.random.default_rng(seed).integers(-100, 200, SHAPE).astype(np.int16)
    ct = new_volume(hu, SPACING)
    image = folder / f"{name}_image.nii.gz"
    write_image(image, hu, ct)
    if label is None:
        return str(image), ""
    write_label(folder / f"{name}_label.nii.gz", label, ct)
    return str(image), str(folder / f"{name}_label.nii.gz")


class Run:
    """A run whose networks have not done anything yet."""

    def __init__(self, root: Path):
        self.folder = root / "results" / "tiny"
        broken = root / "data" / "broken.nii.gz"
        cases = [
            Case(name, *write_files(root / "data", name, label), split, "some", annotated=annotated)
            for name, split, label, annotated in (
                ("given", "train", np.where(label_map() == 3, 0, label_map()), "liver,tumour"),
                ("bare", "train", None, ""),
                ("seen", "validation", label_map(), ""),
                ("scored", "validation", other_label_map(), "liver"),
                ("new", "test", None, ""),
            )
        ]
        broken.write_bytes(b"no volume")
        cases.append(Case("broken", str(broken), "", "test", "some"))
        table = root / "cases.tsv"
        write_cases(table, cases)
        place = self.folder / "cases"
        index = [place / "index" / f"{kind}-00" for kind in SHARDS]
        for folder in index:
            out = self.out(folder, "problems")
            index_cases(str(table), folder.name, SHARDS, out, labels_file=LABELS_FILE)
        check_cases(
            str(table),
            [f"{folder}.tsv" for folder in index],
            [f"{folder}.problems.tsv" for folder in index],
            list(map(str, index)),
            shards=SHARDS,
            labels_file=LABELS_FILE,
            sources_file=str(config_folder() / "sources.yaml"),
            min_ml=0.0,
            bad_cases="exclude",
            manifest=str(place / "manifest.tsv"),
            class_table=str(place / "labels.yaml"),
            **{
                name: str(place / f"{name}.tsv")
                for name in ("excluded", "suspects", "corrected", "repaired")
            },
        )
        variants = {"variants": ["stage2", "gated"], "seeds": [0, 2, 10]}
        config = {"student": Config().student.model_dump() | variants, "rounds": 2}
        (place / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        self.entries = {e.case: e for e in read_manifest(place / "manifest.tsv", LABELS)}

    def out(self, folder: Path, *details: str) -> ShardOutput:
        return ShardOutput(
            store=self.folder / ".store" / folder.relative_to(self.folder),
            table=folder.with_name(folder.name + ".tsv"),
            folder=folder,
            details={name: folder.with_name(f"{folder.name}.{name}.tsv") for name in details},
        )

    def make(self, place: str, names: list[str], *ends: str) -> None:
        """Publish a label map of each case, and further ones."""

        def compute(name: str, folder: Path) -> Result:
            like = self.entries[name].read_image()
            for end in (".nii.gz", *ends):
                label = np.minimum(label_map(2), 4) if end in ends else label_map(2)
                write_label(folder / (name + end), label, like)
            return Result()

        folder = self.folder / place
        run_shard([Work(n, {}) for n in names], compute, self.out(folder), parameters=place)

    def predict(self, place: str = "round-1/predictions/stage2/seed-0") -> None:
        self.make(f"{place}/validation-00", ["seen", "scored"])
        self.make(f"{place}/test-00", ["new"])

    def fuse(self, place: str = "round-1/fusion/stage2") -> None:
        self.make(f"{place}/labelled-00", ["given"], "_source.nii.gz")
        self.make(f"{place}/unlabelled-00", ["bare"], "_source.nii.gz")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    """Shared by tests that write nothing into it."""
    run = Run(tmp_path_factory.mktemp("run"))
    run.predict()
    run.fuse()
    return run


@pytest.fixture
def unmade(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The tool need not be started where the run was."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)


def show(run: Run, *arguments: str) -> int:
    return main(["show", *arguments, "--run", str(run.folder)])


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


class TestCases:
    def test_validation_case(self, made, capsys):
        assert show(made, "seen") == 0
        said = capsys.readouterr().out
        assert said == ("seen.png: CT, Reference, Prediction; prediction of stage2, seed 0\n")
        assert size("seen.png")[0] > 3 * 450

    def test_test_case_without_a_reference(self, made, capsys):
        assert show(made, "new") == 0
        assert capsys.readouterr().out == (
            "new.png: CT, Prediction; prediction of stage2, seed 0; no reference\n"
        )

    def test_training_case(self, made, capsys):
        assert show(made, "given", "-o", "there.png") == 0
        assert capsys.readouterr().out == (
            "there.png: CT, Partial label, Fused label, Where it comes from; "
            "fused label of stage2\n"
        )
        assert size("there.png")[0] > 4 * 450

    def test_unlabelled_training_case(self, made, capsys):
        assert show(made, "bare") == 0
        said = capsys.readouterr().out
        assert said.startswith("bare.png: CT, Fused label, Where it comes from; ")
        assert said.endswith("; no partial label\n")

    def test_several_cases_and_a_folder(self, made, capsys):
        assert show(made, "seen", "bare", "seen", "-o", "a/b") == 0
        assert sorted(path.name for path in Path("a/b").iterdir()) == ["bare.png", "seen.png"]
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_one_case_into_a_folder_that_exists(self, made):
        Path("pictures").mkdir()
        assert show(made, "seen", "-o", "pictures") == 0
        assert size("pictures/seen.png")

    def test_before_anything_is_trained(self, unmade, capsys):
        assert show(unmade, "seen", "bare", "new", "given") == 0
        assert capsys.readouterr().out.splitlines() == [
            "seen.png: CT, Reference; no prediction",
            "bare.png: CT; no fused label; no partial label",
            "new.png: CT; no prediction; no reference",
            "given.png: CT, Partial label; no fused label",
        ]

    def test_last_round_of_stage_2(self, unmade, capsys):
        for place in ("round-1/{}/stage2", "round-2/{}/gated", "round-2/{}/stage2"):
            unmade.predict(place.format("predictions") + "/seed-10")
            unmade.predict(place.format("predictions") + "/seed-2")
            unmade.fuse(place.format("fusion"))
        assert show(unmade, "seen", "bare") == 0
        said = capsys.readouterr().out
        assert "prediction of stage2, round 2, seed 2\n" in said
        assert "fused label of stage2, round 2;" in said

    def test_reads_the_run_wherever_it_is(self, made, capsys, monkeypatch):
        monkeypatch.chdir(made.folder)
        assert main(["show", "seen", "--run", ".", "-o", "../../local.png"]) == 0

    def test_equal_input_gives_equal_bytes(self, made):
        show(made, "seen", "-o", "a.png")
        show(made, "seen", "-o", "b.png")
        assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


class TestStructures:
    def test_of_a_validation_case(self, made, capsys):
        assert show(made, "seen", "--class", "liver") == 0
        assert capsys.readouterr().out.startswith("seen.png: Liver, Prediction, Reference; ")
        assert 900 < size("seen.png")[0] < 1200

    def test_reference_that_does_not_know_the_class(self, made, capsys):
        assert show(made, "scored", "--class", "spleen") == 0
        said = capsys.readouterr().out
        assert said.startswith("scored.png: Spleen, Prediction; ")
        assert "nobody looked for spleen in its reference" in said

    def test_of_a_training_case(self, made, capsys):
        assert show(made, "given", "--class", "tumour") == 0
        assert "Tumour, Fused label, Partial label; " in capsys.readouterr().out

    def test_without_any_label(self, unmade, capsys):
        assert show(unmade, "new", "--class", "liver") == 1
        assert "there is no label map to show liver in" in capsys.readouterr().err
        assert not Path("new.png").exists()

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("lever", "--class: 'lever' is no class; did you mean 'liver'?\n"),
            ("liver,spleen", "--class: 'liver,spleen' are several classes; name one\n"),
        ],
    )
    def test_wrong_class(self, made, capsys, name, said):
        assert show(made, "seen", "--class", name) == 2
        assert capsys.readouterr().err == said


class TestRefusals:
    def test_unknown_case(self, made, capsys):
        assert show(made, "seem", "bare") == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "'seem' is no case" in said
        assert "did you mean 'seen'?" in said
        assert not list(Path().iterdir())

    def test_excluded_case(self, made, capsys):
        assert show(made, "broken") == 1
        assert "broken.nii.gz: was excluded: is named .gz" in capsys.readouterr().err

    def test_nothing_is_overwritten(self, made, capsys):
        Path("seen.png").write_text("mine")
        assert show(made, "bare", "seen") == 1
        assert capsys.readouterr().err == "seen.png: exists already; name another with -o\n"
        assert [path.name for path in Path().iterdir()] == ["seen.png"]
        assert Path("seen.png").read_text() == "mine"

    def test_a_case_that_cannot_be_drawn_hides_no_other(self, unmade, capsys):
        image = Path(unmade.entries["seen"].image)
        image.write_bytes(image.read_bytes()[:-20])
        assert show(unmade, "seen", "bare", "-o", "a") == 1
        printed = capsys.readouterr()
        assert printed.out.startswith("a/bare.png: ")
        assert printed.err.startswith(f"seen: {image}: ")
        assert [path.name for path in Path("a").iterdir()] == ["bare.png"]

    @pytest.mark.fault("disk-full-pictures")
    def test_a_full_disk_leaves_no_picture(self, made, small_disk, capsys):
        disk = small_disk(1000)
        command = ["seen", "bare", "given", "-o", str(disk / "a/b")]
        for pages in range(0, 1000, 150):
            (disk / "filler").write_bytes(bytes((1000 - pages) * 4096))
            if show(made, *command) == 0:
                break
            fault_rows()["disk-full-pictures"].check(capsys.readouterr().err)
            assert [path.name for path in disk.rglob("*")] == ["filler"]
        assert len(list((disk / "a/b").iterdir())) == 3
        assert pages > 0

    def test_file_for_several_cases(self, made, capsys):
        Path("a.png").write_text("mine")
        assert show(made, "bare", "seen", "-o", "a.png") == 1
        assert "a.png: is a file; name a folder" in capsys.readouterr().err

    def test_other_formats(self, made, capsys):
        assert show(made, "seen", "-o", "seen.jpg") == 2
        assert "is no name of a PNG" in capsys.readouterr().err

    def test_no_run(self, made, tmp_path, capsys):
        assert main(["show", "seen", "--run", str(tmp_path)]) == 1
        assert (
            "cases/manifest.tsv: is not there; name the folder of a run" in capsys.readouterr().err
        )

    def test_the_class_table_is_the_runs_own(self, unmade, capsys):
        table = unmade.folder / "cases/labels.yaml"
        table.write_text(table.read_text().replace("title: Liver", "title: My liver"))
        assert show(unmade, "given", "--class", "liver") == 0
        assert "My liver" in capsys.readouterr().out
        table.unlink()
        assert show(unmade, "seen") == 1
        assert "cases/labels.yaml: is not there; copy the class table" in capsys.readouterr().err

    def test_prediction_that_is_not_what_was_written(self, unmade, capsys):
        unmade.predict()
        path = unmade.folder / "round-1/predictions/stage2/seed-0/validation-00/seen.nii.gz"
        path.unlink()
        shutil.copy(unmade.entries["seen"].label, path)
        assert show(unmade, "seen") == 1
        assert "is not what its job wrote" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["seen"],
            ["--run", "results/demo"],
            ["-i", "ct.nii.gz"],
            ["-o", "a.png"],
            ["seen", "--run", "results/demo", "-l", "a.nii.gz"],
            ["seen", "-i", "ct.nii.gz", "-o", "a.png"],
            ["seen", "--run", "results/demo", "--labels", "labels.yaml"],
        ],
    )
    def test_wrong_usage(self, capsys, arguments):
        assert main(["show", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestFiles:
    @pytest.fixture
    def files(self) -> dict[str, str]:
        image, label = write_files(Path("data"), "a", label_map())
        _, other = write_files(Path("data"), "b", label_map(2))
        return {"-i": image, "-l": label, "-r": other}

    def show(self, files: dict[str, str], *more: str, out: str = "a.png") -> int:
        return main(["show", *(part for pair in files.items() for part in pair), "-o", out, *more])

    def test_ct_label_and_reference(self, files, capsys):
        assert self.show(files) == 0
        assert capsys.readouterr().out == "a.png: CT, Reference, Prediction\n"
        assert size("a.png")[0] > 3 * 450

    def test_ct_alone_and_with_one_label(self, files, capsys):
        assert self.show({"-i": files["-i"]}) == 0
        assert self.show({k: files[k] for k in ("-i", "-l")}, out="b.png") == 0
        assert self.show({k: files[k] for k in ("-i", "-r")}, out="c.png") == 0
        said = capsys.readouterr().out.splitlines()
        assert said == ["a.png: CT", "b.png: CT, Label", "c.png: CT, Reference"]

    def test_structure(self, files, capsys):
        assert self.show(files, "--class", "3") == 0
        assert capsys.readouterr().out == "a.png: Spleen, Prediction, Reference\n"

    def test_structure_without_a_label(self, files, capsys):
        assert self.show({"-i": files["-i"]}, "--class", "spleen") == 1
        assert "name a label map with -l or -r" in capsys.readouterr().err

    def test_other_grid(self, files, capsys):
        moved = new_volume(label_map(), (5.0, 4.0, 3.0))
        write_label("data/moved.nii.gz", moved.array, moved)
        assert self.show(files | {"-l": "data/moved.nii.gz"}) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "data/moved.nii.gz: is not on the grid of data/a_image.nii.gz: spacing" in said
        assert not Path("a.png").exists()

    def test_orientation_does_not_matter(self, files):
        """The same CT and label, stored from left to right and from front to back."""
        assert self.show({k: files[k] for k in ("-i", "-l")}) == 0
        hu = np.random.default_rng(97).integers(-100, 200, SHAPE).astype(np.int16)
        affine = np.diag([-4.0, -4.0, 5.0, 1.0])
        affine[:2, 3] = 4.0 * (SHAPE[2] - 1), 4.0 * (SHAPE[1] - 1)
        flipped = new_volume(hu[:, ::-1, ::-1], SPACING, affine)
        Path("other").mkdir()
        write_image("other/a_image.nii.gz", flipped.array, flipped)
        write_label("other/label.nii.gz", label_map()[:, ::-1, ::-1], flipped)
        paths = {"-i": "other/a_image.nii.gz", "-l": "other/label.nii.gz"}
        assert self.show(paths, out="b.png") == 0
        assert Path("a.png").read_bytes() == Path("b.png").read_bytes()

    def test_values_that_are_no_class_are_named(self, files, capsys):
        label = label_map()
        label[0, 0, :2] = 15, 200
        volume = new_volume(label, SPACING)
        write_label("data/strange.nii.gz", label, volume)
        assert self.show({"-i": files["-i"], "-l": "data/strange.nii.gz"}) == 0
        assert capsys.readouterr().out == "a.png: CT, Label; not drawn, no class: 200\n"

    def test_missing_file(self, files, capsys):
        assert self.show(files | {"-r": "none.nii.gz"}) == 1
        assert capsys.readouterr().err == "none.nii.gz: does not exist; check the path\n"

    def test_nothing_is_overwritten(self, files, capsys):
        Path("a.png").write_text("mine")
        assert self.show(files) == 1
        assert "a.png: exists already" in capsys.readouterr().err


@pytest.mark.real_data
def test_stored_order_of_a_real_ct_does_not_matter(real_data):
    pictures = set()
    for order in ("RAS", "LPS", "IPL"):
        files = (real_data / f"geometry/crop_{order}{end}.nii.gz" for end in ("_0000", ""))
        image, label = (
            read(file) for read, file in zip((read_image, read_label), files, strict=True)
        )
        layers = compared_layers(canonical(label), None, LABELS)
        pictures.add(draw_scan(scan_of(image), layers, LABELS))
    assert len(pictures) == 1


def test_main_arm():
    arms = [Arm(1, "partial", "0"), Arm(1, "gated", "0"), Arm(1, "stage2", "1")]
    assert main_arm(arms) == Arm(1, "stage2", "1")
    assert main_arm(arms[:2]) == Arm(1, "gated", "0")
    assert main_arm([*arms, Arm(2, "gated", "3"), Arm(2, "gated", "0")]) == Arm(2, "gated", "3")
    assert main_arm([Arm(1, "partial", "1"), Arm(1, "stage1", "0")]) == Arm(1, "partial", "1")
