"""Who predicts whom, and the tables of pieces that the gate reads."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from panorgan.cases.manifest import ABSENT, ANNOTATED, FACTS, UNKNOWN, Entry, write_manifest
from panorgan.cases.selection import to_predict
from panorgan.cases.table import Case, fold_of, shard_of
from panorgan.config.labels import load_labels
from panorgan.config.settings import Member, members
from panorgan.fusing.components import COLUMNS, component_rows, find_components
from panorgan.inference.engines.choice import choose
from panorgan.io.tables import read_table, write_table
from panorgan.io.volumes import (
    geometry_hash,
    new_volume,
    read_label,
    voxel_hash,
    write_image,
    write_label,
)
from panorgan.problems import Problems
from panorgan.run.store import ShardOutput, ShardReader, file_checksum
from panorgan.stages import LEFT_OUT, components
from panorgan.stages.components import Round, measure_components
from panorgan.stages.prediction import predict_cases
from panorgan.stages.pseudo_labels import OrganLabels
from panorgan.stages.training import train_network

LABELS = load_labels()
LIVER, SPLEEN, PANCREAS = (LABELS.by_name(n).value for n in ("liver", "spleen", "pancreas"))
TUMOUR = LABELS.tumour.value
SHAPE, SPACING = (6, 8, 10), (5.0, 2.0, 1.0)
ML = 0.01


def box(z, y, x, value, array=None) -> np.ndarray:
    """A map with a box of a value, given as (start, stop) on each axis."""
    array = np.zeros(SHAPE, np.uint8) if array is None else array
    array[tuple(slice(*pair) for pair in (z, y, x))] = value
    return array


def add_case(folder: Path, name: str, *, label=None, organs=None, patient="", **states) -> Entry:
    """A training case with real files; classes that are not named are unknown."""
    folder.mkdir(exist_ok=True)
    image = np.random.default_rng(list(name.encode())).integers(-50, 150, SHAPE).astype(np.int16)
    like = new_volume(image, SPACING)
    facts = dict.fromkeys(FACTS, "") | {
        "shape_zyx": "6 8 10",
        "spacing_mm_zyx": "5 2 1",
        "voxel_ml": str(ML),
        "grid": geometry_hash(like),
        "image_hash": voxel_hash(like),
    }
    files = {"image": folder / f"{name}.nii.gz", "label": "", "organs": ""}
    write_image(files["image"], image, like)
    for kind, array in (("label", label), ("organs", organs)):
        if array is not None:
            files[kind] = folder / f"{name}_{kind}.nii.gz"
            write_label(files[kind], array, like)
            facts[f"{kind}_hash"] = voxel_hash(new_volume(array, SPACING))
    known = {LABELS.by_name(name).value: state for name, state in states.items()}
    return Entry(
        case=name,
        split="train",
        shard="labelled-00",
        source="s",
        patient=patient,
        facts=facts,
        states=dict.fromkeys(LABELS.values, UNKNOWN) | known,
        **{kind: str(path) for kind, path in files.items()},
    )


def manifest_of(tmp_path: Path, *entries: Entry) -> str:
    write_manifest(tmp_path / "manifest.tsv", entries, LABELS)
    return str(tmp_path / "manifest.tsv")


def maps(tmp_path: Path, name: str, arrays: dict[str, np.ndarray], classes="") -> ShardReader:
    """Published label maps."""
    folder = tmp_path / name
    folder.mkdir()
    rows = []
    for case, array in arrays.items():
        write_label(folder / f"{case}.nii.gz", array, new_volume(array, SPACING))

        files = f"{case}.nii.gz:{file_checksum(folder / f'{case}.nii.gz')}"
        row = {"case": case, "status": "ok", "reason": "", "files": files}
        rows.append(row | ({"classes": classes} if classes else {}))
    columns = ["case", "status", "reason", "files", *(["classes"] if classes else [])]
    write_table(folder.with_suffix(".tsv"), columns, rows)
    return ShardReader([folder.with_suffix(".tsv")], [folder])


def output(tmp_path: Path, name: str, *details: str, folder=False) -> ShardOutput:
    root = tmp_path / name
    return ShardOutput(
        root / ".store",
        root / "t.tsv",
        root / "t" if folder else None,
        {detail: root / f"t.{detail}.tsv" for detail in details},
    )


# ---------------------------------------------------------------------------------------------
# Folds


def test_folds_are_stable_even_and_independent_of_shards():
    names = [f"case_{number}" for number in range(3000)]
    assert [fold_of(name, 5) for name in names[:6]] == [fold_of(name, 5) for name in names[:6]]
    assert {fold_of(name, 1) for name in names} == {1}
    counts = np.zeros((5, 5))
    for name in names:
        shard = int(shard_of(Case(name, "i", "l", "train", "s"), {"labelled": 5})[-2:])
        counts[fold_of(name, 5) - 1, shard] += 1
    assert counts.min() > 80
    assert counts.max() < 160


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains members on eight cases, three of them of one patient; says who saw which cases."""
    cases = {f"c{number}": ("twin" if number < 3 else "") for number in range(8)}
    entries = [
        add_case(tmp_path / "data", case, patient=patient, tumour=ANNOTATED)
        for case, patient in cases.items()
    ]
    manifest = manifest_of(tmp_path, *entries)
    data = maps(tmp_path, "data_of_training", {c: np.zeros(SHAPE, np.uint8) for c in cases})
    recipe = {"training": {"epochs": 1}}
    (tmp_path / "plans.json").write_text(json.dumps({"panorgan": {"recipe": recipe}}))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {}}))
    seen = {}
    count = itertools.count()

    def train(plan, dataset, training, validation, state, *, card, seed, **others):
        model = state / "model"
        model.mkdir(parents=True, exist_ok=True)
        number = str(len(seen))
        seen[number] = set(training)
        (model / "card.json").write_text(json.dumps(card | {"checksum": number, "seed": seed}))
        (model / "plans.json").write_text(json.dumps({"panorgan": {}}))
        return model

    monkeypatch.setattr("panorgan.nnunet.training.train.train", train)

    def run(member: Member, **more) -> tuple[Member, str, str]:
        model = tmp_path / "models" / str(member)
        train_network(
            manifest,
            str(tmp_path / "plans.json"),
            str(tmp_path / "dataset.json"),
            data,
            maps(tmp_path, f"validation-{next(count)}", {}),
            labels_file=str(labels_path()),
            member=member,
            marginal=False,
            slot=tmp_path / "slots" / str(member),
            model=str(model),
            table=str(model) + ".tsv",
            notes={},
            **more,
        )
        return member, str(model), str(model) + ".tsv"

    return SimpleNamespace(run=run, seen=seen, manifest=manifest, cases=list(cases), root=tmp_path)


def labels_path() -> Path:
    return Path(__file__).parents[2] / "config" / "labels.yaml"


@pytest.fixture
def predicted(trained, monkeypatch):
    """Predicts with a stand-in for networks, and says which model predicted which image."""
    calls = []

    class Stub:
        def __init__(self, model, device, precision, **settings):
            self.way = choose("torch", device, precision)
            card = json.loads((Path(model) / "card.json").read_text())
            self.model = SimpleNamespace(card=card)
            self.last_report = {}

        def predict(self, volume, probabilities=False):
            calls.append((self.model.card["checksum"], voxel_hash(volume)))
            label = np.zeros(volume.array.shape, np.uint8)
            label[0, 0, :3] = 1
            label[3, 0, 0] = 1
            if not probabilities:
                return label
            pieces = find_components(label)
            chances = np.full(len(pieces.places), 0.75)
            rows = component_rows(pieces, volume.array, volume.grid, {1: "tumour"}, chances)
            return label, rows

    monkeypatch.setattr("panorgan.inference.predictor.Predictor", Stub)

    def run(models, wanted="all", name="p", **options) -> ShardReader:
        calls.clear()
        details = ["efficiency", *(["components"] if options.get("components") else [])]
        out = output(trained.root, name, *details, folder=True)
        predict_cases(
            trained.manifest,
            wanted,
            models,
            out,
            labels_file=str(labels_path()),
            tile_step=0.5,
            precision="fp32",
            engine="auto",
            export="nearest",
            threads=1,
            **options,
        )
        return ShardReader([out.table], [out.folder])

    return SimpleNamespace(run=run, calls=calls)


