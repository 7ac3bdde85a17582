"""Figures of published results that are measured again: catapult window, transitions, critical constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import head, scale_axis, settle


def catapult_figure(windows: Mapping[int, xr.Dataset]) -> Figure:
    """Draw the catapult window against the width: where the loss first exceeds its start, and where runs diverge.

    Args:
        windows: width -> what `stability.constants.catapult_window` returns.
    """
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.7), layout="constrained")
        seeds = next(iter(windows.values())).sizes["seed"]
        head(
            figure,
            "Two-layer linear model: thrown up from 2, lost beyond 4",
            f"Every seed a grey dot ({seeds} at each width); black: median with its 95 % interval. Full batch gradient "
            "descent on f = u·v/√n.",
        )
        ax = figure.add_subplot()
        scatter = np.random.default_rng(0)
        for place, (_, window) in enumerate(windows.items()):
            for edge, values, marker in (("onset", "above", "o"), ("end", "below", "s")):
                one = window.sel(edge=edge)
                dots = one[values].values
                ax.plot(
                    place + 0.32 * (scatter.random(dots.size) - 0.5),
                    dots,
                    ".",
                    color=style.RULE,
                    markersize=2,
                    zorder=1,
                )
                middle = float(np.median(dots))
                ax.plot(
                    [place, place], [float(one["low"]), float(one["high"])], color=style.INK, linewidth=1.2, zorder=3
                )
                face = style.OUTCOME_COLORS["rises_and_recovers" if edge == "onset" else "diverges"]
                ax.plot([place], [middle], marker, color=style.INK, markerfacecolor=face, markersize=5, zorder=4)
                ax.annotate(
                    f"{middle:.2f}",
                    (place, middle),
                    (11, 4),
                    textcoords="offset points",
                    ha="left",
                    va="bottom",
                    color=style.INK,
                )
        for level, words in ((2, "loss first exceeds its start"), (4, "last learning rate that converges")):
            ax.axhline(level, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
            ax.annotate(
                words,
                (0, level),
                (3, -4),
                xycoords=ax.get_yaxis_transform(),
                textcoords="offset points",
                va="top",
                color=style.GREY,
            )
        ax.set(
            xticks=range(len(windows)),
            xticklabels=[str(width) for width in windows],
            xlim=(-0.5, len(windows) - 0.3),
            ylim=(1.5, 4.5),
            xlabel="width n",
            ylabel="learning rate × initial kernel",
        )
        style.dress(ax)
        settle(figure)
    return figure


def transition_figure(
    roughness: np.ndarray, growth: np.ndarray, points: np.ndarray, located: float, interval: tuple[float, float]
) -> Figure:
    """Draw the exponent of the boundary of a cosine-perturbed parabola against the roughness of the cosine.

    Args:
        roughness: eps / wavelength^2 over its value at which the loss turns non-convex.
        growth: exponent by which the number of boundary points grows with resolution.
        points: mean number of boundary points on the finest grid.
        located, interval: the transition and its interval over starting points.
    """
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.6), layout="constrained")
        head(
            figure,
            f"The boundary turns fractal at roughness {located:.2f}",
            "x² + ε cos(2πx/λ). Exponent: growth of the number of boundary learning rates with the resolution of the "
            "grid. Band: 95 % interval of the midpoint over starts.",
        )
        left = figure.add_subplot()
        if np.isfinite(interval).all():
            left.axvspan(*interval, color=style.OUTCOME_COLORS["rises_and_recovers"], alpha=0.45, linewidth=0)
        left.axvline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        left.annotate(
            "non-convex",
            (1, 0.02),
            (3, 2),
            xycoords=left.get_xaxis_transform(),
            textcoords="offset points",
            color=style.GREY,
            va="bottom",
        )
        left.plot(roughness, growth, "o-", color=style.INK, markersize=3.5, linewidth=1)
        for value, exponent, count in zip(roughness, growth, points, strict=True):
            left.annotate(
                f"{count:.1f}",
                (value, exponent),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=style.SMALL,
                color=style.GREY,
            )
        left.set(
            xlabel="roughness, ε/λ² in units of 1/(2π²)",
            ylabel="exponent of the boundary",
            ylim=(-0.06, 1.25 * max(float(np.nanmax(growth)), 0.1)),
        )
        style.dress(left)
        settle(figure)
    return figure


def constants_figure(found: xr.Dataset, published: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw critical constants against the width with intervals over seeds, beside published values.

    Args:
        found: (constant, width) with `median`, `low`, `high`; attribute `num_seeds`.
        published: constant -> width -> value, of another network and data: only the trend compares.
    """
    looks: dict[str, tuple[Any, str, str]] = {
        "c_loss": (style.CURVE_COLORS[1], "o", "loss"),
        "c_sharp": (style.CURVE_COLORS[3], "s", "sharpness"),
        "c_max": (style.INK, "^", "diverges"),
    }
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.8), layout="constrained")
        head(
            figure,
            "Wider networks rise at smaller multiples of 1 / sharpness",
            f"Digits, solid: medians over {found.attrs['num_seeds']} seeds with 95 % intervals that hold what the grid "
            "leaves open. Hollow, dotted: published for CIFAR-10, 8 layers, one seed.",
        )
        ax = figure.add_subplot()
        widths = found["width"].values.astype(float)
        for name in (str(value) for value in found["constant"].values):
            color, marker, words = looks[name]
            one = found.sel(constant=name)
            bars = np.abs(np.stack([one["median"] - one["low"], one["high"] - one["median"]]))
            ax.errorbar(
                widths, one["median"], bars, fmt=marker + "-", color=color, markersize=4, linewidth=1, capsize=1.5
            )
            if name in published:
                there = published[name]
                ax.plot(
                    list(there),
                    list(there.values()),
                    marker,
                    linestyle=":",
                    color=color,
                    markerfacecolor="white",
                    markersize=4,
                    linewidth=0.8,
                )
            ax.annotate(
                f"{name}: {words}" if name == "c_max" else f"{name}: {words} rises",
                (widths[0], float(one["median"][0])),
                (0, 9),
                textcoords="offset points",
                color=color,
            )
        everything = [float(found["low"].min()), float(found["high"].max())]
        everything += [value for there in published.values() for value in there.values()]
        finite = [value for value in everything if np.isfinite(value) and value > 0]
        most = max([float(widths[-1]), *(float(width) for there in published.values() for width in there)])
        scale_axis(ax, "x", 0.8 * widths[0], 1.25 * most, True)
        scale_axis(ax, "y", 0.8 * min(finite), 1.45 * max(finite), True)
        ax.set(xlabel="width", ylabel="learning rate × initial sharpness")
        style.dress(ax)
        settle(figure)
    return figure
