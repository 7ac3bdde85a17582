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
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lossland.figures import style
from lossland.figures.labels import cell_edges, head, number, scale_axis, settle
from lossland.stability.spike_boundary import spike_boundary

EDGE = style.CURVE_COLORS[1]
MISSING: dict[str, Any] = {"facecolor": "white", "edgecolor": "#9AA1AC", "linewidth": 0}
HATCHES = {"none": "....", "unknown": "xxxx"}
"""Cells without a value: most runs never spike; nothing to count."""
HALO = [Stroke(linewidth=2.6, foreground="white"), Normal()]


def late_training_figure(measured: xr.Dataset, predicted: xr.Dataset | None = None, *, b1: float = 0.9) -> Figure:
    """Draw measured maps over learning rate and 1 - b2, one column per eps: probability, time, price.

    Args:
        measured: what `stability.late_training.late_training_map` returned, for one factor.
        predicted: what `stability.late_prediction.predict_late_spikes` returned: its boundary is drawn on the
            probability, its times get a row of their own.
        b1: Adam's, for the boundary of bursts on a quadratic.

    Raises:
        ValueError: unless the axes are learning_rate, b2 and, if any other, eps.
    """
    dims = set(map(str, measured["probability"].dims))
    if not {"learning_rate", "b2"} <= dims <= {"learning_rate", "b2", "eps"}:
        raise ValueError(f"measured: expected the axes learning_rate, b2 and eps, got {', '.join(sorted(dims))}")
    wanted = ("eps", "b2", "learning_rate")
    maps = {name: _planes(measured[name], wanted) for name in ("probability", "time", "price")}
    expected = {}
    if predicted is not None:
        expected = {name: _planes(predicted[name], wanted) for name in ("probability", "time", "epsilon_floor")}
    panels = maps["probability"]["eps"].values if "eps" in dims else [np.nan]
    last = float(measured.attrs["num_steps"])
    begin = float(measured.attrs.get("late_after", 1))
    rows = ["probability", "time", *(["predicted time"] if expected else []), "price"]
    seeds = counted(measured)
    with style.house_style():
        height = 0.95 + 1.22 * len(rows)
        figure = Figure(figsize=(2 * style.WIDTH, height), layout="constrained")
        share = float(measured["probability"].mean())
        head(figure, f"Late spikes: {share:.0%} of settings-weighted runs", "")
        grid = figure.subplots(len(rows), len(panels), squeeze=False, sharex=True, sharey=True)
        top = max(float(np.nanmax(np.where(np.isfinite(maps["price"]), maps["price"], 1))), 10.0)
        scales = {
            "probability": (maps["probability"], Normalize(0, 1), style.HEAT, "share of runs"),
            "time": (maps["time"], LogNorm(begin, last), style.HEAT.reversed(), "step"),
            "price": (maps["price"], LogNorm(1, top), style.HEAT, "× best at this rate"),
        }
        if expected:
            scales["predicted time"] = (expected["time"], *scales["time"][1:])
        for row, name in enumerate(rows):
            values, norm, colors, units = scales[name]
            mesh: Any = None
            for column in range(len(panels)):
                ax = grid[row, column]
                mesh = _shade(ax, values.isel(eps=column), norm, colors)
                style.dress(ax)
                if name == "probability":
                    if np.isfinite(panels[column]):
                        ax.set_title(f"ε = {number(panels[column])}", fontsize=style.TEXT)
                    if expected:
                        _boundary(ax, expected["probability"].isel(eps=column))
                    ax.axhline(spike_boundary(b1), color=style.INK, linewidth=0.7, linestyle=(0, (1, 1.2)))
                if column == 0:
                    ax.set_ylabel("1 − β₂", fontsize=style.TEXT)
                if row == len(rows) - 1:
                    ax.set_xlabel("learning rate", fontsize=style.TEXT)
            bar = figure.colorbar(mesh, ax=grid[row].tolist(), pad=0.01, aspect=12, fraction=0.03)
            bar.outline.set_linewidth(0.4)  # type: ignore[operator]
            bar.ax.tick_params(labelsize=style.SMALL, width=0.4, length=2)
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.set_label(f"{name}\n({units})", fontsize=style.SMALL)
        head(figure, _title(measured, expected), _note(measured, predicted, seeds, b1))
        _key(figure, bool(expected))
        settle(figure)
    return figure


