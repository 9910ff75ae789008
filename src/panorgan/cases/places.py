"""Where the classes of a label lie: centres, gaps, ends of the scan, neighbours."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from panorgan.io.volumes import Grid

Point = tuple[float, float, float]

INNER = np.arange(10, 91) / 100
"""Shares of a class between which a gap is looked for: splinters at its sides make none."""


@dataclass(frozen=True)
class Place:
    """Where a class lies in a scan.

    Attributes
    ----------
    centre
        Of gravity, RAS mm (x, y, z).
    gap
        The longest way from left to right, in mm, on which a hundredth of the class lies: wide
        between two parts of it.
    cut
        Whether it reaches the scan's end, so that a part of it may be missing.
    host, enclosed
        Which other class it touches most, and with what share of its surface; 0 and 0 if none.
    """

    centre: Point
    gap: float
    cut: bool = False
    host: int = 0
    enclosed: float = 0.0


def class_places(label: np.ndarray, grid: Grid) -> dict[int, Place]:
    """Where each value but 0 lies.

    Parameters
    ----------
    label : (z, y, x) uint8
        In stored order.

    Returns
    -------
    dict
        By value.
    """
    counts = np.zeros(256)
    sums = np.zeros((3, 256))
    faces = np.zeros((256, 256), np.int64)  # voxels of one value beside those of another
    across = int(np.flatnonzero(grid.axes[:, 0] == 0)[0])  # the stored axis from left to right
    width = label.shape[2 - across]
    columns = np.zeros(256 * width, np.int64)  # voxels of each value along it
    before = label[0]
    for z, plane in enumerate(label):
        y, x = np.nonzero(plane)
        values = plane[y, x].astype(np.intp)
        counted = np.bincount(values, minlength=256)
        counts += counted
        sums[0] += np.bincount(values, weights=x, minlength=256)
        sums[1] += np.bincount(values, weights=y, minlength=256)
        sums[2] += counted * z
        columns += np.bincount(values * width + (x, y, z)[across], minlength=columns.size)
        for one, other in (
            (plane[1:], plane[:-1]),
            (plane[:, 1:], plane[:, :-1]),
            (plane, before),
        ):
            differ = one != other
            pairs = one[differ].astype(np.intp) * 256 + other[differ]
            faces += np.bincount(pairs, minlength=faces.size).reshape(faces.shape)
        before = plane
    faces += faces.T
    ends = np.zeros(256, np.bool_)
    for axis in range(3):
        for end in (0, -1):
            ends[label.take(end, axis)] = True

    found: dict[int, Place] = {}
    for value in np.flatnonzero(counts).tolist():
        middle = sums[:, value] / counts[value]
        centre = grid.affine[:3, :3] @ middle + grid.affine[:3, 3]
        below = np.cumsum(columns[value * width : (value + 1) * width]) / counts[value]
        ways = np.diff(np.interp(INNER, [0, *below], np.arange(width + 1)))
        gap = float(ways.max() * abs(grid.affine[0, across]))
        beside = faces[value].copy()
        beside[0] = 0
        host = int(beside.argmax())
        share = beside[host] / faces[value].sum() if beside[host] else 0.0
        found[value] = Place(
            tuple(centre.tolist()), gap, bool(ends[value]), host if share else 0, float(share)
        )
    return found


def places_text(places: Mapping[int, Place]) -> str:
    """Places by value as a table's field, e.g. ``1:66.1,185.5,392.3,2.1,0,3,0.12``."""
    return " ".join(
        f"{value}:{','.join(f'{mm:.1f}' for mm in (*place.centre, place.gap))},"
        f"{place.cut:d},{place.host},{place.enclosed:.2f}"
        for value, place in sorted(places.items())
    )


def parse_places(text: str) -> dict[int, Place]:
    """The inverse of `places_text`."""
    found = {}
    for value, fields in (pair.split(":") for pair in text.split()):
        *mm, cut, host, enclosed = fields.split(",")
        x, y, z, gap = map(float, mm)
        found[int(value)] = Place((x, y, z), gap, cut == "1", int(host), float(enclosed))
    return found
