"""Finer outcomes of training, how much they owe to their cut-offs, and phase diagrams with intervals over seeds."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import TEXT, a, expects, number, trajectories
from lossland.stability.cutoffs import CUTOFFS, Cutoffs
from lossland.stability.intervals import COVERAGE, Method, binomial_interval
from lossland.stability.maps import end_of, outcomes
from lossland.sweeps.sweep import Outcome

CLASSES = {
    "never_rises": "no step raised the training loss, and it fell",
    "rises_and_recovers": "some step raised the training loss, and it ended below where it started, off the edge",
    "edge_of_stability": "some step raised the training loss, it fell, and its sharpness ended near the threshold",
    "stalls": "the training loss ended about where it started, no higher",
    "diverges": "the training loss stayed finite, rose, and ended no lower than it started",
    "non_finite": "the training loss became infinite or NaN",
}
"""Six exclusive classes, in the order of their codes. `outcomes` divides the same runs into three: the last two are its
"diverges"."""


@expects(runs=trajectories("step"), cutoffs=a("ll.Cutoffs(...)", Cutoffs))
def classes(runs: xr.Dataset, cutoffs: Cutoffs = CUTOFFS) -> xr.Dataset:
    """Divide runs into six classes: booleans with the names of `CLASSES` and the dims of `status`.

    A run that `outcomes` calls divergent is `non_finite` if its loss became so, else `diverges`. Any other is
    `stalls` if its loss ended less than `cutoffs.progress` of the first loss below it; else `never_rises` if no step
    raised the loss; else `edge_of_stability` if the median at its end of sharpness / threshold is within 1 +/-
    `cutoffs.edge` (preconditioned sharpness, where that is what the threshold bounds; where neither was recorded: if a
    share `cutoffs.rising` of its steps raised the loss; the attribute `edge_read_from` says which), else
    `rises_and_recovers`. Exactly one holds for a run that was computed.

    Raises:
        ValueError: if the dataset was not made by `ll.run` with the probe "loss".
    """
    coarse = outcomes(runs, cutoffs)
    first, end = runs["loss"].isel(step=0, drop=True), end_of(runs, "loss", cutoffs)
    non_finite = runs["status"] == Outcome.diverged
    safe = coarse["never_rises"] | coarse["rises_and_recovers"]
    stalls = safe & ~(end < first - cutoffs.progress * abs(first))
    if "relative_sharpness" in runs:
        source, at_edge = "relative_sharpness", abs(end_of(runs, "relative_sharpness", cutoffs) - 1) <= cutoffs.edge
    elif "preconditioned_sharpness" in runs and np.isfinite(runs["threshold"]).any():
        source = "preconditioned_sharpness"
        at_edge = abs(end_of(runs, source, cutoffs) / runs["threshold"] - 1) <= cutoffs.edge
    else:
        source, at_edge = "num_rises", runs["num_rises"] >= cutoffs.rising * runs["steps_done"]
    rose = coarse["rises_and_recovers"] & ~stalls
    found = {
        "never_rises": coarse["never_rises"] & ~stalls,
        "rises_and_recovers": rose & ~at_edge,
        "edge_of_stability": rose & at_edge,
        "stalls": stalls,
        "diverges": coarse["diverges"] & ~non_finite,
        "non_finite": non_finite,
    }
    flags = {
        name: flag.drop_vars("step", errors="ignore").assign_attrs(units="1", description=CLASSES[name])
        for name, flag in found.items()
    }
    return xr.Dataset(flags, attrs={**runs.attrs, "edge_read_from": source, "cutoffs": str(cutoffs)})


@expects(runs=trajectories("step"), cutoffs=a("ll.Cutoffs(...)", Cutoffs), factor=number(above=1))
def cutoff_sensitivity(runs: xr.Dataset, cutoffs: Cutoffs = CUTOFFS, factor: float = 2.0) -> xr.Dataset:
    """Report how much the map owes to each cut-off: change one by a factor, down and up, and classify again.

    Equation: changed = (runs whose class differs) / (runs computed).

    Returns:
        Dataset over (cutoff, direction) with `value`, `changed`, and `fraction` (.., class) of runs in each class;
        `reference` (class) holds the fractions at the given cut-offs. A share stops at 1.

    Raises:
        ValueError: for a factor not above 1, or as `classes`.
    """
    if not factor > 1:
        raise ValueError(f"factor: expected a number above 1, got {factor!r}")
    reference = _codes(classes(runs, cutoffs))
    computed = (runs["status"] != Outcome.not_run).transpose(*reference.dims).values
    count = max(int(computed.sum()), 1)
    names = [field.name for field in fields(cutoffs)]
    value, changed = np.zeros((len(names), 2)), np.zeros((len(names), 2))
    fraction = np.zeros((len(names), 2, len(CLASSES)))
    for row, name in enumerate(names):
        for column, by in enumerate((1 / factor, factor)):
            moved = getattr(cutoffs, name) * by
            moved = moved if name == "recovery" else min(moved, 1.0)
            codes = _codes(classes(runs, replace(cutoffs, **{name: moved})))
            value[row, column] = moved
            changed[row, column] = ((codes != reference).values & computed).sum() / count
            fraction[row, column] = _shares(codes.values, computed)
    about = {
        "value": (("cutoff", "direction"), value, "the cut-off, changed"),
        "changed": (("cutoff", "direction"), changed, "fraction of runs whose class changes"),
        "fraction": (("cutoff", "direction", "class"), fraction, "fraction of runs in the class"),
        "reference": (("class",), _shares(reference.values, computed), "fraction of runs at the given cut-offs"),
    }
    return xr.Dataset(
        {name: (dims, array, {"units": "1", "description": text}) for name, (dims, array, text) in about.items()},
        {"cutoff": names, "direction": ["lower", "higher"], "class": list(CLASSES)},
        {"cutoffs": str(cutoffs), "factor": factor},
    )


@expects(
    runs=trajectories("seed", "step"),
    outcome=TEXT,
    coverage=number(above=0, below=1),
    cutoffs=a("ll.Cutoffs(...)", Cutoffs),
)
def outcome_probability(
    runs: xr.Dataset,
    outcome: str = "diverges",
    method: Method = "wilson",
    coverage: float = COVERAGE,
    cutoffs: Cutoffs = CUTOFFS,
) -> xr.Dataset:
    """Estimate the probability over seeds of an outcome at every point of the grid, with its interval.

    Equation: probability = (seeds with it) / (seeds computed); interval: see `intervals.binomial_interval`.

    Args:
        runs: what `ll.run` returns.
        outcome: one of the three of `outcomes` ("diverges" includes what became non-finite) or of the other `CLASSES`.
        method: "wilson" or "clopper_pearson".
        coverage: nominal coverage of the interval at each point.
        cutoffs: where outcomes begin and end.

    Returns:
        Dataset over the hyperparameter axes with `probability`, `low`, `high`, `num_runs`.

    Raises:
        ValueError: for an unknown outcome or method, or as `outcomes`.
    """
    three = outcomes(runs, cutoffs)
    if outcome not in three and outcome not in CLASSES:
        raise ValueError(f"outcome: expected one of {', '.join(CLASSES)}, got {outcome!r}")
    flags = three[outcome] if outcome in three else classes(runs, cutoffs)[outcome]
    computed = runs["status"] != Outcome.not_run
    return _probability((flags & computed).sum("seed"), computed.sum("seed"), outcome, method, coverage).assign_attrs(
        {**runs.attrs, "outcome": outcome, "method": method, "coverage": coverage}
    )


@expects(
    runs=trajectories("seed", "step"),
    x=TEXT,
    y=TEXT,
    coverage=number(above=0, below=1),
    cutoffs=a("ll.Cutoffs(...)", Cutoffs),
)
def phase_diagram(
    runs: xr.Dataset,
    x: str,
    y: str,
    method: Method = "wilson",
    coverage: float = COVERAGE,
    cutoffs: Cutoffs = CUTOFFS,
) -> xr.Dataset:
    """Count the six classes over any two axes of a sweep, pooled over seeds and all other axes.

    Equation: fraction = (runs of the class) / (runs computed) at each (y, x).

    Returns:
        Dataset over (y, x): `fraction` (.., class), `phase` (code of the most frequent class, in the order of
        `CLASSES`; -1 where nothing was computed), `probability`, `low`, `high` of divergence (finite or not) and
        `num_runs`. The interval takes runs for independent draws; pooled over an axis other than the seed it describes
        that mixture.

    Raises:
        ValueError: unless x and y are two different axes of the sweep.
    """
    flags = classes(runs, cutoffs)
    axes = [str(dim) for dim in runs["status"].dims if dim != "seed"]
    for name, value in (("x", x), ("y", y)):
        if value not in axes:
            raise ValueError(f"{name}: expected one of the axes {', '.join(axes) or '(none)'}, got {value!r}")
    if x == y:
        raise ValueError(f"y: expected another axis than x, got {y!r} twice")
    pooled = [dim for dim in runs["status"].dims if dim not in (x, y)]
    computed = runs["status"] != Outcome.not_run
    num_runs = computed.sum(pooled).transpose(y, x)
    along = xr.DataArray(list(CLASSES), dims="class", name="class")
    counts = xr.concat([(flags[name] & computed).sum(pooled) for name in CLASSES], along).transpose(y, x, "class")
    lost = counts.sel({"class": ["diverges", "non_finite"]}).sum("class")
    found = _probability(lost, num_runs, "diverges", method, coverage)
    found["fraction"] = (counts / num_runs.where(num_runs > 0)).assign_attrs(
        units="1", description="fraction of runs of each class"
    )
    phase = counts.argmax("class").where(num_runs > 0, -1).astype(np.int8)
    found["phase"] = phase.assign_attrs(
        flag_values=list(range(len(CLASSES))),
        flag_meanings=" ".join(CLASSES),
        units="1",
        description="the most frequent class; -1 where nothing was computed",
    )
    return found.assign_attrs({**runs.attrs, "pooled": " ".join(map(str, pooled)), "method": method})


def _probability(counts: Any, num_runs: Any, outcome: str, method: Method, coverage: float) -> xr.Dataset:
    num_runs = num_runs.transpose(*counts.dims)
    low, high = binomial_interval(counts.values, num_runs.values, method, coverage)
    about = {
        "probability": (counts / num_runs.where(num_runs > 0)).values,
        "low": low,
        "high": high,
        "num_runs": num_runs.values,
    }
    words = {
        "probability": f"fraction of runs: {outcome}",
        "low": f"lower end of the {coverage:.0%} interval",
        "high": f"upper end of the {coverage:.0%} interval",
        "num_runs": "runs computed",
    }
    return xr.Dataset(
        {name: (counts.dims, values, {"units": "1", "description": words[name]}) for name, values in about.items()},
        {dim: counts[dim] for dim in counts.dims},
    )


def _codes(flags: xr.Dataset) -> xr.DataArray:
    """Code of the class of every run, -1 for one that was not computed."""
    first = flags[next(iter(CLASSES))]
    codes = xr.full_like(first, -1, dtype=np.int8)
    for code, name in enumerate(CLASSES):
        codes = codes.where(~flags[name].transpose(*first.dims), code)
    return codes


def _shares(codes: np.ndarray, computed: np.ndarray) -> np.ndarray:
    return np.bincount(codes[computed].astype(int), minlength=len(CLASSES)) / max(int(computed.sum()), 1)
