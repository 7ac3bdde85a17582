"""Whether and when a late spike comes, predicted from states of runs that end where late training begins."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import dataset, expects
from lossland.optimizers import as_optimizer
from lossland.problems.problem import Problem
from lossland.stability.damping import epsilon_floor
from lossland.stability.forecast import LEAST_SHARE
from lossland.stability.intervals import binomial_interval
from lossland.stability.late_training import MAPS
from lossland.stability.maps import median_over_seeds
from lossland.stability.mode_growth import critical_ratio, ratio_rate
from lossland.stability.spike_boundary import spike_boundary
from lossland.stability.spike_lag import lag
from lossland.stability.spike_size import spike_rise
from lossland.stability.spikes import VISIBLE
from lossland.sweeps.adaptive_probes import preconditioned_mode
from lossland.sweeps.execution import run
from lossland.sweeps.forgetting_probe import forgetting
from lossland.sweeps.loss_probes import FACTOR
from lossland.sweeps.sweep import Sweep

RECORDS, STATES = 6, 4
"""Records of a run, and how many of the last ones are predicted from: states in different phases of a round."""
_LONG = 1e6

VARIABLES = {
    "probability": ("1", "probability of a late spike"),
    "time": ("step", "median step of the first late spike; inf if most runs have none"),
    "round": ("step", "from one burst to the next, seen or not; inf if eps or the last step prevents them"),
    "seen": ("1", "share of bursts large enough to be seen"),
    "crosses": ("1", "share of states from which the threshold is crossed before the last step"),
    "lag": ("step", "from the crossing to the burst, median over states"),
    "rise": ("1", "rise of the loss at a burst over the loss before it, median over states"),
    "sharpness": ("loss / parameter^2", "largest eigenvalue of the Hessian, median over states and runs"),
    "epsilon_floor": ("1", "learning_rate x sharpness / kappa*: a larger eps cannot turn unstable at this sharpness"),
    "bursts": ("1", "whether Adam bursts forever on a quadratic at these b1, b2"),
}


@expects(**MAPS)
def predict_late_spikes(
    problem: Problem,
    optimizer: Any,
    axes: Mapping[str, Any],
    seeds: Any = 4,
    num_steps: int = 6000,
    *,
    after: int | None = None,
    visible: float | Sequence[float] = VISIBLE,
    out: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    **fields: Any,
) -> xr.Dataset:
    """Predict the map of `late_training_map` from runs that stop where late training begins.

    Equation: Adam bursts in rounds. From each of the last states before `after`, the threshold is crossed after the
    wait in which a second moment that only forgets lets kappa rise to kappa*, Hessian and eps as they are
    (`forgetting_probe.forgetting`), if that is by the last step, and the burst follows a lag later (`adaptive.lag`,
    with G = ln(loss / mode energy) / 2 and the slope at the crossing). It is seen if `adaptive.spike_rise` >= (visible
    - 1) / 2, the law being rather low. q, the share of the states of a setting whose burst is seen, and their median
    wait + lag, half a round, make the map: the first burst comes after half a round, others a round apart, none is seen
    with probability (1 - q)^(number of bursts), and time is where that passes 1/2. States above the threshold are in
    the middle of a burst and do not count, unless all are. So late spikes are ruled out by an eps above about
    learning_rate lambda_max(H) / kappa*, by too few steps to forget in, or by bursts too small to be seen.

    Args:
        problem, optimizer, axes, seeds, num_steps, after, visible: as for `late_training_map`; optax's adam or adamw.
            So are out, executor, progress and `fields`, but for `every`. Take other seeds than those of the map that is
            to be predicted: nothing is fitted to it (the half of a rise is `forecast.LEAST_SHARE`, chosen on other
            runs), but a run's own state knows more than its setting.

    Returns:
        Dataset over the axes, and "visible" where several factors were given: `VARIABLES`.

    Raises:
        ValueError: for an optimizer that is none of these; or as `run`.

    Valid while Hessian and loss stay about what they are: curvature that still grows brings crossings, and a loss that
    falls on makes bursts visible, that this does not see; and for b2 > b1^2.
    """
    after = num_steps // 4 if after is None else after
    if "every" in fields:
        raise ValueError("every: the states that a prediction reads are placed by after; leave it out")
    if not RECORDS <= after < num_steps:
        raise ValueError(f"after: expected a step from {RECORDS} to before num_steps = {num_steps}, got {after!r}")
    trained_by = as_optimizer(optimizer)
    numbers = {name: _number(trained_by, axes, name) for name in ("learning_rate", "b1", "b2")}
    # Rounded up: the last record else lies a step or two after the one before, one state read twice.
    sweep = Sweep(axes, seeds, after, -(-after // RECORDS), **fields)
    # From the first of the states on.
    probes = ["loss", "sharpness", preconditioned_mode(tol=1e-3), forgetting(num_steps - after // 2)]
    runs = run(problem, trained_by, sweep, probes, out, progress=progress, executor=executor)
    states = runs.isel(step=slice(-STATES, None)).transpose(..., "step")
    factors = np.atleast_1d(np.asarray(visible, float))
    several = [predict_from_states(states, numbers, after, num_steps, factor) for factor in factors]
    found = several[0] if np.ndim(visible) == 0 else xr.concat(several, xr.DataArray(factors, dims=FACTOR, name=FACTOR))
    sharpness = median_over_seeds(states["sharpness"].median("step"))["median"]
    rate, b1, b2 = (
        xr.zeros_like(sharpness) + (states[name] if name in axes else value) for name, value in numbers.items()
    )
    found = found.assign(
        sharpness=sharpness,
        epsilon_floor=rate.copy(data=epsilon_floor(rate.values, np.maximum(sharpness.values, 1e-30), b1.values)),
        bursts=1 - b2 < spike_boundary(b1.values),
    )
    for name in found.data_vars:
        found[name].attrs = dict(zip(("units", "description"), VARIABLES[str(name)], strict=True))
    found = found.assign_coords(seed=states["seed"].values)
    return found.assign_attrs({**runs.attrs, "after": after, "num_steps": num_steps})


def predict_from_states(
    states: xr.Dataset, numbers: Mapping[str, float], after: int, num_steps: int, visible: float = VISIBLE
) -> xr.Dataset:
    """Predict from records of the probes `forgetting`, `preconditioned_mode` and "loss", several to a run.

    Args:
        states: dims (axes..., seed, step); a crossing after `num_steps` is none.
        numbers: learning_rate, b1 and b2 where they are no axes.
        after, num_steps, visible: as for `predict_late_spikes`.
    """
    like = states["forgetting_wait"].transpose(..., "step")

    def of(name: str) -> np.ndarray:
        values = states[name] if name in states else xr.DataArray(numbers[name])
        return values.broadcast_like(like).transpose(*like.dims).values.astype(float)

    rate, b1, b2, wait, slope, loss = map(
        of, ("learning_rate", "b1", "b2", "forgetting_wait", "forgetting_slope", "loss")
    )
    wait = np.where(like["step"].values + wait <= num_steps, wait, np.where(np.isnan(wait), np.nan, np.inf))
    ratio = of("preconditioned_sharpness") / of("threshold")
    gain = 0.5 * np.log(loss / of("mode_energy"))
    crosses = np.isfinite(wait)
    known = crosses & np.isfinite(gain) & np.isfinite(slope)
    begin = critical_ratio(b1) * np.maximum(ratio, 1.0)
    steps, rise = np.full(wait.shape, np.inf), np.full(wait.shape, np.nan)
    steps[known] = lag(
        gain[known], b1[known], b2[known], curvature_rate=(slope - ratio_rate(b2))[known], kappa0=begin[known]
    )
    shows = np.log(np.maximum(ratio, 1.0)) + slope * np.minimum(steps, _LONG)
    rise[known] = spike_rise(
        shows[known], of("forgetting_refill")[known], loss[known], rate[known], b1[known], b2[known], slope[known]
    )
    below = ratio < 1
    counts = np.isfinite(ratio) & np.isfinite(loss) & (below | ~below.any(-1, keepdims=True))
    half, size = (_pool(values, like, counts) for values in (wait + steps, rise))
    shape = tuple(like.sizes[name] for name in like.dims[:-2])
    found = {name: np.full(shape, np.nan) for name in ("probability", "time", "round", "seen")}
    for place in np.ndindex(shape):
        values = _rounds(half[place], size[place], after, num_steps, LEAST_SHARE * (visible - 1))
        for name, value in zip(found, values, strict=True):
            found[name][place] = value
    one = like.isel(step=0, seed=0, drop=True)
    result = xr.Dataset({name: one.copy(data=values) for name, values in found.items()})
    waits = _pool(wait, like, counts)
    result["crosses"] = one.copy(data=np.isfinite(waits).sum(-1) / np.maximum((~np.isnan(waits)).sum(-1), 1))
    for name, values in (("lag", steps), ("rise", rise)):
        result[name] = one.copy(data=_lower_median(_pool(np.where(known, values, np.nan), like, counts)))
    return result


def _pool(values: np.ndarray, like: xr.DataArray, counts: np.ndarray) -> np.ndarray:
    """Lay the states of all seeds along one axis, NaN where a state does not count."""
    return np.where(counts, values, np.nan).reshape(*(like.sizes[name] for name in like.dims[:-2]), -1)


def _rounds(
    wait: np.ndarray, rise: np.ndarray, after: int, num_steps: int, least: float
) -> tuple[float, float, float, float]:
    """Probability and step of the first visible burst, length of a round, and share of visible bursts, from the states
    of one setting; NaN where it has none."""
    here = ~np.isnan(wait)
    if not here.any():
        return np.nan, np.nan, np.nan, np.nan
    half = float(_lower_median(wait[here]))
    if not after + half <= num_steps:
        return 0.0, np.inf, np.inf, 0.0
    length = max(2 * half, 1.0)
    share = float(np.mean(np.nan_to_num(rise[here]) >= least))
    times = after + half + length * np.arange(int((num_steps - after - half) // length) + 1)
    none = (1 - share) ** np.arange(1, len(times) + 1)
    reached = np.flatnonzero(none <= 0.5)
    return 1 - float(none[-1]), float(times[reached[0]]) if reached.size else np.inf, length, share


@expects(
    measured=dataset("probability", source="late_training_map returns"),
    predicted=dataset("probability", source="predict_late_spikes returns"),
)
def late_training_scores(measured: xr.Dataset, predicted: xr.Dataset) -> xr.Dataset:
    """Hold a predicted map against the measured one, setting by setting.

    Equation: right = share of settings whose measured and predicted probability of a late spike lie on the same side of
    1/2; time_ratio = (predicted - after) / (measured - after), medians over runs, where both say that most runs spike.

    Args:
        measured: what `late_training_map` returned, for one factor.
        predicted: what `predict_late_spikes` returned, of the same axes, on other seeds.

    Returns:
        Dataset: `right` with `right_low`, `right_high` (settings taken for independent, which neighbours are not),
        `found` and `false_alarms` (share of the settings that spike, that do not, predicted to), `always` (right if all
        were said to do what most do); `time_ratio_lower`, `_median`, `_upper` quartiles; `num_settings`, `num_times`;
        `right_side` over the settings (-1 where nothing was measured), `time_ratio` (NaN where one does not spike).

    Raises:
        ValueError: for maps of different axes or with several factors, or where seeds are in both.
    """
    probability = measured["probability"]
    dims = probability.dims
    if FACTOR in dims:
        raise ValueError("measured: expected a map for one factor; choose one with measured.sel(visible=...)")
    if {*predicted["probability"].dims} != {*dims}:
        raise ValueError(f"predicted: expected the axes {dims}, got {predicted['probability'].dims}")
    for name in dims:
        if not np.array_equal(measured[name].values, predicted[name].values):
            raise ValueError(f"predicted: expected the values of {name} that were measured, got others")
    for name, told in (("late_after", "after"), ("num_steps", "num_steps")):
        if name in measured.attrs and int(measured.attrs[name]) != int(predicted.attrs[told]):
            raise ValueError(f"predicted: expected {told}={measured.attrs[name]}, got {predicted.attrs[told]}")
    if both := sorted({*measured["seed"].values.tolist()} & {*predicted["seed"].values.tolist()}):
        raise ValueError(f"predicted: expected other seeds than those measured on, got {both} in both")
    expected = predicted["probability"].transpose(*dims)
    known = probability.notnull() & expected.notnull()
    spikes, said = (probability > 0.5) & known, (expected > 0.5) & known
    same = (spikes == said) & known
    count, hits, most = int(known.sum()), int(same.sum()), int(spikes.sum())
    low, high = binomial_interval(hits, count)
    after = float(predicted.attrs["after"])
    both_spike = (spikes & said).values
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (predicted["time"].transpose(*dims) - after) / (measured["time"] - after)
    ratio = ratio.where(both_spike & np.isfinite(ratio))
    times = ratio.values[np.isfinite(ratio.values)]
    quartiles = np.quantile(times, [0.25, 0.5, 0.75]) if times.size else np.full(3, np.nan)
    return xr.Dataset(
        {
            "right": hits / max(count, 1),
            "right_low": float(low),
            "right_high": float(high),
            "found": _share(said.values[spikes.values]),
            "false_alarms": _share(said.values[(~spikes & known).values]),
            "always": max(most, count - most) / max(count, 1),
            "num_settings": count,
            "num_times": times.size,
            **dict(zip(("time_ratio_lower", "time_ratio_median", "time_ratio_upper"), quartiles, strict=True)),
            "right_side": same.astype(np.int8).where(known, -1),
            "time_ratio": ratio,
        }
    )


def _lower_median(values: np.ndarray) -> np.ndarray:
    """Lower middle value over the last axis, NaN left out: never the mean of a number and infinity."""
    ordered = np.sort(values, axis=-1)
    count = np.sum(~np.isnan(ordered), axis=-1)
    return np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0)[..., None], -1)[..., 0]


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else float("nan")


def _number(optimizer: Any, axes: Mapping[str, Any], name: str) -> float:
    """Value of an argument that is no axis: the optimizer's, or its factory's default."""
    if name in axes:
        return float("nan")
    if name in optimizer.arguments:
        value = optimizer.arguments[name]
        if np.ndim(value) or not isinstance(value, (int, float, np.number)):
            raise ValueError(f"optimizer: expected a number for {name}, got {type(value).__name__}")
        return float(value)
    parameters = inspect.signature(optimizer.factory).parameters
    if name not in parameters or parameters[name].default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: expected an argument {name}, as of optax.adam, got {optimizer.name}; give it as an axis, or "
            f"as ll.Optimizer(optax.adam, {name}=...)"
        )
    return float(parameters[name].default)
