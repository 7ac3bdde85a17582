"""The numbers that figures draw, as datasets: nothing here knows how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lossland.arguments import NUMBERS, TEXT, expects, trajectories
from lossland.figures.labels import counted
from lossland.stability.maps import Event, critical_learning_rate, median_over_seeds, outcomes
from lossland.sweeps.sweep import Outcome
from lossland.sweeps.trajectories import sweep_of

RATE = "learning_rate"


def with_grid(runs: xr.Dataset) -> xr.Dataset:
    """Return runs with sorted axes, and with the dims back that a selection of one seed or one grid point took away.

    Raises:
        ValueError: if the dataset was not made by `ll.run`, or lost its status or seeds.
    """
    axes = [name for name in sweep_of(runs).axes if name in runs.coords]
    if "status" not in runs or "seed" not in runs.coords:
        raise ValueError("runs: expected the `status` and the axis `seed` that ll.run returns; one of them was dropped")
    if "seed" not in runs.dims:
        runs = runs.expand_dims("seed")
    if not grid_axes(runs) and axes:
        runs = runs.expand_dims(RATE if RATE in axes else axes[0])
    for name in grid_axes(runs):
        runs = runs.sortby(name)
    return runs


def grid_axes(runs: xr.Dataset) -> tuple[str, ...]:
    """Return the hyperparameter axes of runs (or of a stability map), in their order."""
    of = runs["status"] if "status" in runs else runs["never_rises"]
    return tuple(str(dim) for dim in of.dims if dim != "seed")


def curve_axis(runs: xr.Dataset) -> str:
    """Return the axis along which curves are chosen: the learning rate where it is swept, else the first axis."""
    axes = grid_axes(runs)
    if not axes:
        raise ValueError("runs: expected at least one axis to draw curves along, such as learning_rate; got none")
    return RATE if RATE in axes else axes[0]


def only_axis(runs: xr.Dataset) -> str:
    """Return the axis along which curves are chosen.

    Raises:
        ValueError: if there is another one, naming it and how to select.
    """
    axis = curve_axis(runs)
    if others := [other for other in grid_axes(runs) if other != axis]:
        example = ", ".join(f"{other}={runs[other].values[0]:g}" for other in others)
        raise ValueError(
            f"runs: curves are drawn along {axis}; select one value of {', '.join(others)}: runs.sel({example})"
        )
    return axis


def threshold_name(runs: xr.Dataset) -> str:
    """Write the predicted learning rate as a formula: "2/sharpness" for gradient descent, "3.8/sharpness" and such.

    It is "sharpness = threshold" where threshold x learning rate is no constant over the grid.
    """
    product = (runs["threshold"] * runs[RATE]).values
    product = product[np.isfinite(product)]
    if product.size and np.allclose(product, product[0], rtol=1e-3):
        return f"{product[0]:.3g}/sharpness"
    return "sharpness = threshold"


@expects(runs=trajectories("step"))
def boundaries(runs: xr.Dataset) -> xr.Dataset:
    """Collect the learning rates at which training changes, predicted and measured, over the other axes.

    Returns:
        Dataset over (boundary, other axes...) with `median`, `low`, `high` over seeds (the interval of the median, see
        `stability.maps.median_over_seeds`; its probability is the attribute `coverage`) and a `label` per boundary.
        They are, as far as they exist: `predicted` (sharpness at step 0 equals the threshold), `rises` (measured: some
        step raises the loss), `catapult_bound` (4 / sharpness at step 0, for plain gradient descent only), `diverges`
        (measured). inf is above the grid (or never), 0 below it. Empty where the learning rate is no axis.

    Source of the catapult bound: Lewkowycz et al. 2020 (arXiv 2003.02218), beyond which runs no longer recover.
    """
    runs = with_grid(runs)
    found: dict[str, tuple[str, dict[str, xr.DataArray]]] = {}
    critical = xr.Dataset()
    if RATE in grid_axes(runs):
        events: tuple[tuple[Event, str], ...] = (("rises", "loss rises"), ("diverges", "diverges"))
        for event, label in events:
            critical = critical_learning_rate(runs, event)
            found[event] = (label, {name: critical[name] for name in ("median", "low", "high")})
        if "predicted" in critical and "threshold" in runs and np.isfinite(critical["predicted"]).any():
            formula = threshold_name(runs)
            found["predicted"] = (formula, median_over_seeds(critical["predicted"]))
            if formula == "2/sharpness":
                found["catapult_bound"] = ("4/sharpness", median_over_seeds(2 * critical["predicted"]))
    names = [name for name in ("predicted", "rises", "catapult_bound", "diverges") if name in found]
    if not names:
        return xr.Dataset(coords={"boundary": np.array([], str)})
    along = xr.DataArray(names, dims="boundary", name="boundary")
    statistics = {}
    for statistic in ("median", "low", "high"):
        statistics[statistic] = xr.concat([found[name][1][statistic] for name in names], along)
    labels = ("boundary", [found[name][0] for name in names])
    attributes = {"coverage": float(critical["coverage"].min())}
    return xr.Dataset(statistics, attrs=attributes).assign_coords(label=labels)


def ran(runs: xr.Dataset) -> str:
    """Say what was run and what is missing: "sgd, learning rate (64) × 16 seeds × 400 steps." """
    axes = [f"{name.replace('_', ' ')} ({runs.sizes[name]})" for name in grid_axes(runs)]
    size = [*axes, counted(runs.sizes["seed"], "seed"), counted(int(runs["step"].values[-1]), "step")]
    optimizer = str(runs.attrs.get("title", "")).rpartition(" trained by ")[2]
    text = (f"{optimizer}, " if optimizer else "") + " × ".join(size) + "."
    if missing := int((runs["status"] == Outcome.not_run).sum()):
        text += f" {missing} of {runs['status'].size} runs were not run."
    return text


@expects(runs=trajectories("step"))
def choose_values(runs: xr.Dataset) -> np.ndarray:
    """Choose at most four grid values whose curves tell the story, in rising order.

    Along the learning rate, by medians over seeds: far below the first rise, the last rate before it, the last before
    divergence, the first that diverges for most seeds. Along another axis: spread evenly.

    Raises:
        ValueError: if no run was computed, or if there is another axis to select first.
    """
    runs = with_grid(runs)
    axis = only_axis(runs)
    computed = (runs["status"] != Outcome.not_run).any([dim for dim in runs["status"].dims if dim != axis])
    values = runs[axis].values[computed.values].astype(float)
    count = len(values)
    if not count:
        raise ValueError("runs: none of them was computed yet, so there is no curve to draw")
    if count <= 4:
        return values
    spread_out = [0, round((count - 1) / 3), round(2 * (count - 1) / 3), count - 1]
    if axis != RATE or values[0] <= 0:
        return values[spread_out]
    rises = critical_learning_rate(runs, "rises")["median"].item()
    diverges = critical_learning_rate(runs, "diverges")["median"].item()

    def nearest(rate: float) -> int:
        return int(np.argmin(np.abs(np.log(values / rate))))

    rises = float(np.clip(rises, values[0], values[-1]))
    chosen = {nearest(np.sqrt(values[0] * rises)), int(np.searchsorted(values, rises)) - 1}
    if diverges > values[-1]:
        chosen |= {nearest(np.sqrt(rises * values[-1])), count - 1}
    else:
        last_safe = int(np.searchsorted(values, diverges)) - 1
        lost = (outcomes(runs)["diverges"].mean("seed") > 0.5).sel({RATE: values}).values
        lost[: last_safe + 1] = False
        chosen |= {last_safe, int(lost.argmax()) if lost.any() else count - 1}
    chosen -= {-1}
    return values[sorted(chosen | {0, spread_out[2], count - 1} if len(chosen) < 3 else chosen)]


@expects(runs=trajectories("step"), name=TEXT, values=NUMBERS)
def curves(runs: xr.Dataset, name: str, values: Sequence[float] | np.ndarray) -> xr.Dataset:
    """Take the median over seeds of a record along the steps, at chosen grid values.

    A diverged run counts as inf from where its record stops, so that the median does not forget it; where the median is
    itself such a run there is nothing to draw: NaN.

    Returns:
        Dataset over (axis, step) with `median`, `low`, `high` (the interval of the median), and over (axis,)
        `leaves_at`: the step by which half of the seeds have diverged, inf if they do not; `num_seeds` computed;
        `diverging`, the fraction of them that diverges.

    Raises:
        ValueError: if `name` was not recorded, if there is another axis to select first, for a value that is not on the
            grid or was not run.
    """
    runs = with_grid(runs)
    axis = only_axis(runs)
    if name not in runs:
        raise ValueError(f"name: {name!r} was not recorded; run with probes=['loss', 'sharpness']")
    diverges = outcomes(runs)["diverges"]
    pieces = []
    for value in np.ravel(np.asarray(values, float)):
        if value not in runs[axis].values:
            nearest = float(runs[axis].sel({axis: value}, method="nearest"))
            raise ValueError(f"values: {axis} {value:g} is not on the grid; the nearest value is {nearest!r}")
        at = runs.sel({axis: value}).transpose("seed", ...)
        computed = (at["status"] != Outcome.not_run).values
        if not computed.any():
            raise ValueError(f"{axis}: no seed was run at {value:g}")
        at = at.isel(seed=computed)
        stopped = (at["status"] == Outcome.diverged) & ~np.isfinite(at[name])
        record = at[name].astype(float).where(~stopped, np.inf)
        leaves = at["first_bad_step"].astype(float).where(at["status"] == Outcome.diverged, np.inf)
        over_seeds = median_over_seeds(record.transpose("step", "seed"))
        piece = xr.Dataset({statistic: over_seeds[statistic] for statistic in ("median", "low", "high")})
        piece = piece.where(np.isfinite(piece["median"]))
        piece["leaves_at"] = median_over_seeds(leaves)["median"]
        piece["num_seeds"] = int(computed.sum())
        piece["diverging"] = diverges.sel({axis: value}).isel(seed=computed).mean("seed")
        piece.attrs["coverage"] = float(over_seeds["coverage"].min())
        pieces.append(piece.drop_vars(set(piece.coords) - {axis, "step"}))
    return xr.concat(pieces, axis, combine_attrs="drop_conflicts").assign_attrs(name=name, axis=axis)
