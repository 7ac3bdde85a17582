"""Figures of results that are measured again: thresholds, catapult window, transitions, critical constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import head, scale_axis, settle


def thresholds_figure(
    computed: Mapping[str, np.ndarray], simulated: Mapping[str, np.ndarray], without_closed_form: Sequence[str]
) -> Figure:
    """Draw measured against computed thresholds of many optimizers, and how far apart they are.

    Args:
        computed: optimizer -> critical curvature times learning rate, from certificates.
        simulated: the same from runs that neither grow nor decay.
        without_closed_form: the optimizers of the two that are in no table.
    """
    pairs = {
        True: [(computed[name], simulated[name]) for name in computed if name not in without_closed_form],
        False: [(computed[name], simulated[name]) for name in without_closed_form],
    }
    everything = np.concatenate([np.stack(pair) for group in pairs.values() for pair in group], axis=1)
    worst = float(np.max(np.abs(everything[1] / everything[0] - 1)))
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 3.0), layout="constrained")
        head(
            figure,
            f"Runs turn unstable where it was computed, to {worst:.0e}",
            f"{len(computed)} optimizers, {everything.shape[1]} settings. Measured: the curvature at which runs of the "
            "optimizer itself neither grow nor decay.",
        )
        left, right = figure.subplots(1, 2)
        looks = {
            True: ("o", style.CURVE_COLORS[1], "closed form known"),
            False: ("^", style.CURVE_COLORS[4], "own chains"),
        }
        ends = np.array([everything[0].min() / 1.5, everything[0].max() * 1.5])
        left.plot(ends, ends, color=style.RULE, linewidth=0.8, zorder=1)
        for known, (marker, color, label) in looks.items():
            both = np.concatenate([np.stack(pair) for pair in pairs[known]], axis=1)
            dots: dict[str, Any] = {"color": color, "linestyle": "", "markersize": 4, "markerfacecolor": "none"}
            left.plot(*both, marker=marker, **dots)
            errors = np.maximum(np.abs(both[1] / both[0] - 1), 1e-16)
            right.plot(both[0], errors, marker=marker, label=label, **dots)
        left.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        right.set(xscale="log", yscale="log", ylabel="|measured / computed − 1|", xlim=ends)
        right.legend(frameon=False, loc="center right", handletextpad=0.0, borderaxespad=0.0)
        for ax in (left, right):
            ax.set_xlabel("computed × learning rate")
            style.dress(ax)
        left.set_ylabel("measured × learning rate")
        settle(figure)
    return figure


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


def transition_figure(roughness: np.ndarray, curves: Mapping[float, Mapping[str, Any]], level: float) -> Figure:
    """Draw the exponent of the boundary of a cosine-perturbed parabola against the roughness of the cosine.

    Args:
        roughness: eps / wavelength^2 over its value at which the loss turns non-convex.
        curves: wavelength -> `growth` of the number of boundary points with resolution, `transition`, `interval`.
        level: exponent from which on a boundary is called fractal.
    """
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.9), layout="constrained")
        places = [curve["transition"] for curve in curves.values()]
        head(
            figure,
            f"The boundary turns fractal at roughness {min(places):.2f} to {max(places):.2f}",
            "x² + ε cos(2πx/λ), starts in [1/2, 3/2]. Exponent: growth of the number of boundary learning rates with "
            f"the resolution. Bars: 95 % intervals over starts of where it reaches {level:g}.",
        )
        ax = figure.add_subplot()
        top = 1.2 * max(float(np.nanmax(curve["growth"])) for curve in curves.values())
        ax.axvline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        words: dict[str, Any] = {"textcoords": "offset points", "color": style.GREY, "va": "top"}
        ax.annotate("convex", (1, top), (-3, -2), ha="right", **words)
        ax.annotate("non-convex", (1, top), (3, -2), **words)
        ax.axhline(level, color=style.RULE, linewidth=0.6)
        colors = (style.CURVE_COLORS[4], style.CURVE_COLORS[2], style.CURVE_COLORS[1])
        looks = zip(colors, ("o", "s", "^"), style.CURVE_STYLES, strict=False)
        for row, ((wavelength, curve), (color, marker, line)) in enumerate(zip(curves.items(), looks, strict=False)):
            ax.plot(
                roughness,
                curve["growth"],
                marker=marker,
                linestyle=line,
                color=color,
                markersize=3.5,
                linewidth=1,
                label=f"λ = {wavelength:g}",
            )
            low, high = np.clip(curve["interval"], roughness[0], roughness[-1])
            ax.plot([low, high], [level + (row - 1) * 0.02 * top] * 2, color=color, linewidth=2.2, alpha=0.8)
        ax.legend(frameon=False, loc="upper left", handlelength=2.6)
        ax.set(xlabel="roughness, ε/λ² in units of 1/(2π²)", ylabel="exponent of the boundary", ylim=(-0.05 * top, top))
        style.dress(ax)
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
            for width, low, high in zip(widths, one["low"].values, one["high"].values, strict=True):
                ax.plot([width, width], np.clip([low, high], 1e-3, 1e3), color=color, linewidth=1)
            shown = one["median"].where(np.isfinite(one["median"]))
            ax.plot(widths, shown, marker + "-", color=color, markersize=4, linewidth=1)
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
            # Beside the narrowest network there is room above, beside the widest the published values go on.
            place = 0 if name == "c_sharp" else int(np.flatnonzero(np.isfinite(one["median"].values))[-1])
            shift = {"c_sharp": (8, 5), "c_loss": (6, -3), "c_max": (6, 3)}[name]
            ax.annotate(
                f"{name}: {words}" if name == "c_max" else f"{name}: {words} rises",
                (widths[place], float(one["median"][place])),
                shift,
                textcoords="offset points",
                color=color,
                va="top" if name == "c_loss" else "bottom",
            )
        everything = np.concatenate([found[name].values.ravel() for name in ("low", "median", "high")])
        everything = np.append(everything, [value for there in published.values() for value in there.values()])
        finite = everything[np.isfinite(everything) & (everything > 0)]
        most = max([float(widths[-1]), *(float(width) for there in published.values() for width in there)])
        scale_axis(ax, "x", 0.8 * widths[0], 1.25 * most, True)
        scale_axis(ax, "y", 0.8 * float(finite.min()), 1.45 * float(finite.max()), True)
        ax.set(xlabel="width", ylabel="learning rate × initial sharpness")
        style.dress(ax)
        settle(figure)
    return figure
