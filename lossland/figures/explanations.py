"""Figure of an explanation: the loss around its rise, the arms that were replayed, sharpness over its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.diagnosis.mechanisms import PROOF
from lossland.figures import style
from lossland.figures.labels import head, scale_axis, settle

ARMS = {
    "learning_rate_below": "smaller learning rate",
    "schedule_held": "schedule held",
    "momentum_removed": "no momentum",
    "second_moment_frozen": "second moment kept",
    "eps_raised": "larger epsilon",
    "full_batch": "full data",
    "clipped": "gradient clipped",
}
SHOWN = 3
"""Arms that are drawn beside the run: those that prove the cause, then the first."""
LONGEST = 2
"""Steps of a recovery that are shown, in units of the climb: what comes back slowly would hide the rise."""
AROUND = 0.6
"""Steps shown before and after the rise, in units of its length."""


def explanation_figure(explanation: Any) -> Figure:
    """Draw what `ll.explain` returned: loss and arms above, ratio to the threshold below where it was measured."""
    seen, rise = explanation.seen, explanation.rise
    has_ratio = bool(np.isfinite(seen.ratio).any())
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH * 1.35, 3.6 if has_ratio else 2.5), layout="constrained")
        named = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in explanation.run.items())
        title = f"{explanation.cause.value.replace('_', ' ').capitalize()} ({explanation.confidence:.0%} sure)"
        head(
            figure,
            title,
            f"{explanation.cause.description[0].upper()}{explanation.cause.description[1:]}. Run: {named}.",
        )
        axes = figure.subplots(
            2 if has_ratio else 1, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[: 1 + has_ratio]
        )
        window = _window(seen, rise)
        _loss(axes[0, 0], explanation, window)
        if has_ratio:
            _ratio(axes[1, 0], seen, window)
        axes[-1, 0].set_xlabel("step")
        for ax in axes[:, 0]:
            style.dress(ax)
        settle(figure)
    return figure


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def _window(seen: Any, rise: Any) -> tuple[float, float]:
    last = max(float(seen.step[-1]), 1.0)
    if rise is None:
        return 0.0, last
    climb = max(rise.peak - rise.valley, 20)
    ends = min(last if rise.recovery is None else rise.recovery, rise.peak + LONGEST * climb)
    length = max(ends - rise.valley, 20)
    return max(rise.valley - AROUND * length, 0.0), min(ends + AROUND * length, last)


def _loss(ax: Axes, explanation: Any, window: tuple[float, float]) -> None:
    seen, curves = explanation.seen, explanation.curves
    inside = (seen.step >= window[0]) & (seen.step <= window[1]) & np.isfinite(seen.loss)
    ax.plot(seen.step[inside], seen.loss[inside], color=style.INK, linewidth=1.3, label="this run", zorder=3)
    proof = PROOF.get(explanation.cause, ())
    drawn = sorted((name for name in ARMS if name in curves), key=lambda name: name not in proof)[:SHOWN]
    for place, name in enumerate(drawn):
        color, dashes = style.CURVE_COLORS[place], style.CURVE_STYLES[place + 1]
        label = ARMS[name] + (", full data" if "full_batch" in curves and name != "full_batch" else "")
        ax.plot(curves["step"], curves[name], color=color, linestyle=dashes, linewidth=1.1, label=label)
    if explanation.rise is not None:
        ax.axvline(explanation.rise.start, color=style.RULE, linewidth=0.8, zorder=0)
    positive = seen.loss[inside]
    ax.set(yscale="log" if len(positive) and positive.min() > 0 else "linear", ylabel="loss", xlim=window)
    if ax.get_yscale() == "log":
        scale_axis(ax, "y", *ax.get_ylim(), log=True)
    ax.legend(frameon=False, fontsize=style.SMALL, loc="best", handlelength=2.2)


def _ratio(ax: Axes, seen: Any, window: tuple[float, float]) -> None:
    known = np.isfinite(seen.ratio) & (seen.ratio_step >= window[0]) & (seen.ratio_step <= window[1])
    ax.axhline(1, color=style.GREY, linewidth=0.8, linestyle=":")
    ax.plot(seen.ratio_step[known], seen.ratio[known], "o-", color=style.CURVE_COLORS[2], markersize=2.6, linewidth=1)
    ax.set_ylabel("sharpness /\nthreshold")
