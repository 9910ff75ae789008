"""Left and right: organs that lie on the wrong side of the body, from their centres."""

from collections.abc import Collection, Mapping

import numpy as np

from panorgan.cases.places import Point
from panorgan.config.labels import Label, Labels
from panorgan.io.volumes import Grid

BODY_HU = -300
"""Above are soft tissue and bone, below air and lungs."""

LARGEST_CUT = 0.6
"""Where the scan ends on the left or right, the body may be this thick there, as a share of its
thickest part. Of an elliptic body at most a tenth of the width is then missing on a side, and the
midline is wrong by less than 10 mm."""

MARGIN_MM = 20.0
"""How far an organ's centre must lie beyond the midline to be on the wrong side: twice what a cut
body can move the midline, and less than the 30 mm at which the adrenal glands, the sided organs
nearest to it, usually lie."""


def body_midline(image: np.ndarray, grid: Grid) -> float | None:
    """Where the body's left half ends and its right one begins: RAS mm along x.

    Half of the body's voxels lie on each side: a table or an arm moves that little.

    Parameters
    ----------
    image : (z, y, x) HU
        In stored order.

    Returns
    -------
    float or None
        None if there is no body, or too much of it lies outside the image on the left or right.
    """
    counts = [np.zeros(size, np.int64) for size in image.shape]  # of body voxels along z, y, x
    for z, plane in enumerate(image):
        body = plane > BODY_HU
        counts[1] += body.sum(axis=1)
        counts[2] += body.sum(axis=0)
        counts[0][z] = counts[1].sum()
    counts[0] = np.diff(counts[0], prepend=0)
    across = counts[::-1][int(np.flatnonzero(grid.axes[:, 0] == 0)[0])]
    if not across.any() or max(across[0], across[-1]) > LARGEST_CUT * across.max():
        return None
    middle = [_half(along) for along in counts[::-1]]
    return float(grid.affine[0, :3] @ middle + grid.affine[0, 3])


def _half(counts: np.ndarray) -> float:
    """The index, between voxels too, below which half of what was counted lies."""
    below = np.concatenate([[0], np.cumsum(counts)])
    return float(np.interp(below[-1] / 2, below, np.arange(len(below)) - 0.5))


def doubtful_sides(
    centres: Mapping[int, Point], midline: float | None, labels: Labels, of: Collection[int]
) -> list[str]:
    """What is said of organs on the wrong side; empty if all lie where they should.

    Partners are judged by each other: the right one must lie to the right of the left one. An
    organ without its partner is judged by the body's midline; within `MARGIN_MM` of it, or where
    it is not known, nothing is said.

    Parameters
    ----------
    centres
        RAS mm (x, y, z) by value.
    midline
        RAS mm along x, or None.
    of
        Values of the classes to judge.
    """
    centres = {value: centres[value] for value in of if value in centres}
    wrong: list[str] = []
    misplaced: list[Label] = []
    groups = sound = 0
    paired: set[int] = set()
    for right, left in labels.pairs:
        if right.value in centres and left.value in centres:
            paired |= {right.value, left.value}
            apart = centres[left.value][0] - centres[right.value][0]
            if apart <= 0:
                sound += 1
                continue
            groups += 1
            misplaced += [right, left]
            wrong.append(
                f"{right.name} lies {apart:.0f} mm to the left of {left.name}: the two are "
                "swapped, or the label is mirrored"
            )
    for label in labels.labels:
        alone = label.value in centres and label.value not in paired
        if label.side is None or midline is None or not alone:
            continue
        beyond = centres[label.value][0] - midline
        beyond = -beyond if label.side == "right" else beyond
        if beyond <= -MARGIN_MM:
            sound += 1
        elif beyond >= MARGIN_MM:
            groups += 1
            misplaced.append(label)
            wrong.append(
                f"{label.name} lies {beyond:.0f} mm beyond the body's midline, on the "
                f"{'left' if label.side == 'right' else 'right'}: it is the wrong class, or the "
                "label is mirrored"
            )
    if groups > 1 and not sound:
        names = ", ".join(label.name for label in misplaced)
        return [f"the label seems to be mirrored: {names} lie on the wrong side"]
    return wrong
