"""Case 2: two tanh layers by hand, full-batch gradient descent, a spike at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.flatten_util import ravel_pytree

from lossland import figures
from lossland.figures.reported import first_step_figure
from lossland.optimizers import Optimizer
from lossland.problems import reported
from lossland.problems.problem import Problem, cast_floating
from lossland.reproductions.claims import save_claims
from lossland.reproductions.mlp_claims import Results, claims
from lossland.stability.maps import outcomes
from lossland.sweeps.execution import run
from lossland.sweeps.probes import State
from lossland.sweeps.sweep import Sweep

STEPS, EVERY, TAIL = 400, 10, 20
PANELS, NODES = 48, 4
"""Composite Gauss-Legendre rule along a step, panels growing geometrically: a long step saturates the tanh units near
its start, so that is where the curvature sits."""


def step_curvature(problem: Problem, optimizer: Optimizer, state: State) -> jax.Array:
    """Curvature averaged along the next step u, c = 2 int_0^1 (1 - s) u.H(params + s u)u ds / u.u.

    Integrated by parts, c = 2 int_0^1 u.(g(params + s u) - g(params)) ds / u.u, from gradients alone. Taylor's formula
    with remainder in integral form says L(params + u) - L(params) = g.u + c |u|^2 / 2, so gradient descent, u = -eta g,
    raises the loss iff c > 2 / eta.
    """
    updates, _ = optimizer.update(state.gradient, state.opt_state, state.params)
    flat, unravel = ravel_pytree(state.params)
    step, start = ravel_pytree(updates)[0], ravel_pytree(state.gradient)[0]
    edges = np.concatenate([[0.0], np.geomspace(1e-3, 1, PANELS)])
    points, weights = np.polynomial.legendre.leggauss(NODES)
    places = (edges[:-1, None] + np.diff(edges)[:, None] * (points + 1) / 2).reshape(-1)
    shares = (np.diff(edges)[:, None] * weights / 2).reshape(-1)

    def along(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, share = node
        gradient, _ = ravel_pytree(jax.grad(problem.objective)(unravel(flat + place * step)))
        return total + share * jnp.vdot(step, gradient - start), None

    nodes = (jnp.asarray(places, flat.dtype), jnp.asarray(shares, flat.dtype))
    total, _ = jax.lax.scan(along, jnp.zeros((), flat.dtype), nodes)
    return 2 * total / jnp.vdot(step, step)


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figures' paths."""
    rates, seeds = (np.geomspace(0.01, 3, 12), 8) if fast else (np.geomspace(0.01, 3, 64), 64)
    problem = reported.numpy_mlp()
    first = run(
        problem,
        optax.sgd,
        Sweep({"learning_rate": rates}, seeds, num_steps=1, every=1),
        ["loss", "sharpness", "gradient_curvature", step_curvature],
        folder / "first_step",
    )
    sweep = Sweep({"learning_rate": rates}, seeds, STEPS, EVERY)
    runs = run(problem, optax.sgd, sweep, ["loss", "gradient_norm", "sharpness"], folder / "runs")
    scales = np.geomspace(1, 64, 4 if fast else 13)
    scaled = run(
        problem,
        optax.sgd,
        Sweep({"scale": scales, "learning_rate": np.geomspace(0.01, 1, 3 if fast else 13)}, 4 if fast else 16, 100, 10),
        ["loss", "sharpness"],
        folder / "scales",
    )
    hand = run(
        reported.numpy_mlp(numpy_seed=4),
        optax.sgd,
        Sweep({"learning_rate": [0.01, 1.0]}, 1, 100, 1),
        ["loss"],
        folder / "seed_4",
    )
    both = [
        run(
            reported.numpy_mlp(wrong_db1=flag),
            optax.sgd,
            Sweep({"learning_rate": [0.1, 1.0]}, 4 if fast else 16, STEPS, STEPS),
            progress=False,
        )
        for flag in (False, True)
    ]
    gentle, steep = ([one.sel(learning_rate=rate) for one in both] for rate in (0.1, 1.0))
    rose = first["loss"].isel(step=1) > first["loss"].isel(step=0)
    allowed = 2 / first["learning_rate"]
    at_start = first.isel(step=0)
    late, spiked, back = _late_relative_sharpness(runs)
    kinds = outcomes(runs)
    risen = kinds["rises_and_recovers"] | kinds["diverges"]
    near_one = {"learning_rate": int(np.abs(np.log(rates)).argmin())}
    largest = outcomes(scaled).isel(scale=-1, learning_rate=0)
    names, error = _gradient_error(problem)
    numbers = {
        "first_step_rise_predicted_by_curvature_along_step": _agreement(at_start["step_curvature"] > allowed, rose),
        "first_step_rise_predicted_by_gradient_curvature": (
            _agreement(at_start["gradient_curvature"] > allowed, rose),
            _agreement(at_start["sharpness"] > allowed, rose),
        ),
        "sharpness_necessary_for_first_rise": float((at_start["sharpness"] > allowed).where(rose).mean()),
        "recovered_spikes_end_at_the_edge": float(late.where(spiked & back).median()),
        "all_recovered_spikes_end_below_the_edge": float(late.where(spiked).median()),
        "rate_0_01_falls_smoothly": float(kinds["never_rises"].isel(learning_rate=0).mean()),
        "rate_1_rises": float(kinds["rises_and_recovers"].isel(near_one).mean()),
        "numpy_seed_4_rate_1_peak_over_start": float(_peak_over_start(hand).isel(learning_rate=1).item()),
        "numpy_seed_4_rate_0_01_rises": int(hand["num_rises"].isel(learning_rate=0).item()),
        "larger_weights_rise_at_0_01": float((~largest["never_rises"]).mean()),
        "smallest_spike_recovery": float(kinds["rises_and_recovers"].where(risen).mean()),
        "wrong_gradient_parameter": names,
        "wrong_gradient_relative_error": error,
        "wrong_gradient_ends_higher": float((gentle[1]["loss"] > gentle[0]["loss"]).isel(step=-1).mean()),
    }
    right, wrong = steep
    settled = claims(Results(runs, scaled, right, wrong, names, error))
    numbers |= {f"claim_{claim.letter}": claim.verdict for claim in settled if f"claim_{claim.letter}" in table}
    paths = figures.save(first_step_figure(rose, at_start), folder / "first_step")
    for name, figure in (
        ("stability_map", figures.stability_map_figure(runs)),
        ("curves", figures.curves_figure(runs)),
        ("scale_map", figures.stability_map_figure(scaled)),
    ):
        paths += figures.save(figure, folder / name)
    paths.append(save_claims(settled, folder / "claims"))
    return numbers, paths


