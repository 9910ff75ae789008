"""Runs compared on the same cases: percentile intervals from bootstrap samples that draw cases.

A sample draws as many cases as there are, with replacement, and the same ones for every column:
differences and ratios of two columns' drawn means are paired. Equal seeds give equal samples.
From fewer than `FEWEST` cases there is no interval.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

COVERAGE = 0.95
FEWEST = 5
"""Cases that an interval is made from at least: fewer say too little of how cases differ."""
TOO_FEW = f"no interval from fewer than {FEWEST} cases"
BLOCK = 1 << 20
"""Numbers that are drawn at once: memory stays small however many cases there are."""


def drawn_means(values: np.ndarray, samples: int, seed: int | np.random.Generator) -> np.ndarray:
    """Each sample's means over its cases: what intervals of anything made of means are made from.

    Parameters
    ----------
    values
        Float (cases, columns); NaN where a case does not bear on a column.
    samples
        How many times cases are drawn.
    seed
        Of the random numbers, or what draws them.

    Returns
    -------
    (columns, samples) float64
        NaN where a sample drew no case that bears on the column.
    """
    values = np.array(values, np.float64, order="C")
    cases, columns = values.shape
    if not cases:
        return np.full((columns, samples), np.nan)
    bears = (~np.isnan(values)).T.astype(np.float64)
    known = np.nan_to_num(values).T
    rng = np.random.default_rng(seed)
    means = np.empty((columns, samples))
    block = max(1, BLOCK // cases)
    for start in range(0, samples, block):
        chosen = means[:, start : start + block]
        drawn = draw(rng, cases, chosen.shape[1]).T.astype(np.float64)
        weights = bears @ drawn
        with np.errstate(invalid="ignore"):
            chosen[:] = (known @ drawn) / np.where(weights == 0, np.nan, weights)
    return means


def compare(
    values: np.ndarray, parts: Sequence[int], *, base: int | None, samples: int, seed: int
) -> list[list[dict[str, Any]]]:
    """Compare runs that were scored on the same cases.

    Cases and seeds are drawn independently of each other (Owen, The pigeonhole bootstrap, Ann.
    Appl. Stat. 1, 2007), and the same ones for every run.

    Parameters
    ----------
    values
        Float (runs, seeds, columns, cases); NaN where a case does not bear on a column, which is
        the same in all runs.
    parts
        How many consecutive columns each measure is the mean of; their means over cases are
        averaged, without those of columns that no case bears on.
    base
        The run that others are compared with; None: none.
    samples, seed
        Of the bootstrap.

    Returns
    -------
    list of list of dict
        For each run and measure: mean, low, high (the interval), seeds (the mean of each), cases
        (that bear on the measure), and difference, difference_low, difference_high to the base.
        Numbers have six decimals; they are None where there is no such case, differences where
        there is no base, or the run is it, and intervals as `interval` says: those of a measure of
        several columns by the `fewest` cases of one.
    """
    runs, seeds, _, cases = values.shape
    starts = np.cumsum(parts)[:-1].tolist()

    def measure(means: np.ndarray) -> np.ndarray:
        """Of means of columns (runs, seeds, columns, …) those of measures."""
        return np.stack([mean(part, 2) for part in np.split(means, starts, axis=2)], axis=2)

    rng = np.random.default_rng(seed)
    drawn = drawn_means(values.transpose(3, 0, 1, 2).reshape(cases, -1), samples, rng)
    drawn = measure(drawn.reshape(runs, seeds, -1, samples))
    drawn = (drawn * draw(rng, seeds, samples).T[:, None]).sum(axis=1) / seeds
    by_seed = measure(mean(values, axis=3))
    means = by_seed.mean(axis=1)
    to = 0 if base is None else base
    differences = means - means[to]
    known = np.split(~np.isnan(values[0, 0]), starts)
    bears = [int(part.any(axis=0).sum()) for part in known]
    least = np.array([fewest(part.sum(axis=1)) for part in known])
    low, high = interval(drawn, least)
    difference_low, difference_high = interval(drawn - drawn[to], least)
    found = []
    for run in range(runs):
        found.append([])
        for at, count in enumerate(bears):
            entry = {
                "mean": number(means[run, at]),
                "low": number(low[run, at]),
                "high": number(high[run, at]),
                "seeds": [number(one) for one in by_seed[run, :, at]],
                "cases": count,
                "difference": number(differences[run, at]),
                "difference_low": number(difference_low[run, at]),
                "difference_high": number(difference_high[run, at]),
            }
            if base in (None, run):
                entry |= dict.fromkeys(("difference", "difference_low", "difference_high"))
            found[-1].append(entry)
    return found


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over an axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(known, values, 0).sum(axis) / np.where(count == 0, np.nan, count)


def draw(rng: np.random.Generator, count: int, samples: int) -> np.ndarray:
    """How often each of `count` things is drawn in each sample: int (samples, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=samples)


def fewest(counts: Iterable[int]) -> int:
    """The smallest of some numbers of cases without the zeros: what a mean of columns rests on."""
    return min(filter(None, counts), default=0)


def interval(drawn: np.ndarray, cases: int | np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
    """Percentiles over the last axis, (2, …), without the samples that are NaN.

    `cases` says how many cases bear on each of the others: of fewer than `FEWEST` it is NaN.
    """
    tail = 50 * (1 - coverage)
    out = np.full((2, *drawn.shape[:-1]), np.nan)
    some = ~np.isnan(drawn).all(axis=-1) & (np.asarray(cases) >= FEWEST)
    out[:, some] = np.nanpercentile(drawn[some], [tail, 100 - tail], axis=-1)
    return out


def number(value: float) -> float | None:
    """A number as it is written: six decimals hide the order in which a library adds."""
    return None if np.isnan(value) else round(float(value), 6) + 0.0
