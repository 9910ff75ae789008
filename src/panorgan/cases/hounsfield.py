"""Whether a CT's numbers can be Hounsfield units, judged from its exact histogram.

Each rule is about what no part of a body looks like, be it whole or cut out: padding, a field of
view without air, metal, contrast and windows of true HU break none of them.
"""

import numpy as np

from panorgan.cases.intensities import histogram

FEWEST_VOXELS = 1000
"""Fewer tell nothing."""

SCALED, LEAST_STD = 20, 3.0
"""How far from 0 numbers lie that are scaled to 1, or standardised; noise alone spreads HU more."""

MOST_WITHOUT_FAT, ONE_TISSUE_STD = 10**6, 60.0
"""Among more voxels, and in more than one tissue, something is always fat or air."""

PADDING_HU, PADDING_GAP = -1100, 100
"""Below this, a value that far from the next one is what fills the field outside of the scan."""

AIR_HU = (-1100, -850)
TISSUE_HU = (-200, 300)
FAT_HU = np.array([-130, -70])
"""Where air and lungs lie; fat, soft tissue and contrast; most of the fat."""

CONVERT = "convert it again from its source with its slope and intercept"
REMEDIES = (
    (-1, 0, "change the sign"),
    (1, -1024, "subtract 1024"),
    (1, 1024, "add 1024"),
    (1, -8192, "subtract 8192"),
    (0.5, 0, "divide by 2"),
    (2, 0, "multiply by 2"),
)
"""Slope and intercept that may make HU of a CT's numbers, and how that is said."""


def is_empty(image: np.ndarray) -> tuple[str, str] | None:
    """Cause and cure if every voxel of a CT is the same."""
    if image.min() < image.max():
        return None
    cure = "convert it again from its source, or leave the case out"
    return f"is empty: every voxel is {image.flat[0]:g}", cure


def not_hounsfield(image: np.ndarray) -> tuple[str, str] | None:
    """What is implausible about a CT's numbers and what to do about it; None if they may be HU.

    Parameters
    ----------
    image
        (z, y, x) int16, or float32 if some numbers are not whole or too large for that.
    """
    numbers = _Numbers.of(image)
    if numbers.count < FEWEST_VOXELS or not (fault := numbers.fault()):
        return None
    cause = f"its numbers do not look like HU: {fault}"
    if image.dtype == np.int16 and numbers.like_labels():
        return f"{cause}, as in a label map", "give the CT that belongs to it"
    for slope, intercept, cure in REMEDIES:
        if numbers.scaled(slope, intercept).like_a_body(with_air=slope != 1):
            return cause, f"{cure}, or {CONVERT}"
    return cause, CONVERT


