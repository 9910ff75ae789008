"""The connected pieces of label maps: what each of them is, and what a gate has decided on them.

A piece is a set of voxels of one class that hang together by faces, edges or corners. Work is done
on the voxels that are no background, never on several arrays of full size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from panorgan.io.volumes import Grid

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
    from panorgan.fusing.hanging import number_pieces

    label = np.ascontiguousarray(label)
    places = np.flatnonzero(label)
    if not len(places):
        return Pieces(label.shape, places, np.zeros(0, np.int32), [])
    corner, inside = _bounding_box(label, places)
    # A crop's voxels are in the same order as the whole's.
    numbers, firsts, counts, lowest, highest, sums = number_pieces(label[inside].copy())
    values = label.reshape(-1)[places[firsts]]
    order = np.lexsort((firsts, -counts, values))
    renumbered = np.zeros(len(counts) + 1, np.int32)
    renumbered[order + 1] = np.arange(1, len(counts) + 1)
    starts = lowest + corner
    stops = highest + corner + 1
    centroids = sums / counts[:, None] + corner
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


def component_rows(
    pieces: Pieces,
    image: np.ndarray,
    grid: Grid,
    names: Mapping[int, str],
    probabilities: np.ndarray | None = None,
) -> list[Row]:
    """What the pieces of a label map are, without the labels around them.

    Parameters
    ----------
    pieces
        Of a label map on the image's grid.
    image : (z, y, x)
        HU.
    grid
        Of the image.
    names
        Of all values in the map.
    probabilities
        Of its class, for each of the pieces' places; without them they are empty.

    Returns
    -------
    list
        A row a piece, in their order, with all of `COLUMNS`; `organ`, `distance_mm` and `hit_ml`
        are empty.
    """
    counts = np.array([row.voxels for row in pieces.rows])
    hu = np.ascontiguousarray(image).reshape(-1)[pieces.places].astype(np.float64)
    means = pieces.total(hu) / counts
    hu -= means[pieces.numbers - 1]
    deviations = np.sqrt(pieces.total(np.square(hu, out=hu)) / counts)
    del hu
    mean_p = max_p = [""] * len(counts)
    if probabilities is not None:
        mean_p = (pieces.total(probabilities) / counts).round(4).tolist()
        highest = np.zeros(len(counts) + 1, np.float32)
        np.maximum.at(highest, pieces.numbers, probabilities.astype(np.float32))
        max_p = highest[1:].astype(np.float64).round(4).tolist()
    return [
        {
            "component": piece.component,
            "value": piece.value,
            "name": names[piece.value],
            "voxels": piece.voxels,
            "ml": round(piece.voxels * grid.voxel_ml, 6),
            "mean_probability": mean_p[at],
            "max_probability": max_p[at],
            "hu_mean": round(float(means[at]), 2),
            "hu_sd": round(float(deviations[at]), 2),
            "organ": "",
            "distance_mm": "",
            "centre_mm": centre_mm(piece.centroid, grid),
            "box_zyx": " ".join(map(str, piece.box)),
            "at_border": "yes" if _at_border(piece, grid) else "no",
            "hit_ml": "",
        }
        for at, piece in enumerate(pieces.rows)
    ]


def centre_mm(centroid: tuple[float, float, float], grid: Grid) -> str:
    """Where an index (z, y, x) lies in the patient: RAS in mm, for tables."""
    place = grid.affine[:3, :3] @ centroid[::-1] + grid.origin
    return " ".join(f"{round(mm, 2) + 0.0:.2f}" for mm in place.tolist())  # no -0.00


def _at_border(piece: Piece, grid: Grid) -> bool:
    """Whether a piece reaches the first or the last slice from feet to head."""
    axis = 2 - grid.axes[:, 0].tolist().index(2)
    return piece.box[axis] == 0 or piece.box[axis + 3] == grid.shape[axis]


def overlaps_ml(pieces: Pieces, mask: np.ndarray, grid: Grid) -> list[float]:
    """Volume of each piece that lies in a (z, y, x) bool mask."""
    inside = np.ascontiguousarray(mask).reshape(-1)[pieces.places]
    return [round(count * grid.voxel_ml, 6) for count in pieces.total(inside).tolist()]


def nearest_organs(
    pieces: Pieces, organs: np.ndarray, spacing: Sequence[float]
) -> list[tuple[int, float]]:
    """The organ in which each piece lies, or the nearest, and how far it is.

    Parameters
    ----------
    pieces
        Of a label map on the organs' grid.
    organs : (z, y, x) uint8
        Organs, and 0 elsewhere.
    spacing : (z, y, x)
        mm.

    Returns
    -------
    list
        For each piece the value of the organ that holds most of it and 0. Of a piece in no organ,
        the nearest organ's value and the distance of the nearest two voxels' centres in mm, or 0 if
        voxels touch by a face, an edge or a corner. The lowest value of several; value 0 where
        there is no organ at all.
    """
    organs = np.ascontiguousarray(organs)
    values = _most_overlap(pieces, organs)
    distances = np.where(values > 0, 0.0, np.inf)
    if not (values == 0).any() or not organs.any():
        return list(zip(values.tolist(), distances.tolist(), strict=True))
    free = values[pieces.numbers - 1] == 0
    places = np.stack(np.unravel_index(pieces.places[free], pieces.shape), 1)
    numbers = pieces.numbers[free] - 1
    touching = _touching(places, numbers, organs, len(values))
    values = np.where(touching > 0, touching, values)
    distances[touching > 0] = 0
    far = values[numbers] == 0
    if far.any():
        apart = _apart(places[far], numbers[far], organs, spacing)
        for number, (value, distance) in apart.items():
            values[number], distances[number] = value, distance
    return list(zip(values.tolist(), distances.tolist(), strict=True))


def _most_overlap(pieces: Pieces, organs: np.ndarray) -> np.ndarray:
    """Value that most voxels of each piece have in a map, 0 if none has any; ties: the lowest."""
    values = organs.reshape(-1)[pieces.places]
    inside = values > 0
    pairs, counts = np.unique(
        pieces.numbers[inside].astype(np.int64) * 256 + values[inside], return_counts=True
    )
    best = np.zeros(len(pieces.rows) + 1, np.int64)
    # The last that is assigned stays: of a piece, the highest count, then the lowest value.
    order = np.lexsort((-pairs, counts))
    best[pairs[order] // 256] = pairs[order] % 256
    return best[1:]


def _touching(
    places: np.ndarray, numbers: np.ndarray, organs: np.ndarray, count: int
) -> np.ndarray:
    """Lowest value among the 26 neighbours of each piece's (n, 3) places, 0 if they have none."""
    none = 256
    lowest = np.full(count, none)
    for shift in product((-1, 0, 1), repeat=3):
        beside = places + shift
        known = ((beside >= 0) & (beside < organs.shape)).all(1)
        values = organs[tuple(beside[known].T)]
        np.minimum.at(lowest, numbers[known][values > 0], values[values > 0])
    return np.where(lowest < none, lowest, 0)


