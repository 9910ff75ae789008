"""Percentile intervals of means over cases, from bootstrap samples that draw cases.

A sample draws as many cases as there are, with replacement, and the same ones for every column:
differences and ratios of two columns' drawn means are paired. Equal seeds give equal samples.
"""

import numpy as np

COVERAGE = 0.95
BLOCK = 1 << 20
"""Numbers that are drawn at once: memory stays small however many cases there are."""


def mean_intervals(
    values: np.ndarray, samples: int, seed: int, coverage: float = COVERAGE
) -> np.ndarray:
    """Intervals of the means over cases.

    Parameters
    ----------
    values
        Float (cases, columns); NaN where a case does not bear on a column.
    samples
        How many times cases are drawn.
    seed
        Of the random numbers.
    coverage
        Of the intervals, between 0 and 1.

    Returns
    -------
    (2, columns) float64
        Lower and upper ends; NaN for a column that no case bears on.
    """
    return interval(drawn_means(values, samples, seed), coverage)


def drawn_means(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Each sample's means over its cases: what intervals of anything made of means are made from.

    Parameters are those of `mean_intervals`.

    Returns
    -------
    (columns, samples) float64
        NaN where a sample drew no case that bears on the column.
    """
    values = np.asarray(values, np.float64)
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
