"""What a report holds of a sweep: plain JSON, with the numbers of all runs in base64."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from lossland.figures.labels import log_spaced
from lossland.figures.reading import with_grid
from lossland.report.curves import encode, pack_curves, thin
from lossland.report.sentences import Summary, describe
from lossland.report.stories import Explain, explained
from lossland.stability.phases import CLASSES, classes
from lossland.sweeps.sweep import Outcome
from lossland.sweeps.trajectories import sweep_of

POINTS, FEWEST_POINTS = 128, 16
BYTES_PER_POINT = 2 * 4 / 3
FIRST = (
    "loss",
    "sharpness",
    "preconditioned_sharpness",
    "batch_loss",
    "epoch_mean_loss",
    "gradient_norm",
    "gradient_curvature",
)
"""Curves that go first where not all fit."""
AUXILIARY = ("_residual", "_num_matvecs", "_converged", "relative_sharpness")
MOST_CURVES = 6
NOT_RUN = {"name": "not_run", "label": "not run", "text": "the run was not computed"}


def contents(
    runs: xr.Dataset, explain: Explain | None = None, num_explained: int = 64, max_bytes: float = 9e6
) -> dict[str, Any]:
    """Gather what the page shows.

    Args:
        runs: what `ll.run` or `ll.load` returns, or a selection of it.
        explain: called on at most `num_explained` runs, those of each outcome that rose most; the others are described
            from their records.
        num_explained: see `explain`.
        max_bytes: about how large the curves of all runs together may be: they get fewer points where there are many.

    Raises:
        ValueError: if the dataset was not made by `ll.run`, or no axis is left.
    """
    sweep_of(runs)
    runs = with_grid(runs)
    dims = tuple(str(dim) for dim in runs["status"].dims)
    plain = [name for name, values in runs.data_vars.items() if set(values.dims) <= {*dims, "step"}]
    runs = runs[plain].load()
    if "threshold" not in runs:  # dropped: nothing is known to compare with
        runs = runs.assign(threshold=xr.full_like(runs["status"], np.nan, float))
    codes, listed = _classes(runs, dims)
    relative = _relative_sharpness(runs)
    summary = _summary(runs, dims, codes, listed, relative)
    texts, text_of = _texts(summary, _seen(runs))
    stories = [] if explain is None else explained(runs, dims, summary.outcome, explain, num_explained)
    names = _curve_names(runs)
    num_runs = int(codes.size)
    points = _points_that_fit(num_runs, len(names), max_bytes)
    while points < FEWEST_POINTS and len(names) > 1:
        names = names[:-1]
        points = _points_that_fit(num_runs, len(names), max_bytes)
    steps: np.ndarray | None = None
    exact, curves = True, []
    for name in names if points >= FEWEST_POINTS else ():
        values = runs[name].transpose(*dims, "step").values.reshape(num_runs, -1).astype(np.float64)
        thinned = thin(values, runs["step"].values, points)
        steps, exact = thinned.steps, thinned.exact
        curves.append({"name": name, **_words(runs[name]), **pack_curves(thinned.values)})
    threshold = runs["threshold"].broadcast_like(runs["status"]).transpose(*dims).values.reshape(-1)
    return {
        "title": str(runs.attrs.get("title", "runs")),
        "about": _about(runs),
        "axes": [_axis(runs, dim) for dim in dims],
        "classes": listed,
        "outcome": encode(codes.reshape(-1), "u1"),
        "measures": _measures(summary),
        "figures": {
            name: encode(values, "<f4")
            for name, values in summary._asdict().items()
            if name not in ("outcome", "steps_done")
        },
        "steps": [] if steps is None else steps.tolist(),
        "exact": bool(exact),
        "curves": curves,
        "leftOut": bool(names) and not curves,
        "threshold": encode(threshold, "<f4"),
        "thresholdOf": _compared(runs),
        "texts": texts,
        "textOf": encode(text_of, "<u4"),
        "explained": stories,
    }


def _classes(runs: xr.Dataset, dims: tuple[str, ...]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Code of every run's class, and the classes: the last is "not run"."""
    if "loss" in runs and "first_rise_step" in runs:
        flags, known = classes(runs), dict(CLASSES)
    else:
        finished, diverged = (runs["status"] == code for code in (Outcome.finished, Outcome.diverged))
        flags = xr.Dataset({"never_rises": finished, "non_finite": diverged})
        known = {"never_rises": "the run finished; its loss was not recorded", "non_finite": CLASSES["non_finite"]}
    codes = np.full(runs["status"].transpose(*dims).shape, len(known), np.uint8)
    for code, name in enumerate(known):
        codes[flags[name].transpose(*dims).values] = code
    listed: list[dict[str, Any]] = [
        {"name": name, "label": name.replace("_", " "), "text": text} for name, text in known.items()
    ]
    listed.append(dict(NOT_RUN))
    if "loss" not in runs:
        listed[0] |= {"name": "finished", "label": "finished"}
    for code, entry in enumerate(listed):
        entry["count"] = int((codes == code).sum())
    return codes, listed


def _compared(runs: xr.Dataset) -> str:
    """Name of the record that the threshold bounds, "" where there is none."""
    if not np.isfinite(runs["threshold"].values).any():
        return ""
    name = "preconditioned_sharpness" if runs["threshold"].attrs.get("preconditioned") else "sharpness"
    return name if name in runs else ""


def _relative_sharpness(runs: xr.Dataset) -> xr.DataArray | None:
    if name := _compared(runs):
        return runs[name] / runs["threshold"]
    return None


