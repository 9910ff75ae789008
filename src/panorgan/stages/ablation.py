"""The ablation of a run: tables of scores in, a table, a page and all numbers out."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from panorgan.config.labels import Labels, load_labels
from panorgan.io.writing import write_text
from panorgan.problems import Problem, Problems
from panorgan.scoring.ablation import (
    compare,
    measure_cases,
    page_text,
    table_of,
    without_absent,
)
from panorgan.scoring.frames import ABLATION
from panorgan.scoring.scores import read_scores


def write_ablation(
    arms: Mapping[str, Sequence[str]],
    *,
    split: str,
    labels_file: str,
    samples: int,
    seed: int,
    table: str,
    page: str,
    details: str,
) -> None:
    """Compare students that differ in the labels that they learnt from, and print what comes out.

    Parameters
    ----------
    arms
        Arm -> the `cases.csv` of each seed; arms are listed in this order.
    split
        Whose scores these are, for people.
    samples, seed
        Number of bootstrap samples and seed of their random numbers.
    table, page, details
        The files to write: a row an arm and measure (TSV), Markdown, and JSON with the mean of
        every seed too. Equal input gives equal bytes.

    Raises
    ------
    Problems
        If a file is no table of scores, or the arms are not scored on the same cases.
    """
    labels = load_labels(labels_file)
    scores = {arm: [read_scores(path) for path in files] for arm, files in arms.items()}
    measured = {
        arm: [_measure(*one, labels) for one in zip(files, scores[arm], strict=True)]
        for arm, files in arms.items()
    }
    result = compare(measured, samples=samples, seed=seed)
    if without := without_absent(scores, labels):
        result["with_reference"] = without
    text = page_text(result, split)
    ABLATION.write(table, table_of(result))
    write_text(page, text)
    write_text(details, json.dumps({"split": split, "seed": seed, **result}, indent=2) + "\n")
    print(text)


def _measure(path: str, scores: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    try:
        return measure_cases(scores, labels)
    except ValueError as error:
        cure = "remove the file and run the same command again"
        raise Problems([Problem("", str(path), str(error), cure)]) from None
