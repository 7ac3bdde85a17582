"""A parabola with a cosine on it: where the set of diverging learning rates stops being an interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.reproduced import transition_figure
from lossland.problems.trainability import cosine_quadratic
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Outcome, Sweep

WAVELENGTH, STEPS = 0.1, 1000
RATES = (1.0, 1.05)
"""Learning rates: below 1 the parabola holds every run, and beyond the second every start has diverged."""
COARSENING = 16
PLATEAU = 1.2
"""From this roughness on, the growth is taken for its level past the transition."""
DRAWS = 2000


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    starts, resolution = (32, 2048) if fast else (96, 4096)
    roughness = np.array([0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4])
    rates = np.linspace(*RATES, resolution + 1)
    changes = {}
    for value in roughness:
        sweep = Sweep(
            {"roughness": [value], "wavelength": [WAVELENGTH], "learning_rate": rates},
            starts,
            STEPS,
            STEPS,
            dtype="float64",
        )
        runs = run(cosine_quadratic(), optax.sgd, sweep, ["loss"], progress=False)
        changes[value] = sign_changes(unbounded(runs).isel(roughness=0, wavelength=0), COARSENING)
    fine, coarse = (np.array([changes[value][index] for value in roughness]) for index in (0, 1))
    located = transition(roughness, fine, coarse)
    generator = np.random.default_rng(0)
    draws = [generator.integers(starts, size=starts) for _ in range(DRAWS)]
    resampled = np.array([transition(roughness, fine[:, draw], coarse[:, draw]) for draw in draws])
    low, high = (float(value) for value in np.nanpercentile(resampled, [2.5, 97.5]))
    smooth = roughness < 0.8
    numbers = {
        "transition_roughness": located,
        "transition_eps_over_wavelength_squared": located / (2 * np.pi**2),
        "transition_interval": [low, high],
        "boundary_points_where_smooth": float(fine[smooth].mean()),
        "growth_past_the_transition": float(growth(fine, coarse)[roughness >= PLATEAU].mean()),
    }
    figure = transition_figure(roughness, growth(fine, coarse), fine.mean(1), located, (low, high))
    return numbers, figures.save(figure, folder / "cosine_quadratic")


def unbounded(runs: xr.Dataset) -> xr.DataArray:
    """Say which runs left: the parabola grows without bound where |x| does, and never lets a run stop far out."""
    left = runs["loss"].isel(step=-1, drop=True) > 1e3 * runs["loss"].isel(step=0, drop=True)
    return (runs["status"] == Outcome.diverged) | left


def sign_changes(lost: xr.DataArray, coarsening: int) -> tuple[np.ndarray, np.ndarray]:
    """Count, start by start, how often the outcome changes along the learning rate: (on the grid, on every n-th of
    it)."""
    flags = lost.transpose("seed", "learning_rate").values
    return tuple((line[:, 1:] != line[:, :-1]).sum(1) for line in (flags, flags[:, ::coarsening]))  # type: ignore


def growth(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Exponent by which the number of boundary points grows with resolution, log(N_fine / N_coarse) / log(16).

    Zero for a boundary of separate points; the box-counting dimension for a fractal one. Means over starts.
    """
    return np.log(fine.mean(-1) / coarse.mean(-1)) / np.log(COARSENING)


def transition(roughness: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> float:
    """Locate the roughness at which the exponent first reaches half its level past the transition, interpolated."""
    exponent = growth(fine, coarse)
    half = exponent[roughness >= PLATEAU].mean() / 2
    above = np.flatnonzero(exponent >= half)
    if not above.size or half <= 0:
        return float("nan")
    first = above[0]
    if first == 0:
        return float(roughness[0])
    left, right = exponent[first - 1], exponent[first]
    share = (half - left) / (right - left)
    return float(roughness[first - 1] + share * (roughness[first] - roughness[first - 1]))
