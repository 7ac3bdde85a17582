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

FLOOR = 1e-4
"""Densities below this share of the highest are not drawn."""


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
        ax.set(yscale="log", xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(FLOOR * top, 3 * top))
        ax.legend(frameon=False, loc="upper right")
        style.dress(ax)


def landscapes_figure(scenes: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw every scene as a row of four panels.

    Args:
        scenes: title -> `lines` (label -> what `landscapes.line` returns) with `curvatures` (label -> eigenvalue),
            `trajectory` (of `landscapes.trajectory_plane`), `plane` (of `landscapes.plane` along filter-normalised
            directions), `densities` (label -> `density` over "eigenvalue").
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.15 * len(scenes)), layout="constrained")
        rows: Any = np.atleast_1d(np.asarray(figure.subfigures(len(scenes), 1), object))
        for row, (title, scene) in zip(rows, scenes.items(), strict=True):
            row.suptitle(title, x=0.01, ha="left", fontsize=style.TEXT + 0.5)
            one, two, three, four = row.subplots(1, 4)
            plot_line(one, dict(scene["lines"]), dict(scene["curvatures"]))
            one.set_xlabel("distance along a unit eigenvector")
            one.legend(frameon=False, fontsize=style.SMALL, loc="upper center", handlelength=1.8)
            plot_plane(two, scene["trajectory"])
            two.set_title("plane of the trajectory", loc="left")
            plot_plane(three, scene["plane"])
            three.set(xlabel="first random direction", ylabel="second")
            three.set_title("filter-normalised", loc="left")
            plot_densities(four, scene["densities"])
            four.set_title("spectral density", loc="left")
            one.set_title("along eigenvectors", loc="left")
        settle(figure)
    return figure
