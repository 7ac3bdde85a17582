"""Case 1: one Dense unit, SGD, and a loss that grows without bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland import figures
from lossland.figures.reported import linear_regression_figure
from lossland.optimizers import Optimizer
from lossland.problems import reported
from lossland.reproductions.claims import save_claims
from lossland.reproductions.linear_claims import claims, measured
from lossland.stability.maps import outcomes
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Sweep

RATE, EXAMPLES, EPOCHS = 0.01, 20, 500
MARGIN = 1e-3
"""Runs nearer to the predicted boundary than this, in learning rate x sharpness, are not judged."""


def sharpness_of(num_examples: Any) -> Any:
    """Top eigenvalue of 2 [[mean x^2, mean x], [mean x, 1]] for x = 1..n: a + 1 + sqrt((a - 1)^2 + 4 mean(x)^2)."""
    n = np.asarray(num_examples, np.float64)
    squares, mean = (n + 1) * (2 * n + 1) / 6, (n + 1) / 2
    return squares + 1 + np.sqrt((squares - 1) ** 2 + 4 * mean**2)


def initial_weight_from(first_loss: float) -> float:
    """Solve first loss = (w - 1/2)^2 mean x^2 for the initial weight w (bias 0), the root inside Glorot's limit."""
    squares = (EXAMPLES + 1) * (2 * EXAMPLES + 1) / 6
    roots = [0.5 - np.sqrt(first_loss / squares), 0.5 + np.sqrt(first_loss / squares)]
    return float(min(roots, key=abs))


def predicted_overflow(weight: float) -> int:
    """First epoch whose sum of squared residuals exceeds the float32 maximum, by the float64 recursion."""
    x = np.arange(1, EXAMPLES + 1, dtype=np.float64)
    bias = 0.0
    for epoch in range(1, 1000):
        residual = weight * x + bias - x / 2
        if np.sum(residual**2) > np.finfo(np.float32).max:
            return epoch
        weight = float(weight - RATE * 2 * np.mean(residual * x))
        bias = float(bias - RATE * 2 * np.mean(residual))
    raise AssertionError("the recursion grows by 3.55 an epoch")


