"""Labels that sum to more than 1, under the gradient of the loss and under the one that fused kernels return."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax
import xarray as xr

from lossland.optimizers import Optimizer
from lossland.problems.sequences import KINDS, LabelGradient, rnn_sequences
from lossland.reproductions.rnn_runs import ADAM, LANES, accuracy, label_drift, reported_shape
from lossland.sweeps.execution import run
from lossland.sweeps.sweep import Sweep

DESCENT_RATE, DESCENT_STEPS = 0.05, 200
"""Of the gradient descent whose drift is compared with its law."""
RECORDED = ["loss", accuracy(), label_drift]


def label_floor(total: float) -> float:
    """Smallest loss of rows (1, total - 1, 0, 0): -sum p ln(p / total), 0 for one-hot rows."""
    return float(total * np.log(total) - (total - 1) * np.log(total - 1)) if total > 1 else 0.0


def label_runs(
    size: tuple[int, int], rate: float, sums: Mapping[float, int], num_steps: int, *, out: Path | None = None
) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """Train with Adam on valid labels and on labels that sum to s, with both gradients.

    Args:
        size: hidden units and sequences.
        sums: s -> number of seeds, the first ones; valid labels are trained on from as many as any.

    Returns:
        what became of every run, {"valid": ..., "autodiff 1.1": ..., "fused 1.1": ...}, over seeds: `reported_shape`
        with the loss taken above its floor, -sum p ln(p / s), `lowest_loss`, `loss_rise` (median over the last tenth of
        the records over the smallest), `drift` of the mean output bias and `logit_drift` of the mean logit, both in
        learning rates per step; and `mean_bias` of the first seed over (setting, step), in learning rates.
    """
    parts, drifts = {}, {}
    gradients: tuple[LabelGradient, ...] = ("autodiff", "fused")
    for gradient in gradients:
        problem = rnn_sequences(*size, gradient=gradient)
        # At s = 1 both gradients are one.
        totals = {1.0: max(sums.values()), **sums} if gradient == "autodiff" else sums
        for total, seeds in totals.items():
            name = f"{gradient} {total:g}" if total > 1 else "valid"
            sweep = Sweep({"label_sum": [total]}, seeds, num_steps, 10, lane_width=LANES)
            optimizer = ADAM.with_arguments(learning_rate=rate)
            kept = out and out / name.replace(" ", "_")
            runs = run(problem, optimizer, sweep, RECORDED, kept, progress=False).isel(label_sum=0, drop=True)
            parts[name] = _of_labels(runs, rate, total)
            drifts[f"Adam, {name}"] = _bias(runs.isel(seed=0), rate, np.nan)
    drifts[f"gradient descent, fused {max(sums):g}"] = descent = descent_drift(size, max(sums))
    axis = xr.DataArray(list(drifts), dims="setting", name="setting")
    drift: Any = xr.concat(drifts.values(), axis, join="outer")
    return parts, drift.assign_attrs(descent.attrs)


def descent_drift(size: tuple[int, int], total: float) -> xr.Dataset:
    """Descend with the fused gradient on labels that sum to s, from one seed.

    Equation: over the classes softmax(z) - p sums to 1 - s in every example, so a step of gradient descent moves the
    mean output bias by rate (s - 1) / C, the mean read-out weight by that times the mean last state m, and with them
    the mean logit by rate (s - 1) / C (1 + |m|^2), beside what the states do.

    Returns:
        `mean_bias` and `predicted` over "step", in learning rates; attributes `bias_over_law` and `logit_over_law`,
        what bias and mean logit moved over what the law says.
    """
    problem = rnn_sequences(*size, gradient="fused")
    descent = Optimizer(optax.sgd, learning_rate=DESCENT_RATE)
    sweep = Sweep({"label_sum": [total]}, 1, DESCENT_STEPS, 2, lane_width=LANES)
    runs = run(problem, descent, sweep, RECORDED, progress=False).isel(label_sum=0, seed=0, drop=True)
    law = (total - 1) / len(KINDS)
    found = _bias(runs, DESCENT_RATE, law)
    square, steps = runs["state_square"].values.astype(float), runs["step"].values
    path = DESCENT_RATE * law * float(np.trapezoid(square, steps))
    moved = float(runs["mean_logit"][-1] - runs["mean_logit"][0])
    bias = float(found["mean_bias"][-1] / found["predicted"][-1])
    return found.assign_attrs(bias_over_law=bias, logit_over_law=moved / path)


def _of_labels(runs: xr.Dataset, rate: float, total: float) -> xr.Dataset:
    tail = slice(-max(1, runs.sizes["step"] // 10), None)
    num_steps = float(runs["step"][-1])

    def moved(name: str) -> xr.DataArray:
        return (runs[name].isel(step=-1, drop=True) - runs[name].isel(step=0, drop=True)) / (rate * num_steps)

    lowest = runs["loss"].min("step")
    return reported_shape(runs.assign(loss=runs["loss"] - label_floor(total))).assign(
        lowest_loss=lowest,
        loss_rise=runs["loss"].isel(step=tail).median("step") / lowest,
        drift=moved("mean_bias"),
        logit_drift=moved("mean_logit"),
    )


def _bias(runs: xr.Dataset, rate: float, law: float) -> xr.Dataset:
    """Output bias averaged over the classes, in learning rates; by the law it moves by (s - 1) / C of them a step."""
    moved = (runs["mean_bias"] - runs["mean_bias"].isel(step=0)).values / rate
    steps = runs["step"].values
    return xr.Dataset({"mean_bias": ("step", moved), "predicted": ("step", law * steps)}, {"step": steps})
