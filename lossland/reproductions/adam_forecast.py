"""Adam's late spikes forecast while the loss still falls, beside two cheaper alarms, on seeds nothing was tuned on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.forecasts import forecast_figure
from lossland.optimizers import Optimizer
from lossland.reproductions.adam_spikes import curve
from lossland.stability.forecast import LEAST_SHARE, forecast
from lossland.stability.forecast_scores import alarm_signals, forecast_errors, forecast_scores
from lossland.stability.intervals import mean_interval
from lossland.stability.spikes import VISIBLE, spikes
from lossland.sweeps.adaptive_probes import preconditioned_mode
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Sweep

PROBES = ["loss", preconditioned_mode(tol=1e-3), "preconditioned_gradient_curvature", "update_statistics"]
AXES = {"learning_rate": [3e-3, 1e-2], "b1": [0.8, 0.9], "b2": [0.99, 0.999]}
FAST_AXES = {"learning_rate": [1e-2], "b1": [0.9], "b2": [0.999]}
EVERY = 4
AFTER = 300
"""Records before this step are on the first descent."""
AHEAD = np.arange(10, 151, 5)
"""Steps before a spike at which its forecast is held against it."""
NEAR = 50
"""Forecasts of spikes so close are those whose errors are given in steps."""


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths."""
    seeds = 8 if fast else 32
    sweep = Sweep(FAST_AXES if fast else AXES, seeds, 2000 if fast else 3000, EVERY)
    runs = run(curve(), Optimizer(optax.adam), sweep, PROBES, progress=False)
    predicted = forecast(runs, at=runs["step"].values)
    found = spikes(runs, after=AFTER)
    signals = alarm_signals(runs, predicted)
    tuning = range(seeds // 2)
    scores = forecast_scores(signals, found, tuning, after=AFTER)
    scored = found.isel(spike=np.flatnonzero(found["seed"].values >= seeds // 2))
    errors = forecast_errors(predicted, scored, AHEAD)
    numbers = (
        _score_numbers(scores)
        | _where_visible(signals, predicted, found, tuning)
        | _error_numbers(errors)
        | {"runs": float(sweep.num_runs)}
    )
    if not fast:
        numbers |= _by_setting(signals, found, tuning)
    figures.save_numbers(scores.drop_dims(["rate", "steps_before"]), folder / "scores")
    for name in ("curve", "hit_rate_by_lead"):
        figures.save_numbers(scores[[name]], folder / name)
    figures.save_numbers(errors, folder / "errors")
    paths = figures.save(forecast_figure(scores, errors), folder / "adam_forecast")
    return {name: numbers[name] for name in table}, paths


def _score_numbers(scores: xr.Dataset) -> dict[str, Any]:
    numbers: dict[str, Any] = {"spikes": float(scores["num_spikes"])}
    best = float(scores["hit_rate"].sel(alarm="forecast"))
    for name in scores["alarm"].values.tolist():
        one = scores.sel(alarm=name)
        numbers[f"{name}_hit_rate"] = best if name == "forecast" else (float(one["hit_rate"]), best)
        numbers[f"{name}_false_alarm_rate"] = float(one["false_alarm_rate"])
        numbers[f"advantage_over_{name}"] = float(one["advantage_low"])
    for name in scores["alarm"].values.tolist():
        at_30 = float(scores["hit_rate_by_lead"].sel(alarm=name, steps_before=30))
        best_at_30 = float(scores["hit_rate_by_lead"].sel(alarm="forecast", steps_before=30))
        numbers[f"{name}_hit_rate_30_before"] = at_30 if name == "forecast" else (at_30, best_at_30)
    numbers["forecast_lead_time_median"] = float(scores["lead_time"].sel(alarm="forecast"))
    return numbers


def _where_visible(signals: xr.Dataset, predicted: xr.Dataset, found: xr.Dataset, tuning: range) -> dict[str, Any]:
    """The rival told which bursts will be too small to see: what of the forecast's advantage is its knowing when."""
    size = predicted["size"].rename(at="step").transpose(*signals["forecast"].dims)
    told = signals["gradient_curvature"].where(~(size - 1 < LEAST_SHARE * (VISIBLE - 1)), -np.inf)
    scores = forecast_scores({"forecast": signals["forecast"], "told": told}, found, tuning, after=AFTER)
    best, other = (float(rate) for rate in scores["hit_rate"])
    return {"gradient_curvature_hit_rate_told_the_size": (other, best)}


def _error_numbers(errors: xr.Dataset) -> dict[str, Any]:
    remaining, inside = errors["remaining"], errors["inside"]
    near = (remaining <= NEAR) & errors["error"].notnull()  # a spike that was not expected is infinitely far off
    by_seed = [float(inside.isel(spike=errors["seed"].values == seed).mean()) for seed in np.unique(errors["seed"])]
    at_lead = errors["error"].sel(ahead=AHEAD[0])
    return {
        "near_error_median": float(np.median(errors["error"].values[near.values])),
        "near_absolute_error_median": float(np.median(np.abs(errors["error"].values[near.values]))),
        "at_lead_absolute_error_median": float(np.nanmedian(np.abs(at_lead))),
        "interval_coverage": mean_interval(by_seed)[0],
    }


def _by_setting(signals: xr.Dataset, found: xr.Dataset, tuning: range) -> dict[str, Any]:
    """Hit rates with levels of each setting's own, at the settings where the lag is longer than the lead and not."""
    numbers = {}
    for b2 in signals["b2"].values.tolist():
        mine = found.isel(spike=np.flatnonzero(found["b2"].values == b2))
        scores = forecast_scores(signals.sel(b2=[b2]), mine, tuning, after=AFTER)
        for name in scores["alarm"].values.tolist():
            rate = float(scores["hit_rate"].sel(alarm=name))
            best = float(scores["hit_rate"].sel(alarm="forecast"))
            key = f"{name}_hit_rate_b2_{b2:g}".replace(".", "_")
            numbers[key] = rate if name == "forecast" else (rate, best)
    return numbers
