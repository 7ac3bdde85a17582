"""Curvature as minibatch training meets it: that of a batch's loss along the same batch's gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from lossland.arguments import KEY, TREE, a, choice, count, expects
from lossland.curvature.operators import hessian
from lossland.problems.problem import Problem, cast_floating
from lossland.stability.minibatch import BatchSampling, noise_factor
from lossland.sweeps.probes import Probe, State

QUANTILE = 1.959964
"""97.5 % quantile of the normal distribution."""


class BatchSharpness(NamedTuple):
    """Two means over batches of g.Hg and g.g, g and H those of one batch's loss, each with its standard error.

    ratio_of_means: E[g.Hg] / E[g.g], for which gradient descent's step lowers the quadratic models of the losses on
    average while it is below 2 / learning_rate; mean_of_ratios: E[g.Hg / g.g], over batches with g not 0. They differ
    where large gradients meet other curvature than small ones. Units: those of the sharpness. num_batches: drawn.
    """

    ratio_of_means: jax.Array
    ratio_of_means_error: jax.Array
    mean_of_ratios: jax.Array
    mean_of_ratios_error: jax.Array
    num_batches: int

    def intervals(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return name -> (low, high), the normal 95 % intervals over batches."""
        pairs = {
            "ratio_of_means": (self.ratio_of_means, self.ratio_of_means_error),
            "mean_of_ratios": (self.mean_of_ratios, self.mean_of_ratios_error),
        }
        return {name: (value - QUANTILE * error, value + QUANTILE * error) for name, (value, error) in pairs.items()}


@expects(problem=a("an ll.Problem", Problem), params=TREE, key=KEY, batch_size=count(), num_batches=count(2, 2**24))
def batch_sharpness(
    problem: Problem,
    params: Any,
    key: jax.Array,
    *,
    batch_size: int,
    num_batches: int = 256,
    sampling: BatchSampling = "without_replacement",
) -> BatchSharpness:
    """Estimate E[g.Hg] / E[g.g] and E[g.Hg / g.g] over batches drawn independently, with their standard errors.

    The error of the ratio of means is that of its linearisation (delta method). One Hessian product and one gradient
    per batch. Works under `jit` and `vmap`.

    Raises ValueError for a sampling that is not independent, a batch larger than the data, or fewer than two batches.

    Source: Andreyev and Beneventano 2024, arXiv 2412.20553 ("batch sharpness" is the mean of ratios).
    """
    noise_factor(problem.num_examples, batch_size, sampling)
    if isinstance(num_batches, bool) or not isinstance(num_batches, int) or num_batches < 2:
        raise ValueError(f"num_batches: expected an integer of at least 2, got {num_batches!r}")
    data = cast_floating(problem.data, jnp.result_type(*jax.tree.leaves(params)))

    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = jax.random.fold_in(key, index)
        if sampling == "with_replacement":
            chosen = jax.random.randint(own, (batch_size,), 0, problem.num_examples)
        else:
            chosen = jax.random.permutation(own, problem.num_examples)[:batch_size]
        batch = jax.tree.map(lambda leaf: leaf[chosen], data)

        def loss(params: Any) -> jax.Array:
            return problem._evaluate(params, batch)

        gradient = jax.grad(loss)(params)
        flat = ravel_pytree(gradient)[0]
        image = ravel_pytree(hessian(loss, params)(gradient))[0]
        return jnp.vdot(flat, image), jnp.vdot(flat, flat)

    curved, squared = lax.map(one, jnp.arange(num_batches))
    scale = 1 / math.sqrt(num_batches)
    ratio = jnp.mean(curved) / jnp.mean(squared)
    counted = squared > 0  # a batch that is fitted has no direction
    ratios, count = curved / squared, jnp.sum(counted)
    mean = jnp.mean(ratios, where=counted)
    return BatchSharpness(
        ratio,
        jnp.std(curved - ratio * squared, ddof=1) * scale / jnp.mean(squared),
        mean,
        jnp.std(ratios, ddof=1, where=counted) / jnp.sqrt(count),
        num_batches,
    )


@expects(batch_size=count(), num_batches=count(2, 2**24), sampling=choice("with_replacement", "without_replacement"))
def batch_sharpness_probe(
    batch_size: int, num_batches: int = 64, sampling: BatchSampling = "without_replacement"
) -> Probe:
    """Build the probe of both batch sharpnesses along training, see `batch_sharpness`.

    Records `batch_sharpness_ratio_of_means`, `batch_sharpness_mean_of_ratios` and their `_error`, the standard errors
    over batches. Units: loss / parameter^2.

    Raises ValueError, when the sweep is traced, as `batch_sharpness`.
    """

    def measure(problem: Problem, optimizer: Any, state: State) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), state.step)
        found = batch_sharpness(
            problem, state.params, key, batch_size=batch_size, num_batches=num_batches, sampling=sampling
        )
        return {f"batch_sharpness_{name}": getattr(found, name) for name in found._fields[:-1]}

    texts = {
        "ratio_of_means": "E[g.Hg] / E[g.g] over batches, g and H of the same batch",
        "mean_of_ratios": "E[g.Hg / g.g] over batches, g and H of the same batch",
    }
    descriptions = {}
    for name, text in texts.items():
        descriptions[f"batch_sharpness_{name}"] = text
        descriptions[f"batch_sharpness_{name}_error"] = f"standard error over batches of {text}"
    return Probe(
        "batch_sharpness",
        measure,
        units=dict.fromkeys(descriptions, "loss / parameter^2"),
        descriptions=descriptions,
    )
