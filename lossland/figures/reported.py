"""Figures of the reported cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lossland.figures import style


def linear_regression_figure(
    diverges: xr.DataArray, sharpness_of: Callable[[Any], Any], printed: np.ndarray, losses: np.ndarray
) -> Figure:
    """Draw case 1: the phase diagram over examples and learning rate, and the printed losses against the reproduced
    ones.

    Args:
        diverges: fraction of seeds that diverge, over (num_examples, learning_rate).
        sharpness_of: closed form of the sharpness; 2 over it is the line that is drawn.
        printed: losses that were printed, one per epoch.
        losses: reproduced losses, one per epoch, on to inf and NaN.
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        sizes, rates = diverges["num_examples"].values, diverges["learning_rate"].values
        left.pcolormesh(
            sizes, rates, diverges.T.values, cmap=style.HEAT, vmin=0, vmax=1, shading="nearest", rasterized=True
        )
        left.plot(sizes, 2 / sharpness_of(sizes), color="white", linewidth=2.6)
        left.plot(sizes, 2 / sharpness_of(sizes), color=style.INK, linewidth=1.2, linestyle=(0, (4, 1.5)))
        left.axhline(0.01, color=style.GREY, linewidth=0.8)
        left.annotate(
            "Keras' default 0.01", (sizes[0], 0.01), (0, -3), textcoords="offset points", va="top", color=style.GREY
        )
        left.text(0.62, 0.8, "diverges", transform=left.transAxes, color=style.LABEL_COLORS["diverges"])
        left.text(0.06, 0.08, "converges", transform=left.transAxes)
        place = sizes[3 * len(sizes) // 4]
        left.annotate(
            "2 / sharpness",
            (place, 2 / sharpness_of(place)),
            (10, 10),
            textcoords="offset points",
            color="white",
            ha="center",
        )
        left.set(yscale="log", xlabel="number of examples", ylabel="learning rate")
        left.set_title("Every run falls on the predicted side", loc="left")
        epochs = np.arange(1, len(losses) + 1)
        finite = np.isfinite(losses)
        right.semilogy(epochs[finite], losses[finite], color=style.INK, linewidth=1.0)
        right.semilogy(
            np.arange(1, len(printed) + 1),
            printed,
            "o",
            markersize=3,
            color=style.OUTCOME_COLORS["rises_and_recovers"],
            markeredgecolor=style.INK,
            markeredgewidth=0.4,
        )
        right.axhline(np.finfo(np.float32).max, color=style.GREY, linewidth=0.8, linestyle=":")
        right.annotate(
            "float32 maximum",
            (1, np.finfo(np.float32).max),
            (0, -2),
            xycoords=right.get_yaxis_transform(),
            textcoords="offset points",
            color=style.GREY,
            ha="right",
            va="top",
        )
        right.annotate("printed\nby Keras", (10, printed[9]), (8, -18), textcoords="offset points")
        for name, found in (("inf", np.isinf(losses)), ("NaN", np.isnan(losses))):
            if not found.any():
                continue
            first = epochs[found][0]
            right.axvline(first, color=style.INK, linewidth=0.8, linestyle=(0, (1, 1)))
            right.annotate(f"{name} at epoch {first}", (first, 1e18), (3, 0), textcoords="offset points")
        right.set(xlabel="epoch", ylabel="loss", xlim=(0, 1.25 * epochs[-1]))
        right.set_title("20 printed losses from one recovered weight", loc="left")
        for ax in (left, right):
            style.dress(ax)
    return figure


def first_step_figure(rose: xr.DataArray, at_start: xr.Dataset) -> Figure:
    """Draw case 2's first step: which runs rise, against the curvature along the step over 2 / learning rate.

    Args:
        rose: whether the first step raised the loss, over (learning_rate, seed).
        at_start: `step_curvature` and `gradient_curvature` at step 0, over the same.
    """
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 2.6), layout="constrained")
        ax = figure.subplots()
        rates = at_start["learning_rate"]
        quantities = (
            ("step_curvature", "averaged along the step", style.CURVE_COLORS[3], "o"),
            ("gradient_curvature", "g.Hg/g.g at the start", style.CURVE_COLORS[1], "^"),
        )
        for name, label, color, marker in quantities:
            share = (at_start[name] > 2 / rates).mean("seed")
            ax.semilogx(rates, share, marker, markersize=4, fillstyle="none", color=color, label=label)
        ax.semilogx(rates, rose.mean("seed"), color=style.INK, linewidth=1.0, label="loss rises at the first step")
        ax.set(xlabel="learning rate", ylabel="fraction of seeds", ylim=(-0.03, 1.03))
        ax.set_title(
            "The first step raises the loss where 2 / learning rate\nis below the curvature along it", loc="left"
        )
        ax.legend(frameon=False, loc="upper left", fontsize=style.SMALL)
        style.dress(ax)
    return figure
