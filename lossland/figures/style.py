"""The house style: sizes, fonts and colours, chosen once so that an outcome looks the same in every figure."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

WIDTH = 3.5
"""Inches: one column of a two-column paper."""
TEXT, SMALL = 7.0, 6.0
"""Points. Nothing is smaller: at column width the smallest text is still read on paper."""
RESOLUTION = 300
"""Dots per inch of PNG files."""

INK = "#14181F"
GREY = "#5C6470"
RULE = "#D3D8E0"

OUTCOME_COLORS = {"never_rises": "#E4EAF1", "rises_and_recovers": "#EFA21A", "diverges": "#27346B"}
"""Lightness falls as the outcome gets worse: the order survives a grey print and every kind of colour blindness."""
OUTCOME_HATCHES = {"never_rises": "", "rises_and_recovers": "....", "diverges": "////"}
HATCH_COLORS = {"never_rises": "#E4EAF1", "rises_and_recovers": "#C98309", "diverges": "#3F4E8C"}
LABEL_COLORS = {"never_rises": INK, "rises_and_recovers": INK, "diverges": "#FFFFFF"}

CURVE_COLORS = ("#5FA8DC", "#D0661B", "#A33A78", "#40437F", "#0D1117")
"""Curves of rising learning rate, light to dark; all dark enough to be read as text on white."""
CURVE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (2.2, 1)), (0, (1, 1)))

HEAT = LinearSegmentedColormap.from_list("lossland", [OUTCOME_COLORS["never_rises"], OUTCOME_COLORS["diverges"]])
"""Fractions from 0 to 1; lightness falls steadily."""

RC: Any = {
    # Bundled with matplotlib: the same letters on every machine.
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "mathtext.fontset": "dejavusans",
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "figure.titlesize": TEXT + 1,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "text.color": INK,
    "text.usetex": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.6,
    "ytick.minor.size": 1.6,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "path.simplify": False,
    # 42 embeds TrueType outlines: text stays text, and journals that refuse Type 3 fonts accept it.
    "pdf.fonttype": 42,
    "pdf.use14corefonts": False,
}


def house_style() -> AbstractContextManager[None]:
    """Return a context in which new artists take the house style; the caller's settings come back afterwards."""
    return matplotlib.rc_context(RC)


def dress(ax: Axes) -> None:
    """Take away the top and right spine and set the sizes that an axes made outside the house style does not have."""
    ax.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set(linewidth=RC["axes.linewidth"], edgecolor=INK)
    ax.tick_params(which="major", labelsize=TEXT, width=0.6, length=3, color=INK, labelcolor=INK)
    ax.tick_params(which="minor", width=0.4, length=1.6, color=INK)
