"""Where training is stable: outcomes over a grid, and the learning rate at which they change."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import xarray as xr

from lossland.arguments import a, expects, trajectories
from lossland.stability.cutoffs import CUTOFFS, Cutoffs, checked
from lossland.stability.intervals import COVERAGE
from lossland.sweeps.sweep import Outcome
from lossland.sweeps.trajectories import sweep_of

OUTCOMES = {
    "never_rises": "no step raised the training loss",
    "rises_and_recovers": "some step raised the training loss, and it ended below where it started",
    "diverges": "the training loss became non-finite, or rose and ended no lower than it started",
}
Event = Literal["diverges", "rises"]


def outcomes(runs: xr.Dataset, cutoffs: Cutoffs = CUTOFFS) -> xr.Dataset:
    """Classify every run: booleans `never_rises`, `rises_and_recovers`, `diverges`, with the dims of `status`.

    A run diverges if its loss became non-finite, or if it rose and the median of its last recorded losses is not below
    the loss at step 0 (a bounded loss never overflows, however useless the run). It rises if any step, recorded or not,
    raised the loss by more than rounding. Exactly one of the three holds for a run that was computed, none for one that
    was not. The share of records that make the end, and what counts as recovered, are those of `cutoffs`.

    Raises:
        ValueError: if the dataset was not made by `ll.run` with the probe "loss".
    """
    end = end_of(runs, "loss", cutoffs)
    computed = runs["status"] != Outcome.not_run
    rose = runs["first_rise_step"] >= 0
    first = runs["loss"].isel(step=0, drop=True)
    # A run that never rose has not diverged, even if its steps were too small to lower the loss.
    lost = (runs["status"] == Outcome.diverged) | (rose & ~(end < first + (cutoffs.recovery - 1) * abs(first)))
    kinds = {"never_rises": ~lost & ~rose, "rises_and_recovers": ~lost & rose, "diverges": lost}
    return xr.Dataset(
        {
            name: (flag & computed)
            .drop_vars("step", errors="ignore")
            .assign_attrs(units="1", description=OUTCOMES[name])
            for name, flag in kinds.items()
        },
        attrs=runs.attrs,
    )


def end_of(runs: xr.Dataset, name: str, cutoffs: Cutoffs = CUTOFFS) -> xr.DataArray:
    """Take the median of a record over the end of every run; NaN where a run stopped early (ask `status` first).

    Raises:
        ValueError: if the dataset was not made by `ll.run` with the probe that records `name`.
    """
    sweep_of(runs)
    checked(cutoffs)
    if name not in runs:
        raise ValueError(f"runs: outcomes are read from the {name}; record it with probes=['{name}', ...]")
    num_tail = max(1, math.ceil(cutoffs.tail * runs.sizes["step"]))
    return runs[name].isel(step=slice(-num_tail, None)).median("step", skipna=False)


@expects(runs=trajectories("seed", "step"), cutoffs=a("ll.Cutoffs(...)", Cutoffs))
def stability_map(runs: xr.Dataset, cutoffs: Cutoffs = CUTOFFS) -> xr.Dataset:
    """Count outcomes over seeds at every point of the grid.

    Equation: fraction = (seeds with the outcome) / (seeds computed). The three fractions sum to one. `cutoffs` as in
    `outcomes`.

    Returns:
        Dataset with `never_rises`, `rises_and_recovers`, `diverges` over the hyperparameter axes, `num_runs`, and,
        where sharpness was recorded, `predicted`: the share of seeds whose sharpness at step 0 exceeds the threshold.

    Raises:
        ValueError: if the dataset was not made by `ll.run` with the probe "loss".
    """
    kinds = outcomes(runs, cutoffs)
    computed = runs["status"] != Outcome.not_run
    num_runs = computed.sum("seed").assign_attrs(units="1", description="seeds computed")

    def fraction(flags: xr.DataArray) -> xr.DataArray:
        return (flags & computed).sum("seed") / num_runs.where(num_runs > 0)  # NaN where nothing was computed

    fractions = {
        name: fraction(kinds[name]).assign_attrs(units="1", description=f"fraction of seeds for which {text}")
        for name, text in OUTCOMES.items()
    }
    stable = xr.Dataset({**fractions, "num_runs": num_runs}, attrs=runs.attrs)
    if "relative_sharpness" in runs:
        first = runs["relative_sharpness"].isel(step=0, drop=True)
        stable["predicted"] = fraction((first > 1) & np.isfinite(first)).assign_attrs(
            units="1", description="fraction of seeds whose sharpness at step 0 exceeds the threshold"
        )
    return stable


@expects(runs=trajectories("seed", "step"), cutoffs=a("ll.Cutoffs(...)", Cutoffs))
def critical_learning_rate(runs: xr.Dataset, event: Event = "diverges", cutoffs: Cutoffs = CUTOFFS) -> xr.Dataset:
    """Find, seed by seed, the smallest learning rate at which an event happens, and its median with an interval.

    Equation: per seed, sqrt(below x above), the last rate of the grid before the event and the first with it. The
    interval of the median runs from an order statistic of `below` to one of `above`, chosen so that its binomial
    coverage is at least 95 %: it assumes nothing about the distribution, and holds what the grid leaves open.

    Args:
        runs: a sweep with the axis `learning_rate`.
        event: "diverges", or "rises" (any step raised the loss: divergence included).
        cutoffs: what counts as divergence, as in `outcomes`.

    Returns:
        Dataset over the other axes with `critical_learning_rate`, `below`, `above` (..., seed), `median`, `low`,
        `high`, `coverage`. A seed without the event on the grid counts as inf, one with it at the smallest rate as 0.
        `predicted` is the rate at which the sharpness at step 0 equals the threshold (2 / sharpness for gradient
        descent), where sharpness was recorded; `last_safe_learning_rate` is the largest rate without the event: above
        the critical one where the boundary is not a single point. Of a sweep that is not finished, seeds that were
        not computed are NaN, and count neither in a median nor in its coverage.

    Raises:
        ValueError: if there is no such axis, or for an unknown event.
    """
    sweep = sweep_of(runs)
    if "learning_rate" not in sweep.axes or "learning_rate" not in runs.dims:
        raise ValueError(f"runs: expected an axis 'learning_rate', got {', '.join(map(str, runs['status'].dims))}")
    kinds = outcomes(runs, cutoffs)
    if event not in ("diverges", "rises"):
        raise ValueError(f"event: expected 'diverges' or 'rises', got {event!r}")
    happened = kinds["diverges"] if event == "diverges" else kinds["diverges"] | kinds["rises_and_recovers"]
    computed = runs["status"] != Outcome.not_run
    result = bracket(happened, computed).assign_attrs({**runs.attrs, "event": event})
    result["critical_learning_rate"].attrs["description"] = f"smallest rate that {event}, per seed"
    if "relative_sharpness" in runs:
        # threshold x learning rate is a constant of the optimizer, so every rate of the grid predicts the same value.
        first_ratio = runs["relative_sharpness"].isel(step=0, drop=True).where(lambda ratio: ratio > 0)
        predicted = (runs["learning_rate"] / first_ratio).median("learning_rate")
        # No rate is unstable where no sharpness is positive; nothing is known where no run was computed.
        predicted = predicted.where(np.isfinite(predicted), np.inf).where(computed.any("learning_rate"))
        result["predicted"] = predicted.assign_attrs(
            units="1", description="learning rate at which the sharpness at step 0 equals the threshold"
        )
    return result.assign(
        median_of_bracket(result["critical_learning_rate"], result["below"], result["above"]),
    )


def bracket(happened: xr.DataArray, computed: xr.DataArray) -> xr.Dataset:
    """Find, run by run along `learning_rate`, where an event first happens.

    Equation: critical = sqrt(below x above).

    Returns:
        Dataset over the other dims with `critical_learning_rate`, `below`, `above`, `last_safe_learning_rate`: 0 and
        inf where the event lies off the grid, NaN where nothing was computed.
    """
    happened, computed = happened.sortby("learning_rate"), computed.sortby("learning_rate")
    axis = happened.get_axis_num("learning_rate")
    rates = happened["learning_rate"].values.astype(float)
    flags = np.moveaxis(happened.values, axis, -1)
    known = np.moveaxis(computed.transpose(*happened.dims).values, axis, -1)
    first = np.where(flags.any(-1), flags.argmax(-1), len(rates))
    below = _last_rate(rates, known & (np.arange(len(rates)) < first[..., None]))
    above = np.append(rates, np.inf)[first]
    last_safe = _last_rate(rates, known & ~flags)
    below, above, last_safe = (np.where(known.any(-1), bound, np.nan) for bound in (below, above, last_safe))
    critical = np.where(np.isinf(above), np.inf, np.sqrt(below * above))
    dims = [dim for dim in happened.dims if dim != "learning_rate"]
    about = {
        "critical_learning_rate": (critical, "smallest rate with the event"),
        "below": (below, "last rate of the grid before the critical one"),
        "above": (above, "first rate of the grid past the critical one"),
        "last_safe_learning_rate": (last_safe, "largest rate without the event"),
    }
    return xr.Dataset(
        {name: (dims, values, {"units": "1", "description": text}) for name, (values, text) in about.items()},
        {dim: happened[dim] for dim in dims},
    )


def median_of_bracket(critical: xr.DataArray, below: xr.DataArray, above: xr.DataArray) -> dict[str, xr.DataArray]:
    """Take the median over seeds of a bracketed value: `median`, `low`, `high`, `coverage`, as `median_over_seeds`.

    What the grid leaves open belongs to the interval: its ends are those of the bracketing values.
    """
    middle = median_over_seeds(critical)
    ends = {"low": median_over_seeds(below)["low"], "high": median_over_seeds(above)["high"]}
    return {"median": middle["median"], "coverage": middle["coverage"], **ends}


def median_over_seeds(values: xr.DataArray) -> dict[str, xr.DataArray]:
    """Take the median over the dim `seed` with its interval: `median`, `low`, `high`, `coverage`.

    Equation: [low, high] = [x_(k), x_(n+1-k)], the narrowest such pair with 1 - 2 P(Binomial(n, 1/2) < k) at least 95
    %; the full range where there are too few seeds for that, with the coverage it has. NaN (not computed) does not
    count as a seed; infinite values do.
    """
    dims = [dim for dim in values.dims if dim != "seed"]
    coordinates = {dim: values[dim] for dim in dims}
    ordered = np.sort(values.transpose(..., "seed").values.astype(float), axis=-1)  # NaN last
    counts = np.sum(~np.isnan(ordered), axis=-1)
    below = np.vectorize(lambda count: _order_statistic(int(count)), otypes=[int])(counts)
    # The lower middle value: a mean of two could be infinite where a boundary lies off the grid for half of the seeds.
    picks = {"median": (counts - 1) // 2, "low": below, "high": counts - 1 - below}
    about = {"median": "median over seeds", "low": "lower end of the interval of the median", "high": "upper end"}
    found = {}
    for name, index in picks.items():
        chosen = np.take_along_axis(ordered, np.maximum(index, 0)[..., None], -1)[..., 0]
        found[name] = xr.DataArray(chosen, coordinates, dims, attrs={"units": "1", "description": about[name]})
    coverage = np.vectorize(lambda count, k: _binomial_coverage(int(count), int(k)), otypes=[float])(counts, below)
    found["coverage"] = xr.DataArray(
        coverage,
        coordinates,
        dims,
        attrs={"units": "1", "description": "probability that [low, high] holds the median"},
    )
    return found


def _last_rate(rates: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Largest of the increasing rates whose flag, on the last axis, is set; 0 where none is."""
    return np.where(flags.any(-1), rates[len(rates) - 1 - flags[..., ::-1].argmax(-1)], 0.0)


@functools.cache
def _order_statistic(count: int) -> int:
    """Largest k such that [x_(k), x_(n-1-k)] covers the median with the nominal probability (0: the full range)."""
    below = 0
    while below + 1 <= (count - 1) // 2 and _binomial_coverage(count, below + 1) >= COVERAGE:
        below += 1
    return below


@functools.cache
def _binomial_coverage(count: int, below: int) -> float:
    """Probability that the k-th smallest and k-th largest of n draws enclose the median: 1 - 2 P(Binomial(n, 1/2) <=
    k)."""
    tail = sum(math.comb(count, i) for i in range(below + 1)) / 2**count
    return max(0.0, 1 - 2 * tail)
