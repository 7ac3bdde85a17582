"""The reported cases, as they were reported and as they were reproduced, with the cause of each rise."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import settle
from paper.sources import MissingSummaryError, Results

SOURCES = ("linear_regression", "numpy_mlp", "landscapes", "keras_lstm", "rnn_sequences", "course_mlp")
REPORTED = style.OUTCOME_COLORS["rises_and_recovers"]


def whole(results: Results) -> Any:
    """Draw a panel for each case; one that has not been measured says so."""
    panels = (_linear_regression, _numpy_mlp, _keras_lstm, _rnn_sequences, _course_mlp)
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 4.3), layout="constrained")
        axes: Any = figure.subplots(2, 3).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, panel in zip(axes, panels, strict=False):
            try:
                panel(ax, results)
                style.dress(ax)
            except MissingSummaryError as error:
                ax.set_axis_off()
                ax.text(0.5, 0.5, str(error).replace(": ", ":\n"), ha="center", va="center", color=style.GREY)
        settle(figure)
    return figure


def _linear_regression(ax: Axes, results: Results) -> None:
    _, _, printed, losses = results.arguments("linear_regression", "linear_regression_figure")
    shown = losses[:70]
    ax.semilogy(np.arange(1, len(shown) + 1), shown, color=style.INK, linewidth=1.1, label="reproduced")
    dots: dict[str, Any] = {"markersize": 3.5, "markeredgecolor": style.INK, "markeredgewidth": 0.4, "zorder": 3}
    ax.plot(np.arange(1, len(printed) + 1), printed, "o", color=REPORTED, label="reported", **dots)
    first = int(np.flatnonzero(np.isinf(losses))[0]) + 1
    ax.axvline(first, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 1)))
    ax.annotate(
        f"inf at epoch {first}", (first, 1e4), (-3, 0), textcoords="offset points", ha="right", color=style.GREY
    )
    ax.set(xlabel="epoch", ylabel="loss")
    ax.set_title("1. Linear unit: sharpness above\n2 / learning rate, in one direction", loc="left")
    ax.legend(frameon=False, loc="upper left")


def _numpy_mlp(ax: Axes, results: Results) -> None:
    (runs,) = results.arguments("numpy_mlp", "curves_figure")
    slowest = runs.isel(learning_rate=0)
    loss = slowest["loss"].median("seed")
    label = f"rate {float(slowest['learning_rate']):.2g}, median of seeds"
    ax.plot(runs["step"], loss, color=style.CURVE_COLORS[0], linestyle=(0, (5, 1.6)), linewidth=1.1, label=label)
    (scenes,) = results.arguments("landscapes", "landscapes_figure")
    thrown = next(scene for title, scene in scenes.items() if title.startswith("Catapult"))["trajectory"]["path_loss"]
    ax.plot(np.arange(thrown.size), thrown, color=style.INK, linewidth=1.1, label="rate 1, reported start")
    ax.set(yscale="log", xlabel="step", ylabel="loss", xlim=(0, thrown.size - 1))
    ax.set_title("2. Network by hand: a catapult,\nsharpness falls until it fits", loc="left")
    ax.legend(frameon=False, loc="upper right", fontsize=style.SMALL)


def _keras_lstm(ax: Axes, results: Results) -> None:
    one = results.arguments("keras_lstm", "keras_lstm_figure")[0]
    ax.plot(one["epoch"], one["printed"], color=REPORTED, linewidth=0.7, label="printed, epoch mean")
    ax.plot(one["epoch"], one["end_loss"], color=style.INK, linewidth=0.7, label="all data, after the epoch")
    ends = one["end_loss"].values
    ax.set(xlabel="epoch", ylabel="loss", yscale="log" if np.nanmax(ends) > 10 * np.nanmin(ends) else "linear")
    rises = results.targets("keras_lstm")["epochs_that_rise_batches_of_32"]["verdict"] == "reproduced"
    cause = (
        "the noise of batches,\nand what is printed"
        if rises
        else f"{one.sizes['epoch']} epochs are\ntoo few for it to rise"
    )
    ax.set_title(f"3. LSTM: {cause}", loc="left")
    ax.legend(frameon=False, loc="lower left", fontsize=style.SMALL)


def _course_mlp(ax: Axes, results: Results) -> None:
    one = results.arguments("course_mlp", "course_mlp_figure")[0]
    printed = one["printed"].values
    ax.plot(one["epoch"], printed, color=style.INK, linewidth=0.6)
    low, high = float(np.nanmin(printed)), float(np.nanquantile(printed[1:], 0.999))
    ax.set(xlabel="epoch", ylabel="loss", ylim=(0.9 * low, high + 0.1 * (high - low)))
    ax.set_title("5. Course network, Adam 0.01:\nthe noise of batches", loc="left")


def _rnn_sequences(ax: Axes, results: Results) -> None:
    one = results.arguments("rnn_sequences", "rnn_sequences_figure")[1][0]
    ax.plot(one["step"], one["loss"], color=style.INK, linewidth=0.9, label="loss")
    ax.plot(one["step"], one["accuracy"], color=REPORTED, linewidth=1.1, linestyle=(0, (5, 1.6)), label="accuracy")
    ax.axhline(0.9, color=style.GREY, linewidth=0.6, linestyle=":")
    ax.set(xlabel="step", ylabel="loss, accuracy", ylim=(None, 1.3 * float(one["loss"].max())))
    known = "gradient_jump_median" in results.targets("rnn_sequences")
    words = "gradients\nexplode within a step" if known else "learns,\nthen its loss rises"
    ax.set_title(f"4. Recurrent classifier: {words}", loc="left")
    ax.legend(frameon=False, loc="upper right", ncols=2, borderaxespad=0.1)


PARTS = {"": whole}
