"""Figure of the laws of Adam late in training: predicted against measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lossland.figures import style
from lossland.stability import adaptive

TIMES = {
    "first onset": ("o", style.CURVE_COLORS[4]),
    "crossing from trough": ("s", style.CURVE_COLORS[0]),
    "period of the bursts": ("D", style.CURVE_COLORS[3]),
    "RMSprop period": ("v", style.CURVE_COLORS[2]),
    "lag under noise (median)": ("^", style.CURVE_COLORS[1]),
    "lag from state (whole steps)": (".", style.GREY),
}
"""Laws whose quantity is a number of steps: marker and colour."""
SETTINGS = {"defaults": (0.9, 0.999), "0.9, 0.99": (0.9, 0.99), "0.95, 0.99": (0.95, 0.99), "0.8, 0.99": (0.8, 0.99)}
"""Settings in use, placed in the plane of the spike boundary: b1, b2."""
_LARGEST = 12.0
"""Per cent at which errors are cut off."""


def adam_laws_figure(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    boundary: Mapping[str, np.ndarray],
    cycles: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """Draw all laws of Adam on one parameter against what the optimizer did.

    Args:
        pairs: law -> (predicted, measured); those of `TIMES` are drawn against each other, all by their error.
        boundary: `delta` = 1 - b1 and the bracket `low`, `high` of 1 - b2 in which bursts end.
        cycles: b1 and b2 of the pairs "two-cycle multiplier".
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 5.4), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.12, 1), hspace=0.03)
        above, below = halves
        times, errors = above.subplots(1, 2)
        plane, growth = below.subplots(1, 2)
        _times(times, pairs)
        _errors(errors, pairs)
        _boundary(plane, boundary)
        _cycles(growth, *cycles, pairs["two-cycle multiplier"][1])
        for ax in (times, errors, plane, growth):
            style.dress(ax)
        errors.tick_params(axis="y", length=0)
    return figure


def _times(ax: Axes, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    shown = {law: pairs[law] for law in TIMES if law in pairs}
    everything = np.concatenate([np.concatenate(pair) for pair in shown.values()])
    ends = max(1.0, everything.min() / 1.5), 1.5 * everything.max()
    ax.plot(ends, ends, color=style.INK, linewidth=0.7, zorder=1)
    for law, (predicted, measured) in reversed(shown.items()):
        marker, color = TIMES[law]
        many = len(predicted) > 200
        ax.plot(
            predicted, measured, marker, color=color, markersize=2.2 if many else 3.6, linestyle="none", label=law,
            markeredgecolor=color if many else "white", markeredgewidth=0 if many else 0.35, rasterized=many, zorder=3,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="predicted (steps)", ylabel="measured (steps)")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], frameon=False, fontsize=style.SMALL, loc="upper left", handletextpad=0.1)
    ax.set_title("Times, predicted and measured", loc="left")


def _errors(ax: Axes, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    generator = np.random.default_rng(0)
    ax.axvspan(-1, 1, color=style.OUTCOME_COLORS["never_rises"], zorder=0)
    ax.axvline(0, color=style.INK, linewidth=0.7, zorder=1)
    for row, (predicted, measured) in enumerate(pairs.values()):
        error = 100 * (measured / predicted - 1)
        many = len(error) > 200
        places = row + 0.5 * (generator.random(len(error)) - 0.5)
        ax.plot(
            np.clip(error, -_LARGEST, _LARGEST), places, ".", color=style.CURVE_COLORS[0 if many else 3],
            markersize=1.6 if many else 3, markeredgewidth=0, rasterized=many, zorder=2,
        )  # fmt: skip
        low, middle, high = np.percentile(error, [5, 50, 95])
        ax.plot([low, high], [row, row], color=style.INK, linewidth=1, zorder=3)
        ax.plot([middle], [row], "|", color=style.INK, markersize=6, markeredgewidth=1.2, zorder=3)
        ax.annotate(
            f"{len(error)}", (1, row), (3, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
            va="center", color=style.GREY, fontsize=style.SMALL, annotation_clip=False,
        )  # fmt: skip
    ax.set(yticks=range(len(pairs)), yticklabels=list(pairs), xlim=(-_LARGEST, _LARGEST), ylim=(len(pairs) - 0.4, -0.6))
    ax.set_xlabel("measured / predicted − 1 (%)")
    ax.set_title("Error of every law; bar: 5 to 95 %, right: how many", loc="left")


def _boundary(ax: Axes, boundary: Mapping[str, np.ndarray]) -> None:
    delta = np.geomspace(0.035, 0.35, 100)
    law = adaptive.spike_boundary(1 - delta)
    bottom, top = 4e-4, 0.5
    ax.fill_between(delta, bottom, law, color=style.OUTCOME_COLORS["rises_and_recovers"], alpha=0.3, linewidth=0)
    ax.plot(delta, law, color=style.CURVE_COLORS[3], linewidth=1.2)
    middle = np.sqrt(boundary["low"] * boundary["high"])
    spread = np.abs(np.stack([boundary["low"], boundary["high"]]) - middle)
    ax.errorbar(
        boundary["delta"], middle, spread, fmt="o", color=style.INK, markersize=3, elinewidth=1.2, capsize=1.5, zorder=4
    )
    for words, (b1, b2) in SETTINGS.items():
        ax.plot([1 - b1], [1 - b2], "x", color=style.CURVE_COLORS[2], markersize=5, markeredgewidth=1.3, zorder=5)
        ax.annotate(
            words, (1 - b1, 1 - b2), (4, -3), textcoords="offset points", color=style.CURVE_COLORS[2], va="top",
            fontsize=style.SMALL,
        )  # fmt: skip
    ax.annotate("bursts forever", (0.2, 2e-3), ha="center", color=style.INK)
    ax.annotate("calm oscillation", (0.06, 6e-2), ha="center", color=style.INK)
    ax.set(xscale="log", yscale="log", xlim=(delta[0], delta[-1]), ylim=(bottom, top), xlabel="1 − β₁", ylabel="1 − β₂")
    ticks = [0.05, 0.1, 0.2, 0.3]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title("Where Adam bursts on a quadratic", loc="left")


def _cycles(ax: Axes, b1: np.ndarray, b2: np.ndarray, measured: np.ndarray) -> None:
    many = np.linspace(0, 0.97, 400)
    kinds = [value for value in (0.5, 0.9, 0.999) if np.any(b2 == value)]
    looks = zip(kinds, "os^", (style.CURVE_COLORS[0], style.CURVE_COLORS[1], style.CURVE_COLORS[3]), strict=False)
    ax.axhline(1, color=style.INK, linewidth=0.7)
    for value, marker, color in looks:
        ax.plot(many, np.abs(adaptive.two_cycle_multipliers(many, value)[:, 0]), color=color, linewidth=1)
        mine = b2 == value
        ax.plot(
            b1[mine], measured[mine], marker, color=color, markersize=3.8, markeredgecolor=style.INK, linestyle="none",
            markeredgewidth=0.4, label=f"β₂ = {value:g}",
        )  # fmt: skip
    edge = float(adaptive.two_cycle_critical_momentum(0.999))
    ax.annotate(
        f"β₂ = 0.999: stable below β₁ = {edge:.3f}",
        (edge, 1),
        (6, -8),
        textcoords="offset points",
        va="top",
        color=style.GREY,
    )
    ax.legend(frameon=False, fontsize=style.SMALL, loc="upper left", handletextpad=0.2)
    ax.set(xlabel="β₁", ylabel="growth per step beside the two-cycle", xlim=(0, 1))
    ax.set_title("The edge attracts RMSprop and repels Adam", loc="left")
