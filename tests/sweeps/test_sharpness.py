"""Sharpness along training against dense Hessians in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lossland as ll
from lossland.sweeps.training import starting_points
from tests.cases import network_problem, problem_named

RATE, STEPS = 0.05, 20


@functools.cache
def two_thousand_parameters() -> ll.Problem:
    problem = network_problem(width=44, num_examples=40)
    count = sum(leaf.size for leaf in jax.tree.leaves(problem.init(jax.random.key(0))))
    assert count == 2113
    return problem


@functools.cache
def oracle(problem: ll.Problem) -> tuple:
    """Compiled once per problem: starting point of a seed, one step of gradient descent, dense Hessian."""
    options = {"xla_backend_optimization_level": 1}
    drawn = jax.jit(starting_points(problem), compiler_options=options)
    start = lambda *inputs: drawn(*inputs)[0]  # noqa: E731
    step = jax.jit(lambda params: jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(problem.objective)(params)))
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], start({}, np.zeros((1, 1), np.uint32))))
    # Row by row: all at once would hold every row's activations.
    row = jax.jit(lambda flat, v: jax.jvp(jax.grad(lambda f: problem.objective(unravel(f))), (flat,), (v,))[1])
    return start, step, jax.jit(lambda flat: jax.lax.map(lambda v: row(flat, v), jnp.eye(flat.size), batch_size=64))


def dense_hessian(problem: ll.Problem, seed: int, dtype: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters after `num_steps` of gradient descent in `dtype`, and the dense Hessian there, in float64."""
    start, step, hessian = oracle(problem)
    params = start({}, np.full((1, 1), seed, np.uint32))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 0], dtype), params)
        for _ in range(num_steps):
            params = step(params)
        flat = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype("float64"), params))[0]
        return np.asarray(flat), np.asarray(hessian(flat))


def dense_sharpness(problem: ll.Problem, seed: int, dtype: str, num_steps: int) -> float:
    return float(np.linalg.eigvalsh(dense_hessian(problem, seed, dtype, num_steps)[1])[-1])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param("float32", 1e-4, marks=pytest.mark.long), pytest.param("float64", 1e-6, marks=pytest.mark.slow)],
)
def test_equals_the_dense_float64_hessian(dtype, tolerance):
    problem = two_thousand_parameters()
    sweep = ll.Sweep({"learning_rate": [RATE]}, seeds=3, num_steps=STEPS, every=10, dtype=dtype)
    runs = ll.run(problem, optax.sgd, sweep, probes=["loss", "sharpness"])
    assert runs["sharpness_converged"].all()
    for seed in range(3):
        for step in (0, STEPS):
            measured = runs["sharpness"].sel(seed=seed, step=step).item()
            assert measured == pytest.approx(dense_sharpness(problem, seed, dtype, step), rel=tolerance)


@pytest.mark.slow
def test_residual_bounds_the_distance_to_the_top_eigenvalue():
    problem = problem_named("cubic")
    sweep = ll.Sweep({"learning_rate": [RATE]}, seeds=8, num_steps=STEPS, every=STEPS)
    runs = ll.run(problem, optax.sgd, sweep, probes=["sharpness"])
    assert (runs["sharpness_residual"] <= 1e-4 * abs(runs["sharpness"])).all()
    assert (runs["sharpness_num_matvecs"] >= 1).all()
    for seed in range(8):
        truth = dense_sharpness(problem, seed, "float32", STEPS)
        gap = abs(runs["sharpness"].sel(seed=seed, step=STEPS).item() - truth)
        assert gap <= runs["sharpness_residual"].sel(seed=seed, step=STEPS).item() + 1e-6 * truth


@pytest.mark.slow
def test_warm_starts_spare_products():
    problem = problem_named("cubic")
    sweep = ll.Sweep({"learning_rate": [RATE]}, seeds=16, num_steps=100, every=5)
    spent = ll.run(problem, optax.sgd, sweep, probes=["sharpness"])["sharpness_num_matvecs"].isel(learning_rate=0)
    cold, warm = spent.isel(step=0), spent.isel(step=slice(1, None)).mean("step")
    assert (warm < cold).mean() >= 0.9


@pytest.mark.slow
def test_gradient_curvature_is_the_rayleigh_quotient():
    problem = problem_named("cubic")
    sweep = ll.Sweep({"learning_rate": [RATE]}, seeds=2, num_steps=1, every=1, dtype="float64")
    runs = ll.run(problem, optax.sgd, sweep, probes=["gradient_curvature", "sharpness"])
    flat, hessian = dense_hessian(problem, 1, "float64", 0)
    with jax.enable_x64(True):
        _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype("float64"), problem.init(jax.random.key(0))))
        gradient = np.asarray(jax.grad(lambda f: problem.objective(unravel(f)))(jnp.asarray(flat)))
    expected = gradient @ hessian @ gradient / (gradient @ gradient)
    assert runs["gradient_curvature"].sel(seed=1, step=0).item() == pytest.approx(expected, rel=1e-10)
    assert (runs["gradient_curvature"] <= runs["sharpness"] * (1 + 1e-6)).all()
