"""The report's pictures: how many there may be, and what of a case they are drawn from."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from panorgan.cases.manifest import Entry
from panorgan.config.labels import Labels
from panorgan.fusing.components import find_components
from panorgan.io.volumes import Volume, to_canonical
from panorgan.report.drawing import Layer
from panorgan.report.inputs import Student
from panorgan.report.pages import data_uri
from panorgan.report.show import Scan, canonical, fused_layers, scan_of
from panorgan.run.store import ShardReader
from panorgan.stages import LABEL, SOURCE

MOST = {
    "plots": 6,
    "learning curves": 8,
    "cases": 5,
    "structures": 20,
    "lesions": 6,
    "pieces of pseudo-labels": 12,
    "fused cases": 1,
    "doubtful cases": 3,
}
"""How many pictures of each kind a report has at most, whatever the config."""
BUDGET = 9_500_000
"""Bytes of all pictures: they grow by a third in the page, which stays below 15 MB."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its content as a data URI, and what it shows in words."""

    uri: str
    alt: str


class Gallery:
    """Pictures as they are added: those asked for first are in, later ones only if there is room.

    Attributes
    ----------
    left_out
        For each kind how many pictures there was no room for.
    """

    def __init__(self, budget: int = BUDGET):
        self._room = budget
        self._counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def add(self, kind: str, draw: Callable[[], bytes], alt: str) -> Picture | None:
        """Draw a picture of a kind from `MOST`; None if there are enough, or no room is left."""
        content = draw() if self._room > 0 and self._counts[kind] < MOST[kind] else None
        if content is None or len(content) > self._room:
            self.left_out[kind] += 1
            return None
        self._room -= len(content)
        self._counts[kind] += 1
        return Picture(data_uri(content, _kind_of(content)), alt)


def _kind_of(content: bytes) -> str:
    kinds = {b"\xff\xd8": "image/jpeg", b"\x89PNG": "image/png"}
    return next((kinds[start] for start in kinds if content.startswith(start)), "image/svg+xml")


class Scans:
    """The run's CTs by case; the last one is kept, so ask for the pictures of a case in a row."""

    def __init__(self, entries: Iterable[Entry]):
        self._entries = {entry.case: entry for entry in entries}
        self._last: tuple[str, Scan] | None = None

    def entry(self, case: str) -> Entry:
        """The case's line of the manifest."""
        return self._entries[case]

    def __getitem__(self, case: str) -> Scan:
        if self._last is None or self._last[0] != case:
            self._last = None  # two large CTs need not be in memory at once
            self._last = case, scan_of(self._entries[case].read_image())
        return self._last[1]

    def reference(self, case: str) -> np.ndarray | None:
        """The case's label, where it has one, in RAS order."""
        entry = self._entries[case]
        return canonical(entry.read_label()) if entry.label else None


def prediction_of(student: Student, case: str) -> np.ndarray:
    """A student's prediction in RAS order."""
    return canonical(student.predictions.read_label(case, LABEL))


def piece_of(volume: Volume, value: int, number: int) -> np.ndarray:
    """Bool mask in RAS order of a label map's component, numbered as `find_components` does."""
    mask = (volume.array == value).astype(np.uint8)
    return to_canonical(find_components(mask).ids == number, volume.grid)


def learnt_layers(case: str, reader: ShardReader, labels: Labels) -> list[Layer]:
    """The CT alone, a training case's fused label, and where it comes from."""
    label, source = (canonical(reader.read_label(case, end)) for end in (LABEL, SOURCE))
    return fused_layers(label, source, labels)
