"""A user's corrections: a table of cases of which the user knows better than labels and rules."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from panorgan.config.labels import ABSENT, ANNOTATED, STATES, UNKNOWN, Labels
from panorgan.config.reading import EXPANDED, NOT_EXPANDED
from panorgan.io.tables import read_table, why_no_text
from panorgan.problems import Problem, Problems

COLUMNS = ("case", *STATES, "tumour_scope", "label", "note")
CORRECTED_COLUMNS = ("case", "what", "before", "after", "note")
"""Columns of the table of what the corrections changed."""


@dataclass(frozen=True)
class Correction:
    """One line of the corrections.

    Attributes
    ----------
    annotated, absent, unknown
        Comma lists of classes by name or value, as typed: the state that each has in truth.
    tumour_scope
        Organs in which annotators looked for tumours, as typed; ``all`` is everywhere, empty
        changes nothing.
    label
        Path of a label map that replaces the fused one; empty: none.
    file
        The table that holds the line.
    """

    case: str
    annotated: str = ""
    absent: str = ""
    unknown: str = ""
    tumour_scope: str = ""
    label: str = ""
    note: str = ""
    file: str = ""

    def states(self, labels: Labels) -> dict[int, str]:
        """The state of each class that the line names, by value."""
        return {
            label.value: state for state in STATES for label in labels.parse(getattr(self, state))
        }

    def apply(
        self,
        states: Mapping[int, str],
        scope: tuple[int, ...] | None,
        values: Mapping[int, int],
        labels: Labels,
        *,
        labelled: bool = True,
    ) -> tuple[dict[int, str], tuple[int, ...] | None, list[dict[str, str]]]:
        """What is known of the case once it is corrected.

        A class that is called annotated but has no voxel in the label is absent: annotators
        looked and found none. Voxels of a class that is called absent are left out.

        Parameters
        ----------
        states
            State of every class by value, before.
        scope
            Values of the organs in which tumours were looked for; None: everywhere.
        values
            Voxels of every value that occurs in the case's label.
        labelled
            Whether the case has a label at all.

        Returns
        -------
        states, scope
        rows
            A row for everything that the line names: `CORRECTED_COLUMNS`.

        Raises
        ------
        Problems
            If a class is called annotated though the case has no label, or the line has a scope
            though nobody looked for tumours.
        """
        corrected, rows = dict(states), []
        for value, state in sorted(self.states(labels).items()):
            name, notes = labels.by_value(value).name, [self.note] * bool(self.note)
            if state == ANNOTATED and not labelled:
                cause = f"{name} cannot be annotated: the case has no label"
                raise self._wrong(cause, "name the label in the case table, or leave it out here")
            if state == ANNOTATED and not values.get(value):
                state = ABSENT
                notes.append("no voxel of it in the label")
            elif state != ANNOTATED and values.get(value):
                notes.append(f"{values[value]} voxels of it in the label are left out")
            rows.append(self._row(name, states[value], state, notes))
            corrected[value] = state
        known = corrected[labels.tumour.value] != UNKNOWN
        if self.tumour_scope and not known:
            cause = f"has a tumour_scope, but nobody looked for {labels.tumour_name}"
            raise self._wrong(cause, f"add {labels.tumour_name} to annotated or absent")
        new = labels.parse_scope(self.tumour_scope) if self.tumour_scope else scope
        new = new if known else None
        if self.tumour_scope or new != scope:
            before, after = (scope_text(organs, labels) or "everywhere" for organs in (scope, new))
            notes = [self.note] * bool(self.note)
            rows.append(self._row("tumour_scope", before, after if known else "nowhere", notes))
        return corrected, new, rows

    def _row(self, what: str, before: str, after: str, notes: list[str]) -> dict[str, str]:
        row = {"case": self.case, "what": what, "before": before, "after": after}
        return row | {"note": "; ".join(notes)}

    def _wrong(self, cause: str, cure: str) -> Problems:
        return Problems.one(cause, cure, case=self.case, file=self.file)


def scope_text(scope: tuple[int, ...] | None, labels: Labels) -> str:
    """A scope as a comma list of names; empty for everywhere."""
    return ",".join(labels.by_value(value).name for value in scope or ())


def read_corrections(path: str | Path, labels: Labels) -> dict[str, Correction]:
    """The corrections of a table by case; relative paths of labels start at its folder.

    Parameters
    ----------
    path
        A tab-separated table with the column `case` and any others of `COLUMNS`.

    Raises
    ------
    Problems
        Every fault at once: no table, unknown columns or classes, a case on two lines, a class
        with two states, a scope that is none.
    """
    if not Path(path).exists():
        raise Problems.one("does not exist", "check `corrections` in the config", file=path)
    rows = read_table(path)
    problems = [Problem("", str(path), *fault) for fault in _header_faults(rows)]
    if problems:
        raise Problems(problems)
    corrections: dict[str, Correction] = {}
    for row in rows:
        fields = {column: text.strip() for column, text in row.items()}
        correction = Correction(**fields, file=str(path))
        faults = [*_faults(correction, labels)]
        if correction.case in corrections:
            faults.append(("stands on two lines", "write all that is known of it on one"))
        problems += [Problem(correction.case, str(path), *fault) for fault in faults]
        if correction.label:
            place = os.path.normpath(os.path.join(os.path.dirname(path), correction.label))
            correction = Correction(**fields | {"label": place}, file=str(path))
        corrections[correction.case] = correction
    if problems:
        raise Problems(problems)
    return corrections


def _header_faults(rows: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    columns = list(rows[0]) if rows else ["case"]
    if "case" not in columns:
        yield "lacks the column case", f"the header is: {' '.join(COLUMNS)}, separated by tabs"
    for column in columns:
        if column not in COLUMNS:
            near = get_close_matches(column, COLUMNS, n=1)
            cure = f"did you mean '{near[0]}'?" if near else "remove it"
            yield f"has an unknown column '{column}'", cure


def _faults(correction: Correction, labels: Labels) -> Iterator[tuple[str, str]]:
    if not correction.case:
        yield "has a line without a case", "name its case"
    if bad := {*EXPANDED} & {*correction.label}:
        yield f"label: '{correction.label}' has '{min(bad)}' in it", NOT_EXPANDED
    if fault := why_no_text(correction.note):
        yield f"its note {fault}", "write it in other words"
    said: dict[str, str] = {}
    for state in STATES:
        try:
            named = {label.name for label in labels.parse(getattr(correction, state))}
        except ValueError as error:
            yield f"{state}: {error}", f"mend the column {state}"
            continue
        for name in sorted(named & set(said)):
            yield f"{name} is both {said[name]} and {state}", "leave one of the two"
        said |= dict.fromkeys(named, state)
    try:
        labels.parse_scope(correction.tumour_scope)
    except ValueError as error:
        yield f"tumour_scope: {error}", "mend the column tumour_scope"
