"""Slices of the loss around a catapult and around a late spike of Adam, and spectra before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.flatten_util import ravel_pytree

from experiments.experiment import Experiment
from lossland import figures, landscapes
from lossland.curvature import hessian, spectral_density, top_eigenpairs
from lossland.figures.scenes import landscapes_figure
from lossland.optimizers import Optimizer
from lossland.problems import reported
from lossland.problems.problem import Problem, cast_floating
from lossland.reproductions.adam_spikes import ADAM, B1, LATE, curve
from lossland.sweeps.execution import run
from lossland.sweeps.forks import state_probe
from lossland.sweeps.sweep import Sweep

NUMPY_SEED, CATAPULT_RATE, CATAPULT_STEPS = 4, 1.0, 100
SPIKE_STEPS, AROUND = 3000, 60
"""Steps of Adam, and steps before and after the late spike's peak that are drawn."""
EXTENTS = {"catapult": 1.0, "spike": 0.02}
"""How far lines along eigenvectors reach: about as far as training moves along the sharpest."""
NEAR = 1e-4
"""Distance within which slices are held against the quadratic model."""
REACH = 0.5
"""Filter-normalised planes reach this share of the weights' norm."""
BLUR = 0.003
"""Width of the spectral density's blur, in units of the range of the spectrum."""


def measure(folder: Path, fast: bool, table: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Run everything; returns the numbers of the table and the figure's path."""
    numbers: dict[str, Any] = {}
    scenes = {}
    errors, norms = [], []
    for title, name, problem, path, extent in (_catapult(folder), _spike(folder)):
        with jax.enable_x64(True):
            scene, found = _scene(problem, path, extent, 25 if fast else 61)
        scenes[title] = scene
        errors.append(found["quadratic_error"])
        norms.append(found["norm_error"])
        numbers |= {f"{name}_{key}": value for key, value in found.items() if not key.endswith("error")}
    rate = CATAPULT_RATE
    numbers["catapult_relative_sharpness_before"] = numbers.pop("catapult_sharpness_before") * rate / 2
    numbers["catapult_relative_sharpness_after"] = numbers.pop("catapult_sharpness_after") * rate / 2
    numbers["slices_over_quadratic_model_largest_error"] = max(errors)
    numbers["filter_normalisation_largest_error"] = max(norms)
    paths = figures.save(landscapes_figure(scenes), folder / "landscapes")
    return {key: numbers[key] for key in table}, paths


def _states(runs: xr.Dataset) -> xr.Dataset:
    """The one run's losses and parameters over "step"."""
    return runs.squeeze(drop=True).transpose("step", ...)


def _catapult(folder: Path) -> tuple[str, str, Problem, Any, float]:
    """Case 2 at learning rate 1 from the reported start: from its first step until it has come to rest."""
    problem = reported.numpy_mlp(numpy_seed=NUMPY_SEED)
    sweep = Sweep({"learning_rate": [CATAPULT_RATE]}, 1, CATAPULT_STEPS, 1)
    runs = _states(run(problem, optax.sgd, sweep, ["loss", state_probe()], folder / "catapult", progress=False))
    title = f"Catapult: case 2 at learning rate {CATAPULT_RATE:g}, step 0 and step {CATAPULT_STEPS}"
    return title, "catapult", problem, _pytrees(problem, runs["saved_params"].values), EXTENTS["catapult"]


def _spike(folder: Path) -> tuple[str, str, Problem, Any, float]:
    """The largest late rise of Adam on 24 points: from the smallest loss before it until well after."""
    problem = curve()
    adam: Optimizer = ADAM.with_arguments(b1=B1)
    sweep = Sweep({}, 1, SPIKE_STEPS, 1)
    runs = _states(run(problem, adam, sweep, ["loss", state_probe()], folder / "spike", progress=False))
    loss = runs["loss"].values
    steps = np.arange(LATE, len(loss) - AROUND)
    rises = [loss[step] / loss[step - AROUND : step].min() for step in steps]
    peak = int(steps[int(np.argmax(rises))])
    shown = runs.isel(step=slice(peak - AROUND, peak + AROUND + 1))
    title = f"Late spike of Adam: {AROUND} steps before its peak at step {peak}, and {AROUND} after it"
    return title, "spike", problem, _pytrees(problem, shown["saved_params"].values), EXTENTS["spike"]


def _pytrees(problem: Problem, flat: np.ndarray) -> Any:
    """Parameters with a leading axis of points."""
    shapes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), problem.param_shapes)
    _, unravel = ravel_pytree(shapes)
    return jax.vmap(unravel)(jnp.asarray(flat, jnp.float32))


