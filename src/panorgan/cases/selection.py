"""Which cases train the teacher, and what it learns from them: tumour 1, everything else 0."""

from collections.abc import Collection

import numpy as np

from panorgan.cases.corrections import scope_text
from panorgan.cases.manifest import Entry
from panorgan.config.labels import ABSENT, ANNOTATED, UNKNOWN, Labels

TUMOUR = 1
"""Value of a tumour in the teacher's labels and predictions."""


def reason_against(
    entry: Entry,
    labels: Labels,
    min_tumour_ml: float,
    exclude: Collection[str],
    negatives: bool = False,
) -> str:
    """Why a training case does not train the teacher; empty if it does.

    With `negatives` tumour-free cases do, if annotators looked everywhere: where they did not,
    the teacher would be taught that there is no tumour.
    """
    tumour = labels.tumour.value
    state = entry.states[tumour]
    if state == UNKNOWN:
        return "tumour is not annotated"
    if state == ABSENT and not negatives:
        return "has no tumour"
    if state == ABSENT and entry.scope is not None:
        return f"has no tumour in {scope_text(entry.scope, labels)}, elsewhere nobody looked"
    if not entry.label:
        return "has no label"
    if entry.case in exclude:
        return "named in selection.exclude"
    volume = entry.volume_ml(tumour)
    if state == ANNOTATED and volume < min_tumour_ml:
        return f"tumour of {volume:.3f} ml is below selection.min_tumour_ml"
    return ""


def needs_tumour(entry: Entry, labels: Labels) -> bool:
    """Whether a case gets a tumour pseudo-label: a training case in which nobody looked, or not
    everywhere."""
    unknown = entry.states[labels.tumour.value] == UNKNOWN or entry.scope is not None
    return entry.split == "train" and unknown


def wants_organs(entry: Entry, labels: Labels) -> bool:
    """Whether a model can tell a case more organs than its annotators did: a training case."""
    unknown = {*entry.unknown} - {labels.tumour.value}
    return entry.split == "train" and bool(unknown)


def shows_tumours(entry: Entry, labels: Labels) -> bool:
    """Whether annotators looked for tumours everywhere, so that the teacher can be judged on the
    case: a tumour outside their scope would count as its mistake."""
    return entry.states[labels.tumour.value] != UNKNOWN and entry.scope is None


def teacher_label(entry: Entry, labels: Labels) -> np.ndarray:
    """What the teacher learns of a case, uint8 (z, y, x): 1 where it has an annotated tumour."""
    if entry.states[labels.tumour.value] != ANNOTATED:
        return np.zeros(entry.frame().array.shape, np.uint8)
    return (entry.read_label().array == labels.tumour.value).astype(np.uint8) * TUMOUR
