"""The page to read before a long run: what is in the data, and what the run will need."""

import csv
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.config import MARGINAL, Config, labels_of, students
from panorgan.job import store_of, visible_gpus
from panorgan.labels import Labels, load_labels
from panorgan.manifest import ANNOTATED, Entry, read_manifest
from panorgan.pages import cut, describe_data, duration, render, size
from panorgan.selection import needs_tumour, reason_against, shows_tumours, wants_organs
from panorgan.tables import read_table, write_text

PREPROCESSED_BYTES = 4 + 2
"""Of a voxel: float32 image, int16 label."""


def write_preflight(
    manifest: str,
    excluded: str,
    suspects: str,
    *,
    config: Config,
    page: str,
) -> str:
    """Write the preflight page.

    Parameters
    ----------
    manifest, excluded, suspects
        The tables of that name.
    config
        Of the run; what it has trained already tells the hours to come.
    page
        The HTML file to write.

    Returns
    -------
    str
        The essentials as plain text, for a log.
    """
    labels = load_labels(config.labels)
    entries = read_manifest(manifest, labels)
    root = Path(page).absolute()
    while not root.exists():
        root = root.parent
    disk = disk_needs(entries, labels, config)
    needed, free = sum(row["bytes"] for row in disk), shutil.disk_usage(root).free
    hours = training_hours(config)
    gpus = visible_gpus()
    obstacles = what_is_missing(entries, labels, config.pseudo_labels.organs)
    context = {
        "run": config.run,
        "obstacles": obstacles,
        "data": describe_data(entries, labels),
        "excluded": cut(read_table(excluded), excluded),
        "suspects": cut(read_table(suspects), suspects),
        "disk": disk,
        "needed": needed,
        "free": free,
        "hours": hours,
        "gpus": gpus,
    }
    write_text(page, render("preflight.html.j2", **context))
    splits = context["data"]["splits"]
    return "\n".join(
        [
            f"cases: {', '.join(f'{count} {split}' for split, count in splits.items())}; "
            f"{context['excluded']['count']} excluded, {context['suspects']['count']} suspects",
            f"disk: at most {size(needed)} needed, {size(free)} free",
            *(f"{row['training']}: {row['text']}" for row in hours),
            f"GPUs: {', '.join(gpus)}" if gpus else "no GPU: training would run on the CPU",
            *(f"ATTENTION: {text}" for text in obstacles),
            f"page: {page}",
        ]
    )


def what_is_missing(entries: Sequence[Entry], labels: Labels, organs: str) -> list[str]:
    """What will stop a run on these cases or make its result worth less, a sentence each.

    `organs` is the config's `pseudo_labels.organs`.
    """
    training = [entry for entry in entries if entry.split == "train"]
    states = [entry.states[labels.tumour.value] for entry in training]
    missing = []
    if ANNOTATED not in states:
        missing.append("no training case has an annotated tumour: the teacher cannot be trained")
    if not any(entry.split == "validation" for entry in entries):
        missing.append("there is no validation case: neither network will be scored")
    without = [entry.case for entry in training if not entry.organs] if organs == "cases" else []
    if without or organs == MARGINAL:
        missing += [
            f"{organ.name} is annotated in no training case"
            for organ in labels.organs
            if all(entry.states[organ.value] != ANNOTATED for entry in training)
        ]
    if without:
        missing.append(
            f"{len(without)} training cases have no organ pseudo-label (first {without[0]}): "
            "what is not annotated in them is learnt as background"
        )
    return missing


def disk_needs(entries: Sequence[Entry], labels: Labels, config: Config) -> list[dict[str, Any]]:
    """What the run will write, without compression and so at most: what, files, bytes.

    Preprocessed data are counted on the networks' grids, label maps on the images'.
    """
    training = [entry for entry in entries if entry.split == "train"]
    validation = [entry for entry in entries if entry.split == "validation"]
    evaluation = [entry for entry in entries if entry.split != "train"]
    shown = [entry for entry in validation if shows_tumours(entry, labels)]
    taught = [entry for entry in training if not reason_against(entry, labels, 0.0, ())] + shown
    pseudo = [entry for entry in training if needs_tumour(entry, labels)]
    organs = []
    if config.pseudo_labels.organs != "cases":
        organs = [entry for entry in training if wants_organs(entry, labels)]
    variants = len({labels_of(variant) for variant, _ in students(config)})
    scored = len(config.student.variants) * len(config.student.seeds)

    def grid(chosen: Iterable[Entry], spacing: Sequence[float]) -> float:
        return sum(resampled_voxels(entry, spacing) for entry in chosen) * PREPROCESSED_BYTES

    def maps(chosen: Iterable[Entry]) -> float:
        return float(sum(math.prod(entry.shape) for entry in chosen))

    rows = [
        ("Teacher's labels", len(taught), maps(taught)),
        ("Teacher's preprocessed data", len(taught), grid(taught, config.teacher.spacing_mm)),
        (
            "Tumour pseudo-labels and the teacher's predictions",
            len(pseudo) + len(shown),
            maps(pseudo) + maps(shown),
        ),
        ("Organ pseudo-labels", len(organs), maps(organs)),
        ("Fused labels and source maps, two stages", 4 * len(training), 4 * maps(training)),
        (
            "Students' preprocessed data",
            variants * (len(training) + len(validation)),
            variants * grid([*training, *validation], config.student.spacing_mm),
        ),
        ("Students' predictions", scored * len(evaluation), scored * maps(evaluation)),
    ]
    return [{"what": what, "files": files, "bytes": count} for what, files, count in rows if files]


def resampled_voxels(entry: Entry, spacing: Sequence[float]) -> float:
    """Voxels of a case on a network's grid; a 2D network keeps the slices as they are."""
    kept = len(entry.shape) - len(spacing)
    voxels = float(math.prod(entry.shape[:kept]))
    for count, old, new in zip(entry.shape[kept:], entry.spacing[kept:], spacing, strict=True):
        voxels *= round(count * old / new)
    return voxels


def training_hours(config: Config) -> list[dict[str, str]]:
    """What is known of the time that each training still needs: training, text."""
    run, teacher = config.run, config.teacher
    root = Path("results") / run
    slots = {"Teacher": (root / f"teacher/seed-{teacher.seed}/model", teacher)}
    for variant, seed in students(config):
        folder = root / f"round-1/student/{variant}/seed-{seed}/model"
        slots[f"Student, {variant}, seed {seed}"] = (folder, config.student)
    rows = []
    for name, (folder, recipe) in slots.items():
        epochs = recipe.training.epochs
        done, seconds = _progress(store_of(folder, run))
        if seconds is None:
            text = f"{epochs} epochs, hours unknown until the first of them are done"
        else:
            hours = max(0, epochs - done) * seconds / 3600
            left = duration(hours)
            text = f"{done} of {epochs} epochs done, {seconds:.1f} s each: {left} to go"
        rows.append({"training": name, "text": text})
    return rows


def _progress(slot: Path) -> tuple[int, float | None]:
    """Epochs done in the newest training of a slot of the store, and seconds of one."""
    files = sorted(slot.glob("*/progress.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return 0, None
    with open(files[-1], newline="") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    return len(rows), float(np.median(seconds)) if seconds else None
