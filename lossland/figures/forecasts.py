"""Figure of forecasts: spikes caught against alarms in quiet times, and expected against measured time to the spike."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import counted, head, settle

LABELS = {
    "forecast": "forecast",
    "gradient_curvature": "curvature along\nthe gradient",
    "update_norm": "size of the update",
}
LOOKS = {
    "forecast": (style.CURVE_COLORS[2], "-", "o"),
    "gradient_curvature": (style.CURVE_COLORS[1], (0, (5, 1.6)), "s"),
    "update_norm": (style.CURVE_COLORS[0], style.CURVE_STYLES[2], "^"),
}
LEAST_RATE, SHOWN = 1e-3, 200


def forecast_figure(scores: xr.Dataset, errors: xr.Dataset) -> Figure:
    """Draw hit rate against false-alarm rate of three alarms, and the expected steps to the spike against the measured.

    Args:
        scores: what `stability.forecast_scores.forecast_scores` returned.
        errors: what `stability.forecast_scores.forecast_errors` returned; some forecasts from each distance are shown.
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 3.1), layout="constrained")
        note = (
            f"{counted(float(scores['num_spikes']), 'spike')} of Adam on {counted(float(scores['num_seeds']), 'seed')} "
            f"that no level was tuned on. Left: alarm {scores.attrs['lead']:g} steps before the spike, against "
            f"alarms where no spike follows within {scores.attrs['within']:g} steps; markers: levels tuned to "
            f"{scores.attrs['false_alarms']:.0%} false alarms on other seeds, with 95 % intervals; dotted: chance. "
            "Right: forecasts made 10 to 150 steps before a spike; bars: intervals; dots at the top: later or none."
        )
        head(figure, "The forecast sees the spike coming while the loss still falls", note)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1.1))
        _curves(left, scores)
        _leads(middle, scores)
        _errors(right, errors)
        for ax in (left, middle, right):
            style.dress(ax)
        settle(figure)
    return figure


def _curves(ax: Axes, scores: xr.Dataset) -> None:
    rates = np.maximum(scores["rate"].values, LEAST_RATE)
    ax.plot(rates, rates, ":", color=style.GREY, linewidth=0.8)
    for name in scores["alarm"].values.tolist():
        color, dashes, marker = LOOKS[name]
        one = scores.sel(alarm=name)
        ax.plot(rates, one["curve"].values, color=color, linestyle=dashes, linewidth=1.2)
        x, y = float(one["false_alarm_rate"]), float(one["hit_rate"])
        place = max(x, LEAST_RATE)
        ends = (float(one["hit_rate_low"]), float(one["hit_rate_high"]))
        wide = [max(float(one["false_alarm_rate_low"]), LEAST_RATE), max(float(one["false_alarm_rate_high"]), place)]
        ax.plot([place, place], ends, color=style.INK, linewidth=0.8)
        ax.plot(wide, [y, y], color=style.INK, linewidth=0.8)
        ax.plot(
            [place], [y], marker, color=color, markeredgecolor=style.INK, markeredgewidth=0.7, markersize=4.5, zorder=4
        )
    ax.set(
        xscale="log", xlim=(LEAST_RATE, 1), ylim=(-0.03, 1.02), xlabel="false-alarm rate (share of quiet records)",
        ylabel="hit rate (share of spikes)",
    )  # fmt: skip
    ax.set_xticks([1e-3, 1e-2, 1e-1, 1], ["≤ 0.001", "0.01", "0.1", "1"])


def _leads(ax: Axes, scores: xr.Dataset) -> None:
    leads = scores["steps_before"].values
    for name in scores["alarm"].values.tolist():
        color, dashes, _ = LOOKS[name]
        rates = scores["hit_rate_by_lead"].sel(alarm=name).values
        ax.plot(leads, rates, color=color, linestyle=dashes, linewidth=1.2, label=LABELS[name])
    ax.axvline(scores.attrs["lead"], color=style.RULE, linewidth=0.7, zorder=0)
    ax.legend(frameon=False, fontsize=style.SMALL, loc="upper right", handlelength=1.7, borderaxespad=0)
    ax.set(
        xlim=(0, leads[-1]), ylim=(-0.03, 1.02), xlabel="steps before the spike", ylabel="hit rate at the tuned level"
    )


def _errors(ax: Axes, errors: xr.Dataset) -> None:
    known = errors["remaining"].notnull().values & errors["expected"].notnull().values
    share = SHOWN // errors.sizes["ahead"]
    # As many forecasts from each distance, spread over the spikes.
    chosen = [np.flatnonzero(one)[:: max(1, np.count_nonzero(one) // share)][:share] for one in known.T]
    row, column = np.concatenate(chosen), np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
    measured, expected, low, high = (
        errors[name].values[row, column] for name in ("remaining", "expected", "low", "high")
    )
    most = 1.07 * float(errors["ahead"].max())
    top = 1.3 * most
    ax.plot([0, top], [0, top], color=style.INK, linewidth=0.7)
    ax.vlines(
        measured, np.maximum(low, 0), np.minimum(high, top), color=style.CURVE_COLORS[0], linewidth=0.5, alpha=0.6
    )
    ax.plot(
        measured,
        np.minimum(expected, top),
        "o",
        color=style.CURVE_COLORS[2],
        markersize=2.2,
        markeredgewidth=0,
        clip_on=False,
    )
    inside = float(np.mean((low <= measured) & (measured <= high)))
    ax.set_title(f"{len(row)} forecasts, {inside:.0%} with the spike inside", fontsize=style.SMALL, loc="left")
    ax.set(xlim=(0, most), ylim=(0, top), xlabel="measured steps to the spike", ylabel="expected steps to the spike")