def trace_to_nan(weight: float) -> tuple[int, str]:
    """Follow an epoch's float32 arithmetic operation by operation to its first NaN: (epoch that prints it, operation).

    A NaN in the update at the end of an epoch is printed by the next one.
    """
    f = np.float32
    x = np.arange(1, EXAMPLES + 1, dtype=f)
    y, w, b, n = x / f(2), f(weight), f(0), f(EXAMPLES)
    with np.errstate(all="ignore"):
        for epoch in range(1, 1000):
            operations: dict[str, Any] = {"weight * x": w * x}
            operations["weight * x + bias"] = operations["weight * x"] + b
            residual = operations["residual = prediction - y"] = operations["weight * x + bias"] - y
            operations["residual^2"] = residual**2
            operations["sum of squares"] = np.sum(operations["residual^2"])
            operations["loss = sum / n"] = operations["sum of squares"] / n
            operations["gradient of weight"] = np.sum(f(2) * residual / n * x)
            operations["gradient of bias"] = np.sum(f(2) * residual / n)
            here = [name for name, value in operations.items() if np.isnan(value).any()]
            if here:
                return epoch, here[0]
            new = w - f(RATE) * operations["gradient of weight"], b - f(RATE) * operations["gradient of bias"]
            for name, value in zip(("weight", "bias"), new, strict=True):
                if np.isnan(value):
                    return epoch + 1, f"{name} - learning_rate * gradient = inf - inf"
            w, b = new
    raise AssertionError("the recursion overflows")


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    seeds = 16 if fast else 64
    printed = reported.printed_losses()
    weight = initial_weight_from(printed[0])
    epochs = _printed_run(weight)
    losses = epochs["loss"].values.ravel()
    diagram = _phase_diagram(fast)
    sharpness = diagram["num_examples"].copy(data=sharpness_of(diagram["num_examples"].values))
    product = diagram["learning_rate"] * sharpness
    diverges = outcomes(diagram)["diverges"]
    judged = np.abs(product - 2) > MARGIN
    right = (diverges == (product > 2)).where(judged)
    nan_epoch, operation = trace_to_nan(weight)
    at_default = _over_examples(seeds)
    adam_ends, adam_best = _adam(table["adam_prediction_from_recovered_weight"]["expected"], seeds, fast)
    slow, below, above = (_rises(rate, seeds) for rate in (1e-4, 0.9 * _critical(), 1.5 * _critical()))
    ten = _final_loss_of_ten(seeds)
    standardised = [_measured_sharpness(reported.linear_regression(n, standardised=True)) for n in (2, 5, 20, 40)]
    hessian = 2 * np.array([[np.mean(np.arange(1, 21) ** 2.0), 10.5], [10.5, 1.0]])
    numbers = {
        "recovered_weight_over_glorot_limit": abs(weight) / reported.GLOROT_LIMIT,
        "printed_epochs_largest_relative_error": float(np.max(np.abs(losses[: len(printed)] / printed - 1))),
        "growth_per_epoch_printed": (float(printed[-1] / printed[-2]), float((1 - RATE * sharpness_of(EXAMPLES)) ** 2)),
        "growth_per_epoch_measured": float(losses[40] / losses[39]),
        "sharpness": (_measured_sharpness(reported.linear_regression()), float(sharpness_of(EXAMPLES))),
        "first_inf_epoch": _first(np.isinf(losses)) + 1,  # epoch e prints the loss before step e - 1
        "first_inf_epoch_predicted": predicted_overflow(weight),
        "first_nan_epoch": (_first(np.isnan(losses)) + 1, nan_epoch),
        "operation_that_makes_nan": (_measured_operation(epochs), operation),
        "smallest_diverging_n": (at_default, _first(sharpness_of(np.arange(1, 41)) > 2 / RATE) + 1),
        "phase_diagram_runs_predicted_right": float(right.mean()),
        "ten_examples_final_loss": [float(ten.min()), float(ten.max())],
        "adam_prediction_over_seeds": [float(adam_ends.min()), float(adam_ends.max())],
        "adam_prediction_from_recovered_weight": adam_best,
        "standardised_sharpness_largest_error": float(np.max(np.abs(np.array(standardised) - 2))),
        "eigenvalues_above_threshold": int((np.linalg.eigvalsh(hessian) > 2 / RATE).sum()),
        "rate_1e-4_converges": float(outcomes(slow)["never_rises"].mean()),
        "falling_steps_below_threshold": float((below["num_rises"] == 0).mean()),
        "falling_steps_above_threshold": float((above["num_rises"] == 0).mean()),
    }
    falls = ((below["num_rises"] == 0).values.ravel(), (above["num_rises"] == 0).values.ravel())
    settled = claims(measured(diagram, _critical(), falls, seeds))
    numbers |= {f"claim_{claim.letter}": claim.verdict for claim in settled if f"claim_{claim.letter}" in table}
    figure = linear_regression_figure(diverges.mean("seed"), sharpness_of, printed, losses)
    paths = figures.save(figure, folder / "linear_regression")
    return numbers, [*paths, save_claims(settled, folder / "claims")]


def _critical() -> float:
    return float(2 / sharpness_of(EXAMPLES))


def _printed_run(weight: float) -> xr.Dataset:
    """One step an epoch in float32, through overflow and on, from the recovered weight."""

    def parameters(problem: Any, optimizer: Any, state: Any) -> dict[str, Any]:
        return {"weight": state.params["weight"], "weight_gradient": state.gradient["weight"]}

    sweep = Sweep({"learning_rate": [RATE], "initial_weight": [weight]}, 1, num_steps=160, every=1, freeze=False)
    return run(reported.linear_regression(EXAMPLES), optax.sgd, sweep, ["loss", parameters], progress=False)


