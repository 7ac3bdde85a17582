"""Loss and sharpness along training, for a few learning rates, against the threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.arguments import DRAWABLE, NUMBERS, expects, optional, trajectories
from lossland.figures import style
from lossland.figures.labels import head, label_ends, name_with_units, number, scale_axis, settle
from lossland.figures.reading import choose_values, curve_axis, curves, grid_axes, ran, with_grid
from lossland.sweeps.trajectories import sweep_of

Values = Sequence[float] | np.ndarray
DEPTH = 1e12
"""A log axis of losses spans at most this factor."""
ESCAPE = 1e3
"""A diverging loss is followed up to this many times the highest start."""


@expects(ax=DRAWABLE, runs=trajectories("step"), values=optional(NUMBERS))
def plot_loss(ax: Axes, runs: xr.Dataset, values: Values | None = None) -> None:
    """Draw the training loss over steps for a few learning rates, on a log axis where it is positive.

    Each curve is the median over seeds with the interval of the median as a band (one seed: the run itself; select it
    with `runs.sel(seed=4)`). Learning rates rise from light to dark, each with its own line style. A curve that
    diverges ends with a cross where it leaves the picture.

    Args:
        ax: where to draw; labels stand to the right of its frame.
        runs: what `ll.run` returns, with one axis left to vary (the learning rate, if it is there).
        values: grid values to draw, at most five; None chooses some below, at and above the critical learning rate.

    Raises:
        ValueError: if the loss was not recorded, for a value that is not on the grid, for more than five, and for a
            second axis (naming it, and how to select).
    """
    whole = with_grid(runs)
    with style.house_style():
        _plot(ax, whole, "loss", _chosen(whole, values))


@expects(ax=DRAWABLE, runs=trajectories("step"), values=optional(NUMBERS))
def plot_sharpness(ax: Axes, runs: xr.Dataset, values: Values | None = None) -> None:
    """Draw the sharpness over steps for a few learning rates, against the threshold above which training is unstable.

    Where the threshold is known the curves show sharpness / threshold, so that one line at 1 is the threshold of all of
    them; otherwise the sharpness itself (adaptive optimizers, whose threshold is one of the preconditioned sharpness).
    Curves as in `plot_loss`.

    Args:
        ax: where to draw; labels stand to the right of its frame.
        runs: what `ll.run` returns, with one axis left to vary (the learning rate, if it is there).
        values: grid values to draw, at most five; None chooses as `plot_loss` does.

    Raises:
        ValueError: if the sharpness was not recorded, and as `plot_loss`.
    """
    whole = with_grid(runs)
    name = sharpness_record(whole)
    if name is None:
        raise ValueError("runs: the sharpness was not recorded; run with probes=['loss', 'sharpness']")
    with style.house_style():
        _plot(ax, whole, name, _chosen(whole, values))


@expects(runs=trajectories("step"), values=optional(NUMBERS))
def curves_figure(runs: xr.Dataset, values: Values | None = None) -> Figure:
    """Compose loss over steps and, below it, sharpness / threshold over steps, for a few learning rates.

    Where the sharpness was not recorded there is only the loss. Where there are more axes than the learning rate, the
    middle value of each is taken, and the title names it; `runs.sel(...)` takes another.

    Returns:
        A matplotlib figure that belongs to no window; see `save`.

    Raises:
        ValueError: as `plot_loss`.
    """
    whole = with_grid(runs)
    others = [name for name in grid_axes(whole) if name != curve_axis(whole)]
    whole = whole.isel({name: whole.sizes[name] // 2 for name in others})
    chosen = _chosen(whole, values)
    record = sharpness_record(whole)
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.4 if record is None else 3.9), layout="constrained")
        head(figure, curves_title(whole, chosen), curves_note(whole))
        panels = figure.subplots(1 if record is None else 2, 1, sharex=True, squeeze=False)[:, 0]
        shown = _plot(panels[0], whole, "loss", chosen)
        if record is not None:
            shown = max(shown, _plot(panels[1], whole, record, chosen, heading=False))
            scale_axis(panels[1], "x", 0, shown, False, whole=True)
            panels[0].set_xlabel("")
            panels[0].tick_params(labelbottom=False)
        settle(figure)
    return figure


def curves_title(runs: xr.Dataset, values: Values) -> str:
    """Say in one sentence what happens at the largest learning rate drawn that survives; arguments of `plot_loss`."""
    problem = str(runs.attrs.get("problem", "runs"))
    axis = curve_axis(runs)
    fixed = [name for name in sweep_of(runs).axes if name not in runs.dims and name in runs.coords]
    place = "".join(f", {name.replace('_', ' ')} {number(runs[name].item())}" for name in fixed)
    loss = curves(runs, "loss", values)
    surviving = np.flatnonzero((loss["diverging"] <= 0.5).values)
    if not len(surviving):
        name = axis.replace("_", " ")
        which = f"{name} {number(values[0])}" if len(values) == 1 else f"every {name} drawn"
        return f"{problem}{place}: {which} diverges"
    last = int(surviving[-1])
    at = f"{problem}{place}: at {axis.replace('_', ' ')} {number(values[last])}"
    record = sharpness_record(runs)
    if record != "relative_sharpness":
        ends = loss["median"].isel({axis: last, "step": [0, -1]}).values
        return f"{at} the loss goes from {number(ends[0])} to {number(ends[1])}"
    start, end = curves(runs, record, values)["median"].isel({axis: last, "step": [0, -1]}).values
    before, after = (number(float(f"{value:.2g}")) for value in (start, end))
    if before == after:
        return f"{at} the sharpness stays at {before} times the threshold"
    return f"{at} the sharpness goes from {before} to {after} times the threshold"


def curves_note(runs: xr.Dataset) -> str:
    """Say what was run and what a curve and its band are."""
    seeds = runs["seed"].values
    if len(seeds) == 1:
        return f"{ran(runs)} Seed {seeds[0]}."
    coverage = curves(runs, "loss", choose_values(runs)[:1]).attrs["coverage"]
    return f"{ran(runs)} Curves: medians over seeds with {coverage:.0%} intervals."


def sharpness_record(runs: xr.Dataset) -> str | None:
    """Return the record that shows sharpness best: relative to the threshold, plain, or None if there is neither."""
    if "relative_sharpness" in runs and np.isfinite(runs["relative_sharpness"]).any():
        return "relative_sharpness"
    return "sharpness" if "sharpness" in runs else None


def _chosen(runs: xr.Dataset, values: Values | None) -> np.ndarray:
    if values is None:
        return choose_values(runs)
    chosen = np.sort(np.atleast_1d(np.asarray(values, float)))
    if chosen.ndim != 1:
        raise ValueError(f"values: expected a list of values of {curve_axis(runs)}, got shape {chosen.shape}")
    if not 1 <= len(chosen) <= len(style.CURVE_COLORS):
        most = len(style.CURVE_COLORS)
        raise ValueError(f"values: expected 1 to {most} values of {curve_axis(runs)}, got {len(chosen)}")
    # A value such as 0.1 means the grid's 0.09999999.
    grid = runs[curve_axis(runs)].values.astype(float)
    nearest = grid[np.abs(grid[:, None] - chosen).argmin(0)]
    return np.where(np.isclose(nearest, chosen, rtol=1e-6, atol=0), nearest, chosen)


def _plot(ax: Axes, runs: xr.Dataset, name: str, values: np.ndarray, heading: bool = True) -> float:
    """Draw the curves of a record; returns the last step shown."""
    drawn = curves(runs, name, values)
    axis = curve_axis(runs)
    steps = drawn["step"].values.astype(float)
    low, high, log = _limits(drawn, axis, name)
    medians = [drawn["median"].isel({axis: index}).values for index in range(len(values))]
    leaves_at = drawn["leaves_at"].values if name == "loss" else np.full(len(values), np.inf)
    ends = [_end(steps, median, when, high, log) for median, when in zip(medians, leaves_at, strict=True)]
    style.dress(ax)
    # Where every curve leaves early the rest of the steps would be empty paper.
    shown = steps[-1]
    if all(leaves for _, leaves in ends):
        shown = min(shown, 1.5 * max(*(x for (x, _), _ in ends), steps[1]))
    scale_axis(ax, "x", 0, shown, False, whole=True)
    scale_axis(ax, "y", low, high, log)
    ax.set_xlabel("step", fontsize=style.TEXT)
    titles = {"loss": "training loss", "relative_sharpness": "sharpness / threshold"}
    ax.set_ylabel(titles.get(name) or name_with_units(runs[name]), fontsize=style.TEXT)
    labels = []
    if name == "relative_sharpness":
        ax.axhline(1, color=style.GREY, linewidth=0.8, zorder=1, label="threshold")
        labels.append((1.0, "threshold", style.GREY))
    looks = _looks(len(values))
    for index, (value, median, (end, leaves)) in enumerate(zip(values, medians, ends, strict=True)):
        curve, (color, line) = drawn.isel({axis: index}), looks[index]
        if curve["num_seeds"] > 1:
            # Infinite ends are drawn far outside the picture; left as they are they would leave a gap.
            floor = low / 10 if log else None
            least, most = (np.clip(curve[edge].values, floor, 1e3 * high) for edge in ("low", "high"))
            ax.fill_between(steps, least, most, color=color, alpha=0.22, linewidth=0, label=f"{value:g} band")
        ax.plot(steps, median, color=color, linestyle=line, linewidth=1.2, label=f"{value:g}")
        recorded = np.flatnonzero(np.isfinite(median))
        if leaves and len(recorded) and end[0] > steps[recorded[-1]]:
            tail = np.array([[steps[recorded[-1]], median[recorded[-1]]], end])
            ax.plot(tail[:, 0], tail[:, 1], color=color, linestyle=line, linewidth=1.2)
        if leaves:
            cross = {"color": color, "markersize": 5, "markeredgewidth": 0, "clip_on": False, "zorder": 5}
            ax.plot(*end, "X", label=f"{value:g} leaves", **cross)
        diverges = " diverges" if curve["diverging"] > 0.5 else ""
        labels.append((high if leaves else end[1], f"{number(value)}{diverges}", color))
    label_ends(ax, labels, axis.replace("_", " ") if heading else "")
    return shown


def _end(
    steps: np.ndarray, median: np.ndarray, leaves_at: float, high: float, log: bool
) -> tuple[tuple[float, float], bool]:
    """Find where a curve ends in the picture, and whether it leaves there: through the top, or by breaking off.

    A loss that stops being finite between two records goes through the top at the step where it did.
    """
    finite = np.isfinite(median)
    if not finite.any():
        return (steps[0], high), True
    above = np.flatnonzero(finite & (median > high))
    if len(above):
        after = above[0]
        before = after - 1
        with np.errstate(divide="ignore"):
            first, second, top = (np.log(v) if log else v for v in (median[before], median[after], high))
        share = (top - first) / (second - first)
        return (float(steps[before] + share * (steps[after] - steps[before])), high), True
    last = np.flatnonzero(finite)[-1]
    if last == len(steps) - 1:
        return (float(steps[last]), float(median[last])), False
    return ((leaves_at, high) if np.isfinite(leaves_at) else (float(steps[last]), float(median[last]))), True


def _limits(drawn: xr.Dataset, axis: str, name: str) -> tuple[float, float, bool]:
    """Choose low and high end of the axis, and whether it is logarithmic: survivors in full, divergence cut off."""
    surviving = drawn["diverging"].values <= 0.5
    kept = drawn.isel({axis: surviving})
    values = np.concatenate([kept[end].values.ravel() for end in ("median", "low", "high")])
    start = drawn["median"].isel(step=0).values
    values = np.concatenate([values, start, [1.0] if name == "relative_sharpness" else []])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0, False
    top = float(values.max())
    if not surviving.all() and name == "loss" and np.isfinite(start).any():
        top = max(top, ESCAPE * float(np.nanmax(start)))
    elif not surviving.all():
        reached = drawn["median"].values
        top = max(top, min(float(reached[np.isfinite(reached)].max(initial=top)), 2 * top))
    positive = values[values > 0]
    log = bool((values >= 0).all() and len(positive)) and (name == "loss" or top > 20 * float(positive.min()))
    if not log:
        bottom, top = min(0.0, 1.06 * float(values.min())), max(top, 0.0)
        return bottom, top + 0.06 * (top - bottom) if top > bottom else bottom + 1.0, False
    bottom = max(float(positive.min()), top / DEPTH)
    pad = max((top / bottom) ** 0.05, 1.05)
    return bottom / pad, top * pad, True


def _looks(count: int) -> list[tuple[str, object]]:
    """Return colours and line styles of `count` curves, as far apart in lightness as there are."""
    last = len(style.CURVE_COLORS) - 1
    picks = [last - 1] if count == 1 else [round(index * last / (count - 1)) for index in range(count)]
    return [(style.CURVE_COLORS[pick], style.CURVE_STYLES[pick]) for pick in picks]
