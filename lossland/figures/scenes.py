"""A place of a loss landscape in one row: lines, the trajectory's plane, a filter-normalised plane, the spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import settle
from lossland.figures.slices import plot_line, plot_plane

FLOOR = 1e-6
"""Densities below this share of the highest are not drawn."""
BULK = 1.0
"""Eigenvalues are drawn on a linear scale up to this size, on a logarithmic one beyond."""
TICKS = (-1000, -100, -10, 0, 10, 100, 1000)
KEY: dict[str, Any] = {"frameon": False, "fontsize": style.SMALL, "handlelength": 1.8, "labelspacing": 0.2}
"""A legend above the lines: the axes leave room for it."""


def plot_densities(ax: Axes, densities: Mapping[str, xr.Dataset]) -> None:
    """Draw spectral densities over one axis, on a logarithmic scale.

    Args:
        ax: where to draw.
        densities: label -> `density` over "eigenvalue"; at most five.
    """
    with style.house_style():
        looks = zip(style.CURVE_COLORS[1::2], style.CURVE_STYLES, strict=False)
        top = max(float(one["density"].max()) for one in densities.values())
        for (label, one), (color, line) in zip(densities.items(), looks, strict=False):
            shown = one["density"].where(one["density"] > FLOOR * top)
            ax.plot(one["eigenvalue"], shown, color=color, linestyle=line, linewidth=1, label=label)
        ax.set(yscale="log", xlabel="eigenvalue", ylabel="density", ylim=(FLOOR * top, 200 * top))
        ax.set_xscale("symlog", linthresh=BULK)
        shown = [one["eigenvalue"].values[one["density"].values > FLOOR * top] for one in densities.values()]
        low, high = min(map(np.min, shown)), max(map(np.max, shown))
        ax.set(xlim=(min(1.2 * low, -BULK), 1.2 * high))
        ax.set_xticks([tick for tick in TICKS if 1.2 * low <= tick <= 1.2 * high])
        ax.minorticks_off()
        ax.legend(**KEY, loc="upper right")
        style.dress(ax)


def landscapes_figure(scenes: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw every scene as a row of four panels.

    Args:
        scenes: title -> `lines` (label -> what `landscapes.line` returns) with `curvatures` (label -> eigenvalue),
            `trajectory` (of `landscapes.trajectory_plane`) with `axes` (names of its two directions), `plane` (of
            `landscapes.plane` along filter-normalised directions), `densities` (label -> `density` over "eigenvalue").
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.15 * len(scenes)), layout="constrained")
        rows: Any = figure.subplots(len(scenes), 4, squeeze=False, width_ratios=(1.25, 1, 1, 1.1))
        for (one, two, three, four), (title, scene) in zip(rows, scenes.items(), strict=True):
            plot_line(one, dict(scene["lines"]), dict(scene["curvatures"]))
            one.set(xlabel="distance", ylim=(0, 1.9 * one.get_ylim()[1]))
            one.legend(**KEY, loc="upper center")
            plot_plane(two, scene["trajectory"])
            two.set(xlabel=scene["axes"][0], ylabel=scene["axes"][1])
            plot_plane(three, scene["plane"])
            three.set(xlabel="first random direction", ylabel="second")
            plot_densities(four, scene["densities"])
            one.set_title(" \nalong eigenvectors", loc="left")
            # The row's title reaches across the panels; laid out with the first, it would push them apart.
            above = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
            one.annotate(title, (0, 1), (0, 15), fontsize=style.TEXT + 0.5, **above).set_in_layout(False)
            one.locator_params(axis="x", nbins=3)
            two.set_title("trajectory", loc="left")
            three.set_title("filter-normalised", loc="left")
            four.set_title("spectral density", loc="left")
        settle(figure)
    return figure
