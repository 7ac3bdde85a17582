"""Adam's edge, and the lag of its late spikes, on networks beyond toys; where the theory stops holding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.networks import networks_figure
from lossland.optimizers import Optimizer
from lossland.problems.datasets import digit_rows, digits
from lossland.problems.problem import Problem
from lossland.reproductions.adam_spikes import with_lags
from lossland.stability.intervals import mean_interval
from lossland.stability.interventions import adam_arms, intervene
from lossland.stability.spikes import relative_preconditioned_sharpness, spikes
from lossland.sweeps.adaptive_probes import preconditioned_mode
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.sweep import Sweep

B1, B2 = 0.9, 0.999
PROBES = ("loss", preconditioned_mode(tol=1e-3))
ARMS = ("unchanged", "second_moment_frozen", "learning_rate_x_0.9")
AFTER = 100
"""Spikes before this step are on the first descent."""
BEFORE = 60
"""Steps before a spike at which its run is forked."""
HORIZON = 300
"""Steps after the fork: the spike that is forked before comes at 60, the one after it at 120 to 200."""
MOST_STATES = 24


@dataclass(frozen=True)
class Setting:
    """One network, loss and batch, trained by Adam at one learning rate."""

    problem: Callable[[], Problem]
    learning_rate: float
    num_steps: int
    seeds: int
    batch_size: int | None = None
    every: int = 5


def digits_mlp(loss: Any = "mse") -> Problem:
    """64-128-32-10 on 200 digits."""
    return digits((128, 32), loss=loss, num_examples=200)


def rows_transformer() -> Problem:
    """One block of width 16 on 64 digits, squared error."""
    return digit_rows(num_examples=64)


SETTINGS = {
    "mlp": Setting(digits_mlp, 3e-3, 2000, 4),
    "mlp_batch_32": Setting(digits_mlp, 3e-3, 1500, 3, batch_size=32, every=10),
    "mlp_cross_entropy": Setting(functools.partial(digits_mlp, "cross_entropy"), 3e-3, 1500, 3, every=10),
    "transformer": Setting(rows_transformer, 1e-2, 1500, 3),
    "transformer_batch_16": Setting(rows_transformer, 1e-2, 1500, 3, batch_size=16, every=10),
}
FAST = {"mlp": Setting(digits_mlp, 1e-2, 900, 2)}


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths. A fast run has one network only."""
    numbers: dict[str, Any] = {}
    shown: dict[str, xr.Dataset] = {}
    lags: dict[str, xr.Dataset] = {}
    for name, setting in (FAST if fast else SETTINGS).items():
        problem = setting.problem()
        keep_states = name == "mlp" and not fast
        runs = _train(problem, setting, keep_states)
        found = with_lags(spikes(runs, after=AFTER), B1, B2, setting.learning_rate)
        numbers |= {f"{name}_{key}": value for key, value in _edge_numbers(runs).items()}
        numbers[f"{name}_parameters"] = float(sum(leaf.size for leaf in jax.tree.leaves(problem.param_shapes)))
        if setting.batch_size is None:
            numbers |= {f"{name}_{key}": value for key, value in _lag_numbers(found).items()}
        if keep_states:
            numbers |= {f"{name}_{key}": value for key, value in _intervene(problem, setting, runs, found).items()}
        ratio = relative_preconditioned_sharpness(runs)["ratio"]
        shown[name] = xr.Dataset({"loss": runs["loss"], "ratio": ratio})
        lags[name] = found
        figures.save_numbers(found, folder / f"spikes_{name}")
        figures.save_numbers(shown[name], folder / f"runs_{name}")
    paths = figures.save(networks_figure(shown, lags), folder / "adam_networks")
    return {name: numbers[name] for name in table}, paths


def _train(problem: Problem, setting: Setting, keep_states: bool) -> xr.Dataset:
    sweep = Sweep({}, setting.seeds, setting.num_steps, setting.every, batch_size=setting.batch_size)
    probes = (*PROBES, state_probe()) if keep_states else PROBES
    return run(problem, _adam(setting), sweep, probes, progress=False)


def _adam(setting: Setting) -> Optimizer:
    return Optimizer(optax.adam, learning_rate=setting.learning_rate, b1=B1, b2=B2)


def _edge_numbers(runs: xr.Dataset) -> dict[str, Any]:
    """Median ratio of the second half, by seed; its last tenth; the share of records at the edge."""
    ratio = relative_preconditioned_sharpness(runs)["ratio"]
    count = ratio.sizes["step"]
    late = ratio.isel(step=slice(count // 2, None))
    last = ratio.isel(step=slice(-(count // 10), None)).median("step").values
    return {
        "ratio_median": float(late.median()),
        "last_ratio": mean_interval(last.tolist())[0],
        "records_at_the_edge": float(((late > 0.9) & (late < 1.1)).mean()),
    }


def _lag_numbers(found: xr.Dataset) -> dict[str, float]:
    numbers = {"spikes": float(found.sizes["spike"])}
    for law in ("predicted_lag", "propagated_lag"):
        ratio = (found["lag"] / found[law]).values
        quartiles = (
            np.quantile(ratio[np.isfinite(ratio)], [0.25, 0.5, 0.75]) if np.isfinite(ratio).any() else [np.nan] * 3
        )
        names = (f"{law}_ratio_lower_quartile", f"{law}_ratio_median", f"{law}_ratio_upper_quartile")
        numbers |= dict(zip(names, map(float, quartiles), strict=True))
    return numbers


def _intervene(problem: Problem, setting: Setting, runs: xr.Dataset, found: xr.Dataset) -> dict[str, float]:
    """Fork before spikes that another one of the same run follows; what a frozen second moment and a lower rate do."""
    seed, step = found["seed"].values, found["spike_step"].values
    at = setting.every * np.floor((step - BEFORE) / setting.every)
    recovered = np.append(np.nan, found["recovery_step"].values[:-1])
    follows = np.append(False, seed[1:] == seed[:-1])
    usable = np.flatnonzero(follows & np.append(follows[1:], False) & (at > recovered) & (at > 0))
    chosen = np.random.default_rng(0).permutation(usable)[:MOST_STATES]
    where = {"seed": xr.DataArray(seed[chosen], dims="state"), "step": xr.DataArray(at[chosen], dims="state")}
    states = runs[["saved_params", "saved_opt_state"]].sel(where)
    arms = adam_arms(problem, _adam(setting), states)
    delays = intervene(
        problem, _adam(setting), states, num_steps=HORIZON, every=5, arms={name: arms[name] for name in ARMS}
    )
    second = np.minimum(step[chosen + 1] - at[chosen], HORIZON)
    slower = delays.sel(arm="learning_rate_x_0.9")
    share = slower["delay"] / slower["predicted_delay"]
    frozen = delays.sel(arm="second_moment_frozen")
    removed, said = frozen["spike"].values > second, frozen["predicted_spike"].values > second
    moment = (found["moment_rise"] / found["ratio_rise"]).values
    return {
        "second_moment_share_of_the_rise": float(np.nanmedian(moment)),
        "states_forked": float(delays.sizes["state"]),
        "frozen_second_moment_removes_the_next_spike": float(removed.mean()),
        "frozen_second_moment_as_predicted": float((removed == said).mean()),
        "frozen_second_moment_spikes_later": float(
            (frozen["spike"].values > delays["spike"].sel(arm="unchanged").values).mean()
        ),
        "learning_rate_x_0_9_delay_over_prediction": float(np.nanmedian(share.where(np.isfinite(share)))),
    }
