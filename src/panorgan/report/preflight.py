"""The page to read before a long run: what is in the data, and what the run will need."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from panorgan.cases.manifest import ABSENT, ANNOTATED, UNKNOWN, Entry, read_manifest
from panorgan.cases.selection import (
    needs_tumour,
    organs_problem,
    reason_against,
    shows_tumours,
    wants_organs,
)
from panorgan.config.labels import Labels, load_labels
from panorgan.config.registry import MARGINAL
from panorgan.config.settings import (
    Config,
    fused_labels,
    learns_filled,
    students,
    teachers,
    trained_students,
)
from panorgan.io.formats import duration, size
from panorgan.io.gpus import visible_gpus
from panorgan.io.resources import (
    KEPT_CHECKPOINTS,
    LABEL_MAP_SHARE,
    PREPROCESSED_SHARE,
    checkpoints_bytes,
    free_disk,
    held_bytes,
    model_bytes,
    preprocessed_bytes,
    preprocessing_memory,
)
from panorgan.io.tables import COMMA, read_table
from panorgan.io.writing import write_text
from panorgan.report.pages import cut, describe_data, render
from panorgan.run.layout import Layout, beside


def write_preflight(
    manifest: str,
    excluded: str,
    suspects: str,
    *,
    config: Config,
    page: str,
    config_file: str,
) -> str:
    """Write the preflight page, and the config for those who look at the run later.

    Parameters
    ----------
    manifest, excluded, suspects
        The tables of that name.
    config
        Of the run; what it has trained already tells the hours to come.
    page
        The HTML file to write.
    config_file
        The YAML file to write.

    Returns
    -------
    str
        The essentials as plain text, for a log.
    """
    labels = load_labels(config.labels)
    entries = read_manifest(manifest, labels)
    disk = disk_needs(entries, labels, config)
    most, needed = (sum(row[key] for row in disk) for key in ("bytes", "expected"))
    there, free = held_bytes(Path("results") / config.run), free_disk(Path(page))
    hours = training_hours(config)
    gpus = visible_gpus()
    doubts = read_table(suspects)
    obstacles = what_is_missing(entries, labels, config)
    obstacles += [*what_is_doubtful(entries, doubts), *what_is_elsewhere(entries, labels)]
    context = {
        "run": config.run,
        "obstacles": obstacles,
        "data": describe_data(entries, labels),
        "excluded": cut(read_table(excluded), excluded),
        "suspects": cut(doubts, suspects),
        "disk": disk,
        "most": most,
        "needed": needed,
        "there": there,
        "free": free,
        "memory": memory_needs(entries, config),
        "hours": hours,
        "gpus": gpus,
    }
    write_text(page, render("preflight.html.j2", **context))
    write_text(config_file, yaml.safe_dump(config.model_dump(), sort_keys=False))
    splits = context["data"]["splits"]
    return "\n".join(
        [
            f"cases: {', '.join(f'{count} {split}' for split, count in splits.items())}; "
            f"{context['excluded']['count']} excluded, {context['suspects']['count']} suspects",
            f"disk: about {size(needed)} needed, at most {size(most)}; "
            f"{size(there)} there already, {size(free)} free",
            *(f"{row['training']}: {row['text']}" for row in hours),
            f"GPUs: {', '.join(gpus)}" if gpus else "no GPU: training would run on the CPU",
            *(f"ATTENTION: {text}" for text in obstacles),
            f"page: {page}",
        ]
    )


def what_is_missing(entries: Sequence[Entry], labels: Labels, config: Config) -> list[str]:
    """What will stop a run on these cases or make its result worth less, a sentence each."""
    organs = config.pseudo_labels.organs
    training = [entry for entry in entries if entry.split == "train"]
    states = [entry.states[labels.tumour.value] for entry in training]
    missing = []
    if ANNOTATED not in states:
        missing.append("no training case has an annotated tumour: the teacher cannot be trained")
    if not any(entry.split == "validation" for entry in entries):
        missing.append("there is no validation case: neither network will be scored")
    made = config.pseudo_labels.predicted
    without = [entry.case for entry in training if not made and not entry.organs]
    if without or organs == MARGINAL:
        missing += [
            f"{organ.name} is annotated in no training case"
            for organ in labels.organs
            if all(entry.states[organ.value] != ANNOTATED for entry in training)
        ]
    stop = organs_problem(entries, labels, organs) if learns_filled(config) else None
    if stop:
        missing.append(f"the run stops before it trains: {stop}")
    elif without:
        missing.append(
            f"{len(without)} training cases have no organ pseudo-label (first {without[0]}): "
            "what is not annotated in them is learnt as background"
        )
    return missing


def what_is_doubtful(
    entries: Sequence[Entry], suspects: Iterable[Mapping[str, str]]
) -> Iterator[str]:
    """Suspects that stand in the way, a sentence for all of one kind of a source.

    `suspects` are rows of the table of that name.
    """
    sources = {entry.case: entry.source for entry in entries}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in suspects:
        if row["obstacle"] and row["case"] in sources:
            causes = found.setdefault((row["obstacle"], sources[row["case"]]), {})
            causes.setdefault(row["case"], row["cause"])
    for (obstacle, source), causes in found.items():
        count = sum(one == source for one in sources.values())
        case, cause = next(iter(causes.items()))
        yield f"{obstacle} in {len(causes)} of {count} cases of {source} (first {case}: {cause})"


def what_is_elsewhere(entries: Sequence[Entry], labels: Labels) -> Iterator[str]:
    """Sources in whose labels classes that were looked for never occur, but others instead."""
    sources: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.label:
            sources.setdefault(entry.source, []).append(entry)
    for source, found in sources.items():
        never = [
            label.name
            for label in labels.labels
            if all(entry.states[label.value] == ABSENT for entry in found)
        ]
        instead = [
            label.name
            for label in labels.labels
            if all(entry.states[label.value] == UNKNOWN for entry in found)
            and any(entry.label_values.get(label.value) for entry in found)
        ]
        if never and instead:
            yield (
                f"{len(found)} labels of {source} never hold {', '.join(never)}, which was looked "
                f"for, but {', '.join(instead)}, which was not: they seem to be numbered otherwise "
                "than the class table"
            )


def disk_needs(entries: Sequence[Entry], labels: Labels, config: Config) -> list[dict[str, Any]]:
    """What the run will write: what, files, bytes without compression (so at most) and expected.

    Preprocessed data are counted on the networks' grids, label maps on the images'. The store holds
    the same files under a second name; they count once.
    """
    training = [entry for entry in entries if entry.split == "train"]
    validation = [entry for entry in entries if entry.split == "validation"]
    evaluation = [entry for entry in entries if entry.split != "train"]
    shown = [entry for entry in validation if shows_tumours(entry, labels)]
    negatives = config.selection.negatives
    taught = [
        entry for entry in training if not reason_against(entry, labels, 0.0, (), negatives)
    ] + shown
    pseudo = [entry for entry in training if needs_tumour(entry, labels)]
    organs = []
    if config.pseudo_labels.predicted:
        organs = [entry for entry in training if wants_organs(entry, labels)]
    trained = trained_students(config)
    variants = len({(arm.round, arm.labels) for arm in trained})
    fusions = len(fused_labels(config))
    scored = len(students(config))
    taught_by = len(teachers(config))
    teacher, student = config.teacher.model_dump(), config.student.model_dump()
    of_teacher = _parameters(teacher["network"], outputs=2)
    of_student = _parameters(student["network"], outputs=1 + len(labels.values))

    def grid(chosen: Iterable[Entry], spacing: Sequence[float]) -> float:
        return sum(preprocessed_bytes(entry.shape, entry.spacing, spacing) for entry in chosen)

    def maps(chosen: Iterable[Entry]) -> float:
        return sum(math.prod(entry.shape) for entry in chosen)

    rows = [
        ("Teacher's labels", len(taught), maps(taught), LABEL_MAP_SHARE),
        (
            "Teacher's preprocessed data",
            len(taught),
            grid(taught, config.teacher.spacing_mm),
            PREPROCESSED_SHARE,
        ),
        (
            "Tumour pseudo-labels and the teacher's predictions",
            len(pseudo) + len(shown),
            maps(pseudo) + maps(shown),
            LABEL_MAP_SHARE,
        ),
        ("Organ pseudo-labels", len(organs), maps(organs), LABEL_MAP_SHARE),
        (
            "Fused labels and source maps",
            2 * fusions * len(training),
            2 * fusions * maps(training),
            LABEL_MAP_SHARE,
        ),
        (
            "Students' preprocessed data",
            variants * (len(training) + len(validation)),
            variants * grid([*training, *validation], config.student.spacing_mm),
            PREPROCESSED_SHARE,
        ),
        (
            "Checkpoints of all trainings",
            KEPT_CHECKPOINTS * (taught_by + len(trained)),
            taught_by * checkpoints_bytes(of_teacher, teacher["training"]["optimizer"])
            + len(trained) * checkpoints_bytes(of_student, student["training"]["optimizer"]),
            1,
        ),
        (
            "Models",
            taught_by + len(trained),
            taught_by * model_bytes(of_teacher) + len(trained) * model_bytes(of_student),
            1,
        ),
        (
            "Students' predictions",
            scored * len(evaluation),
            scored * maps(evaluation),
            LABEL_MAP_SHARE,
        ),
    ]
    return [
        {"what": what, "files": files, "bytes": count, "expected": share * count}
        for what, files, count, share in rows
        if files
    ]


def _parameters(network: Mapping[str, Any], outputs: int) -> int:
    """Of a recipe's network, which is made without its weights."""
    import torch  # slow, and nothing else of preflight needs it

    from panorgan.networks import build_network, count_parameters

    with torch.device("meta"):
        return count_parameters(build_network(input_channels=1, num_classes=outputs, **network))


def memory_needs(entries: Sequence[Entry], config: Config) -> list[dict[str, Any]]:
    """Main memory to preprocess the case that takes most, for each network: what, case, bytes."""
    rows: list[dict[str, Any]] = []
    if not entries:
        return rows
    for what, recipe in (("teacher", config.teacher), ("student", config.student)):
        most, case = max(
            (preprocessing_memory(entry.shape, entry.spacing, recipe.spacing_mm), entry.case)
            for entry in entries
        )
        rows.append({"what": what, "case": case, "bytes": most})
    return rows


def training_hours(config: Config) -> list[dict[str, str]]:
    """What is known of the time that each training still needs: training, text."""
    paths = Layout(config.run)
    models = {
        f"Teacher, seed {member}": (paths.teacher_model(member), config.teacher)
        for member in teachers(config)
    }
    for arm in trained_students(config):
        models[f"Student, {arm.title}"] = (paths.student_model(*arm.place), config.student)
    rows = []
    for name, (model, recipe) in models.items():
        epochs = recipe.training.epochs
        done, seconds = _progress(beside(model, ".store"))
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
    rows = read_table(files[-1], COMMA)
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    return len(rows), float(np.median(seconds)) if seconds else None
