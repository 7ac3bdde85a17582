"""What is known of one run around the largest rise of its loss; NaN or None where it was not measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland.diagnosis.events import FACTOR, find
from lossland.diagnosis.hygiene import Check

ROUNDING = 1e-6
"""Rises below this share of the first loss are taken for rounding (float32)."""
LEFT = {"last_batch_dropped": 0.5, "outliers_dropped": 0.5, "float64": 0.0}
"""Share of a rise that may be left where it is gone: a quarter, half where two random runs are compared, nothing where
precision alone is to blame: what overflows may have grown before."""
NEAR = 0.97
"""Sharpness over threshold from which a rise counts as one at the threshold: samples lie between the peaks."""
BEFORE = 40
"""Steps before the valley in which the threshold may have been crossed."""
SETTLES = 100
"""Steps before the valley in which a schedule may have raised the learning rate: what crosses the threshold with it may
swing more than once before the largest rise."""
JUMP = 1.05
"""Growth of the learning rate that a rise can be put down to."""
OVERFLOWS = 1e15
"""A loss beyond this that grows ends in infinity by itself; below it, infinity came from one operation."""

NOT_PASSED = "missing"
"""Attribute of a monitored loss that is NaN at steps to which none was passed, and finite at all others."""


class Rise(NamedTuple):
    """Steps of one rise, and how far it went: peak over valley, inf where the loss was not finite."""

    valley: int
    start: int
    peak: int
    recovery: int | None
    factor: float


class RateRise(NamedTuple):
    """Growth of the learning rate before a rise: the last step at the lower rate, that rate, the largest after it."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Observation:
    """One run: its curves, its largest rise, and what was measured around it."""

    step: np.ndarray
    loss: np.ndarray
    rise: Rise | None
    num_rises: int = 0
    recorded: np.ndarray | None = None  # the batch's loss, where it is another
    recorded_rise: Rise | None = None
    overflow: int | None = None  # first step without a finite loss
    resolution: int = 1  # steps between records
    peak_loss: float = np.nan  # largest finite loss, over every step where steps see the full data
    steps_uphill: int = 0  # steps that raised the loss, recorded or not; 0 where that was not counted
    rates: np.ndarray | None = None  # learning rate at every record
    optimizer: str = ""
    momentum: float = np.nan  # of the first moment
    b2: float = np.nan
    is_adaptive: bool = False
    batch_size: int | None = None
    num_examples: int | None = None
    has_random_layers: bool = False
    is_recurrent: bool = False
    # (step, ratio) where the sharpness, or the preconditioned one, was measured; ratio to the threshold
    ratio_step: np.ndarray = field(default_factory=lambda: np.empty(0))
    ratio: np.ndarray = field(default_factory=lambda: np.empty(0))
    sharpness: np.ndarray = field(default_factory=lambda: np.empty(0))
    floor_mass: float = np.nan  # share of the unstable mode on coordinates that epsilon divides
    excess: float = np.nan  # largest g^2 / v in the rise
    moment_share: float = np.nan
    slope: float = np.nan  # parts of the rise, in units of the loss, and their sum
    curvature: float = np.nan
    rest: float = np.nan
    change: float = np.nan
    gradient_jump: float = np.nan
    noise_ratio: float = np.nan
    outlier_share: float = np.nan
    outliers: tuple[int, ...] = ()
    ragged_share: float = np.nan
    ragged_expected: float = np.nan
    labels: Check | None = None
    wrong_rows: tuple[int, ...] = ()  # whose labels alone make the loss not finite
    wrong_leaves: tuple[str, ...] = ()
    # arm -> log of (largest rise in the arm), and of the unchanged arm over the same steps
    arms: dict[str, float] = field(default_factory=dict)
    untested: tuple[str, ...] = ()

    def changed(self, **fields: Any) -> Observation:
        """Return the same run with more known of it."""
        return replace(self, **fields)

    def ratio_between(self, first: float, last: float) -> float:
        """Largest ratio to the threshold measured between two steps, NaN if none was."""
        inside = (self.ratio_step >= first) & (self.ratio_step <= last) & np.isfinite(self.ratio)
        return float(self.ratio[inside].max()) if inside.any() else np.nan

    @property
    def worst_ratio(self) -> float:
        """Ratio to the threshold that made the rise: at the start if it began there, else before it, else within it."""
        if self.rise is None:
            return np.nan
        if self.rise.valley <= 2 * self.resolution and self.first_ratio > 1:
            return self.first_ratio
        before = self.ratio_between(self.rise.valley - BEFORE, max(self.rise.start, self.rise.valley + 1))
        return before if before >= NEAR else self.ratio_between(self.rise.valley - BEFORE, self.rise.peak)

    @property
    def rate_rise(self) -> RateRise | None:
        """The first growth of the learning rate by `JUMP` in the `SETTLES` steps before the valley or in the rise."""
        if self.rise is None or self.rates is None:
            return None
        near = (self.step >= self.rise.valley - SETTLES) & (self.step <= self.rise.peak)
        steps, rates = self.step[near], self.rates[near]
        low = np.minimum.accumulate(rates)
        grown = np.flatnonzero(rates > JUMP * low)
        if not len(grown):
            return None
        last = int(grown[0]) - 1
        return RateRise(int(steps[last]), float(low[last]), float(rates[last + 1 :].max()))

    @property
    def first_ratio(self) -> float:
        """Ratio to the threshold at the first step."""
        known = np.flatnonzero((self.ratio_step == 0) & np.isfinite(self.ratio))
        return float(self.ratio[known[0]]) if len(known) else np.nan

    @property
    def last_ratio(self) -> float:
        """The last ratio to the threshold that was measured."""
        known = np.flatnonzero(np.isfinite(self.ratio))
        return float(self.ratio[known[-1]]) if len(known) else np.nan

    def removed(self, arm: str) -> bool | None:
        """Whether the rise is gone in an arm: less than `LEFT` of it (in logarithms); None if it was not replayed."""
        if arm not in self.arms or "unchanged" not in self.arms:
            return None
        before, after = self.arms["unchanged"], self.arms[arm]
        if not before > np.log(FACTOR):
            return None
        return bool(after <= max(LEFT.get(arm, 0.25) * before, np.log(FACTOR)))


