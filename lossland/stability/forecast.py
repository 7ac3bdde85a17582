"""When the next spike of Adam will show, from what has been recorded so far, with an interval.

Everything here is causal: a forecast at a step reads no record after it.
"""

from __future__ import annotations

import json
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import optax
import xarray as xr

from lossland.arguments import NUMBERS, NUMERIC, dataset, expects, number, optional
from lossland.optimizers import Optimizer
from lossland.stability.arguments import decay, momentum
from lossland.stability.mode_growth import critical_ratio, ratio_rate
from lossland.stability.spike_lag import lag_from_state
from lossland.stability.spike_size import spike_rise
from lossland.stability.spikes import VISIBLE, relative_preconditioned_sharpness

HORIZON = 40
"""Steps ahead within which an expected spike raises the alarm."""
WINDOW = 40
"""Steps back from which the slope of ln ratio and the energy of the mode are taken."""
COVERAGE = 0.8
"""Nominal coverage of the intervals."""
RATE_SPREAD = 1.0
"""Standard deviation of the slope of ln ratio about that of a free second moment, in units of it, before any record."""
LEAST_SHARE = 0.5
"""A spike is expected if its predicted rise is at least so much of a visible one: the law is rather low."""
RATE_DRIFT, AMPLITUDE_DRIFT = 0.5, 0.7
"""Standard deviations of what happens to the slope (relative) and to the logarithm of the mode's amplitude between a
forecast and the crossing. Chosen, as is `LEAST_SHARE`, on the seeds that `adam_forecast` tunes on."""
MOST_STEPS = 1000
"""A mode that is not seen after so many steps from the threshold counts as never seen."""
BLOCK = 20_000_000
"""Runs x steps asked for x records that are worked on at a time."""

"""Of optax.adam, for messages."""
RECORDS = ("preconditioned_sharpness", "mode_energy", "mode_gradient", "mode_update", "mode_refill")
VARIABLES = {
    "crossing_step": ("step", "where ln ratio reaches 0: predicted, or interpolated where it lies behind"),
    "crossing_low": ("step", "earliest crossing in the interval"),
    "crossing_high": ("step", "latest crossing in the interval; inf where ln ratio may not rise"),
    "spike_step": ("step", "where the loss shows it: predicted, or seen where the spike is under way"),
    "spike_low": ("step", "earliest spike in the interval"),
    "spike_high": ("step", "latest spike in the interval; inf where there may be none"),
    "rate": ("1 / step", "slope of ln ratio that the forecast goes by"),
    "size": ("1", "largest loss of the spike over the loss before it; NaN where the ratio will not be above 1"),
    "ratio": ("1", "preconditioned sharpness over its threshold at the last record"),
    "spiking": ("1", "whether the spike of the last crossing shows already and the ratio is still above 1"),
    "alarm": ("1", "whether a spike is expected within the horizon"),
}


class _Records(NamedTuple):
    """What a forecast reads: steps (record,); hyperparameters (run, 1); the rest (run, record)."""

    steps: np.ndarray
    b1: np.ndarray
    b2: np.ndarray
    learning_rate: np.ndarray
    loss: np.ndarray
    log_ratio: np.ndarray
    sharpness: np.ndarray
    energy: np.ndarray
    gradient: np.ndarray
    update: np.ndarray
    refill: np.ndarray


class _Trend(NamedTuple):
    """Latest records summed up, (run, at): slope of ln ratio, its standard error, scatter about it, energy, scatter of
    half its logarithm."""

    rate: np.ndarray
    error: np.ndarray
    scatter: np.ndarray
    energy: np.ndarray
    energy_scatter: np.ndarray


