"""Figure of the course's classifier: an epoch loss with its trend, what its rises are made of, the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lossland.figures import style
from lossland.figures.labels import head, settle
from lossland.stability.intervals import mean_interval

BLUE, RUST, NAVY = style.CURVE_COLORS[0], style.CURVE_COLORS[1], style.CURVE_COLORS[3]


def course_mlp_figure(
    one: xr.Dataset, trend: np.ndarray, stop: float, kinds: xr.Dataset, by_rate: xr.DataArray
) -> Figure:
    """Draw case 5 in three panels.

    Args:
        one: one run over "epoch", with `printed`, and the coordinate `learning_rate`.
        trend: medians of its blocks of epochs.
        stop: epoch at which the trend stops falling; inf where it does not.
        kinds: `mean`, `low`, `high` over "setting" (record, noise, curvature), shares of the rises.
        by_rate: share of epochs that rise over (batches, learning_rate, seed).
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 3.1), layout="constrained")
        head(
            figure,
            f"Adam at 0.01: {100 * float((one['printed'].diff('epoch') > 0).mean()):.0f} % of epochs rise, and "
            f"{100 * float(1 - kinds['mean'].sel(setting='curvature')):.0f} % of the rises are not there with the "
            "full batch",
            "A relu network on six blobs, batches of 32. Left: the loss printed by one run, and its median over "
            "blocks. "
            "Middle: rises that are not in the full-data loss (record), that vanish with the full batch from the "
            "same state "
            "(noise), that stay (curvature). Right: mean over seeds, bars: 95 % intervals.",
        )
        axes = figure.subplots(1, 3, width_ratios=(1.25, 0.9, 1))
        _run(axes[0], one, trend, stop)
        _kinds(axes[1], kinds)
        _rates(axes[2], by_rate)
        for ax in axes:
            style.dress(ax)
        settle(figure)
    return figure


def _run(ax: Axes, one: xr.Dataset, trend: np.ndarray, stop: float) -> None:
    epochs = one["epoch"].values
    printed = one["printed"].values
    length = len(epochs) // len(trend)
    ax.plot(epochs, printed, color=BLUE, linewidth=0.6, label="printed: epoch mean")
    middle = length * (np.arange(len(trend)) + 0.5)
    ax.plot(middle, trend, color=style.INK, linewidth=1.1, label=f"median of {length} epochs")
    if np.isfinite(stop):
        ax.axvline(stop, color=style.GREY, linewidth=0.7, linestyle=(0, (3, 2)))
        ax.annotate(
            f" first stop of the trend,\n epoch {stop:.0f}", (stop, 0.62), xycoords=("data", "axes fraction"),
            fontsize=style.SMALL, color=style.GREY, va="top",
        )  # fmt: skip
    low = float(np.nanmin(printed))
    high = float(np.nanquantile(printed[1:], 0.999))
    ax.set(xlabel="epoch", ylabel="training loss", xlim=(0, epochs[-1]), ylim=(0.9 * low, high + 0.25 * (high - low)))
    ax.legend(loc="upper right", frameon=False, fontsize=style.SMALL, handlelength=1.6, borderaxespad=0)


def _kinds(ax: Axes, kinds: xr.Dataset) -> None:
    value = 100 * kinds["mean"].values
    error: Any = np.clip([value - 100 * kinds["low"].values, 100 * kinds["high"].values - value], 0, None)
    places = np.arange(len(value))
    ax.errorbar(places, value, error, fmt="o", color=NAVY, markersize=3.5, elinewidth=0.8)
    for place, height in zip(places, value, strict=True):
        ax.annotate(f"{height:.0f} %", (place, height), (6, 0), textcoords="offset points", va="center")
    ax.set(
        xticks=places, xticklabels=kinds["setting"].values.tolist(), xlim=(-0.5, 2.8),
        ylim=(-4, 104), ylabel="rises of the printed loss (%)",
    )  # fmt: skip


def _rates(ax: Axes, by_rate: xr.DataArray) -> None:
    rates = by_rate["learning_rate"].values
    looks = zip(
        by_rate["batches"].values.tolist(), (NAVY, RUST), ("o", "D"), ("-", style.CURVE_STYLES[1]), strict=False
    )
    for name, color, marker, line in looks:
        found = 100 * np.array([mean_interval(by_rate.sel(batches=name, learning_rate=rate).values) for rate in rates])
        value, low, high = found.T
        error: Any = np.clip([value - np.maximum(low, 0), np.minimum(high, 100) - value], 0, None)
        ax.errorbar(
            rates, value, error, color=color, marker=marker, linestyle=line, markersize=3, linewidth=0.9,
            elinewidth=0.7, label=name,
        )  # fmt: skip
    ax.axvline(0.01, color=style.GREY, linewidth=0.6, linestyle=(0, (3, 2)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xscale="log", xlabel="learning rate", ylabel="epochs that rise (%)", ylim=(-2, 66))
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, borderaxespad=0)
