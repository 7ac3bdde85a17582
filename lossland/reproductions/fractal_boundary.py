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
from lossland.figures.boundaries import boundary_figure
from lossland.problems.trainability import mean_field_network
from lossland.stability.boundaries import Axis, Plane, boundary, boundary_cells
from lossland.stability.fractal import box_dimension, local_dimensions, typical, zoom
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
    """How much is trained: points along a side, steps, seeds, frames of a zoom and how much shorter each is."""

    resolution: int
    num_steps: int
    seeds: int
    frames: int
    factor: float


FAST = Size(resolution=32, num_steps=100, seeds=2, frames=2, factor=8.0)
FULL = Size(resolution=64, num_steps=500, seeds=4, frames=4, factor=8.0)


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    size = FAST if fast else FULL
    found = {name: panel_dimensions(panel, size) for name, panel in PANELS.items()}
    numbers: dict[str, Any] = {}
    maps = {}
    for name, (slopes, first, pictures) in found.items():
        mean, low, high = mean_interval(slopes)
        numbers[f"dimension_{name}"] = [low, high]
        numbers[f"dimension_{name}_first_frame"] = [float(first.min()), float(first.max())]
        maps[PANELS[name].title] = (pictures, f"{mean:.2f} [{low:.2f}, {high:.2f}]")
    once, always = (found[name][0] for name in ("offset_once", "offset_every_step"))
    numbers["offset_every_step_minus_once"] = mean_interval(always - once)[0]
    note = (
        f"16 hidden units, float64, {size.num_steps} steps, {size.resolution} × {size.resolution} points a frame. "
        f"Above: the first of {size.frames} frames, below the last, {size.factor ** (size.frames - 1):g} times smaller,"
        f" around boundary cells drawn at random. Numbers: median slope over box sizes and frames, mean over "
        f"{size.seeds} seeds with 95 % interval. Light converges, dark diverges."
    )
    figure = boundary_figure(maps, "How rough a boundary is depends on where one looks", note)
    return numbers, figures.save(figure, folder / "fractal_boundary")


def panel_dimensions(panel: Panel, size: Size) -> tuple[np.ndarray, np.ndarray, list[xr.Dataset]]:
    """Zoom into one panel, seed by seed, around boundary cells drawn at random.

    Returns:
        Median slope over box sizes and frames of every seed (the source's estimate), box-counting dimension of the
        first frame of every seed, and the first and last map of the first seed.
    """
    problem = mean_field_network(activation=panel.activation)  # type: ignore[arg-type]
    optimizer = panel.optimizer(size.num_steps)
    medians, first, pictures = [], [], []
    for seed in range(size.seeds):
        draw, choose = _drawer(problem, optimizer, seed, size), typical(np.random.default_rng(seed))
        maps = [found for _, found in zoom(draw, panel.plane, size.frames, size.factor, choose)]
        marked = [boundary_cells(found["diverges"].values[0]) for found in maps]
        medians.append(np.nanmedian(np.concatenate([local_dimensions(cells) for cells in marked])))
        first.append(box_dimension(marked[0]))
        pictures = pictures or [maps[0], maps[-1]]
    return np.array(medians), np.array(first), pictures


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
            stride=4,
            every=size.num_steps,
            dtype="float64",
        )

    return draw