def counted(measured: xr.Dataset) -> str:
    """Write how many runs there were."""
    return f"{int(measured['first_spike'].size)} runs, {measured.sizes['seed']} seeds at each point"


def _planes(values: xr.DataArray, wanted: tuple[str, ...]) -> xr.DataArray:
    values = values if "eps" in values.dims else values.expand_dims("eps")
    return values.transpose(*wanted).sortby(["b2", "learning_rate"])


def _shade(ax: Axes, plane: xr.DataArray, norm: Any, colors: Any) -> Any:
    x, y = plane["learning_rate"].values, 1 - plane["b2"].values
    order = np.argsort(y)
    values, y = plane.values[order], y[order]
    across, up = cell_edges(x, True), cell_edges(y, True)
    mesh = ax.pcolormesh(across, up, np.ma.masked_invalid(values), norm=norm, cmap=colors, rasterized=True)
    for row, column in zip(*np.nonzero(~np.isfinite(values)), strict=True):
        kind = "none" if np.isposinf(values[row, column]) else "unknown"
        corner = across[column], up[row]
        size = across[column + 1] - across[column], up[row + 1] - up[row]
        ax.add_patch(Rectangle(corner, *size, hatch=HATCHES[kind], **MISSING))
    scale_axis(ax, "x", across[0], across[-1], True)
    scale_axis(ax, "y", up[0], up[-1], True)
    for axis in (ax.xaxis, ax.yaxis):
        ticks: Any = axis.get_majorticklocs()
        if len(ticks) > 4:  # panels are small
            texts = axis.get_major_formatter().seq  # type: ignore[attr-defined]
            axis.set_major_locator(FixedLocator(ticks[::2]))
            axis.set_major_formatter(FixedFormatter(texts[::2]))
    return mesh


def _boundary(ax: Axes, plane: xr.DataArray) -> None:
    """Draw the sides of cells between those that most runs are predicted to spike in and the others."""
    x, y = plane["learning_rate"].values, 1 - plane["b2"].values
    order = np.argsort(y)
    flags = plane.values[order] > 0.5
    across, up = cell_edges(x, True), cell_edges(y[order], True)
    sides = [
        [(across[column + 1], up[row]), (across[column + 1], up[row + 1])]
        for row, column in zip(*np.nonzero(flags[:, 1:] != flags[:, :-1]), strict=True)
    ] + [
        [(across[column], up[row + 1]), (across[column + 1], up[row + 1])]
        for row, column in zip(*np.nonzero(flags[1:] != flags[:-1]), strict=True)
    ]
    ax.add_collection(
        LineCollection(sides, colors=EDGE, linewidths=1.4, capstyle="projecting", path_effects=HALO, zorder=4)
    )


def _title(measured: xr.Dataset, expected: dict[str, Any]) -> str:
    likely = float((measured["probability"] > 0.5).mean())
    return f"Most runs spike late at {likely:.0%} of the settings"


def _note(measured: xr.Dataset, predicted: xr.Dataset | None, seeds: str, b1: float) -> str:
    return seeds


def _key(figure: Figure, expected: bool) -> None:
    lines = [Line2D([], [], color=style.INK, linewidth=0.7, linestyle=(0, (1, 1.2)))]
    words = ["below: bursts on a quadratic"]
    if expected:
        lines.insert(0, Line2D([], [], color=EDGE, linewidth=1.4))
        words.insert(0, "predicted boundary of late spikes")
    figure.legend(lines, words, loc="outside upper right", frameon=False, fontsize=style.SMALL, ncols=2)
