"""Late spikes over learning rate, b2 and eps: probability, time, price, with the boundary that theory predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, LogFormatterMathtext, NullLocator

from lossland.arguments import dataset, expects, number, optional
from lossland.figures import style
from lossland.figures.labels import cell_edges, head, scale_axis, settle
from lossland.figures.labels import number as written
from lossland.stability.late_prediction import late_training_scores
from lossland.stability.spike_boundary import spike_boundary

EDGE = style.CURVE_COLORS[1]
DOTTED: Any = (0, (1, 1.3))
NONE: dict[str, Any] = {"facecolor": "white", "edgecolor": "#9AA1AC", "linewidth": 0, "hatch": "....."}
UNKNOWN: dict[str, Any] = {**NONE, "hatch": "xxxx"}
"""Cells without a value: most runs never spike; nothing to count."""
HALO = [Stroke(linewidth=3, foreground="white"), Normal()]
WANTED = ("eps", "b2", "learning_rate")
SHARE = Normalize(0, 1)
LEAST_TIME = 3.0
"""Steps: the darkest of the times."""


@expects(
    measured=dataset("probability", "time", "price", "first_spike", source="late_training_map returns"),
    predicted=optional(dataset("probability", "time", source="predict_late_spikes returns")),
    b1=number(least=0, below=1),
)
def late_training_figure(measured: xr.Dataset, predicted: xr.Dataset | None = None, *, b1: float = 0.9) -> Figure:
    """Draw measured maps over learning rate and 1 - b2, one column per eps: probability, time, price.

    Args:
        measured: what `late_training_map` returned, for one factor.
        predicted: what `predict_late_spikes` returned, for that factor: its boundary is drawn
            on the probability, settings on the wrong side are marked, its times get a row of their own.
        b1: Adam's, for the boundary of bursts on a quadratic.

    Raises:
        ValueError: unless the axes are learning_rate, b2 and, if any other, eps.
    """
    dims = set(map(str, measured["probability"].dims))
    if not {"learning_rate", "b2"} <= dims <= set(WANTED):
        raise ValueError(f"measured: expected the axes learning_rate, b2 and eps, got {', '.join(sorted(dims))}")
    begin, last = float(measured.attrs["late_after"]), float(measured.attrs["num_steps"])
    scores = None if predicted is None else late_training_scores(measured, predicted)
    price = _planes(measured["price"])
    dearest = max(float(price.where(np.isfinite(price), 1).max()), 10.0)
    hasty = LogNorm(LEAST_TIME, last - begin), style.HEAT.reversed()
    rows: list[tuple[str, xr.DataArray, Any, Any]] = [
        ("probability of\na late spike", _planes(measured["probability"]), SHARE, style.HEAT),
        ("steps to the\nfirst one", _planes(measured["time"]) - begin, *hasty),
    ]
    if predicted is not None:
        rows.append(("the same,\npredicted", _planes(predicted["time"]) - begin, *hasty))
    rows.append(("final loss / best\nat this rate", price, LogNorm(1, dearest), style.HEAT))
    panels = price["eps"].values if "eps" in dims else []
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 1.05 + 1.22 * len(rows)), layout="constrained")
        head(figure, _title(measured, scores), _note(measured, predicted, begin, last))
        grid = figure.subplots(len(rows), price.sizes["eps"], squeeze=False, sharex=True, sharey=True)
        for row, (words, planes, norm, colors) in enumerate(rows):
            mesh: Any = None
            for column, ax in enumerate(grid[row]):
                mesh = _shade(ax, planes.isel(eps=column), norm, colors)
                if row == 0 and len(panels):
                    ax.set_title(f"ε = {written(panels[column])}", fontsize=style.TEXT)
                if row == 0:
                    ax.axhline(spike_boundary(b1), color="white", linewidth=2, alpha=0.7)
                    ax.axhline(spike_boundary(b1), color=style.INK, linewidth=0.8, linestyle=DOTTED)
                if row == 0 and predicted is not None and scores is not None:
                    _boundary(ax, _planes(predicted["probability"]).isel(eps=column))
                    _mark(ax, _planes(scores["right_side"]).isel(eps=column))
                if column == 0:
                    ax.set_ylabel("1 − β₂", fontsize=style.TEXT)
                if row == len(rows) - 1:
                    ax.set_xlabel("learning rate", fontsize=style.TEXT)
            bar = figure.colorbar(mesh, ax=grid[row].tolist(), pad=0.01, aspect=11, fraction=0.03)
            _dress_bar(bar, words)
        _key(figure, predicted is not None)
        settle(figure)
    return figure


def _planes(values: xr.DataArray) -> xr.DataArray:
    values = values if "eps" in values.dims else values.expand_dims("eps")
    return values.transpose(*WANTED).sortby("learning_rate").sortby("b2", ascending=False)


def _sides(plane: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Borders of the cells in learning rate and 1 - b2, both rising."""
    return cell_edges(plane["learning_rate"].values, True), cell_edges(1 - plane["b2"].values, True)


