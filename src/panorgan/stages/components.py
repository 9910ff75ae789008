"""What the gate judges: the pieces of a round's pseudo-labels, a shard at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panorgan.cases.manifest import ANNOTATED, Entry, read_manifest
from panorgan.cases.selection import needs_tumour, shows_tumours
from panorgan.config.labels import Labels, load_labels
from panorgan.fusing.components import (
    COLUMNS,
    Pieces,
    Row,
    component_rows,
    find_components,
    nearest_organs,
    overlaps_ml,
)
from panorgan.fusing.gate import instability
from panorgan.io.tables import read_table
from panorgan.io.volumes import Volume
from panorgan.problems import Problems
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, key_of, run_shard
from panorgan.stages import LABEL, VERSIONS
from panorgan.stages.pseudo_labels import OrganLabels, on_grid

Written = Sequence[Mapping[str, str]]
"""Rows of a case's pieces, as a table holds them."""


@dataclass(frozen=True)
class Round:
    """Where the pseudo-labels of a round are.

    Attributes
    ----------
    tumours
        Maps in which `tumour_value` is tumour; other values there do not count.
    organs
        Maps in which the tumour does not count, perhaps the same.
    """

    tumours: ShardReader
    organs: OrganLabels
    tumour_value: int

    @classmethod
    def of_shard(
        cls,
        tumours: str,
        tumour_folder: str,
        organs: str | None,
        organ_folder: str | None,
        tumour_value: int,
    ) -> "Round":
        """Those of a shard, by its tables and folders."""
        found = ShardReader([tumours], [tumour_folder])
        if organs == tumours:
            return cls(found, OrganLabels(found), tumour_value)
        others = ShardReader([organs], [organ_folder]) if organs else None
        return cls(found, OrganLabels(others), tumour_value)

    def inputs(self, entry: Entry) -> dict[str, object]:
        """What the case's pseudo-labels depend on."""
        name = entry.case
        return {
            "tumours": self.tumours.checksums(name) if name in self.tumours else None,
            "tumour_value": self.tumour_value,
            "organs": self.organs.key(entry),
            "organ_values": sorted(self.organs.values(entry)),
        }

    def values(self, entry: Entry, labels: Labels) -> set[int]:
        """The classes that are filled from the case's pseudo-labels."""
        tumour = {labels.tumour.value}
        with_tumour = needs_tumour(entry, labels) and entry.case in self.tumours
        return (self.organs.values(entry) - tumour) | (tumour if with_tumour else set())

    def read(self, entry: Entry, labels: Labels, frame: Volume) -> tuple[np.ndarray, np.ndarray]:
        """uint8 maps of the tumour, with the class table's value, and of the case's unknown organs.

        Where there is no pseudo-label they are 0 everywhere.
        """
        tumours = organs = None
        if entry.case in self.tumours:
            tumours = self.tumours.read_label(entry.case, LABEL)
        wanted = sorted(self.organs.values(entry) - {labels.tumour.value})
        if wanted:
            shared = self.organs.predicted is self.tumours
            organs = tumours if shared else self.organs.read(entry)
        return (
            _only(on_grid(entry, tumours, frame), {self.tumour_value: labels.tumour.value}, frame),
            _only(on_grid(entry, organs, frame), {value: value for value in wanted}, frame),
        )


def _only(array: np.ndarray | None, values: Mapping[int, int], frame: Volume) -> np.ndarray:
    """The map with other values for some, and 0 for all others."""
    if array is None:
        return np.zeros(frame.grid.shape, np.uint8)
    table = np.zeros(256, np.uint8)
    for value, other in values.items():
        table[value] = other
    return table[array]


