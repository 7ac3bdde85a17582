"""Phase diagrams: which of six outcomes is the most frequent over a plane of two hyperparameters."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lossland.arguments import DRAWABLE, dataset, expects
from lossland.figures import style
from lossland.figures.labels import cell_edges, head, log_spaced, name_with_units, scale_axis, settle
from lossland.stability.phases import CLASSES

CLASS_COLORS = {
    "never_rises": style.OUTCOME_COLORS["never_rises"],
    "rises_and_recovers": "#F6CE7C",
    "edge_of_stability": style.OUTCOME_COLORS["rises_and_recovers"],
    "stalls": "#A9B4C2",
    "diverges": "#6F7FB8",
    "non_finite": style.OUTCOME_COLORS["diverges"],
}
"""Ordered light to dark but for runs that stall, which are hatched."""
CLASS_HATCHES = {"stalls": "....", "edge_of_stability": "////"}


@expects(ax=DRAWABLE, phases=dataset("phase", "num_runs", "probability", source="phase_diagram returns"))
def plot_phase_diagram(ax: Axes, phases: xr.Dataset) -> None:
    """Draw the most frequent class at every point of a plane; hatches tell apart what greys alone would not.

    Args:
        ax: where to draw.
        phases: what `stability.phases.phase_diagram` returns.
    """
    y, x = (str(dim) for dim in phases["phase"].dims)
    phases = phases.sortby([x, y])
    values = {name: phases[name].values.astype(float) for name in (x, y)}
    log = {name: log_spaced(values[name]) for name in (x, y)}
    edges = {name: cell_edges(values[name], log[name]) for name in (x, y)}
    codes = np.ma.masked_less(phases["phase"].values, 0)
    colors = ListedColormap(list(CLASS_COLORS.values()))
    ax.pcolormesh(edges[x], edges[y], codes, cmap=colors, vmin=-0.5, vmax=len(CLASSES) - 0.5, rasterized=True)
    for name, hatch in CLASS_HATCHES.items():
        rows, columns = np.nonzero(phases["phase"].values == list(CLASSES).index(name))
        for row, column in zip(rows, columns, strict=True):
            corner = (edges[x][column], edges[y][row])
            size = (edges[x][column + 1] - corner[0], edges[y][row + 1] - corner[1])
            ax.add_patch(Rectangle(corner, *size, fill=False, hatch=hatch, linewidth=0, edgecolor=style.GREY))
    sides: tuple[tuple[str, Literal["x", "y"]], ...] = ((x, "x"), (y, "y"))
    for name, which in sides:
        scale_axis(ax, which, edges[name][0], edges[name][-1], log[name])
    ax.set_xlabel(name_with_units(phases[x]), fontsize=style.TEXT)
    ax.set_ylabel(name_with_units(phases[y]), fontsize=style.TEXT)


@expects(phases=dataset("phase", "num_runs", "probability", source="phase_diagram returns"))
def phase_diagram_figure(phases: xr.Dataset) -> Figure:
    """Compose a phase diagram with its key and a note of what each point counts.

    Args:
        phases: what `stability.phases.phase_diagram` returns.
    """
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
        counts = np.unique(phases["num_runs"].values)
        runs = f"{counts[0]:g}" if len(counts) == 1 else f"{counts[0]:g} to {counts[-1]:g}"
        problem = str(phases.attrs.get("problem", "runs"))
        lost = float((phases["probability"] > 0.5).mean())
        head(
            figure,
            f"{problem}: most runs diverge on {lost:.0%} of the plane",
            f"The most frequent outcome of {runs} runs at each point, over {phases.attrs.get('pooled', 'seed')}.",
        )
        ax = figure.add_subplot()
        plot_phase_diagram(ax, phases)
        style.dress(ax)
        present = [name for code, name in enumerate(CLASSES) if (phases["phase"] == code).any()]
        boxes = [_box(name) for name in present]
        words = [name.replace("_", " ") for name in present]
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.12, 1.01), "borderaxespad": 0}
        ax.legend(boxes, words, ncols=3, frameon=False, handlelength=1.4, columnspacing=1, **place)
        settle(figure)
    return figure


def _box(name: str) -> Rectangle:
    look: dict[str, Any] = {"facecolor": CLASS_COLORS[name], "edgecolor": style.GREY, "linewidth": 0}
    return Rectangle((0, 0), 1, 1, hatch=CLASS_HATCHES.get(name, ""), **look)
