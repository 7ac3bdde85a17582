"""Critical constants of a deep ReLU network against its width, on digits: learning rates in units of 1 / sharpness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.reproduced import constants_figure
from lossland.problems.datasets import digits
from lossland.problems.problem import Problem
from lossland.stability.constants import critical_constants
from lossland.sweeps.execution import run
from lossland.sweeps.probes import sharpness_probe
from lossland.sweeps.sweep import Sweep

DEPTH, EARLY, LATE = 2, 10, 100
"""Hidden layers, the steps that count as early training (the source's 10), and those to tell divergence."""
SCALE = float(np.sqrt(2))
"""Weights of variance 2 / fan-in, which keeps the size of a signal behind ReLU."""
EARLY_RANGE, LATE_RANGE = (1.5, 14.0), (6.0, 40.0)
"""Learning rate x initial sharpness, for every seed."""


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    widths = (32, 128) if fast else (64, 128, 256, 512)
    seeds, examples, spacing = (6, 64, 0.25) if fast else (12, 128, 0.125)
    pieces = [constants(width, examples, seeds, spacing) for width in widths]
    found = xr.concat(pieces, xr.DataArray(list(widths), dims="width", name="width")).assign_attrs(num_seeds=seeds)
    loss, sharp, most = (found.sel(constant=name) for name in ("c_loss", "c_sharp", "c_max"))
    published = {
        name: dict(zip(entry["widths"], entry["published"], strict=True))
        for name, entry in ((name, table[f"{name}_falls_with_width"]) for name in ("c_loss", "c_sharp"))
    }
    numbers = {
        "c_loss_falls_with_width": _fall(loss),
        "c_sharp_falls_with_width": _fall(sharp),
        "smallest_c_loss": float(loss["median"].min()),
        "c_loss_at_most_c_sharp": _ordered(loss, sharp),
        "c_sharp_at_most_c_max": _ordered(sharp, most),
        "c_max_of_the_widest": float(most["median"].isel(width=-1)),
    }
    paths = figures.save(constants_figure(found, published), folder / "critical_constants")
    paths.append(figures.save_numbers(found[["median", "low", "high", "coverage"]], folder / "critical_constants"))
    return numbers, paths


def constants(width: int, examples: int, seeds: int, spacing: float) -> xr.Dataset:
    """Measure c_loss and c_sharp in early training and c_max by longer runs, over one grid that holds every seed's."""
    problem = digits((width,) * DEPTH, "relu", "mse", examples)
    probes = ["loss", sharpness_probe(tol=1e-3)]
    start = _train(problem, np.array([1e-9]), seeds, EARLY, probes, 1)["sharpness"].isel(step=0)
    least, largest = float(start.min()), float(start.max())

    def rates(low: float, high: float) -> np.ndarray:
        return np.exp(np.arange(np.log(low / largest), np.log(high / least) + spacing, spacing))

    early = _train(problem, rates(*EARLY_RANGE), seeds, EARLY, probes, 1)
    late = _train(problem, rates(*LATE_RANGE), seeds, LATE, ["loss"], LATE // 20)
    # Sharpness at the start is the same in both: a seed fixes the weights.
    late["sharpness"] = early["sharpness"].isel(step=0, learning_rate=0, drop=True) * xr.ones_like(late["loss"])
    kept = ["value", "below", "above", "median", "low", "high", "coverage"]
    found = [
        critical_constants(early, within=EARLY).sel(constant=["c_loss", "c_sharp"]),
        critical_constants(late).sel(constant=["c_max"]),
    ]
    return xr.concat([one[kept].isel(scale=0, drop=True) for one in found], "constant")


def _train(problem: Problem, rates: np.ndarray, seeds: int, steps: int, probes: list[Any], every: int) -> xr.Dataset:
    sweep = Sweep({"scale": [SCALE], "learning_rate": rates}, seeds, steps, every)
    return run(problem, optax.sgd, sweep, probes, progress=False)


def _fall(constant: xr.Dataset) -> float:
    """Median of the narrowest network over that of the widest."""
    return float(constant["median"].isel(width=0) / constant["median"].isel(width=-1))


def _ordered(smaller: xr.Dataset, larger: xr.Dataset) -> float:
    """Fraction of seeds and widths at which the first constant does not exceed the second, brackets apart."""
    return float((smaller["below"] <= larger["above"]).mean())
