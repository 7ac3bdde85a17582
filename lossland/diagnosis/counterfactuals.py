"""Counterfactuals: the state before a rise continued with one thing changed, all runs and arms in one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import xarray as xr

from lossland.diagnosis.arms import adjustable, adopt, has_trace
from lossland.diagnosis.measurements import measured
from lossland.diagnosis.observation import BEFORE, NEAR, Observation, Rise
from lossland.diagnosis.replays import Case, momentum_of
from lossland.problems.problem import Problem
from lossland.sweeps.forks import fork

LEAD, LEAD_ADAPTIVE = 10, 70
"""Steps before the valley at which a run is forked; the mode that spikes under Adam grows unseen for some 50."""
HORIZONS = (32, 64, 128, 256, 512)
"""Steps of a fork: few choices, so that programs are shared."""
LOG_LIMIT = 700.0
"""Logarithm of a rise to infinity."""
CAUTION = 0.8
"""Share of the predicted critical learning rate at which an arm is trained."""
MARGIN = 1.1
"""Epsilon of the arm over the least that suffices by theory."""


@dataclass(frozen=True)
class Arms:
    """Forks of runs: names, the states' runs and first steps, loss (arm, run, step), arguments of every arm."""

    loss: xr.DataArray
    places: np.ndarray
    forked_at: np.ndarray
    windows: np.ndarray
    settings: dict[str, dict[str, np.ndarray]]

    def rises(self, place: int) -> dict[str, float]:
        """Arm -> logarithm of its largest rise over the steps in which the run rose."""
        row = int(np.flatnonzero(self.places == place)[0])
        losses = self.loss.isel(state=row, step=slice(0, int(self.windows[row]) + 1)).values.astype(float)
        return {
            str(name): log_rise(curve) for name, curve in zip(self.loss["arm"].values.tolist(), losses, strict=True)
        }


def log_rise(loss: np.ndarray) -> float:
    """Logarithm of the largest rise of a curve over its lowest value before; of a loss below 0, over its range."""
    if not np.isfinite(loss).all():
        return LOG_LIMIT
    low = np.minimum.accumulate(loss)
    if low.min() > 0:
        return float(np.log(loss / low).max())
    return float(np.log1p(((loss - low) / max(abs(float(loss[0])), np.finfo(float).tiny)).max()))


def forked(case: Case, seen: Sequence[Observation]) -> Arms | None:
    """Fork every run with a rise shortly before it, in all arms that its optimizer allows, on the full data."""
    rising = [place for place, one in enumerate(seen) if one.rise is not None]
    if not rising:
        return None
    lead = LEAD_ADAPTIVE if case.is_adaptive else LEAD
    rises = [seen[place].rise for place in rising]
    begun = np.array([_begin(seen[p], r, lead) for p, r in zip(rising, rises, strict=True) if r])
    ends = np.array([_end(seen[p], r) for p, r in zip(rising, rises, strict=True) if r])
    windows = np.minimum(ends - begun, HORIZONS[-1])
    horizon = next(h for h in HORIZONS if h >= min(windows.max(), HORIZONS[-1]))
    windows = np.maximum(windows, 1)
    states = case.states(np.array(rising), begun)
    arms = _arms(case, [seen[place] for place in rising], begun, states)
    records = fork(
        case.problem,
        case.optimizer,
        states,
        arms,
        num_steps=int(horizon),
        probes=["loss"],
        branch=adjustable(case.optimizer),
        adopt=adopt,
    )
    return Arms(records["loss"], np.array(rising), begun, windows, arms)


def from_the_start(chosen: Arms) -> Arms:
    """The same runs, to be continued from their first step to the end of the rise, as far as a fork goes."""
    ends = chosen.forked_at + chosen.windows
    return replace(chosen, forked_at=np.zeros_like(chosen.forked_at), windows=np.minimum(ends, HORIZONS[-1]))


