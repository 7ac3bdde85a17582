"""Boundaries of trainability of a small network: dimensions by panel, and an offset added once or at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.planes import boundary_figure
from lossland.problems.trainability import mean_field_network
from lossland.stability.boundaries import Axis, Plane, boundary, boundary_cells
from lossland.stability.fractal import box_dimension, dimension_dependence, local_dimensions, richest, typical, zoom
from lossland.stability.intervals import mean_interval
from lossland.stability.trainability import drift, not_converged, per_layer_sgd, tail_loss, track_tail_loss

DECADES = (1e-3, 1e6)
"""Learning rates and offsets of the source's first frame."""


@dataclass(frozen=True)
class Panel:
    """One published panel: activation, plane, and how a run of so many steps is optimised."""

    activation: str
    title: str
    plane: Plane
    optimizer: Callable[[int], Callable[..., optax.GradientTransformation]]


def layers(num_steps: int) -> Callable[..., optax.GradientTransformation]:
    """Gradient descent with a learning rate per layer."""

    def tracked_per_layer_sgd(input_rate: Any, output_rate: Any) -> optax.GradientTransformation:
        return optax.chain(track_tail_loss(num_steps), per_layer_sgd(input_rate, output_rate))

    return tracked_per_layer_sgd


def plain(num_steps: int) -> Callable[..., optax.GradientTransformation]:
    """Gradient descent: an offset that the problem adds to its starting point stays there once."""

    def tracked_sgd(learning_rate: Any) -> optax.GradientTransformation:
        return optax.chain(track_tail_loss(num_steps), optax.sgd(learning_rate))

    return tracked_sgd


def drifting(num_steps: int) -> Callable[..., optax.GradientTransformation]:
    """Gradient descent that adds the offset to the input layer again at every step."""

    def tracked_drifting_sgd(learning_rate: Any, drift_amount: Any) -> optax.GradientTransformation:
        return optax.chain(track_tail_loss(num_steps), optax.sgd(learning_rate), drift(drift_amount))

    return tracked_drifting_sgd


RATES = Plane(Axis("input_rate", *DECADES), Axis("output_rate", *DECADES))
OFFSET = Plane(Axis("offset", *DECADES), Axis("learning_rate", *DECADES))
PANELS = {
    "linear": Panel("identity", "linear", RATES, layers),
    "relu": Panel("relu", "ReLU", RATES, layers),
    "tanh": Panel("tanh", "tanh", RATES, layers),
    "offset_once": Panel("tanh", "offset, once", OFFSET, plain),
    "offset_every_step": Panel("tanh", "offset, always", Plane(OFFSET.x, OFFSET.y, {"drift_amount": "x"}), drifting),
}


@dataclass(frozen=True)
class Size:
    """How much is trained: points along a side, steps, seeds, frames of a zoom, how much shorter each is, and points
    along a side of the map by which refinement is compared with training everything."""

    resolution: int
    num_steps: int
    seeds: int
    frames: int
    factor: float
    compared: int


FAST = Size(resolution=24, num_steps=100, seeds=2, frames=2, factor=8.0, compared=96)
FULL = Size(resolution=48, num_steps=500, seeds=3, frames=3, factor=8.0, compared=512)
TYPICAL, RICHEST = "typical", "richest"


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    size = FAST if fast else FULL
    numbers: dict[str, Any] = {}
    maps, rows = {}, []
    slopes: dict[tuple[str, str], np.ndarray] = {}
    pictures: list[xr.Dataset] = []
    for name, panel in PANELS.items():
        words = []
        for rule in (TYPICAL, RICHEST):
            found, first, drawn = panel_dimensions(panel, size, rule)
            rows.append((name, rule, *mean_interval(found), *mean_interval(first)))
            words.append(_words(rule, found))
            slopes[name, rule] = found
            pictures = drawn  # in the end those of the densest part, where the published frames look
        # Where the published zooms look is not said: the interval over seeds of either rule may hold their value.
        intervals = [mean_interval(slopes[name, rule])[1:] for rule in (TYPICAL, RICHEST)]
        numbers[f"dimension_{name}"] = [float(min(low for low, _ in intervals)), float(max(h for _, h in intervals))]
        numbers[f"dimension_{name}_richest_above_typical"] = float(
            slopes[name, RICHEST].mean() - slopes[name, TYPICAL].mean()
        )
        maps[panel.title] = (pictures, "\n".join(words))
    once, always = (slopes[name, RICHEST].mean() for name in ("offset_once", "offset_every_step"))
    numbers["dimension_offset_once"] = (float(once), float(always))
    both = slopes["offset_every_step", TYPICAL] - slopes["offset_once", TYPICAL]
    numbers["offset_every_step_above_once"] = float(both.mean())
    numbers |= refinement(size)
    dependence = settings_dependence(size)
    changes = dependence.where(dependence["setting"] != "reference", drop=True)
    for name in dict.fromkeys(changes["setting"].values):
        here = changes["difference"].where(changes["setting"] == name, drop=True)
        numbers[f"dimension_changes_with_{name}"] = float(abs(here).max())
    shrunk = size.factor ** (size.frames - 1)
    note = (
        f"16 hidden units, float64, {size.num_steps} steps, {size.resolution} × {size.resolution} points a frame. "
        f"Above: the first of {size.frames} frames, below the last, {shrunk:g} times smaller, where the boundary is "
        "densest. Numbers: median slope over box sizes and zoomed frames, zoomed in at random (typical) or where it is "
        f"densest (richest), mean over {size.seeds} seeds with 95 % interval. Light converges."
    )
    paths = figures.save(
        boundary_figure(maps, "How rough a boundary is depends on where one looks", note), folder / "fractal_boundary"
    )
    columns = ("panel", "zoom", "mean", "low", "high", "first_frame", "first_frame_low", "first_frame_high")
    by_panel = xr.Dataset(
        {name: ("row", list(values)) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}
    )
    paths.append(figures.save_numbers(by_panel, folder / "dimensions"))
    paths.append(figures.save_numbers(dependence, folder / "dependence"))
    # Published values compare at the published number of steps only.
    return {name: value for name, value in numbers.items() if name in table}, paths


