"""What happens before the reported drop: the threshold crossed, who raised the ratio, what the rise is made of."""

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
    STATE,
    accuracy,
    clipped_adam,
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

CLOSE = (*as_probes(["loss", "gradient_norm", growth_through_time]), accuracy(), MODE, STATE)
BEFORE, AFTER = 60, 40
"""Steps before and after a drop that are looked at closely."""
EVERY = 2
HORIZON = 200
"""Steps within which an arm that goes on from before a drop has to stay clear of one."""


def drops(runs: xr.Dataset, shape: xr.Dataset, most: int) -> xr.Dataset:
    """Choose saved states `BEFORE` steps before the first drop of runs that have one, along the axis "state".

    At most `most`, taken in turn over the seeds. Their runs had learnt by then.
    """
    dropped = shape["drop_step"].stack(state=("learning_rate", "seed"))
    early = dropped - BEFORE
    usable = np.isfinite(dropped) & (early >= shape["learnt_step"].stack(state=("learning_rate", "seed")))
    chosen = np.flatnonzero(usable.values)[:most]
    steps = runs["step"].values
    at = steps[np.searchsorted(steps, early.values[chosen], side="right") - 1]
    where = {
        "learning_rate": xr.DataArray(dropped["learning_rate"].values[chosen], dims="state"),
        "seed": xr.DataArray(dropped["seed"].values[chosen], dims="state"),
        "step": xr.DataArray(at, dims="state"),
    }
    states = runs[[PARAMS, OPT_STATE]].sel(where)
    return states.assign(drop_after=("state", dropped.values[chosen] - at))


def closely(problem: Problem, states: xr.Dataset) -> xr.Dataset:
    """Go through the steps before and after each drop again, with the top mode of the preconditioned Hessian.

    Returns the records over (state, step), steps counted from the saved state, with `ratio` (preconditioned sharpness
    over its threshold).
    """
    records = fork(
        problem, ADAM, states[[PARAMS, OPT_STATE]], {"unchanged": {}}, num_steps=BEFORE + AFTER, every=EVERY,
        probes=CLOSE,
    ).isel(arm=0, drop=True)  # fmt: skip
    threshold = float(critical_ratio(B1)) / records["learning_rate"]
    threshold.attrs = {"preconditioned": 1}
    ratio = records["preconditioned_sharpness"] / threshold
    return records.assign(threshold=threshold, ratio=ratio)


class Anatomy(NamedTuple):
    """One entry per drop; see `anatomy`."""

    crosses: np.ndarray
    lag: np.ndarray
    peak_ratio: np.ndarray
    moment_share: np.ndarray
    dead_mass: np.ndarray
    gradient_jump: np.ndarray
    growth_before: np.ndarray
    growth_change: np.ndarray
    curvature_share: np.ndarray
    rest_share: np.ndarray
    slope_share: np.ndarray


