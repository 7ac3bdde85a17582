"""Compiling dominates these tests, which run a program once: less of it."""

import functools

import jax
import numpy as np

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jit` without XLA's optimisations."""


def starts_of(problem, num_runs):
    """Starting points by NumPy in the shapes of `init`, which would take longer to compile than the loss."""
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: np.float32(0.4 * rng.normal(size=(num_runs, *leaf.shape))), shapes)
