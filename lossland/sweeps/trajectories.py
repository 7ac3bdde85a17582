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
    sweep = Sweep.from_json(layout["sweep"])
    grid = (*sweep.axes, "seed")
    coordinates: dict[str, Any] = {
        name: (name, values, {"units": "1", "description": f"{layout['owners'][name]} argument {name}"})
        for name, values in sweep.axes.items()
    }
    for name, values in (("seed", sweep.seeds), ("step", sweep.recorded_steps)):
        coordinates[name] = (name, values, {"units": UNITS[name], "description": DESCRIPTIONS[name]})
    variables: dict[str, Any] = {}
    for name, spec in layout["variables"].items():
        values = arrays[name].reshape(*sweep.shape, *arrays[name].shape[1:])
        attributes = {"units": spec["units"], "description": spec["description"]}
        variables[name] = ((*grid, *spec["dims"]), values, attributes)
    bad = arrays["first_bad_step"].reshape(sweep.shape)
    status = np.where(bad >= 0, Outcome.diverged, Outcome.finished)
    status = np.where(done.reshape(sweep.shape), status, Outcome.not_run).astype(np.int8)
    variables["status"] = (grid, status, Outcome.attributes())
    threshold = np.asarray(layout["threshold"]["values"], np.float64).reshape(sweep.shape[:-1])
    variables["threshold"] = (grid[:-1], threshold, dict(layout["threshold"]["attributes"]))
    dataset = xr.Dataset(variables, coordinates, layout["attributes"])
    if "sharpness" in dataset and not layout["threshold"]["attributes"]["preconditioned"]:
        relative = (dataset["sharpness"] / dataset["threshold"]).transpose(*dataset["sharpness"].dims)
        dataset["relative_sharpness"] = relative.assign_attrs(
            units="1", description="sharpness / threshold: the linearised optimizer is unstable above 1"
        )
    return dataset


def sweep_of(runs: xr.Dataset) -> Sweep:
    """Return the sweep that a dataset was made by.

    Raises:
        ValueError: if the dataset was not made by `ll.run`.
    """
    if not isinstance(runs, xr.Dataset) or "sweep" not in runs.attrs:
        raise ValueError("runs: expected the xarray.Dataset that ll.run or ll.load returns")
    return Sweep.from_json(runs.attrs["sweep"])