def _summary(
    runs: xr.Dataset, dims: tuple[str, ...], codes: np.ndarray, listed: list[dict[str, Any]], relative: Any
) -> Summary:
    size = codes.size

    def figure(name: str, missing: float = np.nan) -> np.ndarray:
        if name not in runs:
            return np.full(size, missing)
        return runs[name].transpose(*dims).values.reshape(-1).astype(np.float64)

    def ends(values: xr.DataArray | None) -> tuple[np.ndarray, np.ndarray]:
        if values is None:
            return np.full(size, np.nan), np.full(size, np.nan)
        flat = values.transpose(*dims, "step").values.reshape(size, -1).astype(np.float64)
        finite = np.isfinite(flat)
        last = finite.shape[1] - 1 - np.argmax(finite[:, ::-1], axis=1)
        found = np.take_along_axis(flat, last[:, None], 1)[:, 0]
        return flat[:, 0], np.where(finite.any(1), found, np.nan)

    first, last = ends(runs.get("loss"))
    start, end = ends(relative)
    outcome = np.array([entry["name"] for entry in listed])[codes.reshape(-1)]
    ran = outcome != "not_run"

    def where_run(name: str, missing: float) -> np.ndarray:
        return np.where(ran, figure(name, missing), missing)

    return Summary(
        outcome=outcome,
        first=first,
        last=last,
        peak=where_run("peak_loss", np.nan),
        first_rise=where_run("first_rise_step", -1),
        first_bad=where_run("first_bad_step", -1),
        num_rises=where_run("num_rises", 0),
        steps_done=where_run("steps_done", 0),
        start=start,
        end=end,
    )


def _measures(summary: Summary) -> list[dict[str, Any]]:
    """What a map can be coloured by besides the outcome: a figure of the summary and its scale."""
    found = [
        ("last", "final loss", "log", "loss at the last record; the last finite one where it became infinite or NaN"),
        ("peak", "peak loss", "log", "largest finite loss over all steps"),
        ("end", "relative sharpness, end", "ratio", "sharpness / threshold at the last record that has one"),
        ("start", "relative sharpness, start", "ratio", "sharpness / threshold at step 0"),
    ]
    return [
        {"figure": name, "label": label, "scale": scale, "text": text}
        for name, label, scale, text in found
        if np.isfinite(getattr(summary, name)).any()
    ]


def _seen(runs: xr.Dataset) -> str:
    """What rises were counted in: steps, or, where a step sees a batch, records of the loss, if there are any."""
    of_records = runs["num_rises"].attrs.get("units") == "1" if "num_rises" in runs else "loss" not in runs
    return "step" if not of_records else "record" if "loss" in runs else ""


def _texts(summary: Summary, seen: str) -> tuple[list[str], np.ndarray]:
    """Distinct texts, and which is whose."""
    places: dict[str, int] = {}
    text_of = [places.setdefault(describe(summary, run, seen), len(places)) for run in range(summary.outcome.size)]
    return list(places), np.array(text_of, np.uint32)


def _curve_names(runs: xr.Dataset) -> list[str]:
    """Records over steps that are numbers, the important ones first."""
    grid = {*runs["status"].dims, "step"}
    names = [
        str(name)
        for name, values in runs.data_vars.items()
        if set(values.dims) == grid and values.dtype.kind == "f"
        and not str(name).endswith(AUXILIARY)
    ]  # fmt: skip
    ordered = [name for name in FIRST if name in names]
    return [*ordered, *(name for name in names if name not in ordered)][:MOST_CURVES]


def _points_that_fit(num_runs: int, num_curves: int, max_bytes: float) -> int:
    return int(min(POINTS, max_bytes / (BYTES_PER_POINT * max(1, num_runs * num_curves))))


def _axis(runs: xr.Dataset, dim: str) -> dict[str, Any]:
    values = runs[dim].values
    numeric = values.dtype.kind in "fiu"
    axis: dict[str, Any] = {
        "name": dim,
        "label": dim.replace("_", " "),
        "text": str(runs[dim].attrs.get("description", "")),
        "values": [float(value) for value in values] if numeric else [str(value) for value in values],
        "log": bool(numeric and log_spaced(values.astype(float))) if len(values) > 1 else False,
    }
    with_it = [name for name, values in runs.coords.items() if values.dims == (dim,) and name != dim]
    axis["with"] = [{"label": str(n).replace("_", " "), "values": runs[n].values.tolist()} for n in with_it]
    return axis


def _words(values: xr.DataArray) -> dict[str, str]:
    units = str(values.attrs.get("units", "1"))
    label = str(values.name).replace("_", " ")
    return {
        "label": label,
        "units": "" if units == "1" else units.replace("^2", "²"),
        "text": str(values.attrs.get("description", "")),
    }


def _about(runs: xr.Dataset) -> list[list[str]]:
    """Attributes as (name, text), the sweep in words."""
    sweep = sweep_of(runs)
    grid = " × ".join(f"{runs.sizes[dim]} {dim}" for dim in runs["status"].dims)
    rows = [["grid", str(grid)], ["steps", f"{sweep.num_steps}, recorded every {sweep.every}"]]
    for name, value in runs.attrs.items():
        if name not in ("sweep", "title"):
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append([str(name).replace("_", " "), text])
    if condition := runs["threshold"].attrs.get("condition"):
        rows.append(["threshold", str(condition)])
    return rows
