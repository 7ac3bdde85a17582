"""Figure of the reported recurrent classifier: its drop, the rates at which it comes, what removes it, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from lossland.figures import style
from lossland.figures.labels import head, settle

BLUE, RUST, PLUM, NAVY = style.CURVE_COLORS[:4]
MARKERS = ("o", "s", "D", "^", "v", "P")

ARMS = {
    "unchanged": "unchanged",
    "learning_rate_x_0.5": "learning rate × 0.5",
    "learning_rate_x_0.25": "learning rate × 0.25",
    "learning_rate_x_0.1": "learning rate × 0.1",
    "learning_rate_decays": "learning rate decays",
    "gradient_clipped": "gradient clipped at its usual norm",
    "update_clipped": "update clipped at RMS 1",
    "eps_raised": "ε raised",
    "eps_1e-3": "ε 1e-3",
    "b1_0": "β₁ 0.9 → 0",
    "b1_0.95": "β₁ 0.9 → 0.95",
    "b2_0.99": "β₂ 0.999 → 0.99",
    "b2_0.9": "β₂ 0.999 → 0.9",
    "amsgrad": "AMSGrad",
    "second_moment_frozen": "second moment frozen",
}


def rnn_sequences_figure(
    one: xr.Dataset, close: xr.Dataset, shares: xr.Dataset, arms: xr.Dataset, drift: xr.Dataset
) -> Figure:
    """Draw the reported case in five panels.

    Args:
        one: one run over "step", with `loss`, `accuracy`, and the coordinate `learning_rate`.
        close: the steps around its drop one by one, counted from `forked_at`, with `loss`, `ratio` (preconditioned
            sharpness over its threshold) and `growth_through_time`.
        shares: `share`, `low`, `high` over (setting, learning_rate), the share of seeds with the shape; NaN where a
            setting was not run.
        arms: `share`, `low`, `high`, `count` over (when, arm), when in "from the start", "before the drop".
        drift: `mean_bias`, `predicted` over (setting, step).
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 6.2), layout="constrained")
        rate = float(one["learning_rate"])
        head(
            figure,
            "A recurrent classifier learns, then gets worse: gradients explode within a step, without warning",
            f"Tanh network, four types of sequences, Adam. Left: one run at learning rate {rate:.3g}, and the steps "
            "around its drop (shaded). Top right: share of seeds that reach 90 % accuracy and later fall below "
            "80 % with twice the loss; bars: 95 % intervals. Bottom right: labels that sum to 1.5, gradient softmax - "
            "p (fused) or autodiff's.",
        )
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        axes: dict[str, Axes] = parts[0].subplot_mosaic(
            [["loss", "shares"], ["accuracy", "shares"], ["close", "shares"]], height_ratios=(1, 0.8, 1.5),
            width_ratios=(1.15, 1),
        )  # fmt: skip
        axes |= parts[1].subplot_mosaic([["arms", "drift"]], width_ratios=(1.15, 1))
        _one_run(axes, one, close)
        _close(axes["close"], close)
        _shares(axes["shares"], shares)
        _arms(axes["arms"], arms)
        _drift(axes["drift"], drift)
        for ax in axes.values():
            style.dress(ax)
        axes["arms"].tick_params(axis="y", length=0)
        settle(figure)
    return figure


def _one_run(axes: dict[str, Axes], one: xr.Dataset, close: xr.Dataset) -> None:
    steps = one["step"].values
    top, bottom = axes["loss"], axes["accuracy"]
    top.semilogy(steps, one["loss"].values, color=style.INK, linewidth=0.8)
    bottom.plot(steps, 100 * one["accuracy"].values, color=BLUE, linewidth=0.8)
    bottom.axhline(90, color=style.GREY, linewidth=0.6, linestyle=(0, (3, 2)))
    window = float(close["forked_at"]) + close["step"].values[[0, -1]]
    for ax in (top, bottom):
        ax.axvspan(*window, color=style.OUTCOME_COLORS["rises_and_recovers"], alpha=0.35, linewidth=0)
    top.set(ylabel="training loss", xlim=(steps[0], steps[-1]))
    top.tick_params(labelbottom=False)
    top.yaxis.set_minor_locator(NullLocator())
    bottom.set(ylabel="accuracy (%)", xlim=(steps[0], steps[-1]), ylim=(0, 104), yticks=(0, 50, 90), xlabel="step")


