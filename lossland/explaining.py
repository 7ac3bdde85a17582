"""`lossland explain`: one run of a folder, chosen by its coordinates, explained in a page, a figure or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from lossland import figures
from lossland.diagnosis.explain import explain
from lossland.mapping import COMMAND, ask
from lossland.sweeps.lazy import load


def explain_folder(folder: Path, chosen: Mapping[str, float], *, as_json: bool = False, out: Path | None = None) -> int:
    """Explain the run of a folder whose coordinates are nearest to those chosen, and print the page.

    A folder that `lossland map` made is replayed; of another the records alone are read. `out` is a path without a
    suffix for the figure.

    Raises:
        ValueError: for a coordinate that the runs do not have, or one that is needed to choose a single run.
    """
    runs = load(folder)
    run = chosen_run(runs, chosen).load()
    command = runs.attrs.get(COMMAND)
    if command is None:
        found = explain(run)
    else:
        options = json.loads(command)
        asked = ask(options.pop("name"), **options)
        found = explain(run, asked.problem, asked.optimizer)
    print(found.to_json() if as_json else found)
    if out is not None:
        print("figures " + ", ".join(map(str, figures.save(found.plot(), out))))
    return 0


def chosen_run(runs: xr.Dataset, chosen: Mapping[str, float]) -> xr.Dataset:
    """Select one run by coordinates, each the nearest there is; coordinates of one value need no choice.

    Raises:
        ValueError: naming the coordinate that is missing or unknown, and its values.
    """
    own = [str(dim) for dim in runs["status"].dims]
    for name in chosen:
        if name not in own:
            raise ValueError(f"{name}: the runs have no such coordinate; they have {', '.join(own)}")
    for dim in own:
        if runs.sizes[dim] > 1 and dim not in chosen:
            values = runs[dim].values
            raise ValueError(f"{dim}: choose one of {len(values)} values, {values[0]:g} to {values[-1]:g}")
    places = {dim: int(np.argmin(np.abs(runs[dim].values - chosen.get(dim, runs[dim].values[0])))) for dim in own}
    return runs.isel(places)
