"""How numbers are written for people."""

from collections.abc import Iterable, Sequence

import numpy as np

DASH = MISSING = "\N{EN DASH}"
WIDTH = 100
"""Of a terminal, for text that is wrapped."""


def percent(value: float | None, digits: int = 2) -> str:
    """A score between 0 and 1 in percent, e.g. ``87.31``; only 1 itself is 100."""
    if value is None:
        return MISSING
    shown = round(value * 100, digits) + 0.0  # no minus before a zero
    if shown == 100 and value < 1 - 1e-9:
        shown -= 10**-digits
    return f"{shown:.{digits}f}"


def points(value: float | None, digits: int = 2) -> str:
    """A difference of scores in percentage points with its sign, e.g. ``+1.20``; 0 has none."""
    text = percent(value, digits)
    return text if text[0] in f"-{MISSING}" or not float(text) else f"+{text}"


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval of differences in percentage points, e.g. ``-0.30 to 1.20``."""
    return MISSING if low is None else f"{percent(low, digits)} to {percent(high, digits)}"


def count(number: int, word: str) -> str:
    """How many of something, e.g. ``1 case`` or ``14 classes``."""
    plural = word + ("es" if word.endswith("s") else "s")
    return f"{number:,} {word if number == 1 else plural}"


def interval(ends: Sequence[float] | None) -> str:
    """Two scores between 0 and 1 in percent, with a dash between them: 81.2 to 90.4.

    Empty where both ends are the same: that all cases are alike says nothing of others.
    """
    if ends is None:
        return MISSING
    return "" if ends[0] == ends[1] else DASH.join(percent(end, 1) for end in ends)


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands apart, e.g. ``12,345.6``."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign, e.g. ``+1.20``."""
    return MISSING if value is None else f"{value:+,.{digits}f}"


def size(count: float) -> str:
    """A number of bytes, e.g. ``12.3 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"


def duration(hours: float) -> str:
    """A length of time, e.g. ``3.2 hours`` or ``45.0 minutes``."""
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median and range, e.g. ``2.5 (0.7 to 5.0)``."""
    values = list(values)
    if not values:
        return MISSING
    low, middle, high = (
        f"{value:,.{digits}f}" for value in (min(values), np.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"
