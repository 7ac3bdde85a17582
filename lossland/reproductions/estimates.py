"""Numbers with intervals over seeds, as claims need them, and what they say when two are compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland.reproductions.claims import Verdict
from lossland.stability.intervals import binomial_interval, mean_interval
from lossland.stability.maps import median_over_seeds


class Estimate(NamedTuple):
    """A value and its interval over seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isinf(self.low):  # of losses that overflowed, all of them
            return f"{self.value:g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def within(self, last: float) -> str:
        """Write where something happens up to `last`; what lies beyond (inf) is said in words."""
        if np.isinf(self.value):
            return f"none up to {last:.3g}" + ("" if np.isinf(self.low) else f" (interval from {self.low:.3g} on)")
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]".replace("inf]", f"beyond {last:.3g}]")

    @property
    def numbers(self) -> dict[str, Any]:
        """Arguments of `Claim`."""
        return {"value": self.value, "low": self.low, "high": self.high}


def exact(value: float) -> Estimate:
    """Take a number that is the same for every seed."""
    return Estimate(float(value), float(value), float(value))


def share_of(flags: Any) -> Estimate:
    """Share of true flags, one per seed, with its Wilson interval."""
    flags = np.asarray(flags, bool).ravel()
    low, high = binomial_interval(int(flags.sum()), flags.size)
    return Estimate(float(flags.mean()), float(low), float(high))


def mean_share(shares: Any, trials: int | None = None) -> Estimate:
    """Mean over seeds of a share that each seed has, with Student's interval, kept inside [0, 1].

    Where all seeds agree Student's interval is a point, which a few seeds cannot know: then it is Wilson's for `trials`
    throws in all, by default one a seed, the widest that a share can have. Seeds without a share (NaN) do not count;
    where none has, nothing is known: 1/2 in [0, 1].
    """
    known = np.asarray(shares, float).ravel()
    known = known[np.isfinite(known)]
    if not known.size:
        return Estimate(0.5, 0.0, 1.0)
    mean, low, high = mean_interval(known)
    if known.size == 1 or np.ptp(known) == 0:
        trials = trials or known.size
        low, high = (float(bound) for bound in binomial_interval(round(mean * trials), trials))
    return Estimate(mean, max(min(low, mean), 0.0), min(max(high, mean), 1.0))


def mean_of(values: Any) -> Estimate:
    """Mean over seeds with Student's interval."""
    return Estimate(*mean_interval(values))


def median_of(values: Any) -> Estimate:
    """Median over seeds with its interval by order statistics."""
    found = median_over_seeds(xr.DataArray(np.asarray(values, float).ravel(), dims="seed"))
    return Estimate(float(found["median"]), float(found["low"]), float(found["high"]))


def is_cause(with_it: Estimate, without: Estimate) -> Verdict:
    """Decide whether something is the cause of an effect, from how much of the effect is there with and without it.

    "supported" where the interval without lies below half of what is there with it; "refuted" where it lies above half;
    "depends" across.
    """
    half = with_it.value / 2
    return "supported" if without.high < half else "refuted" if without.low > half else "depends"