def _close(ax: Axes, close: xr.Dataset) -> None:
    steps = float(close["forked_at"]) + close["step"].values
    curves = (
        ("loss", "training loss", style.INK, "-"),
        ("ratio", "sharpness / threshold", PLUM, style.CURVE_STYLES[1]),
        ("growth_through_time", "gradients, first / last time step", RUST, style.CURVE_STYLES[3]),
    )
    for name, label, color, line in curves:
        values = close[name].values
        ax.semilogy(steps, np.where(values > 0, values, np.nan), color=color, linestyle=line, linewidth=1, label=label)
    ax.axhline(1, color=style.GREY, linewidth=0.6)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(top=ax.get_ylim()[1] * 1e5)
    ax.set(xlabel="step", xlim=(steps[0], steps[-1]))
    ax.legend(
        loc="upper left",
        frameon=False,
        fontsize=style.SMALL,
        handlelength=2.4,
        borderaxespad=0.1,
        ncols=2,
        columnspacing=1.2,
    )


def _shares(ax: Axes, shares: xr.Dataset) -> None:
    rates = shares["learning_rate"].values
    for index, name in enumerate(shares["setting"].values.tolist()):
        row = shares.sel(setting=name)
        known = np.isfinite(row["share"].values)
        value, low, high = (100 * row[key].values[known] for key in ("share", "low", "high"))
        color, marker = (NAVY, style.INK, RUST, BLUE, PLUM, style.GREY)[index % 6], MARKERS[index % 6]
        place = rates[known] * 1.03 ** (index - 2)  # side by side, so that no interval hides another
        error: Any = np.maximum([value - low, high - value], 0)
        ax.errorbar(
            place, value, error, color=color, marker=marker, markersize=3.2, linewidth=0.9, elinewidth=0.6,
            linestyle=style.CURVE_STYLES[index % 5], label=name,
        )  # fmt: skip
    ax.axvline(2e-4, color=style.GREY, linewidth=0.7, linestyle=(0, (3, 2)))
    ax.annotate(
        " reported rate", (2e-4, 0.5), xycoords=("data", "axes fraction"), rotation=90, va="center", ha="left",
        fontsize=style.SMALL, color=style.GREY,
    )  # fmt: skip
    ax.set(
        xscale="log", xlim=(0.8 * min(rates[0], 2e-4), 1.25 * rates[-1]), ylim=(-3, 128), xlabel="learning rate",
        ylabel="runs that learn, then get worse (%)", yticks=(0, 25, 50, 75, 100),
    )  # fmt: skip
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=2.6, borderaxespad=0, ncols=2)


def _arms(ax: Axes, arms: xr.Dataset) -> None:
    known = arms["share"].notnull().any("when").values
    names = [name for name in ARMS if name in arms["arm"].values[known]]
    places = np.arange(len(names))[::-1].astype(float)
    for row, when in enumerate(arms["when"].values.tolist()):
        one = arms.sel(when=when, arm=names)
        value, low, high = (100 * one[key].values for key in ("share", "low", "high"))
        count = int(one["count"].max())
        kind = "seeds" if row == 0 else "states"
        error: Any = np.maximum([value - low, high - value], 0)
        ax.errorbar(
            value, places + (0.16, -0.16)[row], xerr=error, fmt=MARKERS[row], color=(NAVY, RUST)[row], markersize=3.2,
            markerfacecolor=("white", RUST)[row], elinewidth=0.8, label=f"{when}, {count} {kind}",
        )  # fmt: skip
    ax.set(
        yticks=places, yticklabels=[ARMS[name] for name in names], ylim=(-0.6, len(names) + 1.1), xlim=(-4, 104),
        xlabel="runs that get worse (%)", xticks=(0, 25, 50, 75, 100),
    )  # fmt: skip
    ax.axhline(len(names) - 1.5, color=style.RULE, linewidth=0.6)
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=1, borderaxespad=0, ncols=2)


def _drift(ax: Axes, drift: xr.Dataset) -> None:
    for index, name in enumerate(drift["setting"].values.tolist()):
        row = drift.sel(setting=name)
        color = (style.GREY, BLUE, NAVY, RUST)[index % 4]
        steps = row["step"].values
        ax.plot(
            steps,
            row["mean_bias"].values,
            color=color,
            linewidth=1.1,
            linestyle=style.CURVE_STYLES[index % 5],
            label=name,
        )
        if np.isfinite(row["predicted"]).any():
            every = max(1, len(steps) // 9)
            ax.plot(
                steps[::every], row["predicted"].values[::every], MARKERS[index], color=color, markersize=3.4,
                markerfacecolor="white", markeredgewidth=0.8, label=f"{name}, predicted",
            )  # fmt: skip
    steps = drift["step"].values
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])
    ax.set(xlabel="step", ylabel="mean output bias / learning rate", xlim=(steps[0], 1.02 * steps[-1]))
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=2, borderaxespad=0.2)
