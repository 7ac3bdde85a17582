"""How good a warning is: spikes it saw coming against alarms in quiet times, on seeds that it was not tuned on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland.arguments import a, count, dataset, described, expects, number, several
from lossland.stability.forecast import WINDOW
from lossland.stability.intervals import binomial_interval, mean_interval

LEAD = 10
"""Steps before a spike at which an alarm has to stand."""
WITHIN = 100
"""A step is quiet if no spike shows within so many steps after it."""
FALSE_ALARMS = 0.05
"""Share of quiet records with an alarm that the level of an alarm is tuned to."""
NUM_LEVELS, LEAD_STRIDE = 101, 5
AXES = {"curve": ("alarm", "rate"), "hit_rate_by_lead": ("alarm", "steps_before")}

RIVALS = {
    "gradient_curvature": ("preconditioned_gradient_curvature", "curvature along the gradient over the threshold"),
    "update_norm": ("update_rms", "root mean square of the update over its recent median"),
}
"""Alarm -> (record it needs, meaning)."""
PROBES = {"preconditioned_gradient_curvature": "preconditioned_gradient_curvature", "update_rms": "update_statistics"}


class _Judged(NamedTuple):
    """Spikes (spike,) and quiet records (run, record) of some seeds."""

    runs: np.ndarray
    decisions: np.ndarray
    """Record at which an alarm has to stand."""
    steps: np.ndarray
    since: np.ndarray
    """Record from which on an alarm belongs to the spike."""


@expects(runs=dataset("loss", "step"), predicted=dataset("spike_step", source="forecast returns"))
def alarm_signals(runs: xr.Dataset, predicted: xr.Dataset) -> xr.Dataset:
    """Collect three warnings of a spike at every record, each from records up to it: larger is more alarming.

    Equation: `forecast` = -(predicted spike step - now), -inf where none is expected or one is under way;
    `gradient_curvature` = (h.Sh / h.h) / threshold, h = P^-1/2 g; `update_norm` = rms(update) over its median
    in the last `WINDOW` steps.

    In practice: the first needs a few Hessian products per record, the second one, the third none.

    Args:
        runs: what `ll.run` returned, with the probes "preconditioned_gradient_curvature" and "update_statistics".
        predicted: `forecast(runs, at=runs["step"])`.

    Raises:
        ValueError: where a record is missing, with the probe that records it, or there is no forecast at every record.
    """
    for record, _ in RIVALS.values():
        if record not in runs:
            raise ValueError(f"runs: expected a record of {record}; add the probe {PROBES[record]!r}")
    if "at" not in predicted.dims or not np.array_equal(predicted["at"].values, runs["step"].values):
        raise ValueError('predicted: expected a forecast at every record; pass forecast(runs, at=runs["step"])')
    ahead = (predicted["spike_step"] - predicted["at"]).rename(at="step")
    expected = np.isfinite(ahead) & ~predicted["spiking"].rename(at="step")
    update, steps = runs["update_rms"], runs["step"].values
    window = max(1, int(WINDOW // (steps[1] - steps[0]))) if len(steps) > 1 else 1
    signals = {
        "forecast": (-ahead).where(expected, -np.inf),
        "gradient_curvature": runs["preconditioned_gradient_curvature"] / runs["threshold"],
        "update_norm": update / update.rolling(step=window, min_periods=1).median(),
    }
    texts = {"forecast": ("step", "- steps to the predicted spike")}
    texts |= {name: ("1", text) for name, (_, text) in RIVALS.items()}
    like = runs["loss"]
    return xr.Dataset(
        {
            name: (
                like.dims,
                values.astype(float).transpose(*like.dims).values,
                {"units": texts[name][0], "description": texts[name][1]},
            )
            for name, values in signals.items()
        },
        like.coords,
    )


@expects(
    signals=a("signals by name, such as alarm_signals returns", xr.Dataset, Mapping),
    found=dataset(source="spikes returns"),
    tuning_seeds=several(count(0)),
    lead=number(least=0),
    within=number(least=0),
    false_alarms=number(least=0, below=1),
    after=number(least=0),
)
def forecast_scores(
    signals: xr.Dataset | Mapping[str, xr.DataArray],
    found: xr.Dataset,
    tuning_seeds: Iterable[int],
    *,
    lead: float = LEAD,
    within: float = WITHIN,
    false_alarms: float = FALSE_ALARMS,
    after: float = 0,
) -> xr.Dataset:
    """Score warnings: share of spikes with an alarm `lead` steps before, and of quiet records with an alarm.

    Equation: an alarm stands at a record where signal >= level. hit rate = share of spikes with an alarm at the last
    record at least `lead` steps before the spike; false-alarm rate = share of quiet records with an alarm; chance is
    hit rate = false-alarm rate. A record is quiet if no spike shows within `within` steps after it and none is under
    way. The level of each signal is the lowest whose false-alarm rate on `tuning_seeds` is at most `false_alarms`;
    every number returned is of the other seeds. The lead time of a hit is how long before the spike the alarm has
    stood without a break.

    In practice: how many spikes a warning catches in time, at one price in false alarms for all.

    Spikes that start before the previous one is over at `lead` are left out: nothing can be told there. Records less
    than `within` before the end of a run are not quiet, since what follows is not known.

    Args:
        signals: name -> signal over the runs' axes, "seed" and "step", such as `alarm_signals` returns; the first is
            what the others are compared with.
        found: spikes of the same runs, as `spikes` returns.
        tuning_seeds: seeds that the levels are chosen on; the others are scored.
        lead: steps before the spike at which the alarm has to stand.
        within: a step is quiet if no spike shows within so many steps after it.
        false_alarms: false-alarm rate that levels are tuned to.
        after: records before this step are left out.

    Returns:
        Dataset over "alarm": `level`; `hit_rate` with Wilson's interval over spikes (`_low`, `_high`);
        `false_alarm_rate` with the interval of its mean over seeds; `lead_time` and quartiles, over hits; `advantage`,
        hit rate of the first alarm less that of this one, mean over seeds, with its interval, a seed counting as one
        draw. `curve` over ("alarm", "rate"): hit rate against false-alarm rate on the scored seeds; `hit_rate_by_lead`
        over ("alarm", "steps_before"): hit rate at other leads, same level. `num_spikes`, `num_quiet`: what is scored.

    Raises:
        ValueError: where seeds or axes do not fit, or there is nothing to tune on or to score.
    """
    if not len(signals) or not all(isinstance(one, xr.DataArray) for one in signals.values()):
        raise ValueError(f"signals: expected at least one, each an xarray.DataArray, got {described(signals)}")
    names = [str(name) for name in signals]
    first = signals[names[0]]
    tuned = sorted({int(seed) for seed in tuning_seeds})
    _check(first, found, tuned, lead, within, false_alarms)
    grid = tuple(str(name) for name in first.dims if name != "step")
    steps = first["step"].values.astype(float)
    values = {name: signals[name].transpose(*grid, "step").values.reshape(-1, len(steps)) for name in names}
    shape = tuple(first.sizes[name] for name in grid)
    seed_of_run = np.broadcast_to(
        first["seed"].values.reshape([-1 if name == "seed" else 1 for name in grid]), shape
    ).ravel()
    judged, quiet = _judge(first, found, grid, shape, steps, lead, within, after)
    tunes = np.isin(seed_of_run, tuned)
    for text, chosen in (("tuning", tunes), ("scored", ~tunes)):
        if not quiet[chosen].any() or not chosen[judged.runs].any():
            raise ValueError(
                f"tuning_seeds: the {text} seeds hold no spike with {lead:g} steps of quiet, or no quiet step"
            )
    held = ~tunes[judged.runs]
    held_seeds = np.unique(seed_of_run[~tunes])
    rates = np.linspace(0, 1, NUM_LEVELS) ** 2
    leads_shown = np.arange(LEAD_STRIDE, within + 1, LEAD_STRIDE)
    earlier = [_judge(first, found, grid, shape, steps, one, within, after)[0] for one in leads_shown]
    rows: dict[str, list[Any]] = {}
    hits_by_name: dict[str, np.ndarray] = {}
    for name in names:
        signal = np.where(np.isnan(values[name]), -np.inf, values[name])
        level = _level(signal[quiet & tunes[:, None]], false_alarms)
        at_lead = signal[judged.runs, judged.decisions]
        hits = hits_by_name[name] = at_lead >= level
        low, high = binomial_interval(np.count_nonzero(hits & held), np.count_nonzero(held))
        alarm = signal >= level
        alarms = mean_interval(_by_seed(alarm, seed_of_run, quiet & ~tunes[:, None]))
        leads = _lead_times(alarm, judged, steps, np.flatnonzero(hits & held))
        quartiles = np.quantile(leads, [0.25, 0.5, 0.75]) if leads.size else np.full(3, np.nan)
        better = _by_seed(hits_by_name[names[0]].astype(float) - hits, seed_of_run[judged.runs], held)
        gain = mean_interval(better)
        still = signal[quiet & ~tunes[:, None]]
        curve = [np.mean(at_lead[held] >= _level(still, rate)) for rate in rates]
        by_lead = [_share(signal[one.runs, one.decisions][~tunes[one.runs]] >= level) for one in earlier]
        row = {
            "level": level, "hit_rate": np.mean(hits[held]), "hit_rate_low": low, "hit_rate_high": high,
            "false_alarm_rate": np.mean(still >= level), "false_alarm_rate_low": alarms[1],
            "false_alarm_rate_high": alarms[2], "lead_time": quartiles[1], "lead_time_lower_quartile": quartiles[0],
            "lead_time_upper_quartile": quartiles[2], "advantage": gain[0], "advantage_low": gain[1],
            "advantage_high": gain[2], "curve": curve, "hit_rate_by_lead": by_lead,
        }  # fmt: skip
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    scores = xr.Dataset(
        {key: (AXES.get(key, "alarm"), np.array(column, float)) for key, column in rows.items()},
        {
            "alarm": names,
            "rate": ("rate", rates, {"units": "1", "description": "false-alarm rate"}),
            "steps_before": leads_shown,
        },
        {"lead": lead, "within": within, "false_alarms": false_alarms, "after": after},
    )
    scores["num_spikes"] = int(np.count_nonzero(held))
    scores["num_quiet"] = int(np.count_nonzero(quiet[~tunes]))
    scores["num_seeds"] = len(held_seeds)
    for key in scores.data_vars:
        scores[key].attrs["units"] = "step" if str(key).startswith("lead_time") else "1"
    return scores


def _check(
    first: xr.DataArray, found: xr.Dataset, tuned: list[int], lead: float, within: float, false_alarms: float
) -> None:
    if not {"seed", "step"} <= set(first.dims):
        raise ValueError(f"signals: expected the axes seed and step, got {', '.join(map(str, first.dims))}")
    seeds = first["seed"].values
    if not set(tuned) <= set(seeds.tolist()) or not tuned or len(tuned) == len(seeds):
        raise ValueError(f"tuning_seeds: expected some of the seeds {seeds.tolist()}, not all, got {tuned}")
    if absent := [str(name) for name in first.dims if name != "step" and name not in found.coords]:
        raise ValueError(
            f"found: expected the coordinates of the runs, {', '.join(absent)}; pass what spikes(runs) returns"
        )
    if not 0 <= lead < within:
        raise ValueError(f"lead: expected 0 <= lead < within = {within:g}, got {lead:g}")
    if not 0 <= false_alarms < 1:
        raise ValueError(f"false_alarms: expected a rate of at least 0 and below 1, got {false_alarms!r}")


def _judge(
    first: xr.DataArray,
    found: xr.Dataset,
    grid: tuple[str, ...],
    shape: tuple[int, ...],
    steps: np.ndarray,
    lead: float,
    within: float,
    after: float,
) -> tuple[_Judged, np.ndarray]:
    """Spikes that can be told, and which records are quiet."""
    runs = _runs_of(found, {name: first[name].values for name in grid}, grid, shape)
    spike, recovery = found["spike_step"].values, found["recovery_step"].values
    quiet = np.broadcast_to((steps >= after) & (steps <= steps[-1] - within), (int(np.prod(shape)), len(steps))).copy()
    for run, shown, until in zip(runs.tolist(), spike, np.where(np.isnan(recovery), np.inf, recovery), strict=True):
        quiet[run] &= (steps < shown - within) | (steps > until)
    over = _previous_end(runs, spike, recovery)
    decisions = np.searchsorted(steps, spike - lead, side="right") - 1
    since = np.maximum(np.searchsorted(steps, over, side="right"), np.searchsorted(steps, after, side="left"))
    told = decisions >= since
    return _Judged(runs[told], decisions[told], spike[told], since[told]), quiet


def _level(calm: np.ndarray, rate: float) -> float:
    """Lowest level that at most a share `rate` of the values reaches."""
    ordered = np.sort(calm)[::-1]
    allowed = int(np.floor(rate * len(ordered) + 1e-9))
    return -np.inf if allowed >= len(ordered) else float(np.nextafter(ordered[allowed], np.inf))


def _share(flags: np.ndarray) -> float:
    return float(np.mean(flags)) if flags.size else np.nan


def _by_seed(values: np.ndarray, seeds: np.ndarray, chosen: np.ndarray) -> list[float]:
    """Mean of the chosen values of every seed that has some; seeds are those of the first axis."""
    shares = [(values[seeds == seed][chosen[seeds == seed]]) for seed in np.unique(seeds)]
    return [float(np.mean(share)) for share in shares if share.size]


def _lead_times(alarm: np.ndarray, judged: _Judged, steps: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    leads = []
    for spike in chosen.tolist():
        run, decision, since = judged.runs[spike], judged.decisions[spike], judged.since[spike]
        stands = alarm[run, since : decision + 1]
        broken = np.flatnonzero(~stands)
        begin = since + (int(broken[-1]) + 1 if broken.size else 0)
        leads.append(judged.steps[spike] - steps[begin])
    return np.array(leads)


@expects(
    predicted=dataset("spike_step", source="forecast returns"),
    found=dataset(source="spikes returns"),
    ahead=several(number(least=0)),
)
def forecast_errors(predicted: xr.Dataset, found: xr.Dataset, ahead: Iterable[float]) -> xr.Dataset:
    """Compare forecasts made so many steps before a spike with the spike that came.

    Equation: now = the last step with a forecast at least `ahead` steps before the spike; error = predicted spike
    step - spike step.

    In practice: how early a forecast becomes worth something, and whether its interval says so.

    Args:
        predicted: `forecast(runs, at=...)` at many steps.
        found: spikes of the same runs, as `spikes` returns.
        ahead: steps before the spike.

    Returns:
        Dataset over ("spike", "ahead"), NaN where the previous spike was not over by then: `remaining`, steps from now
        to the spike; `expected`, `low`, `high`, the same by the forecast; `error`; `inside`, 1 where the spike lies in
        the interval (and 0 where not); `crossed`, whether now is after the crossing.

    Raises:
        ValueError: where the forecasts are not over "at", or coordinates do not fit.
    """
    if "at" not in predicted.dims:
        raise ValueError(
            "predicted: expected forecasts at many steps, over the axis 'at'; pass forecast(runs, at=[...])"
        )
    grid = tuple(str(name) for name in predicted["spike_step"].dims if name != "at")
    if absent := [name for name in (*grid, "spike_step") if name not in found.variables]:
        raise ValueError(
            f"found: expected the coordinates of the runs, {', '.join(absent)}; pass what spikes(runs) returns"
        )
    shape = tuple(predicted.sizes[name] for name in grid)
    runs = _runs_of(found, {name: predicted[name].values for name in grid}, grid, shape)
    at, spike = predicted["at"].values, found["spike_step"].values
    ahead = np.asarray(list(ahead), float)
    index = np.searchsorted(at, spike[:, None] - ahead, side="right") - 1
    over = _previous_end(runs, spike, found["recovery_step"].values)
    known = (index >= 0) & (at[np.maximum(index, 0)] > over[:, None])
    index = np.maximum(index, 0)
    now = at[index]

    def of(name: str) -> np.ndarray:
        values = predicted[name].transpose(*grid, "at").values.reshape(-1, len(at))
        return np.where(known, values[runs[:, None], index], np.nan)

    low, high, expected = of("spike_low"), of("spike_high"), of("spike_step")
    shown = spike[:, None]
    inside = np.where(known & ~np.isnan(low), (low <= shown) & (shown <= high), np.nan)
    values = {
        "remaining": np.where(known, shown - now, np.nan),
        "expected": expected - now,
        "low": low - now,
        "high": high - now,
        "error": expected - shown,
        "inside": inside,
        "crossed": np.where(known, of("ratio") >= 1, np.nan),
    }
    coordinates = {name: ("spike", found[name].values) for name in grid} | {"ahead": ahead}
    units = {"inside": "1", "crossed": "1"}
    return xr.Dataset(
        {name: (("spike", "ahead"), array, {"units": units.get(name, "step")}) for name, array in values.items()},
        coordinates,
    )


def _runs_of(
    found: xr.Dataset, axes: Mapping[str, np.ndarray], grid: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """Flat index of the run of every spike."""
    if not found.sizes["spike"]:
        return np.zeros(0, int)
    places = [np.array([np.flatnonzero(axes[name] == value)[0] for value in found[name].values]) for name in grid]
    return np.ravel_multi_index(places, shape)


def _previous_end(runs: np.ndarray, spike: np.ndarray, recovery: np.ndarray) -> np.ndarray:
    """Where the spike before each one of the same run is over: -inf without one, inf where it never is."""
    over: dict[int, float] = {}
    ends = np.full(len(runs), -np.inf)
    for place in np.lexsort((spike, runs)).tolist():
        run = int(runs[place])
        ends[place] = over.get(run, -np.inf)
        over[run] = np.inf if np.isnan(recovery[place]) else float(recovery[place])
    return ends
