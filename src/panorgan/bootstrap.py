"""Runs compared on the same cases: percentile intervals from bootstrap samples that draw cases.

A sample draws as many cases as there are, with replacement, and the same ones for every column:
differences and ratios of two columns' drawn means are paired. Equal seeds give equal samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95
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


@dataclass(frozen=True)
class Compared:
    """Means of runs and their differences to one of them, with intervals.

    Attributes
    ----------
    by_seed : (runs, seeds, measures)
        Means over the cases.
    mean, difference : (runs, measures)
        Of `by_seed` over the seeds, and of that to the run that is compared with.
    interval, difference_interval : (2, runs, measures)
        Lower and upper ends.
    """

    by_seed: np.ndarray
    mean: np.ndarray
    interval: np.ndarray
    difference: np.ndarray
    difference_interval: np.ndarray


def compare(
    values: np.ndarray, parts: Sequence[int], *, base: int, samples: int, seed: int
) -> Compared:
    """Compare runs that were scored on the same cases.

    Cases and seeds are drawn independently of each other (Owen, The pigeonhole bootstrap, Ann.
    Appl. Stat. 1, 2007), and the same ones for every run.

    Parameters
    ----------
    values
        Float (runs, seeds, cases, columns); NaN where a case does not bear on a column.
    parts
        How many consecutive columns each measure is the mean of; their means over cases are
        averaged, without those of columns that no case bears on.
    base
        The run that others are compared with.
    samples, seed
        Of the bootstrap.
    """
    runs, seeds, cases, _ = values.shape
    ends = np.cumsum(parts)

    def measure(means: np.ndarray) -> np.ndarray:
        """Of means of columns (runs, seeds, columns, …) those of measures."""
        found = [mean(part, axis=2) for part in np.split(means, ends[:-1].tolist(), axis=2)]
        return np.stack(found, axis=2)

    rng = np.random.default_rng(seed)
    drawn = drawn_means(values.transpose(2, 0, 1, 3).reshape(cases, -1), samples, rng)
    drawn = measure(drawn.reshape(runs, seeds, -1, samples))
    drawn = (drawn * draw(rng, seeds, samples).T[:, None]).sum(axis=1) / seeds
    by_seed = measure(mean(values, axis=2))
    means = by_seed.mean(axis=1)
    return Compared(
        by_seed, means, interval(drawn), means - means[base], interval(drawn - drawn[base])
    )


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over an axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(known, values, 0).sum(axis) / np.where(count == 0, np.nan, count)


def draw(rng: np.random.Generator, count: int, samples: int) -> np.ndarray:
    """How often each of `count` things is drawn in each sample: int (samples, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=samples)


def interval(drawn: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
    """Percentiles over the last axis, (2, …), without the samples that are NaN."""
    tail = 50 * (1 - coverage)
    out = np.full((2, *drawn.shape[:-1]), np.nan)
    some = ~np.isnan(drawn).all(axis=-1)
    out[:, some] = np.nanpercentile(drawn[some], [tail, 100 - tail], axis=-1)
    return out


def number(value: float) -> float | None:
    """A number as it is written: six decimals hide the order in which a library adds."""
    return None if np.isnan(value) else round(float(value), 6) + 0.0