@expects(
    runs=dataset(),
    at=optional(NUMBERS),
    horizon=number(above=0),
    window=number(above=0),
    coverage=number(above=0, below=1),
    visible=number(above=1),
    b1=optional(NUMERIC),
    b2=optional(NUMERIC),
)
def forecast(
    runs: xr.Dataset,
    *,
    at: Any = None,
    b1: Any = None,
    b2: Any = None,
    horizon: float = HORIZON,
    window: float = WINDOW,
    coverage: float = COVERAGE,
    visible: float = VISIBLE,
) -> xr.Dataset:
    """Predict at which step every run crosses its threshold and at which its loss shows it, with intervals.

    Equation: below the threshold, crossing = now - ln ratio / rate, `rate` the least-squares slope of ln ratio over the
    last `window` steps since its trough, weighed by its standard error against |ln b2| / 2, the rise under a second
    moment that decays freely (`adaptive.ratio_rate`); spike = crossing + lag, the mode stepped on from the threshold
    with its recent energy until it holds as much as the loss. Above it the crossing lies behind, and the mode is
    stepped on from its own gradient and first moment (`adaptive.lag_from_state`).

    The spike grows until it has refilled the second moment along the mode: with r the ratio at its peak, rho the growth
    per step there and c = sum w^4 / P (`mode_refill`), (1 - b2) c a^2 / (1 - 1 / rho^2) = 2 ln r gives its largest
    gradient a, and size = 1 + a^2 / (2 lambda loss). A spike that would raise the loss by less than half of a
    visible rise is not expected: its step is inf. The rise is right within a factor of two at b2 >= 0.997; at
    0.99 it is about two times too low at the median and more at times, so that spikes that just show are missed.

    Intervals take slope, ln ratio and the logarithm of the mode's amplitude z standard deviations to either side, z
    the normal quantile of `coverage`: those of their recent scatter, and below the threshold those of what may happen
    up to it (`RATE_DRIFT`, `AMPLITUDE_DRIFT`).

    In practice: ask a run that is still going well whether and when Adam will throw it out, while there is time to
    lower the learning rate, raise b1 or freeze the second moment.

    Args:
        runs: what `ll.run` returned, one run or many, with the probes "loss" and "preconditioned_mode"; or a state, one
            record of it (`runs.sel(step=...)`), whose slope is then that of a free second moment.
        at: step up to which records are read, or a list of steps; the last record if not given.
        b1, b2: Adam's: numbers, or DataArrays over axes of the runs. Those of the runs if not given, where they are an
            axis or the factory that was given to `ll.run` has arguments of these names.
        horizon: steps ahead within which an expected spike raises the alarm.
        window: steps back from which slope and energy are taken.
        coverage: nominal coverage of the intervals.
        visible: factor by which the loss rises at a spike, as in `spikes`.

    Returns:
        Dataset over the runs' axes, and "at" where a list was given: `VARIABLES`. Steps are inf where no crossing or
        spike is expected and NaN where a record is not finite.

    Raises:
        ValueError: where a record, b1 or b2 is missing (with how to supply it), `at` lies before the first record, or
            an argument is out of range.
    """
    _check(horizon, window, coverage, visible)
    records, asked = _records(runs, at, b1, b2)
    chosen = np.searchsorted(records.steps, asked, side="right") - 1
    found = _predict_in_blocks(records, chosen, window, coverage, visible)
    found["alarm"] = ~found["spiking"] & (found["spike_step"] - records.steps[chosen] <= horizon)
    grid = tuple(str(name) for name in runs["loss"].dims if name != "step")
    shape = tuple(runs.sizes[name] for name in grid)
    many = at is not None and np.ndim(at) > 0
    variables = {
        name: (
            (*grid, "at") if many else grid,
            values.reshape(*shape, -1) if many else values.reshape(shape),
            dict(zip(("units", "description"), VARIABLES[name], strict=True)),
        )
        for name, values in ((name, found[name]) for name in VARIABLES)
    }
    coordinates = {str(name): array for name, array in runs.coords.items() if "step" not in array.dims}
    coordinates.pop("step", None)
    text = {"units": "step", "description": "last record that the forecast reads"}
    coordinates["at"] = ("at", records.steps[chosen], text) if many else ((), records.steps[chosen[0]], text)
    given = {"horizon": horizon, "window": window, "coverage": coverage, "visible": visible}
    return xr.Dataset(variables, coordinates, given)


