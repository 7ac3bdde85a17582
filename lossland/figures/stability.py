"""Figures of measured stability against theory: edge of stability over optimizers, mean-square law over batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lossland.figures import style

LAW = {
    "sgd": ("SGD", "o", style.CURVE_COLORS[3], "-"),
    "heavy_ball": ("heavy ball 0.9", "^", style.CURVE_COLORS[1], (0, (5, 1.6))),
    "ema": ("EMA momentum 0.9", "s", style.CURVE_COLORS[0], (0, (2.2, 1))),
}


def minibatch_law_figure(
    law: xr.Dataset, curve: xr.DataArray, noisy: Sequence[float], quiet: Sequence[float]
) -> Figure:
    """Draw measured critical learning rates on the predicted curves, relative to SGD's, and their error.

    Args:
        law: `predicted`, `measured`, `low`, `high` over (optimizer, batch_size), learning rate x full-batch sharpness.
        curve: the prediction at more batch sizes, same units and dims.
        noisy: limits of heavy ball and EMA where noise dominates, in units in which SGD is stable below 2.
        quiet: the same without noise.
    """
    sizes, many = law["batch_size"].values, curve["batch_size"].values
    measured_sgd, predicted_sgd = (one.sel(optimizer="sgd") for one in (law["measured"], curve))
    edge = {"markeredgecolor": style.INK, "markeredgewidth": 0.4, "linestyle": "none"}
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for index, (name, (label, marker, color, line)) in enumerate(LAW.items()):
            one, predicted = law.sel(optimizer=name), curve.sel(optimizer=name)
            left.plot(many, predicted, color=color, linestyle=line, linewidth=1.1)
            left.plot(sizes, one["measured"], marker, color=color, markersize=3.5, label=label, **edge)
            middle.plot(many, 2 * predicted / predicted_sgd, color=color, linestyle=line, linewidth=1.1)
            middle.plot(sizes, 2 * one["measured"] / measured_sgd, marker, color=color, markersize=3.5, **edge)
            ratio, low, high = (100 * (one[key] / one["predicted"] - 1) for key in ("measured", "low", "high"))
            places, errors = sizes * 1.13 ** (index - 1), (ratio - low, high - ratio)
            right.errorbar(places, ratio, errors, fmt=marker, color=color, markersize=3.5, elinewidth=0.9, **edge)
        below = {"textcoords": "offset points", "color": style.GREY, "fontsize": style.SMALL}
        limits = (
            (noisy[0], "2 (1 − b)", sizes[-1], 3, "right"),
            (noisy[1], "2", sizes[-1], -8, "right"),
            (quiet[0], "2 (1 + b)", sizes[0], 3, "left"),
            (quiet[1], "2 (1 + b) / (1 − b)", sizes[0], 3, "left"),
        )
        for value, text, place, shift, side in limits:
            middle.axhline(value, color=style.GREY, linewidth=0.6, linestyle=":", zorder=0)
            middle.annotate(text, (place, value), (0, shift), ha=side, **below)
        left.set(yscale="log", ylabel="critical learning rate × sharpness")
        left.set_title("Lines: theory. Marks: measured", loc="left")
        left.legend(frameon=False, fontsize=style.SMALL, loc="upper left", handletextpad=0.2)
        middle.set(yscale="log", ylim=(noisy[0] / 2, 2 * quiet[1]), ylabel="the same, SGD = 2")
        middle.set_title("Plateaus of momentum b = 0.9", loc="left")
        right.axhspan(-2, 2, color=style.OUTCOME_COLORS["never_rises"], zorder=0)
        right.axhline(0, color=style.INK, linewidth=0.7)
        right.set(ylabel="measured / predicted − 1 (%)", ylim=(-4, 4))
        right.set_title("Error and 95 % interval; band: 2 %", loc="left")
        shown = sizes[:: 2 if len(sizes) > 5 else 1]
        for ax in (left, middle, right):
            ax.set(xscale="log", xlabel="batch size")
            ax.set_xticks(shown, [f"{size:g}" for size in shown])
            ax.xaxis.set_minor_locator(NullLocator())
            style.dress(ax)
    return figure


def edge_of_stability_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], medians: Mapping[str, np.ndarray], bands: Mapping[str, float]
) -> Figure:
    """Draw relative sharpness along one run of each optimizer, and its late median for every run.

    Args:
        curves: label -> (step, relative sharpness) of one run; the first few are drawn.
        medians: label -> late median of every (seed, rate), flat.
        bands: label -> half width of the band around 1.
    """
    markers = ["o", "^", "s", "D", "v", "P", "X", "*"]
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        for index, (label, (step, ratio)) in enumerate(curves.items()):
            color, line = style.CURVE_COLORS[index % 5], style.CURVE_STYLES[index % 5]
            left.plot(step / 1000, ratio, color=color, linestyle=line, linewidth=0.9, label=label)
        left.axhline(1, color=style.INK, linewidth=0.7)
        left.set(xlabel="step (thousands)", ylabel="sharpness / threshold", ylim=(0, 1.45))
        left.set_title("Sharpness rises to the threshold and stays", loc="left")
        left.legend(frameon=False, fontsize=style.SMALL, loc="lower right")
        generator = np.random.default_rng(0)
        places = np.arange(len(medians))[::-1]
        for place, (label, values), marker in zip(places, medians.items(), markers, strict=False):
            band = bands[label]
            right.barh(place, 2 * band, left=1 - band, height=0.7, color=style.OUTCOME_COLORS["never_rises"], zorder=0)
            shown = np.clip(values, 0.8, 1.2)
            jitter = generator.uniform(-0.22, 0.22, len(shown))
            inside = np.abs(values - 1) <= band
            for flag, color in ((True, style.CURVE_COLORS[3]), (False, style.CURVE_COLORS[1])):
                right.plot(
                    shown[inside == flag], (place + jitter)[inside == flag], marker, color=color, markersize=3,
                    markeredgewidth=0, linestyle="none",
                )  # fmt: skip
            right.annotate(
                f"{inside.sum()} of {len(values)}", (1.21, place), va="center", fontsize=style.SMALL, color=style.GREY,
                annotation_clip=False,
            )  # fmt: skip
        right.axvline(1, color=style.INK, linewidth=0.7)
        right.set(
            yticks=places, yticklabels=list(medians), xlim=(0.8, 1.2), xlabel="median relative sharpness, second half"
        )
        right.set_title("Every seed and rate; band: what is allowed", loc="left")
        for ax in (left, right):
            style.dress(ax)
        right.tick_params(axis="y", length=0)
    return figure