def _shade(ax: Axes, plane: xr.DataArray, norm: Any, colors: Any) -> Any:
    across, up = _sides(plane)
    # A spike in the first steps of late training is as early as the scale goes.
    values = np.where(np.isfinite(plane.values), np.clip(plane.values, norm.vmin, norm.vmax), np.nan)
    mesh = ax.pcolormesh(across, up, np.ma.masked_invalid(values), norm=norm, cmap=colors, rasterized=True)
    for row, column in zip(*np.nonzero(np.isnan(values)), strict=True):
        look = NONE if np.isposinf(plane.values[row, column]) else UNKNOWN
        left, low = float(across[column]), float(up[row])
        ax.add_patch(Rectangle((left, low), float(across[column + 1]) - left, float(up[row + 1]) - low, **look))
    for which, edges in (("x", across), ("y", up)):
        scale_axis(ax, which, edges[0], edges[-1], True)  # type: ignore[arg-type]
        axis: Any = ax.xaxis if which == "x" else ax.yaxis
        powers = np.arange(np.ceil(np.log10(edges[0])), np.floor(np.log10(edges[-1])) + 1)
        if len(powers) > 1:  # panels are small
            axis.set_major_locator(FixedLocator((10.0**powers).tolist()))
            axis.set_major_formatter(LogFormatterMathtext())
    style.dress(ax)
    return mesh


def _boundary(ax: Axes, plane: xr.DataArray) -> None:
    """Draw the sides of cells between those that most runs are predicted to spike in and the others."""
    across, up = _sides(plane)
    flags = plane.values > 0.5
    upright = [
        [(across[column + 1], up[row]), (across[column + 1], up[row + 1])]
        for row, column in zip(*np.nonzero(flags[:, 1:] != flags[:, :-1]), strict=True)
    ]
    level = [
        [(across[column], up[row + 1]), (across[column + 1], up[row + 1])]
        for row, column in zip(*np.nonzero(flags[1:] != flags[:-1]), strict=True)
    ]
    looks: dict[str, Any] = {"linewidths": 1.5, "capstyle": "projecting", "path_effects": HALO, "zorder": 4}
    ax.add_collection(LineCollection(upright + level, colors=EDGE, **looks))


def _mark(ax: Axes, right: xr.DataArray) -> None:
    """Cross out the settings on the wrong side of the boundary."""
    row, column = np.nonzero(right.values == 0)
    x, y = right["learning_rate"].values[column], 1 - right["b2"].values[row]
    ax.plot(x, y, "x", color="white", markersize=4.6, markeredgewidth=2.2, zorder=5)
    ax.plot(x, y, "x", color=EDGE, markersize=3.6, markeredgewidth=1.1, zorder=6)


def _dress_bar(bar: Any, words: str) -> None:
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=style.SMALL, width=0.4, length=2)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(words, fontsize=style.SMALL)


def _title(measured: xr.Dataset, scores: xr.Dataset | None) -> str:
    likely = float((measured["probability"] > 0.5).mean())
    said = f"Adam spikes late at {likely:.0%} of the settings"
    return said if scores is None else f"{said}; {float(scores['right']):.0%} are predicted right from states before"


def _note(measured: xr.Dataset, predicted: xr.Dataset | None, begin: float, last: float) -> str:
    runs, seeds = int(measured["first_spike"].size), measured.sizes["seed"]
    factor = measured["visible"].item() if "visible" in measured.coords else None
    by = "" if factor is None else f" by a factor of {written(factor)}"
    text = (
        f"{runs} runs of {last:.0f} steps, {seeds} seeds at each point. A late spike raises the loss{by} after step "
        f"{begin:.0f}. Dotted cells: most runs have none. Medians over seeds."
    )
    if predicted is None:
        return text
    return (
        f"{text} Predicted from states of {predicted.sizes['seed']} other seeds up to step {begin:.0f}: when the "
        "second moment will have forgotten enough at this ε, and whether the burst can be seen; nothing is "
        "fitted to the map."
    )


def _key(figure: Figure, expected: bool) -> None:
    lines = [Line2D([], [], color=style.INK, linewidth=0.8, linestyle=DOTTED)]
    words = ["Adam bursts on a quadratic below"]
    if expected:
        cross = Line2D([], [], color=EDGE, marker="x", markersize=3.6, markeredgewidth=1.1, linewidth=0)
        lines = [Line2D([], [], color=EDGE, linewidth=1.5), cross, *lines]
        words = ["predicted boundary", "predicted wrongly", *words]
    height = 72 * figure.get_figheight()
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - 2 * style.SMALL / height))  # room between title and panels
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.004, 1 - 2.1 * (style.TEXT + 1) / height)}
    legend = figure.legend(lines, words, frameon=False, fontsize=style.SMALL, ncols=3, borderaxespad=0, **place)
    legend.set_in_layout(False)