def _check(horizon: float, window: float, coverage: float, visible: float) -> None:
    for name, value in (("horizon", horizon), ("window", window)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number of steps, got {value!r}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: expected a probability between 0 and 1, got {coverage!r}")
    if not visible > 1:
        raise ValueError(f"visible: expected a factor above 1, got {visible!r}")


def _records(runs: xr.Dataset, at: Any, b1: Any, b2: Any) -> tuple[_Records, np.ndarray]:
    """Records up to the latest step asked for, and the steps asked for."""
    if not isinstance(runs, xr.Dataset) or "loss" not in runs or "step" not in runs.coords:
        raise ValueError("runs: expected the xarray.Dataset of ll.run with a record of the loss; add the probe 'loss'")
    if missing := [name for name in RECORDS if name not in runs]:
        raise ValueError(
            f"runs: expected a record of {', '.join(missing)}; record them with ll.run(..., probes=['loss', "
            "'preconditioned_mode'])"
        )
    whole = runs if "step" in runs["loss"].dims else runs.expand_dims("step")
    steps = whole["step"].values.astype(float)
    asked = np.atleast_1d(steps[-1] if at is None else np.asarray(at, float))
    if asked.ndim != 1 or not asked.size or not np.all(asked >= steps[0]):
        raise ValueError(
            f"at: expected a step, or a list of steps, not before the first record {steps[0]:g}, got {at!r}"
        )
    # Cut first: what follows cannot read what comes later, nor take its size from it.
    known = whole.isel(step=slice(0, int(np.searchsorted(steps, asked.max(), side="right"))))
    like = known["loss"].isel(step=0, drop=True)

    def of_runs(values: xr.DataArray) -> np.ndarray:
        return values.broadcast_like(like).transpose(*like.dims).values.astype(float).reshape(-1, 1)

    def of_records(values: xr.DataArray) -> np.ndarray:
        return values.transpose(*like.dims, "step").values.astype(float).reshape(like.size, -1)

    first = momentum("forecast", of_runs(_argument(runs, "b1", b1)))
    second = decay("forecast", of_runs(_argument(runs, "b2", b2)))
    ratio = of_records(relative_preconditioned_sharpness(known)["ratio"])
    with np.errstate(invalid="ignore", divide="ignore"):
        log_ratio = np.log(np.where(ratio > 0, ratio, np.nan))
    return _Records(
        known["step"].values.astype(float),
        first,
        second,
        critical_ratio(first) / of_runs(runs["threshold"]),
        of_records(known["loss"]),
        log_ratio,
        *(of_records(known[name]) for name in RECORDS),
    ), asked


def _argument(runs: xr.Dataset, name: str, given: Any) -> xr.DataArray:
    if given is not None:
        if name in runs.coords and bool((runs[name] != given).any()):
            raise ValueError(f"{name}: expected that of the runs, which have it as an axis, got another; leave it out")
        return given if isinstance(given, xr.DataArray) else xr.DataArray(np.asarray(given, float))
    if name not in runs.coords:
        recorded = json.loads(runs.attrs.get("optimizer_arguments", "{}"))
        if name in recorded:
            return xr.DataArray(float(recorded[name]))
        raise ValueError(
            f"{name}: expected an axis of the runs of that name, or its value; pass {name}=... (optax's default is "
            f"{Optimizer(optax.adam).numbers[name]:g})"
        )
    return runs[name].reset_coords(drop=True)


def _predict_in_blocks(
    records: _Records, chosen: np.ndarray, window: float, coverage: float, visible: float
) -> dict[str, np.ndarray]:
    """`_predict` for some runs at a time, so that the windows of many records of many runs fit in memory."""
    count = max(1, BLOCK // (len(chosen) * len(records.steps)))
    parts = []
    for start in range(0, len(records.loss), count):
        block = [field[start : start + count] for field in records[1:]]
        parts.append(_predict(_Records(records.steps, *block), chosen, window, coverage, visible))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _predict(
    records: _Records, chosen: np.ndarray, window: float, coverage: float, visible: float
) -> dict[str, np.ndarray]:
    """Everything but the alarm, (run, at)."""
    now = records.steps[chosen]
    crossed, shown = (history[:, chosen] for history in _history(records, visible))
    trend = _trend(records, chosen, window)
    log_ratio = records.log_ratio[:, chosen]
    above = log_ratio >= 0
    spiking = above & np.isfinite(shown)
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    found: dict[str, np.ndarray] = {"rate": trend.rate, "ratio": np.exp(log_ratio), "spiking": spiking}
    for name, sign in (("step", 0.0), ("low", 1.0), ("high", -1.0)):
        rate = trend.rate + sign * z * np.hypot(trend.error, np.where(above, 0.0, RATE_DRIFT * np.abs(trend.rate)))
        distance = np.maximum(-log_ratio - sign * z * trend.scatter, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            wait = np.where(rate > 0, distance / rate, np.inf)
        crossing = np.where(above, crossed, now + wait)
        log_amplitude = sign * z * np.hypot(trend.energy_scatter, np.where(above, 0.0, AMPLITUDE_DRIFT))
        lag = np.where(
            above,
            _lag_from_now(records, chosen, above & ~spiking, rate, log_amplitude),
            _lag_from_threshold(records, chosen, ~above & (rate > 0), rate, log_amplitude, trend.energy),
        )
        spike = np.where(above, now, crossing) + lag
        if name == "step":
            found["size"] = _size(records, chosen, np.maximum(log_ratio, 0.0) + rate * lag, rate)
        least = LEAST_SHARE * (visible - 1) * (0.25 if name == "low" else 1.0)
        spike = np.where(found["size"] - 1 < least, np.inf, spike)
        found[f"crossing_{name}"] = np.where(np.isnan(log_ratio), np.nan, crossing)
        found[f"spike_{name}"] = np.where(spiking, shown, np.where(np.isnan(log_ratio), np.nan, spike))
    return found


def _size(records: _Records, chosen: np.ndarray, log_visible: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Largest loss over the loss before; `log_visible` is ln ratio when the spike shows."""
    loss, refill = records.loss[:, chosen], records.refill[:, chosen]
    return 1 + spike_rise(log_visible, refill, loss, records.learning_rate, records.b1, records.b2, rate)


def _history(records: _Records, visible: float) -> tuple[np.ndarray, np.ndarray]:
    """Latest crossing from below, interpolated, and the first record at which its spike shows: (run, record) each, NaN
    where there is none yet."""
    loss, log_ratio, steps = records.loss, records.log_ratio, records.steps
    crossed, shown = np.full(loss.shape, np.nan), np.full(loss.shape, np.nan)
    last, seen, valley = np.full(len(loss), np.nan), np.full(len(loss), np.nan), np.full(len(loss), np.inf)
    before = np.full(len(loss), -np.inf)
    for index, step in enumerate(steps):
        now = log_ratio[:, index]
        crosses = (now >= 0) & (before < 0)
        back = step - steps[index - 1] if index else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            # From minus infinity, before the first record, the crossing counts as now.
            place = step - np.where(np.isfinite(before), now / (now - before), 0.0) * back
        last = np.where(crosses, place, last)
        valley = np.where(crosses, loss[:, index], np.fmin(valley, loss[:, index]))
        shows = ~crosses & np.isnan(seen) & np.isfinite(last) & (loss[:, index] > visible * valley)
        seen = np.where(crosses, np.nan, np.where(shows, step, seen))
        crossed[:, index], shown[:, index] = last, seen
        before = np.where(np.isnan(now), before, now)
    return crossed, shown


def _trend(records: _Records, chosen: np.ndarray, window: float) -> _Trend:
    """Fit the records of the last `window` steps since the trough of the ratio."""
    steps = records.steps
    first = np.searchsorted(steps, steps[chosen] - window, side="left")
    index = chosen[:, None] + np.arange(-int((chosen - first).max()), 1)
    recent = index >= first[:, None]
    index = np.maximum(index, 0)
    clock = steps[index] - steps[chosen][:, None]
    log_ratio = records.log_ratio[:, index]
    used = recent & np.isfinite(log_ratio)
    trough = np.argmin(np.where(used, log_ratio, np.inf), -1)
    since = used & (np.arange(index.shape[1]) >= trough[..., None])
    # A ratio that still falls has no trough yet: then the whole window says so.
    used = np.where(since.sum(-1, keepdims=True) >= 3, since, used)
    slope, error, scatter = _line(clock, log_ratio, used)
    expected = ratio_rate(records.b2)
    spread = RATE_SPREAD * expected
    weight = spread**2 / (spread**2 + error**2)
    weight = np.where(np.isfinite(error), weight, 0.0)
    rate = weight * np.where(np.isfinite(slope), slope, 0.0) + (1 - weight) * expected
    with np.errstate(divide="ignore", invalid="ignore"):
        log_energy = np.log(records.energy[:, index])
    felt = used & np.isfinite(log_energy)
    _, _, energy_scatter = _line(clock, log_energy / 2, felt)
    count = np.maximum(felt.sum(-1), 1)
    energy = np.exp(np.where(felt, log_energy, 0.0).sum(-1) / count)
    return _Trend(
        rate,
        spread * np.sqrt(1 - weight),
        scatter,
        np.where(felt.any(-1), energy, np.nan),
        energy_scatter,
    )


def _line(clock: np.ndarray, values: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares slope over the last axis, its standard error, and the residuals' standard deviation; with fewer
    than three records NaN, inf and 0."""
    count = used.sum(-1)
    enough = count >= 3
    share = used / np.maximum(count, 1)[..., None]
    values = np.where(used, values, 0.0)
    t = clock - (share * clock).sum(-1, keepdims=True)
    y = values - (share * values).sum(-1, keepdims=True)
    square = np.where(enough, (used * t**2).sum(-1), 1.0)
    slope = (used * t * y).sum(-1) / square
    rest = (used * (y - slope[..., None] * t) ** 2).sum(-1) / np.maximum(count - 2, 1)
    error = np.where(enough, np.sqrt(rest / square), np.inf)
    return np.where(enough, slope, np.nan), error, np.where(enough, np.sqrt(rest), 0.0)


def _lag_from_now(
    records: _Records, chosen: np.ndarray, wanted: np.ndarray, rate: np.ndarray, log_amplitude: np.ndarray
) -> np.ndarray:
    """Steps until a mode above its threshold shows, from its gradient and first moment."""
    gradient, update = records.gradient[:, chosen], records.update[:, chosen]
    remembers = np.where(records.b1 > 0, records.b1, 1.0)  # without memory the first moment does not matter
    moment = (-update / records.learning_rate - (1 - records.b1) * gradient) / remembers
    level = 2 * records.sharpness[:, chosen] * records.loss[:, chosen] * np.exp(-2 * log_amplitude)
    kappa = critical_ratio(records.b1) * np.exp(records.log_ratio[:, chosen])
    return _lag(gradient, moment, level, kappa, records, rate, wanted)


def _lag_from_threshold(
    records: _Records,
    chosen: np.ndarray,
    wanted: np.ndarray,
    rate: np.ndarray,
    log_amplitude: np.ndarray,
    energy: np.ndarray,
) -> np.ndarray:
    """Steps until a mode that stands at its threshold with some energy shows, in the direction that grows there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        level = records.loss[:, chosen] / energy * np.exp(-2 * log_amplitude)
    # The root at the threshold is -1: m = (1 - b1) g / (-1 - b1).
    moment = -(1 - records.b1) / (1 + records.b1)
    return _lag(1.0, moment, level, critical_ratio(records.b1), records, rate, wanted)


def _lag(
    gradient: Any, moment: Any, level: Any, kappa: Any, records: _Records, rate: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """`lag_from_state` where it is wanted and everything is finite, NaN elsewhere."""
    columns = np.broadcast_arrays(gradient, moment, level, kappa, records.b1, records.b2, rate)
    known = np.logical_and.reduce([np.isfinite(column) for column in columns]) & wanted & (columns[2] > 0)
    steps = np.where(wanted, np.nan, np.inf)
    if known.any():
        g, m, v, kappa, b1, b2, rate = (column[known] for column in columns)
        steps[known] = lag_from_state(
            g, m, v, kappa, b1, b2, curvature_rate=rate - ratio_rate(b2), max_steps=MOST_STEPS
        )
    return steps