def _measured_operation(epochs: xr.Dataset) -> str:
    """Read from the records which operation made the first NaN of the weight."""
    weight, gradient = (epochs[name].values.ravel() for name in ("weight", "weight_gradient"))
    step = _first(np.isnan(weight)) - 1
    if step < 0:
        return "none"
    both_infinite = np.isinf(weight[step]) and np.isinf(gradient[step]) and weight[step] * gradient[step] > 0
    return "weight - learning_rate * gradient = inf - inf" if both_infinite else f"nan before step {step}"


def _phase_diagram(fast: bool) -> xr.Dataset:
    """n x learning rate x seeds in one sweep. 4,000 steps: 1e-3 from the boundary, a loss grows or falls by e^8."""
    sizes = np.arange(2, 41, 6 if fast else 1)
    rates = np.geomspace(0.5 * 2 / sharpness_of(40), 2 * 2 / sharpness_of(2), 64 if fast else 256)
    sweep = Sweep({"num_examples": sizes, "learning_rate": rates}, 2 if fast else 4, num_steps=4000, every=400)
    return run(reported.linear_regression_family(40), optax.sgd, sweep)


def _over_examples(seeds: int) -> int:
    sweep = Sweep({"num_examples": np.arange(2, 41), "learning_rate": [RATE]}, seeds, num_steps=EPOCHS, every=EPOCHS)
    lost = outcomes(run(reported.linear_regression_family(40), optax.sgd, sweep, progress=False))["diverges"]
    smallest = _first(lost.all(("learning_rate", "seed")).values)
    return int(lost["num_examples"].values[smallest]) if smallest >= 0 else 0


def _first(flags: np.ndarray) -> int:
    """Index of the first flag that is set, -1 if none is: a number that then fails, where an exception would hide the
    rest."""
    return int(flags.argmax()) if flags.any() else -1


def _rises(rate: float, seeds: int) -> xr.Dataset:
    sweep = Sweep({"learning_rate": [rate]}, seeds, num_steps=EPOCHS, every=50)
    return run(reported.linear_regression(EXAMPLES), optax.sgd, sweep, progress=False)


def _final_loss_of_ten(seeds: int) -> np.ndarray:
    sweep = Sweep({"learning_rate": [RATE]}, seeds, num_steps=EPOCHS, every=EPOCHS)
    return run(reported.linear_regression(10), optax.sgd, sweep, progress=False)["loss"].isel(step=-1).values.ravel()


def _measured_sharpness(problem: Any) -> float:
    sweep = Sweep({"learning_rate": [1e-3]}, 1, num_steps=1, every=1)
    return float(run(problem, optax.sgd, sweep, ["sharpness"], progress=False)["sharpness"].isel(step=0).item())


def _adam(target: float, seeds: int, fast: bool) -> tuple[np.ndarray, float]:
    """Keras' Adam: predictions at x = 25 over seeds, and the one nearest to `target` over all initial weights."""

    def prediction(problem: Any, optimizer: Any, state: Any) -> Any:
        return 25 * state.params["weight"] + state.params["bias"]

    adam = Optimizer(optax.adam, learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-7)
    problem = reported.linear_regression(EXAMPLES)
    ends = run(problem, adam, Sweep({}, seeds, EPOCHS, EPOCHS), [prediction], progress=False)["prediction"]
    weights = np.linspace(-reported.GLOROT_LIMIT, reported.GLOROT_LIMIT, 512 if fast else 2048)
    for _ in range(2):  # once over the whole limit, once around the best
        swept = run(problem, adam, Sweep({"initial_weight": weights}, 1, EPOCHS, EPOCHS), [prediction], progress=False)
        found = swept["prediction"].isel(step=-1, seed=0).values
        best = int(np.abs(found - target).argmin())
        around = weights[max(best - 1, 0)], weights[min(best + 1, len(weights) - 1)]
        weights = np.linspace(*around, len(weights))
    return ends.isel(step=-1).values, float(found[best])
