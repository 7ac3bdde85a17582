"""The six claims about the recurrent classifier, settled by what its runs measured.

Every verdict follows by a rule from intervals over seeds, and each rule has outcomes for and against its claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossland.reproductions.claims import Claim, Verdict, side_of
from lossland.reproductions.rnn_events import Anatomy
from lossland.reproductions.rnn_runs import Estimate, at_equal_progress, boundary, difference, reported_shape, share
from lossland.stability.maps import median_over_seeds

CASE = "rnn_sequences"
MARGIN = 0.25
"""Shares of seeds that differ by less are taken for equal where the interval of their difference says so."""
PARTS = {"half": 0.5, "three_quarters": 0.75, "all": 1.0}
"""Of the map's steps, within which the boundary is found."""
UNDECIDED = "more seeds: an interval holds the value that decides"


class Drops(NamedTuple):
    """Drops gone through again: how many, those that came again taken apart, and arms that go on from before them."""

    num_drops: int
    anatomy: Anatomy
    arms: xr.Dataset


class Results(NamedTuple):
    """What was run: a rate at which most seeds get worse, and one at which about half do; the map's records; drops at
    the first rate; arms from the start at the second; valid and invalid labels there,
    {name: what became of each seed}, and the drift that they cause;
    long runs at lower rates, {rate: records over seed and step}."""

    steep: float
    edge: float
    runs: xr.Dataset
    drops: Drops | None
    from_start: xr.Dataset | None
    labels: Mapping[str, xr.Dataset]
    drift: xr.Dataset
    slow: Mapping[float, xr.Dataset]

    @property
    def full(self) -> xr.Dataset:
        """`reported_shape` of the map."""
        return reported_shape(self.runs)


def numbers_of(found: Results) -> dict[str, Any]:
    """Return the numbers of the map, of the drops and of the labels."""
    full = found.full
    at = full.sel(learning_rate=found.steep)
    numbers: dict[str, Any] = {
        "runs": float(full["shape"].size),
        **boundary_numbers("full_batch", full),
        **boundary_numbers("for_good", full.assign(shape=full["stays_down"])),
        "steep_rate": found.steep,
        "edge_rate": found.edge,
        "gets_worse_at_steep_rate": float(at["shape"].mean()),
        "stays_down_at_steep_rate": float(at["stays_down"].mean()),
        "gets_worse_at_lowest_rate": float(full["shape"].isel(learning_rate=0).mean()),
        "drop_step_median": float(np.median(at["drop_step"])),
        "learnt_step_median": float(np.median(at["learnt_step"])),
    }
    edges = edges_of(found)
    for part, edge in zip(PARTS, edges, strict=True):
        numbers |= {f"boundary_within_{part}{end}": value for end, value in zip(ENDS, edge, strict=True)}
    numbers["boundary_exponent"] = boundary_exponent(edges)
    if found.drops is not None:
        numbers |= _drop_numbers(found.drops)
    for when, arms in arms_by_start(found).items():
        axis = next(str(name) for name in arms["shape"].dims if name != "arm")
        for name in arms["arm"].values.tolist():
            key = f"{when}_{name}".replace(".", "_").replace("-", "_").replace(" ", "_")
            numbers[key] = float(arms["shape"].sel(arm=name).mean(axis))
    numbers["drift_of_descent_over_law"] = float(found.drift.attrs["bias_over_law"])
    numbers["logit_drift_of_descent_over_law"] = float(found.drift.attrs["logit_over_law"])
    for name, one in found.labels.items():
        key = f"labels_{name}".replace(" ", "_").replace(".", "_")
        numbers |= {
            f"{key}_learn": float(np.isfinite(one["learnt_step"]).mean()),
            f"{key}_get_worse": float(one["shape"].mean()),
            f"{key}_stay_down": float(one["stays_down"].mean()),
            f"{key}_drift": float(one["drift"].median()),
            f"{key}_logit_drift": float(one["logit_drift"].median()),
            f"{key}_loss_rise": float(one["loss_rise"].median()),
            f"{key}_lowest_loss": float(one["lowest_loss"].min()),
        }
        for end, value in zip(ENDS, _more(found.labels, name), strict=True):
            numbers[f"{key}_more{end}"] = value
    for rate, records in found.slow.items():
        shape, key = reported_shape(records), f"at_{rate:g}"
        numbers |= {
            f"gets_worse_{key}": float(shape["shape"].mean()),
            f"stays_down_{key}": float(shape["stays_down"].mean()),
            f"drop_step_{key}": float(np.median(shape["drop_step"])),
            f"learnt_step_{key}": float(np.median(shape["learnt_step"])),
        }
    if found.slow:
        numbers |= {f"delayed_difference{end}": value for end, value in zip(ENDS, _delayed(found)[1], strict=True)}
    return numbers


