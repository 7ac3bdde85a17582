"""Maps of two outcomes over a plane of hyperparameters, fine enough for a fractal: panels, and frames of a movie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lossland.arguments import DRAWABLE, FLAG, PATH, TEXT, Rule, calling, count, dataset, expects, optional
from lossland.figures import style
from lossland.figures.labels import cell_edges, head, scale_axis, settle
from lossland.stability.boundaries import boundary_cells

SHADES = ListedColormap([style.OUTCOME_COLORS["never_rises"], style.OUTCOME_COLORS["diverges"]])
FRAME_DOTS = 160
"""Dots per inch of a frame: 560 pixels wide."""


_MAP = dataset("diverges", source="ll.boundary returns")
MAPS = Rule(
    "a dict of names, each with ([map, map], words), maps as ll.boundary returns them",
    lambda maps: (
        isinstance(maps, Mapping)
        and bool(maps)
        and all(
            len(pair) == 2 and all(map(_MAP.holds, pair)) and isinstance(words, str) for pair, words in maps.values()
        )
    ),
)


@expects(ax=DRAWABLE, found=dataset("diverges", source="ll.boundary returns"), seed=optional(count(0)), edges=FLAG)
def plot_boundary(ax: Axes, found: xr.Dataset, seed: int | None = None, edges: bool = True) -> None:
    """Draw one map: converging light, diverging dark, and the cells of the boundary between them.

    Args:
        ax: where to draw.
        found: what `stability.boundaries.boundary` returns.
        seed: which seed; the first by default.
        edges: mark the cells of the boundary.
    """
    if seed is not None and seed not in found["seed"].values:
        raise ValueError(f"seed: expected one of {found['seed'].values.tolist()}, got {seed!r}")
    one = found["diverges"].isel(seed=0) if seed is None else found["diverges"].sel(seed=seed)
    y, x = (str(dim) for dim in one.dims)
    values = {name: found[name].values.astype(float) for name in (x, y)}
    log = {x: bool(found.attrs["log_x"]), y: bool(found.attrs["log_y"])}
    sides = {name: cell_edges(values[name], log[name]) for name in (x, y)}
    flags = one.values
    ax.pcolormesh(sides[x], sides[y], flags, cmap=SHADES, vmin=0, vmax=1, rasterized=True)
    if edges:
        cells = np.ma.masked_equal(boundary_cells(flags).astype(float), 0)
        color = ListedColormap([style.OUTCOME_COLORS["rises_and_recovers"]])
        ax.pcolormesh(values[x], values[y], cells, cmap=color, rasterized=True, zorder=2)
    for name, which in ((x, "x"), (y, "y")):
        low, high = sides[name][0], sides[name][-1]
        if log[name] and high > 1e3 * low:
            scale_axis(ax, which, low, high, True)  # type: ignore[arg-type]
            axis: Any = ax.xaxis if which == "x" else ax.yaxis
            ticks, texts = axis.get_majorticklocs(), axis.get_major_formatter().seq
            if len(ticks) > 4:  # panels are small
                axis.set_major_locator(FixedLocator(ticks[::2]))
                axis.set_major_formatter(FixedFormatter(texts[::2]))
        else:
            # Ticks at the ends, with as many digits as tell them apart: inside a zoom all between look alike.
            ax.set(**{f"{which}scale": "log" if log[name] else "linear", f"{which}lim": (low, high)})
            axis = ax.xaxis if which == "x" else ax.yaxis
            ends = [values[name][0], values[name][-1]]
            digits = 3 if not ends[0] else int(np.clip(3 - np.log10(abs(ends[1] / ends[0] - 1)), 3, 17))
            axis.set_major_locator(FixedLocator(ends))
            axis.set_major_formatter(FixedFormatter([_plain(end, digits) for end in ends]))
            axis.set_minor_locator(NullLocator())
            labels = axis.get_ticklabels()
            if which == "x":
                labels[0].set_horizontalalignment("left")
                labels[-1].set_horizontalalignment("right")
            else:
                axis.set_tick_params(labelrotation=90)
                labels[0].set_verticalalignment("bottom")
                labels[-1].set_verticalalignment("top")
    ax.set_xlabel(x.replace("_", " "), fontsize=style.TEXT)
    ax.set_ylabel(y.replace("_", " "), fontsize=style.TEXT)


@expects(maps=MAPS, title=TEXT, note=TEXT)
def boundary_figure(maps: Mapping[str, tuple[list[xr.Dataset], str]], title: str, note: str) -> Figure:
    """Draw panels side by side, a column each: the first frame above, the last frame of a zoom below.

    Args:
        maps: name of the panel -> ([first map, last map], words to write under the name).
        title: what is seen, in a sentence.
        note: how it was made.
    """
    with style.house_style():
        figure = Figure(figsize=(2 * style.WIDTH, 3.7), layout="constrained")
        head(figure, title, note)
        axes: Any = figure.subplots(2, len(maps), squeeze=False)
        for column, (name, (pair, words)) in enumerate(maps.items()):
            for row, found in enumerate(pair):
                ax = axes[row, column]
                ax.set_box_aspect(1)
                plot_boundary(ax, found)
                style.dress(ax)
                if column and ax.get_ylabel() == axes[row, 0].get_ylabel():
                    ax.set_ylabel("")
                if row == 0:
                    ax.set_title(f"{name}\n{words}", loc="center", multialignment="left", fontsize=style.SMALL)
        settle(figure)
    return figure


@expects(folder=PATH, title=TEXT)
def save_frames(frames: Iterable[tuple[Any, xr.Dataset]], folder: str | os.PathLike[str], title: str) -> list[Path]:
    """Write the frames of a zoom as `frame-0000.png`, `frame-0001.png`, ... all of one size.

    A tool such as ffmpeg makes a movie of them. Frames are written as they come, so a stopped zoom leaves what was
    done.

    Args:
        frames: (plane, map) pairs, as `stability.fractal.zoom` yields.
        folder: where to; it is made if need be.
        title: stands over every frame, with the magnification.
    """
    if not isinstance(frames, Iterable) or isinstance(frames, (str, bytes)):
        raise ValueError(f"frames: expected pairs of a plane and its map, such as zoom yields, got {frames!r}")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths, first = [], None
    for number, frame in enumerate(frames):
        with calling("frames", "pairs of a plane and its map, such as zoom yields"):
            (plane, found), (x, _) = frame, (frame[0].x, frame[0].y)
            _ = x.high, x.low, found["diverges"]
        span = np.log(plane.x.high / plane.x.low) if plane.x.log else plane.x.high - plane.x.low
        first = span if first is None else first
        with style.house_style():
            figure = Figure(figsize=(style.WIDTH, style.WIDTH + 0.2), layout="constrained")
            FigureCanvasAgg(figure)
            figure.suptitle(f"{title}: {first / span:.4g} times", fontsize=style.TEXT + 1)
            ax = figure.add_subplot()
            ax.set_box_aspect(1)
            plot_boundary(ax, found)
            style.dress(ax)
            path = place / f"frame-{number:04d}.png"
            figure.savefig(path, format="png", dpi=FRAME_DOTS, metadata={"Software": None})
        paths.append(path)
    return paths


def _plain(value: float, digits: int) -> str:
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return np.format_float_positional(value, digits, unique=False, fractional=False, trim="-")
