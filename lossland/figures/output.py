"""Figures and their numbers as files: the same bytes whenever the same thing is drawn again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from lossland.arguments import PATH, a, choice, dataset, expects, several
from lossland.figures import style

FORMATS = ("png", "pdf")


@expects(figure=a("a Figure of matplotlib", Figure), path_stem=PATH, formats=several(choice(*FORMATS)))
def save(figure: Figure, path_stem: str | os.PathLike[str], formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure as `<path_stem>.png` (300 dots per inch) and `<path_stem>.pdf` (vectors, TrueType fonts embedded).

    Files hold no date and no machine: the same figure gives the same bytes. Folders are made; no window is opened and
    no matplotlib setting is left changed.

    Args:
        figure: any matplotlib figure.
        path_stem: path without a suffix.
        formats: which of the two.

    Returns:
        The paths written, PNG first.

    Raises:
        ValueError: if `path_stem` ends with .png or .pdf, or another format is asked for.
    """
    stem = _stem(path_stem, FORMATS)
    title = figure.get_suptitle().replace("\n", " ") or stem.name
    metadata = {
        "png": {"Software": None, "Title": title},
        "pdf": {"CreationDate": None, "Title": title, "Creator": "lossland"},
    }
    canvases = {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf}
    paths = []
    canvas = figure.canvas
    try:
        with style.house_style():
            for kind in formats:
                path = stem.with_name(f"{stem.name}.{kind}")
                # Written by the canvas itself, so that a figure shown in a window elsewhere does not draw itself anew.
                canvases[kind](figure)
                figure.savefig(path, format=kind, dpi=style.RESOLUTION, metadata=metadata[kind])
                paths.append(path)
    finally:
        figure.set_canvas(canvas)
    return paths


@expects(numbers=dataset(source="holds the numbers of a figure"), path_stem=PATH)
def save_numbers(numbers: xr.Dataset, path_stem: str | os.PathLike[str]) -> Path:
    """Write the numbers behind a figure as `<path_stem>.csv`: one line per point, coordinates first, nine digits.

    Args:
        numbers: a stability map, or what `boundaries` and `curves` return.
        path_stem: path without a suffix.

    Raises:
        ValueError: if `path_stem` ends with .csv.
    """
    stem = _stem(path_stem, ("csv",))
    path = stem.with_name(f"{stem.name}.csv")
    numbers.to_dataframe().to_csv(path, float_format="%.9g", lineterminator="\n")
    return path


def _stem(path_stem: str | os.PathLike[str], formats: tuple[str, ...]) -> Path:
    stem = Path(path_stem)
    if stem.suffix.lstrip(".").lower() in formats:
        raise ValueError(f"path_stem: expected a path without a suffix, got {stem.name!r}; write {stem.stem!r}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem
