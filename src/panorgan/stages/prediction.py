"""Prediction and its scores, a shard at a time."""

import shutil
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

import numpy as np

from panorgan.cases.manifest import read_manifest
from panorgan.cases.selection import to_predict
from panorgan.config.labels import Labels, load_labels
from panorgan.config.settings import Member
from panorgan.fusing.components import COLUMNS
from panorgan.io.tables import read_table, write_table
from panorgan.io.volumes import write_label
from panorgan.io.writing import new_folder
from panorgan.nnunet.cropping import crop_key
from panorgan.problems import Problems
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.scoring.lesions import DETAILS, as_text, find_lesions
from panorgan.scoring.metrics import SCORES, score_case
from panorgan.stages import CLASSES, LABEL, LEFT_OUT, VERSIONS

EFFICIENCY = (
    "device",
    "engine",
    "precision",
    "preprocess_s",
    "network_s",
    "export_s",
    "total_s",
    "peak_ram_mb",
    "peak_gpu_mb",
    "gpu_area_mb_s",
    "challenge_area_mb_s",
)

Model = tuple[Member, str, str]
"""A network that has been trained or given: which one it is, its folder and its table."""


def predict_cases(
    manifest: str,
    wanted: str,
    models: Sequence[Model],
    out: ShardOutput,
    *,
    labels_file: str,
    tile_step: float,
    precision: str,
    engine: str,
    export: str,
    threads: int,
    translate: bool = False,
    components: bool = False,
    seen: Container[str] = (),
    begin: Callable[[], object] = lambda: None,
) -> int:
    """Predict those of a shard's cases that are wanted, each on exactly its image's grid.

    Parameters
    ----------
    wanted
        One of `cases.selection.WANTED`.
    models
        One that predicts every case, or one for each fold: then each case is predicted by the one
        that did not train on its fold.
    translate
        Whether the model's classes, which may be in another order or only some, are written with
        the class table's values; the table then says in `classes` which they are.
    components
        Whether the detail table `components` says what the pieces of each label map are; values
        there are the class table's.
    seen
        Names of cases on which a model without folds has trained: it does not predict them.
    begin
        Is called before the first thing that takes time; not for a shard in which no case is
        wanted, which takes none.

    Raises
    ------
    Problems
        If a model is not what its training wrote, or did not leave out the fold that it predicts.
    """
    labels = load_labels(labels_file)
    by_fold = _by_fold(models)
    folds = models[0][0].folds
    columns = [CLASSES] if translate else []
    tables = {"efficiency": EFFICIENCY, **({"components": COLUMNS} if components else {})}
    found = to_predict(read_manifest(manifest, labels), labels, wanted, seen, folds)
    entries = {entry.case: entry for entry in found}
    if not entries:
        return run_shard(
            *([], lambda *_: Result(), out), parameters=None, columns=columns, details=tables
        )
    begin()
    from panorgan.inference.engines.choice import choose
    from panorgan.inference.predictor import Predictor
    from panorgan.nnunet.models.folders import PLANS, read_json

    fold_of = {name: entry.fold(folds) if folds > 1 else 0 for name, entry in entries.items()}
    checksums = {fold: read_table(table)[0]["checksum"] for fold, (_, _, table) in by_fold.items()}
    way = choose(engine, precision=precision)
    values = _translation(models[0][1], labels) if translate else None
    plan = read_json(Path(models[0][1], PLANS), "copy the whole model folder again")

    @lru_cache(maxsize=1)
    def predictor(fold: int) -> Predictor:
        member, model, _ = by_fold[fold]
        found = Predictor(
            model,
            way.device,
            way.precision,
            engine=way.engine,
            export=export,
            tile_step=tile_step,
            threads=threads,
        )
        card = found.model.card
        if card["checksum"] != checksums[fold]:
            cure = f"make it again: delete {model} and run the same command"
            raise Problems.one("is not what its training wrote", cure, file=model)
        if fold and card.get(LEFT_OUT) != [member.fold, member.folds]:
            cause = f"its training did not leave out fold {member.fold} of {member.folds}"
            raise Problems.one(cause, "a case would be predicted by what has seen it", file=model)
        return found

    def compute(name: str, folder: Path) -> Result:
        image = entries[name].read_image()
        network = predictor(fold_of[name])
        details: dict[str, list[dict[str, object]]] = {}
        if components:
            predicted, rows = network.predict(image, probabilities=True)
            rows = [{**row, "value": labels.by_name(row["name"]).value} for row in rows]
            details["components"] = sorted(rows, key=itemgetter("value", "component"))
        else:
            predicted = network.predict(image)
        row = {}
        if values is not None:
            predicted = values[predicted]
            row[CLASSES] = " ".join(map(str, sorted({*values.tolist()} - {0})))
        write_label(folder / (name + LABEL), predicted, image)
        way = network.way
        computed = {"engine": f"{way.engine} {way.version}", "precision": way.precision}
        return Result(row, details={"efficiency": [computed | network.last_report], **details})

    def inputs(name: str) -> dict[str, object]:
        facts = entries[name].facts
        found = {"image": facts["image_hash"], "grid": facts["grid"]}
        return found | ({"model": checksums[fold_of[name]]} if folds > 1 else {})

    return run_shard(
        # One network at a time is in memory.
        [
            Work(name, inputs(name), entries[name].image)
            for name in sorted(entries, key=fold_of.__getitem__)
        ],
        compute,
        out,
        parameters={
            "version": VERSIONS["predict"],
            "tile_step": tile_step,
            "export": export,
            "way": [way.engine, way.version, way.device, way.precision],
            **crop_key(plan),
            **({"model": checksums[0]} if folds == 1 else {}),
            **({} if values is None else {"values": values.tolist()}),
            **({"components": VERSIONS["components"]} if components else {}),
        },
        columns=columns,
        details=tables,
    )


