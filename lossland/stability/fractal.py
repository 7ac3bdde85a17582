"""Box-counting dimension of a boundary, with an interval over seeds, and what it depends on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import FUNCTION, a, count, expects, number, optional
from lossland.stability.boundaries import Plane, boundary_cells
from lossland.stability.intervals import COVERAGE, mean_interval

LARGEST = 8
"""Boxes are at most this fraction, 1 / LARGEST, of the map: larger ones are all occupied, whatever the set."""


def box_counts(cells: Any) -> tuple[np.ndarray, np.ndarray]:
    """Count the boxes that hold a marked cell: (sizes, counts), sizes 1, 2, 4, ... in cells.

    Equation: N(s) = least number of boxes of s x s cells that cover the set, over grids shifted by multiples of s / 4
    along each axis (the definition of the dimension takes the least cover; a single grid depends on where it lies).

    Args:
        cells: booleans of any number of axes, each as long as the longest box or longer.

    Raises:
        ValueError: for an array without axes, or with fewer than 2 cells along one.
    """
    flags = np.asarray(cells)
    if flags.dtype != bool:
        raise ValueError(f"cells: expected booleans, got {flags.dtype}; mark cells by a comparison, or boundary_cells")
    if not flags.ndim or min(flags.shape) < 2:
        raise ValueError(f"cells: expected at least 2 cells along each axis, got shape {flags.shape}")
    places = np.nonzero(flags)
    sizes = 2 ** np.arange(max(1, int(np.log2(min(flags.shape) / LARGEST)) + 1))
    counts = []
    for size in sizes:
        shifts = np.arange(0, size, max(1, size // 4))
        boxes = [length // int(size) + 2 for length in flags.shape]
        covers = []
        for shift in itertools.product(shifts, repeat=flags.ndim):
            index = [(place + by) // size for place, by in zip(places, shift, strict=True)]
            occupied = np.zeros(boxes, bool)
            occupied[tuple(index)] = True
            covers.append(int(occupied.sum()))
        counts.append(min(covers))
    return sizes, np.array(counts)


def box_dimension(cells: Any) -> float:
    """Estimate the box-counting dimension of a set of cells; NaN for an empty set or fewer than two box sizes.

    Equation: minus the least-squares slope of log N(s) over log s, see `box_counts`.
    """
    sizes, counts = box_counts(cells)
    if len(sizes) < 2 or not counts.all():
        return float("nan")
    return float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def local_dimensions(cells: Any) -> np.ndarray:
    """Return the slopes between neighbouring box sizes, log2 N(s) / N(2 s), smallest boxes first."""
    _, counts = box_counts(cells)
    return np.log2(counts[:-1] / counts[1:]) if counts.all() else np.full(len(counts) - 1, np.nan)


@expects(coverage=number(above=0, below=1))
def boundary_dimension(diverges: xr.DataArray, coverage: float = COVERAGE) -> xr.Dataset:
    """Estimate the dimension of the boundary of a map, seed by seed, and its mean over seeds with an interval.

    Equation: mean -/+ t s / sqrt(n) over seeds (Student); see `box_dimension`.

    Args:
        diverges: booleans with the dim `seed` and one or two axes of a grid, as `boundary` returns.
        coverage: nominal coverage of the interval, for a boundary drawn from the same distribution of starts.

    Returns:
        Dataset with `dimension` (seed), `num_cells` (seed) on the boundary, `median_slope` (seed) of
        `local_dimensions`, and `mean`, `low`, `high`. Seeds whose map has no boundary are NaN and do not count.

    Raises:
        ValueError: without a dim `seed`.
    """
    if not isinstance(diverges, xr.DataArray):
        raise ValueError(f"diverges: expected boundary(...)['diverges'], got {type(diverges).__name__}")
    if "seed" not in diverges.dims or diverges.ndim < 2:
        raise ValueError(
            f"diverges: expected a dim 'seed' and those of a grid, got {', '.join(map(str, diverges.dims))}"
        )
    marked = [_marked(one) for one in diverges.transpose("seed", ...).values]
    dimensions = np.array([box_dimension(cells) for cells in marked])
    slopes = np.array([np.median(local_dimensions(cells)) for cells in marked])
    mean, low, high = mean_interval(dimensions, coverage)
    about = {
        "dimension": (("seed",), dimensions, "box-counting dimension of the boundary"),
        "median_slope": (("seed",), slopes, "median slope between neighbouring box sizes"),
        "num_cells": (("seed",), np.array([cells.sum() for cells in marked]), "cells on the boundary"),
        "mean": ((), mean, "mean dimension over seeds"),
        "low": ((), low, f"lower end of the {coverage:.0%} interval of the mean"),
        "high": ((), high, "upper end"),
    }
    return xr.Dataset(
        {name: (dims, values, {"units": "1", "description": text}) for name, (dims, values, text) in about.items()},
        {"seed": diverges["seed"]},
        {"coverage": coverage},
    )


def dimension_dependence(
    measure: Callable[..., xr.DataArray],
    reference: Mapping[str, Any],
    changes: Mapping[str, Sequence[Any]],
    coverage: float = COVERAGE,
) -> xr.Dataset:
    """Measure the dimension at reference settings, and again with one setting changed at a time.

    Args:
        measure: called with the settings by name, such as resolution, num_steps, dtype, cutoff; returns a map of
            booleans with a dim `seed`, as `boundary(...)["diverges"]`.
        reference: setting -> value.
        changes: setting -> other values to try.

    Returns:
        Dataset over `case` with `setting` and `value` (words; "reference" first), `dimension` (.., seed), `mean`,
        `low`, `high`, and the paired difference from the reference seed by seed: `difference`, `difference_low`,
        `difference_high`.

    Raises:
        ValueError: for a change of a setting that is not in the reference.
    """
    if unknown := sorted(set(changes) - set(reference)):
        raise ValueError(f"changes: {', '.join(unknown)} is not among the settings {', '.join(reference)}")
    cases = [("reference", "", dict(reference))]
    cases += [(name, str(value), {**reference, name: value}) for name, values in changes.items() for value in values]
    found = [boundary_dimension(measure(**settings), coverage) for _, _, settings in cases]
    differences = [mean_interval((one["dimension"] - found[0]["dimension"]).values, coverage) for one in found]
    statistics = {name: ("case", [float(one[name]) for one in found]) for name in ("mean", "low", "high")}
    paired = {
        name: ("case", [difference[index] for difference in differences])
        for index, name in enumerate(("difference", "difference_low", "difference_high"))
    }
    return xr.Dataset(
        {
            "setting": ("case", [setting for setting, _, _ in cases]),
            "value": ("case", [value for _, value, _ in cases]),
            "dimension": (("case", "seed"), np.array([one["dimension"].values for one in found])),
            **statistics,
            **paired,
        },
        {"seed": found[0]["seed"]},
        {"coverage": coverage, **{f"reference_{name}": str(value) for name, value in reference.items()}},
    )


@expects(
    draw=FUNCTION, plane=a("an ll.Plane", Plane), num_frames=count(), factor=number(above=1), choose=optional(FUNCTION)
)
def zoom(
    draw: Callable[[Plane], xr.Dataset],
    plane: Plane,
    num_frames: int,
    factor: float = 2.0,
    choose: Callable[[np.ndarray], tuple[int, int]] | None = None,
) -> Iterator[tuple[Plane, xr.Dataset]]:
    """Follow a boundary inwards: map a plane, choose a cell on the boundary, map around it, and so on.

    Args:
        draw: maps a plane, such as `lambda plane: boundary(problem, optimizer, plane, 256)`; its first seed is
            followed.
        plane: the first frame.
        num_frames: how many frames; stops early where a frame has no boundary left.
        factor: how much shorter the sides are from one frame to the next.
        choose: marked cells -> (row, column). Default `richest`, for movies; `typical(generator)` for estimates.

    Yields:
        (plane, map) of each frame.

    Raises:
        ValueError: for fewer than one frame, or a factor not above 1.
    """
    if num_frames < 1 or not factor > 1:
        raise ValueError(f"zoom: expected num_frames >= 1 and factor > 1, got {num_frames!r} and {factor!r}")
    for frame in range(num_frames):
        found = draw(plane)
        yield plane, found
        cells = boundary_cells(found["diverges"].isel(seed=0).values)
        if not cells.any() or frame == num_frames - 1:
            return
        row, column = (choose or richest)(cells)
        x, y = found[plane.x.name].values, found[plane.y.name].values
        plane = plane.zoomed(_between(x, column, plane.x.log), _between(y, row, plane.y.log), factor)


def typical(generator: np.random.Generator) -> Callable[[np.ndarray], tuple[int, int]]:
    """Build the choice of a boundary cell at random, all equally likely: no part of the boundary is favoured."""

    def choose(cells: np.ndarray) -> tuple[int, int]:
        places = np.argwhere(cells)
        row, column = places[generator.integers(len(places))]
        return int(row), int(column)

    return choose


def richest(cells: np.ndarray) -> tuple[int, int]:
    """Choose the boundary cell with the most boundary around it, within an eighth of the map; among equals the one
    nearest to the middle.

    Zooming by this rule ends where the boundary fills the plane, so a dimension measured on the way is too large.
    """
    size = max(1, min(cells.shape) // 8)
    total = np.pad(cells.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = np.nonzero(cells)
    low_r, high_r = np.maximum(rows - size, 0), np.minimum(rows + size + 1, cells.shape[0])
    low_c, high_c = np.maximum(columns - size, 0), np.minimum(columns + size + 1, cells.shape[1])
    around = total[high_r, high_c] - total[low_r, high_c] - total[high_r, low_c] + total[low_r, low_c]
    middle = np.hypot(rows - cells.shape[0] / 2, columns - cells.shape[1] / 2)
    best = np.lexsort((middle, -around))[0]
    return int(rows[best]), int(columns[best])


def _marked(flags: np.ndarray) -> np.ndarray:
    """Boundary cells of a plane, or of a line."""
    return flags[1:] != flags[:-1] if flags.ndim == 1 else boundary_cells(flags)


def _between(values: np.ndarray, place: int, log: bool) -> float:
    """Middle of the cell that begins at a grid value."""
    low, high = float(values[place]), float(values[place + 1])
    return float(np.sqrt(low * high)) if log else (low + high) / 2
