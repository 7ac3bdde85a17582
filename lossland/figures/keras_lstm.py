"""Figure of the LSTM whose loss fluctuates: a run, what its rises are made of, the noise, and who is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator

from lossland.figures import style
from lossland.figures.labels import head, scale_axis, settle

KIND_COLORS = {"record": style.OUTCOME_COLORS["never_rises"], "noise": "#EFA21A", "curvature": "#27346B"}
KIND_HATCHES = {"record": "", "noise": "....", "curvature": "////"}
KIND_EDGES = {"record": style.GREY, "noise": "#C98309", "curvature": "#3F4E8C"}
KIND_WORDS = {"record": "the record alone", "noise": "gradient noise", "curvature": "curvature"}


def keras_lstm_figure(
    one: xr.Dataset, kinds: Mapping[str, xr.Dataset], noise: xr.Dataset, shares: xr.Dataset, mislabelled: xr.Dataset
) -> Figure:
    """Draw case 3 in five panels.

    Args:
        one: one long run over "epoch", with `printed`, `end_loss`, `end_accuracy`.
        kinds: setting -> `mean`, `low`, `high` over "setting" (record, noise, curvature), shares of the rises.
        noise: `measured` over (state, batch_size, draw) and `predicted` over (state, batch_size).
        shares: `mean`, `low`, `high` over "setting", share of epochs whose loss rises.
        mislabelled: `change` over (label, batch_size, state, draw).
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 5.4), layout="constrained")
        head(
            figure,
            f"An LSTM in batches of 32: {_vanishing(next(iter(kinds.values())))} of the rises of its printed loss "
            "are not "
            "there with the full batch",
            "98 sequences of a motor's current, RMSprop at 0.001. Top right: rises of the printed loss that are not "
            "there in the full-data loss (record), that vanish with the full batch from the same state (noise), and "
            "that "
            "stay (curvature). Bars: 95 % intervals over seeds. Bottom right: one step, change of the full-data loss.",
        )
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.05))
        top = parts[0].subplots(1, 2, width_ratios=(1.25, 1))
        bottom = parts[1].subplots(1, 3, width_ratios=(0.85, 1.1, 0.85))
        _run(top[0], one)
        plot_kinds(top[1], kinds)
        _noise(bottom[0], noise)
        plot_shares(bottom[1], shares)
        _mislabelled(bottom[2], mislabelled)
        for ax in (*top, *bottom):
            style.dress(ax)
        for ax in (top[1], bottom[1]):
            ax.tick_params(axis="y", length=0)
        settle(figure)
    return figure


def _vanishing(kinds: xr.Dataset) -> str:
    share = float(kinds["mean"].sel(setting=["record", "noise"]).sum())
    return f"{100 * share:.0f} %" if np.isfinite(kinds["mean"]).any() else "none"


def _run(ax: Axes, one: xr.Dataset) -> None:
    epochs = one["epoch"].values
    ax.semilogy(epochs, one["printed"].values, color=style.CURVE_COLORS[0], linewidth=0.7, label="printed: epoch mean")
    ax.semilogy(epochs, one["end_loss"].values, color=style.INK, linewidth=0.6, label="full data, after the epoch")
    full = np.flatnonzero(one["end_accuracy"].values >= 1)
    if len(full):
        ax.axvline(float(epochs[full[0]]), color=style.GREY, linewidth=0.7, linestyle=(0, (3, 2)))
        ax.annotate(
            f"all sequences right\nafter epoch {epochs[full[0]]}", (epochs[full[0]], 1), (-3, -14),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="right", va="top",
            fontsize=style.SMALL, color=style.GREY,
        )  # fmt: skip
    values = np.concatenate([one[name].values for name in ("printed", "end_loss")])
    scale_axis(ax, "y", 0.8 * float(np.nanmin(values)), 1.15 * float(np.nanmax(values)), log=True)
    ax.set(xlabel="epoch", ylabel="training loss", xlim=(0, epochs[-1]))
    ax.legend(loc="lower left", frameon=False, fontsize=style.SMALL, handlelength=1.6, borderaxespad=0.2)


