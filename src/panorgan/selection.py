"""Which cases train the teacher, and what it learns from them: tumour 1, everything else 0."""

from collections.abc import Collection

import numpy as np

from panorgan.labels import Labels
from panorgan.manifest import ABSENT, ANNOTATED, UNKNOWN, Entry

TUMOUR = 1
"""Value of a tumour in the teacher's labels and predictions."""


def reason_against(
    entry: Entry, labels: Labels, min_tumour_ml: float, exclude: Collection[str]
) -> str:
    """Why a training case does not train the teacher; empty if it does."""
    tumour = labels.tumour.value
    state = entry.states[tumour]
    if state == UNKNOWN:
        return "tumour is not annotated"
    if state == ABSENT:
        return "has no tumour"
    if entry.case in exclude:
        return "named in selection.exclude"
    volume = entry.volume_ml(tumour)
    if volume < min_tumour_ml:
        return f"tumour of {volume:.3f} ml is below selection.min_tumour_ml"
    return ""


def needs_tumour(entry: Entry, labels: Labels) -> bool:
    """Whether a case gets a tumour pseudo-label: a training case in which nobody looked."""
    return entry.split == "train" and entry.states[labels.tumour.value] == UNKNOWN


def wants_organs(entry: Entry, labels: Labels) -> bool:
    """Whether a model can tell a case more organs than its annotators did: a training case."""
    unknown = {*entry.unknown} - {labels.tumour.value}
    return entry.split == "train" and bool(unknown)


def shows_tumours(entry: Entry, labels: Labels) -> bool:
    """Whether annotators looked for tumours, so that the teacher can be judged on the case."""
    return entry.states[labels.tumour.value] in (ANNOTATED, ABSENT)


def teacher_label(label: np.ndarray, labels: Labels) -> np.ndarray:
    """uint8 array of the same shape: 1 where the label is tumour, else 0."""
    return (label == labels.tumour.value).astype(np.uint8) * TUMOUR
