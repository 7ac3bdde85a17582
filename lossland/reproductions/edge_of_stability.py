"""Sharpness of a network in units of each optimizer's own threshold: it rises to 1 and stays."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.stability import edge_of_stability_figure
from lossland.optimizers import Optimizer
from lossland.problems.problem import Problem
from lossland.problems.synthetic import chebyshev
from lossland.reproductions.minibatch_law import ema
from lossland.stability.local import multiplier_probe
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Sweep
from lossland.thresholds import threshold

ADAM = functools.partial(Optimizer, optax.adam, b2=0.99)
LINEAR = {
    "gradient_descent": (Optimizer(optax.sgd), [0.2, 0.3]),
    "heavy_ball": (Optimizer(optax.sgd, momentum=0.9), [0.04, 0.05]),
    "ema": (Optimizer(ema, momentum=0.9), [0.4, 0.5]),
    "nesterov": (Optimizer(functools.partial(optax.sgd, nesterov=True), momentum=0.9), [0.02, 0.03]),
}
"""Rates were chosen on seeds 100 to 107, which the target does not use: the largest that train for good, as smaller
ones need more steps to reach the edge."""
ADAPTIVE = {
    "adam_b1_0_5": (ADAM(b1=0.5), [5e-4, 1e-3]),
    "adam_b1_0_9": (ADAM(b1=0.9), [5e-4, 1e-3]),
    "adam_b1_0_95": (ADAM(b1=0.95), [5e-4, 1e-3]),
    "rmsprop": (Optimizer(optax.rmsprop, decay=0.99, eps_in_sqrt=False), [5e-4, 1e-3]),
}
LABELS = {
    "gradient_descent": "gradient descent",
    "heavy_ball": "heavy ball",
    "ema": "EMA momentum",
    "nesterov": "Nesterov",
    "adam_b1_0_5": "Adam, b1 0.5",
    "adam_b1_0_9": "Adam, b1 0.9",
    "adam_b1_0_95": "Adam, b1 0.95",
    "rmsprop": "RMSprop",
}
ALLOWED = {**dict.fromkeys(LINEAR, 0.05), **dict.fromkeys(ADAPTIVE, 0.07)}


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths."""
    problem = chebyshev(degree=3, num_examples=64, widths=(24, 24))
    curves, medians = {}, {}
    for name, (optimizer, rates) in {**LINEAR, **ADAPTIVE}.items():
        ratio = _relative_sharpness(problem, name, optimizer, rates[-1:] if fast else rates, fast, folder)
        late = ratio.sel(step=slice(int(ratio["step"][-1]) // 2, None))
        medians[name] = late.median("step", skipna=False).values.ravel()
        first = ratio.isel(learning_rate=0, seed=0)
        curves[LABELS[name]] = (first["step"].values, first.values)
    inside = {name: np.abs(values - 1) <= ALLOWED[name] for name, values in medians.items()}
    linear = np.concatenate([inside[name] for name in LINEAR])
    adaptive = np.concatenate([inside[name] for name in ADAPTIVE])
    numbers: dict[str, Any] = {
        "pairs_at_the_edge": float(linear.mean()),
        "preconditioned_pairs_at_the_edge": float(adaptive.mean()),
        **{f"{name}_median": float(np.median(values)) for name, values in medians.items()},
        **{f"{name}_pairs": float(flags.mean()) for name, flags in inside.items()},
        **_multipliers(problem, fast, folder),
    }
    shown = {
        LABELS[name]: curves[LABELS[name]] for name in ("gradient_descent", "heavy_ball", "nesterov", "adam_b1_0_9")
    }
    labelled = {LABELS[name]: values for name, values in medians.items()}
    bands = {LABELS[name]: band for name, band in ALLOWED.items()}
    return numbers, figures.save(edge_of_stability_figure(shown, labelled, bands), folder / "edge_of_stability")


def _relative_sharpness(
    problem: Problem, name: str, optimizer: Optimizer, rates: list[float], fast: bool, folder: Path
) -> xr.DataArray:
    probe = "sharpness" if name in LINEAR else "preconditioned_sharpness"
    steps, every = (12_000, 200) if fast else (30_000, 100)
    sweep = Sweep({"learning_rate": rates}, 3 if fast else 12, steps, every)
    runs = run(problem, optimizer, sweep, ["loss", probe], folder / name, progress=not fast)
    return runs[probe] / runs["threshold"]


def _multipliers(problem: Problem, fast: bool, folder: Path) -> dict[str, Any]:
    """Compare multipliers of the full update map with those of the certificate at the sharpness measured."""
    found = {}
    for name, optimizer, rate, probe in (
        ("heavy_ball", LINEAR["heavy_ball"][0], 0.05, "sharpness"),
        ("rmsprop", ADAPTIVE["rmsprop"][0], 1e-3, "preconditioned_sharpness"),
    ):
        sweep = Sweep({"learning_rate": [rate]}, 2 if fast else 8, 6000 if fast else 12_000, 200)
        probes = ["loss", probe, multiplier_probe()]
        runs = run(problem, optimizer, sweep, probes, folder / f"{name}_multiplier", progress=False)
        runs = runs.isel(learning_rate=0).sel(step=slice(int(runs["step"][-1]) // 2, None))
        certified = runs["oscillating_multiplier_converged"].values
        full = runs["oscillating_multiplier_real"].values
        frozen = _predicted(optimizer, rate, runs[probe].values)
        difference = np.abs(full - frozen)[certified]
        found[name] = float(difference.max() if name == "heavy_ball" else np.median(difference))
        found[f"{name}_certified"] = float(certified.mean())
    return {
        "heavy_ball_multiplier_error": found["heavy_ball"],
        "rmsprop_multiplier_of_frozen_moment_error": found["rmsprop"],
        "multipliers_certified": min(found["heavy_ball_certified"], found["rmsprop_certified"]),
    }


def _predicted(optimizer: Optimizer, rate: float, curvature: np.ndarray) -> np.ndarray:
    """Smallest real part of the multipliers of A + curvature b e_x^T."""
    certificate = threshold(optimizer, learning_rate=rate)
    a, b = certificate.transition, certificate.gradient_response
    assert a is not None
    assert b is not None
    matrices = a + curvature[..., None, None] * np.outer(b, np.eye(len(b))[0])
    return np.linalg.eigvals(matrices).real.min(-1)
