"""Which cases train the teacher, and what it learns from them: tumour 1, everything else 0."""

from collections.abc import Collection, Container, Iterable

import numpy as np

from panorgan.cases.corrections import scope_text
from panorgan.cases.manifest import Entry
from panorgan.config.labels import ABSENT, ANNOTATED, UNKNOWN, Labels
from panorgan.config.registry import CASES, MARGINAL, NONE
from panorgan.problems import Problem

TUMOUR = 1
"""Value of a tumour in the teacher's labels and predictions."""

ORGANS = "pseudo_labels.organs"
"""Key of the config."""


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


def organs_problem(entries: Iterable[Entry], labels: Labels, organs: str) -> Problem | None:
    """Why labels of stage 2 would teach something else than is meant; None if they would not.

    `organs` is the config's `pseudo_labels.organs`.
    """
    training = [entry for entry in entries if entry.split == "train"]
    given = [entry for entry in training if entry.organs]
    lacking = [entry for entry in training if wants_organs(entry, labels)]
    if organs == NONE and given:
        cause = f"is {NONE}, but {given[0].case} has an organ pseudo-label"
        cause += f", and {len(given) - 1} more" if given[1:] else ""
        return Problem("config", ORGANS, cause, f"set it to {CASES}, or empty the column organs")
    if organs != CASES or given or not lacking:
        return None
    cause = (
        f"no training case has an organ pseudo-label, and in {len(lacking)} of {len(training)} "
        f"organs are unknown (first {lacking[0].case}): stage 2 would teach that they are not there"
    )
    cure = (
        "name label maps in the case table's column organs (panorgan init --organs), or set it to "
        f"{MARGINAL} or to the folder of a trained model, or to {NONE} if that is meant"
    )
    return Problem("config", ORGANS, cause, cure)


def shows_tumours(entry: Entry, labels: Labels) -> bool:
    """Whether annotators looked for tumours everywhere, so that the teacher can be judged on the
    case: a tumour outside their scope would count as its mistake."""
    return entry.states[labels.tumour.value] != UNKNOWN and entry.scope is None


def _in_validation(entry: Entry, labels: Labels) -> bool:
    return entry.split == "validation" and shows_tumours(entry, labels)


def _in_training(entry: Entry, labels: Labels) -> bool:
    return entry.split == "train" and shows_tumours(entry, labels)


def _unknown(entry: Entry, labels: Labels) -> bool:
    return needs_tumour(entry, labels) or wants_organs(entry, labels)


def _any(entry: Entry, labels: Labels) -> bool:
    return True


WANTED = {
    "unknown tumours": needs_tumour,
    "known tumours": _in_validation,
    "known tumours in training": _in_training,
    "unknown organs": wants_organs,
    "unknown classes": _unknown,
    "all": _any,
}
"""Which of a shard's cases a prediction rule wants."""


def to_predict(
    entries: Iterable[Entry],
    labels: Labels,
    wanted: str,
    seen: Container[str] = (),
    folds: int = 1,
) -> list[Entry]:
    """The cases that a prediction rule predicts.

    Parameters
    ----------
    wanted
        One of `WANTED`.
    seen
        Names of cases on which a model without folds has trained: it does not predict them.
    folds
        How many models share the cases.
    """
    chosen = WANTED[wanted]
    return [
        entry
        for entry in entries
        if chosen(entry, labels) and (folds > 1 or entry.case not in seen)
    ]


def teacher_label(entry: Entry, labels: Labels) -> np.ndarray:
    """What the teacher learns of a case, uint8 (z, y, x): 1 where it has an annotated tumour."""
    if entry.states[labels.tumour.value] != ANNOTATED:
        return np.zeros(entry.frame().array.shape, np.uint8)
    return (entry.read_label().array == labels.tumour.value).astype(np.uint8) * TUMOUR