ENDS = ("", "_low", "_high")


def _drop_numbers(drops: Drops) -> dict[str, float]:
    parts = drops.anatomy
    return {
        "drops_gone_through_again": float(drops.num_drops),
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


def arms_by_start(found: Results) -> dict[str, xr.Dataset]:
    """Arms by where they start: "before_drop", "from_start"; those that were run."""
    arms = {"before_drop": found.drops.arms} if found.drops is not None else {}
    return arms | ({"from_start": found.from_start} if found.from_start is not None else {})


def edges_of(found: Results) -> list[Estimate]:
    """Boundaries within `PARTS` of the map's steps."""
    return [boundary(reported_shape(found.runs, until=steps)) for steps in _steps_of(found)]


def _steps_of(found: Results) -> list[int]:
    return [int(part * int(found.runs["step"][-1])) for part in PARTS.values()]


def boundary_exponent(edges: Sequence[tuple[float, float, float]]) -> float:
    """Slope of ln boundary over ln steps, by least squares over those that are known: -1 where rate x steps decides, 0
    where the rate does; NaN where fewer than two are known."""
    places, steps = np.array([edge[0] for edge in edges]), np.array(list(PARTS.values()))
    known = (places > 0) & np.isfinite(places)
    if known.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(steps[known]), np.log(places[known]), 1)[0])


def boundary_numbers(name: str, shape: xr.Dataset) -> dict[str, float]:
    """Return the rate from which on half of the seeds get worse, with its interval."""
    return {f"boundary_{name}{end}": value for end, value in zip(ENDS, boundary(shape), strict=True)}


def claims(found: Results) -> list[Claim]:
    """Settle the claims for which there are runs."""
    settled = [_rate(found)]
    if found.drops is not None:
        settled.append(_denominator(found, found.drops))
    if found.from_start is not None:
        settled.append(_decays(found, found.from_start))
    if found.slow:
        settled.append(_delay(found))
    settled.append(_labels(found))
    if found.from_start is not None:
        settled.append(_schedule(found, found.from_start))
    return settled


def _rate(found: Results) -> Claim:
    """Supported where a quarter of the rate is better even at equal rate x steps, refuted where it is no better in as
    many steps."""
    shape, most = found.full["shape"], int(found.runs["step"][-1])
    slow = _nearest(found.runs["learning_rate"].values, found.steep / 4)
    same_steps = difference(shape.sel(learning_rate=found.steep), shape.sel(learning_rate=slow))
    sooner = reported_shape(found.runs.sel(learning_rate=found.steep), until=int(most * slow / found.steep))["shape"]
    same_progress = difference(sooner, shape.sel(learning_rate=slow))
    if same_steps.high < MARGIN or same_steps.high < 0:
        verdict: Verdict = "refuted"
    else:
        verdict = "supported" if same_steps.low > 0 and same_progress.low > 0 else "depends"
    forks = ""
    if found.drops is not None:
        tenth, unchanged = (_count(found.drops.arms, name) for name in ("learning_rate_x_0.1", "unchanged"))
        forks = f"; of states before a drop get worse again: {tenth} at a tenth of the rate, {unchanged} unchanged"
    return Claim(
        CASE, "a", "the learning rate is too high", verdict,
        f"share of seeds that get worse within {most} steps at learning rate {found.steep:.3g}, less that at "
        f"{slow:.3g}",
        *same_steps,
        f"the same at equal learning rate x steps: {_between(same_progress)}{forks}",
        f"on the steps that are taken: half of the seeds get worse {_edges(found)}; at equal learning rate x steps "
        + ("the shares differ" if same_progress.low > 0 or same_progress.high < 0 else "no difference is clear"),
    )  # fmt: skip


def _edges(found: Results) -> str:
    lowest, highest = (float(found.runs["learning_rate"][place]) for place in (0, -1))
    texts = []
    for steps, (value, low, high) in zip(_steps_of(found), edges_of(found), strict=True):
        edge = f"from a learning rate of {value:.2g} [{low:.2g}, {high:.2g}] on"
        if not (value > 0 and np.isfinite(value)):
            edge = f"at no learning rate up to {highest:.2g}" if value else f"at any learning rate from {lowest:.2g} on"
        texts.append(f"within {steps} steps {edge}")
    return ", ".join(texts)


def _between(estimate: Estimate) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*estimate)


