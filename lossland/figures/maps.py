"""Stability maps: what becomes of training over a grid, with the boundaries that the sharpness predicts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.transforms import blended_transform_factory

from lossland.arguments import DRAWABLE, dataset, either, expects, trajectories
from lossland.figures import style
from lossland.figures.labels import (
    NBSP,
    axes_size,
    cell_edges,
    edge_number,
    head,
    log_spaced,
    name_with_units,
    number,
    points_above,
    scale_axis,
    settle,
    text_width,
)
from lossland.figures.reading import RATE, boundaries, grid_axes, ran, with_grid
from lossland.stability.maps import OUTCOMES, stability_map

LINES: dict[str, Any] = {"predicted": (0, (4, 1.6)), "catapult_bound": (0, (1, 1.2)), "rises": "-", "diverges": "-"}
"""Line styles of boundaries: theory is broken, measurement solid."""
MEASURED = ("rises", "diverges")
MARKERS: dict[str, dict[str, Any]] = {
    "predicted": {"marker": "D", "markersize": 3.4, "markerfacecolor": "white"},
    "catapult_bound": {"marker": "s", "markersize": 3.4, "markerfacecolor": "white"},
    "rises": {"marker": "o", "markersize": 4, "markerfacecolor": style.OUTCOME_COLORS["rises_and_recovers"]},
    "diverges": {"marker": "o", "markersize": 4, "markerfacecolor": style.OUTCOME_COLORS["diverges"]},
}
ROW = 9.5
"""Points from one row above a map to the next."""
KEY, GAP = 17, 7
"""Points that the sample of a key takes with the space after it, and the space between entries."""
MISSING: dict[str, Any] = {"facecolor": "white", "edgecolor": "#9AA1AC", "hatch": "xxxx"}
"""What was not run is no colour of an outcome."""

MAPPED = either(trajectories("step"), dataset("diverges", "never_rises", source="ll.stability_map makes of it"))


@expects(ax=DRAWABLE, runs=MAPPED)
def plot_stability_map(ax: Axes, runs: xr.Dataset) -> None:
    """Draw the outcomes of training over a grid of one or two axes.

    One axis: the fractions of seeds that never rise, rise and recover, and diverge, stacked over the grid; each value
    owns the cell around it. Above stand, row by row, the learning rates at which training changes: predicted
    (sharpness at step 0 equals the threshold: 2/sharpness for gradient descent; the catapult bound 4/sharpness) and
    measured (a step raises the loss; divergence), each with median and interval over seeds, its median carried down
    through the map. Two axes: the fraction that diverges (that rises, where none does) as a heat map, light to dark,
    with the same boundaries as lines; the measured divergence is the heat itself. Points that were not run are hatched.

    Args:
        ax: where to draw; rows and labels stand outside its frame, above and to the right.
        runs: what `ll.run` returns, or what `ll.stability_map` makes of it (it holds no boundaries, so none is drawn).

    Raises:
        ValueError: for no axis, or more than two (naming them, and how to select), or without the probe "loss".
    """
    fractions, found = _read(runs)
    axes = grid_axes(fractions)
    with style.house_style():
        style.dress(ax)
        if len(axes) == 1:
            _plot_line(ax, fractions, found, axes[0])
        else:
            _plot_plane(ax, fractions, found, *_oriented(axes))


@expects(runs=MAPPED)
def stability_map_figure(runs: xr.Dataset) -> Figure:
    """Compose the stability map of runs with a title that says what is seen and a note of what was run.

    Args:
        runs: what `ll.run` returns, over one or two axes.

    Returns:
        A matplotlib figure that belongs to no window; see `save`.

    Raises:
        ValueError: as `plot_stability_map`.
    """
    fractions, _ = _read(runs)
    plane = len(grid_axes(fractions)) == 2
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 3.0 if plane else 2.7), layout="constrained")
        head(figure, map_title(runs), map_note(runs))
        plot_stability_map(figure.add_subplot(), runs)
        settle(figure)
    return figure


def map_title(runs: xr.Dataset) -> str:
    """Say in one sentence where training diverges: "digits: diverges above learning rate 0.82 (2/sharpness = 0.41)"."""
    fractions, found = _read(runs)
    problem = str(runs.attrs.get("problem", "runs"))
    axes = grid_axes(fractions)
    diverging = fractions["diverges"]
    if "diverges" not in found["boundary"]:
        return f"{problem}: {float(diverging.mean()):.0%} of runs diverge"
    rates = _computed(fractions, RATE)
    if not len(rates):
        return f"{problem}: nothing was run yet"
    if diverging.size == 1:
        count = int(fractions["num_runs"].item())
        lost = round(diverging.item() * count)
        what = f"{lost} of {count} seeds diverge"
        if count == 1:
            what = f"the run {'diverges' if lost else 'does not diverge'}"
        return f"{problem}: at learning rate {number(rates[0])} {what}"
    if not (diverging > 0).any():
        return f"{problem}: no run diverges up to learning rate {number(rates[-1])}{_predicted(found)}"
    critical = found["median"].sel(boundary="diverges")
    if len(axes) == 1:
        what = f"diverges {_where_diverges(critical.item(), rates)}"
        if np.isinf(critical):
            what = f"at most {float(diverging.max()):.0%} of seeds diverge up to learning rate {number(rates[-1])}"
        return f"{problem}: {what}{_predicted(found)}"
    (other,) = (name for name in axes if name != RATE)
    whole = (fractions["num_runs"] > 0).all(RATE).values
    if not whole.any():
        return f"{problem}: {float(diverging.mean()):.0%} of runs diverge"
    ends = critical.isel({other: whole}).isel({other: [0, -1]})
    clauses = [_where_diverges(value, rates) for value in ends.values]
    places = [f"{_words(other)} {number(value)}" for value in ends[other].values]
    if clauses[0] == clauses[1]:
        return f"{problem}: diverges {clauses[0]} at {' and '.join(dict.fromkeys(places))}"
    second = clauses[1].replace(f"{_words(RATE)} ", "") if _words(RATE) in clauses[0] else clauses[1]
    return f"{problem}: diverges {clauses[0]} at {places[0]}, {second} at {places[1]}"


def map_note(runs: xr.Dataset) -> str:
    """Say what was run and what the bars are, and what is missing.

    Fewer seeds than a 95 % interval needs make it the full range, with the coverage that it has.
    """
    if "status" not in runs:
        return " × ".join(f"{runs.sizes[axis]} {_words(axis)}s" for axis in grid_axes(runs))
    whole = with_grid(runs)
    axes, seeds = grid_axes(whole), whole.sizes["seed"]
    text = ran(whole)
    coverage = boundaries(whole).attrs.get("coverage", 0.0)
    if seeds > 1 and coverage and len(axes) == 1 and whole.sizes[axes[0]] > 1:
        text += f" Bars: medians over seeds with {coverage:.0%} intervals."
    if len(axes) == 2 and seeds > 1:
        text += " Lines: medians over seeds."
    return text


def _read(runs: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return (outcome fractions over the grid, boundaries): whatever of the two the argument holds."""
    if isinstance(runs, xr.Dataset) and set(OUTCOMES) <= set(runs) and "status" not in runs:
        fractions, found = runs, xr.Dataset(coords={"boundary": np.array([], str)})
        for name in grid_axes(fractions):
            fractions = fractions.sortby(name)
    else:
        whole = with_grid(runs)
        _check_axes(grid_axes(whole), whole)
        fractions, found = stability_map(whole), boundaries(whole)
    _check_axes(grid_axes(fractions), fractions)
    return fractions, found


