"""Words and scales: names with units, ticks in plain numbers, labels that keep clear of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Affine2D, ScaledTranslation, Transform

from lossland.figures.style import GREY, RC, SMALL, TEXT

NBSP = "\N{NO-BREAK SPACE}"


def number(value: float) -> str:
    """Write a number with three significant digits: 0.0123, 12, 1140, 1.5e-06."""
    return f"{float(f'{value:.3g}'):.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def counted(count: float, noun: str) -> str:
    """Write "1 seed", "16 seeds"."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def edge_number(value: float, grid: np.ndarray) -> str:
    """Write a place on a grid; 0 and inf stand for below and above it: "< 0.01", "> 3"."""
    if value == 0:
        return f"< {number(grid[0])}"
    return f"> {number(grid[-1])}" if np.isinf(value) else f"{value:#.3g}".rstrip(".")


def name_with_units(values: xr.DataArray) -> str:
    """Write what an axis shows: "learning rate", "sharpness (loss / parameter²)"."""
    name, units = str(values.name).replace("_", " "), values.attrs.get("units", "1")
    return name if units in ("1", "", name) else f"{name} ({units.replace('^2', '²')})"


def log_spaced(values: Sequence[float] | np.ndarray) -> bool:
    """Say whether positive values are spaced more evenly by ratio than by difference, over a factor of 3 or more.

    Two values are taken as log-spaced from a factor of 10 on.
    """
    ordered = np.sort(np.asarray(values, float))
    if ordered[0] <= 0 or len(ordered) < 2 or ordered[-1] < 3 * ordered[0]:
        return False
    if len(ordered) == 2:
        return bool(ordered[1] >= 10 * ordered[0])

    def unevenness(steps: np.ndarray) -> float:
        return float(steps.std() / steps.mean())

    return unevenness(np.diff(np.log(ordered))) < unevenness(np.diff(ordered))