def test_each_case_is_left_out_by_one_network_with_its_patient(trained):
    for member in members(0, 3):
        trained.run(member)
    left_out = [set(trained.cases) - seen for seen in trained.seen.values()]
    assert sorted(case for cases in left_out for case in cases) == sorted(trained.cases)
    assert any({"c0", "c1", "c2"} <= cases for cases in left_out)


def test_a_fold_counts_in_the_trainings_key_by_its_cases_alone(trained):
    one, other = Member(0), Member(0, 1, 3)
    rows = [read_table(trained.run(member)[2])[0] for member in (one, other)]
    keys = [
        json.loads((trained.root / "slots" / str(member) / row["key"] / "key.json").read_text())
        for member, row in zip((one, other), rows, strict=True)
    ]
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"training cases"}
    assert set(trained.cases) == trained.seen["0"]
    card = json.loads((trained.root / "models" / str(other) / "card.json").read_text())
    assert card[LEFT_OUT] == [1, 3]
    assert card["cases"] == len(trained.seen["1"])


def test_a_fold_of_all_cases_leaves_nothing_to_learn(trained):
    with pytest.raises(Problems, match="all are in fold 1 of 1"):
        trained.run(Member(0, 1, 1))


def test_no_case_is_predicted_by_a_model_that_trained_on_it(trained, predicted):
    models = [trained.run(member) for member in members(0, 3)]
    reader = predicted.run(models)
    assert reader.cases == sorted(trained.cases)
    table = {row["case"]: row["image_hash"] for row in read_table(trained.manifest)}
    of_image = {image: {c for c, i in table.items() if i == image} for image in table.values()}
    assert len(of_image) == len(table)
    assert len(predicted.calls) == len(trained.cases)
    for model, image in predicted.calls:
        assert not of_image[image] & trained.seen[model]


def test_what_is_predicted_anew_when_one_models_training_changes(trained, predicted):
    models = [trained.run(member) for member in members(0, 3)]
    predicted.run(models)
    predicted.run(models)
    assert predicted.calls == []
    member, model, table = models[1]
    card = Path(model) / "card.json"
    content = json.loads(card.read_text()) | {"checksum": "another"}
    card.unlink()
    card.write_text(json.dumps(content))
    write_table(table, ["model", "checksum"], [{"model": model, "checksum": "another"}])
    predicted.run(models)
    assert {model for model, _ in predicted.calls} == {"another"}
    folds = [fold_of("twin" if case in ("c0", "c1", "c2") else case, 3) for case in trained.cases]
    assert len(predicted.calls) == folds.count(member.fold) > 0


def test_a_model_that_left_out_another_fold_is_refused(trained, predicted):
    models = [trained.run(member) for member in members(0, 3)]
    swapped = [(models[0][0], *models[1][1:]), (models[1][0], *models[0][1:]), models[2]]
    with pytest.raises(Problems, match="did not leave out fold"):
        predicted.run(swapped)
    one = trained.run(Member(0))
    with pytest.raises(Problems, match="did not leave out fold 3"):
        predicted.run([*models[:2], (models[2][0], *one[1:])])


def test_a_model_for_each_fold_or_one_for_all(trained, predicted):
    models = [trained.run(member) for member in members(0, 3)]
    for wrong in (models[:2], [*models, models[0]], [*models[:2], trained.run(Member(0))]):
        with pytest.raises(ValueError, match="no model for each fold"):
            predicted.run(wrong)


def test_one_model_does_not_predict_what_it_has_seen_where_that_is_said(trained, predicted):
    one = [trained.run(Member(0))]
    known = "known tumours in training"
    assert predicted.run(one, known).cases == sorted(trained.cases)
    unseen = predicted.run(one, known, "q", seen={"c0", "c5"}).cases
    assert unseen == ["c1", "c2", "c3", "c4", "c6", "c7"]
    models = [trained.run(member) for member in members(0, 3)]
    assert predicted.run(models, known, "r", seen={"c0"}).cases == sorted(trained.cases)


