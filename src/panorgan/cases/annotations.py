"""What a user says of loose label files: the option ``--annotated``, a list or a case table."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from panorgan.config.labels import ANNOTATED, UNKNOWN, Labels, config_folder
from panorgan.problems import Problems, WrongOption

Known = tuple[dict[int, str], Collection[int] | None]
"""The states of a case's classes, and where annotators looked for tumours (None: everywhere)."""


class Annotations:
    """What is known of each case.

    Parameters
    ----------
    text
        Classes by name or value, as `Labels.parse` takes them: the same in all cases. Or the path
        of a case table (``.tsv``), which says it for each case, as in the workflow.
    labels
        The class table.

    Raises
    ------
    WrongOption
        If the list names what is no class.
    Problems
        If the table cannot be used.
    """

    def __init__(self, text: str, labels: Labels):
        self.labels = labels
        self.table = Path(text) if text.strip().endswith(".tsv") else None
        if self.table:
            from panorgan.cases.manifest import load_sources
            from panorgan.cases.table import read_cases

            self.cases = {case.case: case for case in read_cases(self.table, labels)}
            self.sources = load_sources(config_folder() / "sources.yaml", labels)
            self.listed = bool(self.cases)
            return
        try:
            self.classes = {label.value for label in labels.parse(text)}
        except ValueError as error:
            raise WrongOption.one(f"--annotated: {error}", "mend the list") from None
        self.listed = bool(self.classes)

    def of(self, case: str, label: Path | None, array: np.ndarray | None = None) -> Known:
        """What is known of a case with some label.

        Parameters
        ----------
        case
            Its name.
        label
            Its label's file; None: all is unknown.
        array : uint8
            The label map. Before it is read each class is taken to occur: what is unknown then is
            so in any case.

        Raises
        ------
        Problems
            If the case table has no such case.
        """
        if self.table and case not in self.cases:
            cause = f"has no line in {self.table}"
            raise Problems.one(cause, "add one, or remove its files", case=case, file=label or "")
        if label is None:
            return dict.fromkeys(self.labels.values, UNKNOWN), None
        if not self.table:
            states = dict.fromkeys(self.labels.values, UNKNOWN)
            return states | dict.fromkeys(self.classes, ANNOTATED), None
        from panorgan.cases.manifest import class_states

        occur = dict.fromkeys(self.labels.values if array is None else _values_in(array), 1)
        row = replace(self.cases[case], label=str(label))
        return class_states(row, occur, 1.0, self.sources, self.labels, 0.0)[:2]


def _values_in(array: np.ndarray) -> list[int]:
    occurs = np.zeros(256, np.bool_)
    occurs[array.reshape(-1)] = True
    return np.flatnonzero(occurs).tolist()