def largest_rise(step: np.ndarray, loss: np.ndarray, factor: float = FACTOR) -> tuple[Rise | None, int]:
    """Find the rise to explain, and count all: the one without an end if there is one, else the largest in logarithms.

    Rises smaller than `ROUNDING` of the first loss do not count.
    """
    found = []
    floor = ROUNDING * abs(float(loss[0])) if np.isfinite(loss[0]) else 0.0
    for event in find(loss, factor):
        low, high = float(loss[event.valley]), float(loss[event.peak])
        if np.isfinite(high) and high - low <= floor:
            continue
        ratio = high / low if low > 0 else np.inf
        valley, start, peak = (int(step[place]) for place in (event.valley, event.event, event.peak))
        back = None if event.recovery is None else int(step[event.recovery])
        found.append(Rise(valley, start, peak, back, ratio if np.isfinite(high) else np.inf))
    if not found:
        return None, 0
    last = found[-1]
    if not np.isfinite(loss).all() or (last.recovery is None and loss[-1] > max(loss[0], 2 * last_valley(loss))):
        return last, len(found)
    return max(found, key=lambda rise: rise.factor), len(found)


def last_valley(loss: np.ndarray) -> float:
    """Lowest finite loss."""
    return float(np.nanmin(np.where(np.isfinite(loss), loss, np.nan)))