def continued(case: Case, chosen: Arms, problem: Problem, dtype: str) -> Arms:
    """Fork the same states with another problem or precision, nothing else changed."""
    states = case.states(chosen.places, chosen.forked_at)
    horizon = next(h for h in HORIZONS if h >= min(chosen.windows.max(), HORIZONS[-1]))
    records = fork(problem, case.optimizer, states, {"unchanged": {"dtype": dtype}}, num_steps=horizon, probes=["loss"])
    return replace(chosen, loss=records["loss"], settings={"unchanged": {}})


def _begin(one: Observation, rise: Rise, lead: int) -> int:
    """Step to fork at: some steps before the valley, and before the learning rate rose where it did."""
    step = max(rise.valley - lead, 0)
    if (grown := one.rate_rise) is not None:
        step = min(step, max(grown.step - 1, 0))
    return _on_grid(one, step)


def _on_grid(one: Observation, step: int) -> int:
    """The last record at or before a step."""
    return int(one.step[max(int(np.searchsorted(one.step, max(step, 0), side="right")) - 1, 0)])


def _end(one: Observation, rise: Rise) -> int:
    """Step up to which an arm is compared: the peak, or where the loss was no longer finite."""
    return max(rise.peak, rise.start) if one.overflow is None else one.overflow


def _arms(case: Case, seen: list[Observation], begun: np.ndarray, states: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Arms and their arguments, one number per run."""
    worst = np.array([one.worst_ratio for one in seen])
    factor = np.where(worst >= NEAR, CAUTION / np.maximum(worst, NEAR), 0.5)
    names, base = case.optimizer.argument_names, {"dtype": case.dtype}
    arms: dict[str, dict[str, Any]] = {"unchanged": {**base}, "learning_rate_below": {**base, "factor": factor}}
    if case.is_scheduled:
        arms["schedule_held"] = {**base, "held": 1.0, "forked_at": begun}
    if momentum_of(case.tuned) > 0:
        if "momentum" in names:
            arms["momentum_removed"] = {**base, "momentum": 0.0}
        elif any(map(has_trace, jax.tree.leaves(_state_of(case), is_leaf=has_trace))):
            arms["momentum_removed"] = {**base, "forget": 1.0}
    if case.is_adaptive:
        arms["second_moment_frozen"] = {**base, "freeze": 1.0}
        if "b1" in names:
            arms["momentum_removed"] = {**base, "b1": 0.0}
        if "eps" in names and not case.is_scheduled:
            arms["eps_raised"] = {**base, "eps": _raised_eps(case, seen)}
    if any(one.is_recurrent for one in seen):
        arms["clipped"] = {**base, "max_norm": _usual_norm(case, states)}
    return arms


def _state_of(case: Case) -> Any:
    """Shapes of the optimizer's state."""
    return jax.eval_shape(case.tuned.init, case.problem.param_shapes)


def _raised_eps(case: Case, seen: list[Observation]) -> np.ndarray:
    """Epsilon with which the sharpness of the rise is not unstable: `MARGIN` x learning rate x sharpness / kappa*.

    Equation: lambda(P^-1/2 H P^-1/2) <= lambda(H) / eps. Source: `ll.adaptive.epsilon_floor`.
    """
    limit = case.runs["threshold"].item()
    eps = []
    for one in seen:
        clock = one.ratio_step
        near = (clock >= one.rise.valley - BEFORE) & (clock <= one.rise.peak) if one.rise else slice(0)
        top = one.sharpness[near]
        eps.append(MARGIN * float(np.nanmax(top)) / limit if np.isfinite(top).any() else np.nan)
    return np.nan_to_num(np.array(eps), nan=1e-3)


def _usual_norm(case: Case, states: xr.Dataset) -> np.ndarray:
    """Gradient norm where the runs are forked, before the rise."""
    return np.maximum(measured(case, states)["gradient_norm"], 1e-6)
