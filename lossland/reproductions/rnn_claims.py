"""The six claims about the recurrent classifier, settled by what its runs measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland.reproductions.claims import Claim, Verdict, side_of
from lossland.reproductions.rnn_events import Anatomy
from lossland.reproductions.rnn_runs import boundary, reported_shape, share
from lossland.stability.maps import median_over_seeds

CASE = "rnn_sequences"
UNDECIDED = "more seeds: the interval of these holds one half"


class Results(NamedTuple):
    """What was run: the rate at which most seeds get worse; the map's runs and their shape; how many drops were gone
    through again; those that came again, taken apart; arms from before a drop, and from the start; valid and
    invalid labels, and the drift that they cause; long runs at the reported rate."""

    rate: float
    runs: xr.Dataset
    full: xr.Dataset
    num_drops: int
    anatomy: Anatomy
    before_drop: xr.Dataset
    from_start: xr.Dataset
    labels: xr.Dataset
    drift: xr.Dataset
    slow: xr.Dataset | None


def numbers_of(found: Results) -> dict[str, Any]:
    """Return the numbers of the map, of the drops and of the labels."""
    full, parts = found.full, found.anatomy
    at = full.sel(learning_rate=found.rate)
    numbers: dict[str, Any] = {
        "runs": float(full["shape"].size),
        **boundary_numbers("full_batch", full),
        **boundary_numbers("for_good", full.assign(shape=full["stays_down"])),
        "worst_rate": found.rate,
        "gets_worse_at_worst_rate": float(at["shape"].mean()),
        "stays_down_at_worst_rate": float(at["stays_down"].mean()),
        "gets_worse_at_lowest_rate": float(full["shape"].isel(learning_rate=0).mean()),
        "drop_step_median": float(np.median(at["drop_step"])),
        "drops_gone_through_again": float(found.num_drops),
        "drops_that_came_again": float(parts.peak_ratio.size),
        "drops_with_a_ratio_above_1": float(np.mean(parts.peak_ratio >= 1)),
        "calm_ratio_median": _median(parts.calm_ratio)[0],
        "warning_steps_median": _median(parts.warning)[0],
        "moment_share_median": _median(parts.moment_share)[0],
        "dead_mass_median": _median(parts.dead_mass)[0],
        "gradient_jump_median": _median(parts.gradient_jump)[0],
        "excess_median": _median(parts.excess)[0],
        "growth_through_time_median": _median(parts.growth_through_time)[0],
        "drops_with_growing_gradients": float(np.mean(parts.growth_through_time > 1)),
        "rest_share_median": _median(np.abs(parts.rest_share))[0],
        "curvature_share_median": _median(np.abs(parts.curvature_share))[0],
        "slope_share_median": _median(np.abs(parts.slope_share))[0],
        "forecasts_within_10_steps": float(np.mean(np.abs(parts.forecast_error) <= 10)),
    }
    for when, arms in (("before_drop", found.before_drop), ("from_start", found.from_start)):
        axis = next(str(name) for name in arms["shape"].dims if name != "arm")
        for name in arms["arm"].values.tolist():
            key = f"{when}_{name}".replace(".", "_").replace("-", "_")
            numbers[key] = float(arms["shape"].sel(arm=name).mean(axis))
            if when == "from_start":
                numbers[f"{key}_stays_down"] = float(arms["stays_down"].sel(arm=name).mean(axis))
    for count in (4, 2, 1):
        until = int(found.runs["step"][-1]) // count
        numbers[f"boundary_within_1_{count}" if count > 1 else "boundary_within_all"] = float(
            boundary(reported_shape(found.runs, until=until))["median"]
        )
    gd = found.drift.sel(setting="gradient descent, fused")
    numbers["drift_of_descent_over_law"] = float(gd["mean_bias"][-1] / gd["predicted"][-1])
    for gradient in found.labels["labels"].values.tolist():
        wrong = found.labels.sel(labels=gradient)
        numbers[f"labels_{gradient}_learn"] = float(np.isfinite(wrong["learnt_step"]).mean())
        numbers[f"labels_{gradient}_stay_down"] = float(wrong["stays_down"].mean())
        numbers[f"labels_{gradient}_get_worse"] = float(wrong["shape"].mean())
        numbers[f"labels_{gradient}_drift_over_rate"] = float(wrong["drift"].median())
        numbers[f"labels_{gradient}_loss_rise"] = float((wrong["last_loss"] / wrong["lowest_loss"]).median())
        numbers[f"labels_{gradient}_lowest_loss"] = float(wrong["lowest_loss"].min())
    if found.slow is not None:
        numbers["gets_worse_at_reported_rate"] = float(found.slow["shape"].mean())
        numbers["stays_down_at_reported_rate"] = float(found.slow["stays_down"].mean())
        numbers["drop_step_at_reported_rate"] = float(found.slow["drop_step"].median())
        numbers["learnt_step_at_reported_rate"] = float(found.slow["learnt_step"].median())
        numbers["worst_accuracy_at_reported_rate"] = float(found.slow["worst_accuracy"].median())
    return numbers


def boundary_numbers(name: str, shape: xr.Dataset) -> dict[str, float]:
    """Return where half of the seeds get worse, with its interval."""
    found = boundary(shape)
    return {
        f"boundary_{name}{end}": float(found[key]) for end, key in (("", "median"), ("_low", "low"), ("_high", "high"))
    }


def claims(found: Results) -> list[Claim]:
    """Settle all six."""
    return [_rate(found), _denominator(found), _decays(found), _delay(found), _labels(found), _schedule(found)]


def _rate(found: Results) -> Claim:
    stays = found.full["stays_down"]
    slow = _nearest(found.full["learning_rate"].values, found.rate / 4)
    value, low, high = share(stays.sel(learning_rate=found.rate))
    quarter = stays.sel(learning_rate=slow)
    tenth, unchanged = (_count(found.before_drop, name) for name in ("learning_rate_x_0.1", "unchanged"))
    return Claim(
        CASE, "a", "the learning rate is too high", "supported" if share(quarter)[2] < low else "depends",
        f"share of seeds that get worse for good at learning rate {found.rate:.3g}", value, low, high,
        f"same seeds at {slow:.3g}: {int(quarter.sum())} of {quarter.size}; states before a drop at a tenth of the "
        f"rate: {tenth}, unchanged: {unchanged}",
        f"half of the seeds get worse from a learning rate of {_edges(found)} on, within a quarter, a half and all of "
        f"{int(found.runs['step'][-1])} steps",
    )  # fmt: skip


def _edges(found: Results) -> str:
    most, lowest = int(found.runs["step"][-1]), float(found.full["learning_rate"][0])
    edges = [float(boundary(reported_shape(found.runs, until=most // count))["median"]) for count in (4, 2, 1)]
    return ", ".join(f"{edge:.2g}" if edge else f"less than {lowest:.2g}" for edge in edges)


def _denominator(found: Results) -> Claim:
    value, low, high = _median(found.anatomy.moment_share)
    arms = found.before_drop
    frozen, raised, slow = (_count(arms, name) for name in ("second_moment_frozen", "eps_raised", "b2_0.9"))
    excess = _median(found.anatomy.excess)[0]
    return Claim(
        CASE, "b", "a small number is divided by an even smaller number and the loss explodes", side_of(low, high),
        "share of the second moment in the rise of sharpness / threshold before a drop (median)", value, low, high,
        f"second moment frozen before the drop: {frozen}; eps raised to the median of sqrt(v): {raised}; b2 0.9: "
        f"{slow}; unchanged: {_count(arms, 'unchanged')}",
        "the denominator does not collapse before the drop, the gradient outgrows it there: the root mean square of "
        f"g / sqrt(v) reaches {excess:.2g}, 1 being usual",
    )  # fmt: skip


def _decays(found: Results) -> Claim:
    arms = found.from_start
    value, low, high = share(found.full["shape"].sel(learning_rate=found.rate))
    counts = {name: _count(arms, name) for name in ("unchanged", "b1_0", "b1_0.95", "b2_0.99", "b2_0.9")}
    verdict = side_of(-high, -low, -0.5)  # they work against it where few seeds get worse
    return Claim(
        CASE, "c", "b1 = 0.9, b2 = 0.999 must work against this", verdict,
        f"share of seeds that get worse with them at learning rate {found.rate:.3g}", value, low, high,
        "in fewer steps, " + ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()),
        UNDECIDED if verdict == "depends" else "",
    )  # fmt: skip


def _delay(found: Results) -> Claim:
    most = int(found.runs["step"][-1])
    at = found.full.isel(learning_rate=0) if found.slow is None else found.slow.isel(learning_rate=0)
    value, low, high = share(at["shape"])
    learnt, fall = float(np.median(at["learnt_step"])), float(np.median(at["drop_step"]))
    fast = float(np.median(found.full["drop_step"].sel(learning_rate=found.rate)))
    rate = float(at["learning_rate"])
    return Claim(
        CASE, "d", "a low enough learning rate merely delays it",
        side_of(low, high) if np.isfinite(learnt) else "depends",
        f"share of seeds that get worse at the lowest learning rate, {rate:.3g}", value, low, high,
        f"seeds at {found.rate:.3g} get worse at step {fast:.0f} (median), at {rate:.3g} they learn "
        f"at step {learnt:.0f} and get worse at step {fall:.0f} (inf: not within the run)",
        f"half of the seeds get worse from a learning rate of {_edges(found)} on, within a quarter, a half and all of "
        f"{most} steps",
    )  # fmt: skip


def _nearest(rates: np.ndarray, wanted: float) -> float:
    return float(rates[np.abs(np.log(rates / wanted)).argmin()])


def _labels(found: Results) -> Claim:
    labels = found.labels
    value, low, high = share(labels["shape"].sel(labels="fused"))
    valid = share(labels["shape"].sel(labels="valid"))
    auto = share(labels["shape"].sel(labels="autodiff"))[0]
    rise = float((labels["last_loss"] / labels["lowest_loss"]).sel(labels="fused").median())
    drift = float(labels["drift"].sel(labels="fused").median())
    learnt = np.isfinite(labels["learnt_step"].sel(labels="fused").values)
    fair = learnt.mean() > 0.5  # who has not learnt cannot get worse
    verdict: Verdict = "supported" if low > valid[2] else "refuted" if fair and high < 0.5 else "depends"
    return Claim(
        CASE, "e", "labels that sum to more than 1 cause it", verdict,
        "share of seeds that get worse with labels that sum to 1.5 and the gradient softmax - p", value, low, high,
        f"same seeds with valid labels: {valid[0]:.2g}, with autodiff's gradient: {auto:.2g}; output biases drift by "
        f"{drift:.2g} learning rates a step, the loss ends {rise:.3g} times its smallest",
        f"{int(learnt.sum())} of {learnt.size} runs with invalid labels reach 90 % accuracy at all",
    )  # fmt: skip


def _schedule(found: Results) -> Claim:
    arms = found.from_start["shape"]
    value, low, high = share(arms.sel(arm="gradient_clipped"))
    scheduled = share(arms.sel(arm="learning_rate_decays"))
    base = share(arms.sel(arm="unchanged"))
    worse = low > base[2] and scheduled[1] > base[2]
    helps = [name for name, one in (("clipping", high), ("scheduling", scheduled[2])) if one < base[1]]
    verdicts: dict[int, Verdict] = {0: "refuted" if worse else "depends", 1: "depends", 2: "supported"}
    verdict = verdicts[len(helps)]
    before = {
        name: _count(found.before_drop, name) for name in ("gradient_clipped", "update_clipped", "learning_rate_decays")
    }
    return Claim(
        CASE, "f", "scheduling and clipping help", verdict,
        "share of seeds that get worse with gradients clipped at their usual norm", value, low, high,
        f"same seeds unchanged: {_count(found.from_start, 'unchanged')}, with a decaying rate: "
        f"{_count(found.from_start, 'learning_rate_decays')}; from before a drop: "
        + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in before.items()),
        f"clear of the unchanged runs' interval: {' and '.join(helps) or 'neither'}",
    )  # fmt: skip


def shares_of(settings: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Share of seeds with the shape over (setting, learning_rate), with intervals."""
    rates = sorted({float(rate) for shape in settings.values() for rate in shape["learning_rate"].values})
    shape = (len(settings), len(rates))
    values = {name: np.full(shape, np.nan) for name in ("share", "low", "high")}
    for row, found in enumerate(settings.values()):
        for rate in found["learning_rate"].values:
            place = (row, rates.index(float(rate)))
            values["share"][place], values["low"][place], values["high"][place] = share(
                found["shape"].sel(learning_rate=rate)
            )
    return xr.Dataset(
        {name: (("setting", "learning_rate"), array) for name, array in values.items()},
        {"setting": list(settings), "learning_rate": rates},
    )


def arms_of(found: Results) -> xr.Dataset:
    """Share of runs that get worse over (when, arm), with intervals and counts."""
    parts = {"from the start": found.from_start["shape"], "before the drop": found.before_drop["shape"]}
    names = list(dict.fromkeys(name for part in parts.values() for name in part["arm"].values.tolist()))
    values = {name: np.full((2, len(names)), np.nan) for name in ("share", "low", "high", "count")}
    for row, part in enumerate(parts.values()):
        for name in part["arm"].values.tolist():
            flags, place = part.sel(arm=name), (row, names.index(name))
            values["share"][place], values["low"][place], values["high"][place] = share(flags)
            values["count"][place] = flags.size
    return xr.Dataset(
        {name: (("when", "arm"), array) for name, array in values.items()}, {"when": list(parts), "arm": names}
    )


def _count(arms: xr.Dataset, name: str) -> str:
    flags = arms["shape"].sel(arm=name)
    return f"{int(flags.sum())} of {flags.size}"


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """Median with its interval by order statistics: (median, low, high)."""
    found = median_over_seeds(xr.DataArray(np.asarray(values, float), dims="seed"))
    return float(found["median"]), float(found["low"]), float(found["high"])