def test_a_shard_without_a_case_to_predict_loads_no_network_and_takes_no_gpu(trained, predicted):
    one = [trained.run(Member(0))]
    reader = predicted.run(one, "known tumours", components=True, begin=lambda: 1 / 0)
    assert reader.cases == predicted.calls == []
    assert read_table(trained.root / "p/t.components.tsv") == []
    code = f"""
import sys
from pathlib import Path
from panorgan.config.settings import Member
from panorgan.run.store import ShardOutput
from panorgan.stages.prediction import predict_cases
place = Path({str(trained.root)!r}, "q")
out = ShardOutput(place / "store", place / "t.tsv", place / "t", dict(efficiency=place / "e.tsv"))
predict_cases({trained.manifest!r}, "known tumours", [(Member(0), "no", "no.tsv")], out,
    labels_file={str(labels_path())!r}, tile_step=0.5, precision="fp32", engine="auto",
    export="nearest", threads=1)
slow = {{"torch", "openvino", "nnunetv2", "pandas"}} & {{*sys.modules}}
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (trained.root / "q/t").is_dir()


def test_a_training_that_is_finished_is_published_without_torch_or_gpu(trained, monkeypatch):
    monkeypatch.setattr("panorgan.nnunet.models.files.read_model", lambda folder: None)
    begun = []
    trained.run(Member(0), begin=begun.append)
    assert [state.parent for state in begun] == [trained.root / "slots/0"]
    trained.run(Member(0), begin=begun.append)
    assert len(begun) == 1


def test_the_pieces_of_predictions_have_the_class_tables_values(trained, predicted):
    predicted.run([trained.run(Member(0))], components=True)
    rows = read_table(trained.root / "p/t.components.tsv")
    assert list(rows[0]) == ["case", *COLUMNS]
    assert len(rows) == 2 * len(trained.cases)
    first, second = rows[:2]
    assert (first["case"], first["value"], first["name"]) == ("c0", str(TUMOUR), "tumour")
    assert (first["component"], first["voxels"], second["voxels"]) == ("1", "3", "1")
    assert first["mean_probability"] == "0.75"
    assert first["organ"] == first["distance_mm"] == first["hit_ml"] == ""


def test_who_is_wanted(tmp_path):
    def names(kind: str) -> str:
        return "".join(entry.case for entry in to_predict(entries, LABELS, kind))

    all_known = dict.fromkeys(LABELS.names, ANNOTATED)
    entries = [
        add_case(tmp_path, "a", **all_known),
        add_case(tmp_path, "b", **all_known | {"tumour": UNKNOWN}),
        add_case(tmp_path, "c", **all_known | {"tumour": ABSENT}),
        add_case(tmp_path, "d", **all_known | {"liver": UNKNOWN}),
        add_case(tmp_path, "e"),
    ]
    assert names("known tumours in training") == "acd"
    assert names("unknown classes") == "bde"
    assert names("known tumours") == ""


# ---------------------------------------------------------------------------------------------
# The gate's tables


@pytest.fixture
def measure(tmp_path):
    """Measures a manifest's cases; the rows of pieces, and those of cases by name."""

    def run(entries, tumours, organs, tumour_value=1, earlier=(), name="gate", **options):
        out = output(tmp_path, name, "components")
        measure_components(
            manifest_of(tmp_path, *entries),
            Round(tumours, OrganLabels(organs), tumour_value),
            earlier,
            out,
            labels_file=str(labels_path()),
            **options,
        )
        rows = read_table(out.details["components"])
        return rows, {row["case"]: row for row in read_table(out.table)}

    return run


def places(rows) -> list[tuple[str, ...]]:
    return [tuple(row[c] for c in ("name", "component", "voxels", "organ")) for row in rows]


def test_tumours_lie_in_annotated_organs_first_then_in_pseudo_organs(tmp_path, measure):
    label = box((0, 3), (0, 4), (0, 4), LIVER)
    organs = box((0, 6), (0, 8), (0, 10), SPLEEN)  # also over the liver that was drawn
    organs[3:, 4:, 6:] = LIVER  # which never fills, as the liver is annotated
    a = add_case(tmp_path / "data", "a", label=label, organs=organs, liver=ANNOTATED)
    tumour = box((1, 2), (1, 3), (1, 3), 1)
    tumour[4, 1, 1] = 1
    tumour[4:6, 6:8, 8:10] = 1
    rows, cases = measure([a], maps(tmp_path, "tumours", {"a": tumour}), None)
    assert places(rows) == [
        ("tumour", "1", "8", "spleen"),
        ("tumour", "2", "4", "liver"),
        ("tumour", "3", "1", "spleen"),
        ("spleen", "1", str(480 - 48), ""),
    ]
    assert [row["distance_mm"] for row in rows] == ["3.0", "0.0", "0.0", ""]
    assert {row["hit_ml"] for row in rows} == {""}
    assert {row["mean_probability"] for row in rows} == {""}
    image = np.random.default_rng(list(b"a")).integers(-50, 150, SHAPE)
    assert float(rows[1]["hu_mean"]) == pytest.approx(image[1, 1:3, 1:3].mean(), abs=0.006)
    assert float(rows[1]["ml"]) == pytest.approx(4 * ML)
    assert cases["a"]["instability"] == ""


