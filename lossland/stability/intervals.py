"""Intervals over seeds: of a probability, and of a mean."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

COVERAGE = 0.95
"""Nominal coverage of intervals over seeds."""
Method = Literal["wilson", "clopper_pearson"]


def binomial_interval(
    successes: Any, trials: Any, method: Method = "wilson", coverage: float = COVERAGE
) -> tuple[np.ndarray, np.ndarray]:
    """Bound a probability from successes k in trials n: (low, high), NaN where nothing was tried.

    Equation: "wilson": the p for which (k/n - p)^2 = z^2 p (1 - p) / n, near the nominal coverage on average;
    "clopper_pearson": the p for which P(K >= k) and P(K <= k) equal (1 - coverage) / 2, never below the nominal
    coverage.

    Raises:
        ValueError: for an unknown method, a coverage outside (0, 1), or successes outside [0, trials].

    Source: Wilson 1927; Clopper and Pearson 1934; compared in Brown, Cai and DasGupta 2001.
    """
    k, n = np.broadcast_arrays(np.asarray(successes), np.asarray(trials))
    if method not in ("wilson", "clopper_pearson"):
        raise ValueError(f"method: expected 'wilson' or 'clopper_pearson', got {method!r}")
    _check_coverage(coverage)
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("successes: expected whole numbers from 0 to the number of trials")
    bounds = _wilson if method == "wilson" else _clopper_pearson
    pairs = {(int(a), int(b)): bounds(int(a), int(b), coverage) for a, b in zip(k.ravel(), n.ravel(), strict=True)}
    found = np.array([pairs[int(a), int(b)] for a, b in zip(k.ravel(), n.ravel(), strict=True)], float)
    low, high = found.reshape(*k.shape, 2)[..., 0], found.reshape(*k.shape, 2)[..., 1]
    return low, high


def mean_interval(values: Any, coverage: float = COVERAGE) -> tuple[float, float, float]:
    """Estimate a mean from independent draws: (mean, low, high), mean -/+ t s / sqrt(n); NaN does not count.

    Equation: t is Student's quantile of (1 + coverage) / 2 with n - 1 degrees of freedom, s the standard deviation of
    the sample. With one draw the interval is infinite: one seed bounds nothing. With none, all are NaN.

    Source: Student 1908.
    """
    _check_coverage(coverage)
    sample = np.asarray(values, float).ravel()
    sample = sample[~np.isnan(sample)]
    if not sample.size:
        return math.nan, math.nan, math.nan
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, -math.inf, math.inf
    half = student_quantile((1 + coverage) / 2, sample.size - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return mean, mean - half, mean + half


@functools.cache
def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, for a probability of at least 1/2 and whole degrees of
    freedom."""
    return _bisect(lambda t: _student_below(t, degrees) - probability, 0.0, 1e8)


def _student_below(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0, by the finite trigonometric series (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + 0.5 * within


@functools.cache
def _wilson(k: int, n: int, coverage: float) -> tuple[float, float]:
    if n == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    share, scale = k / n, 1 + z**2 / n
    middle = (share + z**2 / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)


@functools.cache
def _clopper_pearson(k: int, n: int, coverage: float) -> tuple[float, float]:
    if n == 0:
        return math.nan, math.nan
    tail = (1 - coverage) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: (1 - _binomial_below(k - 1, n, p)) - tail, 0.0, 1.0)
    high = 1.0 if k == n else _bisect(lambda p: tail - _binomial_below(k, n, p), 0.0, 1.0)
    return low, high


def _binomial_below(k: int, n: int, p: float) -> float:
    """P(K <= k) of K ~ Binomial(n, p), summed in logarithms."""
    if p <= 0 or p >= 1:
        return 1.0 if p <= 0 else 0.0
    log, log_not = math.log(p), math.log1p(-p)
    whole = math.lgamma(n + 1)
    return min(
        1.0,
        math.fsum(
            math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log + (n - i) * log_not)
            for i in range(k + 1)
        ),
    )


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: expected a probability between 0 and 1, got {coverage!r}")