def _apart(
    places: np.ndarray, numbers: np.ndarray, organs: np.ndarray, spacing: Sequence[float]
) -> dict[int, tuple[int, float]]:
    """Nearest organ and its distance in mm of pieces, by number, that touch none."""
    from scipy.spatial import cKDTree

    rounding = 1e-6  # mm, below which distances are equal
    surface = _surface(organs)
    organ_values = organs[tuple(surface.T)]
    tree = cKDTree(surface * np.asarray(spacing), compact_nodes=False, balanced_tree=False)
    points = places * np.asarray(spacing)
    nearest = tree.query(points)[0]
    least = np.full(int(numbers.max()) + 1, np.inf)
    np.minimum.at(least, numbers, nearest)
    ends = nearest <= least[numbers] + rounding
    best = np.full(len(least), 256)
    near = tree.query_ball_point(points[ends], least[numbers[ends]] + 2 * rounding)
    for number, hits in zip(numbers[ends].tolist(), near, strict=True):
        best[number] = min(best[number], organ_values[hits].min())
    found = np.flatnonzero(np.isfinite(least)).tolist()
    return {number: (int(best[number]), round(float(least[number]), 3)) for number in found}


def _surface(organs: np.ndarray) -> np.ndarray:
    """(n, 3) indices of the voxels of organs from which a step may lead out of all of them."""
    places = np.flatnonzero(organs)
    corner, inside = _bounding_box(organs, places)
    mask = organs[inside] > 0
    found = []
    for z in range(len(mask)):  # a slice at a time stays in the processor's cache
        surface = mask[z].copy()
        if 0 < z < len(mask) - 1:
            beside = mask[z, :-2, 1:-1] & mask[z, 2:, 1:-1] & mask[z, 1:-1, :-2] & mask[z, 1:-1, 2:]
            surface[1:-1, 1:-1] &= ~(beside & mask[z - 1, 1:-1, 1:-1] & mask[z + 1, 1:-1, 1:-1])
        y, x = np.nonzero(surface)
        found.append(np.stack([np.full(len(y), z), y, x], 1))
    return np.concatenate(found) + corner