def _check_axes(axes: tuple[str, ...], data: xr.Dataset) -> None:
    if not axes:
        raise ValueError("runs: a stability map shows one or two axes, got none; keep one: runs.isel(scale=[0])")
    if len(axes) > 2:
        extra = ", ".join(f"{name}={data[name].values[0]:g}" for name in axes if name != RATE)
        raise ValueError(
            f"runs: a stability map shows one or two axes, got {len(axes)}: {', '.join(axes)}; select values of the "
            f"others, such as runs.sel({extra})"
        )


def _oriented(axes: tuple[str, ...]) -> tuple[str, str]:
    """Return (x, y): the learning rate stands upright, so that boundaries are functions of the other axis."""
    first, second = axes
    return (second, first) if second != RATE else (first, second)


def _plot_line(ax: Axes, fractions: xr.Dataset, found: xr.Dataset, name: str) -> None:
    values = fractions[name].values.astype(float)
    log = _is_log(name, values)
    edges = cell_edges(values, log)
    scale_axis(ax, "x", edges[0], edges[-1], log)
    scale_axis(ax, "y", 0, 1, False, most=2)
    ax.set_xlabel(name_with_units(fractions[name]), fontsize=style.TEXT)
    ax.set_ylabel("fraction of seeds", fontsize=style.TEXT)
    crossings = found["median"].values if "median" in found else np.zeros(0)
    rows = _plot_rows(ax, found, _computed(fractions, name))
    base = np.zeros(len(values))
    homeless = []
    for outcome in OUTCOMES:
        top = base + fractions[outcome].values
        look = _outcome_look(outcome)
        ax.stairs(top, edges, baseline=base, fill=True, linewidth=0, label=outcome, **look)
        occurs = np.nansum(fractions[outcome].values) > 0
        layouts = (_words(outcome), _words(outcome).replace(" ", "\n"))
        if occurs and not any(_label_band(ax, outcome, words, edges, base, top, crossings) for words in layouts):
            homeless.append((Rectangle((0, 0), 0, 0, linewidth=0, **look), _words(outcome)))
        base = top
    if (missing := np.isnan(base)).any():
        ax.stairs(np.where(missing, 1.0, np.nan), edges, fill=True, linewidth=0, label="not run", **MISSING)
        homeless.append((Rectangle((0, 0), 0, 0, linewidth=0, **MISSING), "not run"))
    _plot_key(ax, homeless, rows)