class _Numbers:
    """Which numbers an image holds without its padding, and how often."""

    def __init__(self, values: np.ndarray, counts: np.ndarray):
        while values[0] < PADDING_HU and np.ptp(values[:2]) >= PADDING_GAP:
            values, counts = values[1:], counts[1:]
        self.values, self.counts = values, counts
        self.count = int(counts.sum())
        self._below = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def of(cls, image: np.ndarray) -> "_Numbers":
        lowest, counts = histogram(image)
        found = np.flatnonzero(counts)
        return cls(found + lowest, counts[found])

    def scaled(self, slope: float, intercept: int) -> "_Numbers":
        values, places = np.unique(np.rint(slope * self.values + intercept), return_inverse=True)
        return _Numbers(values, np.bincount(places, self.counts))

    def share(self, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """Of all voxels, those from `low` to `high`."""
        first = self._below[np.searchsorted(self.values, low)]
        last = self._below[np.searchsorted(self.values, high, side="right")]
        return (last - first) / self.count

    def like_a_body(self, with_air: bool) -> bool:
        """Whether these may be HU and lie where most of a body's do."""
        if self.fault() or self.share(*TISSUE_HU) < 0.2:
            return False
        return not with_air or (self.share(-1050, -950) > 0.02 and self.values[-1] > TISSUE_HU[1])

    def like_labels(self) -> bool:
        return self.values[0] >= 0 and self.values[-1] <= 127

    def fault(self) -> str:
        """Why these are no HU; empty if they may be."""
        lowest, highest = self.values[0], self.values[-1]
        mean = self.values @ self.counts / self.count
        std = ((self.values - mean) ** 2 @ self.counts / self.count) ** 0.5
        if max(-lowest, highest) <= SCALED or (abs(mean) <= SCALED and std < LEAST_STD):
            return f"they lie between {lowest:g} and {highest:g}"
        cut_off = lowest >= 0 and highest == 255 and self.share(255, 255) > 0.002
        if cut_off or (lowest, highest) in ((0, 255), (-128, 127)):
            return f"they go from {lowest:g} to {highest:g}, as a picture's do"
        without_fat = self.count > MOST_WITHOUT_FAT and std > ONE_TISSUE_STD
        if lowest >= 0 and (self.share(0, 10) > 0.1 or without_fat):
            return f"none is negative, and they go up to {highest:g}"
        if (high := self.share(500, np.inf)) > 0.15 or (high > 0.05 and self._upside_down()):
            return f"{high:.0%} lie above 500"
        peak = self.share(850, 1250)
        if peak > max(0.05, self.share(400, 700)) and self.share(-900, -60) < 0.01:
            return f"{peak:.0%} lie at 850 to 1250, none where fat and lung do"
        if (tissue := self.share(*TISSUE_HU)) < 0.01:
            return f"{tissue:.1%} lie where fat and soft tissue do"
        if low := self._low():
            return f"{low:.0%} lie below {AIR_HU[0]}, and air is -1000"
        if air := self._air():
            return f"air is at {air}, not at -1000"
        return ""

    def _upside_down(self) -> bool:
        """Whether soft tissue is where its negative would be, and fat too."""
        tissue = self.share(-80, -20) > self.share(20, 80)
        return bool(tissue and self.share(*-FAT_HU[::-1]) > 2 * self.share(*FAT_HU))

    def _low(self) -> float:
        """Share of what lies below air, if a wrong slope has moved it there.

        Padding is one number, and where it was interpolated fat is still in its place.
        """
        low = self.values < AIR_HU[0]
        share = (self.counts[low].sum() - self.counts[low].max(initial=0)) / self.count
        if share < max(0.05, self.share(*AIR_HU)):
            return 0.0
        middle = np.searchsorted(self._below, self._below[low.sum()] / 2)
        return share if self._fat_moved(self.values[middle - 1] / -1000) else 0.0

    def _air(self) -> int | None:
        """Where air lies if a wrong slope has moved it up: a sharp lowest peak.

        Lungs are not so sharp, and what a window cuts off is one number or leaves fat in its place.
        """
        places = np.arange(AIR_HU[1], -60)
        peak = self.share(1.05 * places, 0.95 * places)
        beside = self.share(1.15 * places, 0.85 * places) - peak
        below = self.share(-np.inf, 1.15 * places)
        peak[(peak < 5 * beside) | (below > 0.01)] = 0
        air, most = int(places[peak.argmax()]), peak.max()
        in_fat = most if FAT_HU[0] <= air <= FAT_HU[1] else 0.0
        if most < 0.03 or not self._fat_moved(air / -1000, in_fat):
            return None
        inside = self.counts[(self.values >= 1.05 * air) & (self.values <= 0.95 * air)]
        return air if inside.max() < 0.8 * inside.sum() else None

    def _fat_moved(self, slope: float, air: float = 0.0) -> bool:
        """Whether there is as much where a slope moves fat as where fat is, but for some air, or
        no fat at all."""
        fat, moved = self.share(*FAT_HU) - air, self.share(*slope * FAT_HU)
        return bool(moved >= max(0.01, fat) or moved == fat == 0)
