"""Figure of the reported recurrent classifier: its drop, the rates at which it comes, what removes it, labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lossland.figures import style
from lossland.figures.labels import counted, edge_number, head, label_ends, number, scale_axis, settle

BLUE, RUST, PLUM, NAVY = style.CURVE_COLORS[:4]
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
SETTING_COLORS = (style.GREY, BLUE, style.INK, RUST, PLUM, NAVY, "#8A6D1F")

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
    numbers: Mapping[str, Any],
    example: tuple[xr.Dataset, xr.Dataset | None],
    shares: xr.Dataset,
    progress: xr.Dataset,
    labels: xr.Dataset,
    drift: xr.Dataset,
    arms: xr.Dataset | None = None,
) -> Figure:
    """Draw the reported case: one run, the rates at which its drop comes and how far they have got, labels, arms.

    Args:
        numbers: what was measured, for the title: `boundary_full_batch` with `_low` and `_high`, `runs`, and, where
            drops were taken apart, `gradient_jump_median` and `warning_steps_median`.
        example: one run over "step", with `loss`, `accuracy`, and the coordinate `learning_rate`; and the steps around
            its drop one by one, counted from `forked_at`, with `loss`, `ratio` (preconditioned sharpness over its
            threshold) and `growth_through_time`, or None.
        shares: `share`, `low`, `high` over (setting, learning_rate), the share of seeds with the shape; NaN where a
            setting was not run.
        progress: `share` over (learning_rate, progress), progress = learning rate x steps.
        labels: `share` and `learn`, each with `_low` and `_high`, over "labels".
        drift: `mean_bias`, `predicted` over (setting, step).
        arms: `share`, `low`, `high`, `count` over (when, arm); None leaves the panel out.
    """
    one, close = example
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 8.4 if arms is not None else 6.4), layout="constrained")
        head(figure, *_words(numbers, one, shares, close))
        left = [["loss"], ["accuracy"]] if close is None else [["loss"], ["accuracy"], ["close"]]
        rows = [[name[0], "shares"] for name in left]
        heights = (1.15, 1, 1.05) if arms is not None else (1, 1)
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        axes: dict[str, Axes] = parts[0].subplot_mosaic(
            rows, height_ratios=(1, 0.8) if close is None else (1, 0.8, 1.5), width_ratios=(1.15, 1)
        )
        if arms is None:
            axes |= parts[1].subplot_mosaic([["progress", "labels"], ["progress", "drift"]], width_ratios=(1.15, 1))
        else:
            axes |= parts[1].subplot_mosaic([["progress", "labels"]], width_ratios=(1.15, 1))
            axes |= parts[2].subplot_mosaic([["arms", "drift"]], width_ratios=(1.15, 1))
            _arms(axes["arms"], arms)
            axes["arms"].tick_params(axis="y", length=0)
        _one_run(axes, one, close)
        if close is not None:
            _close(axes["close"], close)
        _shares(axes["shares"], shares)
        _progress(axes["progress"], progress)
        _labels(axes["labels"], labels)
        _drift(axes["drift"], drift)
        for ax in axes.values():
            style.dress(ax)
        axes["labels"].tick_params(axis="y", length=0)
        settle(figure)
    return figure


def _words(
    numbers: Mapping[str, Any], one: xr.Dataset, shares: xr.Dataset, close: xr.Dataset | None
) -> tuple[str, str]:
    """Title and note, from what was measured."""
    edge, low, high = (numbers[f"boundary_full_batch{end}"] for end in ("", "_low", "_high"))
    rates, steps = shares["learning_rate"].values, int(one["step"][-1])
    where = f"from learning rate {edge_number(edge, rates)}" + (f" [{number(low)}, {number(high)}]" if edge else "")
    if np.isinf(edge):
        where = f"at no learning rate up to {number(rates[-1])}"
    title = f"A recurrent classifier learns, then gets worse: half of the seeds within {steps} steps {where}"
    if "gradient_jump_median" in numbers:
        title += (
            f"; its gradient grows {number(numbers['gradient_jump_median'])}-fold, "
            f"{counted(numbers['warning_steps_median'], 'step')} after the sharpness passed its threshold"
        )
    note = (
        f"Tanh network, four types of sequences, Adam; {numbers['runs']:.0f} runs on the map. Top left: one run at "
        f"learning rate {number(float(one['learning_rate']))}"
        + (", and the steps around its drop (shaded)" if close is not None else "")
        + ". Shares: seeds that reach 90 % accuracy and later fall below 80 % with twice the smallest loss, with 95 % "
        "intervals. Labels: rows that sum to s, with the gradient of the loss (autodiff) or softmax - p (fused)."
    )
    return title, note


def _one_run(axes: dict[str, Axes], one: xr.Dataset, close: xr.Dataset | None) -> None:
    steps = one["step"].values
    top, bottom = axes["loss"], axes["accuracy"]
    top.semilogy(steps, one["loss"].values, color=style.INK, linewidth=0.8)
    bottom.plot(steps, 100 * one["accuracy"].values, color=BLUE, linewidth=0.8)
    bottom.axhline(90, color=style.GREY, linewidth=0.6, linestyle=(0, (3, 2)))
    if close is not None:
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
        color, marker = SETTING_COLORS[index % 7], MARKERS[index % 7]
        place = rates[known] * 1.02 ** (index - 2)  # side by side, so that no interval hides another
        error: Any = np.maximum([value - low, high - value], 0)
        ax.errorbar(
            place, value, error, color=color, marker=marker, markersize=3.2, linewidth=0.9, elinewidth=0.6,
            linestyle=style.CURVE_STYLES[index % 5], label=name, alpha=1 if index < 3 else 0.85,
        )  # fmt: skip
    ax.axvline(2e-4, color=style.GREY, linewidth=0.7, linestyle=(0, (3, 2)))
    ax.annotate(
        " reported rate", (2e-4, 0.5), xycoords=("data", "axes fraction"), rotation=90, va="center", ha="left",
        fontsize=style.SMALL, color=style.GREY,
    )  # fmt: skip
    ax.set(
        ylim=(-3, 148),
        xlabel="learning rate",
        ylabel="runs that learn, then get worse (%)",
        yticks=(0, 25, 50, 75, 100),
    )
    scale_axis(ax, "x", 0.8 * min(rates[0], 2e-4), 1.25 * rates[-1], log=True)
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=2.6, borderaxespad=0, ncols=2)


def _progress(ax: Axes, progress: xr.Dataset) -> None:
    rates = progress["learning_rate"].values
    shades = style.HEAT(np.linspace(0.25, 1, len(rates)))
    for index, rate in enumerate(rates):
        row = progress.sel(learning_rate=rate)
        known = np.isfinite(row["share"].values)
        x = row["progress"].values[known]
        if rate in (rates[0], rates[-1]):
            ax.fill_between(
                x, 100 * row["low"].values[known], 100 * row["high"].values[known], color=shades[index], alpha=0.15,
                linewidth=0,
            )  # fmt: skip
        ax.plot(
            x, 100 * row["share"].values[known], color=shades[index], linestyle=style.CURVE_STYLES[index % 5],
            marker=MARKERS[index % 7], markevery=3, markersize=3, linewidth=1, label=number(rate),
        )  # fmt: skip
    scale_axis(ax, "x", 0.9 * float(progress["progress"][0]), 1.1 * float(progress["progress"][-1]), log=True)
    ax.set(
        xlabel="learning rate × steps", ylabel="runs that have got worse (%)", ylim=(-3, 103),
        yticks=(0, 25, 50, 75, 100),
    )  # fmt: skip
    ax.legend(
        loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=2.6, borderaxespad=0.1,
        title="learning rate", title_fontsize=style.SMALL, alignment="left",
    )  # fmt: skip


def _labels(ax: Axes, labels: xr.Dataset) -> None:
    names = labels["labels"].values.tolist()
    places = np.arange(len(names))[::-1].astype(float)
    for row, (key, text) in enumerate((("learn", "learn, over 90 %"), ("share", "learn, then get worse"))):
        value, low, high = (100 * labels[f"{key}{end}"].values for end in ("", "_low", "_high"))
        error: Any = np.maximum([value - low, high - value], 0)
        ax.errorbar(
            value, places + (0.14, -0.14)[row], xerr=error, fmt=MARKERS[row], color=(style.GREY, RUST)[row],
            markersize=3.2, markerfacecolor=("white", RUST)[row], elinewidth=0.8, label=text,
        )  # fmt: skip
    ticks = [name if name == "valid" else "{}, s = {}".format(*name.split()) for name in names]
    ax.set(
        yticks=places, yticklabels=ticks, ylim=(-0.6, len(names) + 0.3), xlim=(-4, 104), xlabel="runs (%)",
        xticks=(0, 25, 50, 75, 100),
    )  # fmt: skip
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=1, borderaxespad=0, ncols=2)


def _arms(ax: Axes, arms: xr.Dataset) -> None:
    known = arms["share"].notnull().any("when").values
    names = [name for name in ARMS if name in arms["arm"].values[known]]
    places = np.arange(len(names))[::-1].astype(float)
    for row, when in enumerate(arms["when"].values.tolist()):
        one = arms.sel(when=when, arm=names)
        value, low, high = (100 * one[key].values for key in ("share", "low", "high"))
        count = int(one["count"].max())
        kind = "seeds" if "start" in when else "states"
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
    settings = drift["setting"].values.tolist()
    ends = []
    for index, name in enumerate(settings):
        row = drift.sel(setting=name).dropna("step", subset=["mean_bias"])
        color = (style.INK, BLUE, RUST, PLUM, NAVY, style.GREY)[index % 6]
        steps, values = row["step"].values, row["mean_bias"].values
        ax.plot(steps, values, color=color, linewidth=1, linestyle=style.CURVE_STYLES[index % 5])
        ends.append((float(values[-1]), name.replace("gradient descent", "descent"), color))
        if np.isfinite(row["predicted"]).any():
            every = max(1, len(steps) // 5)
            ax.plot(
                steps[::every], row["predicted"].values[::every], "o", color=color, markersize=3.4,
                markerfacecolor="white", markeredgewidth=0.8, label="η (s - 1) / C per step",
            )  # fmt: skip
    steps = drift["step"].values
    ax.set(xlabel="step", ylabel="mean output bias / learning rate", xlim=(steps[0], steps[-1]))
    ax.legend(loc="upper left", frameon=False, fontsize=style.SMALL, handlelength=2, borderaxespad=0.2)
    label_ends(ax, ends, "")
