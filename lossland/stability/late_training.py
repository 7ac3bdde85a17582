"""Late training over a grid: how likely a late spike is, when the first one comes, and what each setting costs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import (
    FLAG,
    MAPPING,
    OPTIMIZER,
    PATH,
    SEEDS,
    a,
    choice,
    count,
    either,
    expects,
    number,
    optional,
    several,
)
from lossland.problems.problem import Problem
from lossland.stability.intervals import COVERAGE, Method, binomial_interval
from lossland.stability.maps import median_over_seeds
from lossland.stability.spikes import VISIBLE
from lossland.sweeps.execution import run
from lossland.sweeps.loss_probes import FACTOR, PROGRESS, late_spikes
from lossland.sweeps.sweep import Outcome, Sweep

RECORDS = 100
"""Records of a run: the median over the last tenth of the steps is one of ten losses or more."""
END = 0.1
"""Share of the steps that makes the end of a run."""
RATE = "learning_rate"

VARIABLES = {
    "first_spike": ("step", "step of the run's first late spike; inf for none, NaN where training was never late"),
    "spikes": ("1", "late spikes of the run"),
    "run_final_loss": ("loss", "median of the run's recorded losses over the last tenth of the steps"),
    "num_runs": ("1", "runs whose training became late"),
    "not_late": ("1", "share of the runs computed whose training never became late"),
    "probability": ("1", "share of these runs with a late spike"),
    "probability_low": ("1", "lower end of its interval over seeds"),
    "probability_high": ("1", "upper end of its interval over seeds"),
    "time": ("step", "median step of the first late spike, runs without one censored at the last step: inf if most"),
    "time_low": ("step", "lower end of the interval of the median"),
    "time_high": ("step", "upper end of the interval of the median; inf where the last step censors it"),
    "num_spikes": ("1", "median number of late spikes of a run"),
    "num_spikes_low": ("1", "lower end of the interval of the median"),
    "num_spikes_high": ("1", "upper end of the interval of the median"),
    "last_loss": ("loss", "median loss at the last record"),
    "final_loss": ("loss", "median of the runs' final losses, each the median over the last tenth of the steps"),
    "final_loss_low": ("loss", "lower end of the interval of the median"),
    "final_loss_high": ("loss", "upper end of the interval of the median"),
    "worst_final_loss": ("loss", "largest of the runs' final losses; inf where one diverged"),
    "worst_loss": ("loss", "median over runs of the largest loss since late training began"),
    "price": ("1", "final loss over the smallest of the settings at the same learning rate"),
    "price_overall": ("1", "final loss over the smallest of all settings"),
}


MAPS = {
    "problem": a("an ll.Problem", Problem),
    "optimizer": OPTIMIZER,
    "axes": MAPPING,
    "seeds": SEEDS,
    "executor": optional(a("a concurrent.futures.Executor", Executor)),
    "num_steps": count(),
    "after": optional(count(0)),
    "visible": either(number(above=1), several(number(above=1))),
    "out": optional(PATH),
    "progress": FLAG,
}
"""What a map of late training expects, measured or predicted."""


@expects(
    **MAPS,
    method=choice("wilson", "clopper_pearson"),
    begun=number(above=0, most=1),
    coverage=number(above=0, below=1),
)
def late_training_map(
    problem: Problem,
    optimizer: Any,
    axes: Mapping[str, Any],
    seeds: Any = 16,
    num_steps: int = 6000,
    *,
    after: int | None = None,
    visible: float | Sequence[float] = VISIBLE,
    begun: float = PROGRESS,
    method: Method = "wilson",
    coverage: float = COVERAGE,
    out: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    **fields: Any,
) -> xr.Dataset:
    """Train every setting on every seed and map the first late spike of the loss: probability, time, price.

    Equation: late training begins at the first step t >= `after` by which the loss has been at or below `begun` x the
    first loss: before, steps are long against what is left to learn, sharpness still grows to its threshold, and the
    loss rises as it arrives there, whatever the second moment does. A late spike begins where the loss exceeds
    `visible` x its smallest since the last spike, ringing bridged (`loss_probes.late_spikes`), every step compared.
    probability = (runs with a late spike) / (runs whose training became late). Runs without one are censored at
    the last step, all at the same, so the lower median over runs with those as inf is the Kaplan-Meier median.

    Args:
        problem, optimizer, out, executor, progress: as for `run`. A folder that holds a part is completed.
        axes: hyperparameter -> values, usually learning_rate, b2 and eps.
        seeds, num_steps: as for `Sweep`; so are `fields` (every, dtype, batch_size, ...), `every` being `num_steps` /
            100 by default. Spikes are counted at every step, whatever is recorded; with batches, at every record.
        after: earliest step of late training; a quarter of the steps if not given.
        visible: factor by which the loss rises at a spike; with several, results have an axis "visible".
        begun: share of the first loss below which training is well under way.
        method, coverage: of the intervals of the probability, see `intervals.binomial_interval`. Intervals of medians
            are order statistics, of 95 % at least.

    Returns:
        Dataset over the axes: `VARIABLES`; the first three per seed. A run that diverges late, between two records
        too, has spiked, and its loss is inf; one that diverges before, or was not computed, does not count.

    Raises:
        ValueError: before anything compiles, naming the argument, what was expected and what was got.
    """
    factors = tuple(np.atleast_1d(np.asarray(visible, float)).tolist())
    fields.setdefault("every", max(1, num_steps // RECORDS))
    sweep = Sweep(axes, seeds, num_steps, **fields)
    after = sweep.num_steps // 4 if after is None else after
    if not after < sweep.num_steps:
        raise ValueError(f"after: expected a step before num_steps = {sweep.num_steps}, got {after!r}")
    watch = late_spikes(after, factors, progress=begun)
    attributes = {"late_after": str(after), "late_begun": repr(begun), "late_visible": repr(list(factors))}
    runs = run(problem, optimizer, sweep, ["loss", watch], out, progress=progress, executor=executor,
               attributes=attributes)  # fmt: skip
    return late_training(runs, method=method, coverage=coverage)


def late_training(runs: xr.Dataset, *, method: Method = "wilson", coverage: float = COVERAGE) -> xr.Dataset:
    """Sum up runs that `late_training_map` saved: `late_training(ll.load(out))`.

    Raises:
        ValueError: where the runs have no record of the loss or of `loss_probes.late_spikes`.
    """
    for name, probe in (("loss", "'loss'"), ("first_late_spike", "lossland.sweeps.loss_probes.late_spikes(...)")):
        if name not in runs:
            raise ValueError(f"runs: expected a record of {name}; add the probe {probe}")
    factors = [float(text) for text in runs.attrs["late_visible"].strip("[]").split(",")] if (
        "late_visible" in runs.attrs
    ) else list(range(runs.sizes[FACTOR]))  # fmt: skip
    computed = (runs["status"] != Outcome.not_run).load()
    diverged = runs["status"] == Outcome.diverged
    steps = runs["step"].values
    # What a run that diverged has last recorded.
    bad = runs["first_bad_step"]
    last = xr.where(diverged, np.searchsorted(steps, bad.values, side="right") - 1, len(steps) - 1)
    at_end = runs[["late_step", "late_peak_loss", "first_late_spike", "num_late_spikes"]].isel(
        step=xr.DataArray(last.values, dims=last.dims)
    )
    late = ((at_end["late_step"] >= 0) | _late_since(runs, bad)) & computed
    blown = late & diverged
    first = at_end["first_late_spike"].astype(float)
    first = xr.where(first >= 0, first, xr.where(blown, bad.astype(float), np.inf)).where(late)
    count = at_end["num_late_spikes"] + (blown & (at_end["num_late_spikes"] == 0))
    end = runs["loss"].sel(step=slice((1 - END) * float(steps[-1]), None))
    final = xr.where(diverged, np.inf, end.median("step")).where(computed)
    last_loss = xr.where(diverged, np.inf, runs["loss"].isel(step=-1, drop=True)).where(computed)
    peak = xr.where(blown, np.inf, at_end["late_peak_loss"]).where(late)
    found = {"first_spike": first, "spikes": count.where(late), "run_final_loss": final}
    number = late.sum("seed")
    found |= {"num_runs": number, "not_late": 1 - number / computed.sum("seed")}
    hits = np.isfinite(first).sum("seed")
    many = number.broadcast_like(hits).transpose(*hits.dims)
    low, high = binomial_interval(hits.values, many.values, method, coverage)
    found["probability"] = hits / many.where(many > 0)
    found |= {"probability_low": hits.copy(data=low), "probability_high": hits.copy(data=high)}
    for name, values in (("time", first), ("num_spikes", found["spikes"]), ("final_loss", final)):
        middle = median_over_seeds(values)
        found |= {name: middle["median"], f"{name}_low": middle["low"], f"{name}_high": middle["high"]}
    found["last_loss"] = median_over_seeds(last_loss)["median"]
    found["worst_final_loss"] = final.max("seed")
    found["worst_loss"] = median_over_seeds(peak)["median"]
    others = [dim for dim in found["final_loss"].dims if dim != RATE]
    best = found["final_loss"].min(others)
    found["price"] = found["final_loss"] / best
    found["price_overall"] = found["final_loss"] / best.min()
    whole = xr.Dataset({name: _documented(name, values) for name, values in found.items()}, attrs=dict(runs.attrs))
    whole = whole.assign_coords({FACTOR: factors})
    whole.attrs |= {"method": method, "coverage": coverage, "num_steps": int(steps[-1])}
    return whole if len(factors) > 1 else whole.isel({FACTOR: 0}, drop=True)


def _late_since(runs: xr.Dataset, bad: xr.DataArray) -> xr.DataArray | bool:
    """Say of every run whether training became late between its last record and its first non-finite loss: that lies
    beyond the earliest step of late training, and a recorded loss was low enough."""
    if "late_after" not in runs.attrs:
        return False
    low = runs["loss"].min("step") <= float(runs.attrs["late_begun"]) * runs["loss"].isel(step=0, drop=True)
    return (bad > int(runs.attrs["late_after"])) & low


def _documented(name: str, values: xr.DataArray) -> xr.DataArray:
    units, text = VARIABLES[name]
    values = values.drop_vars([key for key in ("step", FACTOR) if key in values.coords])
    return values.assign_attrs(units=units, description=text)
