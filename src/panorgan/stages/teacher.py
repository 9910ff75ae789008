"""Tumour-case selection and the teacher's scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from panorgan.cases.manifest import read_manifest
from panorgan.cases.selection import TUMOUR, reason_against, shows_tumours, teacher_label
from panorgan.config.labels import Labels, load_labels
from panorgan.io.failures import Failures
from panorgan.io.tables import read_table
from panorgan.io.volumes import write_label
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.stages import LABEL, VERSIONS


def select_tumour_cases(
    manifest: str,
    out: ShardOutput,
    *,
    labels_file: str,
    min_tumour_ml: float,
    exclude: Sequence[str],
    negatives: bool = False,
) -> int:
    """Write the teacher's labels of a shard's cases.

    Training cases are selected or excluded with the reason; validation cases are taken where
    annotators looked for tumours, for the teacher's learning curve and scores. With `negatives`
    tumour-free cases are selected too, with an empty label.
    """
    labels = load_labels(labels_file)
    selected, others = {}, []
    for entry in read_manifest(manifest, labels):
        if entry.split == "train":
            reason = reason_against(entry, labels, min_tumour_ml, exclude, negatives)
        else:
            reason = "" if shows_tumours(entry, labels) else "tumour is not annotated everywhere"
        if reason:
            others.append({"case": entry.case, "status": "excluded", "reason": reason})
        else:
            selected[entry.case] = entry

    def compute(name: str, folder: Path) -> Result:
        entry = selected[name]
        label = teacher_label(entry, labels)
        write_label(folder / (name + LABEL), label, entry.frame())
        ml = np.count_nonzero(label) * float(entry.facts["voxel_ml"])
        return Result({"tumour_ml": f"{ml:.3f}"})

    return run_shard(
        [
            Work(
                name,
                {
                    "label": entry.facts["label_hash"],
                    "grid": entry.facts["grid"],
                    "state": entry.states[labels.tumour.value],
                },
                entry.image,
            )
            for name, entry in selected.items()
        ],
        compute,
        out,
        parameters={"version": VERSIONS["select"], "tumour": labels.tumour.value},
        columns=["tumour_ml"],
        others=others,
    )


def selected_cases(tables: Sequence[str]) -> list[str]:
    """Names of the cases that train the teacher."""
    rows = (row for table in tables for row in read_table(table))
    return sorted(row["case"] for row in rows if row["status"] == "ok")


def score_teacher(
    manifests: Sequence[str],
    truth: ShardReader,
    predictions: ShardReader,
    *,
    labels_file: str,
    profile: str,
    samples: int,
    overlap: float,
    sizes_mm: Sequence[float],
    folder: Path,
) -> None:
    """Score the teacher's tumours on the validation cases, as `summarise_scores` does."""
    from panorgan.scoring.evaluation import Evaluation  # loads pandas
    from panorgan.scoring.frames import LESIONS, SCORES
    from panorgan.scoring.lesions import find_lesions
    from panorgan.scoring.metrics import score_case

    labels = load_labels(labels_file)
    tumour = Labels(
        labels=(labels.tumour.model_copy(update={"value": TUMOUR}),),
        tumour=labels.tumour_name,
        ignore=TUMOUR + 1,
    )
    scores, lesions = [], []
    failures = Failures(print)
    for entry in read_manifest(manifests, labels):
        if entry.case not in predictions:
            continue
        with failures.of(entry.case, entry.image):
            prediction = predictions.read_label(entry.case, LABEL)
            reference = truth.read_label(entry.case, LABEL)
            arrays, grid = (prediction.array, reference.array), reference.grid
            of_classes = score_case(*arrays, grid.spacing, tumour, profile)
            of_lesions = find_lesions(*arrays, grid, TUMOUR, overlap=overlap)
            scores += [{"case": entry.case} | row for row in of_classes]
            lesions += [{"case": entry.case} | row for row in of_lesions]
    failures.check()
    scored = Evaluation(profile, SCORES.frame(scores), LESIONS.frame(lesions))
    scored.summarise(tumour, samples=samples, overlap=overlap, sizes_mm=sizes_mm)
    scored.write(folder)
