"""Prediction and its scores, a shard at a time."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from panorgan.labels import Labels, load_labels
from panorgan.manifest import UNKNOWN, Entry, read_manifest
from panorgan.metrics import parse_row, score_case, summarise, write_scores
from panorgan.problems import Problems
from panorgan.selection import needs_tumour, shows_tumours
from panorgan.stages import LABEL, VERSIONS
from panorgan.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.tables import read_table
from panorgan.volumes import read_label, write_label

EFFICIENCY = (
    "device",
    "preprocess_s",
    "network_s",
    "export_s",
    "total_s",
    "peak_ram_mb",
    "peak_gpu_mb",
)
SCORES = ("value", "name", "dsc", "nsd", "ref_ml", "pred_ml", "status")


def _tumour_known(entry: Entry, labels: Labels) -> bool:
    return entry.split == "validation" and shows_tumours(entry, labels)


def _any(entry: Entry, labels: Labels) -> bool:
    return True


WANTED = {
    "unknown tumours": needs_tumour,
    "known tumours": _tumour_known,
    "all": _any,
}
"""Which of a shard's cases a prediction rule wants."""


def predict_cases(
    manifest: str,
    shard: str,
    wanted: Callable[[Entry, Labels], bool],
    model: str,
    model_table: str,
    out: ShardOutput,
    *,
    labels_file: str,
    tile_step: float,
    precision: str,
    threads: int,
) -> None:
    """Predict those of a shard's cases that are wanted, each on exactly its image's grid."""
    from panorgan.nnunet.devices import pick_device, resolve_precision
    from panorgan.predict import Predictor

    labels = load_labels(labels_file)
    entries = {
        entry.case: entry
        for entry in read_manifest(manifest, labels, shard=shard)
        if wanted(entry, labels)
    }
    device = pick_device("auto")
    resolved = resolve_precision(precision, device)
    (trained,) = read_table(model_table)

    @cache
    def predictor() -> Predictor:
        found = Predictor(
            model, device=device, precision=resolved, tile_step=tile_step, threads=threads
        )
        if found.model.card["checksum"] != trained["checksum"]:
            cure = f"make it again: delete {model} and run the same command"
            raise Problems.one("is not what its training wrote", cure, file=model)
        return found

    def compute(name: str, folder: Path) -> Result:
        image = entries[name].read_image()
        write_label(folder / (name + LABEL), predictor().predict(image), image)
        return Result(details={"efficiency": [predictor().last_report]})

    run_shard(
        [
            Work(name, {"image": entry.facts["image_hash"], "grid": entry.facts["grid"]})
            for name, entry in entries.items()
        ],
        compute,
        out,
        parameters={
            "version": VERSIONS["predict"],
            "model": trained["checksum"],
            "tile_step": tile_step,
            "precision": resolved,
        },
        details={"efficiency": EFFICIENCY},
    )


def score_cases(
    manifest: str,
    shard: str,
    predictions: ShardReader,
    out: ShardOutput,
    *,
    labels_file: str,
    profile: str,
) -> None:
    """DSC and NSD of every labelled case of a shard, a row a class.

    A class that is unknown in a case is not scored there.
    """
    labels = load_labels(labels_file)
    entries = {
        entry.case: entry for entry in read_manifest(manifest, labels, shard=shard) if entry.label
    }

    def compute(name: str, folder: Path) -> Result:
        entry = entries[name]
        reference = entry.read_label()
        prediction = read_label(predictions.file(name, LABEL))
        rows = score_case(
            prediction.array,
            reference.array,
            reference.grid.spacing,
            labels,
            profile,
            unknown=_unknown(entry),
        )
        return Result(details={"scores": rows})

    run_shard(
        [
            Work(
                name,
                {
                    "label": entry.facts["label_hash"],
                    "grid": entry.facts["grid"],
                    "prediction": predictions.checksums(name),
                    "unknown": _unknown(entry),
                },
            )
            for name, entry in entries.items()
        ],
        compute,
        out,
        parameters={
            "version": VERSIONS["score"],
            "profile": profile,
            "labels": labels.model_dump(mode="json"),
        },
        details={"scores": SCORES},
    )


def summarise_scores(
    manifest: str,
    score_tables: Sequence[str],
    split: str,
    *,
    labels_file: str,
    profile: str,
    folder: Path,
) -> None:
    """Collect the scores of a split from all shards: `cases.csv` and `summary.json`."""
    labels = load_labels(labels_file)
    cases = {entry.case for entry in read_manifest(manifest, labels, split=split)}
    rows = [
        parse_row(row)
        for table in score_tables
        for row in read_table(table)
        if row["case"] in cases
    ]
    rows.sort(key=lambda row: (row["case"], row["value"]))
    write_scores(rows, summarise(rows, labels, profile), folder)


def _unknown(entry: Entry) -> Sequence[int]:
    return [value for value, state in sorted(entry.states.items()) if state == UNKNOWN]