def anatomy(problem: Problem, records: xr.Dataset) -> Anatomy:
    """Take every drop apart.

    The rise shows at the first record with loss > 2 x the smallest so far. `crosses`: whether the ratio reached 1
    before that; `lag`: steps from there to the rise; `peak_ratio` up to the rise; `moment_share`: Shapley share of the
    second moment in the change of ln ratio from its smallest value before the crossing to the crossing; `dead_mass` of
    the mode at the crossing; `gradient_jump`: largest gradient norm up to the loss's peak over its median before the
    crossing; `growth_before`: ln of the growth of gradients through time before the crossing; `growth_change`: how much
    more it is at the peak of the ratio; shares of slope, curvature and rest in the steps that raise the loss.
    """
    steps = records["step"].values
    loss, ratio = (records[name].transpose("state", "step").values.astype(float) for name in ("loss", "ratio"))
    norm, growth, dead = (
        records[name].transpose("state", "step").values.astype(float)
        for name in ("gradient_norm", "growth_through_time", "mode_dead_mass")
    )
    rises = loss > VISIBLE * np.fmin.accumulate(loss, axis=1)
    shown = np.where(rises.any(1), rises.argmax(1), len(steps) - 1)
    found: dict[str, list[float]] = {name: [] for name in Anatomy._fields}
    crossings = []
    for state, end in enumerate(shown):
        above = ratio[state, : end + 1] >= 1
        crossing = int(above.argmax()) if above.any() else int(np.nanargmax(ratio[state, : end + 1]))
        trough = int(np.nanargmin(ratio[state, : crossing + 1]))
        crossings.append((trough, max(crossing, trough + 1)))
        peak = end + int(np.nanargmax(loss[state, end : end + 1 + AFTER // EVERY]))
        calm = slice(0, max(crossing, 1))
        found["crosses"].append(bool(above.any()))
        found["lag"].append(steps[end] - steps[crossing] if above.any() else np.nan)
        found["peak_ratio"].append(np.nanmax(ratio[state, : end + 1]))
        found["dead_mass"].append(dead[state, crossing])
        found["gradient_jump"].append(np.nanmax(norm[state, : peak + 1]) / np.nanmedian(norm[state, calm]))
        usual = np.nanmedian(np.log(growth[state, calm]))
        found["growth_before"].append(usual)
        found["growth_change"].append(np.nanmax(np.log(growth[state, : peak + 1])) - usual)
    before, after = (_states(records, [pair[side] for pair in crossings]) for side in (0, 1))
    found["moment_share"] = second_moment_share(problem, ADAM, before, after, tol=1e-3)["moment_share"].values.tolist()
    for name, values in _parts(problem, records, shown).items():
        found[name] = values
    return Anatomy(*(np.array(found[name]) for name in Anatomy._fields))


def _parts(problem: Problem, records: xr.Dataset, shown: np.ndarray) -> dict[str, list[float]]:
    """Shares of slope, curvature and rest in the rising steps between the smallest loss and the loss that shows."""
    loss = records["loss"].transpose("state", "step").values
    valley = [int(np.argmin(row[: end + 1])) for row, end in zip(loss, shown, strict=True)]
    counts = EVERY * (shown - np.array(valley)) + EVERY
    path = fork(
        problem, ADAM, _states(records, valley), {"unchanged": {}}, num_steps=int(counts.max()), every=1,
        probes=("loss", STATE),
    ).isel(arm=0)  # fmt: skip
    rises = np.diff(path["loss"].transpose("state", "step").values, axis=1) > 0
    state, step = np.nonzero(rises & (np.arange(rises.shape[1]) < counts[:, None]))
    ends = [
        restore(problem, ADAM.with_arguments(learning_rate=1.0), _pointwise(path, state, at))[0]
        for at in (step, step + 1)
    ]
    change = decompose_change(problem.objective, *ends)
    total = np.zeros((3, len(shown)))
    for row, name in enumerate(("slope", "curvature", "rest")):
        np.add.at(total[row], state, getattr(change, name))
    with np.errstate(invalid="ignore"):  # no step that rises, no shares
        shares = total / np.abs(total).sum(0)
    return dict(zip(("slope_share", "curvature_share", "rest_share"), shares.tolist(), strict=True))


def _pointwise(path: xr.Dataset, state: np.ndarray, step: np.ndarray) -> xr.Dataset:
    """Saved states at pairs of (state, step), over the axis "pair"."""
    chosen = {"state": xr.DataArray(state, dims="pair"), "step": xr.DataArray(step, dims="pair")}
    found = path[[PARAMS, OPT_STATE]].isel(chosen)
    return found.drop_vars(list(found.coords))


def _states(records: xr.Dataset, places: list[int]) -> xr.Dataset:
    """Saved states at one record of each: over "state" again."""
    chosen = {"step": xr.DataArray(places, dims="state"), "state": xr.DataArray(np.arange(len(places)), dims="state")}
    found = records[[PARAMS, OPT_STATE]].isel(chosen)
    return found.drop_vars([name for name in ("step", "forked_at") if name in found.coords])


def predictions(records: xr.Dataset, lead: int) -> np.ndarray:
    """Forecast each rise from the records up to `lead` steps before it shows: predicted minus measured step.

    inf where none was expected, NaN where there are no records so early.
    """
    steps = records["step"].values
    loss = records["loss"].transpose("state", "step").values
    rises = loss > VISIBLE * np.fmin.accumulate(loss, axis=1)
    errors = np.full(len(loss), np.nan)
    asked = steps[4:]
    coming = forecast(records.drop_vars(["forked_at"], errors="ignore"), at=asked, b1=B1, b2=B2)["spike_step"]
    for state, row in enumerate(rises):
        shown = steps[row.argmax()] if row.any() else np.nan
        if np.isfinite(shown) and shown - lead >= asked[0]:
            place = int(np.searchsorted(asked, shown - lead, side="right")) - 1
            errors[state] = float(coming.isel(state=state, at=place)) - shown
    return errors


def checkpoint_arms(problem: Problem, states: xr.Dataset, norms: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return what is changed at a saved state, one thing in each arm; `norms` are gradient norms before the drop."""
    rate = states["learning_rate"].values
    _, adopted = restore(problem, ADAM, states, adopt_adam)
    roots = np.concatenate([np.sqrt(v).reshape(len(v), -1) for v in jax.tree.leaves(adopted.nu_max)], axis=1)
    middle = np.median(roots, axis=1)
    return {
        "unchanged": {},
        "learning_rate_x_0.5": {"learning_rate": 0.5 * rate},
        "learning_rate_x_0.1": {"learning_rate": 0.1 * rate},
        "learning_rate_decays": {"decay": 0.5 ** (1 / BEFORE)},
        "eps_raised": {"eps": middle},
        "b1_0.95": {"b1": 0.95},
        "b2_0.99": {"b2": 0.99},
        "b2_0.9": {"b2": 0.9},
        "second_moment_frozen": {"freeze": 1.0},
        "amsgrad": {"amsgrad": 1.0},
        "gradient_clipped": {"max_norm": norms},
        "gradient_clipped_tightly": {"max_norm": 0.1 * norms},
        "update_clipped": {"clip": 1.0},
    }


def interventions(problem: Problem, states: xr.Dataset, arms: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """Continue every state in every arm; returns `reported_shape` over (arm, state): a drop within `HORIZON` steps."""
    records = fork(
        problem, ADAM, states[[PARAMS, OPT_STATE]], arms, num_steps=HORIZON, every=EVERY, probes=["loss", accuracy()],
        branch=clipped_adam, adopt=adopt_adam,
    )  # fmt: skip
    return reported_shape(records, learnt=True)
