"""The boundary between convergence and divergence in a plane of two hyperparameters, trained only near it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lossland.arguments import (
    FLAG,
    FUNCTION,
    MAPPING,
    OPTIMIZER,
    PATH,
    Rule,
    a,
    check,
    count,
    expects,
    number,
    optional,
    several,
)
from lossland.problems.problem import Problem
from lossland.stability.maps import outcomes
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Outcome, Sweep

Lost = Callable[[xr.Dataset], xr.DataArray]
UNKNOWN = -1
LEAST_STEP = 4
"""Units of rounding by which neighbouring values of an axis must differ: below that a map shows the grid of floats."""


@dataclass(frozen=True)
class Axis:
    """One side of a plane: a hyperparameter from `low` to `high`, evenly spaced, by ratio if `log`.

    Raises:
        ValueError: unless low < high (both positive if `log`).
    """

    name: str
    low: float
    high: float
    log: bool = True

    def __post_init__(self) -> None:
        check("name", self.name, Rule("a Python identifier", str.isidentifier))
        for key, end in (("low", self.low), ("high", self.high)):
            check(f"axis {self.name}: {key}", end, number())
        check(f"axis {self.name}: log", self.log, FLAG)
        if not self.low < self.high:
            raise ValueError(f"axis {self.name}: expected finite low < high, got {self.low!r} and {self.high!r}")
        if self.log and self.low <= 0:
            raise ValueError(
                f"axis {self.name}: low: expected above 0 on a logarithmic axis, got {self.low!r}; or log=False"
            )

    def values(self, resolution: int) -> np.ndarray:
        """Grid values: (resolution,)."""
        share = np.arange(resolution) / (resolution - 1)
        if not self.log:
            return self.low + (self.high - self.low) * share
        return self.low * (self.high / self.low) ** share

    def zoomed(self, centre: float, factor: float) -> Axis:
        """Return the axis around a value, shorter by a factor (of its logarithm, if `log`)."""
        if self.log:
            half = np.log(self.high / self.low) / (2 * factor)
            return replace(self, low=float(centre * np.exp(-half)), high=float(centre * np.exp(half)))
        half = (self.high - self.low) / (2 * factor)
        return replace(self, low=float(centre - half), high=float(centre + half))


@dataclass(frozen=True)
class Plane:
    """Two hyperparameters, and others that follow them: `tied` is name -> "x" or "y", which gets the same value."""

    x: Axis
    y: Axis
    tied: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, axis in (("x", self.x), ("y", self.y)):
            if not isinstance(axis, Axis):
                raise ValueError(f"plane: {side}: expected ll.Axis(name, low, high), got {axis!r}")
        check("tied", self.tied, MAPPING)
        names = [self.x.name, self.y.name, *self.tied]
        if len(set(names)) < len(names):
            raise ValueError(f"plane: expected distinct names of x, y and what is tied, got {', '.join(names)}")
        if wrong := {name: side for name, side in self.tied.items() if side not in ("x", "y")}:
            raise ValueError(f"plane: tied: expected 'x' or 'y' for every name, got {wrong}")

    def points(self, resolution: int, rows: np.ndarray, columns: np.ndarray) -> dict[str, np.ndarray]:
        """Hyperparameters at grid places (row of y, column of x)."""
        sides = {"x": self.x.values(resolution)[columns], "y": self.y.values(resolution)[rows]}
        return {
            self.x.name: sides["x"],
            self.y.name: sides["y"],
            **{name: sides[side] for name, side in self.tied.items()},
        }

    def zoomed(self, x: float, y: float, factor: float) -> Plane:
        """Return the plane around a point, with sides shorter by a factor."""
        return replace(self, x=self.x.zoomed(x, factor), y=self.y.zoomed(y, factor))


def diverges(runs: xr.Dataset) -> xr.DataArray:
    """Say which runs diverge, by the cut-offs of `outcomes`: the rule of `boundary` where none is given."""
    return outcomes(runs)["diverges"]


@expects(
    problem=a("an ll.Problem", Problem),
    optimizer=OPTIMIZER,
    plane=a("an ll.Plane", Plane),
    resolution=count(2, 2**16),
    seeds=several(count(0)),
    num_steps=count(),
    lost=FUNCTION,
    stride=count(),
    adaptive=FLAG,
    out=optional(PATH),
    progress=FLAG,
)
def boundary(
    problem: Problem,
    optimizer: Any,
    plane: Plane,
    resolution: int = 512,
    *,
    seeds: Iterable[int] = (0,),
    num_steps: int = 400,
    probes: Iterable[Any] = ("loss",),
    lost: Lost = diverges,
    stride: int = 16,
    adaptive: bool = True,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **fields: Any,
) -> xr.Dataset:
    """Find which points of a plane diverge, training near the boundary only.

    Points `stride` apart are trained first. Cells whose corners differ are halved, together with their neighbours,
    until cells are one grid step wide; wherever a difference shows at the rim of what was halved, its neighbours are
    halved too. A point that was not trained has the outcome of its cell, whose corners all agree. Every cell on the
    boundary has four trained corners, and a run's bits do not depend on the others of its sweep: what is found is a
    part of what the dense map finds. Missed is what lies inside a coarse cell without touching its corners: islands
    smaller than `stride`, or necks thinner than it.

    Args:
        problem, optimizer, probes: as for `run`.
        plane: two hyperparameters and their ranges.
        resolution: points along each side.
        seeds: one map each, refined on its own.
        num_steps: as for `Sweep`; so are `fields` (every, dtype, lane_width, ...), `every` being `num_steps` / 20 by
            default.
        lost: says of runs which diverge: booleans with the dims of `status`.
        stride: grid steps between the points that are trained first; a power of 2.
        adaptive: False trains every point.
        out: folder for the runs; the same call goes on from what it holds.
        progress: show `run`'s bar, batch by batch.

    Returns:
        Dataset over (seed, y, x), named by the plane: `diverges`, `trained`; over (seed,) `num_trained`.

    Raises:
        ValueError: for a resolution below 2, a stride that is no power of 2, or a plane so small that the precision
            does not tell neighbouring points apart; or as `run`.
    """
    if not isinstance(plane, Plane):
        raise ValueError(f"plane: expected ll.Plane(ll.Axis(...), ll.Axis(...)), got {plane!r}")
    for name, value in (("resolution", resolution), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name}: expected an integer, got {value!r}")
    if not callable(lost):
        raise ValueError(f"lost: expected a function of runs that says which diverge, got {lost!r}")
    if resolution < 2:
        raise ValueError(f"resolution: expected at least 2 points a side, got {resolution!r}")
    if stride < 1 or stride & (stride - 1):
        raise ValueError(f"stride: expected a power of 2, got {stride!r}")
    for axis in (plane.x, plane.y):
        _check_precision(axis, resolution, fields.get("dtype", "float32"))
    if isinstance(seeds, int) or not (chosen := [int(seed) for seed in seeds]):
        raise ValueError(f"seeds: expected at least one seed, such as [0] or range(3), got {seeds!r}")
    fields.setdefault("every", max(1, num_steps // 20))
    probes = list(probes)
    maps, trained = [], []
    for seed in chosen:
        batches = iter(range(10**9))

        def train(rows: np.ndarray, columns: np.ndarray, seed: int = seed, batches: Any = batches) -> np.ndarray:
            sweep = Sweep(
                {}, points=plane.points(resolution, rows, columns), seeds=[seed], num_steps=num_steps, **fields
            )
            place = None if out is None else Path(out) / f"seed-{seed}" / f"batch-{next(batches):04d}"
            runs = run(problem, optimizer, sweep, probes, place, progress=progress)
            if (runs["status"] == Outcome.not_run).any():
                raise ValueError("boundary: refinement needs all its runs here; run it without part=")
            flags = lost(runs)
            if not isinstance(flags, xr.DataArray) or set(flags.dims) != {"point", "seed"} or flags.dtype != bool:
                raise ValueError(f"lost: expected booleans with the dims of status, got {flags!r}")
            return flags.transpose("point", "seed").values[:, 0]

        found = refine(train, resolution, stride) if adaptive else _dense(train, resolution)
        maps.append(found[0])
        trained.append(found[1])
    x, y = plane.x, plane.y
    dims = ("seed", y.name, x.name)
    coordinates = {"seed": chosen, y.name: y.values(resolution), x.name: x.values(resolution)}
    counts = np.array([known.sum() for known in trained])
    return xr.Dataset(
        {
            "diverges": (dims, np.array(maps), {"units": "1", "description": "whether training diverges"}),
            "trained": (dims, np.array(trained), {"units": "1", "description": "whether the point was trained"}),
            "num_trained": (("seed",), counts, {"units": "1", "description": "runs trained for the map"}),
        },
        coordinates,
        {
            "problem": problem.name,
            "num_steps": num_steps,
            "stride": stride,
            "log_x": int(x.log),
            "log_y": int(y.log),
            "tied": " ".join(f"{name}={side}" for name, side in plane.tied.items()),
        },
    )


def refine(train: Callable[[np.ndarray, np.ndarray], np.ndarray], resolution: int, stride: int) -> Any:
    """Find a map of two outcomes on a square grid from few of its points: (outcome, trained), both (row, column).

    Args:
        train: (rows, columns) -> booleans; called with whole batches of places, never twice for one.
        resolution: points along each side.
        stride: grid steps between the first points; a power of 2.
    """
    known = np.full((resolution, resolution), UNKNOWN, np.int8)
    last = resolution - 1
    guess = np.zeros((resolution, resolution), bool)

    def need(rows: np.ndarray, columns: np.ndarray) -> bool:
        """Train the places that were not yet; False if there are none."""
        flat = np.unique(np.minimum(rows, last) * resolution + np.minimum(columns, last))
        flat = flat[known.reshape(-1)[flat] == UNKNOWN]
        if not flat.size:
            return False
        known.reshape(-1)[flat] = train(flat // resolution, flat % resolution)
        return True

    while stride > last:
        stride //= 2
    side = -(-last // stride)  # cells of the coarse grid along each side; the last may be narrower
    active = np.ones((side, side), bool)
    while True:
        corners = np.minimum(np.arange(active.shape[0] + 1) * stride, last)
        while True:
            need(*_corners(active, stride))
            values = known[np.ix_(corners, corners)]
            mixed = _mixed(values)
            wider = _dilated(mixed)
            if not (wider & ~active).any():
                break
            active |= wider
        # What is trained at this stride speaks for its cell until a finer stride knows better.
        rows, columns = np.nonzero(values != UNKNOWN)
        for row, column in zip(corners[rows], corners[columns], strict=True):
            guess[row : row + stride, column : column + stride] = known[row, column]
        if stride == 1:
            break
        stride //= 2
        active = np.repeat(np.repeat(wider, 2, 0), 2, 1)
        side = -(-last // stride)
        active = active[:side, :side]
    while True:
        guess = np.where(known == UNKNOWN, guess, known == 1)
        rows, columns = np.nonzero(boundary_cells(guess))
        around = [(rows + i, columns + j) for i in (0, 1) for j in (0, 1)]
        if not need(np.concatenate([r for r, _ in around]), np.concatenate([c for _, c in around])):
            return guess, known != UNKNOWN


def boundary_cells(diverging: Any) -> np.ndarray:
    """Mark the cells of a map whose four corners do not agree: (.., n, m) -> (.., n - 1, m - 1) booleans."""
    flags = np.asarray(diverging, bool)
    quads = [flags[..., i : flags.shape[-2] - 1 + i, j : flags.shape[-1] - 1 + j] for i in (0, 1) for j in (0, 1)]
    return np.logical_or.reduce(quads) & ~np.logical_and.reduce(quads)


def _check_precision(axis: Axis, resolution: int, dtype: str) -> None:
    # Hyperparameters of bfloat16 sweeps are single precision.
    precision = "float64" if dtype == "float64" else "float32"
    values = axis.values(resolution).astype(precision)
    if np.any(np.diff(values) < LEAST_STEP * np.spacing(np.abs(values[1:]))):
        remedy = "a wider plane" if precision == "float64" else "dtype='float64' or a wider plane"
        raise ValueError(
            f"axis {axis.name}: {resolution} values from {axis.low!r} to {axis.high!r} lie closer together than "
            f"{LEAST_STEP} units of rounding of {precision}: take fewer, {remedy}"
        )


def _dense(train: Callable[[np.ndarray, np.ndarray], np.ndarray], resolution: int) -> Any:
    rows, columns = (index.ravel() for index in np.indices((resolution, resolution)))
    return train(rows, columns).reshape(resolution, resolution), np.ones((resolution, resolution), bool)


def _corners(cells: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(cells)
    around = [(rows + i, columns + j) for i in (0, 1) for j in (0, 1)]
    return np.concatenate([r for r, _ in around]) * stride, np.concatenate([c for _, c in around]) * stride


def _mixed(values: np.ndarray) -> np.ndarray:
    """Cells with a diverging and a converging corner, whatever is known of the others."""
    size, width = values.shape
    quads = [values[i : size - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
    return np.logical_or.reduce([quad == 1 for quad in quads]) & np.logical_or.reduce([quad == 0 for quad in quads])


def _dilated(cells: np.ndarray) -> np.ndarray:
    """Cells with their eight neighbours."""
    size, width = cells.shape
    padded = np.pad(cells, 1)
    return np.logical_or.reduce([padded[i : size + i, j : width + j] for i in range(3) for j in range(3)])