def _by_fold(models: Sequence[Model]) -> dict[int, Model]:
    """The models by the fold that they predict, 0 for one of all; ValueError if one is missing."""
    found = {member.fold: (member, model, table) for member, model, table in models}
    folds = {member.folds for member, _, _ in models}
    expected = [0] if folds == {1} else list(range(1, max(folds) + 1))
    if len(folds) > 1 or sorted(member.fold for member, _, _ in models) != expected:
        raise ValueError(f"no model for each fold: {[str(member) for member, _, _ in models]}")
    return found


def _translation(model: str, labels: Labels) -> np.ndarray:
    """uint8 array: the class table's value of each of a model's outputs, by the class's name."""
    from panorgan.nnunet.models.files import read_model

    names = read_model(model).plan["panorgan"]["classes"]
    if foreign := [name for name in names if name not in labels.names]:
        cause = f"it knows classes that the class table has not: {', '.join(foreign)}"
        cure = "convert it with `panorgan convert --classes`, naming them as the table does"
        raise Problems.one(cause, cure, file=model)
    if not {*names} & {organ.name for organ in labels.organs}:
        cause = f"it knows no organ, only {', '.join(names)}"
        raise Problems.one(cause, "name another model in pseudo_labels.organs", file=model)
    return np.array([0, *(labels.by_name(name).value for name in names)], np.uint8)


def import_model(source: str, model: str, table: str) -> None:
    """Copy a model that was given, as panorgan's if it is of nnU-Net, so that it can be used here.

    Parameters
    ----------
    source
        Folder of a model of panorgan, nnU-Net 2 or nnU-Net 1; it is only read.
    model, table
        The declared outputs: the model's folder and its one-row table.
    """
    from panorgan.nnunet.models.convert import convert
    from panorgan.nnunet.models.folders import WEIGHTS
    from panorgan.nnunet.models.model import load_model

    folder = Path(model)
    shutil.rmtree(folder, ignore_errors=True)
    if (Path(source) / WEIGHTS).exists():
        load_model(source)
        with new_folder(folder) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    else:
        print("\n".join(convert(Path(source), folder)))
    checksum = load_model(folder).card["checksum"]
    write_table(table, ["model", "checksum"], [{"model": source, "checksum": checksum}])


def score_cases(
    manifest: str,
    predictions: ShardReader,
    out: ShardOutput,
    *,
    labels_file: str,
    profile: str,
    overlap: float,
) -> int:
    """Scores of every labelled case of a shard, a row a class, and its lesions.

    A class that is unknown in a case is not scored there, nor are tumours with a scope.
    """
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels) if entry.label}

    def compute(name: str, folder: Path) -> Result:
        entry = entries[name]
        reference = entry.read_label()
        prediction = predictions.read_label(name, LABEL)
        rows = score_case(
            prediction.array,
            reference.array,
            reference.grid.spacing,
            labels,
            profile,
            unknown=entry.unjudged,
        )
        lesions = []
        if labels.tumour.value not in entry.unjudged:
            lesions = find_lesions(
                prediction.array,
                reference.array,
                reference.grid,
                labels.tumour.value,
                overlap=overlap,
            )
        return Result(details={"scores": rows, "lesions": [as_text(row) for row in lesions]})

    return run_shard(
        [
            Work(
                name,
                {
                    "label": entry.facts["label_hash"],
                    "grid": entry.facts["grid"],
                    "prediction": predictions.checksums(name),
                    "unknown": entry.unjudged,
                },
                entry.image,
            )
            for name, entry in entries.items()
        ],
        compute,
        out,
        parameters={
            "version": VERSIONS["score"],
            "profile": profile,
            "overlap": overlap,
            "labels": labels.model_dump(mode="json"),
        },
        details={"scores": SCORES, "lesions": DETAILS},
    )


def summarise_scores(
    score_tables: Sequence[str],
    lesion_tables: Sequence[str],
    *,
    labels_file: str,
    profile: str,
    samples: int,
    overlap: float,
    sizes_mm: Sequence[float],
    folder: Path,
) -> None:
    """Collect a split's scores from its shards: `cases.csv`, `lesions.csv` and `summary.json`."""
    from panorgan.scoring import frames  # loads pandas
    from panorgan.scoring.evaluation import Evaluation

    labels = load_labels(labels_file)
    scores, lesions = frames.SCORES.read(*score_tables), frames.LESIONS.read(*lesion_tables)
    # Shards come in any order, the rows of a case in one that means something.
    found = Evaluation(
        profile, *(rows.sort_values("case", kind="stable") for rows in (scores, lesions))
    )
    found.summarise(labels, samples=samples, overlap=overlap, sizes_mm=sizes_mm)
    found.write(folder)