def observe(run: xr.Dataset) -> Observation:
    """Read what the records of one run say.

    Args:
        run: one run of `ll.run`'s dataset, with the dim "step" alone.
    """
    steps = run["step"].values.astype(int)
    loss = run["loss"].values.astype(float)
    bad = np.flatnonzero(~np.isfinite(loss))
    first_bad = int(run["first_bad_step"]) if "first_bad_step" in run else -1
    last = int(bad[0]) + 1 if len(bad) else len(loss)
    curve, steps_known = loss[:last], steps[:last]
    rise, count = largest_rise(steps_known, curve)
    if rise is None and first_bad >= 0:
        rise = Rise(int(steps_known[np.nanargmin(curve)]) if np.isfinite(curve).any() else 0, first_bad, first_bad,
                    None, np.inf)  # fmt: skip
    recorded = recorded_rise = None
    for name in ("batch_loss", "epoch_mean_loss"):
        if recorded is None and name in run:
            series = run[name].values.astype(float)[:last]
            if not np.allclose(series, curve, rtol=1e-5, equal_nan=True):
                recorded = series
                known = np.isfinite(series)
                if known.any():
                    recorded_rise, _ = largest_rise(steps_known[known], series[known])
    ratio, sharpness = _ratios(run)
    inside = np.arange(len(steps)) < last
    settings = run.attrs
    optimizer = str(settings.get("optimizer", ""))
    return Observation(
        step=steps_known,
        loss=curve,
        rise=rise,
        num_rises=count,
        recorded=recorded,
        recorded_rise=recorded_rise,
        overflow=first_bad if first_bad >= 0 else None,
        resolution=int(np.median(np.diff(steps))) if len(steps) > 1 else max(1, int(run.get("steps_done", 1))),
        peak_loss=run["peak_loss"].item() if "peak_loss" in run else np.nan,
        steps_uphill=_uphill(run),
        rates=np.full(len(curve), float(run["learning_rate"])) if "learning_rate" in run.coords else None,
        optimizer=optimizer,
        is_adaptive=bool(run["threshold"].attrs.get("preconditioned", 0)) if "threshold" in run else False,
        ratio_step=steps[inside].astype(float),
        ratio=ratio[inside],
        sharpness=sharpness[inside],
        floor_mass=_worst(run, "mode_floor_mass", rise),
        excess=_worst(run, "gradient_excess_max", rise),
    )


def recorded_losses(run: Any) -> Any:
    """A run, or its loss over "step", without the records that have no loss because none was passed to the monitor."""
    loss = run["loss"] if isinstance(run, xr.Dataset) else run
    if not isinstance(loss, xr.DataArray) or NOT_PASSED not in loss.attrs or loss.dims != ("step",):
        return run
    return run.isel(step=np.flatnonzero(~np.isnan(loss.values)))


def _uphill(run: xr.Dataset) -> int:
    """Steps that raised the loss; where steps see batches, the records were counted instead."""
    is_counted = "num_rises" in run and run["num_rises"].attrs.get("units") == "step"
    return int(run["num_rises"]) if is_counted else 0


def _worst(run: xr.Dataset, name: str, rise: Rise | None) -> float:
    """Largest value of a record in the rise."""
    if name not in run or rise is None:
        return np.nan
    values = run[name].sel(step=slice(rise.valley, rise.peak)).values.astype(float)
    return float(np.nanmax(values)) if np.isfinite(values).any() else np.nan


def _ratios(run: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Ratio to the threshold and sharpness at every record, NaN where they were not recorded."""
    blank = np.full(run.sizes["step"], np.nan)
    sharpness = run["sharpness"].values.astype(float) if "sharpness" in run else blank
    if "relative_sharpness" in run:
        return run["relative_sharpness"].values.astype(float), sharpness
    if "preconditioned_sharpness" in run and run["threshold"].attrs.get("preconditioned", 0):
        return run["preconditioned_sharpness"].values.astype(float) / float(run["threshold"]), sharpness
    return blank, sharpness
