"""What happens at the reported drop: how sharp the loss was, what the rise is made of, what removes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from lossland.diagnosis.decomposition import decompose_change
from lossland.problems.problem import Problem
from lossland.reproductions.rnn_runs import (
    ADAM,
    B1,
    B2,
    LEARNT,
    STATE,
    accuracy,
    clipped_adam,
    falls,
    growth_through_time,
    reported_shape,
)
from lossland.stability.forecast import forecast
from lossland.stability.interventions import adopt_adam
from lossland.stability.mode_growth import critical_ratio
from lossland.stability.shares import second_moment_share
from lossland.stability.spikes import VISIBLE
from lossland.sweeps.adaptive_probes import preconditioned_mode
from lossland.sweeps.forks import OPT_STATE, PARAMS, fork, restore
from lossland.sweeps.probes import as_probes

MODE = preconditioned_mode(tol=1e-3, max_matvecs=96)
CLOSE = (*as_probes(["loss", "gradient_norm", "update_statistics", growth_through_time]), accuracy(), MODE, STATE)
BEFORE, AFTER = 40, 20
"""Steps before and after a drop that are looked at closely."""
HORIZON = 100
"""Steps within which an arm that goes on from before a drop has to stay clear of one."""


def drops(runs: xr.Dataset, most: int) -> xr.Dataset:
    """Choose saved states `BEFORE` steps before a drop, along the axis "state": of each run the drop in which the
    loss rises most, of those before which the run was above 90 % accuracy and had no other drop; at most `most` states.

    Args:
        runs: over (learning_rate, seed, step), with the records of `state_probe`, evenly spaced.
    """
    steps = runs["step"].values
    dropped = falls(runs)
    back = int(np.searchsorted(steps, BEFORE))
    calm = np.zeros_like(dropped)
    calm[..., back:] = runs["accuracy"].transpose("learning_rate", "seed", "step").values[..., :-back] > LEARNT
    for shift in range(1, back + 1):
        calm[..., shift:] &= ~dropped[..., :-shift]
    found = dropped & calm
    rate, seed = (places[:most] for places in np.nonzero(found.any(-1)))
    loss = runs["loss"].transpose("learning_rate", "seed", "step").values.astype(float)
    rise = np.where(found, loss / np.fmin.accumulate(loss, axis=-1), 0.0)
    at = rise.argmax(-1)[rate, seed] - back
    places = {"learning_rate": rate, "seed": seed, "step": at}
    return runs[[PARAMS, OPT_STATE]].isel({name: xr.DataArray(place, dims="state") for name, place in places.items()})


def closely(problem: Problem, states: xr.Dataset) -> xr.Dataset:
    """Go through the steps before and after each drop again, step by step, with the top mode of the preconditioned
    Hessian.

    Returns the records over (state, step), steps counted from the saved state, with `ratio` (preconditioned sharpness
    over its threshold).
    """
    kept = states[[PARAMS, OPT_STATE]]
    records = fork(
        problem, ADAM, kept, {"unchanged": {}}, num_steps=BEFORE + AFTER, every=1, probes=CLOSE, lane_width=1
    )
    records = records.isel(arm=0, drop=True)
    threshold = float(critical_ratio(B1)) / records["learning_rate"]
    threshold.attrs = {"preconditioned": 1}
    return records.assign(threshold=threshold, ratio=records["preconditioned_sharpness"] / threshold)


class Anatomy(NamedTuple):
    """One entry per drop; see `anatomy`."""

    calm_ratio: np.ndarray
    peak_ratio: np.ndarray
    warning: np.ndarray
    moment_share: np.ndarray
    dead_mass: np.ndarray
    gradient_jump: np.ndarray
    excess: np.ndarray
    growth_through_time: np.ndarray
    slope_share: np.ndarray
    curvature_share: np.ndarray
    rest_share: np.ndarray
    forecast_error: np.ndarray


def recurs(records: xr.Dataset) -> Any:
    """Say of every state whether its rise comes again: near it, rounding decides. (state,)"""
    loss = records["loss"].transpose("state", "step").values
    return np.any(loss > VISIBLE * np.fmin.accumulate(loss, axis=1), axis=1)


LEAD = 5
"""Steps before a rise shows at which its forecast is held against it."""


def anatomy(problem: Problem, records: xr.Dataset) -> Anatomy:
    """Take every drop that comes again apart.

    The rise shows at the first step with loss > 2 x the smallest so far; it begins at that smallest loss; the 20 steps
    before the rise begins are calm. `calm_ratio`: median ratio while calm; `peak_ratio`: largest from there until the
    rise shows; `warning`: steps from the last time the ratio reached 1 from below to the rise, inf if it did not;
    `moment_share`: Shapley share of the second moment in the change of ln ratio from its smallest while calm to its
    peak; `dead_mass` of the mode at the peak; `gradient_jump`: largest gradient norm within 5 steps of where the rise
    shows over the median while calm; `excess`: largest root mean square of g / sqrt(v) there; `growth_through_time`:
    largest growth of gradients from the last time step back to the first, until the rise shows; shares of slope,
    curvature and rest in what the steps that raise the loss add, from where it begins to where it shows;
    `forecast_error`: forecast from the records up to 5 steps before the rise shows, minus where it shows.
    """
    records = records.isel(state=np.flatnonzero(recurs(records)))
    names = ("loss", "ratio", "gradient_norm", "gradient_excess_rms", "growth_through_time", "mode_dead_mass")
    loss, ratio, norm, excess, growth, dead = (
        records[name].transpose("state", "step").values.astype(float) for name in names
    )
    rises = loss > VISIBLE * np.fmin.accumulate(loss, axis=1)
    shown = rises.argmax(1)
    found: dict[str, list[float]] = {name: [] for name in Anatomy._fields}
    begins, troughs, peaks = [], [], []
    for state, end in enumerate(shown.tolist()):
        begin = int(np.nanargmin(loss[state, :end]))
        calm = slice(max(0, begin - 20), max(begin, 1))
        near = slice(begin, end + 6)
        peak = calm.start + int(np.nanargmax(ratio[state, calm.start : end + 1]))
        trough = calm.start + int(np.nanargmin(ratio[state, calm.start : max(peak, calm.start + 1)]))
        upward = np.flatnonzero((ratio[state, :end] < 1) & (ratio[state, 1 : end + 1] >= 1))
        begins.append(begin)
        troughs.append(trough)
        peaks.append(max(peak, trough + 1))
        values = {
            "calm_ratio": np.nanmedian(ratio[state, calm]),
            "peak_ratio": ratio[state, peak],
            "warning": end - (upward[-1] + 1) if upward.size else np.inf,
            "dead_mass": dead[state, peak],
            "gradient_jump": np.nanmax(norm[state, near]) / np.nanmedian(norm[state, calm]),
            "excess": np.nanmax(excess[state, near]),
            "growth_through_time": np.nanmax(growth[state, calm.start : end + 1]),
        }
        for name, value in values.items():
            found[name].append(float(value))
    before, after = (_at(records, range(len(shown)), places) for places in (troughs, peaks))
    found["moment_share"] = second_moment_share(problem, ADAM, before, after, tol=1e-3)["moment_share"].values.tolist()
    found |= _parts(problem, records, loss, np.array(begins), shown)
    found["forecast_error"] = _forecast_errors(records, shown)
    return Anatomy(*(np.array(found[name], float) for name in Anatomy._fields))


def _parts(
    problem: Problem, records: xr.Dataset, loss: np.ndarray, begins: np.ndarray, shown: np.ndarray
) -> dict[str, list[float]]:
    """Shares of slope, curvature and rest in the steps that raise the loss on the way from its smallest to where it
    shows."""
    clock = np.arange(loss.shape[1] - 1)
    state, step = np.nonzero((np.diff(loss) > 0) & (clock >= begins[:, None]) & (clock < shown[:, None]))
    total = np.zeros((3, len(shown)))
    if state.size:
        ends = [restore(problem, ADAM, _at(records, state, at))[0] for at in (step, step + 1)]
        change = decompose_change(problem.objective, *ends)
        for row, name in enumerate(("slope", "curvature", "rest")):
            np.add.at(total[row], state, getattr(change, name))
    with np.errstate(invalid="ignore"):  # no step that rises, no shares
        shares = total / np.abs(total).sum(0)
    return dict(zip(("slope_share", "curvature_share", "rest_share"), shares.tolist(), strict=True))


def _at(records: xr.Dataset, state: Any, step: Any) -> xr.Dataset:
    """Saved states at pairs of (state, step), over the axis "pair"."""
    chosen = {name: xr.DataArray(list(places), dims="pair") for name, places in (("state", state), ("step", step))}
    found = records[[PARAMS, OPT_STATE]].isel(chosen)
    return found.drop_vars([name for name in found.coords if name != "learning_rate"])


def _forecast_errors(records: xr.Dataset, shown: np.ndarray) -> list[float]:
    asked = np.maximum(shown - LEAD, 0)
    coming = forecast(records.drop_vars("forked_at"), at=np.unique(asked), b1=B1, b2=B2)["spike_step"]
    return [
        float(coming.isel(state=state).sel(at=at)) - end
        for state, (at, end) in enumerate(zip(asked, shown, strict=True))
    ]


def checkpoint_arms(problem: Problem, states: xr.Dataset, norms: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return what is changed at a saved state, one thing in each arm; `norms` are gradient norms before the drop."""
    rate = states["learning_rate"].values
    _, adopted = restore(problem, ADAM, states, adopt_adam)
    roots = np.concatenate([np.sqrt(v).reshape(len(v), -1) for v in jax.tree.leaves(adopted.nu_max)], axis=1)
    return {
        "unchanged": {},
        "learning_rate_x_0.5": {"learning_rate": 0.5 * rate},
        "learning_rate_x_0.1": {"learning_rate": 0.1 * rate},
        "learning_rate_decays": {"decay": 0.5 ** (1 / BEFORE)},
        "gradient_clipped": {"max_norm": norms},
        "update_clipped": {"clip": 1.0},
        "eps_raised": {"eps": np.median(roots, axis=1)},
        "b1_0.95": {"b1": 0.95},
        "b2_0.99": {"b2": 0.99},
        "b2_0.9": {"b2": 0.9},
        "amsgrad": {"amsgrad": 1.0},
        "second_moment_frozen": {"freeze": 1.0},
    }


def interventions(problem: Problem, states: xr.Dataset, arms: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """Continue every state in every arm; returns `reported_shape` over (arm, state): a drop within `HORIZON` steps."""
    kept = states[[PARAMS, OPT_STATE]]
    options = {"num_steps": HORIZON, "every": 2, "probes": ["loss", accuracy()], "lane_width": 1}
    records = fork(problem, ADAM, kept, arms, branch=clipped_adam, adopt=adopt_adam, **options)
    return reported_shape(records, learnt=True)
