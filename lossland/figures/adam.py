"""Figures of Adam's late spikes: crossing, lag and loss of one run, lags of all, delays by interventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lossland.figures import style
from lossland.figures.labels import head, settle

BLUE, RUST, PLUM = style.CURVE_COLORS[0], style.CURVE_COLORS[1], style.CURVE_COLORS[2]
BAND = (0.85, 1.25)
"""Measured over predicted lag that counts as predicted."""
SHOWN_SPIKES = 3

ARMS = {
    "unchanged": "unchanged",
    "float64": "double precision",
    "update_clipped": "update clipped at RMS 1",
    "stable_adamw": "StableAdamW",
    "b1_0.8": "β₁ 0.9 → 0.8",
    "b2_0.99": "β₂ 0.999 → 0.99",
    "learning_rate_x_0.97": "learning rate × 0.97",
    "eps_raised": "ε + 0.1 median √v",
    "learning_rate_x_0.9": "learning rate × 0.9",
    "b2_0.9999": "β₂ 0.999 → 0.9999",
    "learning_rate_decays": "learning rate ∝ √β₂ per step",
    "second_moment_frozen": "second moment frozen",
    "amsgrad": "AMSGrad from here",
    "b1_0.95": "β₁ 0.9 → 0.95",
}


def spikes_figure(run: xr.Dataset, found: xr.Dataset) -> Figure:
    """Draw loss and ratio of one run around some spikes, and the measured against the predicted lag of every spike.

    Args:
        run: one run (dims step only) with `loss`, `preconditioned_sharpness`, `threshold`.
        found: what `stability.spikes.spikes` returned for all runs, with `predicted_lag`.
    """
    own = found.isel(spike=np.flatnonzero(found["seed"].values == run["seed"].values))
    middle = own.isel(spike=slice(own.sizes["spike"] // 2, own.sizes["spike"] // 2 + SHOWN_SPIKES))
    first, last = float(middle["crossing_step"].min()) - 90, float(middle["recovery_step"].max()) + 60
    part = run.sel(step=slice(first, last))
    steps = part["step"].values
    ratio = (part["preconditioned_sharpness"] / part["threshold"]).values
    measured, predicted = found["lag"].values, found["predicted_lag"].values
    ratios = (found["lag"] / found["predicted_lag"]).values  # 0 where no spike was predicted
    known = ~np.isnan(ratios)
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 3.1), layout="constrained")
        head(
            figure,
            "The optimizer turns unstable long before the loss shows it",
            f"Adam, β₁ 0.9, β₂ 0.999, learning rate 0.01, full batch. Left: one run; bars from the crossing to the "
            f"visible spike. Right: {known.sum()} spikes of {np.unique(found['seed']).size} runs; grey band: "
            f"measured lag {BAND[0]:g} to {BAND[1]:g} times the predicted one.",
        )
        axes = figure.subplot_mosaic([["loss", "lag"], ["ratio", "lag"]], width_ratios=(1.75, 1))
        top, bottom, right = axes["loss"], axes["ratio"], axes["lag"]
        top.semilogy(steps, part["loss"].values, color=style.INK, linewidth=0.9)
        bottom.plot(steps, ratio, color=PLUM, linewidth=0.9)
        bottom.axhline(1, color=style.INK, linewidth=0.7)
        for index in range(middle.sizes["spike"]):
            one = middle.isel(spike=index)
            begin, end = float(one["crossing_step"]), float(one["spike_step"])
            for ax in (top, bottom):
                ax.axvspan(begin, end, color=style.OUTCOME_COLORS["rises_and_recovers"], alpha=0.35, linewidth=0)
            top.annotate(
                f"{end - begin:.0f} steps", ((begin + end) / 2, 0.97), xycoords=("data", "axes fraction"),
                ha="center", va="top", fontsize=style.SMALL, color=style.INK,
            )  # fmt: skip
        top.set(ylabel="training loss", xlim=(steps[0], steps[-1]))
        top.set_ylim(top=top.get_ylim()[1] * 4)
        top.tick_params(labelbottom=False)
        bottom.set(xlabel="step", ylabel="preconditioned\nsharpness / threshold", xlim=(steps[0], steps[-1]))
        shown = known & np.isfinite(predicted)
        most = 1.08 * max(float(np.quantile(measured[shown], 0.999)), float(np.quantile(predicted[shown], 0.99)))
        line = np.array([0, most])
        right.fill_between(line, BAND[0] * line, BAND[1] * line, color=style.OUTCOME_COLORS["never_rises"], linewidth=0)
        right.plot(line, line, color=style.INK, linewidth=0.7)
        right.plot(predicted[shown], measured[shown], "o", color=PLUM, markersize=2, markeredgewidth=0, alpha=0.45)
        quartiles = np.quantile(ratios[known], [0.25, 0.5, 0.75])
        right.annotate(
            f"measured / predicted\nmedian {quartiles[1]:.2f}\nquartiles {quartiles[0]:.2f}, {quartiles[2]:.2f}",
            (0.04, 0.97), xycoords="axes fraction", va="top", fontsize=style.SMALL, color=style.INK,
        )  # fmt: skip
        right.set(
            xlim=(0, most), ylim=(0, most), xlabel="predicted lag (steps)", ylabel="measured lag (steps)",
            aspect="equal",
        )  # fmt: skip
        for ax in axes.values():
            style.dress(ax)
        top.yaxis.set_minor_locator(NullLocator())
        settle(figure)
    return figure


def interventions_figure(delays: xr.Dataset) -> Figure:
    """Draw by how much each intervention delays the next spike, measured and predicted.

    Args:
        delays: what `stability.interventions.intervene` returned.
    """
    arms = [name for name in ARMS if name in delays["arm"].values and name != "unchanged"]
    horizon = float(delays["step"][-1])
    base = float(np.nanmedian(delays["spike"].sel(arm="unchanged")))
    right = horizon - base
    places = np.arange(len(arms))[::-1].astype(float)
    with style.house_style():
        figure = Figure(figsize=(1.45 * style.WIDTH, 0.62 + 0.235 * len(arms) + 0.5), layout="constrained")
        count = delays.sizes[str(delays["spike"].dims[1])]
        head(
            figure,
            "Freezing the second moment removes the spike, a smaller learning rate delays it",
            f"{count} training states of Adam, each about {base:.0f} steps before a spike, continued with one thing "
            "changed. Bars: quartiles of the measured delay, dot: median; diamond: median predicted. Right: share "
            f"without a spike in {horizon:.0f} steps, measured (predicted).",
        )
        ax = figure.add_subplot()
        ax.axvline(0, color=style.INK, linewidth=0.7)
        for place, name in zip(places, arms, strict=True):
            one = delays.sel(arm=name)
            measured, predicted = one["delay"].values, one["predicted_delay"].values
            low, middle, high = _quantiles(measured)
            if np.isfinite(low):
                ends: list[Any] = [low, min(high, right)]
                ax.plot(ends, [place, place], color=BLUE, linewidth=3.2, solid_capstyle="butt")
            looks = ((middle, "o", style.INK, 3.2), (_quantiles(predicted)[1], "D", "white", 5.0))
            for value, marker, face, size in looks:
                if np.isfinite(value):
                    ax.plot(
                        [value], [place], marker, color=style.INK, markerfacecolor=face, markersize=size,
                        markeredgewidth=0.8, zorder=3 if marker == "o" else 2.5,
                    )  # fmt: skip
            none, expected = np.mean(np.isinf(one["spike"].values)), np.mean(np.isinf(one["predicted_spike"].values))
            if none or expected:
                ax.annotate(
                    f"{none:.0%} ({expected:.0%})", (1.02, place), xycoords=("axes fraction", "data"), va="center",
                    fontsize=style.SMALL, color=RUST, annotation_clip=False,
                )  # fmt: skip
        ax.annotate(
            "no spike", (1.02, len(arms) - 0.35), xycoords=("axes fraction", "data"), va="bottom", fontsize=style.SMALL,
            color=RUST, annotation_clip=False,
        )  # fmt: skip
        ax.set(
            yticks=places, yticklabels=[ARMS[name] for name in arms], xlim=(-base - 15, right),
            ylim=(-0.6, len(arms) - 0.4), xlabel="delay of the next spike (steps)",
        )  # fmt: skip
        style.dress(ax)
        ax.tick_params(axis="y", length=0)
        settle(figure)
    return figure


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Quartiles and median where "no spike" counts as infinitely late."""
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return np.full(3, np.nan)
    return known[np.minimum((np.array([0.25, 0.5, 0.75]) * known.size).astype(int), known.size - 1)]
