"""Fusion of partial labels, tumour pseudo-labels and organ pseudo-labels, a shard at a time."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from panorgan.fusion import Fused, composition, conflicts, fuse_stage1, fuse_stage2, specks
from panorgan.labels import Labels, load_labels
from panorgan.manifest import Entry, read_manifest
from panorgan.problems import Problems
from panorgan.selection import needs_tumour
from panorgan.stages import CLASSES, LABEL, UNKNOWNS, VERSIONS
from panorgan.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.volumes import Volume, read_label, write_label

SOURCE = "_source.nii.gz"
CONFLICTS = ("kept", "kept_name", "lost", "lost_name", "lost_input", "voxels", "ml")
DETAILS = {"composition": ("value", "name", "source", "voxels", "ml"), "conflicts": CONFLICTS}
SPECKS = ("value", "name", "voxels", "ml")


def fuse_partial(manifest: str, shard: str, out: ShardOutput, *, labels_file: str) -> None:
    """Stage 0: the partial labels of the labelled cases, no pseudo-labels."""
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels, shard=shard)}
    labelled = {name: entry for name, entry in entries.items() if entry.label}

    def compute(name: str, folder: Path) -> Result:
        entry = labelled[name]
        return _fuse_label(entry, None, entry.unknown, folder, labels)

    run_shard(
        [
            Work(
                name,
                {
                    "label": entry.facts["label_hash"],
                    "grid": entry.facts["grid"],
                    "states": _states(entry),
                },
            )
            for name, entry in labelled.items()
        ],
        compute,
        out,
        parameters=_parameters(0, labels),
        columns=[UNKNOWNS],
        details={**DETAILS, "specks": SPECKS},
        others=[
            {"case": name, "status": "excluded", "reason": "has no label"}
            for name in entries
            if name not in labelled
        ],
    )


def fuse_tumours(
    manifest: str, shard: str, tumours: ShardReader, out: ShardOutput, *, labels_file: str
) -> None:
    """Stage 1: partial labels and, where the tumour is unknown, tumour pseudo-labels."""
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels, shard=shard)}

    def compute(name: str, folder: Path) -> Result:
        entry = entries[name]
        tumour = read_label(tumours.file(name, LABEL)) if needs_tumour(entry, labels) else None
        return _fuse_label(entry, tumour, _unknown_organs(entry, labels), folder, labels)

    def inputs(entry: Entry) -> dict[str, object]:
        needed = needs_tumour(entry, labels)
        return {
            "label": entry.facts["label_hash"],
            "grid": entry.facts["grid"],
            "states": _states(entry),
            "tumour": tumours.checksums(entry.case) if needed else None,
        }

    run_shard(
        [Work(name, inputs(entry)) for name, entry in entries.items()],
        compute,
        out,
        parameters=_parameters(1, labels),
        columns=[UNKNOWNS],
        details={**DETAILS, "specks": SPECKS},
    )


def _fuse_label(
    entry: Entry, tumour: Volume | None, unknown: Iterable[int], folder: Path, labels: Labels
) -> Result:
    """A case's own label, if it has one, and a tumour pseudo-label."""
    partial = entry.read_label() if entry.label else None
    like = _one_grid(entry.case, entry.frame(), partial, tumour)
    fused = fuse_stage1(
        partial.array if partial else None,
        tumour.array if tumour else None,
        entry.states,
        labels,
    )
    result = _write(folder, entry.case, fused, like, labels)
    result.details["specks"] = specks(fused, labels, like.grid.voxel_ml)
    result.row[UNKNOWNS] = _text(unknown)
    return result


def fuse_organs(
    manifest: str,
    shard: str,
    stage1: ShardReader,
    out: ShardOutput,
    *,
    labels_file: str,
    predicted: ShardReader | None = None,
) -> None:
    """Stage 2: what stage 1 left as background is filled with organ pseudo-labels.

    Parameters
    ----------
    predicted
        Organ pseudo-labels that a model made; None takes those that the case table names.
    """
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels, shard=shard)}

    def organs_of(entry: Entry) -> Volume | None:
        if predicted is None:
            return entry.read_organs() if entry.organs else None
        return read_label(predicted.file(entry.case, LABEL)) if entry.case in predicted else None

    def still_unknown(entry: Entry) -> list[int]:
        filled: Iterable[int] = ()
        if predicted is None:
            filled = labels.values if entry.organs else ()
        elif entry.case in predicted:
            filled = map(int, predicted.row(entry.case)[CLASSES].split())
        return sorted({*_unknown_organs(entry, labels)} - {*filled})

    def inputs(entry: Entry) -> dict[str, object]:
        organs: object = entry.facts["organs_hash"]
        if predicted is not None:
            organs = predicted.checksums(entry.case) if entry.case in predicted else None
        return {
            "stage1": stage1.checksums(entry.case),
            "grid": entry.facts["grid"],
            "states": _states(entry),
            "organs": organs,
            UNKNOWNS: still_unknown(entry),
        }

    def compute(name: str, folder: Path) -> Result:
        entry = entries[name]
        label = read_label(stage1.file(name, LABEL))
        source = read_label(stage1.file(name, SOURCE))
        organs = organs_of(entry)
        like = _one_grid(name, entry.frame(), label, organs)
        fused = fuse_stage2(
            label.array,
            source.array,
            organs.array if organs else None,
            entry.states,
            labels,
        )
        result = _write(folder, name, fused, like, labels)
        result.row[UNKNOWNS] = _text(still_unknown(entry))
        return result

    run_shard(
        [Work(name, inputs(entry)) for name, entry in entries.items()],
        compute,
        out,
        parameters=_parameters(2, labels),
        columns=[UNKNOWNS],
        details=DETAILS,
    )


def _unknown_organs(entry: Entry, labels: Labels) -> list[int]:
    return [value for value in entry.unknown if value != labels.tumour.value]


def _text(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def _parameters(stage: int, labels: Labels) -> dict[str, object]:
    return {
        "version": VERSIONS["fuse"],
        "stage": stage,
        "names": labels.names,
        "tumour": labels.tumour_name,
    }


def _states(entry: Entry) -> Mapping[str, str]:
    return {str(value): state for value, state in sorted(entry.states.items())}


def _one_grid(case: str, image: Volume, *labels: Volume | None) -> Volume:
    """The image, on whose grid all labels must be."""
    for label in labels:
        if label is not None and (difference := image.grid.difference(label.grid)):
            cause = f"one of its labels is not on its image's grid: {difference}"
            raise Problems.one(cause, "make that label again", case=case)
    return image


def _write(folder: Path, name: str, fused: Fused, like: Volume, labels: Labels) -> Result:
    write_label(folder / (name + LABEL), fused.label, like)
    write_label(folder / (name + SOURCE), fused.source, like)
    voxel_ml = like.grid.voxel_ml
    return Result(
        details={
            "composition": composition(fused, labels, voxel_ml),
            "conflicts": conflicts(fused, labels, voxel_ml),
        }
    )
