"""Bootstrap intervals against scipy's, against a plain loop, and what is empty."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from panorgan.scoring import bootstrap as own
from panorgan.scoring.bootstrap import FEWEST, drawn_means, fewest, interval


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.7, 0.2, (40, 2))
    low, high = interval(drawn_means(values, 20_000, seed=0), 40, coverage=0.9)
    for column in range(2):
        expected = bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, confidence_level=0.9,
            method="percentile", rng=2,
        ).confidence_interval  # fmt: skip
        assert (low[column], high[column]) == pytest.approx(
            (expected.low, expected.high), abs=0.003
        )


def test_means_are_over_the_drawn_cases_that_bear_on_a_column():
    rng = np.random.default_rng(3)
    values = rng.random((6, 3))
    values[rng.random(values.shape) < 0.4] = np.nan
    drawn = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=50)
    found = drawn_means(values, 50, seed=7)
    for sample, counts in enumerate(drawn):
        cases = np.repeat(np.arange(6), counts)
        for column in range(3):
            own_values = values[cases, column]
            own_values = own_values[~np.isnan(own_values)]
            expected = own_values.mean() if own_values.size else np.nan
            assert found[column, sample] == pytest.approx(expected, nan_ok=True)


def test_every_column_draws_the_same_cases():
    values = np.random.default_rng(0).random((9, 1))
    means = drawn_means(np.hstack([values, values + 0.25]), 300, seed=5)
    assert interval(means[1] - means[0], 9) == pytest.approx([0.25, 0.25])
    low, high = interval(means[0], 9)
    assert low < high


def test_blocks_draw_what_one_draw_does(monkeypatch):
    values = np.random.default_rng(0).random((7, 2))
    whole = drawn_means(values, 31, seed=1)
    monkeypatch.setattr(own, "BLOCK", 20)  # two samples at once
    assert drawn_means(values, 31, seed=1) == pytest.approx(whole)


def test_what_no_case_bears_on_has_no_interval():
    values = np.array([[np.nan, 0.3], [np.nan, np.nan]])
    low, high = interval(drawn_means(values, 100, seed=0), FEWEST)
    # A quarter of the samples draw only the second case.
    assert np.isnan([low[0], high[0]]).all()
    assert (low[1], high[1]) == (0.3, 0.3)
    assert np.isnan(interval(drawn_means(np.empty((0, 2)), 100, seed=0), 0)).all()


def test_fewer_than_five_cases_have_no_interval():
    drawn = drawn_means(np.random.default_rng(0).random((9, 3)), 100, seed=0)
    low, high = interval(drawn, np.array([4, 5, 9]))
    assert np.isnan([low[0], high[0]]).all()
    assert (low[1:] < high[1:]).all()
    # A mean of columns rests on the fewest cases of one; one that no case bears on is not in it.
    assert [fewest(counts) for counts in ([9, 4, 7], [0, 6], [0, 0], [])] == [4, 6, 0, 0]


@pytest.mark.parametrize(("cases", "some"), [(4, False), (5, True)])
def test_runs_are_compared_without_intervals_of_fewer_than_five_cases(cases, some):
    values = np.random.default_rng(0).random((2, 1, 3, 6))
    values[:, :, 1, cases:] = np.nan
    # The second measure is of the last two columns, of which one has fewer cases.
    first, second = own.compare(values, [1, 2], base=0, samples=50, seed=0)[1]
    assert second["cases"] == 6
    for key in ("low", "high", "difference_low", "difference_high"):
        assert first[key] is not None
        assert (second[key] is not None) is some
    assert second["difference"] is not None


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(0).random((8, 3))
    first, again, other = (drawn_means(values, 99, seed=seed) for seed in (4, 4, 5))
    assert (first == again).all()
    assert (first != other).any()