def test_without_organs_their_columns_are_empty(tmp_path, measure):
    a = add_case(tmp_path / "data", "a")
    b = add_case(tmp_path / "data", "b", label=box((0, 1), (0, 1), (0, 1), LIVER), liver=ABSENT)
    tumours = maps(tmp_path, "tumours", {"a": box((0, 1), (0, 1), (0, 1), 1)})
    rows, cases = measure([a, b], tumours, None)
    assert places(rows) == [("tumour", "1", "1", "")]
    assert rows[0]["distance_mm"] == ""
    assert cases["b"]["reason"] == "has no pseudo-label"


def test_known_tumours_give_hits_and_no_other_rows(tmp_path, measure):
    truth = box((0, 2), (0, 2), (0, 3), TUMOUR)
    organs = box((3, 6), (0, 8), (0, 10), SPLEEN)
    a = add_case(tmp_path / "data", "a", label=truth, organs=organs, tumour=ANNOTATED)
    b = add_case(tmp_path / "data", "b", label=truth * 0, tumour=ABSENT)
    c = add_case(tmp_path / "data", "c", organs=organs)
    found = box((0, 1), (0, 2), (0, 5), 1)
    found[5, 7, 9] = 1
    tumours = maps(tmp_path, "tumours", dict.fromkeys("abc", found))
    rows, cases = measure([a, b, c], tumours, None, known=True)
    assert [(row["case"], row["name"], row["component"], row["hit_ml"]) for row in rows] == [
        ("a", "tumour", "1", "0.06"),
        ("a", "tumour", "2", "0.0"),
        ("b", "tumour", "1", "0.0"),
        ("b", "tumour", "2", "0.0"),
    ]
    assert [row["organ"] for row in rows] == ["spleen", "spleen", "", ""]
    assert {name: row["status"] for name, row in cases.items()} == {
        "a": "ok",
        "b": "ok",
        "c": "excluded",
    }


def test_later_rounds_have_one_map_of_all_classes(tmp_path, measure):
    whole = box((0, 2), (0, 4), (0, 4), LIVER)
    whole[4:, 6:, :] = SPLEEN
    whole[0, 0, 0] = whole[1, 1, 1] = TUMOUR
    a = add_case(tmp_path / "data", "a", label=whole * 0, spleen=ABSENT)
    b = add_case(tmp_path / "data", "b", label=whole * 0, tumour=ABSENT)
    both = maps(tmp_path, "both", {"a": whole, "b": whole})
    rows, _ = measure([a, b], both, both, tumour_value=TUMOUR)
    of_case = {case: places([row for row in rows if row["case"] == case]) for case in "ab"}
    assert of_case["a"] == [("tumour", "1", "2", "liver"), ("liver", "1", "30", "")]
    assert of_case["b"] == [("liver", "1", "30", ""), ("spleen", "1", "40", "")]


