"""Draw the figures of the concept pages from runs of the library: `python docs/concept_figures.py` (two minutes).

With names, such as `catapult`, only these.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import lossland as ll
from lossland.figures import style
from lossland.stability.one_parameter import simulate

IMAGES = Path(__file__).parent / "images"
COLORS = ("#27346B", "#EFA21A", "#8C2F39")
SIZE = (6.4, 2.5)
DOTS = 200
LAST = 9000
"""Steps of Adam, of which the last rounds are drawn: the first come after a long wait."""


def threshold() -> Figure:
    """Steps of gradient descent on a parabola below, at and above its threshold."""
    figure, axes = panels(3, sharey=True)
    problem = ll.problems.synthetic.quadratic([1.0])
    rates = (1.6, 2.0, 2.15)
    sweep = ll.Sweep({"learning_rate": rates}, seeds=1, num_steps=8, every=1)
    runs = ll.run(problem, optax.sgd, sweep, progress=False)
    x = np.linspace(-1.9, 1.9, 200)
    names = ("below", "at", "above")
    for ax, rate, name, color in zip(axes, rates, names, COLORS, strict=True):
        loss = runs["loss"].sel(learning_rate=rate, seed=0).values.astype(float)
        place = np.sqrt(loss / loss[0]) * np.cumprod(np.r_[1.0, np.full(len(loss) - 1, np.sign(1 - rate))])
        ax.plot(x, x**2, color=style.GREY, linewidth=0.9)
        ax.plot(place, place**2, "o-", color=color, markersize=3, linewidth=0.8)
        ax.plot(place[0], 1, "o", color=color, markersize=5, markerfacecolor="white")
        ax.set_title(f"{name} the threshold:\nlearning rate × sharpness = {rate:g}")
        ax.set(xlabel="distance from the minimum", xlim=(-1.9, 1.9), ylim=(-0.1, 3.5))
    axes[0].set_ylabel("loss / loss at the start")
    return figure


def edge_of_stability() -> Figure:
    """A small network trained by gradient descent for long: sharpness over threshold, and the loss."""
    problem = ll.problems.synthetic.chebyshev(degree=3, num_examples=32, widths=(16, 16))
    sweep = ll.Sweep({"learning_rate": [0.15]}, seeds=[0], num_steps=6_000, every=20)
    runs = ll.run(problem, optax.sgd, sweep, ["loss", "sharpness"], progress=False).isel(learning_rate=0, seed=0)
    figure, axes = panels(2)
    step = runs["step"].values
    axes[0].axhline(1, color=style.GREY, linewidth=0.8, linestyle="--")
    axes[0].plot(step, runs["relative_sharpness"], color=COLORS[0], linewidth=0.7)
    axes[0].annotate("the edge: 2 / learning rate", (step[-1], 1), (0, -10), textcoords="offset points", ha="right",
                     fontsize=style.SMALL, color=style.GREY)  # fmt: skip
    axes[0].set(xlabel="step", ylabel="sharpness / threshold", ylim=(0, None))
    axes[1].plot(step, runs["loss"], color=COLORS[0], linewidth=0.7)
    axes[1].set(xlabel="step", ylabel="training loss", yscale="log")
    return figure


def catapult() -> Figure:
    """The solvable model below 2, between 2 and 4, and above 4, in units of its sharpness at the start."""
    problem = ll.problems.synthetic.uv_model(width=256)
    first = ll.run(problem, optax.sgd, ll.Sweep({"learning_rate": [0.1]}, [0], 1, 1), ["sharpness"], progress=False)
    start = float(first["sharpness"].values.ravel()[0])
    products = np.array([0.5, 3.0, 4.3])
    sweep = ll.Sweep({"learning_rate": products / start}, seeds=[0], num_steps=40, every=1)
    runs = ll.run(problem, optax.sgd, sweep, ["loss", "sharpness"], progress=False).isel(seed=0)
    figure, axes = panels(2)
    axes[1].axhline(2, color=style.GREY, linewidth=0.8, linestyle="--")
    marks = ("o", "s", "^")
    for index, (product, color, mark) in enumerate(zip(products, COLORS, marks, strict=True)):
        run = runs.isel(learning_rate=index)
        rate = float(run["learning_rate"])
        options: dict[str, Any] = {"color": color, "marker": mark, "markersize": 2.5, "linewidth": 0.9, "markevery": 3}
        label = f"{product:g}"
        axes[0].plot(run["step"], run["loss"], label=label, **options)
        axes[1].plot(run["step"], rate * run["sharpness"], **options)
    axes[0].set(xlabel="step", ylabel="training loss", yscale="log", ylim=(1e-9, 1e6))
    axes[0].legend(title="learning rate × sharpness\nat the start", frameon=False, loc="upper right",
                   fontsize=style.TEXT, title_fontsize=style.TEXT)  # fmt: skip
    axes[1].set(xlabel="step", ylabel="learning rate × sharpness", ylim=(0, 6))
    axes[1].annotate("threshold: 2", (40, 2), (0, 3), textcoords="offset points", ha="right", fontsize=style.SMALL,
                     color=style.GREY)  # fmt: skip
    return figure


def second_moment_lag() -> Figure:
    """Adam on one parameter: two rounds of crossing, lag and spike."""
    path = simulate(optax.adam, LAST, learning_rate=1e-3, b1=0.9, b2=0.999, eps=0.0, start=1e-4)
    kappa = path.kappa[0] / float(ll.adaptive.critical_ratio(0.9))
    loss = path.x[0] ** 2 / 2
    window = slice(LAST - 1300, LAST)
    step = np.arange(LAST)[window]
    crossings = np.flatnonzero((kappa[1:] >= 1) & (kappa[:-1] < 1)) + 1
    crossings = [c for c in crossings if c >= LAST - 1300]
    figure, axes = panels(2)
    axes[0].axhline(1, color=style.GREY, linewidth=0.8, linestyle="--")
    axes[0].plot(step, kappa[window], color=COLORS[0], linewidth=0.9)
    axes[0].set(xlabel="step", ylabel="κ / κ*", ylim=(0.75, 1.1))
    axes[1].plot(step, loss[window], color=COLORS[0], linewidth=0.9)
    axes[1].set(xlabel="step", ylabel="loss", yscale="log")
    for ax in axes:
        for number, crossing in enumerate(crossings):
            ax.axvline(crossing, color=COLORS[1], linewidth=0.8, label="" if number else "crossing of the threshold")
    axes[1].legend(fontsize=style.TEXT, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


def panels(count: int, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, **options)
    for ax in axes:
        style.dress(ax)
    return figure, axes


def main() -> None:
    with style.house_style(), matplotlib.rc_context({"font.size": style.TEXT}):
        figures = (threshold, edge_of_stability, catapult, second_moment_lag)
        for draw in [draw for draw in figures if draw.__name__ in sys.argv] or figures:
            draw().savefig(IMAGES / f"{draw.__name__}.png", dpi=DOTS, metadata={"Software": None})


if __name__ == "__main__":
    main()