def _scene(problem: Problem, path: Any, extent: float, num_points: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Slices and spectra in float64 at the path's two ends, and the numbers that are judged."""
    path = cast_floating(path, np.float64)
    lines, curvatures, densities, errors = {}, {}, {}, []
    found: dict[str, float] = {}
    sharpest: Any = None
    for when, place in (("before", 0), ("after", -1)):
        params = jax.tree.map(lambda leaf, place=place: leaf[place], path)
        pairs = top_eigenpairs(hessian(problem.objective, params), like=params, k=2, tol=1e-8)
        found[f"sharpness_{when}"] = float(pairs.values[0])
        for number, rank in enumerate(("first", "second") if when == "before" else ("first",)):
            vector = jax.tree.map(lambda leaf, number=number: leaf[number], pairs.vectors)
            eigenvalue = float(pairs.values[number])
            errors.append(quadratic_error(problem, params, vector, eigenvalue))
            label = f"{rank}, {when}"
            lines[label] = landscapes.line(
                problem.objective, params, vector, extent=extent, num_points=2 * num_points + 1
            )
            curvatures[label] = eigenvalue
            sharpest = vector if label == "first, before" else sharpest
        density = spectral_density(
            hessian(problem.objective, params), like=params, key=jax.random.key(0), num_points=2048, width=BLUR
        )
        densities[when] = xr.Dataset(
            {"density": ("eigenvalue", np.asarray(density.density))}, {"eigenvalue": np.asarray(density.grid)}
        )
    last = jax.tree.map(lambda leaf: leaf[-1], path)
    directions = [landscapes.random_direction(jax.random.key(number), last) for number in (1, 2)]
    # Late in training the steps of a spike are too small to be a principal component beside the drift: the sharpest
    # direction is where it happens.
    drift = landscapes.principal_directions(path, 1)[0][0]
    trajectory = landscapes.trajectory_plane(
        problem.objective, path, directions=[drift, sharpest], num_points=num_points
    )
    scene = {
        "lines": lines,
        "curvatures": curvatures,
        "trajectory": trajectory,
        "axes": ("first principal component", "sharpest, before"),
        "plane": landscapes.plane(problem.objective, last, directions, extent=REACH, num_points=num_points),
        "densities": densities,
    }
    return scene, {
        **found,
        "quadratic_error": max(errors),
        "norm_error": max(norm_error(one, last) for one in directions),
    }


def quadratic_error(problem: Problem, params: Any, vector: Any, eigenvalue: float) -> float:
    """Largest relative error of the model: loss(s) - loss(0) - slope s against eigenvalue s^2 / 2, within `NEAR`."""
    gradient = ravel_pytree(jax.grad(problem.objective)(params))[0]
    slope = float(jnp.vdot(gradient, ravel_pytree(vector)[0]))
    found = landscapes.line(problem.objective, params, vector, extent=NEAR, num_points=11)
    distance = found["distance"].values
    rest = found["loss"].values - float(problem.objective(params)) - slope * distance
    away = distance != 0
    return float(np.max(np.abs(rest[away] / (0.5 * eigenvalue * distance[away] ** 2) - 1)))


def norm_error(direction: Any, params: Any) -> float:
    """Largest | ||d_f|| / ||w_f|| - 1 | over filters f; a bias that moves counts as an error of 1."""
    worst = 0.0
    for move, weight in zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True):
        if np.ndim(weight) < 2:
            worst = max(worst, float(np.any(np.asarray(move) != 0)))
            continue
        axes = tuple(range(np.ndim(weight) - 1))
        ratio = np.linalg.norm(np.asarray(move), axis=axes) / np.linalg.norm(np.asarray(weight), axis=axes)
        worst = max(worst, float(np.max(np.abs(ratio - 1))))
    return worst


EXPERIMENT = Experiment(
    stem="landscapes",
    shows="the loss along top eigenvectors, over planes and in spectra, before and after a catapult and a late spike",
    figures=(1, 14),
    section="Landscapes",
    fast="2 min",
    full="2 min",
    measure=measure,
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
