"""A parabola with a cosine on it: where the set of diverging learning rates stops being an interval.

One step of gradient descent is odd, g(x) = x - eta f'(x). Runs beyond the outermost 2-cycle, g(x) = -x, diverge; if g
maps the inside into itself, one learning rate divides the two fates of a start. Far out (starts of many wavelengths) a
point about half a wavelength inside is thrown beyond it iff, for some angle t, r (1 + sin t) > (pi/2 + t) / 2: at the
best t, r (1 + sqrt(1 - 1/(4 r^2))) > (pi/2 + arccos(1/(2 r))) / 2, or r > 0.69. Convexity, r <= 1, does not forbid it.
"""

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

WAVELENGTHS = (0.1, 0.2, 0.4)
"""Starts lie 1/2 to 3/2 from the minimum: 10, 5 and 2.5 wavelengths on average."""
ROUGHNESS = np.array([0.65, 0.75, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5])
COARSENING = 16
FRACTAL = 0.25
"""Exponent at which a boundary is called fractal: separate points have 0, and past the transition it is about 1/2."""
DRAWS = 1000


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    starts, resolution = (32, 1024) if fast else (96, 2048)
    curves: dict[float, dict[str, Any]] = {}
    for wavelength in WAVELENGTHS:
        fine, coarse = counts(wavelength, starts, resolution)
        generator = np.random.default_rng(0)
        draws = [generator.integers(starts, size=starts) for _ in range(DRAWS)]
        resampled = [transition(growth(fine[:, draw], coarse[:, draw])) for draw in draws]
        curves[wavelength] = {
            "growth": growth(fine, coarse),
            "points": fine.mean(1),
            "transition": transition(growth(fine, coarse)),
            "interval": [float(value) for value in np.percentile(resampled, [2.5, 97.5])],
        }
    located = [curve["transition"] for curve in curves.values()]
    numbers = {
        **{f"transition_at_wavelength_{w:g}": curves[w]["interval"] for w in WAVELENGTHS[:2]},
        **{f"location_at_wavelength_{w:g}": curves[w]["transition"] for w in WAVELENGTHS[:2]},
        "transition_moves_with_wavelength": max(located) / min(located),
        "transition_over_wavelengths": [min(located), max(located)],
        "transition_eps_over_wavelength_squared": [value / (2 * np.pi**2) for value in (min(located), max(located))],
        "boundary_points_where_no_run_can_leave": max(float(curve["points"][0]) for curve in curves.values()),
        "exponent_past_the_transition": max(float(curve["growth"][-1]) for curve in curves.values()),
    }
    numbers = {name: value for name, value in numbers.items() if name in table}
    return numbers, figures.save(transition_figure(ROUGHNESS, curves, FRACTAL), folder / "cosine_quadratic")


def counts(wavelength: float, starts: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Count boundary points of every start at every roughness, on a grid of learning rates and on every n-th of it.

    Below 1 the parabola holds every run; the range above it holds the boundary of every start, at about 1 + roughness
    wavelength / (2 pi start). There a run grows by about a third of a wavelength at every step.
    """
    rates = np.linspace(1, 1 + 0.7 * wavelength, resolution + 1)
    steps = round(60 / wavelength)
    sweep = Sweep(
        {"roughness": ROUGHNESS, "wavelength": [wavelength], "learning_rate": rates},
        starts,
        steps,
        steps,
        dtype="float64",
    )
    lost = unbounded(run(cosine_quadratic(), optax.sgd, sweep, ["loss"], progress=False)).isel(wavelength=0)
    flags = lost.transpose("roughness", "seed", "learning_rate").values
    both = [(line[..., 1:] != line[..., :-1]).sum(-1) for line in (flags, flags[..., ::COARSENING])]
    return both[0], both[1]


def unbounded(runs: xr.Dataset) -> xr.DataArray:
    """Say which runs left: the parabola grows without bound where |x| does, and never lets a run stop far out."""
    left = runs["loss"].isel(step=-1, drop=True) > 1e3 * runs["loss"].isel(step=0, drop=True)
    return (runs["status"] == Outcome.diverged) | left


def growth(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Exponent by which the number of boundary points grows with resolution, log(N_fine / N_coarse) / log(16).

    Zero for a boundary of separate points; the box-counting dimension for a fractal one. Means over starts.
    """
    return np.log(fine.mean(-1) / coarse.mean(-1)) / np.log(COARSENING)


def transition(exponent: np.ndarray) -> float:
    """Locate the roughness at which the exponent first reaches `FRACTAL`, interpolated; inf where it never does."""
    above = np.flatnonzero(exponent >= FRACTAL)
    if not above.size:
        return float("inf")
    if above[0] == 0:
        return float(ROUGHNESS[0])
    left, right = exponent[above[0] - 1], exponent[above[0]]
    share = (FRACTAL - left) / (right - left)
    return float(ROUGHNESS[above[0] - 1] + share * (ROUGHNESS[above[0]] - ROUGHNESS[above[0] - 1]))
