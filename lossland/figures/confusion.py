"""Figure of a diagnosis on runs whose cause was planted: what was named against what was planted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossland.figures import style
from lossland.figures.labels import head, settle

DARK = 0.55
"""Share from which a cell is dark enough for white text."""


def confusion_figure(
    counts: np.ndarray, planted: Sequence[str], named: Sequence[str], held_out: Sequence[bool], note: str
) -> Figure:
    """Draw a table of counts, rows scenarios and columns causes, shaded by the share of the row.

    Args:
        counts: `Int["scenario cause"]`.
        planted: a name per row.
        named: a name per column.
        held_out: per row, whether no limit was set on it; drawn apart.
        note: the line under the title.
    """
    counts = np.asarray(counts)
    order = np.argsort(np.asarray(held_out), kind="stable")
    split = int(np.sum(~np.asarray(held_out)))
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 0.75 + 0.135 * (len(planted) + 10)), layout="constrained")
        head(figure, "The cause that was planted, and the cause that was named", note)
        ax = figure.subplots()
        _cells(ax, counts[order], split)
        rows = np.arange(len(planted)) + (np.arange(len(planted)) >= split) * 0.6
        ax.set_yticks(rows, [planted[int(place)].replace("_", " ") for place in order], fontsize=style.SMALL)
        ax.set_xticks(
            np.arange(len(named)),
            [name.replace("_", " ") for name in named],
            rotation=50,
            ha="right",
            rotation_mode="anchor",
            fontsize=style.SMALL,
        )
        ax.set(xlim=(-0.5, len(named) - 0.5), ylim=(rows[-1] + 0.5, -0.5), xlabel="named", ylabel="planted")
        if split < len(planted):
            ax.axhline(split - 0.2, color=style.GREY, linewidth=0.7, linestyle=":")
            ax.text(
                len(named) - 0.4, split + 0.1, "held-out\nscenarios", fontsize=style.SMALL, color=style.GREY, va="top"
            )
        style.dress(ax)
        ax.tick_params(length=0)
        settle(figure)
    return figure


def _cells(ax: Axes, counts: np.ndarray, split: int) -> None:
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    for row, (line, share) in enumerate(zip(counts, counts / total, strict=True)):
        height = row + (0.6 if row >= split else 0.0)
        for column, count in enumerate(line):
            if not count:
                continue
            color = style.HEAT(float(share[column]))
            ax.fill_between([column - 0.48, column + 0.48], height - 0.46, height + 0.46, color=color, linewidth=0)
            ink = "white" if share[column] > DARK else style.INK
            ax.text(column, height, str(int(count)), ha="center", va="center", color=ink, fontsize=style.SMALL)
