"""Plan, preprocess, train: the same steps for the teacher and the student."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from panorgan.cases.intensities import (
    Histogram,
    add_histograms,
    class_histograms,
    load_histograms,
    save_histograms,
    statistics,
)
from panorgan.cases.manifest import Entry, read_manifest
from panorgan.config.labels import load_labels
from panorgan.config.settings import Member
from panorgan.io.resources import (
    PREPROCESSED_SHARE,
    check_disk,
    held_bytes,
    preprocessed_bytes,
)
from panorgan.io.volumes import Volume
from panorgan.io.writing import write_text
from panorgan.nnunet.cropping import crop_key
from panorgan.problems import Interrupted, Problems
from panorgan.run.scratch import near
from panorgan.run.store import (
    Result,
    ShardOutput,
    ShardReader,
    Work,
    key_of,
    run_shard,
    run_training,
    unfinished,
)
from panorgan.stages import AUTOMATIC, HISTOGRAMS, LABEL, LEFT_OUT, UNKNOWNS, VERSIONS

NOT_RESULTS = ("checkpoint_every_s", "compute", "tensorboard", "threads", "workers")
"""Settings of a training that change nothing of the network but the rounding."""


def measure_intensities(
    manifest: str, fused: ShardReader, out: ShardOutput, *, labels_file: str
) -> int:
    """HU histogram of every class of a shard's fused labels."""
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels)}

    def measured(name: str) -> str:  # before a person corrected it, so that the plan stays
        return AUTOMATIC if name + AUTOMATIC in fused.checksums(name) else LABEL

    def compute(name: str, folder: Path) -> Result:
        label = fused.read_label(name, measured(name))
        histograms = class_histograms(entries[name].read_image().array, label.array)
        save_histograms(folder / (name + HISTOGRAMS), histograms)
        return Result()

    return run_shard(
        [
            Work(
                name,
                {
                    "image": entries[name].facts["image_hash"],
                    "grid": entries[name].facts["grid"],
                    "label": fused.checksums(name)[name + measured(name)],
                },
                entries[name].image,
            )
            for name in fused.cases
        ],
        compute,
        out,
        parameters={"version": VERSIONS["measure"]},
    )


def plan_network(
    manifests: Sequence[str],
    cases: Sequence[str],
    histograms: ShardReader,
    recipe: Mapping[str, Any],
    *,
    labels_file: str,
    classes: Sequence[int],
    frozen: str,
    store: Path,
    plans: str,
    dataset: str,
) -> None:
    """Write the plan of a network from exact statistics of its training cases.

    It is refused if the disk cannot hold what preprocessing by it will write.

    Parameters
    ----------
    manifests
        The training shards' parts.
    cases
        Names of the training cases.
    histograms
        HU histograms of their classes.
    classes
        Values whose voxels are foreground; the network learns them as 1, 2, 3, …
    frozen
        A plans.json that is used as it is instead, if not empty.
    store
        Where its preprocessed cases will be kept.
    plans, dataset
        The files to write: plans.json and dataset.json.
    """
    from panorgan.nnunet.plans import check_plan, make_dataset_json, make_plan

    labels = load_labels(labels_file)
    names = [labels.by_value(value).name for value in classes]
    entries = {entry.case: entry for entry in read_manifest(manifests, labels)}
    expected = _expected_bytes((entries[case] for case in cases), recipe["spacing_mm"])
    check_disk(expected - held_bytes(store), store, "preprocessed data")
    if frozen:
        plan = _frozen_plan(check_plan(frozen), recipe, names, frozen)
    else:
        parts: list[Histogram] = []
        for case in cases:
            found = load_histograms(histograms.file(case, HISTOGRAMS))
            parts += [found[value] for value in classes if value in found]
            parts = [add_histograms(parts)] if parts else []  # one, of however many cases
        if not parts:
            wanted = ", ".join(names)
            cure = "add cases whose label has them, or check `annotated` in the case table"
            raise Problems.one(f"no training case has a voxel of {wanted}", cure)
        plan = make_plan(
            dict(recipe),
            names,
            statistics(*parts),
            tuple(np.median([entries[case].shape for case in cases], axis=0)),
            tuple(np.median([entries[case].spacing for case in cases], axis=0)),
        )
    write_text(plans, json.dumps(plan, indent=1))
    write_text(dataset, json.dumps(make_dataset_json(names, ignore=True), indent=1))