def cell_edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Return the borders of the cells around sorted grid values: (n,) -> (n + 1,), midways (geometric where log)."""
    places = np.log(values) if log else np.asarray(values, float)
    if len(places) == 1:
        half = math.log(2) if log else max(abs(float(places[0])), 1.0) / 2
        edges = np.array([places[0] - half, places[0] + half])
    else:
        half = np.diff(places) / 2
        edges = np.concatenate([places[:1] - half[0], places[:-1] + half, places[-1:] + half[-1]])
    return np.exp(edges) if log else edges


def scale_axis(
    ax: Axes, which: Literal["x", "y"], low: float, high: float, log: bool, most: int = 5, whole: bool = False
) -> None:
    """Give the x or y axis its scale, limits and ticks in plain (or whole) numbers, none of them outside the limits."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": (low, high)})
    ticks = log_ticks(low, high) if log else _linear_ticks(low, high, most, whole)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(_tick_labels(ticks)))
    minor = _multiples(low, high, range(1, 10)) if log and high < 1e8 * low else []
    axis.set_minor_locator(FixedLocator(sorted(set(minor) - set(ticks))) if minor else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose at most about six ticks on a log axis: 1-2-5, 1-3, decades, or every few decades."""
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = _multiples(low, high, digits)
        if 2 <= len(ticks) <= most:
            return ticks
    if len(ticks := _multiples(low, high, (1,))) > most:
        stride = math.ceil(len(ticks) / most)
        return [tick for tick in ticks if round(math.log10(tick)) % stride == 0]
    return _linear_ticks(low, high, 4)


def text_width(text: str, size: float = TEXT) -> float:
    """Measure the width of a line of text in points."""
    font = FontProperties(family=RC["font.family"], size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def wrap(text: str, width: float, size: float) -> str:
    """Break a sentence into lines of at most `width` points."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Move places as little as needed (least squares) so that neighbours are `gap` apart.

    They stay within [low, high], or go on past it where they do not fit. Equal places keep the order they came in.
    """
    order = np.argsort(places, kind="stable")
    wanted = np.clip(np.asarray(places, float)[order], low, high) - gap * np.arange(len(places))
    blocks: list[list[float]] = []  # pool adjacent violators: [sum, count]
    for value in wanted:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    level = np.concatenate([np.full(int(count), total / count) for total, count in blocks]) if blocks else np.zeros(0)
    level = np.clip(level, low, max(low, high - gap * (len(places) - 1)))
    result = np.empty(len(places))
    result[order] = level + gap * np.arange(len(places))
    return result


def axes_size(ax: Axes) -> tuple[float, float]:
    """Return width and height of an axes in points, as it stands now."""
    box, dpi = ax.get_window_extent(), ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return 72 * box.width / dpi, 72 * box.height / dpi


def points_above(ax: Axes) -> Transform:
    """Return the transform whose origin is the top left corner of an axes and whose unit is the point.

    What is placed there keeps its distances however the layout sizes the axes.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    corner = ScaledTranslation(0, 1, ax.transAxes)  # pyright: ignore[reportArgumentType] - it is affine
    return Affine2D().scale(1 / 72) + figure.dpi_scale_trans + corner


def label_ends(ax: Axes, labels: Sequence[tuple[float, str, Any]], heading: str) -> None:
    """Write labels to the right of an axes beside the values they belong to: (value, text, colour), limits already set.

    Labels that would overlap move apart, with a thin line to the value; those of values outside the limits stand at
    that end, without a line. The heading stands above the topmost.
    """
    place_by: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    beside = {**place_by, "va": "center", "ha": "left"}
    # The layout may still shrink the axes; reckoning with a smaller one keeps labels apart in any case.
    height = 0.85 * axes_size(ax)[1]
    bottom, top = sorted(ax.get_ylim())
    shown = [float(np.clip(value, bottom, top)) for value, _, _ in labels]
    to_axes = ax.transScale + ax.transLimits
    places = [height * float(to_axes.transform((1, value))[1]) for value in shown]
    # Several labels at one end keep the order of their values: sorted by value, then by how they came.
    order = np.argsort([value for value, _, _ in labels], kind="stable")
    moved = np.empty(len(labels))
    moved[order] = spread([places[index] for index in order], TEXT * 1.25, 0.0, height)
    for (wanted, text, color), value, place, new in zip(labels, shown, places, moved, strict=True):
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)}
        ax.annotate(
            text,
            (1, value),
            (9, float(new - place)),
            color=color,
            fontsize=TEXT,
            annotation_clip=False,
            arrowprops=line if bottom < wanted < top else None,
            **beside,
        )
    if heading:
        first = int(np.argmax(moved))
        lift = float(moved[first] - places[first]) + 1.3 * TEXT
        ax.annotate(heading, (1, shown[first]), (9, lift), color=GREY, fontsize=SMALL, annotation_clip=False, **beside)


def head(figure: Figure, title: str, note: str) -> None:
    """Write the title over a figure and a note under it, broken to its width, flush left."""
    width = 72 * figure.get_figwidth()
    room = 0.94 * (width - 8)  # letters fitted to the pixels of a screen are a little wider than their outlines
    title, note = (text.replace("$", r"\$") for text in (title, note))  # a name is no formula
    figure.suptitle(wrap(title, room, TEXT + 1), x=4 / width, ha="left", fontsize=TEXT + 1)
    figure.supxlabel(wrap(note, room, SMALL), x=4 / width, ha="left", fontsize=SMALL, color=GREY)


def settle(figure: Figure) -> None:
    """Lay a figure out once and for all: drawn again, at any resolution, it does not move."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _multiples(low: float, high: float, digits: Sequence[int]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def _linear_ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    return [float(tick) for tick in MaxNLocator(most, integer=whole).tick_values(low, high) if low <= tick <= high]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    if all(tick == 0 or 1e-3 <= abs(tick) < 1e4 for tick in ticks):
        return [f"{tick:g}" for tick in ticks]
    return [_power(tick) for tick in ticks]


def _power(value: float) -> str:
    if value in (0.0, 1.0):
        return f"{value:g}"
    digit, power = f"{value:.3e}".split("e")
    digit = digit.rstrip("0").rstrip(".")
    return rf"$10^{{{int(power)}}}$" if digit == "1" else rf"${digit}{{\times}}10^{{{int(power)}}}$"
