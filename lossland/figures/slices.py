"""Slices through a loss landscape: lines beside their quadratic model, planes with the trajectory on them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.arguments import DRAWABLE, TEXT, dataset, expects, named, number, optional
from lossland.figures import style
from lossland.figures.labels import head, settle

LEVELS = 14
SPAN = 1e6
"""Contours of a plane span at most this factor of the loss above its lowest value."""


LINES = named(dataset("loss", "distance", source="landscapes.line returns"))
CURVATURES = optional(named(number()))


@expects(ax=DRAWABLE, lines=LINES, curvatures=CURVATURES)
def plot_line(ax: Axes, lines: dict[str, xr.Dataset], curvatures: dict[str, float] | None = None) -> None:
    """Draw the loss along lines through one point; dotted, up to their highest value, parabolas of given curvatures.

    Args:
        ax: where to draw.
        lines: label -> what `landscapes.line` returns; at most five.
        curvatures: label -> second derivative of the loss along that line at distance 0.

    Raises:
        ValueError: for more than five lines, or none.
    """
    if not 1 <= len(lines) <= len(style.CURVE_COLORS):
        raise ValueError(f"lines: expected 1 to {len(style.CURVE_COLORS)}, got {len(lines)}")
    finite = np.concatenate([found["loss"].values for found in lines.values()])
    finite = finite[np.isfinite(finite)]
    top = float(finite.max() + 0.05 * abs(finite.max())) if len(finite) else np.inf
    with style.house_style():
        for (label, found), color, dashes in zip(
            lines.items(), style.CURVE_COLORS[-len(lines) :], style.CURVE_STYLES, strict=False
        ):
            distance, loss = found["distance"].values, found["loss"].values
            ax.plot(distance, loss, color=color, linestyle=dashes, linewidth=1.1, label=label)
            if curvatures and label in curvatures:
                # The parabola touches the curve at 0: value and slope are the curve's own.
                at = np.interp(0.0, distance, loss)
                slope = float(np.interp(0.0, distance, np.gradient(loss, distance)))
                model = at + slope * distance + 0.5 * curvatures[label] * distance**2
                shown = model <= top
                ax.plot(distance[shown], model[shown], color=color, linestyle=(0, (1, 2)), linewidth=0.8)
        if len(finite):
            ax.set_ylim(0 if finite.min() >= 0 else None, top)
        units = {found["distance"].attrs.get("units", "") for found in lines.values()}
        ax.set(xlabel=f"distance, in units of the {units.pop()}" if len(units) == 1 else "distance", ylabel="loss")
        ax.legend(frameon=False, fontsize=style.TEXT, loc="best")
        style.dress(ax)


@expects(ax=DRAWABLE, plane=dataset("loss", "first", "second", source="landscapes.plane returns"))
def plot_plane(ax: Axes, plane: xr.Dataset) -> None:
    """Draw filled contours of the loss over a plane, equidistant in its logarithm, and the trajectory if there is one.

    Where the loss is not positive the contours are equidistant in the loss. Grey cells are not finite.

    Args:
        ax: where to draw.
        plane: what `landscapes.plane` or `landscapes.trajectory_plane` returns.

    Raises:
        ValueError: if the loss is nowhere finite.
    """
    losses = plane["loss"].transpose("second", "first").values.astype(float)
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        raise ValueError("plane: the loss is nowhere finite; take a smaller extent")
    low, high = float(finite.min()), float(finite.max())
    log = low > 0 and high > 3 * low
    if log:
        high = min(high, low * SPAN)
        levels = np.geomspace(low, max(high, low * 1.01), LEVELS)
    else:
        levels = np.linspace(low, high if high > low else low + 1, LEVELS)
    with style.house_style():
        ax.set_facecolor(style.RULE)
        shown = np.ma.masked_invalid(np.clip(losses, levels[0], levels[-1]))
        drawn = ax.contourf(
            plane["first"], plane["second"], shown, levels, cmap=style.HEAT, norm="log" if log else "linear"
        )
        drawn.set_edgecolor("face")
        ax.contour(plane["first"], plane["second"], shown, levels, colors="white", linewidths=0.3, alpha=0.6)
        if "path" in plane:
            path = plane["path"].values
            ax.plot(*path.T, color="white", linewidth=2.2)
            ax.plot(*path.T, color=style.OUTCOME_COLORS["rises_and_recovers"], linewidth=1.2)
            ax.plot(*path[0], "o", markersize=4.5, color="white", markeredgecolor=style.INK, zorder=3)
            ax.plot(*path[-1], "D", markersize=4.5, color=style.INK, markeredgecolor="white", zorder=3)
        names = ("first direction", "second direction")
        if "explained" in plane:
            shares = plane["explained"].values
            names = tuple(f"{name} ({share:.0%})" for name, share in zip(names, shares, strict=True))
        ax.set(xlabel=names[0], ylabel=names[1])
        bar = ax.figure.colorbar(drawn, ax=ax, ticks=levels[:: max(1, (LEVELS - 1) // 4)], format="%.2g")
        bar.set_label("loss", fontsize=style.TEXT)
        bar.ax.tick_params(labelsize=style.TEXT, width=0.6)
        bar.ax.minorticks_off()
        style.dress(ax)


@expects(plane=dataset("loss", "first", "second", source="landscapes.plane returns"), title=TEXT)
def plane_figure(plane: xr.Dataset, title: str = "Loss over a plane") -> Figure:
    """Compose a plane with its colour bar, and a note that says what the marks are; arguments as of `plot_plane`."""
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 3.1), layout="constrained")
        note = "Circle: first point; diamond: last. Per cent: share of the squared distance to the last point."
        if "path" not in plane:
            note = f"Cosine of the two directions: {plane.attrs.get('cosine', np.nan):.3f}."
        head(figure, title, note)
        plot_plane(figure.subplots(), plane)
        settle(figure)
    return figure


@expects(lines=LINES, curvatures=CURVATURES, title=TEXT)
def line_figure(
    lines: dict[str, xr.Dataset], curvatures: dict[str, float] | None = None, title: str = "Loss along lines"
) -> Figure:
    """Compose lines through one point with a title; arguments as of `plot_line`."""
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.5), layout="constrained")
        note = "Dotted: the parabola with the curvature at distance 0." if curvatures else ""
        head(figure, title, note)
        plot_line(figure.subplots(), lines, curvatures)
        settle(figure)
    return figure
