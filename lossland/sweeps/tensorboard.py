"""Runs as TensorBoard sees them: one folder of event files for each, every record a curve."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import PATH, dataset, expects
from lossland.sweeps.sweep import Outcome

MOST_RUNS = 1000
"""More curves than these no one tells apart, and TensorBoard takes minutes to read them."""


@expects(runs=dataset("status"), folder=PATH)
def to_tensorboard(runs: xr.Dataset, folder: str | os.PathLike[str]) -> list[Path]:
    """Write runs as TensorBoard event files: `tensorboard --logdir FOLDER` then shows every record over steps.

    A run becomes a folder named by its coordinates, `learning_rate=0.1,seed=3`, and each of its records over `step`
    alone a scalar of the same name; records with axes of their own (one value per layer) get one scalar per place,
    `name/0`, `name/1`. Runs that were not computed are left out, NaN and inf are kept. A folder that holds event files
    of the run already is refused: TensorBoard would join the two.

    Args:
        runs: what `ll.run` or `ll.load` returns, or a selection of it.
        folder: where to write; made if it is not there.

    Returns:
        The folders, one per run.

    Raises:
        ValueError: if the package `tensorboard` is missing, for more than 1000 runs, no record over steps, or a folder
            that is taken.
    """
    writer = _package("tensorboard.summary.writer.event_file_writer").EventFileWriter
    events = _package("tensorboard.compat.proto.event_pb2")
    summaries = _package("tensorboard.compat.proto.summary_pb2")
    if "step" not in runs.dims:
        raise ValueError("runs: expected records over the axis step, got none; select runs, not steps")
    grid = [str(dim) for dim in runs["status"].dims]
    if runs["status"].size > MOST_RUNS:
        raise ValueError(f"runs: expected at most {MOST_RUNS} runs, got {runs['status'].size}; select some of them")
    over_steps = [(str(name), values) for name, values in runs.data_vars.items() if "step" in values.dims]
    names = [name for name, values in over_steps if values.dtype.kind in "fiub"]
    steps, now, written = runs["step"].values.astype(int).tolist(), time.time(), []
    for index in np.ndindex(*runs["status"].shape):
        one = runs.isel(dict(zip(grid, index, strict=True)))
        if int(one["status"]) == Outcome.not_run:
            continue
        place = Path(folder) / _name(one, grid)
        try:
            if place.exists() and any(place.iterdir()):
                raise ValueError(f"folder: {place} is not empty; choose another folder")
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"folder: {place} cannot be written ({error.strerror}); choose another folder") from error
        curves = _curves(one, names)
        log = writer(str(place))
        for row, step in enumerate(steps):
            values = [summaries.Summary.Value(tag=tag, simple_value=float(curve[row])) for tag, curve in curves.items()]
            log.add_event(events.Event(wall_time=now, step=step, summary=summaries.Summary(value=values)))
        log.close()
        written.append(place)
    return written


def _curves(run: xr.Dataset, names: list[str]) -> dict[str, np.ndarray]:
    curves = {}
    for name in names:
        values = run[name].transpose("step", ...).values
        flat = values.reshape(len(values), -1)
        for place in range(flat.shape[1]):
            curves[name if values.ndim == 1 else f"{name}/{place}"] = flat[:, place]
    return curves


def _name(run: xr.Dataset, grid: list[str]) -> str:
    """The run's coordinates, those that were selected before included."""
    others = [str(name) for name, values in run.coords.items() if values.ndim == 0 and name not in (*grid, "step")]
    values = {name: run[name].item() for name in (*grid, *others) if name in run.coords}
    parts = [f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()]
    return ",".join(parts).replace("/", "_") or "run"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError('to_tensorboard needs tensorboard: pip install "lossland[tensorboard]"') from error
