"""Intervals over seeds: against SciPy, and the coverage they state."""

import numpy as np
import pytest
from scipy import stats

from lossland.stability.intervals import binomial_interval, mean_interval, student_quantile

COUNTS = [(0, 1), (1, 1), (0, 8), (3, 8), (8, 8), (17, 64), (200, 200), (1, 500)]


@pytest.mark.parametrize(("method", "theirs"), [("wilson", "wilson"), ("clopper_pearson", "exact")])
@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("coverage", [0.5, 0.95, 0.999])
def test_binomial_intervals_equal_scipy(method, theirs, k, n, coverage):
    low, high = binomial_interval(k, n, method, coverage)
    expected = stats.binomtest(k, n).proportion_ci(coverage, theirs)
    assert low == pytest.approx(expected.low, abs=1e-10)
    assert high == pytest.approx(expected.high, abs=1e-10)


def test_nothing_tried_bounds_nothing():
    low, high = binomial_interval([0, 1], [0, 4])
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert 0 < low[1] < 0.25 < high[1] < 1


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_clopper_pearson_covers_at_least_as_often_as_it_says(p):
    n = 24
    low, high = binomial_interval(np.arange(n + 1), n, "clopper_pearson")
    inside = (low <= p) & (p <= high)
    assert stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum() >= 0.95


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 101])
@pytest.mark.parametrize("probability", [0.6, 0.975, 0.9995])
def test_student_quantiles_equal_scipy(degrees, probability):
    assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)


def test_mean_interval_ignores_nan_and_says_when_one_seed_bounds_nothing():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    mean, low, high = mean_interval(values)
    expected = stats.t.interval(0.95, 2, values[:3].mean(), stats.sem(values[:3]))
    assert (mean, low, high) == pytest.approx((values[:3].mean(), *expected))
    assert mean_interval([3.0]) == (3.0, -np.inf, np.inf)
    assert np.isnan(mean_interval([np.nan])).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: binomial_interval(1, 2, "guess"), "wilson"),
        (lambda: binomial_interval(3, 2), "successes"),
        (lambda: binomial_interval(1, 2, coverage=1.0), "coverage"),
        (lambda: mean_interval([1.0, 2.0], coverage=0), "coverage"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