def test_what_was_written_with_a_map_is_taken_over_and_checked(tmp_path, measure):
    a = add_case(tmp_path / "data", "a", organs=box((0, 6), (0, 8), (0, 2), LIVER))
    tumour = box((0, 1), (0, 1), (1, 4), 1)
    tumours = maps(tmp_path, "tumours", {"a": tumour})
    pieces = find_components(tumour * np.uint8(TUMOUR))
    grid = new_volume(tumour, SPACING).grid
    chances = np.array([0.5, 0.75, 1.0])
    (row,) = component_rows(pieces, tumour, grid, {TUMOUR: "tumour"}, chances)
    table = tmp_path / "rows.tsv"
    write_table(table, ["case", *COLUMNS], [{"case": "a"} | row])
    rows, _ = measure([a], tumours, None, tumour_rows=[str(table)])
    assert rows[0]["mean_probability"] == "0.75"
    assert rows[0]["organ"] == "liver"
    assert rows[1]["mean_probability"] == ""  # of the organ, which came with the case
    write_table(table, ["case", *COLUMNS], [{"case": "a"} | row | {"voxels": 4}])
    with pytest.raises(Problems, match="not of its label map"):
        measure([a], tumours, None, tumour_rows=[str(table)])
    write_table(table, ["case", *COLUMNS], [])
    with pytest.raises(Problems, match="not of its label map"):
        measure([a], tumours, None, tumour_rows=[str(table)])


def test_instability_compares_what_all_rounds_could_tell(tmp_path, measure, monkeypatch):
    compared = []

    def instability(found):
        compared.append([one.copy() for one in found])
        return 0.25

    monkeypatch.setattr(components, "instability", instability)
    entries = [
        add_case(tmp_path / "data", "a", label=box((0, 1), (0, 1), (0, 1), LIVER), liver=ANNOTATED),
        add_case(tmp_path / "data", "b"),
    ]
    first = box((0, 2), (0, 2), (0, 2), SPLEEN)
    first[4] = PANCREAS
    tumour = box((1, 3), (0, 1), (0, 1), 1)
    whole = box((0, 2), (0, 2), (0, 3), SPLEEN)
    whole[5], whole[3, 0, 0], whole[3, 5, 5] = LIVER, TUMOUR, PANCREAS
    earlier = Round(
        maps(tmp_path, "tumours", {"a": tumour}),
        OrganLabels(maps(tmp_path, "organs", {"a": first}, classes=f"{LIVER} {SPLEEN}")),
        1,
    )
    both = maps(tmp_path, "both", {"a": whole, "b": whole})
    _, cases = measure(entries, both, both, TUMOUR, [earlier])
    assert {name: row["instability"] for name, row in cases.items()} == {"a": "0.25", "b": ""}
    ((before, now),) = compared
    expected = box((0, 2), (0, 2), (0, 2), SPLEEN)
    expected[1:3, 0, 0] = TUMOUR  # over the organ
    np.testing.assert_array_equal(before, expected)
    expected = box((0, 2), (0, 2), (0, 3), SPLEEN)
    expected[3, 0, 0] = TUMOUR  # the liver is annotated; the first model knew no pancreas
    np.testing.assert_array_equal(now, expected)


def test_only_cases_whose_inputs_changed_are_measured_again(tmp_path, measure, capsys):
    entries = [add_case(tmp_path / "data", name) for name in ("a", "b")]
    tumour = box((0, 1), (0, 1), (0, 1), 1)

    def computed(tumours) -> str:
        capsys.readouterr()
        measure(entries, tumours, None)
        return capsys.readouterr().out.splitlines()[-1]

    tumours = maps(tmp_path, "first", {"a": tumour, "b": tumour})
    assert computed(tumours).startswith("2 computed, 0 reused")
    assert computed(tumours).startswith("0 computed, 2 reused")
    other = maps(tmp_path, "second", {"a": tumour, "b": box((0, 1), (0, 2), (0, 1), 1)})
    assert computed(other).startswith("1 computed, 1 reused")


def test_a_pseudo_label_of_another_grid_is_refused(tmp_path, measure):
    a = add_case(tmp_path / "data", "a")
    tumours = maps(tmp_path, "tumours", {"a": box((0, 1), (0, 1), (0, 1), 1)})
    path = tmp_path / "tumours/a.nii.gz"
    label = read_label(path).array
    write_label(path, label, new_volume(label, (5.0, 2.0, 1.5)))
    rows = read_table(tmp_path / "tumours.tsv")

    rows[0]["files"] = f"a.nii.gz:{file_checksum(path)}"
    write_table(tmp_path / "tumours.tsv", list(rows[0]), rows)
    tumours = ShardReader([tmp_path / "tumours.tsv"], [tmp_path / "tumours"])
    with pytest.raises(Problems, match="not on its image's grid"):
        measure([a], tumours, None)