def _plot_rows(ax: Axes, found: xr.Dataset, values: np.ndarray) -> int:
    """Draw one row per boundary above the map: name, median with interval, value; returns how many."""
    names = [str(name) for name in found["boundary"].values]
    above = points_above(ax)
    at_row = blended_transform_factory(ax.transData, above)
    beside = blended_transform_factory(ax.transAxes, above)
    low_end, high_end = ax.get_xlim()
    for row, name in enumerate(reversed(names)):
        here = found.sel(boundary=name)
        median, low, high = (float(here[statistic]) for statistic in ("median", "low", "high"))
        if np.isnan(median):
            continue
        lift = (row + 1) * ROW
        words: dict[str, Any] = {"ha": "right", "va": "center_baseline", "fontsize": style.TEXT, "transform": beside}
        ax.text(-0.015, lift, str(here["label"].values), **words)
        ax.text(1.02, lift, edge_number(median, values), **{**words, "ha": "left"})
        ax.plot([0, 1], [lift, lift], color=style.RULE, linewidth=0.5, transform=beside, clip_on=False, zorder=1)
        ink = {"color": style.INK, "clip_on": False}
        interval = np.clip([low, high], low_end, high_end)
        if interval[0] < interval[1]:
            ax.plot(interval, [lift, lift], linewidth=0.9, transform=at_row, label=f"{name} interval", **ink)
        if not low_end <= median <= high_end:
            # The median lies off the grid: an arrowhead at that end of its row.
            place, marker = (0.985, ">") if median > high_end else (0.015, "<")
            ax.plot([place], [lift], marker, markersize=3.5, transform=beside, label=f"{name} off the grid", **ink)
            continue
        # Black on a white ground is seen on every colour of the map, in its gaps as well.
        whole = {"transform": ax.get_xaxis_transform(), "zorder": 3}
        ax.plot([median, median], [0, 1], color="white", linewidth=1.9, alpha=0.9, **whole)
        ax.plot([median, median], [0, 1], color=style.INK, linewidth=1.1, linestyle=LINES[name], label=name, **whole)
        ax.plot([median, median], [0, lift], linewidth=0.7, linestyle=LINES[name], transform=at_row, **ink)
        dot = {"transform": at_row, "zorder": 5, "markeredgewidth": 0.8, "label": f"{name} median"}
        ax.plot([median], [lift], **ink, **dot, **MARKERS[name])
    return len(names)