def _expected_bytes(entries: Iterable[Entry], spacing: Sequence[float]) -> float:
    """Bytes of preprocessed cases as they will be stored, compressed."""
    whole = sum(preprocessed_bytes(entry.shape, entry.spacing, spacing) for entry in entries)
    return whole * PREPROCESSED_SHARE


def _frozen_plan(
    plan: dict[str, Any], recipe: Mapping[str, Any], classes: Sequence[str], path: str
) -> dict[str, Any]:
    """A given plan with the config's schedule; the rest of both must agree."""
    cure = "use the plan of an earlier run with these settings, or set `plan` to null"
    if plan["panorgan"]["classes"] != list(classes):
        cause = f"is a plan for {', '.join(plan['panorgan']['classes'])}"
        raise Problems.one(cause, cure, file=path)
    own = plan["panorgan"]["recipe"]
    for key in ("crop", "spacing_mm", "patch_size", "batch_size", "network"):
        if own[key] != recipe[key]:
            raise Problems.one(f"its {key} is {own[key]}, not {recipe[key]}", cure, file=path)
    if own["training"]["batch_dice"] != recipe["training"]["batch_dice"]:
        raise Problems.one("its training.batch_dice is another", cure, file=path)
    return plan | {"panorgan": plan["panorgan"] | {"recipe": dict(recipe)}}


def preprocess_cases(
    manifest: str,
    truth: ShardReader | None,
    plans: str,
    out: ShardOutput,
    *,
    labels_file: str,
) -> int:
    """Bring a shard's images and labels onto the network's grid.

    Parameters
    ----------
    truth
        Labels to learn; None takes the cases' own: those of validation.
    """
    from panorgan.nnunet.case_file import save
    from panorgan.nnunet.preprocess import preprocess_image

    labels = load_labels(labels_file)
    plan = json.loads(Path(plans).read_text())
    entries = {entry.case: entry for entry in read_manifest(manifest, labels)}
    names = list(entries) if truth is None else truth.cases

    def label_of(name: str) -> Volume:
        if truth is None:
            return entries[name].read_label()
        return truth.read_label(name, LABEL)

    def unknown_in(name: str) -> str:
        if truth is None:
            return " ".join(map(str, entries[name].unknown))
        return truth.row(name).get(UNKNOWNS, "")

    def compute(name: str, folder: Path) -> Result:
        image, label = entries[name].read_image(), label_of(name)
        if difference := image.grid.difference(label.grid):
            cause = f"image and label are on different grids: {difference}"
            raise Problems.one(cause, "run the same command again", case=name)
        done = preprocess_image(image, plan, label.array)
        save(folder, name, done)
        shape = " ".join(map(str, done.data.shape[1:]))
        return Result({"shape_zyx": shape, UNKNOWNS: unknown_in(name)})

    work = [
        Work(
            name,
            {
                "image": entries[name].facts["image_hash"],
                "grid": entries[name].facts["grid"],
                "label": entries[name].facts["label_hash"]
                if truth is None
                else truth.checksums(name)[name + LABEL],
                UNKNOWNS: unknown_in(name),
            },
            entries[name].image,
        )
        for name in names
    ]
    parameters = {"version": VERSIONS["preprocess"], "plan": _preprocessing_of(plan)}
    missing = [entries[item.case] for item in unfinished(out.store, work, parameters)]
    (configuration,) = plan["configurations"].values()
    check_disk(_expected_bytes(missing, configuration["spacing"]), out.store, "preprocessed data")
    return run_shard(work, compute, out, parameters=parameters, columns=["shape_zyx", UNKNOWNS])


