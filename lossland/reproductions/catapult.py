"""The catapult window of the two-layer linear model, f = u.v / sqrt(n): learning rates in units of 1 / its kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.reproduced import catapult_figure
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.problems.synthetic import uv_model
from lossland.stability.constants import catapult_window
from lossland.sweeps.execution import run
from lossland.sweeps.probes import Probe, State
from lossland.sweeps.sweep import Sweep

WIDTHS, STEPS = (64, 512, 4096), 400
SPREAD = 4.0
"""Standard deviations of the kernel over seeds that the grid of learning rates allows for."""
INSIDE = (2.45, 2.55)
"""Runs of the window's lower half whose final kernel is reported, by learning rate x initial kernel."""


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    seeds, spacing = (24, 0.02) if fast else (200, 0.005)
    numbers: dict[str, Any] = {}
    windows, agreements, finals = {}, [], []
    for width in WIDTHS:
        sweep = Sweep({"learning_rate": _rates(width, spacing)}, seeds, STEPS, STEPS)
        runs = run(uv_model(width), optax.sgd, sweep, ["loss", _kernel_probe()], folder / f"width_{width}")
        windows[width] = window = catapult_window(runs, "kernel")
        onset, end = window.sel(edge="onset"), window.sel(edge="end")
        numbers[f"onset_width_{width}"] = float(onset["above"].median("seed"))
        numbers[f"end_width_{width}"] = float(end["below"].median("seed"))
        agreements.append(_as_predicted(runs, onset, width))
        product = runs["learning_rate"] * runs["kernel"].isel(step=0)
        chosen = (product > INSIDE[0]) & (product < INSIDE[1])
        finals.append((runs["learning_rate"] * runs["kernel"].isel(step=-1)).where(chosen).values.ravel())
    numbers["onsets_at_the_root_of_the_first_step"] = float(np.mean(np.concatenate(agreements)))
    numbers["final_kernel_inside_the_window"] = float(np.nanmedian(np.concatenate(finals)))
    paths = figures.save(catapult_figure(windows), folder / "catapult")
    return numbers, paths


def _kernel_probe() -> Probe:
    def kernel(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
        u, v = state.params["u"], state.params["v"]
        return (jnp.vdot(u, u) + jnp.vdot(v, v)) / u.size

    return Probe(
        "kernel", kernel, {"kernel": "loss / parameter^2"}, {"kernel": "tangent kernel at the example, (u.u + v.v) / n"}
    )


def _rates(width: int, spacing: float) -> np.ndarray:
    """Learning rates near both edges, whatever the seed: the kernel is 2 on average, with deviation 2 / sqrt(width)."""
    least, most = 2 - SPREAD * 2 / np.sqrt(width), 2 + SPREAD * 2 / np.sqrt(width)
    ranges = [(low / most, high / least) for low, high in ((1.95, 2.15), INSIDE, (3.85, 4.1))]
    pieces = [np.exp(np.arange(np.log(low), np.log(high) + spacing, spacing)) for low, high in ranges]
    found = np.sort(np.concatenate(pieces))
    return found[np.append(True, np.diff(np.log(found)) > spacing / 2)]


def _as_predicted(runs: xr.Dataset, onset: xr.Dataset, width: int) -> np.ndarray:
    """Say of every seed whether its onset lies where the first step turns from lowering the loss to raising it.

    The first step multiplies f by 1 - c + q c^2, c = learning rate x kernel, q = f^2 / (width kernel^2); the factor is
    -1 at c = (1 - sqrt(1 - 8 q)) / (2 q), and never where 8 q > 1.
    """
    start = runs.isel(step=0, learning_rate=0)
    q = (2 * start["loss"] / (width * start["kernel"] ** 2)).values.astype(float)
    with np.errstate(invalid="ignore"):
        root = np.where(8 * q < 1, 4 / (1 + np.sqrt(1 - 8 * q)), np.inf)
    return (onset["below"].values * (1 - 1e-4) <= root) & (root <= onset["above"].values * (1 + 1e-4))
