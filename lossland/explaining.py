"""`lossland explain`, `lossland report`: runs of a folder explained, one by its coordinates or those that rose most."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lossland import figures
from lossland.diagnosis.explain import explain
from lossland.diagnosis.explanation import Explanation
from lossland.mapping import COMMAND, ask
from lossland.report import write_report
from lossland.sweeps.lazy import load


def explain_folder(folder: Path, chosen: Mapping[str, Any], *, as_json: bool = False, out: Path | None = None) -> int:
    """Explain the run of a folder whose coordinates are nearest to those chosen, and print the page.

    A folder that `lossland map` made is replayed; of another the records alone are read. `out` is a path without a
    suffix for the figure.

    Raises:
        ValueError: for a coordinate that the runs do not have, or one that is needed to choose a single run.
    """
    runs = load(folder)
    found = explainer(runs)(chosen_run(runs, chosen).load())
    print(found.to_json() if as_json else found)
    if out is not None:
        print("figures " + ", ".join(map(str, figures.save(found.plot(), out))))
    return 0


def report_folder(folder: Path, out: Path | None = None, num_explained: int = 8) -> Path:
    """Write the report of a folder, with explanations of the runs that rose most; returns its path.

    Raises:
        ValueError: where the folder holds no sweep, the count is negative, or the file cannot be written.
    """
    if num_explained < 0:
        raise ValueError(f"--explain: expected a number of runs, 0 for none, got {num_explained}")
    runs = load(folder)
    tell, counted = explainer(runs, strict=False), itertools.count(1)

    def told(run: xr.Dataset) -> Explanation:
        print(f"\rexplaining run {next(counted)} of at most {num_explained} ...", end="", file=sys.stderr, flush=True)
        return tell(run)

    try:
        return write_report(
            runs, out or folder / "report.html", explain=told if num_explained else None, num_explained=num_explained
        )
    finally:
        if next(counted) > 1:
            print(file=sys.stderr)


def explainer(runs: xr.Dataset, *, strict: bool = True) -> Callable[[xr.Dataset], Explanation]:
    """Return what explains one run of a sweep: replayed where `lossland map` made it, else by its records alone.

    Args:
        runs: the sweep, as `ll.load` returns it.
        strict: whether a run that cannot be replayed is an error; without it its records are read, and `untested`
            tells why.
    """
    command = runs.attrs.get(COMMAND)
    if command is None:
        return explain
    options = json.loads(command)
    asked = ask(options.pop("name"), **options)

    def replayed(run: xr.Dataset) -> Explanation:
        try:
            return explain(run, asked.problem, asked.optimizer)
        except ValueError as error:
            if strict:
                raise
            found = explain(run)
            return replace(found, untested=(f"counterfactuals: {error}", *found.untested[1:]))

    return replayed


def coordinates(given: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE.

    Raises:
        ValueError: where there is no name or no value.
    """
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not name or not value.strip():
            raise ValueError(f"--at {text}: expected NAME=VALUE, such as --at momentum=0.9")
        found[name] = value.strip()
    return found


def chosen_run(runs: xr.Dataset, chosen: Mapping[str, Any]) -> xr.Dataset:
    """Select one run by coordinates, each the nearest there is; coordinates of one value need no choice.

    Seeds and names have to be there; what varies along the axis "point" chooses the point.

    Raises:
        ValueError: naming the coordinate that is missing or unknown, and its values.
    """
    own = [str(dim) for dim in runs["status"].dims]
    points = [str(name) for name, values in runs.coords.items() if values.dims == ("point",) and name != "point"]
    for name in chosen:
        if name not in own and name not in points:
            raise ValueError(f"{name}: the runs have no such coordinate; they have {', '.join([*own, *points])}")
    places = {}
    for dim in own:
        along = [name for name in points if name in chosen] if dim == "point" else []
        names = [dim] if dim in chosen else along
        if not names:
            if runs.sizes[dim] > 1:
                raise ValueError(f"{dim}: choose one of {_listed(runs, dim)}")
            places[dim] = 0
        else:
            places[dim] = int(np.argmin(sum(_distance(runs, name, chosen[name]) for name in names)))
    return runs.isel(places)


def _distance(runs: xr.Dataset, name: str, wanted: Any) -> np.ndarray:
    """How far every value of a coordinate is from the one that is wanted."""
    values = runs[name].values
    if values.dtype.kind not in "fiub":
        if str(wanted) not in values.astype(str):
            raise ValueError(f"{name}: expected one of {_listed(runs, name)}, got {wanted}")
        return (values.astype(str) != str(wanted)).astype(float)
    try:
        number = float(wanted)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number) or (name == "seed" and number not in values):
        raise ValueError(f"{name}: expected one of {_listed(runs, name)}, got {wanted}")
    # Relative, so that several coordinates of a point weigh alike.
    return np.abs(values - number) / max(abs(number), 1e-300)


def _listed(runs: xr.Dataset, name: str) -> str:
    values = runs[name].values if name in runs.coords else np.arange(runs.sizes[name])
    if values.dtype.kind not in "fiub":
        return ", ".join(map(str, values))
    return f"{len(values)} values, {values[0]:g} to {values[-1]:g}"