def measure_components(
    manifest: str,
    this: Round,
    earlier: Sequence[Round],
    out: ShardOutput,
    *,
    labels_file: str,
    known: bool = False,
    tumour_rows: Sequence[str] = (),
    organ_rows: Sequence[str] = (),
) -> int:
    """The pieces of a shard's pseudo-labels, and how much these changed from round to round.

    The detail table `components` has the pieces of tumour where it is unknown, and those of organs
    that are unknown in the case: nothing else is ever filled. The column `instability` is empty
    where no earlier round could hold any of the classes.

    Parameters
    ----------
    this
        The round's pseudo-labels.
    earlier
        Those of earlier rounds, the first one first.
    known
        The tumours are predictions of cases in which tumours are known instead: the table has their
        pieces, each with the volume in annotated tumours, and no organs.
    tumour_rows, organ_rows
        Tables `components` that were written with the maps. Without them pieces are measured and
        their probabilities are empty.

    Raises
    ------
    Problems
        If a map is on another grid than its image, or has other pieces than its table.
    """
    labels = load_labels(labels_file)
    tumour = labels.tumour.value
    entries = {entry.case: entry for entry in read_manifest(manifest, labels, split="train")}
    written = {table: _by_case(table) for table in (*tumour_rows, *organ_rows)}

    def written_for(tables: Sequence[str], name: str) -> Written | None:
        if not tables:
            return None
        return [row for table in tables for row in written[table].get(name, [])]

    def judged_tumours(entry: Entry) -> bool:
        wanted = shows_tumours if known else needs_tumour
        return entry.case in this.tumours and wanted(entry, labels)

    def judged_organs(entry: Entry) -> set[int]:
        return set() if known else this.organs.values(entry) - {tumour}

    def compute(name: str, folder: Path) -> Result:
        entry = entries[name]
        case = _Case(entry, labels, this)
        rows: list[Row] = []
        if judged_tumours(entry):
            rows += case.tumour_rows(written_for(tumour_rows, name))
        if judged_organs(entry):
            rows += case.rows(find_components(case.organs), written_for(organ_rows, name))
        change = "" if known else _instability(entry, labels, [*earlier, this], case)
        return Result({"instability": change}, {"components": rows})

    def inputs(entry: Entry) -> dict[str, object]:
        return {
            "image": entry.facts["image_hash"],
            "grid": entry.facts["grid"],
            "label": entry.facts["label_hash"],
            "states": {str(value): state for value, state in sorted(entry.states.items())},
            "unknown": entry.unknown,
            "judged": [judged_tumours(entry), sorted(judged_organs(entry))],
            "pseudo-labels": [one.inputs(entry) for one in (*earlier, this)],
            "rows": key_of(
                [written_for(tables, entry.case) for tables in (tumour_rows, organ_rows)]
            ),
        }

    work, others = [], []
    for name, entry in entries.items():
        if judged_tumours(entry) or judged_organs(entry):
            work.append(Work(name, inputs(entry), entry.image))
        else:
            reason = "not predicted, or tumours are unknown" if known else "has no pseudo-label"
            others.append({"case": name, "status": "excluded", "reason": reason})
    return run_shard(
        work,
        compute,
        out,
        parameters={
            "version": VERSIONS["components"],
            "known": known,
            "names": labels.names,
            "tumour": tumour,
        },
        columns=["instability"],
        details={"components": COLUMNS},
        others=others,
    )


def _by_case(table: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_table(table):
        found.setdefault(row.pop("case"), []).append(row)
    return found


class _Case:
    """A case's pseudo-labels and what is known around them."""

    def __init__(self, entry: Entry, labels: Labels, this: Round):
        self.entry, self.labels = entry, labels
        self.frame = entry.frame()
        self.tumours, self.organs = this.read(entry, labels, self.frame)

    def tumour_rows(self, written: Written | None) -> list[Row]:
        """Rows of the tumour's pieces, with the organs around them and what they hit."""
        grid, tumour = self.frame.grid, self.labels.tumour.value
        pieces = find_components(self.tumours)
        rows = self.rows(pieces, written)
        annotated = {
            value: value for value, state in self.entry.states.items() if state == ANNOTATED
        }
        truth = self.entry.read_label() if annotated else None
        label = _only(on_grid(self.entry, truth, self.frame), annotated, self.frame)
        around = np.where((label > 0) & (label != tumour), label, self.organs)
        places = nearest_organs(pieces, around, grid.spacing)
        for row, (value, distance) in zip(rows, places, strict=True):
            if value:
                row["organ"] = self.labels.by_value(value).name
                row["distance_mm"] = distance
        if tumour not in self.entry.unknown:
            for row, hit in zip(rows, overlaps_ml(pieces, label == tumour, grid), strict=True):
                row["hit_ml"] = hit
        return rows

    def rows(self, pieces: Pieces, written: Written | None) -> list[Row]:
        """Those of the pieces that were written with the map, else measured ones."""
        if not pieces.rows:
            return []
        if written is None:
            image = self.entry.read_image()
            names = {label.value: label.name for label in self.labels.labels}
            return component_rows(pieces, image.array, image.grid, names)
        found = {(int(row["value"]), int(row["component"])): row for row in written}
        rows = []
        for piece in pieces.rows:
            row = found.get((piece.value, piece.component))
            if row is None or int(row["voxels"]) != piece.voxels:
                cause = "its table of components is not of its label map"
                raise Problems.one(cause, "make both again", case=self.entry.case)
            rows.append(dict(row))
        return rows

    def merged(self, values: set[int]) -> np.ndarray:
        """One map of some of the classes, the tumour over organs."""
        found = _only(self.organs, {value: value for value in values}, self.frame)
        if (tumour := self.labels.tumour.value) in values:
            found[self.tumours > 0] = tumour
        return found


def _instability(entry: Entry, labels: Labels, rounds: Sequence[Round], last: _Case) -> float | str:
    """How much pseudo-labels change, the last round's being at hand; empty if there is one only.

    Of the classes that all rounds could tell; a round that could tell none does not count.
    """
    tellable = {at: one.values(entry, labels) for at, one in enumerate(rounds)}
    tellable = {at: values for at, values in tellable.items() if values}
    if len(tellable) < 2 or not (common := set.intersection(*tellable.values())):
        return ""
    before = [_Case(entry, labels, rounds[at]) for at in list(tellable)[:-1]]
    return round(instability([case.merged(common) for case in (*before, last)]), 6)