def _plot_plane(ax: Axes, fractions: xr.Dataset, found: xr.Dataset, x: str, y: str) -> None:
    places = {name: fractions[name].values.astype(float) for name in (x, y)}
    edges = {}
    sides: tuple[tuple[str, Literal["x", "y"]], ...] = ((x, "x"), (y, "y"))
    for name, which in sides:
        log = _is_log(name, places[name])
        edges[name] = cell_edges(places[name], log)
        scale_axis(ax, which, edges[name][0], edges[name][-1], log)
    ax.set_xlabel(name_with_units(fractions[x]), fontsize=style.TEXT)
    ax.set_ylabel(name_with_units(fractions[y]), fontsize=style.TEXT)
    heat, shaded = fractions["diverges"].transpose(y, x).values, "fraction of seeds that diverge"
    if not (heat > 0).any():  # a plane of one colour would say nothing
        heat, shaded = 1 - fractions["never_rises"].transpose(y, x).values, "fraction of seeds whose loss rises"
    keys: list[tuple[Artist, str]] = []
    if np.isnan(heat).any():
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, linewidth=0, zorder=0, label="not run", **MISSING))
    mesh = ax.pcolormesh(
        edges[x], edges[y], np.ma.masked_invalid(heat), cmap=style.HEAT, vmin=0, vmax=1, rasterized=True, zorder=1
    )
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(mesh, ax=ax, aspect=28, pad=0.02, ticks=[0, 0.5, 1])
    bar.set_label(shaded, fontsize=style.TEXT)
    bar.ax.tick_params(labelsize=style.TEXT, width=0.6, length=3)
    for name in ("predicted", "catapult_bound", "rises"):
        if name not in found["boundary"]:
            continue
        look = _plane_look(name)
        median = found["median"].sel(boundary=name).values
        if name in MEASURED:
            # A measurement belongs to its whole cell; where it lies off the grid (0 or inf) there is nothing to draw.
            steps = np.where(np.isfinite(median) & (median > 0), median, np.nan)
            ax.stairs(steps, edges[x], baseline=None, label=name, zorder=2, **(look | {"edgecolor": look["color"]}))
        else:
            ax.plot(places[x], median, label=name, zorder=3, marker="." if len(median) == 1 else "", **look)
        keys.append((Line2D([], [], **look), str(found["label"].sel(boundary=name).values)))
    rising = 1 - fractions["never_rises"].transpose(y, x).values
    if y != RATE and min(rising.shape) > 1 and np.nanmin(rising) < 0.5 < np.nanmax(rising):
        look = _plane_look("rises")
        rising = np.ma.masked_invalid(rising)
        lines = ax.contour(places[x], places[y], rising, [0.5], colors=[look["color"]], linewidths=look["linewidth"])
        lines.set(path_effects=look["path_effects"])
        keys.append((Line2D([], [], **look), "loss rises"))
    if np.isnan(heat).any():
        keys.append((Rectangle((0, 0), 0, 0, linewidth=0, **MISSING), "not run"))
    _plot_key(ax, keys, 0)


def _plane_look(name: str) -> dict[str, Any]:
    # A measured rise has the colour of its outcome and is broad enough to show beneath a prediction that agrees;
    # ink and white edges are seen on both ends of the heat.
    measured = name == "rises"
    color, halo, width = (MARKERS[name]["markerfacecolor"], style.INK, 2.4) if measured else (style.INK, "white", 1.1)
    effects = [Stroke(linewidth=width + 1, foreground=halo), Normal()]
    return {"color": color, "linewidth": width, "linestyle": LINES[name], "path_effects": effects}


def _outcome_look(outcome: str) -> dict[str, Any]:
    return {
        "facecolor": style.OUTCOME_COLORS[outcome],
        "edgecolor": style.HATCH_COLORS[outcome],
        "hatch": style.OUTCOME_HATCHES[outcome],
    }