def _denominator(found: Results, drops: Drops) -> Claim:
    """By the side of one half on which the second moment's share in the rise of sharpness over threshold lies."""
    value, low, high = _median(drops.anatomy.moment_share)
    arms = drops.arms
    frozen, raised, slow = (_count(arms, name) for name in ("second_moment_frozen", "eps_raised", "b2_0.9"))
    excess = _median(drops.anatomy.excess)[0]
    return Claim(
        CASE, "b", "a small number is divided by an even smaller number and the loss explodes", side_of(low, high),
        "share of the second moment in the rise of sharpness / threshold before a drop (median)", value, low, high,
        f"states before a drop that get worse again: {_count(arms, 'unchanged')} unchanged, {frozen} with the second "
        f"moment frozen, {raised} with eps raised to the median of sqrt(v), {slow} with b2 0.9",
        f"at the drop the root mean square of g / sqrt(v), 1 being usual, reaches {excess:.2g} (median over drops): "
        + ("the gradient outgrows its second moment" if excess > 1 else "the gradient stays within its second moment"),
    )  # fmt: skip


def _decays(found: Results, arms: xr.Dataset) -> Claim:
    """Supported where doing without the first moment and shortening the second each make more seeds get worse, refuted
    where some change makes fewer, or none makes more by the margin."""
    names = ("b1_0", "b1_0.95", "b2_0.99", "b2_0.9")
    usual = arms["shape"].sel(arm="unchanged")
    by_arm = {name: difference(arms["shape"].sel(arm=name), usual) for name in names}
    guards = [name for name, one in by_arm.items() if one.low > 0]
    better = [name for name, one in by_arm.items() if one.high < 0]
    needed = "b1_0" in guards and ("b2_0.99" in guards or "b2_0.9" in guards)
    useless = not guards and all(one.high < MARGIN for one in by_arm.values())
    verdict: Verdict = "refuted" if better or useless else "supported" if needed else "depends"
    most = max(by_arm, key=lambda name: by_arm[name].value)
    return Claim(
        CASE, "c", "b1 = 0.9, b2 = 0.999 must work against this", verdict,
        f"share of seeds that get worse at learning rate {found.edge:.3g} {_changed(most)}, less the share with the "
        "defaults, same seeds",
        *by_arm[most],
        "seeds that get worse: "
        + ", ".join(f"{_count(arms, name)} {_changed(name)}" for name in ("unchanged", *names)),
        f"clearly more get worse with {_listed(guards)}, clearly fewer with {_listed(better)} of these",
    )  # fmt: skip


def _delayed(found: Results) -> tuple[float, Estimate]:
    """(progress, share at the slow rate less that at the lowest rate of the map that got as far, at equal rate x steps
    and from the same seeds)."""
    rate = _slow_rate(found)
    one = found.slow[rate]
    progress = rate * float(one["step"][-1])
    shapes = at_equal_progress(found.runs, progress)
    if not shapes:
        raise ValueError(f"size: no rate of the map gets as far as {rate:g} x {int(one['step'][-1])}; take more steps")
    other = shapes[min(shapes)].sel(seed=one["seed"])
    return progress, difference(reported_shape(one)["shape"], other)


def _slow_rate(found: Results) -> float:
    """The rate below the map with the most seeds, the lowest of several."""
    return max(found.slow, key=lambda rate: (found.slow[rate].sizes["seed"], -rate))


def _delay(found: Results) -> Claim:
    """Supported where at equal rate x steps the slow rate shows the shape no less often, within the margin; refuted
    where it does less often."""
    rate = _slow_rate(found)
    at = reported_shape(found.slow[rate])
    progress, less = _delayed(found)
    against = min(at_equal_progress(found.runs, progress))
    verdict: Verdict = "refuted" if less.high < 0 else "supported" if less.low > -MARGIN else "depends"
    worse = share(at["shape"])
    learnt, fall = float(np.median(at["learnt_step"])), float(np.median(at["drop_step"]))
    fast = float(np.median(found.full["drop_step"].sel(learning_rate=found.steep)))
    return Claim(
        CASE, "d", "a low enough learning rate merely delays it", verdict,
        f"share of seeds that get worse by learning rate x steps = {progress:.2g} at {rate:.3g}, less that at "
        f"{against:.3g}",
        *less,
        f"at {rate:.3g} {worse.value:.2f} [{worse.low:.2f}, {worse.high:.2f}] of the seeds get worse within "
        f"{int(found.slow[rate]['step'][-1])} steps; half of them have learnt {_by_step(learnt)} and got worse "
        f"{_by_step(fall)}, at {found.steep:.3g} {_by_step(fast)}",
        f"half of the seeds get worse {_edges(found)}: a rate that falls as the power "
        f"{boundary_exponent(edges_of(found)):.2f} of the steps (-1: merely delayed)",
    )  # fmt: skip