def _agreement(predicted: xr.DataArray, rose: xr.DataArray) -> float:
    return float((predicted == rose).mean())


def _peak_over_start(runs: xr.Dataset) -> xr.DataArray:
    return runs["peak_loss"] / runs["loss"].isel(step=0)


def _late_relative_sharpness(runs: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Median relative sharpness over the second half of training; which runs spiked at once and recovered; which came
    back to the threshold after the spike."""
    relative = runs["relative_sharpness"]
    back = (relative.where(runs["step"] >= 2 * EVERY) > 1).any("step")
    spiked = (runs["first_rise_step"] == 1) & outcomes(runs)["rises_and_recovers"]
    return relative.isel(step=slice(-TAIL, None)).median("step"), spiked, back


def _gradient_error(problem: Problem) -> tuple[str, float]:
    """Compare the reported backward pass with autodiff in float64: names of the wrong parameters, relative error."""
    params = reported.numpy_mlp_initial_params(4)
    with jax.enable_x64(True):
        right = jax.tree.map(np.asarray, jax.grad(problem.objective)(cast_floating(params, np.float64)))
    by_hand = reported.numpy_mlp_gradient(params, problem.data, wrong_db1=True)
    errors = {
        name: float(np.linalg.norm(by_hand[name] - right[name]) / np.linalg.norm(right[name]))
        for name in sorted(params)
    }
    return ", ".join(name for name, error in errors.items() if error > 1e-6), max(errors.values())
