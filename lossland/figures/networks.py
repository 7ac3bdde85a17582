"""Figure of Adam's edge on several networks: loss, preconditioned sharpness over threshold, and lags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lossland.figures import style
from lossland.figures.adam import BAND
from lossland.figures.labels import head, settle

NAMES = {
    "mlp": "tanh MLP,\nfull batch",
    "mlp_batch_32": "tanh MLP,\nbatch 32",
    "mlp_cross_entropy": "tanh MLP,\ncross-entropy",
    "transformer": "transformer,\nfull batch",
    "transformer_batch_16": "transformer,\nbatch 16",
}
BLUE, RUST, PLUM = style.CURVE_COLORS[0], style.CURVE_COLORS[1], style.CURVE_COLORS[2]


def networks_figure(runs: Mapping[str, xr.Dataset], lags: Mapping[str, xr.Dataset]) -> Figure:
    """Draw a column per network, its losses above and its ratios below, and the lags of all spikes.

    Args:
        runs: name -> dataset over (seed, step) with `loss` and `ratio`.
        lags: name -> what `stability.spikes.spikes` returned, with `predicted_lag`.
    """
    names = list(runs)
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 3.2), layout="constrained")
        head(
            figure,
            _title(runs),
            "Adam, β₁ 0.9, β₂ 0.999. Columns: one network each; all seeds thin, the first one thick. Squared error "
            "unless it says cross-entropy. Right: spikes under full batches; grey band: measured lag "
            f"{BAND[0]:g} to {BAND[1]:g} times the predicted one.",
        )
        panels: Any = figure.subfigures(1, 2, width_ratios=(max(len(names), 2), 2))
        left, right = panels
        grid = left.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
        for place, name in enumerate(names):
            _column(grid[0, place], grid[1, place], name, runs[name])
        grid[0, 0].set_ylabel("training loss")
        grid[1, 0].set_ylabel("preconditioned\nsharpness / threshold")
        lag = right.subplots()
        _lags(lag, lags)
        for ax in (*grid.ravel(), lag):
            style.dress(ax)
        grid[0, 0].yaxis.set_minor_locator(NullLocator())
        settle(figure)
    return figure


def _title(runs: Mapping[str, xr.Dataset]) -> str:
    """Say how many networks stay within a tenth of the threshold over the second half of their steps."""
    middle = {
        name: float(one["ratio"].isel(step=slice(one.sizes["step"] // 2, None)).median()) for name, one in runs.items()
    }
    other = [name for name in runs if "batch" in name or "cross_entropy" in name]
    held = sum(abs(value - 1) < 0.1 for name, value in middle.items() if name not in other)
    text = f"{held} of {len(runs) - len(other)} networks hold Adam's edge under full batches"
    left = sum(middle[name] < 0.9 for name in other)
    return text + (f"; noise and confident labels keep {left} of {len(other)} below it" if other else "")


def _column(top: Axes, bottom: Axes, name: str, runs: xr.Dataset) -> None:
    steps = runs["step"].values
    for ax, values, color in ((top, runs["loss"], style.INK), (bottom, runs["ratio"], PLUM)):
        curves = values.transpose("seed", "step").values
        ax.plot(steps, curves[1:].T, color=color, linewidth=0.4, alpha=0.35)
        ax.plot(steps, curves[0], color=color, linewidth=0.9)
        ax.set_xlim(steps[0], steps[-1])
        ax.set_xticks([steps[0], steps[-1]])
    top.set(yscale="log", title=NAMES.get(name, name.replace("_", " ")))
    bottom.axhline(1, color=style.INK, linewidth=0.7)
    bottom.set(ylim=(0, 1.5), xlabel="step")
    bottom.get_xticklabels()[0].set(ha="left")
    bottom.get_xticklabels()[-1].set(ha="right")


def _lags(ax: Axes, lags: Mapping[str, xr.Dataset]) -> None:
    looks = ((PLUM, "o"), (RUST, "^"), (BLUE, "s"))
    shown = [name for name, found in lags.items() if "batch" not in name and found.sizes["spike"]]
    most = 1.0
    for (color, marker), name in zip(looks, shown, strict=False):
        measured, predicted = lags[name]["lag"].values, lags[name]["predicted_lag"].values
        known = np.isfinite(measured) & np.isfinite(predicted)
        if not known.any():
            continue
        most = max(most, float(np.quantile(measured[known], 0.98)), float(np.quantile(predicted[known], 0.98)))
        label = NAMES.get(name, name).replace("\n", " ") + f": {np.count_nonzero(known)} spikes"
        ax.plot(
            predicted[known], measured[known], marker, color=color, markersize=2.5, markeredgewidth=0, alpha=0.6,
            label=label,
        )  # fmt: skip
    line = np.array([0, 1.08 * most])
    ax.fill_between(line, BAND[0] * line, BAND[1] * line, color=style.OUTCOME_COLORS["never_rises"], linewidth=0)
    ax.plot(line, line, color=style.INK, linewidth=0.7)
    ax.set(xlim=line, ylim=line, xlabel="predicted lag (steps)", ylabel="measured lag (steps)", aspect="equal")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(
            loc="lower center", bbox_to_anchor=(0.42, 1.0), frameon=False, fontsize=style.SMALL, handletextpad=0.2
        )
