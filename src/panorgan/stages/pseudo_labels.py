"""Organ pseudo-labels as fusion and the gate read them: whose they are and what they can hold."""

from dataclasses import dataclass

import numpy as np

from panorgan.cases.manifest import Entry, read_manifest
from panorgan.cases.selection import organs_problem
from panorgan.config.labels import load_labels
from panorgan.io.volumes import Volume
from panorgan.io.writing import write_text
from panorgan.problems import Problems
from panorgan.run.store import ShardReader
from panorgan.stages import CLASSES, LABEL


def check_organs(manifest: str, organs: str, *, labels_file: str, out: str) -> None:
    """Stop a run whose stage 2 would teach that organs are not there, before anything trains.

    Parameters
    ----------
    manifest
        Of all cases.
    organs
        The config's `pseudo_labels.organs`.
    out
        A text file, for those who look at the run later: how many cases have a pseudo-label.

    Raises
    ------
    Problems
        If `organs_problem` finds one.
    """
    labels = load_labels(labels_file)
    entries = read_manifest(manifest, labels, split="train")
    if problem := organs_problem(entries, labels, organs):
        raise Problems([problem])
    given = sum(bool(entry.organs) for entry in entries)
    write_text(out, f"{given} of {len(entries)} training cases name an organ pseudo-label\n")


@dataclass(frozen=True)
class OrganLabels:
    """Those that a model predicted, or (None) those that the case table names."""

    predicted: ShardReader | None

    def key(self, entry: Entry) -> object:
        """What tells one pseudo-label from another; None where there is none."""
        if self.predicted is None:
            return entry.facts["organs_hash"] or None
        return self.predicted.checksums(entry.case) if entry.case in self.predicted else None

    def values(self, entry: Entry) -> set[int]:
        """The classes unknown in a case that its pseudo-label could hold."""
        if self.key(entry) is None:
            return set()
        unknown = {*entry.unknown}
        row = self.predicted.row(entry.case) if self.predicted else {}
        return unknown & {*map(int, row[CLASSES].split())} if CLASSES in row else unknown

    def read(self, entry: Entry) -> Volume | None:
        """The pseudo-label; None where there is none."""
        if self.key(entry) is None:
            return None
        if self.predicted is None:
            return entry.read_organs()
        return self.predicted.read_label(entry.case, LABEL)


def on_grid(entry: Entry, volume: Volume | None, like: Volume) -> np.ndarray | None:
    """A label's voxels, if there is one; Problems if they are not those of the image."""
    if volume is None:
        return None
    if difference := like.grid.difference(volume.grid):
        cause = f"one of its labels is not on its image's grid: {difference}"
        raise Problems.one(cause, "make that label again", case=entry.case)
    return volume.array