def _label_band(
    ax: Axes, outcome: str, words: str, edges: np.ndarray, low: np.ndarray, high: np.ndarray, crossings: np.ndarray
) -> bool:
    """Write words inside the area of an outcome, where it is tallest and no line crosses; False if they fit nowhere."""
    width, height = (0.85 * size for size in axes_size(ax))  # the layout may still shrink the axes
    rows = words.split("\n")
    half, needed = 0.5 * (max(map(text_width, rows)) + 6) / width, 1.4 * style.TEXT * len(rows) / height
    to_axes = ax.transScale + ax.transLimits
    borders = to_axes.transform(np.column_stack([edges, np.zeros_like(edges)]))[:, 0]
    inside = crossings[(crossings > edges[0]) & (crossings < edges[-1])]
    lines = to_axes.transform(np.column_stack([inside, np.zeros_like(inside)]))[:, 0]
    middle = np.average((borders[1:] + borders[:-1]) / 2, weights=np.nan_to_num(high - low) * np.diff(borders))
    found: list[tuple[float, float, float, float]] = []
    for center in np.linspace(half, 1 - half, 81) if half < 0.5 else ():
        cells = (borders[1:] > center - half) & (borders[:-1] < center + half)
        floor, ceiling = low[cells].max(), high[cells].min()
        if ceiling - floor >= needed and not (np.abs(lines - center) < half).any():
            # Tallest first; among equals the middle of the area.
            found.append((round(ceiling - floor, 2), -abs(center - middle), center, (floor + ceiling) / 2))
    if not found:
        return False
    ax.text(
        *max(found)[2:],
        words,
        transform=ax.transAxes,
        ha="center",
        va="center_baseline",
        fontsize=style.TEXT,
        color=style.LABEL_COLORS[outcome],
        zorder=4,
        bbox={"boxstyle": "square,pad=0.2", "facecolor": style.OUTCOME_COLORS[outcome], "edgecolor": "none"},
    )
    return True


def _plot_key(ax: Axes, entries: list[tuple[Artist, str]], rows: int) -> None:
    """Write samples and names above the map, over the given number of rows, in as many lines as its width asks for."""
    above, room = points_above(ax), 1.25 * axes_size(ax)[0]
    lines: list[list[tuple[Artist, str]]] = []
    used = 0.0
    for sample, words in entries:
        needed = KEY + text_width(words)
        if not lines or used + needed > room:
            lines.append([])
            used = 0.0
        lines[-1].append((sample, words))
        used += needed + GAP
    for row, line in enumerate(reversed(lines)):
        x, y = 0.0, (rows + 1 + row) * ROW
        for sample, words in line:
            if isinstance(sample, Rectangle):
                sample.set(bounds=(x, y - 3, KEY - 3, 6), transform=above, clip_on=False)
                ax.add_patch(sample)
            elif isinstance(sample, Line2D):
                sample.set(data=([x, x + KEY - 3], [y, y]), transform=above, clip_on=False, solid_capstyle="butt")
                ax.add_line(sample)
            text = ax.text(x + KEY, y, words, transform=above, ha="left", va="center_baseline", fontsize=style.TEXT)
            # One entry holds the line's height; a long line may reach over a colour bar without pushing that away.
            sample.set_in_layout(x == 0)
            text.set_in_layout(x == 0)
            x += KEY + text_width(words) + GAP


def _computed(fractions: xr.Dataset, name: str) -> np.ndarray:
    """Return the values of an axis at which anything was run."""
    others = [dim for dim in fractions["num_runs"].dims if dim != name]
    return fractions[name].values[(fractions["num_runs"] > 0).any(others).values]


def _is_log(name: str, values: np.ndarray) -> bool:
    return bool((name == RATE and values[0] > 0) or log_spaced(values))


def _where_diverges(critical: float, rates: np.ndarray) -> str:
    if critical == 0:
        return f"at every learning rate from {number(rates[0])}"
    return f"nowhere up to {number(rates[-1])}" if np.isinf(critical) else f"above learning rate {number(critical)}"


def _predicted(found: xr.Dataset) -> str:
    if "predicted" not in found["boundary"] or found["median"].ndim > 1:  # one value per point of the other axis
        return ""
    here = found.sel(boundary="predicted")
    label = str(here["label"].values)
    return f" ({label if label.endswith('/sharpness') else 'predicted'}{NBSP}={NBSP}{number(here['median'].item())})"


def _words(name: str) -> str:
    return name.replace("_", " ")