def plot_kinds(ax: Axes, kinds: Mapping[str, xr.Dataset]) -> None:
    """Draw what rises are made of, one stacked bar per setting, in per cent."""
    places = np.arange(len(kinds))[::-1].astype(float)
    for place, one in zip(places, kinds.values(), strict=True):
        left = 0.0
        for kind, width in zip(one["setting"].values.tolist(), 100 * one["mean"].values, strict=True):
            if not np.isfinite(width):
                continue
            ax.barh(
                place, width, 0.5, left, color=KIND_COLORS[kind], edgecolor=KIND_EDGES[kind], linewidth=0.6,
                hatch=KIND_HATCHES[kind],
            )  # fmt: skip
            if width >= 8:
                ax.annotate(
                    f"{width:.0f}", (left + width / 2, place), (0, 0), textcoords="offset points", ha="center",
                    va="center", fontsize=style.SMALL, color=style.INK,
                    bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"},
                )  # fmt: skip
            left += width
    ax.set(
        yticks=places, yticklabels=list(kinds), xlim=(0, 100), ylim=(-0.5, places[0] + 1.0),
        xlabel="rises of the printed loss (%)", xticks=(0, 25, 50, 75, 100),
    )  # fmt: skip
    handles = [
        Patch(
            facecolor=KIND_COLORS[kind],
            edgecolor=KIND_EDGES[kind],
            hatch=KIND_HATCHES[kind],
            linewidth=0.6,
            label=words,
        )
        for kind, words in KIND_WORDS.items()
    ]
    ax.legend(
        handles=handles, loc="upper left", frameon=False, fontsize=style.SMALL, ncols=3, handlelength=1.2,
        columnspacing=0.8, borderaxespad=0, handletextpad=0.4,
    )  # fmt: skip


def _noise(ax: Axes, noise: xr.Dataset) -> None:
    sizes = noise["batch_size"].values
    measured = (noise["measured"] / noise["gradient_square"]).mean("draw")
    predicted = noise["predicted"] / noise["gradient_square"]
    for state in range(noise.sizes["state"]):
        first = state == 0
        color = style.CURVE_COLORS[state % len(style.CURVE_COLORS)]
        line = predicted.isel(state=state).values
        ax.loglog(sizes, line, color=color, linewidth=0.9, linestyle=style.CURVE_STYLES[state % 5], label="law" * first)
        ax.loglog(sizes, measured.isel(state=state).values, "o", color=color, markersize=3, label="measured" * first)
    ax.axhline(1, color=style.GREY, linewidth=0.6)
    ax.set(xlabel="batch size", ylabel="variance of the gradient / |g|²", xticks=sizes, xticklabels=map(str, sizes))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_locator(NullLocator())
    handles, labels = ax.get_legend_handles_labels()
    shown = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    ax.legend(*zip(*shown, strict=True), loc="upper right", frameon=False, fontsize=style.SMALL, borderaxespad=0)


def plot_shares(ax: Axes, shares: xr.Dataset, label: str = "epochs whose loss rises (%)") -> None:
    """Draw a share for each setting with its interval, in per cent."""
    names = shares["setting"].values.tolist()
    places = np.arange(len(names))[::-1]
    value = 100 * shares["mean"].values
    low, high = (np.clip(100 * shares[name].values, 0, 100) for name in ("low", "high"))
    error: Any = np.clip([value - low, high - value], 0, None)
    ax.errorbar(value, places, xerr=error, fmt="o", color=style.CURVE_COLORS[3], markersize=3, elinewidth=0.8)
    ax.axvline(value[0], color=style.GREY, linewidth=0.6, linestyle=(0, (3, 2)))
    ax.set(yticks=places, yticklabels=names, xlabel=label, xlim=(0, max(50, 1.08 * np.nanmax(value))))


def _mislabelled(ax: Axes, mislabelled: xr.Dataset) -> None:
    sizes = mislabelled["batch_size"].values
    rng = np.random.default_rng(0)  # for where points stand, not for what they are
    for row, (label, color, marker) in enumerate(
        (("right", style.CURVE_COLORS[0], "o"), ("wrong", style.CURVE_COLORS[1], "D"))
    ):
        for place, size in enumerate(sizes):
            values = mislabelled["change"].sel(label=label, batch_size=size).values.ravel()
            x = place + 0.4 * row - 0.2 + rng.uniform(-0.1, 0.1, len(values))
            ax.plot(x, values, marker, color=color, markersize=1.4, alpha=0.6, markeredgewidth=0)
            ax.plot(
                [place + 0.4 * row - 0.35, place + 0.4 * row - 0.05],
                [np.median(values)] * 2,
                color=style.INK,
                linewidth=1.2,
            )
        ax.plot([], [], marker, color=color, markersize=3, label=f"{label} labels" if row == 0 else "one wrong label")
    ax.axhline(0, color=style.GREY, linewidth=0.6)
    ax.set(xticks=range(len(sizes)), xticklabels=map(str, sizes), xlabel="batch size", ylabel="change of the full loss")
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top + 0.25 * (top - bottom))
    ax.legend(loc="upper right", frameon=False, fontsize=style.SMALL, borderaxespad=0, handletextpad=0.2)
