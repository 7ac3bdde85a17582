"""The reported cases, as they were reported and as they were reproduced, with the cause of each rise."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import settle
from paper.sources import MissingSummaryError, Results

SOURCES = ("linear_regression", "numpy_mlp", "rnn_sequences")
REPORTED = style.OUTCOME_COLORS["rises_and_recovers"]


def whole(results: Results) -> Any:
    """Draw a panel for each case; one that has not been measured says so."""
    panels = (_linear_regression, _numpy_mlp, _rnn_sequences)
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 2.3), layout="constrained")
        axes: Any = figure.subplots(1, len(panels))
        for ax, panel in zip(axes, panels, strict=True):
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
    ax.set_title("Linear unit: sharpness above\n2 / learning rate, in one direction", loc="left")
    ax.legend(frameon=False, loc="upper left")


def _numpy_mlp(ax: Axes, results: Results) -> None:
    (runs,) = results.arguments("numpy_mlp", "curves_figure")
    rates = runs["learning_rate"].values
    for wanted, color, line in ((0.01, style.CURVE_COLORS[0], (0, (5, 1.6))), (1.0, style.INK, "-")):
        rate = float(rates[np.abs(np.log(rates / wanted)).argmin()])
        loss = runs["loss"].sel(learning_rate=rate).median("seed")
        ax.plot(runs["step"], loss, color=color, linestyle=line, linewidth=1.1, label=f"learning rate {rate:.2g}")
    ax.set(xscale="symlog", yscale="log", xlabel="step", ylabel="loss, median over seeds")
    ax.set_xscale("symlog", linthresh=10)
    ax.set_title("Network by hand: a catapult,\nsharpness falls until it fits", loc="left")
    ax.legend(frameon=False, loc="upper right")


def _rnn_sequences(ax: Axes, results: Results) -> None:
    one = results.arguments("rnn_sequences", "rnn_sequences_figure")[0]
    ax.plot(one["step"], one["loss"], color=style.INK, linewidth=0.9, label="loss")
    ax.plot(one["step"], one["accuracy"], color=REPORTED, linewidth=1.1, linestyle=(0, (5, 1.6)), label="accuracy")
    ax.axhline(0.9, color=style.GREY, linewidth=0.6, linestyle=":")
    ax.set(xlabel="step", ylabel="loss, accuracy")
    ax.set_title("Recurrent classifier: gradients\nexplode within a step", loc="left")
    ax.legend(frameon=False, loc="upper left")


PARTS = {"": whole}
