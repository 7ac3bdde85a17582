"""Late spikes of Adam on small networks: the edge they sit at, the lag before they show, what drives and removes
them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.adam import interventions_figure, spikes_figure
from lossland.optimizers import Optimizer
from lossland.problems.networks import mlp_regression
from lossland.problems.problem import Problem
from lossland.stability.interventions import adam_arms, intervene
from lossland.stability.shares import second_moment_share
from lossland.stability.spikes import predicted_lag, propagated_lag, relative_preconditioned_sharpness, spikes
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.probes import as_probes
from lossland.sweeps.sweep import Sweep

RATE, B1, B2 = 1e-2, 0.9, 0.999
ADAM = Optimizer(optax.adam, learning_rate=RATE, b2=B2)
B1S = (0.0, 0.5, 0.8, 0.9, 0.95)
PROBES = (*as_probes(["loss", "preconditioned_mode"]), state_probe())
EVERY = 2
LATE = 1500
"""Spikes before this step are on the way to the edge: their crossing is sharpening's as much as the second moment's."""
BEFORE = 80
"""Steps before a spike at which its run is forked."""
HORIZON = 600
FAST_ARMS = ("unchanged", "second_moment_frozen", "learning_rate_x_0.9", "b1_0.95", "update_clipped")


def curve() -> Problem:
    """24 points of a cubic plus a cosine, 1-12-12-1: neither odd nor even, so that no gradient vanishes by symmetry."""
    x = np.linspace(-1, 1, 24)[:, None]
    return mlp_regression(x, 4 * x**3 - 3 * x + np.cos(2 * x), widths=(12, 12), activation="tanh", name="curve")


def surface() -> Problem:
    """32 points drawn in the square, 2-12-12-1: sin(3 x) + x y."""
    x = np.random.default_rng(0).uniform(-1, 1, (32, 2))
    return mlp_regression(
        x, (np.sin(3 * x[:, 0]) + x[:, 0] * x[:, 1])[:, None], widths=(12, 12), activation="tanh", name="surface"
    )


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths.

    A fast run leaves out other data, double precision and most arms.
    """
    num_steps = 3000 if fast else 6000
    train = functools.partial(_train, num_steps=num_steps)
    problem = curve()
    numbers: dict[str, Any] = {}
    edge = train(problem, [b1 for b1 in B1S if b1 in (0.0, 0.9) or not fast], range(100, 102 if fast else 108))
    ratio = relative_preconditioned_sharpness(edge)["ratio"].sel(step=slice(num_steps // 2, None))
    for b1 in edge["b1"].values:
        numbers[f"ratio_median_b1_{b1:g}".replace(".", "_")] = float(ratio.sel(b1=b1).median())
    del edge
    runs = train(problem, [B1], range(6 if fast else 24))
    found = _lags(runs)
    numbers |= _lag_numbers(found)
    forks = _forkable(found)
    if not fast:
        numbers |= _share_numbers(problem, runs, found)
    delays = _intervene(problem, runs, found, forks[: 16 if fast else 96], fast)
    numbers |= _intervention_numbers(delays, fast)
    if not fast:
        numbers |= _elsewhere(train(surface(), [B1], range(24)))
    figures.save_numbers(found, folder / "spikes")
    shown = [name for name in delays.data_vars if "step" not in delays[name].dims]
    figures.save_numbers(delays[shown], folder / "interventions")
    paths = figures.save(spikes_figure(runs.isel(b1=0, seed=0), found), folder / "adam_spikes")
    paths += figures.save(interventions_figure(delays), folder / "adam_interventions")
    return {name: numbers[name] for name in table}, paths


def _train(problem: Problem, b1s: list[float], seeds: range, num_steps: int) -> xr.Dataset:
    return run(problem, ADAM, Sweep({"b1": b1s}, seeds, num_steps, EVERY), PROBES, progress=False)


def _lags(runs: xr.Dataset) -> xr.Dataset:
    found = spikes(runs)
    return with_lags(found, found["b1"].values, B2, RATE)


def with_lags(found: xr.Dataset, b1: Any, b2: Any, learning_rate: Any) -> xr.Dataset:
    """Put the lags that the two laws predict beside the measured ones of spikes."""
    propagated = propagated_lag(found, b1, b2, learning_rate)
    return found.assign(predicted_lag=predicted_lag(found, b1, b2), propagated_lag=propagated)


def _lag_numbers(found: xr.Dataset) -> dict[str, float]:
    ratio = (found["lag"] / found["predicted_lag"]).values
    # A spike whose ratio did not rise before its crossing has no predicted lag: infinite, so its ratio is 0.
    quartiles = np.quantile(ratio[~np.isnan(ratio)], [0.25, 0.5, 0.75])
    names = ("lag_ratio_lower_quartile", "lag_ratio_median", "lag_ratio_upper_quartile")
    return {
        "spikes": float(np.count_nonzero(~np.isnan(ratio))),
        "runs_that_spike": float(np.unique(found["seed"].values).size),
        **dict(zip(names, map(float, quartiles), strict=True)),
        "propagated_lag_ratio_median": float(np.nanmedian((found["lag"] / found["propagated_lag"]).values)),
        "peak_ratio_median": float(found["peak_ratio"].median()),
    }


def _share_numbers(problem: Problem, runs: xr.Dataset, found: xr.Dataset) -> dict[str, float]:
    """Shares of the rise of ln ratio from the trough to the crossing."""
    late = found.isel(spike=np.flatnonzero((found["trough_step"] >= LATE) & (found["ratio_rise"] > 0)))
    before = _states(runs, late["seed"].values, late["trough_step"].values)
    share = second_moment_share(
        problem, ADAM, before, _states(runs, late["seed"].values, late["crossing_record"].values)
    )
    values = share["moment_share"].values[share["converged"].values]
    lower, middle, upper = np.quantile(values, [0.25, 0.5, 0.75])
    first = found.isel(spike=np.unique(found["seed"].values, return_index=True)[1])
    at_first = second_moment_share(
        problem,
        ADAM,
        _states(runs, first["seed"].values, first["trough_step"].values),
        _states(runs, first["seed"].values, first["crossing_record"].values),
    )
    return {
        "moment_share_lower_quartile": float(lower),
        "moment_share_median": float(middle),
        "moment_share_upper_quartile": float(upper),
        "late_spikes_of_the_second_moment": float(np.mean(values > 0.5)),
        "moment_share_of_first_spikes": float(at_first["moment_share"].median()),
    }


def _forkable(found: xr.Dataset) -> np.ndarray:
    """Late spikes with quiet before them and another spike after them, in an order that mixes the runs."""
    seed = found["seed"].values
    at = found["spike_step"].values - BEFORE
    recovered = np.append(np.nan, found["recovery_step"].values[:-1])
    follows = np.append(False, seed[1:] == seed[:-1])
    followed = np.append(follows[1:], False)
    quiet = follows & (at > recovered + 20) & (at > found["trough_step"].values)
    usable = np.flatnonzero(quiet & followed & (at >= LATE))
    return np.random.default_rng(0).permutation(usable)


def _intervene(problem: Problem, runs: xr.Dataset, found: xr.Dataset, chosen: np.ndarray, fast: bool) -> xr.Dataset:
    seed, at = found["seed"].values[chosen], found["spike_step"].values[chosen] - BEFORE
    at = EVERY * np.floor(at / EVERY)
    states = _states(runs, seed, at)
    arms = adam_arms(problem, ADAM.with_arguments(b1=B1), states)
    if fast:
        arms = {name: arms[name] for name in FAST_ARMS}
    delays = intervene(
        problem, ADAM.with_arguments(b1=B1), states, num_steps=HORIZON, every=5 if fast else 2, arms=arms
    )
    second = found["spike_step"].values[chosen + 1] - at
    return delays.assign(second_spike=("state", second, {"units": "step", "description": "the run's spike after next"}))


def _intervention_numbers(delays: xr.Dataset, fast: bool) -> dict[str, float]:
    def removed(arm: str) -> float:
        return float((delays["spike"].sel(arm=arm) > delays["second_spike"]).mean())

    slower = delays.sel(arm="learning_rate_x_0.9")
    share = slower["delay"] / slower["predicted_delay"]
    numbers = {
        "states_forked": float(delays.sizes["state"]),
        "frozen_second_moment_removes_the_next_spike": removed("second_moment_frozen"),
        "learning_rate_x_0_9_within_1_5": float(((share > 1 / 1.5) & (share < 1.5)).mean()),
        "larger_b1_removes_the_next_spike": removed("b1_0.95"),
        "clipping_the_update_changes_steps": float(abs(delays["delay"].sel(arm="update_clipped")).median()),
    }
    if fast:
        return numbers
    double, frozen = delays.sel(arm="float64"), delays.sel(arm="second_moment_frozen")
    still = np.isfinite(frozen["spike"].values)
    return numbers | {
        "frozen_second_moment_without_a_spike": float(1 - still.mean()),
        "spikes_at_a_frozen_second_moment_that_cross": float(
            np.mean((frozen["crossing"] < frozen["spike"]).values[still])
        ),
        "amsgrad_removes_the_next_spike": removed("amsgrad"),
        "float64_spikes_too": float(np.isfinite(double["spike"]).mean()),
        "float64_shift_median": float(abs(double["delay"]).median()),
        "b2_0_9999_delay_over_prediction": float(np.nanmedian(_over(delays, "b2_0.9999"))),
        "eps_raised_delay_over_prediction": float(np.nanmedian(_over(delays, "eps_raised"))),
        "stable_adamw_size_over_unchanged": float(
            (delays["size"].sel(arm="stable_adamw") / delays["size"].sel(arm="unchanged")).median()
        ),
    }


def _over(delays: xr.Dataset, arm: str) -> np.ndarray:
    one = delays.sel(arm=arm)
    with np.errstate(invalid="ignore"):
        return (one["delay"] / one["predicted_delay"]).values


def _elsewhere(runs: xr.Dataset) -> dict[str, float]:
    """The lag on other data."""
    numbers = _lag_numbers(_lags(runs))
    return {
        f"other_data_{name}": numbers[name] for name in ("spikes", "lag_ratio_median", "propagated_lag_ratio_median")
    }


def _states(runs: xr.Dataset, seeds: np.ndarray, steps: np.ndarray) -> xr.Dataset:
    """Saved states over the axis "state"."""
    where = {"seed": xr.DataArray(seeds, dims="state"), "step": xr.DataArray(steps, dims="state")}
    return runs[["saved_params", "saved_opt_state"]].sel(b1=B1).sel(where).drop_vars("b1")
