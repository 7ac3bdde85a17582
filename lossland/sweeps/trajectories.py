"""The face of results: one `xarray.Dataset` with named axes, units, meanings and provenance."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lossland.sweeps.sweep import Outcome, Sweep

UNITS = {"seed": "1", "step": "step"}
DESCRIPTIONS = {
    "seed": "seed of the starting point (and of every other random stream)",
    "step": "optimizer steps taken before the record",
}
RELATIVE_SHARPNESS = "sharpness / threshold: the linearised optimizer is unstable above 1"


def blank_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Array that stands for "not run": NaN for floats, 0 for counts, False for flags (`status` tells them apart)."""
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)


def assemble(layout: dict[str, Any], arrays: dict[str, np.ndarray], done: np.ndarray) -> xr.Dataset:
    """Label the flat results of a sweep.

    Args:
        layout: what `execution` writes into the manifest: the sweep, every variable's dims, units and description, the
            threshold, provenance. JSON only.
        arrays: name -> (run, ...) in grid order.
        done: (run,) booleans, which runs were computed.

    Returns:
        Dataset with dims (hyperparameters..., seed, step, a probe's own axes). `status` holds `Outcome` codes.
    """
    shape = Sweep.from_json(layout["sweep"]).shape
    found = {name: arrays[name] for name in layout["variables"]}
    found["status"] = status_codes(arrays["first_bad_step"], done)
    if has_relative_sharpness(layout):
        found["relative_sharpness"] = relative_sharpness(arrays["sharpness"], threshold_of_runs(layout))
    return label(layout, {name: values.reshape(*shape, *values.shape[1:]) for name, values in found.items()})


def label(layout: dict[str, Any], arrays: dict[str, Any]) -> xr.Dataset:
    """Give names, units and meanings to results over the grid: name -> (hyperparameters..., seed, ...), lazy or not."""
    sweep = Sweep.from_json(layout["sweep"])
    grid = sweep.dims
    coordinates: dict[str, Any] = {
        name: (
            name if name in sweep.axes else "point",
            values,
            {"units": "1", "description": f"{owner} argument {name}"},
        )
        for owner, name, values in (
            (layout["owners"][name], name, values) for name, values in {**sweep.axes, **(sweep.points or {})}.items()
        )
    }
    for name, values in (("seed", sweep.seeds), ("step", sweep.recorded_steps)):
        coordinates[name] = (name, values, {"units": UNITS[name], "description": DESCRIPTIONS[name]})
    variables: dict[str, Any] = {}
    for name, spec in layout["variables"].items():
        attributes = {"units": spec["units"], "description": spec["description"]}
        variables[name] = ((*grid, *spec["dims"]), arrays[name], attributes)
    variables["status"] = (grid, arrays["status"], Outcome.attributes())
    threshold = np.asarray(layout["threshold"]["values"], np.float64).reshape(sweep.shape[:-1])
    variables["threshold"] = (grid[:-1], threshold, dict(layout["threshold"]["attributes"]))
    if "relative_sharpness" in arrays:
        attributes = {"units": "1", "description": RELATIVE_SHARPNESS}
        variables["relative_sharpness"] = (variables["sharpness"][0], arrays["relative_sharpness"], attributes)
    return xr.Dataset(variables, coordinates, layout["attributes"])


def status_codes(first_bad_step: np.ndarray, done: np.ndarray) -> np.ndarray:
    """`Outcome` of every run, from the step at which its loss was not finite (-1 for none): (run,) int8."""
    status = np.where(first_bad_step >= 0, Outcome.diverged, Outcome.finished)
    return np.where(done, status, Outcome.not_run).astype(np.int8)


def has_relative_sharpness(layout: dict[str, Any]) -> bool:
    """Whether the sharpness was recorded, and is what the threshold is compared with where there is one."""
    threshold = layout["threshold"]
    comparable = (
        not threshold["attributes"]["preconditioned"] and np.isfinite(np.asarray(threshold["values"], np.float64)).any()
    )
    return "sharpness" in layout["variables"] and bool(comparable)


def threshold_of_runs(layout: dict[str, Any]) -> np.ndarray:
    """Threshold of every run of the grid: (run,)."""
    return np.repeat(np.asarray(layout["threshold"]["values"], np.float64), Sweep.from_json(layout["sweep"]).shape[-1])


def relative_sharpness(sharpness: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Sharpness (run, ...) divided by the threshold (run,)."""
    with np.errstate(all="ignore"):
        return sharpness / threshold.reshape(-1, *[1] * (sharpness.ndim - 1))


def sweep_of(runs: xr.Dataset) -> Sweep:
    """Return the sweep that a dataset was made by.

    Raises:
        ValueError: if the dataset was not made by `ll.run`.
    """
    if not isinstance(runs, xr.Dataset) or "sweep" not in runs.attrs:
        raise ValueError("runs: expected the xarray.Dataset that ll.run or ll.load returns")
    return Sweep.from_json(runs.attrs["sweep"])
