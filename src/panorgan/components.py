"""The connected pieces of label maps: what each of them is, and what a gate has decided on them.

A piece is a set of voxels of one class that hang together by faces, edges or corners. Work is done
on the voxels that are no background, never on several arrays of full size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLUMNS = (
    "component",
    "value",
    "name",
    "voxels",
    "ml",
    "mean_probability",
    "max_probability",
    "hu_mean",
    "hu_sd",
    "organ",
    "distance_mm",
    "centre_mm",
    "box_zyx",
    "at_border",
    "hit_ml",
)
"""Columns of the tables `components`, after `case`."""

KEEP, CLEAN, IGNORE = "keep", "clean", "ignore"
"""What can be done with a piece: left as it is, set to background, or not learnt from."""

Row = dict[str, object]
Box = tuple[int, int, int, int, int, int]


class Piece(NamedTuple):
    """A piece of a label map.

    `component` numbers the pieces of a value from 1: the largest first, of equal ones that whose
    first voxel is stored first. `box` is (z, y, x) of its first corner and of that after its last;
    `centroid` is (z, y, x), an index.
    """

    value: int
    component: int
    voxels: int
    box: Box
    centroid: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of a label map, those of the lowest value first, and where they are.

    Attributes
    ----------
    shape : (z, y, x) int
    places : (n,) int
        Flat indices of all voxels that are no background, ascending.
    numbers : (n,) int32
        For each of them the number of its piece: 1 is the first of `rows`.
    rows : list of Piece
    """

    shape: tuple[int, int, int]
    places: np.ndarray
    numbers: np.ndarray
    rows: list[Piece]

    @property
    def ids(self) -> np.ndarray:
        """(z, y, x) int32 array: the number of each voxel's piece, 0 for background."""
        ids = np.zeros(self.shape, np.int32)
        ids.reshape(-1)[self.places] = self.numbers
        return ids

    @property
    def indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(z, y, x) of each of `places`."""
        return np.unravel_index(self.places, self.shape)

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64 sums over each piece, in the order of `rows`, of a number for each place."""
        return np.bincount(self.numbers, weights, len(self.rows) + 1)[1:]


def find_components(label: np.ndarray) -> Pieces:
    """The pieces of every value of a label map but 0, connected by faces, edges and corners.

    Parameters
    ----------
    label : (z, y, x) uint8
    """
    import cc3d

    label = np.ascontiguousarray(label)
    places = np.flatnonzero(label)
    if not len(places):
        return Pieces(label.shape, places, np.zeros(0, np.int32), [])
    corner, inside = _bounding_box(label, places)
    crop = np.ascontiguousarray(label[inside])
    found = cc3d.connected_components(crop, connectivity=26)
    # A crop's voxels are in the same order as the whole's.
    numbers = found[crop > 0]
    about = cc3d.statistics(found, no_slice_conversion=True)
    del found
    counts = about["voxel_counts"][1:].astype(np.int64)
    boxes = about["bounding_boxes"][1:].astype(np.int64)
    first = np.empty(len(counts) + 1, np.int64)
    first[numbers[::-1]] = np.arange(len(places))[::-1]
    first = first[1:]
    values = label.reshape(-1)[places[first]]
    order = np.lexsort((first, -counts, values))
    renumbered = np.zeros(len(counts) + 1, np.int32)
    renumbered[order + 1] = np.arange(1, len(counts) + 1)
    starts = boxes[:, ::2] + corner
    stops = boxes[:, 1::2] + corner + 1
    centroids = about["centroids"][1:] + corner
    rows: list[Piece] = []
    for index in order.tolist():
        value = int(values[index])
        component = rows[-1].component + 1 if rows and rows[-1].value == value else 1
        box = (*starts[index].tolist(), *stops[index].tolist())
        centroid = tuple(centroids[index].tolist())
        rows.append(Piece(value, component, int(counts[index]), box, centroid))
    return Pieces(label.shape, places, renumbered[numbers], rows)


def _bounding_box(
    label: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """Corner and slices of the box of some voxels, ascending, that are all there is."""
    slice_size = label.shape[1] * label.shape[2]
    start, stop = places[0] // slice_size, places[-1] // slice_size + 1
    plane = np.maximum.reduce(label[start:stop], axis=0)
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    bounds = [(start, stop), (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)]
    return np.array([low for low, _ in bounds]), tuple(slice(*pair) for pair in bounds)


def apply_decisions(
    label: np.ndarray, actions: Mapping[tuple[int, int], str], ignore: int
) -> np.ndarray:
    """Clean or ignore pieces of a label map.

    Parameters
    ----------
    label : (z, y, x) uint8
    actions
        For (value, component), as `find_components` numbers them, `KEEP`, `CLEAN` or `IGNORE`;
        pieces without an action are kept.
    ignore
        What ignored voxels get.

    Returns
    -------
    (z, y, x) uint8 array
        A new one.

    Raises
    ------
    KeyError
        If the map has no such piece, or there is no such action.
    """
    result = np.array(label, order="C")
    if not actions:
        return result
    pieces = find_components(result)
    number_of = {(row.value, row.component): at for at, row in enumerate(pieces.rows)}
    values = np.array([row.value for row in pieces.rows], np.uint8)
    for piece, action in actions.items():
        at = number_of[piece]
        values[at] = {KEEP: values[at], CLEAN: 0, IGNORE: ignore}[action]
    result.reshape(-1)[pieces.places] = values[pieces.numbers - 1]
    return result