def _by_step(step: float) -> str:
    """When half of the seeds have done something; inf stands for a median beyond the run."""
    return f"by step {step:.0f}" if np.isfinite(step) else "at no step of the run"


def _nearest(rates: np.ndarray, wanted: float) -> float:
    return float(rates[np.abs(np.log(rates / wanted)).argmin()])


def _labels(found: Results) -> Claim:
    """At the largest sum with which most runs learn under the fused gradient: supported where more seeds get worse than
    with valid labels, refuted where no more do, within the margin."""
    labels = found.labels
    names = [name for name in labels if name.startswith("fused")]
    learnt = {name: float(np.isfinite(labels[name]["learnt_step"]).mean()) for name in names}
    fair = [name for name in names if learnt[name] > 0.5]  # who has not learnt cannot get worse
    chosen = max(fair or names[:1], key=lambda name: float(name.split()[1]))
    total = chosen.split()[1]
    fused, auto = (_more(labels, f"{kind} {total}") for kind in ("fused", "autodiff"))
    verdict: Verdict = "depends"
    if fair:
        verdict = "supported" if fused.low > 0 else "refuted" if fused.high < MARGIN else "depends"
    one, valid = labels[chosen], labels["valid"]["shape"]
    return Claim(
        CASE, "e", "labels that sum to more than 1 cause it", verdict,
        f"share of seeds that get worse with labels that sum to {total} and the gradient softmax - p, less the share "
        "with valid labels", *fused,
        f"the same with autodiff's gradient: {_between(auto)}; {int(valid.sum())} of {valid.size} with valid labels; "
        f"under the fused gradient the output biases drift by {float(one['drift'].median()):.2g} learning rates a step",
        "share of runs that reach 90 % accuracy under the fused gradient: "
        + ", ".join(f"{learnt[name]:.0%} at s = {name.split()[1]}" for name in names),
    )  # fmt: skip


def _more(labels: Mapping[str, xr.Dataset], name: str) -> Estimate:
    """Share of seeds that get worse with these labels less the share with valid ones, over the seeds that had both."""
    one = labels[name]["shape"]
    return difference(one, labels["valid"]["shape"].sel(seed=one["seed"]))


def _schedule(found: Results, arms: xr.Dataset) -> Claim:
    """Supported where clipping and scheduling each make fewer seeds get worse, refuted where neither makes fewer by the
    margin."""
    usual = arms["shape"].sel(arm="unchanged")
    clipped, scheduled = (
        difference(arms["shape"].sel(arm=name), usual) for name in ("gradient_clipped", "learning_rate_decays")
    )
    both = {"clipping": clipped, "scheduling": scheduled}
    helps = [name for name, one in both.items() if one.high < 0]
    useless = all(one.low > -MARGIN for one in both.values())
    verdict: Verdict = "supported" if len(helps) == 2 else "refuted" if useless and not helps else "depends"
    before = ""
    if found.drops is not None:
        names = {
            "gradient_clipped": "with the gradient clipped",
            "update_clipped": "with the update clipped",
            "learning_rate_decays": "with a decaying rate",
        }
        counts = [f"{_count(found.drops.arms, name)} {words}" for name, words in names.items()]
        before = "; of states before a drop get worse again: " + ", ".join(counts)
    return Claim(
        CASE, "f", "scheduling and clipping help", verdict,
        f"share of seeds that get worse at learning rate {found.edge:.3g} with gradients clipped at their usual norm, "
        "less the share unchanged",
        *clipped,
        f"the same with a decaying rate: {_between(scheduled)}; unchanged get worse: "
        f"{_count(arms, 'unchanged')}{before}",
        f"clearly fewer get worse from the start with {_listed(helps)}"
        + (f", not clearly with {_listed(rest)}" if (rest := [name for name in both if name not in helps]) else ""),
    )  # fmt: skip


def _changed(name: str) -> str:
    return name if name == "unchanged" else f"with {name.replace('_', ' ')}"


def _listed(names: list[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names) or "none"


def _count(arms: xr.Dataset, name: str) -> str:
    flags = arms["shape"].sel(arm=name)
    return f"{int(flags.sum())} of {flags.size}"


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """Median with its interval by order statistics: (median, low, high)."""
    found = median_over_seeds(xr.DataArray(np.asarray(values, float), dims="seed"))
    return float(found["median"]), float(found["low"]), float(found["high"])
