"""Mean-square stability of minibatch training: measured critical learning rates against the noise kernel's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.stability import minibatch_law_figure
from lossland.optimizers import Optimizer
from lossland.problems.synthetic import random_features
from lossland.stability.batch_sharpness import batch_sharpness
from lossland.stability.example_curvatures import example_curvatures
from lossland.stability.minibatch import BatchSampling, mean_square_closed_form, mean_square_threshold
from lossland.stability.second_moment import measured_critical_learning_rate

MOMENTUM = 0.9
RUNS = 1024
"""Simulated runs per learning rate and repetition at batch size 1; fewer for larger batches, which vary less."""


def ema(learning_rate: Any, momentum: Any) -> optax.GradientTransformation:
    """Gradient descent along m <- b m + (1 - b) g: Adam with its second moment frozen."""
    return optax.chain(optax.ema(momentum, debias=False), optax.scale_by_learning_rate(learning_rate))


OPTIMIZERS = {
    "sgd": Optimizer(optax.sgd),
    "heavy_ball": Optimizer(optax.sgd, momentum=MOMENTUM),
    "ema": Optimizer(ema, momentum=MOMENTUM),
}


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's paths."""
    problem = random_features(24, 96) if fast else random_features(32, 256)
    sizes = [1, 8, 96] if fast else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    law = _law(problem, sizes, "without_replacement", fast)
    other = _law(problem, [4], "with_replacement", fast, ["sgd"])
    curve = _curve(problem, sizes)
    law.to_dataframe().to_csv(folder / "minibatch_law.csv", float_format="%.9g")
    error = abs(law["measured"] / law["predicted"] - 1).max("batch_size")
    # In units in which SGD without momentum is stable below 2, at the same batch size.
    scaled = 2 * law["measured"] / law["measured"].sel(optimizer="sgd")
    smallest, largest = scaled.isel(batch_size=0), scaled.isel(batch_size=-1)
    b = MOMENTUM
    noisy = [float(mean_square_closed_form(1.0, 1e9, b, ema=flag) * 1e9) for flag in (False, True)]
    quiet = [float(mean_square_closed_form(1.0, 0.0, b, ema=flag)) for flag in (False, True)]
    numbers: dict[str, Any] = {f"{name}_largest_error": float(error.sel(optimizer=name)) for name in OPTIMIZERS}
    numbers["with_replacement_error"] = float(np.abs(other["measured"] / other["predicted"] - 1).max())
    numbers["widest_interval"] = float(((law["high"] - law["low"]) / law["measured"]).max() / 2)
    for index, name in enumerate(("heavy_ball", "ema")):
        numbers[f"{name}_smallest_batch"] = (float(smallest.sel(optimizer=name)), noisy[index])
        numbers[f"{name}_full_batch"] = (float(largest.sel(optimizer=name)), quiet[index])
    numbers |= _sharpness_numbers(problem)
    return numbers, figures.save(minibatch_law_figure(law, curve, noisy, quiet), folder / "minibatch_law")


def _law(
    problem: Any, sizes: list[int], sampling: BatchSampling, fast: bool, names: list[str] | None = None
) -> xr.Dataset:
    """Predicted and measured critical learning rate x full-batch sharpness, with the interval of the latter."""
    names = list(OPTIMIZERS) if names is None else names
    curvatures = example_curvatures(problem, jnp.zeros(problem.data.shape[1]))
    found = np.zeros((4, len(names), len(sizes)))
    for i, name in enumerate(names):
        optimizer = OPTIMIZERS[name]
        for j, size in enumerate(sizes):
            law = mean_square_threshold(curvatures, optimizer, batch_size=size, sampling=sampling)
            # The full-batch rate bounds every other from above; nothing else of the prediction enters.
            bracket = 5e-4 * law.mean_critical_learning_rate, 1.1 * law.mean_critical_learning_rate
            measured = measured_critical_learning_rate(
                problem,
                optimizer,
                jnp.zeros(problem.data.shape[1]),
                bracket,
                batch_size=size,
                sampling=sampling,
                num_runs=max(64, RUNS // (size * (4 if fast else 1))),
                num_steps=240 if fast else 400,
                burn_in=120 if fast else 150,
            )
            found[:, i, j] = law.critical_learning_rate, *measured.critical_learning_rate()
    found *= curvatures.eigenvalues[-1]
    return xr.Dataset(
        {
            name: (("optimizer", "batch_size"), values, {"units": "1"})
            for name, values in zip(("predicted", "measured", "low", "high"), found, strict=True)
        },
        {"optimizer": names, "batch_size": sizes},
    )


def _curve(problem: Any, sizes: list[int]) -> xr.DataArray:
    """The prediction at more batch sizes than are measured."""
    curvatures = example_curvatures(problem, jnp.zeros(problem.data.shape[1]))
    many = np.unique(np.geomspace(sizes[0], sizes[-1], 25).round().astype(int))
    found = [
        [mean_square_threshold(curvatures, optimizer, batch_size=int(size)).critical_learning_rate for size in many]
        for optimizer in OPTIMIZERS.values()
    ]
    places = {"optimizer": list(OPTIMIZERS), "batch_size": many}
    return xr.DataArray(np.array(found) * curvatures.eigenvalues[-1], places, ("optimizer", "batch_size"))


def _sharpness_numbers(problem: Any) -> dict[str, Any]:
    """Batch sharpness of single examples where it is known: H_i = phi phi^T, so g.Hg / g.g = |phi|^2 for each."""
    features = np.asarray(problem.data, np.float64)
    params = problem.init(jax.random.key(1))
    squares = np.sum(features**2, 1)
    residuals = (features @ np.asarray(params, np.float64)) ** 2
    exact = {
        "ratio_of_means": np.sum(residuals * squares**2) / np.sum(residuals * squares),
        "mean_of_ratios": np.mean(squares),
    }
    found = batch_sharpness(problem, params, jax.random.key(2), batch_size=1, num_batches=4096)
    return {f"batch_sharpness_{name}": (float(getattr(found, name)), float(value)) for name, value in exact.items()}