def _preprocessing_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What preprocessed data depend on in a plan; a deeper network needs no new data."""
    (configuration,) = plan["configurations"].values()
    kept = ("preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm")
    return {
        "intensities": plan["foreground_intensity_properties_per_channel"],
        "orientation": plan["panorgan"]["orientation"],
        "transpose": plan["transpose_forward"],
        "classes": len(plan["panorgan"]["classes"]),
        **crop_key(plan),
        **{key: configuration[key] for key in kept},
        **{key: value for key, value in configuration.items() if key.startswith("resampling_fn")},
    }


def train_network(
    manifests: Sequence[str],
    plans: str,
    dataset: str,
    training: ShardReader,
    validation: ShardReader,
    *,
    labels_file: str,
    member: Member,
    marginal: bool,
    slot: Path,
    model: str,
    table: str,
    notes: Mapping[str, Any],
    console: IO[str] | None = None,
    begin: Callable[[Path], object] = lambda state: None,
    scratch: str = "",
) -> int:
    """Train a network, going on where an earlier job was interrupted.

    Parameters
    ----------
    manifests
        The training shards' parts.
    training, validation
        Preprocessed cases. The validation cases are only looked at: neither the weights nor the
        key under which the training is kept depend on them.
    member
        Its seed, and the fold whose cases it does not train on.
    marginal
        Whether classes that are unknown in a case are left out of what is learnt from it, instead
        of being taken for background.
    slot
        Where the states of this training are kept.
    notes
        What the model's card shall say beside what the training knows.
    console
        Where a bar is shown if it is a terminal.
    begin
        Is called, with the folder of its states, before anything that is left to train.
    scratch
        A folder of this machine to which preprocessed data are copied, if not empty: see
        `panorgan.run.scratch.near`.

    Returns
    -------
    1, or 0 if the network was trained before.
    """
    from panorgan.nnunet.models.files import read_model

    plan = json.loads(Path(plans).read_text())
    plan["panorgan"]["unknown"] = "marginal" if marginal else "background"
    dataset_json = json.loads(Path(dataset).read_text())
    unknown = None
    if marginal:
        unknown = {
            case: [int(value) for value in reader.row(case)[UNKNOWNS].split()]
            for reader in (training, validation)
            for case in reader.cases
        }
    entries = read_manifest(manifests, load_labels(labels_file))
    fold = {entry.case: entry.fold(member.folds) for entry in entries}
    cases = [case for case in training.cases if not member.fold or fold[case] != member.fold]
    recipe = plan["panorgan"]["recipe"]
    schedule = {k: v for k, v in recipe["training"].items() if k not in NOT_RESULTS}
    cases_hash = key_of({case: training.checksums(case) for case in cases})
    key = {
        "stage version": VERSIONS["train"],
        "plan": key_of({k: v for k, v in plan.items() if k != "panorgan"}),
        **crop_key(plan),
        "schedule": schedule,
        "classes": dataset_json["labels"],
        "training cases": cases_hash,
        "seed": member.seed,
        "unknown classes": key_of({case: unknown[case] for case in cases})
        if unknown
        else "background",
    }
    if not training.cases:
        raise Problems.one("no case to train on", "see the selection's table for the reasons")
    if not cases:
        cause = f"no case to train on: all are in fold {member.fold} of {member.folds}"
        raise Problems.one(cause, "set fewer `folds`, or 1")

    card = {"cases": len(cases), "cases_hash": cases_hash, **notes}
    if member.fold:
        card[LEFT_OUT] = [member.fold, member.folds]

    def run(state: Path, check: Callable[[], None]) -> tuple[Path, bool]:
        if (finished := state / "model").exists():
            try:
                read_model(finished)
                return finished, False
            except Problems as damage:
                print(f"{damage}: it is made again from the last checkpoint")
                shutil.rmtree(finished)
        begin(state)
        from panorgan.nnunet.training.train import TrainingInterrupted, train

        try:
            with near(scratch, [(training, cases), (validation, validation.cases)]) as folders:
                model = train(
                    plan,
                    dataset_json,
                    *folders,
                    state,
                    seed=member.seed,
                    card=card,
                    labels=load_labels(labels_file),
                    check=check,
                    console=console,
                    unknown=unknown,
                )
        except TrainingInterrupted as stop:
            raise Interrupted.one(str(stop)) from None
        return model, True

    return run_training(slot, key, run, model=model, table=table)
