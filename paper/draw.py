"""Draw the paper's figures from the summaries: `python -m paper.draw [--out DIR] [--results DIR] [STEM ...]`."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.experiment import RESULTS
from lossland import figures
from lossland.figures import style
from lossland.sweeps.archive import write_whole
from paper import figures as scripts
from paper.sources import BUILD, MissingSummaryError, Results

DIGITS = 9


def stems() -> list[str]:
    """Names of the figures."""
    return sorted(found.name for found in pkgutil.iter_modules(scripts.__path__))


def script(stem: str) -> Any:
    """Return the module of a figure."""
    return importlib.import_module(f"paper.figures.{stem}")


def draw(stem: str, results: Results, out: Path) -> list[Path]:
    """Write all parts of a figure as PDF, and what is drawn in each as CSV."""
    paths = []
    for part, drawing in script(stem).PARTS.items():
        try:
            figure = drawing(results)
        except MissingSummaryError as error:
            figure = placeholder(str(error))
            print(f"{stem}: {error}", file=sys.stderr)
        place = out / (f"{stem}_{part}" if part else stem)
        paths += figures.save(figure, place, ["pdf"])
        numbers = place.with_suffix(".csv")
        write_whole(numbers, drawn_numbers(figure).encode())
        paths.append(numbers)
    return paths


def placeholder(words: str) -> Figure:
    """Say in place of a figure what has to be run for it."""
    with style.house_style():
        figure = Figure(figsize=(style.WIDTH, 1.2))
        figure.text(0.5, 0.5, words, ha="center", va="center", color=style.GREY)
    return figure


def drawn_numbers(figure: Figure) -> str:
    """Read the numbers off a figure: a line for each point, bar, cell and contour, in the order in which they are
    drawn."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["axes", "kind", "label", "x", "y", "value"])
    for number, ax in enumerate(figure.axes):
        for kind, label, rows in _marks(ax):
            for row in rows:
                writer.writerow([number, kind, label, *(_number(value) for value in row)])
    return stream.getvalue()


def _number(value: Any) -> str:
    if isinstance(value, str) or value is None or value is np.ma.masked:
        return "" if value is None or value is np.ma.masked else value
    return f"{float(value):.{DIGITS}g}"


def _marks(ax: Axes) -> Iterator[tuple[str, str, Any]]:
    for line in ax.lines:
        x, y = (np.asarray(line.convert_xunits(one)) for one in line.get_data(orig=True))
        if len(x) > 1 or line.get_marker() not in ("", "None", None):
            yield "line", _label(line), zip(x, y, (None for _ in x), strict=False)
    for mark in ax.collections:
        if isinstance(mark, QuadMesh):
            corners: Any = mark.get_coordinates()
            middles = (corners[1:, 1:] + corners[:-1, :-1]) / 2
            values = np.ma.asarray(mark.get_array()).ravel()
            yield (
                "cell",
                _label(mark),
                ((*place, value) for place, value in zip(middles.reshape(-1, 2), values, strict=True)),
            )
        elif isinstance(mark, PathCollection):
            yield "point", _label(mark), ((*place, None) for place in np.asarray(mark.get_offsets()))
        elif mark.get_array() is not None:
            levels = np.ma.asarray(mark.get_array()).ravel()
            paths = zip(mark.get_paths(), levels, strict=False)
            yield "contour", _label(mark), ((*p, z) for path, z in paths for p in path.vertices)
    for patch in ax.patches:
        if isinstance(patch, Rectangle):
            yield "bar", _label(patch), [(patch.get_x(), patch.get_y(), patch.get_width() or patch.get_height())]
    for text in ax.texts:
        yield "text", text.get_text().replace("\n", " "), [(*text.get_position(), None)]


def _label(artist: Any) -> str:
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else label


def main() -> int:
    """Draw what is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stems", nargs="*", metavar="STEM", help=f"all by default: {', '.join(stems())}")
    parser.add_argument("--out", type=Path, default=BUILD / "figures")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = Results(options.results)
    options.out.mkdir(parents=True, exist_ok=True)
    for stem in options.stems or stems():
        for path in draw(stem, results, options.out):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
