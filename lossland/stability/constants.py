"""Critical learning rates in units of 1 / initial sharpness: c_loss, c_sharp, c_max, and the catapult window."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lossland.arguments import TEXT, a, count, expects, optional, trajectories
from lossland.stability.cutoffs import CUTOFFS, Cutoffs
from lossland.stability.maps import bracket, median_of_bracket, outcomes
from lossland.sweeps.sweep import Outcome
from lossland.sweeps.trajectories import sweep_of

CONSTANTS = {
    "c_rise": "smallest at which some step raises the loss",
    "c_loss": "smallest at which the loss exceeds its initial value",
    "c_sharp": "smallest at which the sharpness exceeds its initial value",
    "c_max": "largest below the first that diverges",
}
"""Learning rate x sharpness at step 0, at which something first happens."""
ROUNDING = 1e-3
"""Sharpness has risen when it exceeds its initial value by more than this share, ten times the probe's tolerance."""


@expects(runs=trajectories("seed", "step"), within=optional(count(0)), unit=TEXT, cutoffs=a("ll.Cutoffs(...)", Cutoffs))
def critical_constants(
    runs: xr.Dataset, within: int | None = None, unit: str = "sharpness", cutoffs: Cutoffs = CUTOFFS
) -> xr.Dataset:
    """Measure, seed by seed, the critical learning rates times the sharpness at step 0.

    Equation: c = learning_rate x sharpness(0). c_rise: some step raises the loss. c_loss: max_t loss(t) > loss(0).
    c_sharp: max_t sharpness(t) > sharpness(0), over records. c_max: the run diverges. Each lies between the last rate
    of the grid without the event (`below`) and the first with it (`above`); the value is their geometric mean.

    Args:
        runs: a sweep with the axis `learning_rate` and the probes "loss" and "sharpness".
        within: read all but c_max from the records of this many first steps (early training; record every step
            then). None: from the whole run, c_loss from every step.
        unit: the record that stands for the sharpness, such as the top eigenvalue of a tangent kernel.
        cutoffs: what counts as divergence.

    Returns:
        Dataset over (constant, other axes...) with `value`, `below`, `above` (.., seed) and `median`, `low`, `high`,
        `coverage`: an interval of the median that holds what the grid leaves open. A constant off the grid is 0 or inf.
        `initial_sharpness` (.., seed).

    Raises:
        ValueError: if there is no such axis or record, or no step within `within`.

    Source: Lewkowycz et al. 2020 (arXiv 2003.02218); Kalra and Barkeshli 2023 (arXiv 2302.12250), section 3, where
    early training is the first 10 steps.
    """
    if "learning_rate" not in sweep_of(runs).axes or "learning_rate" not in runs.dims:
        raise ValueError(f"runs: expected an axis 'learning_rate', got {', '.join(map(str, runs['status'].dims))}")
    if unit not in runs:
        raise ValueError(f"unit: the runs have no record of {unit!r}; record it with probes=['loss', '{unit}']")
    lost = outcomes(runs, cutoffs)["diverges"]
    early = runs if within is None else runs.sel(step=slice(None, within))
    if early.sizes["step"] < 2:
        raise ValueError(f"within: expected at least one record after step 0, got within={within!r}")
    computed = runs["status"] != Outcome.not_run
    first = early.isel(step=0, drop=True)
    blown = runs["first_bad_step"] >= 0
    if within is not None:
        blown = blown & (runs["first_bad_step"] <= within)
    peak = runs["peak_loss"] if within is None else early["loss"].max("step")
    rose = runs["first_rise_step"] >= 0
    if within is not None:
        rose = rose & (runs["first_rise_step"] <= within)
    sharper = early[unit].max("step") > (1 + ROUNDING) * first[unit]
    events = {
        "c_rise": rose,
        "c_loss": blown | (peak > first["loss"]),
        "c_sharp": blown | sharper,
        "c_max": lost,
    }
    # Sharpness at step 0 does not know the learning rate, but a run that was not computed has none.
    initial = first[unit].median("learning_rate")
    pieces = []
    for event in events.values():
        found = bracket(event & computed, computed)
        value, below, above = (
            found[name].where(found[name] == np.inf, found[name] * initial)
            for name in ("critical_learning_rate", "below", "above")
        )
        pieces.append(
            xr.Dataset({"value": value, "below": below, "above": above, **median_of_bracket(value, below, above)})
        )
    result = xr.concat(pieces, xr.DataArray(list(CONSTANTS), dims="constant", name="constant"))
    for name, text in (
        ("value", "learning rate x sharpness at step 0, per seed"),
        ("below", "the last of the grid before it"),
        ("above", "the first of the grid past it"),
        ("median", "median over seeds"),
        ("low", "lower end of the interval of the median"),
        ("high", "upper end"),
    ):
        result[name].attrs.update(units="1", description=text)
    result["initial_sharpness"] = initial.assign_attrs(runs[unit].attrs)
    return result.assign_attrs(runs.attrs)


@expects(runs=trajectories("seed", "step"), unit=TEXT, cutoffs=a("ll.Cutoffs(...)", Cutoffs))
def catapult_window(runs: xr.Dataset, unit: str = "sharpness", cutoffs: Cutoffs = CUTOFFS) -> xr.Dataset:
    """Measure where training is catapulted: the loss exceeds its initial value, and still recovers.

    Equation: [onset, end] = [c_loss, c_max], learning rates in units of 1 / sharpness at step 0; [2, 4] for the
    infinitely wide linear model.

    Returns:
        Dataset over (edge, other axes...), edge = "onset", "end", with `value`, `below`, `above` (.., seed), `median`,
        `low`, `high`, `coverage`, and `width` (.., seed) = end - onset.

    Raises:
        ValueError: as `critical_constants`.

    Source: Lewkowycz et al. 2020 (arXiv 2003.02218), section 2.
    """
    found = critical_constants(runs, None, unit, cutoffs).sel(constant=["c_loss", "c_max"]).rename(constant="edge")
    found = found.assign_coords(edge=["onset", "end"])
    width = found["value"].sel(edge="end", drop=True) - found["value"].sel(edge="onset", drop=True)
    found["width"] = width.assign_attrs(units="1", description="end - onset, per seed")
    return found