def panel_dimensions(panel: Panel, size: Size, rule: str) -> tuple[np.ndarray, np.ndarray, list[xr.Dataset]]:
    """Zoom into one panel, seed by seed, around boundary cells drawn at random or where the boundary is densest.

    Returns:
        Median slope over box sizes and zoomed frames of every seed (the source's estimate), box-counting dimension of
        the first frame of every seed, and the first and last map of the first seed.
    """
    problem = mean_field_network(activation=panel.activation)  # type: ignore[arg-type]
    optimizer = panel.optimizer(size.num_steps)
    medians, first, pictures = [], [], []
    for seed in range(size.seeds):
        choose = typical(np.random.default_rng(seed)) if rule == TYPICAL else richest
        draw = _drawer(problem, optimizer, seed, size)
        maps = [found for _, found in zoom(draw, panel.plane, size.frames, size.factor, choose)]
        marked = [boundary_cells(found["diverges"].values[0]) for found in maps]
        # The source's medians are over many frames, of which the first, not zoomed at all, is one.
        zoomed = marked[1:] or marked
        medians.append(np.nanmedian(np.concatenate([local_dimensions(cells) for cells in zoomed])))
        first.append(box_dimension(marked[0]))
        pictures = pictures or [maps[0], maps[-1]]
    return np.array(medians), np.array(first), pictures


def refinement(size: Size) -> dict[str, Any]:
    """Compare refinement with training every point, on the linear panel's first frame, and on a rough part of it at
    half the resolution."""
    panel = PANELS["linear"]
    problem, optimizer = mean_field_network(activation="identity"), panel.optimizer(FAST.num_steps)
    planes = [plane for plane, _ in zoom(_drawer(problem, optimizer, 0, FAST), panel.plane, 3, 4.0, richest)]
    numbers = {}
    for name, plane, side in (("", planes[0], size.compared), ("_where_rough", planes[-1], size.compared // 2)):
        few, everything = (
            boundary(
                problem,
                optimizer,
                plane,
                side,
                num_steps=FAST.num_steps,
                probes=[tail_loss],
                lost=not_converged,
                every=FAST.num_steps,
                dtype="float64",
                adaptive=adaptive,
            )
            for adaptive in (True, False)
        )
        ours, theirs = (boundary_cells(one["diverges"].values[0]) for one in (few, everything))
        numbers[f"dense_runs_per_refined_run{name}"] = side**2 / int(few["num_trained"].item())
        numbers[f"boundary_cells_found{name}"] = float((ours & theirs).sum() / theirs.sum())
        numbers[f"boundary_cells_invented{name}"] = int((ours & ~theirs).sum())
    return numbers


def settings_dependence(size: Size) -> xr.Dataset:
    """Measure what the dimension of the linear panel's middle owes to resolution, steps, precision and cut-off."""
    panel = PANELS["linear"]
    problem = mean_field_network(activation="identity")
    middle = Plane(Axis("input_rate", 1.0, 1e3), Axis("output_rate", 1.0, 1e3))

    def measured(resolution: int, num_steps: int, dtype: str, cutoff: float) -> xr.DataArray:
        found = boundary(
            problem,
            panel.optimizer(num_steps),
            middle,
            resolution,
            seeds=range(size.seeds),
            num_steps=num_steps,
            probes=[tail_loss],
            lost=lambda runs: not_converged(runs, cutoff),
            stride=4,
            every=num_steps,
            dtype=dtype,
        )
        return found["diverges"]

    reference = {"resolution": size.resolution, "num_steps": size.num_steps, "dtype": "float64", "cutoff": 1.0}
    changes = {
        "resolution": [2 * size.resolution, 4 * size.resolution],
        "num_steps": [size.num_steps // 2, 2 * size.num_steps],
        "dtype": ["float32"],
        "cutoff": [0.5, 2.0],
    }
    return dimension_dependence(measured, reference, changes)


def _drawer(problem: Any, optimizer: Any, seed: int, size: Size) -> Callable[[Plane], xr.Dataset]:
    def draw(plane: Plane) -> xr.Dataset:
        return boundary(
            problem,
            optimizer,
            plane,
            size.resolution,
            seeds=[seed],
            num_steps=size.num_steps,
            probes=[tail_loss],
            lost=not_converged,
            adaptive=False,  # where the boundary is rough it is full of islands, which refinement may miss
            every=size.num_steps,
            dtype="float64",
        )

    return draw


def _words(rule: str, slopes: np.ndarray) -> str:
    mean, low, high = mean_interval(slopes)
    return f"{rule} {mean:.2f} [{low:.2f}, {high:.2f}]"
